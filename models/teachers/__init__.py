"""Teachers: who scores images against the class names, once, before training."""

from pathlib import Path

import numpy as np
import torch

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from models.teachers.clip import DEFAULT, DEFAULT_WEIGHTS, VIEWS, ClipTeacher, similarities
from models.teachers.file import FileTeacher, load_similarity

__all__ = [
    "DEFAULT",
    "DEFAULT_WEIGHTS",
    "VIEWS",
    "ClipTeacher",
    "FileTeacher",
    "load_similarity",
    "similarities",
    "views",
]


def views(
    teacher: ClipTeacher | FileTeacher,
    split: MultiLabelDataset,
    classes: Classes,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
    checked: bool = True,
) -> list[np.ndarray]:
    """The teacher's similarities of a split's images, for each of its views (N, L) float, of tiles (N, K, L); from the
    cache in `folder`, which is filled first."""
    if isinstance(teacher, FileTeacher):
        return teacher.load(split.names, classes.names)
    how = dict(batch_size=batch_size, device=device, workers=workers, checked=checked)
    return [similarities(teacher, split, classes, folder, view, **how) for view in VIEWS[teacher.views]]
