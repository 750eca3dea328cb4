"""Data sets by name. What differs between them is data: the counts that formatting must find."""

from dataclasses import dataclass
from pathlib import Path

from cli import UserError
from datasets.files import Classes, is_formatted
from datasets.multilabel import MultiLabelDataset, Splits, cache_folder, load

__all__ = ["DATASETS", "Classes", "Known", "MultiLabelDataset", "Splits", "cache_folder", "check_name", "load"]


@dataclass(frozen=True)
class Known:
    """What a data set's formatted files hold when they are complete.

    train, val  images of the official training set, and of the official validation or test set
    labels      classes
    """

    train: int
    val: int
    labels: int


DATASETS = {
    "pascal": Known(train=5_717, val=5_823, labels=20),
    "coco": Known(train=82_081, val=40_137, labels=80),
    "nuswide": Known(train=150_000, val=60_260, labels=81),
    "cub": Known(train=5_994, val=5_794, labels=312),
    "digits": Known(train=3_000, val=1_000, labels=10),
}


def check_name(name: str, data_root: str) -> None:
    """Raises UserError for a data set that is neither known nor a folder of formatted files."""
    if Path(name).name != name:
        raise UserError(f"--dataset takes the name of a folder below {data_root}/, not a path: {name!r}")
    if name in DATASETS or is_formatted(Path(data_root) / name):
        return
    own = sorted(path.parent.name for path in Path(data_root).glob("*/formatted_train_labels.npy"))
    raise UserError(
        f"unknown data set {name!r}; there are {', '.join(dict.fromkeys([*DATASETS, *own]))}, and any folder of "
        f"formatted files under {data_root}/"
    )
