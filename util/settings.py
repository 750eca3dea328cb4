"""A setting: its default with the values of single data sets, its range, its place on the command line."""

import inspect
from collections.abc import Callable
from functools import partial

from util.errors import UserError


class Setting:
    """One setting, written on one line: `Setting(0.2, "weight of the entropy", "[0, inf)", coco=0.1)`.

    help        what it is, in a few words
    within      an interval such as "(0, 1]"; "" = any value
    search      values for tune.py: an interval such as "[0.01, 1]", on a log scale if its low end is above 0, or a
                tuple of values; () = nothing
    flags       further names on the command line, beside --the-setting's-name; choices, metavar: as in argparse
    needs       a different setting of the same method; if it is 0, this one is not read
    by_dataset  values for single data sets, by name
    """

    def __init__(
        self, default, help, within="", search=(), *, flags=(), choices=(), metavar="", needs="", **by_dataset
    ):
        self.default, self.help, self.within, self.search, self.flags = default, help, within, search, flags
        self.choices, self.metavar, self.needs, self.by_dataset = choices, metavar, needs, by_dataset

    def __repr__(self) -> str:
        return f"Setting({vars(self)})"

    def check(self, name: str, value: object) -> None:
        """Raises UserError if the value lies outside the interval, or is a whole number of more than 64 bits."""
        outside = self.within and value is not None and not inside(value, self.within)
        if outside or (isinstance(value, int) and abs(value) >= 2**63):
            expected = f"lie in {self.within}" if outside else "be below 2^63"
            raise UserError(f"{flag(name)} must {expected}, not {value}")


def ends(interval: str) -> tuple[float, float]:
    """The low and the high end of an interval."""
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def inside(value: float, interval: str) -> bool:
    """Whether value lies in an interval written as in mathematics: "(0, 1]", "[1, inf)". NaN lies in none."""
    low, high = ends(interval)
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def keywords(function: Callable) -> tuple[str, ...]:
    """The keyword-only arguments of a function, or of a class's constructor."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def with_settings(function: Callable, settings: dict[str, object]) -> Callable:
    """The function with the settings that it names filled in."""
    return partial(function, **{name: settings[name] for name in keywords(function)})
