"""Reading the folders of runs: finished ones, unfinished ones, and those that cannot be read, with the reason."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from util.errors import UserError, describe_error
from util.files import digest

FILES = ("model", "weights", "text_features", "similarity", "features", "teacher", "teacher_weights")  # may name a file
REPEATS = ("seed", "draw")  # settings over which a row of a table averages


@dataclass(frozen=True)
class Run:
    """One run.

    identity  what makes it this run: its settings, and what is known of the files that they name
    shown     the settings as text, files by name
    config    all settings, as they were given
    result    test.json; empty: the run is unfinished
    """

    folder: Path
    identity: dict[str, object]
    shown: dict[str, str]
    config: dict[str, object]
    started: str
    device: str
    result: dict[str, object] = field(default_factory=dict)

    @property
    def setting(self) -> dict[str, object]:
        """The identity without seed and draw: runs that share it are averaged."""
        return {name: value for name, value in self.identity.items() if name not in REPEATS}

    @property
    def repeat(self) -> tuple[int, int]:
        """(draw of the known labels, seed)."""
        return self.identity.get("draw", 0), self.identity.get("seed", 0)

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of test.json whose names begin with test_, by the rest of the name."""
        numbers = {name: value for name, value in self.result.items() if isinstance(value, int | float)}
        return {name.removeprefix("test_"): value for name, value in numbers.items() if name.startswith("test_")}


@dataclass(frozen=True)
class Runs:
    """finished, unfinished; unread: (name of the folder, why it is not in the table)."""

    finished: list[Run]
    unfinished: list[Run]
    unread: list[tuple[str, str]]


def read_runs(places: Iterable[str | Path]) -> Runs:
    """The runs in folders of runs, or in folders that are a run themselves, sorted by path.

    Raises UserError if a place is no folder.
    """
    runs, seen = Runs([], [], []), {}
    for folder in find_runs(places):
        try:
            run = read_run(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            runs.unread.append((folder.name, f"damaged ({describe_error(error)}); --overwrite runs it again"))
            continue
        first = seen.setdefault(digest(run.identity), folder)
        if first != folder:
            runs.unread.append((folder.name, f"the same run as {first}"))
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
    identity, config = metadata["identity"], metadata["config"]
    result = json.loads(path.read_text()) if path.exists() else {}
    if result:
        result["chosen_by"], identity["dataset"], identity["loss"]  # what every table needs: KeyError
    return Run(folder, identity, _shown(identity, config), config, metadata["started"], metadata["device"], result)


def _shown(identity: dict[str, object], config: dict[str, object]) -> dict[str, str]:
    """The identity as text: numbers rounded, files by name."""
    shown = {name: show(value) for name, value in identity.items()}
    for name in FILES:
        if isinstance(config.get(name), str) and name in shown and config[name] != identity[name]:
            shown[name] = Path(config[name]).name
    return shown | {name: shown[name][:6] for name in ("data", "code") if name in shown}


def show(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return " + ".join(map(show, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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


def seconds_since_written(folder: Path) -> float:
    """How long ago a run last wrote a file."""
    return max(0.0, time.time() - max(path.stat().st_mtime for path in folder.iterdir()))
