"""The rule from similarity to pseudo-labels, and files of similarities."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pseudo_labels
from cli import UserError
from preproc import format_pascal

REFERENCE = np.load(Path(__file__).parent / "reference/pseudo_labels.npz")
SETTINGS = [name for name in REFERENCE.files if name != "similarity"]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_the_published_ones(name, kind):
    temperature, threshold, fraction = (float(part.lstrip("Tthp")) for part in name.split("_"))
    labels = pseudo_labels.assign(
        kind(REFERENCE["similarity"]), temperature=temperature, threshold=threshold, negative_fraction=fraction
    )
    assert type(labels) is type(kind(REFERENCE["similarity"]))
    assert np.asarray(labels).dtype == np.int8
    assert (np.asarray(labels) == REFERENCE[name]).all()


def test_the_rule_by_hand():
    # softmax of (0, log 2, log 5) is (1/8, 2/8, 5/8)
    similarity = np.log([[1.0, 2.0, 5.0]])
    assign = lambda threshold, fraction: pseudo_labels.assign(  # noqa: E731
        similarity, temperature=1.0, threshold=threshold, negative_fraction=fraction
    )[0].tolist()
    assert assign(0.2, 0.0) == [0, 1, 1]
    assert assign(0.3, 0.0) == [0, 0, 1]
    assert assign(0.3, 0.34) == [-1, 0, 1]  # int(0.34 * 3) = 1
    assert assign(0.3, 0.33) == [0, 0, 1]  # int(0.33 * 3) = 0


def test_among_the_lowest_a_label_is_negative_even_above_the_threshold():
    labels = pseudo_labels.assign(np.log([[1.0, 2.0, 5.0]]), temperature=1.0, threshold=0.2, negative_fraction=0.7)
    assert labels[0].tolist() == [-1, -1, 1]


def test_labels_do_not_depend_on_the_chunks(monkeypatch):
    whole = pseudo_labels.assign(REFERENCE["similarity"], temperature=0.01, threshold=0.3, negative_fraction=0.2)
    monkeypatch.setattr(pseudo_labels, "ROWS", 7)
    parts = pseudo_labels.assign(REFERENCE["similarity"], temperature=0.01, threshold=0.3, negative_fraction=0.2)
    assert (whole == parts).all()


def test_quality_by_hand():
    true, observed = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])
    pseudo, similarity = np.array([[1, 0, 1, -1]]), np.array([[0.4, 0.3, 0.2, 0.1]])
    quality = pseudo_labels.describe(pseudo, similarity, observed, true, temperature=0.1)
    assert list(quality.values()) == [2.0, 1.0, 0.5, 0.5, 1.0, 1.0, 50.0]  # two classes of four have a positive
    empty = pseudo_labels.describe(0 * pseudo, similarity, observed, true, temperature=0.1)
    assert "precision of positives          -" in pseudo_labels.table(empty)


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
    got = pseudo_labels.load_similarity(path, np.array(["c", "a"]), ["y", "x"])
    assert got.tolist() == [[5, 4], [1, 0]]


@pytest.mark.parametrize(
    "changes, images, classes, message",
    [
        ({}, ["a", "zebra.jpg"], ["x"], "no row for the image 'zebra.jpg'"),
        ({}, ["a"], ["x", "gnu"], "no column for the class 'gnu'"),
        ({"similarity": None}, ["a"], ["x"], "not an npz file"),
        ({"similarity": np.zeros((2, 2), np.float32)}, ["a"], ["x"], "expected float of 3 images x 2 classes"),
        ({"similarity": np.full((3, 2), np.nan)}, ["a"], ["x"], "similarities of a are not all finite"),
        ({"images": np.array(["a", "b", None], dtype=object)}, ["a"], ["x"], "not an npz file"),
    ],
)
def test_a_similarity_file_that_does_not_fit_is_told(tmp_path, changes, images, classes, message):
    with pytest.raises(UserError, match=message):
        pseudo_labels.load_similarity(save(tmp_path / "s.npz", **changes), np.array(images), classes)


def test_a_file_that_is_no_npz_is_told(tmp_path):
    (tmp_path / "s.npz").write_text("hello")
    with pytest.raises(UserError, match="not an npz file"):
        pseudo_labels.load_similarity(tmp_path / "s.npz", np.array(["a"]), ["x"])


def test_the_real_teacher_labels_VOC_as_measured(real):
    """The figures of the published zero-shot cache against the 5,717 true label rows."""
    labels = np.load(real / "reference/voc2012_protocol.npz")
    similarity = pseudo_labels.load_similarity(
        real / "realdata/voc2012/clip_rn50x64_train_similarity.npz",
        labels["train_images"],
        format_pascal.CLASSES,
    )
    true = labels["train_labels"]
    for threshold, precision, recall in ((0.1, 0.7669, 0.7002), (0.3, 0.8834, 0.6284), (0.5, 0.9278, 0.5846)):
        pseudo = pseudo_labels.assign(similarity, temperature=0.01, threshold=threshold, negative_fraction=0.0)
        quality = pseudo_labels.describe(pseudo, similarity, np.zeros_like(true), true, temperature=0.01)
        assert quality["precision of positives"] == pytest.approx(precision, abs=5e-5)
        assert quality["recall of positives"] == pytest.approx(recall, abs=5e-5)
    assert quality["teacher's own mAP, %"] == pytest.approx(85.34, abs=5e-3)
