"""Data sets by name: the counts that formatting must find, and settings that differ from their defaults."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import digits, photos
from datasets.dataset import MultiLabelDataset, Splits, load
from datasets.files import Classes, description_path
from util.errors import UserError
from util.files import locked

__all__ = ["DATASETS", "Classes", "DatasetSpec", "MultiLabelDataset", "Splits", "check_name", "load", "prepare"]


@dataclass(frozen=True)
class DatasetSpec:
    """The counts of a complete data set, and how it is trained.

    train, test  images of the official training set, and of the official validation or test set
    labels       classes
    settings     common settings that differ from their defaults
    make         makes the formatted files in a folder, for data sets that need no download
    """

    train: int
    test: int
    labels: int
    settings: dict[str, object] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None


DATASETS = {
    "pascal": DatasetSpec(train=5_717, test=5_823, labels=20),
    "coco": DatasetSpec(train=82_081, test=40_137, labels=80),
    "nuswide": DatasetSpec(train=150_000, test=60_260, labels=81, settings=dict(prompt=("a photo of a {}",))),
    "cub": DatasetSpec(
        train=5_994, test=5_794, labels=312, settings=dict(lr=1e-4, prompt=("a photo of a bird with {}",))
    ),
    "digits": DatasetSpec(
        train=digits.NUM_TRAIN,
        test=digits.NUM_TEST,
        labels=10,
        make=digits.make,
        settings=dict(  # from a search over rate and batch that served every loss
            model="timm:test_resnet",
            pretrained=False,
            image_size=64,
            flip=0.0,  # a mirrored digit is no digit
            epochs=7,
            lr=3e-3,
            schedule="onecycle",  # validation mAP of an, seeds 0, 1, 8: 81, 79, 81; at a constant rate 76, 56, 76
            linear_lr=1e-1,  # of 1e-2, 3e-2, 1e-1, 3e-1: best mean validation mAP of an, EM, gr, EM_PL and CTL
            threads=1,  # the results depend on it: EM_PL, seed 0, has 92.91 with one thread, 89.97 with two
            prompt=(digits.PROMPT,),
            teacher=digits.TEACHER,
            teacher_weights=digits.TEACHER_WEIGHTS,
        ),
    ),
    "photos": DatasetSpec(
        train=photos.NUM_TRAIN,
        test=photos.NUM_TEST,
        labels=12,
        make=photos.make,
        settings=dict(
            mode="linear",
            features=photos.FEATURES,
            similarity=photos.SIMILARITY,
            linear_lr=3e-3,  # of 3e-4, 1e-3, 3e-3, 1e-2: best mean validation mAP of bce, an, wan and CTL
            threads=1,  # a linear head is too small for more
        ),
    ),
}


def prepare(folder: Path) -> None:
    """Make the formatted files of an embedded data set if they are absent. One process makes them, others wait."""
    spec, last = DATASETS.get(folder.resolve().name), description_path(folder)
    if spec and spec.make and not last.exists():
        with locked(folder):
            if not last.exists():
                print(f"making the data set in {folder}")
                spec.make(folder)


def check_name(folder: Path) -> None:
    """Raises UserError for a data set that is neither known nor a folder."""
    if folder.name in DATASETS or folder.is_dir():
        return
    own = sorted(path.parent.name for path in folder.parent.glob("*/formatted_train_images.npy"))
    raise UserError(
        f"unknown data set {folder.name!r}; there are {', '.join(dict.fromkeys([*DATASETS, *own]))}, and any folder of "
        f"formatted files, by its name below {folder.parent}/ or by its path"
    )
