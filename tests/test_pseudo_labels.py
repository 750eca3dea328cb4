"""The rule from similarities over scores to pseudo-labels, and how good these are."""

from pathlib import Path

import numpy as np
import pytest

from datasets.protocol import observe
from models import teachers
from preproc import format_pascal
from pseudo_labels import label_quality, rules
from util.errors import UserError

REFERENCE = np.load(Path(__file__).parent / "reference/pseudo_labels.npz")
SETTINGS = [name for name in REFERENCE.files if name != "similarity"]


def assign(similarity: np.ndarray, temperature: float, threshold: float, fraction: float) -> np.ndarray:
    """Both steps of the rule."""
    scores = rules.softmax(similarity, temperature=temperature)
    return rules.threshold_labels(scores, threshold=threshold, negative_fraction=fraction)


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_the_published_ones(name):
    labels = assign(REFERENCE["similarity"], *(float(part.lstrip("Tthp")) for part in name.split("_")))
    assert type(labels) is np.ndarray and labels.dtype == np.int8
    assert (labels == REFERENCE[name]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_of_an_image_add_up_to_one_in_float32_or_better(dtype):
    scores = rules.softmax(REFERENCE["similarity"].astype(dtype), temperature=0.01)
    assert scores.dtype == np.promote_types(dtype, np.float32) and (scores >= 0).all()
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_rule_by_hand():
    similarity = np.log([[1.0, 2.0, 5.0]])
    assert rules.softmax(similarity, temperature=1.0)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert assign(similarity, 1.0, 0.2, 0.0)[0].tolist() == [0, 1, 1]
    assert assign(similarity, 1.0, 0.3, 0.0)[0].tolist() == [0, 0, 1]
    assert assign(similarity, 1.0, 0.3, 0.34)[0].tolist() == [-1, 0, 1]  # int(0.34 * 3) = 1
    assert assign(similarity, 1.0, 0.3, 0.33)[0].tolist() == [0, 0, 1]  # int(0.33 * 3) = 0


def test_among_the_lowest_a_label_is_negative_even_above_the_threshold():
    assert assign(np.log([[1.0, 2.0, 5.0]]), 1.0, 0.2, 0.7)[0].tolist() == [-1, -1, 1]


def test_useless_similarities_print_a_warning():
    random = np.random.RandomState(0)
    true = random.rand(300, 5) < [0.9, 0.5, 0.3, 0.2, 0.2]  # classes differ in how frequent they are
    true[~true.any(axis=1), 0] = True
    observed = observe(true.astype(np.int8))
    good = 0.2 + 0.03 * true + 0.02 * random.randn(300, 5) + [0.05, 0, 0, 0, 0]  # and in how high they score
    assert rules.warnings([good], observed) == []
    for bad in (0 * good, good + 1 - good, -good, random.permutation(good), good[:, [1, 2, 3, 4, 0]]):
        (line,) = rules.warnings([bad], observed)
        assert "rank no better than chance" in line


# Tiles


TILES = np.log([[[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]])  # softmax scores of two tiles of one image, at temperature 1
WHOLE, SURE = np.log([[0.6, 0.3, 0.1]]), np.log([[0.9, 0.06, 0.04]])


@pytest.mark.parametrize(
    "whole, eta, known, expected",
    [
        (WHOLE, 0.0, [0], [0.65, 0.5, 0.1]),  # the bound is 0: every label's largest tile score
        (WHOLE, 0.8, [0], [0.65, 0.5, 0.1]),  # the whole image's score of the known label, 0.6, which 0.7 exceeds
        (SURE, 0.8, [0], [0.55, 0.13, 0.07]),  # eta, below that score: which no tile's score exceeds
        (SURE, 0.3, [0], [0.8, 0.38, 0.07]),
        (SURE, 0.8, [0, 1], [0.8, 0.38, 0.07]),  # the lowest score of several known labels, 0.06
        (SURE, 0.8, [], [0.8, 0.38, 0.07]),  # 0: no label is known
    ],
)
def test_a_tile_counts_by_its_largest_score_above_the_bound_of_eta_and_the_known_label(whole, eta, known, expected):
    observed = np.zeros((1, 3), dtype=np.int8)
    observed[0, known] = 1
    assert rules.damp(whole, TILES, observed, temperature=1.0, eta=eta)[0][0].tolist() == pytest.approx(expected)


def test_negatives_of_a_rule_of_tiles_are_the_lowest_by_the_mean_of_whole_image_and_tiles():
    """The second label; by DAMP's scores, in which its largest tile score counts, it would be the third."""
    whole, tiles = np.log([[0.4, 0.3, 0.3]]), np.log([[[0.16, 0.5, 0.34], [0.64, 0.02, 0.34]]])
    settings = dict(temperature=1.0, eta=0.0, teacher_topk=1, threshold=0.9, negative_fraction=0.34)
    known = np.zeros((1, 3), dtype=np.int8)
    _, ranking = rules.damp(whole, tiles, known, temperature=1.0, eta=0.0)
    assert ranking[0].tolist() == pytest.approx([0.4, 0.28, 0.32])
    labels, scores, _ = rules.make(rules.DAMP_RULE, settings, [whole, tiles], known)
    assert labels.tolist() == [[0, -1, 0]] and scores[0].tolist() == pytest.approx([0.52, 0.4, 0.32])


def test_only_the_highest_scores_become_positive_and_only_from_the_threshold_on():
    scores = np.array([[0.5, 0.2, 0.5, 0.6], [0.1, 0.2, 0.05, 0.3]])
    how = dict(threshold=0.2, negative_fraction=0.25)
    assert rules.topk_labels(scores, teacher_topk=2, **how).tolist() == [[1, -1, 0, 1], [0, 1, -1, 1]]
    assert rules.topk_labels(scores, teacher_topk=9, **how).tolist() == [[1, -1, 1, 1], [0, 1, -1, 1]]


def test_views_are_pooled_over_their_tiles_and_averaged():
    tiles = np.array([[[0.3, 0.1], [0.9, 0.9]]])  # less their means: 0.1, -0.1 and 0, 0
    whole = np.array([[0.2, 0.3]])
    assert rules.pooled([whole, tiles], "max")[1].tolist() == [pytest.approx([0.1, 0.0])]
    assert rules.pooled([whole, tiles], "mean")[1].tolist() == [pytest.approx([0.05, -0.05])]
    settings = dict(temperature=0.1, threshold=0.3, negative_fraction=0.0)
    known = np.zeros((1, 2), dtype=np.int8)
    _, scores, _ = rules.make(rules.THRESHOLD_RULE, settings, [whole, tiles], known)
    assert scores == pytest.approx(rules.softmax(np.array([[0.15, 0.15]]), temperature=0.1))


def test_a_rule_of_tiles_reads_each_tile():
    settings = dict(temperature=1.0, eta=0.0, teacher_topk=1, threshold=0.5, negative_fraction=0.0)
    known = np.zeros((1, 3), dtype=np.int8)
    labels, scores, _ = rules.make(rules.DAMP_RULE, settings, [WHOLE, TILES], known)
    assert labels.tolist() == [[1, 0, 0]] and scores[0].tolist() == pytest.approx([0.65, 0.5, 0.1])
    with pytest.raises(UserError, match="maximum over tiles alone"):
        rules.make(rules.DAMP_RULE, settings, [WHOLE, TILES[:, :1]], known)


# The real teacher


def test_the_real_teacher_labels_VOC_as_measured(real):
    """The figures of the published zero-shot cache against the 5,717 true label rows."""
    labels = np.load(real / "reference/voc2012_protocol.npz")
    file = real / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    (similarity,) = teachers.load_similarities(file, labels["train_images"], format_pascal.CLASSES)
    true = labels["train_labels"]
    for threshold, precision, recall in ((0.1, 0.7669, 0.7002), (0.3, 0.8834, 0.6284), (0.5, 0.9278, 0.5846)):
        scores = rules.softmax(similarity, temperature=0.01)
        pseudo = rules.threshold_labels(scores, threshold=threshold, negative_fraction=0.0)
        quality = label_quality.describe(pseudo, scores, np.zeros_like(true), true)
        assert quality["precision of positives"] == pytest.approx(precision, abs=5e-5)
        assert quality["recall of positives"] == pytest.approx(recall, abs=5e-5)
    assert quality["mAP of the teacher, %"] == pytest.approx(85.34, abs=5e-3)


def test_over_unobserved_entries_the_real_teacher_is_worse_and_calibration_mends_it(real):
    """VLPL's rule: precision 0.60 and recall 0.40; at that precision the calibrated scores find more."""
    labels = np.load(real / "reference/voc2012_protocol.npz")
    file = real / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    views = teachers.load_similarities(file, labels["train_images"], format_pascal.CLASSES)
    true, observed = labels["train_labels"], observe(labels["train_labels"])
    rule, settings = rules.THRESHOLD_RULE, dict(temperature=0.01, threshold=0.3, negative_fraction=0.0)
    pseudo, scores, _ = rules.make(rule, settings, views, observed)
    quality = label_quality.describe(pseudo, scores, observed, true)
    assert quality["precision of positives, unobserved entries"] == pytest.approx(0.60, abs=5e-3)
    assert quality["recall of positives, unobserved entries"] == pytest.approx(0.40, abs=5e-3)
    _, calibrated, _ = rules.make(rule, settings, views, observed, calibration="bias")
    recall = []
    for found in (scores, calibrated):
        order = np.argsort(-found[observed == 0])
        right = true[observed == 0][order].cumsum()
        enough = right >= 0.8 * np.arange(1, len(right) + 1)
        recall.append(right[enough].max() / right[-1])
    assert recall[0] == pytest.approx(0.287, abs=2e-3) and recall[1] == pytest.approx(0.51, abs=0.02)
