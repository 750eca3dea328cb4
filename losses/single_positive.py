"""The simplest answers to single positives (Cole et al. 2021): unknown labels are negative, or an oracle tells."""

import torch
from torch import Tensor

from losses.terms import nlls


def an(logits: Tensor, observed: Tensor, *, eps: float) -> Tensor:
    """Assume negative: an unknown label counts as a negative (Cole et al. 2021, section 3).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(observed == 1, nll_pos, nll_neg)  # differs: observed negatives are refused


def iun(logits: Tensor, observed: Tensor, true: Tensor, *, eps: float) -> Tensor:
    """Ignore unobserved positives: the observed positives and the true negatives, which only an oracle knows (Cole et
    al. 2021, section 3).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    true      (B, L) in {0, 1}
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(observed == 1, nll_pos, torch.where(true == 0, nll_neg, 0.0))
