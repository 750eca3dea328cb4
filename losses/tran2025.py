"""AEVLP: Tran et al., "More Reliable Pseudo-labels, Better Performance: A Generalized Approach to Single Positive
Multi-label Learning", ICCV 2025.

GR, with terms for pseudo-labels that count less if the model's own probability contradicts them.
"""

import torch

from losses.base import Method
from losses.chen2024 import OFFSET, Q3, SHARED, SLOPE, GeneralizedRobust
from losses.terms import BATCH_16, EXPECTED_POSITIVES, HEAD_RATE, expected_positive_penalty, nlls
from pseudo_labels.rules import DAMP_RULE
from util.errors import UserError
from util.settings import Setting, flag


class GeneralizedPseudoLabelRobust(GeneralizedRobust):
    """GPR (Tran et al. 2025, section 3): GR with its schedules, terms for pseudo-labels, and EPR's regulariser."""

    def per_label(self, logits, observed, pseudo, *, rho, min_weight, max_weight, q2, q3, eps):
        nll_pos, nll_neg = nlls(logits, eps)
        _, v = self.weights(logits)
        pseudo_pos = (1 - v).clamp(min_weight, max_weight) * (rho * nll_pos + (1 - rho) * nll_neg)
        guessed = torch.where(pseudo == 1, pseudo_pos, v * nll_neg)
        others = super().per_label(logits, observed, q2=q2, q3=q3, eps=eps)
        return torch.where((observed == 0) & (pseudo != 0), guessed, others)

    def regulariser(self, logits, *, reg, expected_positives):
        return reg * expected_positive_penalty(logits, expected_positives=expected_positives)


def check_bounds(*, min_weight: float, max_weight: float) -> None:
    if min_weight > max_weight:
        raise UserError(f"{flag('min_weight')} {min_weight} must not be above {flag('max_weight')} {max_weight}")


GPR = Method(
    summary="AEVLP: gr, with terms for pseudo-labels that count less if the model contradicts them",
    loss=GeneralizedPseudoLabelRobust,
    equation="as gr; pseudo-label +1: clamp(1-V, min_weight, max_weight) (rho nll(p) + (1-rho) nll(1-p)); -1: "
    "V nll(1-p); the mean is increased by reg R, R as in epr",
    paper="Tran et al. 2025, arXiv 2508.20381",
    pseudo_labels=DAMP_RULE,
    settings=dict(
        rho=Setting(0.9, "share of a positive pseudo-label's weight that goes to the positive loss", "[0.5, 1]"),
        min_weight=Setting(0.4, "least weight of a positive pseudo-label", "[0, 1]", coco=0.5, nuswide=0.5, cub=0.2),
        max_weight=Setting(0.7, "largest weight of a positive pseudo-label", "[0, 1]", cub=0.8),
        reg=Setting(0.05, "weight of the regulariser R", "[0, inf)", "[0.001, 1]", coco=1e-3, nuswide=1e-3, cub=1e-2),
        expected_positives=EXPECTED_POSITIVES,
        slope=Setting(2.0, SLOPE, "", "[1, 10]", coco=10.0, nuswide=10.0, cub=10.0),
        offset=Setting(-2.0, OFFSET, coco=-8.0, nuswide=-8.0, cub=-8.0),
        q3=Setting(1.0, Q3, "(0, inf)", cub=1.5),
        **SHARED,
    ),
    recipe=dict(
        epochs={"*": 8, "digits": 7, "nuswide": 10, "cub": 10},
        batch_size=BATCH_16,
        lr=dict(cub=1e-5),
        head_rate=HEAD_RATE,
        teacher={"*": "ViT-B-16-quickgelu", "digits": None},  # None: the data set's own
        prompt={"*": ("a photo of a {}.",), "digits": None},
        teacher_views={"*": "tiles"},
        teacher_tiles={"*": 4, "cub": 5, "digits": 2},  # digits: smaller tiles cut them
    ),
    check=check_bounds,
    published=dict(pascal=90.46, coco=73.54, nuswide=50.70, cub=24.89),
)
