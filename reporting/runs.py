"""Reading the folders of runs: which are finished, which are not, and which cannot be read, with the reason."""

import csv
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from util.errors import UserError, describe_error
from util.files import digest, read_arrays, read_bytes, read_json, read_text

Percent = Annotated[float, Meta(ge=0, le=100)]  # neither NaN nor infinite
# settings that may name a file
FILES = ("model", "weights", "text_features", "similarity", "teacher", "teacher_weights")


class Identity(Struct):
    """What every identity has, a teacher alone without backbone and seed; the other settings depend on the method."""

    dataset: str
    loss: str
    model: str = ""
    seed: int = 0


class About(Struct):
    """config.json."""

    identity: dict[str, object]
    config: dict[str, object] = {}
    started: str = ""
    device: str = ""


class Result(Struct):
    """test.json, as far as every version wrote it."""

    chosen_by: Annotated[str, Meta(min_length=1)]
    test_mAP: Percent | None = None  # of data without full labels of the test images there is none
    val_mAP: Percent | None = None
    best_epoch: int | None = None


class Epoch(Struct):
    """A line of metrics.jsonl."""

    epoch: int
    train_loss: float
    val_mAP: Percent | None = None  # there may be no validation images
    seconds: Annotated[float, Meta(ge=0)] = 0.0


@dataclass(frozen=True)
class Run:
    """One run.

    identity  its settings, files by the digest of their content
    shown     the same as text, files by name
    config    all settings, as they were given
    result    test.json; None: the run is unfinished
    figures   every number of test.json whose name begins with test_, by the rest of the name
    """

    folder: Path
    identity: dict[str, object]
    shown: dict[str, str]
    config: dict[str, object]
    started: str = ""
    device: str = ""
    result: Result | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> dict[str, object]:
        """The identity without the seed: runs that share it are averaged."""
        return {name: value for name, value in self.identity.items() if name != "seed"}

    @property
    def seed(self) -> int:
        return self.identity.get("seed", 0)

    def key(self) -> str:
        return digest(self.setting)


@dataclass(frozen=True)
class Runs:
    """finished, unfinished; unread: (name of the folder, why it is not in the table)."""

    finished: list[Run]
    unfinished: list[Run]
    unread: list[tuple[str, str]]


def read_runs(places: Iterable[str | Path]) -> Runs:
    """The runs in folders of runs, or in folders that are a run themselves, sorted by path.

    Raises UserError where a place is no folder.
    """
    runs, seen = Runs([], [], []), {}
    for folder in find_runs(places):
        try:
            run = read_run(folder)
        except UserError as error:
            reason = str(error).replace(f"{folder}/", "")
            runs.unread.append((folder.name, f"damaged, {reason}: --overwrite runs it again"))
            continue
        first = seen.setdefault(digest(run.identity), folder)
        if first != folder:
            runs.unread.append((folder.name, f"the same run as {first}"))
        elif run.result is None:
            runs.unfinished.append(run)
        else:
            runs.finished.append(run)
    return runs


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise UserError(f"{place} is no folder; name the --results-dir of the runs, or the folder of a run")
        if (place / "config.json").exists():
            found.setdefault(place.resolve(), place)
            continue
        for path in sorted(place.glob("*/config.json")):
            if not path.parent.name.startswith("."):  # a run that is just being created
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Raises UserError, in a few words, where config.json or test.json cannot be relied on."""
    about = read_json(folder / "config.json", About, how="")
    try:
        msgspec.convert(about.identity, Identity)
    except msgspec.ValidationError as error:
        raise UserError(f"config.json does not hold what it should ({describe_error(error)})") from None
    run = dict(
        folder=folder,
        identity=about.identity,
        shown=_shown(about),
        config=about.config,
        started=about.started,
        device=about.device,
    )
    path = folder / "test.json"
    if not path.exists():
        return Run(**run)
    numbers = {
        name.removeprefix("test_"): float(value)
        for name, value in read_json(path, dict[str, object], how="").items()
        if name.startswith("test_") and isinstance(value, int | float)
    }
    return Run(**run, result=read_json(path, Result, how=""), figures=numbers)


def _shown(about: About) -> dict[str, str]:
    """The identity as text: numbers rounded, files by name, and a digest that stays by its first six digits."""
    shown = {name: show(value) for name, value in about.identity.items()}
    for name in FILES:
        given = about.config.get(name)
        if isinstance(given, str) and name in shown and given != about.identity[name]:
            shown[name] = Path(given).name
    if "data" in shown:
        shown["data"] = shown["data"][:6]
    return shown


def show(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_history(folder: Path) -> list[Epoch]:
    """The lines of metrics.jsonl; none where it is not there yet. Raises UserError where it is damaged."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        return [msgspec.json.decode(line, type=Epoch) for line in read_bytes(path).splitlines() if line.strip()]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not hold what it should ({describe_error(error)})") from None


def read_per_class(folder: Path) -> dict[str, tuple[int, float, float]]:
    """{class: (test positives, test AP in percent, threshold)} of a finished run; NaN where an earlier version wrote no
    thresholds. Raises UserError where it cannot be read."""
    path = folder / "per_class.csv"
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        rows = {
            row["class"]: (int(row["test_positives"]), float(row["test_AP"]), float(row.get("threshold") or "nan"))
            for row in lines
        }
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} does not hold what it should ({describe_error(error)})") from None
    if not rows or not all(0 <= ap <= 100 for _, ap, _ in rows.values()):
        raise UserError(f"{path} holds no average precisions in percent")
    return rows


def read_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images (N,) str, probs (N, L) float, labels (N, L) in {0, 1} of a finished run's test.

    Raises UserError where the file is something else.
    """
    path = folder / "predictions.npz"
    images, probs, labels = read_arrays(path, ("images", "probs", "labels"))
    shapes_agree = images.ndim == 1 and probs.ndim == 2 and len(images) == len(probs) and probs.shape == labels.shape
    if not shapes_agree or images.dtype.kind != "U" or probs.dtype.kind != "f" or not np.isfinite(probs).all():
        raise UserError(f"{path} does not hold images, finite probs and labels of one length")
    return images, probs, labels


def seconds_since_written(folder: Path) -> float:
    """How long ago a run last wrote a file."""
    return max(0.0, time.time() - max(path.stat().st_mtime for path in folder.iterdir()))
