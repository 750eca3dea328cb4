"""Damaged files give the right result or a UserError, within limits of time and memory, and run no pickled code."""

import io
import resource
import signal
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import config
from datasets import pixels
from models.teachers.file import load_similarities
from preproc import download
from runs import checkpoints
from util.errors import UserError

WORDS = ("-d", "coco", "-l", "EM_PL", "an", "--epochs", "-s", "--lr", "-th", "0.2", "-1", "1e999", "nan", "9" * 30, "")
WORDS += ("--prompt", "{}", "\0", "\ud800", "--mode", "linear", "--temperature", "1e-300", "--batch-size", "0")


def saved(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def picture(kind: str) -> bytes:
    pixels = np.random.RandomState(0).randint(0, 255, (8, 8, 3)).astype(np.uint8)
    return saved(lambda file: Image.fromarray(pixels).save(file, kind))


def archive(kind: str) -> bytes:
    def write(file):
        if kind == "zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
                target.writestr("a/b.txt", "content" * 9)
            return
        with tarfile.open(fileobj=file, mode=f"w:{kind}") as target:
            member = tarfile.TarInfo("a/b.txt")
            member.size = 7
            target.addfile(member, io.BytesIO(b"content"))

    return saved(write)


NAMES, CLASSES = np.array(["a.png", "b.png"]), ["x", "y"]
STATE = {"model": {"w": torch.ones(3)}, "epoch": 1, "history": [{"loss": 0.5}]}


def extract(path: Path) -> None:
    download.extract(path, path.parent / "inside")
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "inside"}


SECONDS, MEMORY = 5.0, 2**29  # of an example
RAN: list[str] = []


class Pickled:
    """Loading it as a pickle calls RAN.append."""

    def __reduce__(self) -> tuple:
        return ran, ()


def ran() -> None:
    RAN.append("ran")


SIMILARITIES = {"images": NAMES, "classes": np.array(CLASSES), "similarity": np.eye(2)}
READERS = {  # name of the file, contents that are whole or hold a pickle, reader
    "similarities": (
        "s.npz",
        [
            saved(partial(np.savez, **SIMILARITIES)),
            saved(partial(np.savez, **SIMILARITIES | {"similarity": np.array([[Pickled()]])})),
        ],
        lambda p: load_similarities(p, NAMES, CLASSES),
    ),
    "checkpoint": (
        "last.pt",
        [saved(partial(torch.save, STATE)), saved(partial(torch.save, {"model": Pickled()}))],
        checkpoints.read,
    ),
    "image": ("i.png", [picture(kind) for kind in ("PNG", "JPEG", "GIF")], lambda p: pixels.decode(str(p), 4)),
    "zip": ("a.zip", [archive("zip")], extract),
    "tar": ("a.tar", [archive(""), archive("gz"), archive("xz"), archive("bz2")], extract),
}


@st.composite
def damaged(draw, whole: list[bytes]) -> bytes:
    """One of the contents with a few bytes changed, a piece cut out or put in; or any bytes."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 8)))
        content[at:end] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


class TooLong(BaseException):
    """Not an Exception, since readers catch those."""


def too_long(*signal_and_frame: object) -> None:
    raise TooLong


@contextmanager
def limited() -> Iterator[None]:
    """Fail an example that takes longer than SECONDS or needs MEMORY more than the highest use before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * 1024 < MEMORY, f"{grown:,} KiB more"


def test_an_example_that_hangs_or_takes_too_much_memory_fails(monkeypatch):
    monkeypatch.setattr("test_fuzz.SECONDS", 0.05)
    with pytest.raises(TooLong), limited():
        time.sleep(5)
    monkeypatch.setattr("test_fuzz.SECONDS", 5.0)
    monkeypatch.setattr("test_fuzz.MEMORY", 2**24)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with pytest.raises(AssertionError, match="KiB more"), limited():
        np.ones(peak - now + 2 * 2**24, np.uint8)


def holds(reader: str, data: st.DataObject) -> None:
    name, whole, read = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data.draw(damaged(whole)))
        line = str(path)
        try:
            with limited():
                read(path)
        except UserError as error:
            line = str(error)
        assert str(path) in line and not RAN


def parses(words: list[str]) -> None:
    status = 2
    try:
        config.parse(words)
    except SystemExit as stop:
        status = stop.code
    except UserError:
        status = 2
    assert status == 2


FUZZ = partial(settings, deadline=None, suppress_health_check=list(HealthCheck))
short = FUZZ(max_examples=25, derandomize=True, database=None)
long = FUZZ(max_examples=5000)


@pytest.mark.parametrize("reader", READERS)
@short
@given(data=st.data())
def test_a_damaged_file_is_read_or_reported(reader, data):
    holds(reader, data)


@short
@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_a_command_line_is_accepted_or_refused(words):
    parses(words)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@long
@given(data=st.data())
def test_each_of_many_damaged_files_is_read_or_reported(reader, data):
    holds(reader, data)


@pytest.mark.slow
@long
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=8))
def test_each_of_many_command_lines_is_accepted_or_refused(words):
    parses(words)
