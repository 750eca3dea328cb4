"""Losses that read every true label: the upper bound of the comparisons."""

import torch
from torch import Tensor

from losses.terms import nlls


def bce(logits: Tensor, true: Tensor, *, eps: float) -> Tensor:
    """Binary cross-entropy on full labels.

    logits   (B, L) float
    true     (B, L) in {0, 1}
    returns  (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(true == 1, nll_pos, nll_neg)
