"""The terms that the formulas are made of, and the setting that they share."""

import torch
from torch import Tensor

from util.settings import Setting

EPS = Setting(1e-5, "added to p inside every logarithm, as in the published code", "(0, 1)")


def nlls(logits: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """nll(p) and nll(1-p) for p = sigmoid(logits), with nll(q) = -log(q + eps), as in the published code.

    1 - p is taken as sigmoid(-logits), which keeps its digits where p is near 1.
    """
    return -torch.log(torch.sigmoid(logits) + eps), -torch.log(torch.sigmoid(-logits) + eps)


def entropy(logits: Tensor, nll_pos: Tensor, nll_neg: Tensor) -> Tensor:
    """H(p) = p nll(p) + (1-p) nll(1-p), elementwise (Zhou et al. 2022, section 3.1), from what `nlls` returned."""
    return torch.sigmoid(logits) * nll_pos + torch.sigmoid(-logits) * nll_neg
