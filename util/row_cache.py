"""An array in a file that is computed row by row, once, and goes on where it was interrupted."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from util import distributed
from util.errors import UserError, why
from util.files import locked, sync, write_array, write_json

SAVE_SECONDS = 5.0  # how much of an interrupted pass may be lost; a save costs one fsync


def cached_rows(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    rows_from: Callable[[np.ndarray], Iterable[np.ndarray]],
    description: str,
    about: object = None,
) -> np.ndarray:
    """The array at `path` (.npy), memory-mapped; computed first where the file is absent.

    rows_from(rows)  yields, block by block, the values of `rows`, (M,) int64 in ascending order
    about            what the file's name stands for: written beside it as JSON, for people

    The processes of a run divide the missing rows among themselves. Each records every few seconds which rows are
    done, so an interrupted pass goes on where it stopped, with any number of processes. Of two runs that want the same
    file one computes it and the other waits. The file is written with plain writes, not through a memory map, so a
    full disk is an OSError and not a SIGBUS.
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
                        f"{path} cannot be written ({why(error)}); make room, or name another folder with "
                        "--cache-root. What is done is kept"
                    ) from None
            distributed.wait_for_file(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({why(error)}); remove it, and it is made again") from None
    if rows.shape != shape:
        raise UserError(f"{path} is {rows.shape}, expected {shape}; remove it, and it is made again")
    return rows


def _compute(path: Path, shape: tuple[int, ...], dtype: np.dtype, rows_from: Callable, description: str) -> None:
    partial = path.with_name(f".{path.name}.partial")  # of its full size at once, with holes
    record = path.with_name(f".{path.name}.rows{distributed.rank()}")  # (N,) bool: the rows that are on the disk
    header = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(header, about)
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    done = np.zeros(shape[0], dtype=bool)
    if distributed.is_main():
        done |= _begin(path, partial, header.getvalue(), row_bytes, shape[0])
    distributed.broadcast([torch.from_numpy(done.view(np.uint8))])
    distributed.wait_for_file(partial)
    missing = np.flatnonzero(~done)
    mine = missing[distributed.shard(len(missing))]
    saved = time.monotonic()
    try:
        with (
            open(partial, "r+b") as file,
            distributed.progress_bar(
                total=shape[0], initial=len(done) - len(mine), desc=description, unit="image"
            ) as bar,
        ):

            def save() -> None:
                file.flush()
                os.fsync(file.fileno())
                write_array(record, done)

            start = 0
            for block in rows_from(mine) if len(mine) else ():
                rows = mine[start : start + len(block)]
                for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                    file.seek(len(header.getvalue()) + int(rows[run[0]]) * row_bytes)
                    file.write(np.ascontiguousarray(block[run], dtype=dtype).data)
                done[rows] = True
                start += len(block)
                bar.update(len(block))
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
            assert start == len(mine), f"{description}: {start} rows of {len(mine)}"
            save()
    finally:
        if distributed.world_size() == 1 and not _records(path):  # nothing was recorded: leave nothing behind
            partial.unlink(missing_ok=True)
    distributed.barrier()
    if distributed.is_main():
        os.replace(partial, path)
        sync(path.parent)
        for finished in _records(path):
            finished.unlink()


def _records(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.rows[0-9]*"))


def _begin(path: Path, partial: Path, header: bytes, row_bytes: int, num_rows: int) -> np.ndarray:
    """Make the partial file, or find one; (N,) bool: the rows in it that are recorded as done."""
    size, done = len(header) + num_rows * row_bytes, np.zeros(num_rows, dtype=bool)
    if partial.exists() and partial.stat().st_size == size:
        for record in _records(path):
            done |= np.load(record, allow_pickle=False)
        return done
    for record in _records(path):
        record.unlink()
    with open(partial, "wb") as file:
        file.write(header)
        file.truncate(size)
    return done
