"""The embedded data set of real photographs, as numbers: features of an ImageNet network, labels, and a CLIP's scores.

models/photos.npz       2,562 photographs of VOC 2012's training and validation images: features (768 numbers: the
                        pooled last map of MobileNetV1 0.75 at 192 pixels) and labels of the 12 classes that at least
                        nine of the test photographs show
models/photos_clip.npz  the scores of CLIP RN50x64 for the 1,697 training photographs, and their maxima over 3 x 3 tiles
"""

from pathlib import Path

import numpy as np

from datasets.files import write_own
from datasets.protocol import observe
from util.files import REPOSITORY, read_arrays

NUM_TRAIN, NUM_TEST = 1_697, 865
FEATURES, SIMILARITY = "models/photos.npz", "models/photos_clip.npz"


def make(folder: Path) -> None:
    """Write the formatted files."""
    images, classes, split, labels = read_arrays(REPOSITORY / FEATURES, ("images", "classes", "split", "labels"))
    rows = {"train": np.flatnonzero(split == "train"), "val": np.flatnonzero(split == "test")}
    splits = {name: (images[index].tolist(), labels[index], observe(labels[index])) for name, index in rows.items()}
    write_own(folder, splits, classes.tolist(), classes.tolist(), folder, drawn=list(splits))
