"""Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021: the baselines and the upper bound."""

import torch
from torch import Tensor

from losses.base import Method
from losses.terms import EPS, nlls

PAPER = "Cole et al. 2021, arXiv 2106.09708"


def bce(logits: Tensor, true: Tensor, *, eps: float) -> Tensor:
    """Binary cross-entropy on full labels.

    logits   (B, L) float
    true     (B, L) in {0, 1}
    returns  (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(true == 1, nll_pos, nll_neg)


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


def an(logits: Tensor, observed: Tensor, *, eps: float) -> Tensor:
    """Assume negative: an unknown label counts as a negative (Cole et al. 2021, section 3).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(observed == 1, nll_pos, nll_neg)  # differs: observed negatives are refused


BCE = Method(
    summary="binary cross-entropy on all true labels: the upper bound",
    loss=bce,
    equation="true positive: nll(p); true negative: nll(1-p)",
    paper=PAPER,
    settings=dict(eps=EPS),
    published=dict(pascal=89.42, coco=76.78, nuswide=52.08, cub=30.90),
    oracle=True,
)

IUN = Method(
    summary="the observed positives and all true negatives",
    loss=iun,
    equation="observed positive: nll(p); true negative: nll(1-p); other: 0",
    paper=PAPER,
    settings=dict(eps=EPS),
    oracle=True,
)

AN = Method(
    summary="assume negative: every unknown label counts as negative",
    loss=an,
    equation="observed positive: nll(p); other: nll(1-p)",
    paper=PAPER,
    settings=dict(eps=EPS),
    published=dict(pascal=85.89, coco=64.92, nuswide=42.27, cub=18.31),
)
