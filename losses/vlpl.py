"""VLPL: Xing et al., "Vision-Language Pseudo-Labels for Single-Positive Multi-Label Learning", CVPR 2024 workshop.

EM, with separate terms for the labels that a vision-language teacher has given a pseudo-label.
"""

import torch

from losses.base import Method
from losses.terms import EPS, SMOOTHING, entropy, nlls
from losses.zhou2022 import ALPHA
from pseudo_labels.rules import THRESHOLD_RULE
from util.settings import Setting

PAPER = "Xing et al. 2024, arXiv 2310.15985"
BETA_NEG = "weight of negative pseudo-labels; 0 in the published code"


def em_pl(logits, observed, pseudo, *, alpha, beta_pos, beta_neg, smoothing, eps):
    """VLPL's objective (Xing et al. 2024, section 3): EM, with smoothed terms for pseudo-labels."""
    nll_pos, nll_neg = nlls(logits, eps)
    pseudo_pos = beta_pos * ((1 - smoothing) * nll_pos + smoothing * nll_neg)
    pseudo_neg = beta_neg * (smoothing * nll_pos + (1 - smoothing) * nll_neg)  # differs: absent
    unknown = -alpha * entropy(logits, nll_pos, nll_neg)
    guessed = torch.where(pseudo == 1, pseudo_pos, torch.where(pseudo == -1, pseudo_neg, unknown))
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, guessed))


def em_pl_asl(logits, observed, pseudo, *, gamma_pos, gamma_unknown, gamma_neg, eps):
    """EM_PL with asymmetric focusing in place of weights (in VLPL's published code, not in the paper)."""
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    nll_pos, nll_neg = nlls(logits, eps)
    label = torch.where(observed == 0, pseudo, observed)
    unknown = -(q**gamma_unknown) * entropy(logits, nll_pos, nll_neg)
    return torch.where(label == 1, q**gamma_pos * nll_pos, torch.where(label == -1, p**gamma_neg * nll_neg, unknown))


EM_PL = Method(
    summary="VLPL: EM, with smoothed terms for the teacher's pseudo-labels",
    loss=em_pl,
    equation="observed: nll(p) or nll(1-p); pseudo-label +1: beta_pos ((1-s) nll(p) + s nll(1-p)); "
    "pseudo-label -1: beta_neg (s nll(p) + (1-s) nll(1-p)); other unknown: -alpha H(p); s = smoothing",
    paper=PAPER,
    pseudo_labels=THRESHOLD_RULE,
    settings=dict(
        alpha=ALPHA,
        beta_pos=Setting(0.7, "weight of positive pseudo-labels", "[0, inf)", "[0.1, 2]"),
        beta_neg=Setting(0.2, BETA_NEG, "[0, inf)", "[0.01, 1]", needs="negative_fraction"),
        smoothing=SMOOTHING,
        eps=EPS,
    ),
    published=dict(pascal=89.10, coco=71.45, nuswide=49.55, cub=24.02),
)

EM_PL_ASL = Method(
    summary="EM_PL with asymmetric focusing in place of weights; in VLPL's published code, not in the paper",
    loss=em_pl_asl,
    equation="observed or pseudo-label +1: (1-p)^gamma_pos nll(p); -1: p^gamma_neg nll(1-p); "
    "other unknown: -(1-p)^gamma_unknown H(p)",
    paper=PAPER,
    pseudo_labels=THRESHOLD_RULE,
    settings=dict(
        gamma_pos=Setting(2.0, "focus on positives: the power of 1-p", "[0, inf)", "[0, 4]"),
        gamma_unknown=Setting(4.0, "focus on unknown labels: the power of 1-p", "[0, inf)", "[0, 6]"),
        gamma_neg=Setting(4.0, "focus on negatives: the power of p", "[0, inf)", "[0, 6]"),
        eps=EPS,
    ),
)
