"""The rule from similarities over scores to pseudo-labels, and how good these are."""

from pathlib import Path

import numpy as np
import pytest

import pseudo_labels
from models import teachers
from preproc import format_pascal

REFERENCE = np.load(Path(__file__).parent / "reference/pseudo_labels.npz")
SETTINGS = [name for name in REFERENCE.files if name != "similarity"]


def assign(similarity: np.ndarray, temperature: float, threshold: float, fraction: float) -> np.ndarray:
    """Both steps of the rule."""
    scores = pseudo_labels.softmax(similarity, temperature=temperature)
    return pseudo_labels.threshold_labels(scores, threshold=threshold, negative_fraction=fraction)


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_the_published_ones(name):
    labels = assign(REFERENCE["similarity"], *(float(part.lstrip("Tthp")) for part in name.split("_")))
    assert type(labels) is np.ndarray and labels.dtype == np.int8
    assert (labels == REFERENCE[name]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_of_an_image_add_up_to_one_in_float32_or_better(dtype):
    scores = pseudo_labels.softmax(REFERENCE["similarity"].astype(dtype), temperature=0.01)
    assert scores.dtype == np.promote_types(dtype, np.float32) and (scores >= 0).all()
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_rule_by_hand():
    similarity = np.log([[1.0, 2.0, 5.0]])
    assert pseudo_labels.softmax(similarity, temperature=1.0)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert assign(similarity, 1.0, 0.2, 0.0)[0].tolist() == [0, 1, 1]
    assert assign(similarity, 1.0, 0.3, 0.0)[0].tolist() == [0, 0, 1]
    assert assign(similarity, 1.0, 0.3, 0.34)[0].tolist() == [-1, 0, 1]  # int(0.34 * 3) = 1
    assert assign(similarity, 1.0, 0.3, 0.33)[0].tolist() == [0, 0, 1]  # int(0.33 * 3) = 0


def test_among_the_lowest_a_label_is_negative_even_above_the_threshold():
    assert assign(np.log([[1.0, 2.0, 5.0]]), 1.0, 0.2, 0.7)[0].tolist() == [-1, -1, 1]


def test_labels_do_not_depend_on_the_chunks(monkeypatch):
    whole = assign(REFERENCE["similarity"], 0.01, 0.3, 0.2)
    monkeypatch.setattr(pseudo_labels, "ROWS", 7)
    assert (whole == assign(REFERENCE["similarity"], 0.01, 0.3, 0.2)).all()


def test_quality_by_hand():
    true, observed = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])
    pseudo, scores = np.array([[1, 0, 1, -1]]), np.array([[0.4, 0.3, 0.2, 0.1]])
    quality = pseudo_labels.describe(pseudo, scores, observed, true)
    assert list(quality.values()) == [2.0, 1.0, 0.5, 0.5, 1.0, 1.0, 50.0]  # two classes of four have a positive
    empty = pseudo_labels.describe(0 * pseudo, scores, observed, true)
    assert "precision of positives          -" in pseudo_labels.table(empty)


def test_a_teacher_that_says_nothing_is_warned_of():
    pseudo, similarity = np.array([[1, 0, -1]], dtype=np.int8), np.array([[0.3, 0.2, 0.1]])
    assert pseudo_labels.warning(pseudo, similarity) == ""
    assert "every similarity is 0" in pseudo_labels.warning(pseudo, 0 * similarity)
    assert "no label became a positive" in pseudo_labels.warning(np.minimum(pseudo, 0), similarity)


def test_the_real_teacher_labels_VOC_as_measured(real):
    """The figures of the published zero-shot cache against the 5,717 true label rows."""
    labels = np.load(real / "reference/voc2012_protocol.npz")
    similarity = teachers.load_similarity(
        real / "realdata/voc2012/clip_rn50x64_train_similarity.npz",
        labels["train_images"],
        format_pascal.CLASSES,
    )
    true = labels["train_labels"]
    for threshold, precision, recall in ((0.1, 0.7669, 0.7002), (0.3, 0.8834, 0.6284), (0.5, 0.9278, 0.5846)):
        scores = pseudo_labels.softmax(similarity, temperature=0.01)
        pseudo = pseudo_labels.threshold_labels(scores, threshold=threshold, negative_fraction=0.0)
        quality = pseudo_labels.describe(pseudo, scores, np.zeros_like(true), true)
        assert quality["precision of positives"] == pytest.approx(precision, abs=5e-5)
        assert quality["recall of positives"] == pytest.approx(recall, abs=5e-5)
    assert quality["mAP of the teacher, %"] == pytest.approx(85.34, abs=5e-3)
