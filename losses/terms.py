"""The terms that the formulas are made of, and the settings that they share."""

import torch
from torch import Tensor

from util import distributed
from util.settings import Setting

EPS = Setting(1e-5, "added to p inside every logarithm, as in the published code", "(0, 1)")
EXPECTED_POSITIVES = Setting(
    1.5, "mean positives per image, known beforehand", "(0, inf)", coco=2.9, nuswide=1.9, cub=31.4, digits=3.0
)
FINE_TUNED = {"*": 10.0, "digits": 1.0}  # head rates; the digits' backbone starts from scratch, as its head does


def nlls(logits: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """nll(p) and nll(1-p) for p = sigmoid(logits), with nll(q) = -log(q + eps), as in the published code.

    1 - p is taken as sigmoid(-logits), which keeps its digits where p is near 1.
    """
    return -torch.log(torch.sigmoid(logits) + eps), -torch.log(torch.sigmoid(-logits) + eps)


def entropy(logits: Tensor, nll_pos: Tensor, nll_neg: Tensor) -> Tensor:
    """H(p) = p nll(p) + (1-p) nll(1-p), elementwise (Zhou et al. 2022, section 3.1), from what `nlls` returned."""
    return torch.sigmoid(logits) * nll_pos + torch.sigmoid(-logits) * nll_neg


def expected_positive_penalty(logits: Tensor, expected_positives: float) -> Tensor:
    """R = ((mean over the batch of sum_l p_l) - k)^2 / L^2, (): the regulariser of expected positives k (Cole et al.
    2021, section 4.2).

    With several processes the mean is that of the whole batch. Its gradient is that of the mean over this process's
    images: weighted by their share of the batch, as every loss is, the processes' gradients add up to that of R.
    """
    positives = torch.sigmoid(logits).sum(dim=1)
    whole = distributed.gather(positives.detach())
    mean = positives.sum() / max(len(positives), 1)  # a process may have no image of a batch
    mean = mean + (whole.sum() / len(whole) - mean).detach()
    return ((mean - expected_positives) / logits.shape[1]).square()
