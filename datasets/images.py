"""Images: decoded once, kept where they are fast to reach, augmented on the device.

Pixels stay uint8 RGB until they enter a network. The backbone or the teacher sets size, mean and std.
"""

import os
import shutil
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

import datasets.walk  # noqa: F401  registers HEIC if its reader is installed
from datasets.dataset import MultiLabelDataset
from util import distributed
from util.devices import generator
from util.errors import UserError, describe_error
from util.row_cache import cached_rows

warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged files: they are decoded, or reported in one line
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # long metadata does not make a PNG unreadable
DECODED = 32  # images per block when a cache is filled
MOVED = 1024  # images moved to the GPU at a time
PLACES = ("gpu", "disk", "none")  # from the fastest to the slowest
RESERVE = 16e9  # bytes of a GPU's free memory that images leave to the training: ViT-L at batch 6 needs as much
AHEAD = 3  # batches prepared before they are asked for
SHOWN = 10  # bad images that an error lists
QUIET = 1e9  # bytes of decoded images that are written without comparing rates
TRAINED = {"cpu": 50.0, "mps": 300.0, "cuda": 1500.0}  # images/s that ResNet-50 trains at 448 px: estimates


def decode(path: str, size: int, resample: str = "bilinear") -> np.ndarray:
    """(size, size, 3) uint8 RGB, the whole image squashed to a square. Raises UserError naming a bad file.

    resample: "bilinear" or "bicubic", with antialiasing. PyTorch computes Pillow's filter of that name to within 2 of
    255 levels, and no library tried is much faster (benchmarks/decode.py).
    """
    pixels = _read(path)
    if isinstance(pixels, str):
        raise BadImage(path, pixels)
    return squash(pixels, size, resample)


class BadImage(UserError):
    """An image that cannot be read."""

    def __init__(self, path: str, problem: str) -> None:
        unreadable = f"is not a readable image ({problem}); replace it (--truncated accepts images that are cut short)"
        missing = "not found; name its folder with --image-root DIR"
        super().__init__(f"{path} {missing if problem == 'not found' else unreadable}")


def bad_images(paths: list[str], workers: int) -> UserError:
    """The error that lists the first images that cannot be read, and the file that lists all."""
    found = zip(paths, ahead(image_problem, paths, workers, AHEAD * DECODED), strict=True)
    lines = [f"{path} ({problem})" for path, problem in found if problem]
    with tempfile.NamedTemporaryFile("w", prefix="bad_images_", suffix=".txt", delete=False, errors="replace") as file:
        file.write("\n".join(lines) + "\n")
    return UserError(
        f"{len(lines):,} of {len(paths):,} images cannot be read: {', '.join(lines[:SHOWN])}; {file.name} lists all; "
        "replace them (--truncated accepts images that are cut short)"
    )


def image_problem(path: str) -> str | None:
    """What is wrong with an image file, in a few words; None if it can be decoded."""
    pixels = _read(path)
    return pixels if isinstance(pixels, str) else None


def _read(path: str) -> np.ndarray | str:
    """The pixels as in `rgb`, or what is wrong with the file."""
    if not os.path.isfile(path):  # a pipe would block
        return "no regular file" if os.path.exists(path) else "not found"
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            return rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return "of no known kind"
    except Exception as error:  # each of Pillow's formats raises its own
        return describe_error(error)


def accept_truncated(accept: bool) -> None:
    """Whether `decode` accepts images that are cut short, and leaves the missing part grey or black."""
    ImageFile.LOAD_TRUNCATED_IMAGES = accept


GREY_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners


def rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a Pillow image, upright: turned and mirrored by its EXIF orientation.

    What each of Pillow's modes becomes; increase dataset.PIXELS if a rule changes:

    RGB                  as stored; Pillow keeps the high byte of 16-bit colours
    1, L, P              the grey level or the palette's colour
    RGBA, LA, PA, and any mode with a transparent colour or palette  composed on white
    I;16, I;16B, I       grey of 8, 10, 12, 14 or 16 bits, the fewest that hold its largest value: its highest 8 bits.
                         Values are clipped to 0..65535
    F                    grey: times 255 if no value is above 1, else taken as 0..255; rounded, clipped, NaN is black
    CMYK, YCbCr, others  Pillow's conversion, without colour profile

    Of an animation, the frame that the image is at: of a file just opened, the first. Damaged EXIF is ignored.
    """
    image = image.copy()
    with suppress(Exception):  # each kind of damage raises its own; the pixels are turned before EXIF is rewritten
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = values.clip(0, 65535).astype(np.uint16)
        bits = next(bits for bits in GREY_BITS if grey.max() < 2**bits)
        grey = (grey >> bits - 8).astype(np.uint8)
        image = Image.fromarray(np.where(values == image.info.get("transparency"), np.uint8(255), grey))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def squash(pixels: np.ndarray, size: int, resample: str = "bilinear") -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, the whole image; resample as for `decode`."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (size, size), mode=resample, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def ahead(make: Callable, items: Iterable, workers: int, depth: int) -> Iterator:
    """map(make, items) in order, computed by `workers` threads up to `depth` items before they are asked for.

    Threads, not processes: decoding and resizing release the interpreter's lock, and nothing has to be copied.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting, items = deque(), iter(items)
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class Images:
    """The images of one split at one size, wherever they are kept.

    paths  N files
    kept   (N, S, S, 3) uint8: a tensor on the device (gpu), a file (disk), or None: decoded each time
           they are asked for (none)
    """

    paths: list[str]
    size: int
    kept: Tensor | np.ndarray | None
    workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """(B, 3, S, S) uint8 on `device`, channels last: the images of each batch, (B,) int64 rows on the CPU."""
        if isinstance(self.kept, Tensor):
            for rows in on_device(batches, device):
                yield self.kept[rows].permute(0, 3, 1, 2)
            return
        if self.kept is not None:
            blocks = ahead(lambda rows: self.kept[rows.numpy()], batches, 1, AHEAD)
        else:
            blocks = decode_batches(self.paths, self.size, batches, self.workers)
        for block in blocks:
            yield moved(block, device)


def moved(block: np.ndarray, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 in memory -> (B, 3, S, S) on a device, channels last; a GPU keeps computing meanwhile."""
    images = torch.from_numpy(block)
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    return images.permute(0, 3, 1, 2)


def on_device(batches: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The batches, (B,) int64 each, on a device, moved at once."""
    return torch.cat(list(batches)).to(device).split([len(rows) for rows in batches]) if batches else ()


def decode_batches(
    paths: list[str],
    size: int,
    batches: Sequence[Tensor],
    workers: int,
    resample: str = "bilinear",
) -> Iterator[np.ndarray]:
    """(B, size, size, 3) uint8 for each (B,) row tensor. Each image is one thread's work, so a batch of 8 can use 8."""
    names = (paths[row] for rows in batches for row in rows.tolist())
    largest = max(map(len, batches), default=1)
    images = ahead(lambda path: decode(path, size, resample), names, workers, AHEAD * largest)
    for rows in batches:
        block = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        try:
            for image in block:
                image[:] = next(images)
        except BadImage:
            raise bad_images(paths, workers) from None
        yield block


def cache_file(split: MultiLabelDataset, size: int, folder: Path) -> Path:
    """Named by a digest of the image list, the files' sizes and times, and the pixel size."""
    return folder / f"images_{size}px_{split.image_key()}.npy"


def choose_cache(
    mode: str, splits: list[MultiLabelDataset], size: int, folder: Path, device: torch.device, workers: int
) -> str:
    """gpu, disk or none: what --cache means for the images of `splits` at `size` pixels.

    auto decodes images in every epoch (none) if files of more than QUIET bytes would have to be written, and either
    `workers` threads decode faster than the network trains (TRAINED), or the files need more than half of the free
    disk space. Otherwise a file is written, and kept on the GPU if that leaves RESERVE bytes, or half, of its free
    memory. The operating system keeps in memory what it can of a file, once for all processes.
    """
    if mode == "gpu" and device.type != "cuda":
        raise UserError("--cache gpu needs a GPU; take disk or auto")
    image_bytes = 3 * size**2
    to_write = image_bytes * sum(len(split) for split in splits if not cache_file(split, size, folder).exists())
    if mode == "auto":
        mode = _fastest(splits, size, device, workers, to_write, shutil.disk_usage(folder).free)
    place = PLACES[distributed.maximum(PLACES.index(mode))]
    if place != "none" and to_write:
        print(f"writing {to_write / 1e6:,.0f} MB of decoded images to {folder} (--cache none decodes in every epoch)")
    return place


def _fastest(
    splits: list[MultiLabelDataset], size: int, device: torch.device, workers: int, to_write: int, free_disk: int
) -> str:
    if to_write > free_disk / 2:
        print(f"{to_write / 1e9:.1f} GB of decoded images are more than half of the free disk: decoding in every epoch")
        return "none"
    if to_write > QUIET and decoding_rate(splits[0].paths(), size, workers) > TRAINED[device.type] * (448 / size) ** 2:
        return "none"
    if device.type != "cuda":
        return "disk"
    torch.cuda.empty_cache()  # of what the teacher used
    free = torch.cuda.mem_get_info(device)[0]
    return "gpu" if 3 * size**2 * sum(map(len, splits)) < free - min(RESERVE, free / 2) else "disk"


def decoding_rate(paths: list[str], size: int, workers: int) -> float:
    """Images per second that `workers` threads decode, measured on a few."""
    rows = torch.linspace(0, len(paths) - 1, min(len(paths), 4 * DECODED)).long()
    began = time.perf_counter()
    for _ in decode_batches(paths, size, rows.split(DECODED), workers):
        pass
    return len(rows) / (time.perf_counter() - began)


def open_images(
    split: MultiLabelDataset, size: int, where: str, folder: Path, device: torch.device, workers: int
) -> Images:
    """The images of a split, decoded into a file of `folder` on first use (unless where is none).

    Raises UserError naming an image that cannot be read.
    """
    paths = split.paths()
    if where == "none":
        return Images(paths, size, None, workers)

    def rows_from(rows: np.ndarray) -> Iterator[np.ndarray]:
        return decode_batches(paths, size, torch.from_numpy(rows).split(DECODED), workers)

    kept = cached_rows(
        cache_file(split, size, folder), (len(paths), size, size, 3), np.uint8, rows_from, f"decoding at {size} px"
    )
    if where == "gpu":
        resident = torch.empty(kept.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(kept), MOVED):
            resident[start : start + MOVED] = torch.from_numpy(np.array(kept[start : start + MOVED]))
        kept = resident
    return Images(paths, size, kept, workers)


def to_input(images: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None = None) -> Tensor:
    """Network input from pixels.

    images     (B, 3, S, S) uint8
    mean, std  (3, 1, 1) float, of pixels in [0, 1]
    flip       (B,) bool: which images to mirror; None = none
    returns    (B, 3, S, S) float, normalised
    """
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return (images * (1 / 255) - mean) / std


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image that are a function of (seed, epoch, row), so that resuming needs no state.

    crop         the smallest share of its area that a random crop keeps (torchvision's RandomResizedCrop); 1 = no crop
    randaugment  the magnitude of RandAugment's two operations (Cubuk et al. 2020), of 30; 0 = none
    """

    crop: float = 1.0
    randaugment: int = 0

    def __bool__(self) -> bool:
        return self != Augmentation()

    def __call__(self, images: Tensor, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """(B, 3, S, S) uint8 -> the same, changed; rows  (B,) int64 on the CPU."""
        from torchvision.transforms import v2

        changes = []
        if self.crop < 1:
            changes.append(v2.RandomResizedCrop(images.shape[-1], (self.crop, 1.0), antialias=True))
        if self.randaugment:
            changes.append(v2.RandAugment(2, self.randaugment, interpolation=v2.InterpolationMode.BILINEAR))
        change, result = v2.Compose(changes), torch.empty_like(images)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator
            for place, row in enumerate(rows.tolist()):
                torch.default_generator.set_state(generator(seed, epoch, 2, row).get_state())
                result[place] = change(images[place])
        return result
