"""Reading and writing files: atomic writes, locks, JSON, digests.

Everything is written through `atomic`, so a process that is killed at any moment leaves either the old file or the new
one, never half of one.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from util.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


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
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
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


def local_file(name: str) -> Path | None:
    """The file of that name below the current folder, or else below the repository; None where there is none."""
    return next((path for path in (Path(name), REPOSITORY / name) if path.is_file()), None)


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


def replace_block(text: str, name: str, content: str) -> str:
    """The text of a page with the lines between `<!-- NAME -->` and the next `<!-- end -->` replaced."""
    begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found, rest = text.partition(begin)
    assert found and end in rest, f"no block {name!r}"
    return before + begin + content + rest[rest.index(end) :]
