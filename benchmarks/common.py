"""What the benchmarks share: repeated timing, one Markdown table, and photographs to run on."""

import argparse
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.files import write_own
from datasets.protocol import observe
from models.clip import create_clip, normalisation
from models.teachers.clip import Scorer
from util.errors import OneLineParser, UserError

MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns of the products that are the matrix rate's measure
PRODUCT_SECONDS = 0.1  # at least, of products in a row: a clock that has just risen falls again under load


def parser(docstring: str, repeats: int) -> argparse.ArgumentParser:
    result = OneLineParser(docstring)
    result.add_argument(
        "--repeats", type=positive, default=repeats, help="measurements of each figure (default: %(default)s)"
    )
    return result


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is expected, not {text}")
    return int(text)


def photo_arguments(result: argparse.ArgumentParser) -> None:
    result.add_argument(
        "--photos",
        default=os.environ.get("SPML_REAL_DATA"),
        metavar="DIR",
        help="a folder with JPEG files somewhere below it (default: $SPML_REAL_DATA, else made-up ones)",
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall seconds of a call, the device's work included."""
    began = time.perf_counter()
    function()
    if device is not None:
        synchronize(device)
    return time.perf_counter() - began


def side_by_side(
    functions: dict[str, Callable[[], object]], repeats: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """`repeats` times of each function, after one not counted, taken in turns: what disturbs one disturbs all."""
    result = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            took = seconds(function, device)
            if turn:
                result[name].append(took)
    return result


def products(device: torch.device, precision: str) -> tuple[Callable[[], None], float]:
    """What a device can do in a precision: a function that takes products of square matrices, one after the other, for
    PRODUCT_SECONDS at least, and how many floating-point operations that is."""
    side, count = MATRIX[device.type], 1
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right, result = (torch.randn(side, side, dtype=kind, device=device) for _ in range(3))

    def multiply() -> None:
        for _ in range(count):
            torch.mm(left, right, out=result)

    multiply()  # the first one is slower
    while seconds(multiply, device) < PRODUCT_SECONDS:
        count *= 2
    return multiply, 2.0 * side**3 * count


def matrix_rate(peak: float, device: torch.device) -> str:
    """The rate of `products`, in words; peak in operations per second."""
    side = MATRIX[device.type]
    return f"{peak / 1e12:.3g} TFLOP/s, of products of {side} x {side} matrices for {PRODUCT_SECONDS} s at least"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shown(values: Sequence[float], scale: float = 1.0) -> str:
    """Median (lowest to highest) of values x scale."""
    middle, low, high = (number(scale * value) for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def rate(count: int, values: Sequence[float]) -> str:
    """count / seconds, as `shown`."""
    return shown([count / value for value in values])


def faster(ours: Sequence[float], other: Sequence[float]) -> str:
    """How many times the speed of `other` ours is, from the seconds of each."""
    return number(statistics.median(other) / statistics.median(ours))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a Markdown table."""
    print(f"\n**{title}**\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    if note:
        print(f"\n{note}")


def environment(device: torch.device | None = None, packages: Sequence[str] = ()) -> str:
    """Date, device and versions, in one line."""
    if device is not None and device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", *packages))
    return f"{time.strftime('%Y-%m-%d')}; {machine}; Python {platform.python_version()}, {versions}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def photographs(folder: str | None, made_up: Path, count: int = 64) -> list[Path]:
    """JPEG files below `folder`; without one, `count` made-up pictures of VOC's usual 500 x 375 pixels in `made_up`."""
    if folder:
        found = sorted(Path(folder).rglob("*.jpg"))
        if not found:
            raise UserError(f"--photos {folder} has no .jpg file below it; leave it out, and pictures are made up")
        return found
    made_up.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for number in range(count):  # smooth shapes and some grain, so that a file is as large as a photograph's
        coarse = Image.fromarray(random.randint(0, 256, (12, 16, 3)).astype(np.uint8)).resize((500, 375), 3)
        grain = random.randint(-12, 13, (375, 500, 1))
        pixels = (np.asarray(coarse).astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(made_up / f"{number}.jpg", quality=90)
    return sorted(made_up.glob("*.jpg"))


def make_dataset(root: Path, name: str, photos: list[Path], official: int, test: int, labels: int) -> None:
    """A data set of `official` images to train and validate on and `test` to test on, with random labels.

    The photographs are linked under as many names as it takes.
    """
    random, folder, splits = np.random.RandomState(0), root / name, {}
    for split, count in (("train", official), ("val", test)):
        (folder / "images" / split).mkdir(parents=True)
        names = [f"{split}/{row:06d}.jpg" for row in range(count)]
        for row, file in enumerate(names):
            os.symlink(photos[row % len(photos)].resolve(), folder / "images" / file)
        true = (random.random_sample((count, labels)) < 1.5 / labels).astype(np.int8)
        true[np.arange(count), random.randint(0, labels, count)] = 1
        splits[split] = (names, true, observe(true))
    classes = [f"class {number}" for number in range(labels)]
    write_own(folder, splits, classes, classes, folder / "images")


def random_similarity(num_images: int, num_labels: int) -> np.ndarray:
    """(N, L) float32: what some teacher might say."""
    return np.random.RandomState(0).normal(0.2, 0.02, (num_images, num_labels)).astype(np.float32)


def random_teacher(name: str, num_labels: int) -> Scorer:
    """A teacher with random weights, on the CPU."""
    logging.disable(logging.WARNING)  # open_clip's, that no weights are loaded
    clip = create_clip(name, None).eval().requires_grad_(False)
    return Scorer(clip, torch.randn(num_labels, clip.text_projection.shape[1]), *normalisation(name, "openai"), "own")
