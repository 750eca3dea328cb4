"""Files that are whole or absent: atomic writes, locks, arrays that grow row by row, digests.

Runs, formatted arrays and caches are written through `atomic` or `grow_rows`, so a process that is killed at any moment
leaves either the old file or the new one, never half of one.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

import processes
from cli import UserError

SAVE_SECONDS = 5.0  # how much of an interrupted pass may be lost; a save costs one fsync


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, flush it to the disk and rename it to `path`.

    The temporary name is fixed, so what a killed process left behind is overwritten by the next one; writers of the
    same file must exclude each other (`locked`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def writable_folder(folder: Path, otherwise: str) -> Path:
    """The folder, made if absent. Raises UserError, with the option that names another, where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); give another folder with {otherwise}"
        ) from None
    return folder


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_json(path: str | Path) -> object:
    """Raises UserError where the file is absent or is not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); mend it, or remove it and make it again") from None


def why(error: Exception) -> str:
    """An error of a library in a few words, without its advice to unpickle."""
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}"
    lines = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).strip().splitlines()
    text = lines[0] if lines else "it is empty or cut short" if isinstance(error, EOFError) else type(error).__name__
    if "pickle" in text.lower() or "weights_only" in text:
        return "it is something else, or holds pickled objects, which are never read"
    return text


@contextmanager
def locked(path: str | Path, wait: bool = True, busy: str = "") -> Iterator[None]:
    """Hold the lock of `path` (a file beside it; the kernel drops it when its holder dies).

    wait: wait for another holder, saying so once; otherwise raise UserError(busy).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(busy) from None
        print(f"waiting for another process that is making {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def digest(*parts: object, length: int = 16) -> str:
    """Hex SHA-256 of arrays, strings, and anything JSON can hold, in order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            is_text = part.dtype.kind == "U"
            total.update(f"{'U' if is_text else part.dtype}{part.shape}".encode())
            total.update("\0".join(part.ravel().tolist()).encode() if is_text else np.ascontiguousarray(part).data)
        else:
            total.update(json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()[:length]


def file_digest(path: str | Path) -> str:
    """Hex SHA-256 of a file's content, its first 16 digits."""
    about = os.stat(path)
    return _file_digest(str(path), about.st_size, about.st_mtime_ns)


@lru_cache
def _file_digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def grow_rows(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    rows_from: Callable[[np.ndarray], Iterable[np.ndarray]],
    description: str,
) -> np.ndarray:
    """The array at `path` (.npy), memory-mapped; computed first where the file is absent.

    rows_from(rows) yields, block by block, the values of `rows`, (M,) int64 in ascending order. The processes of a run
    share the missing rows out. Each records every few seconds which are done, so an interrupted pass goes on where it
    stopped, with however many processes. Two runs that want the same file share the work: one waits for the other.
    Plain writes, not a writable memory map: a full disk is then an OSError, not a SIGBUS.
    """
    path = Path(path)
    if processes.largest(not path.exists()):
        with locked(path) if processes.is_first() else nullcontext():
            if processes.largest(processes.is_first() and not path.exists()):
                try:
                    _grow(path, shape, np.dtype(dtype), rows_from, description)
                except OSError as error:
                    raise UserError(
                        f"{path} cannot be written ({why(error)}); make room, or name another folder with "
                        "--cache-root. What is done is kept"
                    ) from None
            processes.until_seen(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({why(error)}); remove it, and it is made again") from None
    if rows.shape != shape:
        raise UserError(f"{path} is {rows.shape}, expected {shape}; remove it, and it is made again")
    return rows


def _grow(path: Path, shape: tuple[int, ...], dtype: np.dtype, rows_from: Callable, description: str) -> None:
    partial = path.with_name(f".{path.name}.partial")  # of its full size at once, with holes
    record = path.with_name(f".{path.name}.rows{processes.rank()}")  # (N,) bool: the rows that are on the disk
    header = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(header, about)
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    done = np.zeros(shape[0], dtype=bool)
    if processes.is_first():
        done |= _begin(path, partial, header.getvalue(), row_bytes, shape[0])
    processes.copy_from_first([torch.from_numpy(done.view(np.uint8))])
    processes.until_seen(partial)
    missing = np.flatnonzero(~done)
    mine = missing[processes.share(len(missing))]
    saved = time.monotonic()
    try:
        with (
            open(partial, "r+b") as file,
            processes.bar(total=shape[0], initial=shape[0] - len(mine), desc=description, unit="image") as bar,
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
        if processes.count() == 1 and not _records(path):  # nothing was recorded: leave nothing behind
            partial.unlink(missing_ok=True)
    processes.wait()
    if processes.is_first():
        os.replace(partial, path)
        _sync(path.parent)
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
