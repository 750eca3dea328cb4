"""Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021, with unknown labels as negatives."""

import torch

from losses.base import Method
from util.settings import Setting


def asl(logits, observed, *, gamma_pos, gamma_neg, shift, eps):
    """ASL (Ridnik et al. 2021, section 2.3): negatives are focused on more than positives, and easy ones ignored."""
    p, q = torch.sigmoid(logits), (torch.sigmoid(-logits) + shift).clamp(max=1)
    focus_pos, focus_neg = (1 - p).detach() ** gamma_pos, (1 - q).detach() ** gamma_neg  # weights, as published
    return -torch.where(observed == 1, focus_pos * torch.log(p.clamp(min=eps)), focus_neg * torch.log(q.clamp(min=eps)))


ASL = Method(
    summary="assume negative, with asymmetric focusing: easy negatives count less than easy positives",
    loss=asl,
    equation="observed positive: -(1-p)^gamma_pos log p; other: -p'^gamma_neg log(1-p'), p' = max(p - shift, 0); "
    "the powers are weights without a gradient",
    paper="Ridnik et al. 2021, arXiv 2009.14119",
    settings=dict(
        gamma_pos=Setting(1.0, "focus on positives: the power of 1-p", "[0, inf)", "[0, 3]"),
        gamma_neg=Setting(4.0, "focus on negatives: the power of p", "[0, inf)", "[0, 6]"),
        shift=Setting(0.05, "probability below which a negative costs nothing", "[0, 1)", "[0, 0.3]"),
        eps=Setting(1e-8, "lowest argument of a logarithm, as in the published code", "(0, 1)"),
    ),
    recipe=dict(lr=dict(cub=1e-5)),
    published=dict(pascal=87.76, coco=68.78, nuswide=46.93, cub=18.81),
    source="a re-run by Kim et al. 2023 (BoostLU), arXiv 2304.01804, whose rate of 1e-5 is taken here",
)
