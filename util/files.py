"""Reading and writing files: atomic writes, locks, JSON, arrays, digests.

Everything is written through `atomic`, so a process that is killed at any moment leaves either the old file or the new
one. Whatever a library raises while it reads a file becomes one line by `reading`.
"""

import errno
import hashlib
import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
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

    The temporary name is fixed, so the next writer overwrites the rest of a killed one. Writers of the same
    file must exclude each other (`locked`). Raises UserError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path):
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
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({describe_error(error)}); make room there, or write to a different folder"
        ) from None


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk. Some network file systems do not support this for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        with _writing(path):
            path.write_bytes(content)
        return
    with locked(path), atomic(path) as temporary:
        temporary.write_bytes(content)


def check_outputs(outputs: dict[str, str | Path | None], overwrite: bool, ours: tuple[bytes, ...] = ()) -> None:
    """Check the files that options name for output, before anything is computed.

    outputs  file by option; None: not asked for
    ours     how files begin that the same command wrote before, and may replace
    Raises UserError for a name that is not a file, for two options with one file, and, without --overwrite, for a
    file that exists already.
    """
    seen: dict[Path, str] = {}
    for option, path in ((option, Path(name)) for option, name in outputs.items() if name is not None):
        if not path.name or path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
            raise UserError(f"{option} {str(outputs[option])!r} is not the name of a file; name a file to write to")
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise UserError(f"{other} and {option} both name {path}; give two files")
        if path.is_file() and not overwrite:
            with open(path, "rb") as file:
                start = file.read(max(map(len, ours), default=0))
            if not start.startswith(ours):
                raise UserError(f"{option} {path} exists already; name a new file, or replace it with --overwrite")


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        # NumPy writes to a real file by C calls that do not report a full disk
        np.lib.format.write_array(SimpleNamespace(write=file.write), np.asarray(array), allow_pickle=False)


def write_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


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
        if Path(path).exists() and not Path(path).is_file():  # a pipe would block
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


def replace_block(text: str, name: str, content: str) -> str:
    """The text of a page with the lines between `<!-- NAME -->` and the next `<!-- end -->` replaced."""
    begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found, rest = text.partition(begin)
    assert found and end in rest, f"no block {name!r}"
    return before + begin + content + rest[rest.index(end) :]
