"""Calibrate a teacher's similarities by the known labels of the training images.

The known label of an image is a draw from the labels that are present. Its distribution given the image,

    P(known = l | x) = softmax(sum_v a_v z_v + W_v z_v + b)_l,

is a multinomial logistic regression on the similarities z_v of the teacher's views. It needs no further label.
"""

import numpy as np
import torch
from torch import Tensor

CALIBRATIONS = ("none", "bias", "matrix")
FOLDS = 5  # an image's scores come from a fit to the other four fifths of the images
RIDGES = (torch.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)  # on |W|^2, beside the summed cross-entropy; infinite: W = 0
PRIOR = 0.5  # images in which each label is counted as known beforehand, if the teacher is undecided
MATRIX_LABELS = 400  # above it the L x L matrix has more numbers than the known labels can fit
CHOICE_ENTRIES = 1 << 19  # entries of the scores by which the ridge is chosen: bounds the time
FIT_ENTRIES = 1 << 24  # entries of the scores that a fit reads: bounds its memory (2 GB)
ROWS = 4096  # images scored at a time

Fit = tuple[Tensor, Tensor, Tensor]  # a (V,), b (L,), W (L, V L)


def calibrate(
    views: list[np.ndarray], observed: np.ndarray, *, form: str, temperature: float
) -> tuple[np.ndarray, list[str]]:
    """Scores of all images from fits to the known positives, and lines about the fits.

    The images are divided into FOLDS parts at random, and the scores of a part come from a fit to the others: the known
    label of an image does not reach its own scores. One ridge on W serves all parts: the one with the least
    cross-entropy of the known labels that were left out. Several known positives of an image share its mass, and
    known negatives leave the softmax of the fit.

    views        the teacher's similarities, each (N, L) float
    observed     (N, L) in {-1, 0, +1}; an image without a known positive gets scores and is not fitted
    form         bias: W = 0; matrix: W is fitted, too, if that lowers the held-out cross-entropy
    temperature  of the softmax that the fit starts from
    returns      (N, L) float32 in [0, 1], each row adds up to 1
    """
    (num_images, num_labels), notes = observed.shape, []
    if form == "matrix" and num_labels > MATRIX_LABELS:
        notes.append(f"calibrated by bias: a matrix is fitted to {MATRIX_LABELS} labels at most, not {num_labels:,}")
        form = "bias"
    if unseen := int((~(observed == 1).any(axis=0)).sum()):
        notes.append(f"{unseen} of {num_labels:,} labels are never observed: calibrated as the rarest labels")
    order = np.random.Generator(np.random.Philox(key=0)).permutation(num_images)  # the same for every seed
    held_out = np.array_split(order, FOLDS)
    fitted = [np.concatenate(held_out[:fold] + held_out[fold + 1 :]) for fold in range(FOLDS)]
    known, entries = (observed == 1).any(axis=1), num_labels * len(views)
    spreads = [max(float(np.std(view - view.mean(axis=1, keepdims=True))), 1e-12) for view in views]

    def data(rows: np.ndarray, most: int | None = None) -> tuple[Tensor, Tensor]:
        """(M, V L) similarities, centred over the labels and of standard deviation 1, and (M, L) observed labels."""
        rows = rows if most is None else rows[known[rows]][: max(1, most // entries)]
        parts = [torch.from_numpy(view[rows]).double() / spread for view, spread in zip(views, spreads, strict=True)]
        z = torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1)
        return z, torch.from_numpy(observed[rows])

    softmax = (
        torch.tensor(spreads, dtype=torch.float64) / temperature / len(views),
        torch.zeros(num_labels, dtype=torch.float64),
        torch.zeros(num_labels, entries, dtype=torch.float64),
    )
    fits, ridge = [softmax] * FOLDS, torch.inf
    if form == "matrix":
        choice = ([data(rows, CHOICE_ENTRIES) for rows in parts] for parts in (fitted, held_out))
        fits, ridge = _choose(*choice, softmax)
    scores = np.empty((num_images, num_labels), dtype=np.float32)
    for rows, part, start in zip(fitted, held_out, fits, strict=True):
        fit = _fit(*data(rows, FIT_ENTRIES), ridge, start)
        for chunk in np.split(part, range(ROWS, len(part), ROWS)):
            scores[chunk] = torch.softmax(_logits(data(chunk)[0], fit), dim=1).numpy()
    return scores, notes


def _choose(
    fitted: list[tuple[Tensor, Tensor]], held_out: list[tuple[Tensor, Tensor]], start: Fit
) -> tuple[list[Fit], float]:
    """The fits of all folds with the ridge of least held-out cross-entropy, and that ridge. A fit starts from the one
    with the next larger ridge; the search ends when the cross-entropy rises."""
    fits, best, least = [start] * len(fitted), None, torch.inf
    for ridge in RIDGES:
        fits = [_fit(*data, ridge, fit) for data, fit in zip(fitted, fits, strict=True)]
        total = sum(float(_cross_entropy(*data, fit)) for data, fit in zip(held_out, fits, strict=True))
        if total >= least:
            break
        best, least = (fits, ridge), total
    return best


def _logits(z: Tensor, fit: Fit) -> Tensor:
    """(M, V L) -> (M, L): sum_v a_v z_v + W_v z_v + b."""
    scale, bias, matrix = fit
    diagonal = torch.cat([a * torch.eye(len(bias), dtype=z.dtype) for a in scale], dim=1)
    return z @ (matrix + diagonal).T + bias


def _cross_entropy(z: Tensor, observed: Tensor, fit: Fit) -> Tensor:
    """(), the sum over the images of the cross-entropy of their known positives."""
    positive = observed == 1
    logits = _logits(z, fit).masked_fill(observed == -1, -1e9)
    return -(positive * torch.log_softmax(logits, dim=1)).sum(dim=1).div(positive.sum(dim=1)).sum()


def _fit(z: Tensor, observed: Tensor, ridge: float, start: Fit) -> Fit:
    """The fit of least cross-entropy to z (M, V L) float64 and observed (M, L), which has a +1 in each row."""
    fit = tuple(part.clone().requires_grad_() for part in start)
    learned = fit if ridge < torch.inf else fit[:2]
    steps = torch.optim.LBFGS(
        learned, max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        steps.zero_grad()
        loss = _cross_entropy(z, observed, fit) - PRIOR * torch.log_softmax(fit[1], dim=0).sum()
        if ridge < torch.inf:
            loss = loss + ridge * fit[2].square().sum()
        loss = loss / (len(z) + 1)
        loss.backward()
        return loss

    steps.step(objective)
    return tuple(part.detach() for part in fit)
