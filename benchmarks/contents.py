"""What it costs to know images by their content: the keys of all files, beside decoding these files.

    python benchmarks/contents.py [--photos DIR --size 448 --images 5000]

A first run reads every file; a later run compares sizes, times and inodes, and reads a sample. With --cold the system
is told to forget the files before each measurement, so that the disk answers. CPU time is what a machine with other
programs on it tells reliably.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder

from benchmarks.common import environment, parser, photo_arguments, photographs, positive, seconds, shown, table
from datasets.content import content_keys
from datasets.images import DECODED, decode_batches
from util.devices import default_workers
from util.errors import run_script


def copies(photos: list[Path], count: int, folder: Path) -> np.ndarray:
    """(count,) names of files of their own below `folder`, each a copy of a photograph."""
    names = [f"{row:06d}.jpg" for row in range(count)]
    for row, name in enumerate(names):
        shutil.copyfile(photos[row % len(photos)], folder / name)
    return np.array(names)


def forget(paths: list[str]) -> None:
    """Write the files to the disk and drop them from the memory of the system."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--size", type=positive, default=448, help="pixels (default: %(default)s)")
    arguments.add_argument("--images", type=positive, default=5000, help="(default: %(default)s)")
    arguments.add_argument("--workers", type=positive, default=default_workers(), help="threads (default: %(default)s)")
    arguments.add_argument("--cold", action="store_true", help="drop the files from memory before each measurement")
    photo_arguments(arguments)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root, record = Path(temporary) / "images", Path(temporary) / "record"
        root.mkdir()
        found = photographs(options.photos, Path(temporary) / "photos")
        names = copies(found, options.images, root)
        paths = [str(root / name) for name in names]
        batches = torch.arange(len(paths)).split(DECODED)

        def decode() -> None:
            for _ in decode_batches(paths, options.size, batches, options.workers):
                pass

        def first() -> None:
            shutil.rmtree(record, ignore_errors=True)
            content_keys(root, names, record)

        ways = {
            "decoding": decode,
            "keys, first run": first,
            "keys, later run": lambda: content_keys(root, names, record),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(options.repeats + 1):  # in turns; the first is not counted
            for name, function in ways.items():
                if options.cold:
                    forget(paths)
                began = time.process_time()
                took = seconds(function)
                if turn:
                    taken[name].append((took, time.process_time() - began))
        size = sum(os.path.getsize(path) for path in paths) / 1e6
    whole, rows = np.median(taken["decoding"], axis=0), []
    for name, times in taken.items():
        share, wall, cpu = np.median(times, axis=0) / whole, *(1e6 / len(paths) * np.array(times).T)
        rows.append([name, shown(wall), f"{share[0]:.1%}", shown(cpu), f"{share[1]:.1%}"])
    table(
        f"{len(paths):,} images, {size:,.0f} MB, {options.size} px, {options.workers} threads, "
        f"files {'on the disk' if options.cold else 'in memory'}",
        ["", "microseconds per image", "of decoding", "of CPU time", "of decoding"],
        rows,
        f"Median (lowest to highest), n {options.repeats}; {len(found)} different photographs. "
        f"{environment(None, ('pillow', 'xxhash'))}",
    )


if __name__ == "__main__":
    run_script(main)
