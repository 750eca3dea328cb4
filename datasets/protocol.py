"""The published protocol of single-positive data (Cole et al. 2021): observed labels and validation images."""

import numpy as np

SEED = 1200  # of both draws, in the published code
VAL_FRACTION = 0.2


def observe(labels: np.ndarray, *, num_pos: int = 1, num_neg: int = 0, seed: int = SEED) -> np.ndarray:
    """Keep num_pos positives and num_neg negatives of each row (or all, if it has fewer), drawn at random.

    labels   (N, L) in {0, 1}
    returns  (N, L) int8 in {-1, 0, +1}; 0 = unknown

    Both shuffles of a row happen even if none is kept, as in the published code: later rows' draws depend on them.
    """
    random = np.random.RandomState(seed)
    observed = np.zeros(labels.shape, dtype=np.int8)
    positive = labels == 1
    for row, result in zip(positive, observed, strict=True):
        positives, negatives = np.flatnonzero(row), np.flatnonzero(~row)
        random.shuffle(positives)
        random.shuffle(negatives)
        result[positives[:num_pos]] = 1
        result[negatives[:num_neg]] = -1
    return observed


def split_indices(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the official training set that train and that validate, both sorted."""
    order = np.random.RandomState(SEED).permutation(num_images)
    num_val = round(VAL_FRACTION * num_images)
    return np.sort(order[: num_images - num_val]), np.sort(order[num_images - num_val :])
