"""Reading and writing files: atomic writes, locks, JSON, arrays, digests.

A process that is killed at any moment leaves either the old file or the new one (`atomic`). Whatever a library raises
while it reads a file becomes one line (`reading`).
"""

import errno
import hashlib
import json
import os
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from util.errors import UserError, describe_error

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # of some network file systems
REPOSITORY = Path(__file__).resolve().parent.parent


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, flush it to the disk and rename it to `path`.

    Its name is fixed, so writers of the same file must exclude each other (`locked`); what a killed one has left is
    overwritten. Raises UserError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, hint: str = "make room there, or write to a different folder") -> Iterator[None]:
    """Turn the system's refusal to write a file into one line: UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({describe_error(error)}); {hint}") from None


def writable_folder(folder: Path, option: str) -> Path:
    """The folder, made if absent. Raises UserError, which names the option for it, if it is not writable."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written; give a different folder with {option}")
    return folder


def write_text(path: str | Path, text: str) -> None:
    """Write a regular file atomically; a link, device or pipe is written through. What UTF-8 cannot encode, such as a
    file name in a different encoding, is escaped."""
    path, content = Path(path), text.encode(errors="backslashreplace")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with writing(path):
            path.write_bytes(content)
    else:
        with locked(path), atomic(path) as temporary:
            temporary.write_bytes(content)


def check_outputs(outputs: dict[str, str | Path | None], overwrite: bool, ours: tuple[bytes, ...] = ()) -> None:
    """Raise UserError, before anything is computed, if an option names no file, the file of a different option, or,
    without --overwrite, a file that exists already.

    outputs  file by option; None: not asked for
    ours     how files begin that the same command wrote before, and may replace
    """
    owners: dict[Path, str] = {}
    for option, path in ((option, Path(name)) for option, name in outputs.items() if name is not None):
        fault = ""
        if not path.name or path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
            fault = "is not the name of a file; name a file to write to"
        elif owners.setdefault(path.resolve(), option) != option:
            fault = f"is the file of {owners[path.resolve()]}, too; give two files"
        elif path.is_file() and not overwrite and not _start(path, ours).startswith(ours):
            fault = "exists already; name a new file, or replace it with --overwrite"
        if fault:
            raise UserError(f"{option} {str(outputs[option])!r} {fault}")


def _start(path: Path, ours: tuple[bytes, ...]) -> bytes:
    with open(path, "rb") as file:
        return file.read(max(map(len, ours), default=0))


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        # NumPy writes to a real file by C calls that do not report a full disk
        np.lib.format.write_array(SimpleNamespace(write=file.write), np.asarray(array), allow_pickle=False)


@contextmanager
def reading(path: str | Path, what: str, hint: str = "") -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into one line: UserError.

    what  the expected kind of file, such as "an image";  hint  how to fix it
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # NumPy, PyTorch, msgspec, zip and the decompressors each raise their own
        problem = f"cannot be read ({describe_error(error)})"
        if isinstance(error, FileNotFoundError):
            problem = "not found"
        elif not isinstance(error, OSError):
            problem = f"is not {what} ({describe_error(error)})"
        raise UserError(f"{path} {problem}{'; ' * bool(hint)}{hint}") from None


def read_bytes(path: str | Path, hint: str = "") -> bytes:
    with reading(path, "a file", hint):
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise UserError(f"{path} is no regular file")
        return Path(path).read_bytes()


def read_text(path: str | Path, hint: str = "") -> str:
    """A text in UTF-8, or in UTF-16 with a byte order mark."""
    with reading(path, "text in UTF-8", hint):
        content = read_bytes(path, hint)
        return content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def read_json(path: str | Path, kind: object = object, hint: str = "") -> object:
    """JSON of a declared kind, such as a msgspec.Struct."""
    text = read_text(path, hint)
    with reading(path, "valid JSON" if kind is object else "JSON with the expected fields", hint):
        return msgspec.json.decode(text, type=kind)


def read_array(path: str | Path, hint: str = "") -> np.ndarray:
    """An array of numbers or strings from an .npy file, in this machine's byte order."""
    with reading(path, "a plain NumPy array", hint):
        return _plain(np.load(path, allow_pickle=False))


def read_arrays(path: str | Path, names: Sequence[str], hint: str = "") -> list[np.ndarray]:
    """Likewise the arrays of these names from an .npz file."""
    with reading(path, f"an npz file with {', '.join(names[:-1])} and {names[-1]}", hint):
        with np.load(path, allow_pickle=False) as file:
            return [_plain(file[name]) for name in names]


def _plain(array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufU":
        raise ValueError(f"it holds {getattr(array, 'dtype', 'several arrays')}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@contextmanager
def locked(path: str | Path, wait: bool = True, busy: str = "") -> Iterator[None]:
    """Hold the lock of `path` (a file beside it; the kernel drops it when its holder dies).

    wait: wait for the present holder, printing so once; otherwise raise UserError(busy).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(path.with_name(f".{path.name}.softlock"))
            lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(busy) from None
        print(f"waiting for the process that is making {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def local_file(name: str) -> Path | None:
    """The file of that name below the current folder, or else below the repository; None if there is none."""
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
