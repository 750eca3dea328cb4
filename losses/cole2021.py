"""Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021: baselines, upper bounds, EPR and ROLE."""

import numpy as np
import torch
from torch import Tensor, nn

from losses.base import Loss, Method
from losses.terms import BATCH_16, EPS, EXPECTED_POSITIVES, SMOOTHING, expected_positive_penalty, nlls
from util.devices import generator
from util.errors import UserError

PAPER = "Cole et al. 2021, arXiv 2106.09708"
BY_ZHOU = dict(recipe=dict(batch_size=BATCH_16), source="as reported by Zhou et al. 2022")
SURE, UNSURE = 0.995, 0.6  # ROLE's first estimates of observed positives; the highest one of unknown labels


def bce(logits, true, *, eps):
    """Binary cross-entropy on full labels."""
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(true == 1, nll_pos, nll_neg)


def bce_ls(logits, true, *, smoothing, eps):
    """Binary cross-entropy on full labels, smoothed."""
    nll_pos, nll_neg = nlls(logits, eps)
    positive = (1 - smoothing) * nll_pos + smoothing * nll_neg
    return torch.where(true == 1, positive, smoothing * nll_pos + (1 - smoothing) * nll_neg)


def iun(logits, observed, true, *, eps):
    """Ignore unobserved positives: the observed positives and the true negatives (Cole et al. 2021, section 3)."""
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(observed == 1, nll_pos, torch.where(true == 0, nll_neg, 0.0))


def iu(logits, observed, *, eps):
    """Ignore unobserved: binary cross-entropy on the observed labels (Cole et al. 2021, section 3)."""
    nll_pos, nll_neg = nlls(logits, eps)
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, 0.0))


def an(logits, observed, *, eps):
    """Assume negative: an unknown label counts as a negative (Cole et al. 2021, section 3)."""
    return bce(logits, observed == 1, eps=eps)  # differs: observed negatives are refused


def an_ls(logits, observed, *, smoothing, eps):
    """Assume negative, smoothed (Cole et al. 2021, section 4.1)."""
    return bce_ls(logits, observed == 1, smoothing=smoothing, eps=eps)


def wan(logits, observed, *, eps):
    """Weak assume negative: a positive weighs as much as all L-1 assumed negatives (Cole et al. 2021, section 4.1)."""
    nll_pos, nll_neg = nlls(logits, eps)
    assumed = nll_neg / max(logits.shape[1] - 1, 1)
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, assumed))  # differs: -1 is refused


def pr(logits, observed):
    """Pairwise ranking: an observed positive i costs sum_j max(0, 1 - p_i + p_j) over the labels j that are not known
    to be positive (Cole et al. 2021, appendix)."""
    p, positive = torch.sigmoid(logits), observed == 1
    pairs = torch.relu(1 - p[:, :, None] + p[:, None, :])  # (B, L, L) of i and j
    return torch.where(positive, torch.where(positive[:, None, :], 0.0, pairs).sum(dim=2), 0.0)


class OnlineLabelEstimation(Loss):
    """ROLE: classifier and label estimates are each fitted to the observed labels by EPR, and to the other one, held
    fixed (Cole et al. 2021, section 4.3). The estimates are learned at ten times the backbone's rate.

    State: `estimates` (N, L) float, logits.
    """

    rate = 10.0

    def __init__(self, observed: Tensor, *, seed: int) -> None:
        super().__init__()
        sure, unsure = torch.logit(torch.tensor([SURE, UNSURE], dtype=torch.float64)).tolist()
        first = unsure * (2 * torch.rand(observed.shape, generator=generator(seed, 0)) - 1).to(observed.device)
        self.estimates = nn.Parameter(torch.where(observed == 0, first, sure * observed))

    def per_label(self, logits, observed, index, *, eps):
        def cost(own: Tensor, other: Tensor) -> Tensor:
            nll_pos, nll_neg = nlls(own, eps)
            target = torch.sigmoid(other).detach()
            return iu(own, observed, eps=eps) + target * nll_pos + (1 - target) * nll_neg

        estimate = self.estimates[index].to(logits.dtype)
        return 0.5 * (cost(logits, estimate) + cost(estimate, logits))

    def regulariser(self, logits, index, *, expected_positives):
        parts = (logits, self.estimates[index])
        return 0.5 * sum(expected_positive_penalty(part, expected_positives=expected_positives) for part in parts)


def check_negatives(observed: np.ndarray) -> None:
    if not (observed == -1).any():
        raise UserError(
            "the method iu learns from observed labels only, and no negative is observed: every label would become "
            "positive; draw some with `python preproc/generate_observed_labels.py --dataset NAME --num-neg 1`"
        )


BCE = Method(
    summary="binary cross-entropy on all true labels: the upper bound",
    loss=bce,
    equation="true positive: nll(p); true negative: nll(1-p)",
    paper=PAPER,
    settings=dict(eps=EPS),
    published=dict(pascal=89.42, coco=76.78, nuswide=52.08, cub=30.90),
    **BY_ZHOU,
)

BCE_LS = Method(
    summary="binary cross-entropy on all true labels, smoothed",
    loss=bce_ls,
    equation="true positive: (1-s) nll(p) + s nll(1-p); true negative: s nll(p) + (1-s) nll(1-p); s = smoothing",
    paper=PAPER,
    settings=dict(smoothing=SMOOTHING, eps=EPS),
)

IUN = Method(
    summary="the observed positives and all true negatives",
    loss=iun,
    equation="observed positive: nll(p); true negative: nll(1-p); other: 0",
    paper=PAPER,
    settings=dict(eps=EPS),
)

IU = Method(
    summary="the observed labels alone; needs observed negatives (`generate_observed_labels.py --num-neg 1`)",
    loss=iu,
    equation="observed: nll(p) or nll(1-p); unknown: 0",
    paper=PAPER,
    settings=dict(eps=EPS),
    check_labels=check_negatives,
)

AN = Method(
    summary="assume negative: every unknown label counts as negative",
    loss=an,
    equation="observed positive: nll(p); other: nll(1-p)",
    paper=PAPER,
    settings=dict(eps=EPS),
    published=dict(pascal=85.89, coco=64.92, nuswide=42.27, cub=18.31),
    **BY_ZHOU,
)

AN_LS = Method(
    summary="assume negative, smoothed",
    loss=an_ls,
    equation="observed positive: (1-s) nll(p) + s nll(1-p); other: s nll(p) + (1-s) nll(1-p); s = smoothing",
    paper=PAPER,
    settings=dict(smoothing=SMOOTHING, eps=EPS),
    published=dict(pascal=87.90, coco=67.15, nuswide=43.77, cub=16.26),
    **BY_ZHOU,
)

WAN = Method(
    summary="weak assume negative: the L-1 unknown labels together weigh as much as the known positive",
    loss=wan,
    equation="observed: nll(p) or nll(1-p); unknown: nll(1-p) / (L-1)",
    paper=PAPER,
    settings=dict(eps=EPS),
)

PR = Method(
    summary="pairwise ranking of the known positive above the other labels",
    loss=pr,
    equation="observed positive i: sum over the labels j not observed as positive of max(0, 1 - p_i + p_j); other: 0",
    paper=PAPER,
)

EPR = Method(
    summary="the observed labels, and a penalty on the expected number of positives per image",
    loss=iu,
    equation="observed: nll(p) or nll(1-p); unknown: 0; the mean is increased by R = ((mean over images of sum_l p) - "
    "k)^2 / L^2, k = expected positives",
    paper=PAPER,
    regulariser=expected_positive_penalty,
    settings=dict(expected_positives=EXPECTED_POSITIVES, eps=EPS),
)

ROLE = Method(
    summary="EPR for the classifier f and for label estimates g, which are learned jointly",
    loss=OnlineLabelEstimation,
    equation="(EPR(f) + EPR(g)) / 2 + (CE(f | g) + CE(g | f)) / 2; CE(f | g) = g nll(f) + (1-g) nll(1-f), g held fixed",
    paper=PAPER,
    settings=dict(expected_positives=EXPECTED_POSITIVES, eps=EPS),
    published=dict(pascal=87.77, coco=67.04, nuswide=41.63, cub=13.66),
    **BY_ZHOU,
    note="with --mode linear_init, by Kim et al. 2023: pascal 88.26, coco 69.12, nuswide 45.98, cub 14.86",
)
