"""What image files hold: a hash of each, remembered beside the data set, so that replaced pictures are noticed.

A file is read again where its size, its times or its place on the disk are others than remembered: also a picture that
was replaced with size and time of change kept (`cp -p`, `rsync -t`, an archive) has another time of its last status
change. Because not every file system keeps that, a sample is read again on each run.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from tqdm import tqdm

from util.errors import UserError
from util.files import digest, locked, read_arrays, read_bytes, write_arrays

IMAGE_LIMIT = 2**30  # bytes of an image file
SAMPLE = 32  # files read again on each run
READERS = 16  # threads: a network file system answers slowly, and many at once
PIXELS = 2  # version of the rules of images.rgb and images.squash: a cache made by others is not used
ABSENT = 0  # the key of a file that is not there


class ImageFile(str):
    """The path of an image, with the key that its content had when the data set was loaded."""

    key: int

    def __new__(cls, path: str, key: int) -> "ImageFile":
        self = super().__new__(cls, path)
        self.key = key
        return self


def read_image(path: str) -> bytes:
    """The content of an image file. Raises UserError where it is another than an ImageFile's key says."""
    content = read_bytes(path, "name its folder with --image-root DIR", IMAGE_LIMIT)
    if isinstance(path, ImageFile) and _key(content) != path.key:
        raise UserError(f"{path} was changed while it was in use; run the same command again")
    return content


def _key(content: bytes) -> int:
    return xxhash.xxh3_64_intdigest(content) or 1


def signatures(paths: list[str]) -> np.ndarray:
    """(N, 4) int64: bytes, times of change of content and of status (ns), inode of each file; -1 where none is."""

    def signature(path: str) -> tuple[int, int, int, int]:
        try:
            about = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return -1, -1, -1, -1
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is no regular file; name the folder of the images with --image-root DIR")
        return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino & 2**63 - 1

    return np.array([signature(path) for path in paths], dtype=np.int64).reshape(-1, 4)


def content_keys(root: Path, names: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """(N,) uint64: a hash of the content of each image below `root`; ABSENT where there is none.

    folder  where they are remembered from one run to the next; None = nowhere
    """
    paths = [os.path.join(root, name) for name in names.tolist()]
    if folder is None:
        return _hashes(paths, np.flatnonzero(signatures(paths)[:, 0] >= 0), np.zeros(len(paths), np.uint64))
    record = folder / f"contents_{digest(str(root.resolve()), names)}.npz"
    keys, unknown = _remembered(record, paths)
    if len(unknown):
        with locked(record):  # the other processes of a run wait for the first, and find its record
            keys, unknown = _remembered(record, paths)
            if len(unknown):
                now = signatures(paths)  # before they are read: what changes from here on is read again next time
                keys = _hashes(paths, unknown, keys)
                write_arrays(record, signatures=now, keys=np.where(now[:, 0] < 0, ABSENT, keys))
    return keys


def _remembered(record: Path, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a record, and the rows of those that are there and must be read, again or for the first time."""
    now, keys = signatures(paths), np.zeros(len(paths), np.uint64)
    try:
        before, keys = read_arrays(record, ("signatures", "keys"))
        fits = before.shape == now.shape and keys.shape == now.shape[:1] and keys.dtype == np.uint64
    except UserError:  # absent, or damaged
        fits = False
    if not fits:
        return np.zeros(len(paths), np.uint64), np.flatnonzero(now[:, 0] >= 0)
    known = (before == now).all(axis=1) & (now[:, 0] >= 0)
    keys = np.where(known, keys, ABSENT)
    sample = np.random.default_rng().permutation(np.flatnonzero(known))[:SAMPLE]
    if (_hashes(paths, sample, keys.copy()) != keys).any():  # a file system on which signatures say nothing
        known[:] = False
    return keys, np.flatnonzero(~known & (now[:, 0] >= 0))


def _hashes(paths: list[str], rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The keys, those of `rows` computed from their files."""

    def computed(pool: ThreadPoolExecutor) -> Iterator[int]:
        yield from pool.map(lambda row: _key(read_image(paths[row])), rows.tolist())

    with ThreadPoolExecutor(READERS) as pool:
        quick = None if len(rows) > SAMPLE else True
        for row, key in zip(rows, tqdm(computed(pool), "reading", len(rows), unit="image", disable=quick), strict=True):
            keys[row] = key
    return keys
