"""Batches of images: decoded once, kept in fast reach, augmented on the device.

Pixels stay uint8 RGB until they enter a network. The backbone or the teacher sets size, mean and std.
"""

import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.dataset import MultiLabelDataset
from datasets.pixels import decode, image_problem
from util import distributed
from util.devices import generator
from util.errors import UserError
from util.row_cache import cached_rows

DECODED = 32  # images per block when a cache is filled
MOVED = 1024  # images moved to the GPU at a time
PLACES = ("gpu", "disk", "none")  # from the fastest to the slowest
RESERVE = 16e9  # bytes of a GPU's free memory that images leave to the training: ViT-L at batch 6 needs as much
AHEAD = 3  # batches prepared before they are asked for
SHOWN = 10  # bad images that are listed on the terminal
QUIET = 1e9  # bytes of decoded images that are written without comparing rates
TRAINED = {"cpu": 50.0, "mps": 300.0, "cuda": 1500.0}  # images/s that ResNet-50 trains at 448 px: estimates


def ahead(make: Callable, items: Iterable, workers: int | None, depth: int) -> Iterator:
    """map(make, items) in order, computed by `workers` threads up to `depth` items before they are asked for.

    Threads, not processes: decoding and resizing release the interpreter's lock, and nothing has to be copied.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
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


def find_bad_images(names: Sequence[str], root: Path | str = "", split: str = "all") -> dict[str, str]:
    """{name: what is wrong} for each image below `root` that cannot be decoded."""
    paths = tqdm([os.path.join(root, name) for name in names], f"reading {split} images", disable=None)
    problems = ahead(image_problem, paths, os.cpu_count(), AHEAD * DECODED)
    return {name: problem for name, problem in zip(names, problems, strict=True) if problem}


def describe_bad_images(bad: dict[str, str], separator: str) -> str:
    """The first bad images, {name: what is wrong}, and the file that lists all if there are more."""
    lines = [f"{name} {problem}" for name, problem in bad.items()]
    if len(lines) <= SHOWN:
        return separator.join(lines)
    with tempfile.NamedTemporaryFile("w", prefix="bad_images_", suffix=".txt", delete=False, errors="replace") as file:
        file.write("\n".join(lines) + "\n")
    return separator.join([*lines[:SHOWN], f"{file.name} lists all {len(lines):,}"])


@dataclass(frozen=True)
class Images:
    """The images of one split at one size.

    paths  N files
    kept   (N, S, S, 3) uint8: a tensor on the device (gpu), a file (disk), or None: decoded in every epoch (none)
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
    paths: list[str], size: int, batches: Sequence[Tensor], workers: int, resample: str = "bilinear"
) -> Iterator[np.ndarray]:
    """(B, size, size, 3) uint8 for each (B,) row tensor. Each image is one thread's work, so a batch of 8 can use 8."""
    names = (paths[row] for rows in batches for row in rows.tolist())
    largest = max(map(len, batches), default=1)
    images = ahead(lambda path: decode(path, size, resample), names, workers, AHEAD * largest)
    for rows in batches:
        try:
            yield np.stack([next(images) for _ in rows])
        except UserError:
            bad = find_bad_images(paths)
            raise UserError(
                f"{len(bad):,} of {len(paths):,} images cannot be read: {describe_bad_images(bad, ', ')}; replace them "
                "(--truncated accepts images that are cut short)"
            ) from None


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
    to_write = 3 * size**2 * sum(len(split) for split in splits if not cache_file(split, size, folder).exists())
    if mode == "auto":
        mode, trained = "disk", TRAINED[device.type] * (448 / size) ** 2
        if to_write > shutil.disk_usage(folder).free / 2:
            print(f"{to_write / 1e9:.1f} GB of decoded images are more than half of the free disk: decoding each epoch")
            mode = "none"
        elif to_write > QUIET and decoding_rate(splits[0].paths(), size, workers) > trained:
            mode = "none"
        elif device.type == "cuda":
            torch.cuda.empty_cache()  # of what the teacher used
            free = torch.cuda.mem_get_info(device)[0]
            mode = "gpu" if 3 * size**2 * sum(map(len, splits)) < free - min(RESERVE, free / 2) else "disk"
    place = PLACES[distributed.maximum(PLACES.index(mode))]
    if place != "none" and to_write:
        print(f"writing {to_write / 1e6:,.0f} MB of decoded images to {folder} (--cache none decodes in every epoch)")
    return place


def decoding_rate(paths: list[str], size: int, workers: int) -> float:
    """Images per second that `workers` threads decode, measured on a few."""
    rows = torch.linspace(0, len(paths) - 1, min(len(paths), 4 * DECODED)).long()
    began = time.perf_counter()
    deque(decode_batches(paths, size, rows.split(DECODED), workers), maxlen=0)
    return len(rows) / (time.perf_counter() - began)


def open_images(
    split: MultiLabelDataset, size: int, place: str, folder: Path, device: torch.device, workers: int
) -> Images:
    """The images of a split, decoded into a file of `folder` on first use unless `place` is none."""
    paths = split.paths()
    if place == "none":
        return Images(paths, size, None, workers)
    kept = cached_rows(
        cache_file(split, size, folder),
        (len(paths), size, size, 3),
        np.uint8,
        lambda rows: decode_batches(paths, size, torch.from_numpy(rows).split(DECODED), workers),
        f"decoding at {size} px",
    )
    if place == "gpu":
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
