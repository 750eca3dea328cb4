"""AEVLP: Tran et al., "More Reliable Pseudo-labels, Better Performance: A Generalized Approach to Single Positive
Multi-label Learning", ICCV 2025.

GR, with terms for pseudo-labels that count less the more the model's own probability speaks against them.
"""

import torch
from torch import Tensor

from losses.base import Method
from losses.chen2024 import EPS, MU, OFFSET, Q2, Q3, RECIPE, SIGMA, SLOPE, GeneralizedRobust, gr
from losses.terms import EXPECTED_POSITIVES, expected_positive_penalty, nlls
from pseudo_labels import DAMP_RULE
from util.errors import UserError
from util.settings import Setting, flag

PUBLISHED = dict(pascal=90.46, coco=73.54, nuswide=50.70, cub=24.89)


def gpr(
    logits: Tensor,
    observed: Tensor,
    pseudo: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rho: float,
    min_weight: float,
    max_weight: float,
    q2: float,
    q3: float,
    eps: float,
) -> Tensor:
    """Generalized pseudo-label robust loss without its regulariser (Tran et al. 2025, section 3).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    pseudo    (B, L) in {-1, 0, +1}; 0 = the teacher abstains; read only where observed is 0
    k, v      (B, L) in [0, 1], as in `gr`
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    pseudo_pos = (1 - v).clamp(min_weight, max_weight) * (rho * nll_pos + (1 - rho) * nll_neg)
    guessed = torch.where(pseudo == 1, pseudo_pos, v * nll_neg)
    others = gr(logits, observed, k, v, q2=q2, q3=q3, eps=eps)
    return torch.where((observed == 0) & (pseudo != 0), guessed, others)


class GeneralizedPseudoLabelRobust(GeneralizedRobust):
    """GPR with GR's schedules and EPR's regulariser."""

    def __init__(
        self,
        observed: Tensor,
        *,
        rho: float,
        min_weight: float,
        max_weight: float,
        reg: float,
        expected_positives: float,
        **settings: float,
    ) -> None:
        super().__init__(observed, **settings)
        self.rho, self.min_weight, self.max_weight = rho, min_weight, max_weight
        self.reg, self.expected_positives = reg, expected_positives

    def per_label(self, logits: Tensor, observed: Tensor, pseudo: Tensor) -> Tensor:
        return gpr(
            logits, observed, pseudo, *self.weights(logits),
            rho=self.rho, min_weight=self.min_weight, max_weight=self.max_weight, q2=self.q2, q3=self.q3, eps=self.eps,
        )  # fmt: skip

    def regulariser(self, logits: Tensor) -> Tensor:
        return self.reg * expected_positive_penalty(logits, self.expected_positives)


def check_bounds(*, min_weight: float, max_weight: float) -> None:
    if min_weight > max_weight:
        raise UserError(f"{flag('min_weight')} {min_weight} must not be above {flag('max_weight')} {max_weight}")


GPR = Method(
    summary="AEVLP: gr, with terms for pseudo-labels that count less where the model contradicts them",
    loss=GeneralizedPseudoLabelRobust,
    equation="as gr; pseudo-label +1: clamp(1-V, min_weight, max_weight) (rho nll(p) + (1-rho) nll(1-p)); -1: "
    "V nll(1-p); to the mean is added reg R, R as in epr",
    paper="Tran et al. 2025, arXiv 2508.20381",
    pseudo_labels=DAMP_RULE,
    settings=dict(
        rho=Setting(0.9, "share of a positive pseudo-label's weight that goes to the positive loss", "[0.5, 1]"),
        min_weight=Setting(0.4, "least weight of a positive pseudo-label", "[0, 1]", coco=0.5, nuswide=0.5, cub=0.2),
        max_weight=Setting(0.7, "largest weight of a positive pseudo-label", "[0, 1]", cub=0.8),
        reg=Setting(0.05, "weight of the regulariser R", "[0, inf)", coco=1e-3, nuswide=1e-3, cub=1e-2),
        expected_positives=EXPECTED_POSITIVES,
        slope=Setting(2.0, SLOPE, coco=10.0, nuswide=10.0, cub=10.0),
        offset=Setting(-2.0, OFFSET, coco=-8.0, nuswide=-8.0, cub=-8.0),
        mu=MU,
        sigma=SIGMA,
        q2=Q2,
        q3=Setting(1.0, Q3, "(0, inf)", cub=1.5),
        eps=EPS,
    ),
    recipe=RECIPE
    | dict(
        teacher={"*": "ViT-B-16-quickgelu", "digits": None},  # None: the data set's own
        prompt={"*": ("a photo of a {}.",), "digits": None},
        teacher_views={"*": "tiles"},
        teacher_tiles={"*": 4, "cub": 5, "digits": 2},  # digits: smaller tiles cut them
    ),
    check=check_bounds,
    published=PUBLISHED,
)
