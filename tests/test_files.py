"""Files are whole or absent, and passes go on where they stopped."""

import os
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


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path):
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


def test_a_pass_that_fails_before_its_first_rows_leaves_nothing(tmp_path):
    def failing(rows):
        raise UserError("no teacher")

    with pytest.raises(UserError):
        cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, failing, "test")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_files_name_stands_for_is_written_beside_it(tmp_path):
    cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test", about={"of": "what"})
    assert files.read_json(tmp_path / "rows.json") == {"of": "what"}


def two_rows(rows):
    yield np.ones((2, 3), np.float32)
    raise KeyboardInterrupt


def all_twos(rows):
    return [np.full((len(rows), 3), 2, np.float32)]


def damaged(path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("where, ones", [(-1, 2), (-45, 1), (-60, 1)])  # a hole, a checksum, values
def test_rows_of_a_partial_file_that_are_not_whole_are_written_again(tmp_path, where, ones):
    """As after a power cut."""
    path, partial = tmp_path / "rows.npy", tmp_path / ".rows.npy.partial"
    with pytest.raises(KeyboardInterrupt):
        cached_rows(path, (4, 3), np.float32, two_rows, "test")
    damaged(partial, where)
    assert cached_rows(path, (4, 3), np.float32, all_twos, "test")[:][:, 0].tolist() == [1] * ones + [2] * (4 - ones)


@pytest.mark.parametrize("where", [-1, -12, -70])
def test_a_row_of_a_finished_file_that_was_changed_is_told(tmp_path, where):
    rows = cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test")
    damaged(tmp_path / "rows.npy", where)
    with pytest.raises(UserError, match=r"rows\.npy: row \d is damaged.*remove it, and it is made again"):
        cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test")[:]
    assert rows.shape == (4, 3)


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path):
    """A mapped file would end the process with SIGBUS."""
    rows = cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test")
    os.truncate(tmp_path / "rows.npy", 100)
    with pytest.raises(UserError, match="row 0 is damaged, or the file was cut short"):
        rows[np.array([0, 3])]
    with pytest.raises(UserError, match="is not an array of"):
        cached_rows(tmp_path / "rows.npy", (4, 3), np.float32, all_twos, "test")


def test_a_partial_file_of_another_size_is_begun_again(tmp_path):
    path, partial = tmp_path / "rows.npy", tmp_path / ".rows.npy.partial"
    with pytest.raises(KeyboardInterrupt):
        cached_rows(path, (4, 3), np.float32, two_rows, "test")
    partial.write_bytes(partial.read_bytes()[:-1])
    assert cached_rows(path, (4, 3), np.float32, all_twos, "test")[:][:, 0].tolist() == [2, 2, 2, 2]


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


def test_a_lock_that_may_not_wait_says_who_holds_it(tmp_path):
    with files.locked(tmp_path / "run"), pytest.raises(UserError, match="busy"):
        with files.locked(tmp_path / "run", wait=False, busy="busy"):
            pass


def test_digests_tell_arrays_apart_by_content_shape_and_order():
    a, b = np.array(["x", "yz"]), np.array(["xy", "z"])
    assert files.digest(a) != files.digest(b)
    assert files.digest(np.zeros((2, 3))) != files.digest(np.zeros((3, 2)))
    assert files.digest(a, b) != files.digest(b, a)
    assert files.digest(a) == files.digest(a.astype("<U9"))
