"""Reading the folders of runs: finished ones, unfinished ones, and those that cannot be read, with the reason."""

import json
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


@dataclass(frozen=True)
class Runs:
    """The finished and the unfinished runs, and the others: (name of the folder, why it is not in the table)."""

    finished: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def read_runs(places: Iterable[str | Path]) -> Runs:
    """The runs in folders of runs, or in folders that are a run themselves, sorted by path.

    Raises UserError if a place is no folder.
    """
    runs, seen = Runs(), {}
    for folder in find_runs(places):
        try:
            run = read_run(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            runs.left_out.append((folder.name, f"damaged ({describe_error(error)}); --overwrite runs it again"))
            continue
        first = seen.setdefault(digest(run.identity), folder)
        if first != folder:
            runs.left_out.append((folder.name, f"the same run as {first}"))
        else:
            (runs.finished if run.result else runs.unfinished).append(run)
    return runs


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
