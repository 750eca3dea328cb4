"""Images per second: decoded and resized by several libraries, and read from the cache instead.

    python benchmarks/decode.py [--photos DIR --size 448 --images 100]

Every library is run by the same threads. The differences are from Pillow's own decoding and resizing, in levels of 255.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

from benchmarks.common import environment, parser, photo_arguments, photographs, positive, rate, side_by_side, table
from datasets.images import Images
from datasets.pixels import decode
from util.devices import default_workers
from util.errors import run_script
from util.files import write_array


def pillow(path: str, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def by_torch(pixels: torch.Tensor, size: int) -> np.ndarray:
    """(3, H, W) uint8, channels last -> (size, size, 3)."""
    return F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def torchvision(path: str, size: int) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return by_torch(decode_jpeg(read_file(path), ImageReadMode.RGB), size)


def simplejpeg(path: str, size: int) -> np.ndarray:
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB")
    return by_torch(torch.from_numpy(pixels).permute(2, 0, 1), size)


def opencv(path: str, size: int) -> np.ndarray:
    import cv2

    return cv2.resize(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), (size, size), interpolation=cv2.INTER_AREA)


LIBRARIES = {
    "Pillow, resized by Pillow": pillow,
    "Pillow, resized by PyTorch (this code)": decode,
    "torchvision, resized by PyTorch (decoder deprecated since 0.29)": torchvision,
    "simplejpeg, resized by PyTorch": simplejpeg,
    "OpenCV, INTER_AREA": opencv,
}


def main() -> None:
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--size", type=positive, default=448, help="pixels (default: %(default)s)")
    arguments.add_argument("--images", type=positive, default=100, help="(default: %(default)s)")
    arguments.add_argument("--workers", type=positive, default=default_workers(), help="threads (default: %(default)s)")
    photo_arguments(arguments)
    options = arguments.parse_args()
    size, count = options.size, options.images
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.workers) as pool:
        found = photographs(options.photos, Path(temporary) / "photos")
        paths = [str(found[row % len(found)]) for row in range(count)]
        kept = np.stack([pillow(path, size) for path in paths])
        write_array(Path(temporary) / "cache.npy", kept)
        on_disk = np.load(Path(temporary) / "cache.npy", mmap_mode="r")
        batches = torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(8)

        def read(images: np.ndarray) -> None:
            for _ in Images(paths, size, images, options.workers).stream(batches, torch.device("cpu")):
                pass

        functions, notes = {}, {}
        for name, library in LIBRARIES.items():
            try:
                pixels = np.stack([library(path, size) for path in paths])
            except ImportError:
                notes[name] = "not installed"
                continue
            difference = np.abs(pixels.astype(np.int16) - kept)
            notes[name] = f"mean {difference.mean():.3f}, at most {difference.max()}"
            functions[name] = lambda library=library: list(pool.map(library, paths, repeat(size)))
        functions["from the cache: memory"] = lambda: read(kept)
        functions["from the cache: memory-mapped file"] = lambda: read(on_disk)
        taken = side_by_side(functions, options.repeats)
    fresh = np.median(taken["Pillow, resized by Pillow"])
    rows = []
    for name in [*LIBRARIES, *(name for name in taken if name not in LIBRARIES)]:
        if name in taken:
            speed = f"{fresh / np.median(taken[name]):.2f}"
            rows.append([name, rate(count, taken[name]), speed, notes.get(name, "-")])
        else:
            rows.append([name, notes[name], "-", "-"])
    table(
        f"Images per second at {size} px, {options.workers} threads, {count} photographs",
        ["", "images/s", "times Pillow", "difference in pixels"],
        rows,
        f"Median (lowest to highest), n {options.repeats}. "
        f"{environment(None, ('pillow', 'torchvision', 'simplejpeg', 'opencv-python-headless'))}",
    )


if __name__ == "__main__":
    run_script(main)
