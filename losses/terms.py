"""The terms that the formulas are made of, and the settings that they share."""

import torch
from torch import Tensor

from util import distributed
from util.settings import Setting

EPS = Setting(1e-5, "added to p inside every logarithm, as in the published code", "(0, 1)")
SMOOTHING = Setting(0.1, "share of a label's weight that goes to the opposite label", "[0, 0.5]", "[0.01, 0.3]")
PER_DATASET = dict(coco=2.9, nuswide=1.9, cub=31.4, digits=3.0)
EXPECTED_POSITIVES = Setting(1.5, "mean positives per image, known beforehand", "(0, inf)", "[1, 5]", **PER_DATASET)
HEAD_RATE = {"*": 10.0, "digits": 1.0}  # of fine-tuning; the digits' backbone starts from scratch, as its head does
BATCH_16 = dict(coco=16, nuswide=16)  # of Zhou et al. 2022, for every method whose numbers they report


def nlls(logits: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """nll(p) and nll(1-p), with nll(q) = -log(q + eps), as in the published code.

    1 - p is computed as sigmoid(-logits), which keeps its digits if p is near 1.
    """
    return -torch.log(torch.sigmoid(logits) + eps), -torch.log(torch.sigmoid(-logits) + eps)


def entropy(logits: Tensor, nll_pos: Tensor, nll_neg: Tensor) -> Tensor:
    """H(p) = p nll(p) + (1-p) nll(1-p) (Zhou et al. 2022, section 3.1), from what `nlls` returned."""
    return torch.sigmoid(logits) * nll_pos + torch.sigmoid(-logits) * nll_neg


def expected_positive_penalty(logits, *, expected_positives):
    """R = ((mean over the batch of sum_l p_l) - k)^2 / L^2, k = expected_positives (Cole et al. 2021, section 4.2).

    With several processes the value is computed from the whole batch and the gradient from this process's images: the
    processes' gradients, weighted by their shares of the batch, add up to the gradient of R.
    """
    positives = torch.sigmoid(logits).sum(dim=1)
    whole = distributed.gather(positives.detach())
    mean = positives.sum() / max(len(positives), 1)  # a process may have no image of a batch
    mean = mean + (whole.sum() / len(whole) - mean).detach()
    return ((mean - expected_positives) / logits.shape[1]).square()
