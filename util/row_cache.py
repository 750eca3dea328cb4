"""An array in a file that is computed row by row, once, and goes on where it was interrupted.

Each row is followed by its checksum, which says whether the row is there and whole: in a file that is not finished, in
one whose disk has failed, in one that somebody has cut short.
"""

import errno
import math
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import xxhash

from util import distributed
from util.errors import UserError, describe_error
from util.files import locked, open_regular, sync, write_json

MEND = "remove it, and it is made again"
SUM = np.dtype("<u8")  # of a checksum


class RowFile:
    """(N, ...) rows in a file, of which any are read at a time, by an array of their numbers or a slice.

    They are read into memory of our own and not mapped: a file that is cut short, or a disk that fails, is an error
    that names it, and not the end of the process. Raises UserError for these, and for a file of anything else.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype | type, file: object = None) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.row = math.prod(shape[1:])  # values in a row
        self.stride = self.row * self.dtype.itemsize + SUM.itemsize
        self.file = file or open_regular(path, MEND)
        header = _header(shape, self.dtype)
        self.start, size = len(header), len(header) + shape[0] * self.stride
        if os.fstat(self.file.fileno()).st_size != size or os.pread(self.file.fileno(), len(header), 0) != header:
            raise UserError(f"{path} is not an array of {shape} {self.dtype} with checksums; {MEND}")

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        values, whole = self.read(rows)
        if not whole.all():
            raise UserError(f"{self.path}: row {rows[np.argmin(whole)]} is damaged, or the file was cut short; {MEND}")
        return values

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of rows, (M, ...), and which of them agree with their checksums, (M,) bool."""
        values, sums = np.empty((len(rows), *self.shape[1:]), self.dtype), np.zeros(len(rows), SUM)
        whole = np.zeros(len(rows), dtype=bool)
        try:
            for place, (row, value) in enumerate(zip(rows.tolist(), self._bytes(values), strict=True)):
                os.preadv(self.file.fileno(), [value, sums[place : place + 1]], self.start + row * self.stride)
                whole[place] = sums[place] == _sum(value)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({describe_error(error)}); {MEND}") from None
        return values, whole

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Raises OSError where there is no room."""
        values = np.ascontiguousarray(values, dtype=self.dtype)
        for row, value in zip(rows.tolist(), self._bytes(values), strict=True):
            parts = [value, np.array([_sum(value)], SUM)]
            if os.pwritev(self.file.fileno(), parts, self.start + row * self.stride) != self.stride:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def done(self) -> np.ndarray:
        """(N,) bool: the rows that are there, and whole."""
        done, end = np.zeros(len(self), dtype=bool), self.stride - SUM.itemsize
        for row in range(len(self)):  # what was not written yet is a hole, of zeros: its values are not read
            if any(os.pread(self.file.fileno(), SUM.itemsize, self.start + row * self.stride + end)):
                done[row] = self.read(np.array([row]))[1][0]
        return done

    def _bytes(self, values: np.ndarray) -> np.ndarray:
        """(M, ...) -> (M, bytes of a row) uint8, of the same memory."""
        return values.reshape(len(values), self.row).view(np.uint8)


def _sum(content: np.ndarray) -> int:
    """Never 0, which is what a hole in a file holds."""
    return xxhash.xxh3_64_intdigest(content) or 1


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header, row = BytesIO(), np.dtype([("values", dtype, shape[1:]), ("sum", SUM)])
    about = {"descr": np.lib.format.dtype_to_descr(row), "fortran_order": False, "shape": shape[:1]}
    np.lib.format.write_array_header_2_0(header, about)
    return header.getvalue()


def cached_rows(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    rows_from: Callable[[np.ndarray], Iterable[np.ndarray]],
    description: str,
    about: object = None,
) -> RowFile:
    """The array at `path` (.npy); computed first where the file is absent.

    rows_from(rows)  yields, block by block, the values of `rows`, (M,) int64 in ascending order
    about            what the file's name stands for: written beside it as JSON, for people

    The processes of a run divide the missing rows among themselves. An interrupted pass goes on where it stopped, with
    any number of processes. Of two runs that want the same file one computes it and the other waits.
    """
    path = Path(path)
    if distributed.maximum(not path.exists()):
        with locked(path) if distributed.is_main() else nullcontext():
            if distributed.maximum(distributed.is_main() and not path.exists()):
                try:
                    if about is not None and distributed.is_main():
                        write_json(path.with_suffix(".json"), about)
                    _compute(path, shape, np.dtype(dtype), rows_from, description)
                except OSError as error:
                    raise UserError(
                        f"{path} cannot be written ({describe_error(error)}); make room, or name another folder with "
                        "--cache-root. What is done is kept"
                    ) from None
            distributed.wait_for_file(path)
    return RowFile(path, shape, dtype)


def _compute(path: Path, shape: tuple[int, ...], dtype: np.dtype, rows_from: Callable, description: str) -> None:
    partial = path.with_name(f".{path.name}.partial")  # of its full size at once, with holes
    done = np.zeros(shape[0], dtype=bool)
    if distributed.is_main():
        done |= _begin(partial, shape, dtype)
    distributed.barrier()  # with its long timeout: reading a large partial file takes minutes
    distributed.broadcast([torch.from_numpy(done.view(np.uint8))])
    distributed.wait_for_file(partial)
    missing = np.flatnonzero(~done)
    mine, start = missing[distributed.shard(len(missing))], 0
    try:
        with (
            open(partial, "r+b") as file,
            distributed.progress_bar(shape[0], description, len(done) - len(mine)) as bar,
        ):
            rows = RowFile(partial, shape, dtype, file)
            for block in rows_from(mine) if len(mine) else ():
                rows.write(mine[start : start + len(block)], block)
                start += len(block)
                bar.update(len(block))
            assert start == len(mine), f"{description}: {start} rows of {len(mine)}"
            os.fsync(file.fileno())
    finally:
        if distributed.world_size() == 1 and not start and not done.any():  # leave nothing behind
            partial.unlink(missing_ok=True)
    distributed.barrier()
    if distributed.is_main():
        os.replace(partial, path)
        sync(path.parent)


def _begin(partial: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make the partial file, or find one; (N,) bool: the rows that are in it."""
    try:
        return RowFile(partial, shape, dtype).done()
    except UserError:  # absent, or another program's, or cut short
        partial.unlink(missing_ok=True)
    with open(partial, "wb") as file:
        file.write(header := _header(shape, dtype))
        file.truncate(len(header) + shape[0] * (math.prod(shape[1:]) * dtype.itemsize + SUM.itemsize))
    return np.zeros(shape[0], dtype=bool)
