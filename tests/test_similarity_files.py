"""Files of similarities, which a different program computed: rows by name, tiles, mistakes in one line."""

from pathlib import Path

import numpy as np
import pytest
from conftest import toy_arguments, toy_similarity

import assess_teacher
import datasets
import main
from models.teachers import FileTeacher, load_similarities
from util.errors import UserError


def save(path: Path, **changes) -> Path:
    arrays = {
        "images": np.array(["a", "b", "c"]),
        "classes": np.array(["x", "y"]),
        "similarity": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_rows_and_columns_are_found_by_name(tmp_path):
    path = save(tmp_path / "s.npz")
    (got,) = load_similarities(path, np.array(["c", "a"]), ["y", "x"])
    assert got.tolist() == [[5, 4], [1, 0]]


def with_names(toy: Path, rename, rows=slice(None)) -> list[str]:
    """The arguments of a run whose similarity file has other names, or its rows in a different order."""
    with np.load(toy_similarity(toy)) as file:
        arrays = dict(file)
    images = np.array([rename(name) for name in arrays["images"]])
    np.savez(toy / "renamed.npz", **arrays | {"images": images, "similarity": arrays["similarity"][rows]})
    return [*toy_arguments(toy, "--epochs", "1"), "--similarity", str(toy / "renamed.npz")]


def test_images_in_a_different_folder_are_found_by_file_names_that_are_unique(toy, capsys, fails):
    result = main.main(with_names(toy, lambda name: f"C:\\photos\\{name[6:]}"))
    out = capsys.readouterr().out
    assert "note: 24 image names were found in" in out and "chance" not in out
    assert result["pseudo_labels"]["mAP of the teacher, %"] > 99
    assert "no row for the image 'train/" in fails(main.main, with_names(toy, lambda name: f"{name[6:9]}/0.png"))
    line = fails(main.main, with_names(toy, lambda name: name.replace("train", "val")))  # other images of this data set
    assert "no row for the image 'train/" in line


@pytest.mark.parametrize("change", [lambda rows: rows[::-1], lambda rows: np.full(len(rows), 3)])
def test_one_warning_if_the_known_labels_rank_no_better_than_chance(toy, capsys, change):
    given = with_names(toy, str, change(np.arange(30)))
    for command in (main.main, lambda given: assess_teacher.main([*given, "--out", str(toy / "out")])):
        command(given)
        assert capsys.readouterr().out.count("warning: the observed labels rank no better than chance") == 1


@pytest.mark.parametrize(
    "changes, images, classes, message",
    [
        ({}, ["a", "zebra.jpg"], ["x"], "no row for the image 'zebra.jpg'"),
        ({}, ["a"], ["x", "gnu"], "no row for the class 'gnu'"),
        ({"similarity": None}, ["a"], ["x"], "not an npz file"),
        (
            {"similarity": np.zeros((2, 2), np.float32)},
            ["a"],
            ["x"],
            r"expected .* similarity \(N, L\), of numbers.* found .* float32 \(2, 2\)",
        ),
        ({"similarity": np.zeros((3, 2, 1), np.float32)}, ["a"], ["x"], r"expected .* found .* float32 \(3, 2, 1\)"),
        ({"similarity": np.full((3, 2), np.nan)}, ["a"], ["x"], "expected finite numbers .* in similarity"),
        ({"images": np.array(["a", "b", None], dtype=object)}, ["a"], ["x"], "not an npz file"),
    ],
)
def test_a_similarity_file_that_does_not_fit_is_reported(tmp_path, changes, images, classes, message):
    with pytest.raises(UserError, match=message):
        load_similarities(save(tmp_path / "s.npz", **changes), np.array(images), classes)


def test_a_file_that_is_no_npz_is_reported(tmp_path):
    (tmp_path / "s.npz").write_text("hello")
    with pytest.raises(UserError, match="not an npz file"):
        load_similarities(tmp_path / "s.npz", np.array(["a"]), ["x"])


def test_a_file_may_hold_the_scores_of_tiles(tmp_path):
    largest = np.arange(6, 12, dtype=np.float32).reshape(3, 2)

    def tiles_of(path: Path) -> list[np.ndarray]:
        split = datasets.MultiLabelDataset(Path(), np.array(["c", "a"]), None, np.zeros((2, 2)))
        return FileTeacher(str(path), "tiles").similarities(split, datasets.Classes(["y", "x"], ["y", "x"]))

    _, tiles = tiles_of(save(tmp_path / "m.npz", tiles_max=largest))
    assert tiles.tolist() == [[[11, 10]], [[7, 6]]]
    each = np.stack([largest, -largest], axis=1)
    _, tiles = tiles_of(save(tmp_path / "t.npz", tiles=each))
    assert tiles.tolist() == [[[11, 10], [-11, -10]], [[7, 6], [-7, -6]]]
    with pytest.raises(
        UserError, match=r"not an npz file with .* tiles_max .it lacks tiles_max.; .*--teacher-views global"
    ):
        tiles_of(save(tmp_path / "n.npz"))
    with pytest.raises(UserError, match=r"tiles \(N, K, L\), of numbers"):
        tiles_of(save(tmp_path / "w.npz", tiles=largest))
