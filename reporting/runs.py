"""Reading the folders of runs: finished ones, unfinished ones, and those that cannot be read, with the reason."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from util.errors import UserError, describe_error
from util.files import digest

REPEATS = ("seed", "draw")  # settings over which a row of a table averages


@dataclass(frozen=True)
class Run:
    """One run.

    identity  what makes it this run: the settings that change its numbers, with a file as [name, size]
    config    all settings, as they were given
    result    test.json; empty if the run is unfinished
    """

    folder: Path
    identity: dict[str, object]
    config: dict[str, object]
    result: dict[str, object] = field(default_factory=dict)

    @cached_property
    def shown(self) -> dict[str, str]:
        """The identity as text, with digests cut short."""
        shown = {name: show(value) for name, value in self.identity.items()}
        return shown | {name: shown[name][:6] for name in ("data", "code") if name in shown}

    @cached_property
    def setting(self) -> dict[str, object]:
        """The identity without seed and draw: runs that share it are averaged."""
        return {name: value for name, value in self.identity.items() if name not in REPEATS}

    @property
    def repeat(self) -> tuple[int, int]:
        """(draw of the known labels, seed)."""
        return self.identity.get("draw", 0), self.identity.get("seed", 0)


@dataclass
class Runs:
    """The finished and the unfinished runs, and the others: (name of the folder, why it is not in the table)."""

    finished: list[Run]
    unfinished: list[Run]
    left_out: list[tuple[str, str]]


def read_runs(places: Iterable[str | Path], conditions: list[str]) -> Runs:
    """The runs in folders of runs, or in folders that are a run themselves, sorted by path, that meet the conditions.

    Raises UserError if a place is no folder.
    """
    runs, left_out = {}, []
    for folder in find_runs(places):
        try:
            run = read_run(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            left_out.append((folder.name, f"damaged ({describe_error(error)}); --overwrite runs it again"))
            continue
        first = runs.setdefault(digest(run.identity), run)
        if first is not run:
            left_out.append((folder.name, f"the same run as {first.folder}"))
    chosen = meeting(list(runs.values()), conditions)
    return Runs([run for run in chosen if run.result], [run for run in chosen if not run.result], left_out)


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise UserError(f"{place} is no folder; name the --results-dir of the runs, or the folder of a run")
        inside = [place / "config.json"] if (place / "config.json").exists() else sorted(place.glob("*/config.json"))
        for path in inside:
            if not path.parent.name.startswith("."):  # a run that is just being created
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def read_run(folder: Path) -> Run:
    metadata, path = json.loads((folder / "config.json").read_text()), folder / "test.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result:
        result["chosen_by"], result["known_labels"], metadata["identity"]["loss"]  # what every table needs: KeyError
    return Run(folder, metadata["identity"], metadata["config"], result)


def show(value: object) -> str:
    """A setting's value as text: numbers rounded, files by name."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return value[0] if [type(part) for part in value] == [str, int] else " + ".join(map(show, value))
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def meeting(runs: list[Run], conditions: list[str]) -> list[Run]:
    """The runs that meet every condition NAME=VALUE; several of one NAME are alternatives.

    Raises UserError for a text that is no condition, and for a name that no run has.
    """
    known, wanted = sorted({name for run in runs for name in run.shown}), defaultdict(set)
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes NAME=VALUE, such as dataset=pascal, not {name!r}")
        if runs and name not in known:
            raise UserError(f"--where {name}: no run has such a setting; there are {', '.join(known)}")
        wanted[name].add(natural(value))
    return [run for run in runs if all(natural(run.shown.get(n, "-")) in values for n, values in wanted.items())]


def natural(text: str) -> tuple[float, str]:
    """For comparing: numbers by value, before other texts."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def read_history(folder: Path) -> pd.DataFrame:
    """The lines of metrics.jsonl: epoch, train_loss, val_mAP, seconds; no rows before the first epoch has ended."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return pd.DataFrame(map(json.loads, lines), columns=["epoch", "train_loss", "val_mAP", "seconds"]).astype(float)


def read_per_class(folder: Path) -> pd.DataFrame:
    """per_class.csv: test_positives, test_AP in percent and threshold, by class."""
    return pd.read_csv(folder / "per_class.csv", index_col="class", keep_default_na=False, dtype={"class": str})


def read_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images (N,) str, probs (N, L) float, labels (N, L) in {0, 1} of a finished run's test."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        return file["images"], file["probs"], file["labels"]
