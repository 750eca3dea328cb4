"""An array in a file that is computed once, row by row, and resumed after an interruption."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from util import distributed
from util.files import atomic, locked, write_json, writing

SECONDS = 10.0  # between two records of finished rows; a killed process loses the rows since the last one


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
                if metadata is not None and distributed.is_main():
                    write_json(path.with_suffix(".json"), metadata)
                with writing(path, "make room, or name a different folder with --cache-root. Finished rows are kept"):
                    _compute(path, shape, np.dtype(dtype), rows_from, description)
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
    finished = np.memmap(record, np.uint8)
    missing = np.flatnonzero(finished == 0)
    distributed.barrier()  # all processes have read the same record
    mine = missing[distributed.shard(len(missing))]
    start, stride = np.load(partial, mmap_mode="r").offset, dtype.itemsize * int(np.prod(shape[1:]))
    written, began = 0, time.monotonic()

    def record_finished() -> None:
        file.flush()
        os.fsync(file.fileno())
        finished[mine[:written]] = 1

    # rows are not written through a map: a full disk is an OSError then, and does not end the process
    with distributed.progress_bar(shape[0], description, shape[0] - len(mine)) as bar, open(partial, "r+b") as file:
        try:
            for block in rows_from(mine) if len(mine) else ():
                for row, values in zip(mine[written:].tolist(), np.ascontiguousarray(block, dtype), strict=False):
                    file.seek(start + row * stride)
                    file.write(values.data)
                written += len(block)
                bar.update(len(block))
                if time.monotonic() - began > SECONDS:
                    record_finished()
                    began = time.monotonic()
        finally:
            record_finished()
    assert written == len(mine), f"{description}: {written} rows of {len(mine)}"
    distributed.barrier()
    if distributed.is_main():
        os.replace(partial, path)
        record.unlink()
