"""What a teacher is to the rest of the project."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from datasets.dataset import MultiLabelDataset
from datasets.files import Classes
from models.weights import file_identity


class Teacher(ABC):
    """A frozen dataclass whose fields are the settings that the teacher reads, by their names on the command line.

    scores_new_images  whether it scores any image; False for scores of a fixed list of images
    """

    scores_new_images: ClassVar[bool] = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Self:
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    def identity(self) -> dict[str, object]:
        """The settings, with the identities of the files that they name: for identities of runs and keys of caches."""
        return {field.name: file_identity(getattr(self, field.name)) for field in fields(self)}

    def is_quick(self) -> bool:
        """Whether a CPU scores a few images in seconds."""
        return True

    @abstractmethod
    def similarities(
        self, split: MultiLabelDataset, classes: Classes, folder: Path, **options: Any
    ) -> list[np.ndarray]:
        """The similarities of a split's images and the classes: (N, L) float for each view, (N, K, L) for K tiles.

        folder   for caches
        options  batch_size, device, workers (threads that decode), checked (compare half precision with float32 first)
        """
