"""Metrics against the published code's values, against scikit-learn, and by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

import metrics

REFERENCE = np.load(Path(__file__).parent / "reference/metrics.npz")


def test_metrics_are_the_published_ones():
    got = metrics.evaluate(REFERENCE["probs"], REFERENCE["labels"])
    assert got["mAP"] == pytest.approx(float(REFERENCE["map"]), abs=1e-9)
    for k in metrics.AT:
        for name, theirs in (("precision", "prec_at"), ("recall", "rec_at"), ("top", "top")):
            assert got[f"{name}@{k}"] == pytest.approx(float(REFERENCE[f"{theirs}_{k}"]), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_scikit_learns_with_ties(rows):
    scores, labels = np.array([score / 4 for score, _ in rows]), np.array([int(label) for _, label in rows])
    expected = average_precision_score(labels, scores) if labels.any() else 0.0
    assert metrics.average_precision(scores[:, None], labels[:, None])[0] == pytest.approx(expected, abs=1e-9)


def test_average_precision_by_hand():
    # ranked: hit, miss, hit -> (1/1 + 2/3) / 2; the second class has no positive
    probs, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([[1, 0], [0, 0], [1, 0]])
    assert metrics.average_precision(probs, labels).tolist() == pytest.approx([5 / 6, 0])
    assert metrics.mean_average_precision(probs, labels) == pytest.approx(100 * 5 / 12)
    found = metrics.evaluate(probs, labels)
    assert found["classes_without_positives"] == 1
    assert (found["mAP"], found["mAP_present"]) == pytest.approx((100 * 5 / 12, 100 * 5 / 6))
    assert metrics.per_class(probs, labels, ["cat", "dog"], np.array([0.25, 0.5])) == [
        {"class": "cat", "test_positives": 2, "test_AP": pytest.approx(100 * 5 / 6), "threshold": 0.25},
        {"class": "dog", "test_positives": 0, "test_AP": 0.0, "threshold": 0.5},
    ]


def test_at_k_by_hand():
    probs, labels = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]]), np.array([[1, 0, 1], [0, 0, 0]])
    assert metrics.at_k(probs, labels, 1) == {"precision": 0.5, "recall": 0.25, "top": 0.5}
    assert metrics.at_k(probs, labels, 5) == pytest.approx({"precision": 1 / 3, "recall": 0.5, "top": 0.5})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_f1_is_scikit_learns_and_no_other_threshold_has_a_higher_one(seed):
    random = np.random.RandomState(seed)
    probs, labels = random.randint(0, 8, (40, 3)).astype(np.float32) / 8, random.randint(0, 2, (40, 3))
    chosen, words = metrics.choose_thresholds(probs, labels == 1, complete=True)
    assert words == f"F1 on clean validation labels, {labels.sum()} positives" or (labels.sum(axis=0) < 10).any()
    for at in (0.5, chosen):
        for mean, value in metrics.f1(probs, labels, at).items():
            assert value == pytest.approx(f1_score(labels, probs >= at, average=mean, zero_division=0))
    for label in np.flatnonzero(labels.sum(axis=0) >= 10):
        part = probs[:, [label]], labels[:, [label]]
        best = max(metrics.f1(*part, at)["micro"] for at in np.arange(9) / 8)
        assert metrics.f1(*part, chosen[label])["micro"] == pytest.approx(best)


def test_thresholds_by_hand(monkeypatch):
    probs, labels = (
        np.array([[0.9, 0.3], [0.6, 0.2], [0.4, 0.1], [0.1, 0.1]]),
        np.array([[1, 0], [1, 0], [0, 0], [0, 0]]),
    )
    choose = metrics.choose_thresholds
    assert choose(probs, labels == 1, complete=True)[0].tolist() == [0.5, 0.5]  # 2 positives are too few
    monkeypatch.setattr(metrics, "FEW", 2)
    # together: hits at 0.9 and 0.6 alone, so the class without positives gets the same threshold
    for complete, rule in ((True, "F1 on clean"), (False, "recall^3 / labels predicted on observed")):
        found, words = choose(probs, labels == 1, complete=complete)
        assert found.tolist() == pytest.approx([0.5, 0.5])
        assert words == f"{rule} validation labels, 2 positives; 1 of 2 classes have fewer than 2 and share one"
    probs_of_one = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.1]])
    known = np.array([[True], [False], [False], [False], [True], [False]])
    # (1/2)^3 / 1 < 1 / 5, so both known ones are reached; by (1/2)^2 / 1 > 1 / 5 the first alone would be
    assert choose(probs_of_one, known, complete=False)[0].tolist() == pytest.approx([0.3])
    assert metrics.f1(probs, labels, np.array([0.5, 0.3])) == pytest.approx({"micro": 4 / 5, "macro": 1 / 2})


def test_classes_with_few_positives_share_a_threshold():
    """One class has 12 positives and its own threshold; two have 4 and share that of all."""
    random = np.random.RandomState(0)
    labels = np.zeros((60, 3), dtype=bool)
    labels[:12, 0] = labels[12:16, 1] = labels[16:20, 2] = True
    probs = random.rand(60, 3) * 0.2 + np.where(labels, [0.3, 0.7, 0.7], 0.0)
    found, words = metrics.choose_thresholds(probs, labels, complete=True)
    alone, _ = metrics.choose_thresholds(probs[:, :1], labels[:, :1], complete=True)
    pooled, _ = metrics.choose_thresholds(probs.reshape(-1, 1), labels.reshape(-1, 1), complete=True)
    assert found.tolist() == [alone[0], pooled[0], pooled[0]]
    assert words.endswith("20 positives; 2 of 3 classes have fewer than 10 and share one")
    found, words = metrics.choose_thresholds(probs[12:], labels[12:], complete=True)
    assert (found == 0.5).all() and words == "nothing: 0.5, because 8 positives are too few"
