"""An array in a file that is computed once, row by row, and resumed after an interruption."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from util import distributed
from util.errors import UserError, describe_error
from util.files import atomic, locked, sync, write_json

SECONDS = 10.0  # between two records of finished rows: what a killed process may have to compute again


def cached_rows(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    rows_from: Callable[[np.ndarray], Iterable[np.ndarray]],
    description: str,
    metadata: object = None,
) -> np.memmap:
    """The array at `path` (.npy), mapped read-only; computed first if the file is absent.

    rows_from(rows)  yields, block by block, the values of `rows`, (M,) int64 in ascending order
    metadata         the inputs that the file's name is a digest of: written beside it as JSON, for people

    The processes of a run divide the missing rows among themselves. An interrupted pass resumes with any number of
    processes. If two runs want the same file, one computes it and the other waits.
    """
    path = Path(path)
    if distributed.maximum(not path.exists()):
        with locked(path) if distributed.is_main() else nullcontext():
            if distributed.maximum(distributed.is_main() and not path.exists()):
                try:
                    if metadata is not None and distributed.is_main():
                        write_json(path.with_suffix(".json"), metadata)
                    _compute(path, shape, np.dtype(dtype), rows_from, description)
                except OSError as error:
                    raise UserError(
                        f"{path} cannot be written ({describe_error(error)}); make room, or name another folder with "
                        "--cache-root. Finished rows are kept"
                    ) from None
            distributed.wait_for_file(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _compute(path: Path, shape: tuple[int, ...], dtype: np.dtype, rows_from: Callable, description: str) -> None:
    partial, record = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.done")
    if distributed.is_main() and not (partial.exists() and record.exists()):
        record.unlink(missing_ok=True)
        np.lib.format.open_memmap(partial, "w+", dtype, shape)
        with atomic(record) as temporary:
            temporary.write_bytes(bytes(shape[0]))  # one byte per row: 1 = the row is in the partial file
    distributed.barrier()
    distributed.wait_for_file(record)
    missing = np.flatnonzero(np.fromfile(record, np.uint8) == 0)
    distributed.barrier()  # all processes have read the same record
    mine = missing[distributed.shard(len(missing))]
    done = shape[0] - len(mine)
    with distributed.progress_bar(shape[0], description, done) as bar, RowWriter(partial, record) as writer:
        for block in rows_from(mine) if len(mine) else ():
            writer.write(mine[writer.written : writer.written + len(block)], block)
            bar.update(len(block))
        assert writer.written == len(mine), f"{description}: {writer.written} rows of {len(mine)}"
    distributed.barrier()
    if distributed.is_main():
        os.replace(partial, path)
        sync(path.parent)
        record.unlink()


class RowWriter:
    """Writes rows into a partial file, and records those that have reached the disk.

    Ordinary writes, not a map: a full disk is an OSError then, and does not end the process.
    """

    def __init__(self, partial: Path, record: Path) -> None:
        array = np.load(partial, mmap_mode="r", allow_pickle=False)
        self.start, self.dtype, self.stride = array.offset, array.dtype, array[0].nbytes
        self.file, self.record = open(partial, "r+b"), open(record, "r+b")  # noqa: SIM115
        self.written, self.pending, self.recorded = 0, [], time.monotonic()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error: object) -> None:
        with self.file, self.record:
            self.sync()

    def write(self, rows: np.ndarray, block: np.ndarray) -> None:
        for row, values in zip(rows.tolist(), np.ascontiguousarray(block, self.dtype), strict=True):
            self.file.seek(self.start + row * self.stride)
            self.file.write(values.data)
        self.pending += rows.tolist()
        self.written += len(rows)
        if time.monotonic() - self.recorded > SECONDS:
            self.sync()

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        for row in self.pending:
            self.record.seek(row)
            self.record.write(b"\1")
        self.record.flush()
        self.pending, self.recorded = [], time.monotonic()
