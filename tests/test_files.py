"""Files are written atomically, and interrupted passes continue."""

import errno
import fcntl
import threading

import numpy as np
import pytest

from util import files
from util.errors import UserError
from util.row_cache import cached_rows


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_pass_continues(tmp_path):
    truth, asked = np.arange(60, dtype=np.float32).reshape(20, 3), []

    def rows_from(rows, stop_at=99):
        asked.append(rows.tolist())
        for pair in rows.reshape(-1, 2):
            if pair[0] >= stop_at:
                raise KeyboardInterrupt
            yield truth[pair]

    path = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        cached_rows(path, truth.shape, np.float32, lambda rows: rows_from(rows, 8), "test")
    assert not path.exists()
    assert (cached_rows(path, truth.shape, np.float32, rows_from, "test")[:] == truth).all()
    assert asked == [[*range(20)], [*range(8, 20)]]
    assert (cached_rows(path, truth.shape, np.float32, rows_from, "test")[[3, 1]] == truth[[3, 1]]).all()
    assert len(asked) == 2
    assert {file.name for file in tmp_path.iterdir()} <= {"rows.npy", ".rows.npy.lock"}


def test_the_inputs_of_a_cached_file_are_written_beside_it(tmp_path):
    cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test", metadata={"of": "what"})
    assert files.read_json(tmp_path / "rows.json") == {"of": "what"}


def all_twos(rows):
    return [np.full((len(rows), 3), 2, np.float32)]


def test_of_two_that_want_the_same_rows_one_computes_them(tmp_path):
    calls = []

    def rows_from(rows):
        calls.append(len(rows))
        yield np.ones((5, 1), np.float32)

    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(cached_rows(tmp_path / "r.npy", (5, 1), np.float32, rows_from, "test"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [5] and len(results) == 2 and all((result[:] == 1).all() for result in results)


def test_a_lock_that_may_not_wait_raises(tmp_path):
    with files.locked(tmp_path / "run"), pytest.raises(UserError, match="busy"):
        with files.locked(tmp_path / "run", wait=False, busy="busy"):
            pass


def test_digests_differ_for_arrays_of_different_content_shape_and_order():
    a, b = np.array(["x", "yz"]), np.array(["xy", "z"])
    assert files.digest(a) != files.digest(b)
    assert files.digest(np.zeros((2, 3))) != files.digest(np.zeros((3, 2)))
    assert files.digest(a, b) != files.digest(b, a)
    assert files.digest(a) == files.digest(a.astype("<U9"))


def test_a_file_system_without_locks_takes_a_soft_lock(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with files.locked(tmp_path / "x"):
        assert (tmp_path / ".x.softlock").exists()
        with pytest.raises(UserError, match="busy"), files.locked(tmp_path / "x", wait=False, busy="busy"):
            pass
    assert not (tmp_path / ".x.softlock").exists()
