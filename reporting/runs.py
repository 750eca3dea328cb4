"""Reading the folders of runs: finished ones, unfinished ones, and those that cannot be read, with the reason."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from util.errors import UserError, describe_error
from util.files import digest


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
    result: dict[str, object]

    @cached_property
    def shown(self) -> dict[str, str]:
        """The identity as text, with digests cut short."""
        shown = {name: show(value) for name, value in self.identity.items()}
        return shown | {name: shown[name][:6] for name in ("data", "code") if name in shown}

    @property
    def setting(self) -> dict[str, object]:
        """The identity without seed and draw: runs that share it are averaged."""
        return {name: value for name, value in self.identity.items() if name not in ("seed", "draw")}

    @property
    def repeat(self) -> tuple[int, int]:
        """(draw of the known labels, seed)."""
        return self.identity.get("draw", 0), self.identity.get("seed", 0)

    @cached_property
    def history(self) -> pd.DataFrame:
        """The lines of metrics.jsonl: epoch, train_loss, val_mAP, seconds; no rows before the first epoch has ended."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return pd.DataFrame(map(json.loads, lines), columns=["epoch", "train_loss", "val_mAP", "seconds"]).astype(float)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """test_positives, test_AP in percent and threshold, by class."""
        path = self.folder / "per_class.csv"
        return pd.read_csv(path, index_col="class", keep_default_na=False, dtype={"class": str})

    @property
    def quality(self) -> dict | None:
        """Quality of the pseudo-labels; None if the run uses none."""
        path = self.folder / "pseudo_labels.json"
        return json.loads(path.read_text()) if path.exists() else None

    def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """images (N,) str, probs (N, L) float, labels (N, L) in {0, 1} of the test set."""
        with np.load(self.folder / "predictions.npz", allow_pickle=False) as file:
            return file["images"], file["probs"], file["labels"]

    def progress(self) -> str:
        """How far an unfinished run is."""
        val = self.history["val_mAP"]
        best = f", best val mAP {val.max():.2f}" if val.notna().any() else ""
        return f"{len(val)} of {self.config.get('epochs', '?')} epochs{best}"


def read_runs(places: Iterable[Path], conditions: list[str]) -> tuple[list[Run], list[tuple[str, str]]]:
    """The runs that meet the conditions, sorted by path; and the folders that are damaged or copies, with the reason.

    places      folders of runs, or folders that are a run
    conditions  NAME=VALUE; several of one NAME are alternatives
    """
    runs, left_out = {}, []
    for folder in find_runs(places):
        try:
            metadata, path = json.loads((folder / "config.json").read_text()), folder / "test.json"
            result = json.loads(path.read_text()) if path.exists() else {}
            run = Run(folder, metadata["identity"], metadata["config"], result)
            if result:
                run.identity["loss"], result["chosen_by"], result["known_labels"]  # what every table needs: KeyError
        except (OSError, ValueError, KeyError, TypeError) as error:
            left_out.append((folder.name, f"damaged ({describe_error(error)}); --overwrite runs it again"))
            continue
        first = runs.setdefault(digest(run.identity), run)
        if first is not run:
            left_out.append((folder.name, f"the same run as {first.folder}"))
    return meeting(list(runs.values()), conditions), left_out


def find_runs(places: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is no folder; name the --results-dir of the runs, or the folder of a run")
        is_run = (place / "config.json").exists()
        pattern = "config.json" if is_run else "[!.]*/config.json"  # .NAME: a run that is just being created
        for path in sorted(place.glob(pattern)):
            found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def show(value: object) -> str:
    """A setting's value as text: numbers rounded, files by name."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return value[0] if [type(part) for part in value] == [str, int] else " + ".join(map(show, value))
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def meeting(runs: list[Run], conditions: list[str]) -> list[Run]:
    known, wanted = sorted({name for run in runs for name in run.shown}), defaultdict(set)
    for name, equals, value in (condition.partition("=") for condition in conditions):
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
