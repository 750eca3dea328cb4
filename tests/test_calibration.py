"""The calibration of a teacher by the known labels."""

import numpy as np
import pytest
import torch

from pseudo_labels import calibration
from pseudo_labels.calibration import calibrate
from pseudo_labels.rules import softmax


def drawn(num_images: int = 4000, num_labels: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities, the known labels (N, L) that softmax(30 s + b) draws, and its probabilities."""
    random = np.random.RandomState(0)
    similarity = 0.05 * random.randn(num_images, num_labels)
    logits = 30 * similarity + np.linspace(-1, 1, num_labels)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (probs.cumsum(axis=1) < random.rand(num_images, 1)).sum(axis=1)
    return similarity, np.eye(num_labels, dtype=np.int8)[label], probs


def scores_of(views: list[np.ndarray], observed: np.ndarray, form: str, temperature: float = 0.01) -> np.ndarray:
    return calibrate(views, observed, form=form, temperature=temperature)[0]


def likelihood(scores: np.ndarray, observed: np.ndarray) -> float:
    return float(np.log(scores[observed == 1]).mean())


@pytest.mark.parametrize("form", ["bias", "matrix"])
def test_calibration_recovers_how_the_known_labels_were_drawn(form):
    similarity, observed, probs = drawn()
    scores, notes = calibrate([similarity], observed, form=form, temperature=0.01)
    assert notes == [] and scores.dtype == np.float32 and scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(scores - probs).mean() < 0.02 < 0.1 < np.abs(softmax(similarity, temperature=0.01) - probs).mean()


def test_the_temperature_is_where_the_fit_starts_and_changes_nothing():
    similarity, observed, _ = drawn(1000)
    one, other = (scores_of([similarity], observed, "matrix", temperature) for temperature in (0.003, 0.1))
    assert np.abs(one - other).max() < 0.01


def test_a_matrix_is_fitted_if_one_label_stands_for_another_and_not_if_it_only_adds_noise():
    similarity, observed, _ = drawn()
    swapped = similarity[:, [1, 0, 2, 3]]
    gain = [
        likelihood(scores_of([view], observed, "matrix"), observed)
        - likelihood(scores_of([view], observed, "bias"), observed)
        for view in (swapped, similarity)
    ]
    assert gain[0] > 0.2 and abs(gain[1]) < 1e-3
    few, known, _ = drawn(60)  # few known labels, of which none says more than the bias does
    assert likelihood(scores_of([few], known, "matrix"), known) >= likelihood(scores_of([few], known, "bias"), known)


def test_each_view_has_a_factor_of_its_own():
    similarity, observed, probs = drawn()
    noise = 0.05 * np.random.RandomState(1).randn(*similarity.shape)
    assert np.abs(scores_of([noise, similarity], observed, "bias") - probs).mean() < 0.02


def test_with_a_given_ridge_the_known_label_of_an_image_does_not_reach_its_own_scores(monkeypatch):
    monkeypatch.setattr(calibration, "RIDGES", (30.0,))
    similarity, observed, _ = drawn(200)
    before = scores_of([similarity], observed, "matrix")
    observed[7] = np.roll(observed[7], 1)
    same = (before == scores_of([similarity], observed, "matrix")).all(axis=1)
    assert same[7] and same.sum() == 200 / calibration.FOLDS


def fitted_bias(rows: dict[tuple[int, ...], int]) -> torch.Tensor:
    """The fit to {row of observed labels: count} if all similarities are 0."""
    observed = torch.tensor([row for row, count in rows.items() for _ in range(count)], dtype=torch.int8)
    num_labels = observed.shape[1]
    start = tuple(torch.zeros(size, dtype=torch.float64) for size in (1, num_labels, (num_labels, num_labels)))
    return calibration._fit(torch.zeros(observed.shape, dtype=torch.float64), observed, torch.inf, start)[1]


def test_several_known_labels_share_the_mass_of_their_image_and_every_label_starts_from_half_an_image():
    bias = fitted_bias({(1, 0, 0): 1, (0, 1, 1): 2, (1, 0, 1): 1})
    assert torch.softmax(bias, dim=0).tolist() == pytest.approx([2 / 5.5, 1.5 / 5.5, 2 / 5.5], abs=1e-3)
    never = torch.softmax(fitted_bias({(1, 0, 0): 3, (0, 1, 0): 1}), dim=0)
    assert never.tolist() == pytest.approx([3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5], abs=1e-3)


def test_a_known_negative_leaves_the_softmax(monkeypatch):
    """3 + 2 of the first label against 5 of the second; if the third may be drawn, 6 of it against 2."""
    monkeypatch.setattr(calibration, "PRIOR", 0.0)
    bias = fitted_bias({(1, 0, -1): 3, (0, 1, -1): 5, (1, 0, 0): 2, (0, 0, 1): 6})
    assert torch.softmax(bias[:2], dim=0).tolist() == pytest.approx([5 / 10, 5 / 10], abs=1e-3)
    assert torch.softmax(bias, dim=0)[2].item() == pytest.approx(6 / 8, abs=1e-3)


def test_labels_that_are_never_observed_get_finite_scores_and_a_line():
    similarity, observed, _ = drawn()
    observed[:, 1] = 0
    scores, notes = calibrate([similarity], observed, form="matrix", temperature=0.01)
    assert len(notes) == 1 and "1 of 4 labels are never observed" in notes[0]
    assert np.isfinite(scores).all() and 0 < scores[:, 1].mean() < 0.05
    nothing = scores_of([similarity], 0 * observed, "matrix")
    assert nothing == pytest.approx(softmax(similarity, temperature=0.01), abs=1e-5)


def test_too_many_labels_for_a_matrix_are_calibrated_by_bias_with_a_line(monkeypatch):
    similarity, observed, _ = drawn(300)
    monkeypatch.setattr(calibration, "MATRIX_LABELS", 3)
    scores, notes = calibrate([similarity], observed, form="matrix", temperature=0.01)
    assert "calibrated by bias" in notes[0] and np.array_equal(scores, scores_of([similarity], observed, "bias"))


def test_calibrated_scores_do_not_depend_on_the_chunks_and_a_choice_by_few_rows_is_near(monkeypatch):
    similarity, observed, _ = drawn(300)
    whole = scores_of([similarity], observed, "matrix")
    monkeypatch.setattr(calibration, "ROWS", 7)
    assert np.abs(whole - scores_of([similarity], observed, "matrix")).max() < 1e-6
    monkeypatch.setattr(calibration, "CHOICE_ENTRIES", 4 * 150)
    assert np.abs(whole - scores_of([similarity], observed, "matrix")).mean() < 0.02
