"""The embedded data set: scenes of 1 to 5 real handwritten digits, made and formatted on first use.

The digits are scikit-learn's (UCI's Optical Recognition of Handwritten Digits, 1,797 of 8 x 8 pixels): nothing is
downloaded. Train, validation, test and the teacher's training use disjoint digits.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.files import write_own
from datasets.protocol import observe, split_indices

NUM_TRAIN, NUM_TEST = 3_000, 1_000  # scenes
PROMPT = "a photo of the digit {}"
TEACHER, TEACHER_WEIGHTS = "models/digits_clip.json", "models/digits_clip.safetensors"

NAMES = [str(digit) for digit in range(10)]
WORDS = "zero one two three four five six seven eight nine".split()
SIZE = 64  # pixels
MOST = 5  # digits in a scene
SHARES = {"teacher": 0.35, "train": 0.35, "validation": 0.1, "test": 0.2}  # of the 1,797 digits


def pools() -> dict[str, list[np.ndarray]]:
    """For each key of SHARES, ten (n, 8, 8) float arrays in [0, 1], one per class; no digit is in two pools."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    result: dict[str, list[np.ndarray]] = {name: [] for name in SHARES}
    for label in range(10):
        images = digits.images[digits.target == label] / 16
        images = images[np.random.RandomState(label).permutation(len(images))]
        cuts = np.round(np.cumsum(list(SHARES.values())) * len(images)).astype(int)[:-1]
        for name, part in zip(SHARES, np.split(images, cuts), strict=True):
            result[name].append(part)
    return result


def scene(pool: list[np.ndarray], random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """(64, 64, 3) uint8 and (10,) int8 in {0, 1}: 1 to 5 different digits of random place, size, slant and colour."""
    labels = random.permutation(10)[: random.randint(1, MOST + 1)]
    paper = Image.fromarray(random.randint(0, 90, size=(3, 3, 3)).astype(np.uint8))
    canvas = np.asarray(paper.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.float32)
    taken: list[tuple[float, float]] = []
    for label in labels:
        side = random.randint(18, 27)
        for _ in range(50):  # a place apart from the others, if one is found
            x, y = random.randint(0, SIZE - side + 1, size=2)
            if all(max(abs(x + side / 2 - u), abs(y + side / 2 - v)) > 17 for u, v in taken):
                break
        taken.append((x + side / 2, y + side / 2))
        digit = pool[label][random.randint(len(pool[label]))]
        ink = Image.fromarray((255 * digit).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(ink.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR))[..., None] / 255
        here = canvas[y : y + side, x : x + side]
        here += ink * (random.randint(150, 256, size=3) - here)
    return canvas.round().clip(0, 255).astype(np.uint8), np.isin(np.arange(10), labels).astype(np.int8)


def scenes(pool: list[np.ndarray], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An endless sequence of scenes that depends on the seed alone."""
    random = np.random.RandomState(seed)
    while True:
        yield scene(pool, random)


def make(folder: Path) -> None:
    """Write images, formatted files and observed labels."""
    pool, splits = pools(), {}
    source = {name: scenes(pool[name], seed) for seed, name in enumerate(("train", "validation", "test"))}
    drawn_from = {"train": np.full(NUM_TRAIN, "train", dtype=object), "val": np.full(NUM_TEST, "test", dtype=object)}
    drawn_from["train"][split_indices(NUM_TRAIN)[1]] = "validation"
    for split, names in drawn_from.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        images, labels = [], np.zeros((len(names), len(NAMES)), dtype=np.int8)
        for row, name in enumerate(names):
            pixels, labels[row] = next(source[name])
            images.append(f"{split}/{row:04d}.png")
            Image.fromarray(pixels).save(folder / "images" / images[-1])
        splits[split] = (images, labels, observe(labels))
    write_own(folder, splits, NAMES, WORDS, folder / "images", drawn=list(splits))
