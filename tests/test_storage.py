"""Files are whole or absent, and passes go on where they stopped."""

import threading

import numpy as np
import pytest

import storage
from config import UserError


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), storage.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert storage.read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SAVE_SECONDS", 0.0)
    truth, asked = np.arange(60, dtype=np.float32).reshape(20, 3), []

    def rows_from(start, stop_at=99):
        asked.append(start)
        for row in range(start, 20, 2):
            if row >= stop_at:
                raise KeyboardInterrupt
            yield truth[row : row + 2]

    path = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        storage.grow_rows(path, truth.shape, np.float32, lambda start: rows_from(start, 8), "test")
    assert not path.exists()
    assert (storage.grow_rows(path, truth.shape, np.float32, rows_from, "test") == truth).all()
    assert asked == [0, 8]
    assert (storage.grow_rows(path, truth.shape, np.float32, rows_from, "test") == truth).all()
    assert asked == [0, 8]
    assert not list(tmp_path.glob("*partial")) and not list(tmp_path.glob("*rows"))


def test_a_pass_that_fails_before_its_first_rows_leaves_nothing(tmp_path):
    def failing(start):
        raise UserError("no teacher")

    with pytest.raises(UserError):
        storage.grow_rows(tmp_path / "rows.npy", (4, 3), np.float32, failing, "test")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_rows_written_after_the_last_record_are_written_again(tmp_path, monkeypatch):
    """As after a power cut: the partial file is longer than what was recorded, and its tail is worth nothing."""
    monkeypatch.setattr(storage, "SAVE_SECONDS", 0.0)
    path = tmp_path / "rows.npy"

    def two_rows(start):
        yield np.ones((2, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.grow_rows(path, (4, 3), np.float32, two_rows, "test")
    with open(tmp_path / ".rows.npy.partial", "ab") as file:
        file.write(b"garbage that was never recorded")
    got = storage.grow_rows(path, (4, 3), np.float32, lambda start: [np.full((4 - start, 3), 2, np.float32)], "test")
    assert got[:, 0].tolist() == [1, 1, 2, 2]


def test_two_that_want_the_same_rows_share_the_work(tmp_path):
    started, calls = threading.Event(), []

    def rows_from(start):
        calls.append(start)
        started.set()
        yield np.ones((5, 1), np.float32)

    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(storage.grow_rows(tmp_path / "r.npy", (5, 1), np.float32, rows_from, "test"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [0] and len(results) == 2 and all((result == 1).all() for result in results)


def test_a_lock_that_may_not_wait_says_who_holds_it(tmp_path):
    with storage.locked(tmp_path / "run"), pytest.raises(UserError, match="busy"):
        with storage.locked(tmp_path / "run", wait=False, busy="busy"):
            pass


def test_digests_tell_arrays_apart_by_content_shape_and_order():
    a, b = np.array(["x", "yz"]), np.array(["xy", "z"])
    assert storage.digest(a) != storage.digest(b)
    assert storage.digest(np.zeros((2, 3))) != storage.digest(np.zeros((3, 2)))
    assert storage.digest(a, b) != storage.digest(b, a)
    assert storage.digest(a) == storage.digest(a.astype("<U9"))
