"""Reading and writing files: atomic writes, locks, JSON, arrays, digests.

Everything is written through `atomic`, so a process that is killed at any moment leaves either the old file or the new
one, never half of one. Every file that a user names is opened by `open_regular`.
"""

import errno
import hashlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from util.errors import UserError, describe_error

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT_LIMIT = 64 * 2**20  # bytes of a list or of JSON that people write
ARRAY_LIMIT = 16 * 2**30  # bytes of an array that is read into memory
FILE_LIMIT = 64 * 2**30  # bytes of any other file, such as the largest weights


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, flush it to the disk and rename it to `path`.

    The temporary name is fixed, so what a killed process left behind is overwritten by the next one; writers of the
    same file must exclude each other (`locked`). Raises UserError where the system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file, and is not replaced by one")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with suppress(OSError):  # the folder may be gone
                temporary.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses inside, such as more bytes on a full disk, into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({describe_error(error)}); make room there, or write to another folder"
        ) from None


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


def write_text(path: str | Path, text: str) -> None:
    """Whole or not at all where it is a regular file, whoever else writes it; a device or a pipe is written through.
    What UTF-8 cannot encode, as a file name in another encoding, is escaped."""
    path, content = Path(path), text.encode(errors="backslashreplace")
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected the name of a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with _writing(path):
            path.write_bytes(content)
        return
    with locked(path), atomic(path) as temporary:
        temporary.write_bytes(content)


def check_outputs(outputs: dict[str, str | Path | None], overwrite: bool, ours: tuple[bytes, ...] = ()) -> None:
    """Check the files that options name for output, before anything is computed.

    outputs  file by option; None: not asked for
    ours     how files begin that the same command wrote before, and may replace
    Raises UserError for an empty name, a folder, two options with one file, and, without --overwrite, a file that
    exists already.
    """
    seen: dict[Path, str] = {}
    for option, name in outputs.items():
        if name is None:
            continue
        path = Path(name)
        if not str(name).strip() or path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
            raise UserError(f"{option} {str(name)!r} is not the name of a file; name a file to write to")
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise UserError(f"{other} and {option} both name {path}; give two files")
        if path.is_file() and not overwrite:
            with open(path, "rb") as file:
                if not (ours and file.read(max(map(len, ours))).startswith(ours)):
                    raise UserError(f"{option} {path} exists already; name a new file, or replace it with --overwrite")


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        # NumPy writes to a file that it knows as such by C calls, and does not notice that the last of them failed
        np.lib.format.write_array(SimpleNamespace(write=file.write), np.asarray(array), allow_pickle=False)


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def open_regular(path: str | Path, how: str = "", limit: int | None = None) -> BinaryIO:
    """Open a file for reading.

    how    what mends it, for the error
    limit  bytes that it may have
    Raises UserError where it is absent, is a folder, pipe or device, is larger, or cannot be opened.
    """
    try:  # a pipe would keep the process waiting until somebody writes into it
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        raise UserError(_advised(f"{path} not found", how)) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(_advised(f"{str(path)!r} cannot be opened ({describe_error(error)})", how)) from None
    about = os.fstat(file.fileno())
    if stat.S_ISREG(about.st_mode) and (limit is None or about.st_size <= limit):
        return file
    file.close()
    what = f"has {about.st_size:,} bytes, more than {limit:,}" if stat.S_ISREG(about.st_mode) else "is no regular file"
    raise UserError(_advised(f"{path} {what}", how))


def _advised(what: str, how: str) -> str:
    return f"{what}; {how}" if how else what


def read_bytes(path: str | Path, how: str = "", limit: int = TEXT_LIMIT) -> bytes:
    """Raises UserError as open_regular does, and where the disk fails."""
    with open_regular(path, how, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(_advised(f"{path} cannot be read ({describe_error(error)})", how)) from None


def read_text(path: str | Path, how: str = "", limit: int = TEXT_LIMIT) -> str:
    """A text in UTF-8."""
    try:
        return read_bytes(path, how, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(_advised(f"{path} is not text in UTF-8 ({describe_error(error)})", how)) from None


MEND_JSON = "mend it, or remove it and make it again"


def read_json(path: str | Path, kind: object = object, how: str = MEND_JSON, limit: int = TEXT_LIMIT) -> object:
    """JSON of a declared kind (a msgspec.Struct, say). Raises UserError where it is absent or anything else."""
    content = read_bytes(path, how, limit)
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(_advised(f"{path} does not hold what it should ({describe_error(error)})", how)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(_advised(f"{path} is not valid JSON ({describe_error(error)})", how)) from None


def read_array(path: str | Path, how: str = "") -> np.ndarray:
    """A plain array of numbers or strings from an .npy file, in this machine's byte order; UserError for another."""
    with open_regular(path, how, ARRAY_LIMIT) as file:
        return _reading(path, how, "a plain NumPy array", lambda: _array(file, os.fstat(file.fileno()).st_size))


def read_arrays(path: str | Path, names: Sequence[str], how: str = "") -> list[np.ndarray]:
    """Likewise the arrays of these names from an .npz file."""

    def read() -> list[np.ndarray]:
        with zipfile.ZipFile(file) as archive:
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if sum(member.file_size for member in members) > ARRAY_LIMIT:
                raise ValueError(f"its arrays have more than {ARRAY_LIMIT:,} bytes")
            return [_array(archive.open(member), member.file_size) for member in members]

    with open_regular(path, how, ARRAY_LIMIT) as file:
        return _reading(path, how, f"an npz file with {', '.join(names[:-1])} and {names[-1]}", read)


def _reading(path: str | Path, how: str, what: str, read: Callable) -> object:
    try:
        return read()
    except MemoryError:
        raise UserError(_advised(f"{path} does not fit into this machine's memory", how)) from None
    except Exception as error:  # NumPy, zip and the decompressors each raise their own
        raise UserError(_advised(f"{path} is not {what} ({describe_error(error)})", how)) from None


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _array(file: BinaryIO, num_bytes: int) -> np.ndarray:
    """The array that a file of so many bytes holds. Memory is taken only once the file is known to fill it."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format is {version}")
    shape, by_columns, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    if dtype.kind not in "biufU" or (dtype.kind == "f" and dtype.itemsize > 8):
        raise ValueError(f"it holds {dtype}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != num_bytes - file.tell():
        raise ValueError(f"its header says {dtype} of shape {shape}, and {num_bytes - file.tell():,} bytes follow")
    flat = np.empty(count, dtype)
    if flat.nbytes:
        content = file.read()  # to the end, where a zip file compares its checksum
        flat.view(np.uint8)[:] = np.frombuffer(content, np.uint8)
    if dtype.kind == "b" and (flat.view(np.uint8) > 1).any():
        raise ValueError("a truth value in it is neither 0 nor 1")
    if dtype.kind == "U":
        flat.tolist()  # ValueError for numbers that are no characters
    return flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order="F" if by_columns else "C")


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
            text = "\0".join(part.ravel().tolist()) if is_text else ""
            total.update(text.encode(errors="surrogatepass") if is_text else np.ascontiguousarray(part).data)
        else:
            total.update(json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()[:length]


def file_digest(path: str | Path) -> str:
    """Hex SHA-256 of a file's content, its first 16 digits."""
    with open_regular(path, limit=FILE_LIMIT) as file:
        about = os.fstat(file.fileno())
    return _file_digest(str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


@lru_cache
def _file_digest(path: str, *signature: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def replace_block(text: str, name: str, content: str) -> str:
    """The text of a page with the lines between `<!-- NAME -->` and the next `<!-- end -->` replaced."""
    begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found, rest = text.partition(begin)
    assert found and end in rest, f"no block {name!r}"
    return before + begin + content + rest[rest.index(end) :]
