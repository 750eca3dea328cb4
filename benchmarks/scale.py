"""Time and peak memory of all that grows with images x labels, on random labels.

    python benchmarks/scale.py [--sizes 100000x20 1000000x1000]

A size is the official training set's, of which four fifths train; metrics are computed from predictions of the same
size. Each size runs in a separate process.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose names hide other modules

import config as configuration
import datasets
import engine
import losses
import metrics
from benchmarks.common import environment, number, table
from datasets.files import write_own
from datasets.images import Images
from datasets.protocol import observe
from pseudo_labels import label_quality, rules
from util.errors import OneLineParser, UserError, run_script

STAGES = ("single positives", "loading", "pseudo-labels", "an epoch's bookkeeping", "EM_APL's labels", "metrics")
CHUNK = 4096


def random_labels(num_images: int, num_labels: int) -> np.ndarray:
    """(N, L) int8 in {0, 1}, about three positives per image and at least one."""
    random, labels = np.random.RandomState(0), np.zeros((num_images, num_labels), dtype=np.int8)
    for _ in range(3):
        labels[np.arange(num_images), random.randint(0, num_labels, num_images)] = 1
    return labels


def random_scores(num_images: int, num_labels: int) -> np.ndarray:
    result = np.empty((num_images, num_labels), dtype=np.float32)
    generator = np.random.default_rng(0)
    for start in range(0, num_images, CHUNK):
        result[start : start + CHUNK] = generator.random(result[start : start + CHUNK].shape, dtype=np.float32)
    return result


def measure(num_images: int, num_labels: int, folder: Path) -> dict[str, tuple[float, float]]:
    """{stage: (seconds, GiB)} of one size, in this process."""
    found: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found[name] = (time.perf_counter() - began, peak)

    (folder / "scale/images/0").mkdir(parents=True)
    for name in range(1000):  # under a million names, by links to their folder
        Image.new("RGB", (8, 8)).save(folder / f"scale/images/0/{name:09d}.jpg")
    for split in ("train", "val"):
        for link in range(-(-num_images // 1000)):
            (folder / f"scale/images/{split}{link}").symlink_to("0")
    labels = random_labels(num_images, num_labels)
    with stage("single positives"):
        observed = observe(labels)
    splits = {}
    for split, rows in (("train", slice(None)), ("val", slice(num_images // 5))):
        names = [f"{split}{row // 1000}/{row % 1000:09d}.jpg" for row in range(len(labels[rows]))]
        splits[split] = (names, labels[rows], observed[rows])
    classes = [str(label) for label in range(num_labels)]
    write_own(folder / "scale", splits, classes, classes, folder / "scale/images")
    del labels, observed, splits

    config = configuration.parse(["-d", "scale", "--data-root", str(folder), "-l", "EM_APL", "-g", "cpu"])
    with stage("loading"):
        splits = datasets.load(config.folder)
    train = splits.train
    similarity = random_scores(*train.true.shape)
    with stage("pseudo-labels"):
        pseudo, scores, _ = rules.make(
            rules.THRESHOLD_RULE,
            dict(temperature=0.01, threshold=0.3, negative_fraction=0.2),
            [similarity],
            train.observed,
        )
        label_quality.describe(pseudo, scores, train.observed, train.true)
    del similarity, scores
    data = engine.TrainingSet.on(torch.device("cpu"), Images(train.paths(), 8, None, 1), train, pseudo)
    loss = losses.build("EM_APL", configuration.facts(config), data.observed)
    with stage("an epoch's bookkeeping"):
        order = engine.epoch_order(0, 1, len(train))
        flips = engine.epoch_flips(0, 1, len(train), 0.5)
        for index in order.split(config.batch_size):
            data.targets(index), flips[index]
    with stage("EM_APL's labels"):
        loss.end_epoch(config.epochs, partial(torch.from_numpy, random_scores(*train.true.shape)))
    del loss, data, pseudo, train, splits
    labels, probs = random_labels(num_images, num_labels), random_scores(num_images, num_labels)
    with stage("metrics"):
        metrics.evaluate(probs, labels)
    return found


def size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError("IMAGESxLABELS is expected, such as 100000x20")
    images, labels = text.split("x")
    return int(images), int(labels)


def main() -> None:
    arguments = OneLineParser(__doc__)
    default = ["100000x20", "100000x1000", "1000000x20", "1000000x100", "1000000x1000"]
    arguments.add_argument("--sizes", type=size, nargs="+", default=list(map(size, default)), metavar="IMAGESxLABELS")
    arguments.add_argument("--one", action="store_true", help="measure the only size in this process, printing JSON")
    options = arguments.parse_args()
    rows = []
    for images, labels in options.sizes:
        if options.one:
            with tempfile.TemporaryDirectory() as temporary:
                print(json.dumps(measure(images, labels, Path(temporary))))
            return
        command = [sys.executable, __file__, "--one", "--sizes", f"{images}x{labels}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        peak = max(memory for _, memory in found.values())
        row = [f"{number(found[stage][0])} s, {number(found[stage][1])}" for stage in STAGES]
        rows.append([f"{images:,} x {labels:,}", *row, number(peak)])
    table(
        "What grows with images x labels: seconds, and GiB of memory at the most by the end of the stage",
        ["", *STAGES, "peak, GiB"],
        rows,
        f"n 1. {environment()}",
    )


if __name__ == "__main__":
    run_script(main)
