"""Finished runs as tables: a row for each setting, averaged over seeds and draws; Markdown, LaTeX and CSV by pandas."""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from datasets import DATASETS
from losses import LOSSES
from reporting.runs import Run, read_per_class
from util.errors import UserError
from util.files import digest

ORACLES, SINGLE = "oracles", "single positives"
Repeat = tuple[int, int]  # (draw of the known labels, seed)


@dataclass
class Row:
    """The runs of one setting.

    setting        the identity without seed and draw;  shown  the same as text
    test, val      {repeat: mAP in percent}; empty if one of the runs has none
    chosen_by      what chose the epoch
    known          which labels were known: ORACLES, SINGLE, or the number of known labels per image
    figures        means of the other numbers of test.json
    published      the published test mAP, if the runs repeat it
    distinguishing {setting: value} by which it differs from other rows of its method and data set
    runs           the runs themselves; none if the row was read from a CSV file
    """

    setting: dict[str, object]
    shown: dict[str, str]
    test: dict[Repeat, float]
    val: dict[Repeat, float]
    repeats: list[Repeat]
    chosen_by: str
    known: str
    figures: dict[str, float] = field(default_factory=dict)
    published: float | None = None
    distinguishing: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def dataset(self) -> str:
        return self.shown["dataset"]

    @property
    def loss(self) -> str:
        return self.shown["loss"]

    @property
    def line(self) -> str:
        """The name of its line in a table."""
        details = ", ".join(f"{name} {value}" for name, value in self.distinguishing.items())
        return self.loss + (f" ({details})" if details else "")

    @property
    def oracle(self) -> bool:
        return self.known == ORACLES

    @property
    def trained(self) -> bool:
        """Whether its runs train something. A teacher alone has no seed: its one result is compared with every seed."""
        return self.loss not in LOSSES or LOSSES[self.loss].loss is not None

    @property
    def count(self) -> str:
        """n, with the number of draws if there are several."""
        draws = len({draw for draw, _ in self.repeats})
        return f"{len(self.repeats)}" + (f" ({draws} draws)" if draws > 1 else "")


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def deviation(values: Iterable[float]) -> float:
    """Standard deviation; NaN for fewer than two values."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def group(runs: list[Run]) -> list[Row]:
    """The rows, in the order of the tables: data sets, then methods, each in the order of its list."""
    by_setting = defaultdict(list)
    for run in runs:
        by_setting[digest(run.setting)].append(run)
    rows = []
    for members in by_setting.values():
        members.sort(key=lambda run: run.repeat)
        first = members[0]
        test, val = ({run.repeat: run.result[name] for run in members if run.result.get(name) is not None}
                     for name in ("test_mAP", "val_mAP"))  # fmt: skip
        published = {run.result.get("published") for run in members}
        rows.append(
            Row(
                setting=first.setting,
                shown={name: value for name, value in first.shown.items() if name in first.setting},
                test=test if len(test) == len(members) else {},
                val=val if len(val) == len(members) else {},
                repeats=[run.repeat for run in members],
                chosen_by=first.result["chosen_by"],
                known=known_in_words(first),
                figures=pd.DataFrame([run.figures for run in members]).dropna(axis=1).mean().to_dict(),
                published=published.pop() if len(published) == 1 else None,
                runs=members,
            )
        )
    add_distinguishing(rows)
    return sorted(rows, key=_order)


def known_in_words(run: Run) -> str:
    """Which labels a run has trained on."""
    method, known = LOSSES.get(run.identity["loss"]), run.result.get("known_labels")
    if method and method.oracle:
        return ORACLES
    if known is None or (known["positive"] <= 1 and known["negative"] == 0):
        return SINGLE
    return f"{known['positive']:.2f} positive, {known['negative']:.2f} negative known labels per image"


def _order(row: Row) -> tuple:
    return place(DATASETS, row.dataset), place(LOSSES, row.loss), [natural(v) for v in row.distinguishing.values()]


def place(known: Iterable[str], name: str) -> tuple[int, str]:
    """For sorting: known names in their order, then the others by name."""
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def natural(text: str) -> tuple[float, str]:
    """For sorting: numbers by value, then other texts."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def add_distinguishing(rows: list[Row]) -> None:
    """Set for each row the settings by which it differs from the others of its method and data set. Settings that all
    rows have are preferred, because those that only some have follow from them."""
    for members in by(rows, lambda row: (row.dataset, row.loss)).values():
        texts = pd.DataFrame([{name: str(value) for name, value in row.setting.items()} for row in members])
        differing = texts.loc[:, texts.nunique(dropna=False) > 1]
        shared = differing.dropna(axis=1)
        chosen = sorted(differing if shared.duplicated().any() or shared.empty else shared)
        shown = pd.DataFrame([row.shown for row in members]).reindex(columns=chosen).fillna("-")
        for name in chosen:  # two files of one name, or two numbers that round to one
            if shown[name].nunique() < texts[name].nunique(dropna=False):
                shown[name] = texts[name].fillna("-")
        for row, values in zip(members, shown.to_dict("records"), strict=True):
            row.distinguishing = values


def by(rows: Iterable[Row], key: Callable[[Row], object]) -> dict[object, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def where(runs: list[Run], conditions: list[str]) -> list[Run]:
    """The runs that meet every condition NAME=VALUE; several of one NAME are alternatives.

    Raises UserError for a text that is no condition, and for a name that no run has.
    """
    wanted = defaultdict(list)
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes NAME=VALUE, such as dataset=pascal, not {condition!r}")
        wanted[name].append(value)
    known = sorted({name for run in runs for name in run.shown})
    if runs and (unknown := [name for name in wanted if name not in known]):
        raise UserError(f"--where {unknown[0]}: no run has such a setting; there are {', '.join(known)}")
    return [run for run in runs if all(_matches(run.shown.get(name, "-"), values) for name, values in wanted.items())]


def _matches(shown: str, values: list[str]) -> bool:
    return any(shown == value or natural(shown)[0] == natural(value)[0] != math.inf for value in values)


# Cells


def spread(values: dict[object, float]) -> str:
    """Mean ± standard deviation; a dash if there are no values."""
    if not values:
        return "-"
    return f"{mean(values.values()):.2f}" + (f" ± {deviation(values.values()):.2f}" if len(values) > 1 else "")


def cell(row: Row) -> str:
    """Test mAP with n, validation mAP, the published number and the difference from it."""
    parts = [f"n {row.count}"] + ([f"val {mean(row.val.values()):.2f}"] if row.val else [])
    if row.published is not None:
        parts.append(f"published {row.published:.2f}, {mean(row.test.values()) - row.published:+.2f}")
    return f"{spread(row.test)} ({'; '.join(parts)})"


def _or_dash(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.line,
    "test": lambda row: spread(row.test),
    "val": lambda row: spread(row.val),
    "n": lambda row: row.count,
    "seeds": lambda row: " ".join(str(seed) for seed in sorted({seed for _, seed in row.repeats})),
    "draws": lambda row: " ".join(str(draw) for draw in sorted({draw for draw, _ in row.repeats})),
    "published": lambda row: _or_dash(row.published),
    "difference": lambda row: _or_dash(row.published and mean(row.test.values()) - row.published, "+.2f"),
    "chosen_by": lambda row: row.chosen_by,
    "known": lambda row: row.known,
}


# Tables: a frame of texts, whose column SECTION divides its rows

SECTION = "section"


def pivot(rows: list[Row], cell: Callable[[Row], str] = cell) -> pd.DataFrame:
    """Methods down, data sets across."""
    lines: dict[tuple, dict[str, str]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: _order(row)[1:]):
        lines[row.known, row.line][row.dataset] = cell(row)
    records = [{SECTION: known, "test mAP, %": line} | cells for (known, line), cells in lines.items()]
    return pd.DataFrame(records, columns=[SECTION, "test mAP, %", *dict.fromkeys(row.dataset for row in rows)]).fillna(
        ""
    )


def flat(rows: list[Row], columns: list[str]) -> pd.DataFrame:
    """A row for each setting; columns are names of COLUMNS, of figures of test.json, or of settings."""
    figures = {name for row in rows for name in row.figures}
    settings = {name for row in rows for name in row.shown}
    if unknown := [name for name in columns if name not in {*COLUMNS, *figures, *settings}]:
        known = ", ".join([*COLUMNS, *sorted(figures), *sorted(settings)])
        raise UserError(f"--columns {unknown[0]}: there is no such column; there are {known}")
    if len({row.dataset for row in rows}) > 1 and "dataset" not in columns:
        columns = ["dataset", *columns]

    def value(row: Row, name: str) -> str:
        if name == "method":  # settings that have columns of their own are not repeated
            rest = {name: value for name, value in row.distinguishing.items() if name not in columns}
            return replace(row, distinguishing=rest).line
        if name in COLUMNS:
            return COLUMNS[name](row)
        return row.shown[name] if name in row.shown else _or_dash(row.figures.get(name), ".4g")

    return pd.DataFrame([{SECTION: row.known} | {name: value(row, name) for name in columns} for row in rows])


def per_class(rows: list[Row]) -> pd.DataFrame:
    """Test AP in percent: classes down, the rows with a test score across, mean ± deviation."""
    columns, several = {}, len({row.dataset for row in rows}) > 1
    for row in (row for row in rows if row.test):
        found = pd.concat([read_per_class(run.folder)["test_AP"] for run in row.runs], axis=1)
        name = f"{row.dataset}, {row.line}" if several else row.line
        columns[name] = found.apply(lambda values: spread(dict(enumerate(values))), axis=1)
    return pd.DataFrame(columns).fillna("").rename_axis("class").reset_index()


def render(frame: pd.DataFrame, latex: bool = False, bold: Iterable[tuple[str, str]] = ()) -> str:
    """The frame as Markdown or as a LaTeX tabular with booktabs' rules.

    bold  (text of a row's first cell, column) of the cells to set in bold
    """
    escape, strong, title = (_latex, r"\textbf{{{}}}", r"\emph{{{}}}") if latex else (_markdown, "**{}**", "*{}*")
    columns = [name for name in frame if name != SECTION]
    texts, bold = frame[columns].map(escape), set(bold)
    for first, column in bold:
        texts.loc[frame[columns[0]] == first, column] = texts[column].map(strong.format)
    if SECTION in frame:
        parts = []
        for name in sorted(frame[SECTION].unique(), key=lambda name: place((ORACLES, SINGLE), name)):
            head = pd.DataFrame([[title.format(escape(name))] + [""] * (len(columns) - 1)], columns=columns)
            parts += [head, texts[frame[SECTION] == name]]
        texts = pd.concat(parts)
    texts.columns = [escape(name) for name in columns]
    if latex:
        return texts.to_latex(index=False, escape=False, column_format="l" + "r" * (len(columns) - 1)).rstrip()
    return texts.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=["left"] * len(columns))


def _markdown(text: str) -> str:
    return " ".join(str(text).split()).translate(str.maketrans({"|": r"\|", "\\": r"\\", "<": "&lt;"}))


LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


def _latex(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split()).translate(LATEX)


def to_csv(rows: list[Row]) -> str:
    """A line for each setting: figures, repeats (draw:seed) with their mAPs in the same order, and every setting."""
    records = [
        {
            "mean": mean(row.test.values()),
            "deviation": deviation(row.test.values()),
            "n": len(row.repeats),
            "repeats": " ".join(f"{draw}:{seed}" for draw, seed in row.repeats),
            "test_mAPs": " ".join(str(row.test[repeat]) for repeat in row.repeats if row.test),
            "val_mAPs": " ".join(str(row.val[repeat]) for repeat in row.repeats if row.val),
            "known": row.known,
            "published": row.published,
            "chosen_by": row.chosen_by,
            **row.setting,
        }
        for row in rows
    ]
    return pd.DataFrame(records).to_csv(index=False, lineterminator="\n")


def from_csv(text: str) -> list[Row]:
    """The rows that to_csv wrote; settings are texts. Raises UserError if it did not."""
    rows = []
    try:
        for line in pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).to_dict("records"):
            repeats = [tuple(map(int, repeat.split(":"))) for repeat in line["repeats"].split()]
            test, val = ([float(value) for value in line[name].split()] for name in ("test_mAPs", "val_mAPs"))
            names = list(line)[list(line).index("chosen_by") + 1 :]
            setting = {name: line[name] for name in names if line[name] != ""}
            scores = [dict(zip(repeats, values, strict=True)) if values else {} for values in (test, val)]
            published = float(line["published"]) if line["published"] else None
            rows.append(Row(setting, setting, *scores, repeats, line["chosen_by"], line["known"], published=published))
            setting["dataset"], setting["loss"]
    except (KeyError, ValueError) as error:
        raise UserError(f"it is no table that report.py wrote with --csv ({error})") from None
    add_distinguishing(rows)
    return sorted(rows, key=_order)
