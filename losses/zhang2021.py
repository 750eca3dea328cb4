"""Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", 2021: Hill and SPLC.

Both assume unknown labels negative. Confidently predicted unknown labels are down-weighted (Hill) or relabelled (SPLC).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from util.settings import Setting

PAPER = "Zhang et al. 2021, arXiv 2112.07368"
MARGIN = Setting(1.0, "by which the logits of observed positives are lowered", "[0, inf)", "[0, 2]")


def hill(logits, observed, *, margin, gamma, hill_lambda):
    """Hill loss (Zhang et al. 2021, section 3.2): a negative's loss falls again if p comes near 1."""
    p, lowered = torch.sigmoid(logits), logits - margin
    positive = torch.sigmoid(-lowered) ** gamma * F.softplus(-lowered)
    return torch.where(observed == 1, positive, (hill_lambda - p) * p.square())


class SelfPacedLossCorrection(Loss):
    """SPLC with the focal loss (Zhang et al. 2021, section 3.3): after `warmup_epochs`, unknown labels with p > tau
    count as positive."""

    def __init__(self, observed: Tensor, *, warmup_epochs: int) -> None:
        super().__init__()
        self.warmup_epochs, self.corrects = warmup_epochs, False

    def start_epoch(self, epoch: int) -> None:
        self.corrects = epoch > self.warmup_epochs

    def per_label(self, logits, observed, *, margin, gamma, tau):
        logits = torch.where(observed == 1, logits - margin, logits)
        p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
        positive = (observed == 1) | (self.corrects & (observed == 0) & (p > tau))
        return torch.where(positive, q**gamma * F.softplus(-logits), p**gamma * F.softplus(logits))


HILL = Method(
    summary="assume negative, with a loss that falls again for unknown labels that look positive",
    loss=hill,
    equation="observed positive: -(1-p')^gamma log p', p' = sigmoid(logit - margin); other: (lambda - p) p^2",
    paper=PAPER,
    settings=dict(
        margin=MARGIN,
        gamma=Setting(2.0, "focus on positives: the power of 1-p", "[0, inf)", "[0, 4]"),
        hill_lambda=Setting(
            1.5, "lambda of the negative loss (lambda - p) p^2, which falls above 2/3 lambda", "[1, inf)", "[1, 3]"
        ),
    ),
)

SPLC = Method(
    summary="assume negative; unknown labels that look positive count as positive after the first epoch",
    loss=SelfPacedLossCorrection,
    equation="observed positive: -(1-p')^gamma log p', p' = sigmoid(logit - margin); unknown with p > tau, after the "
    "warm-up: -(1-p)^gamma log p; other: -p^gamma log(1-p)",
    paper=PAPER,
    settings=dict(
        margin=MARGIN,
        gamma=Setting(2.0, "focus: the power of a label's error", "[0, inf)", "[0, 4]"),
        tau=Setting(0.6, "probability above which an unknown label counts as positive", "(0, 1)", "[0.3, 0.95]"),
        warmup_epochs=Setting(1, "epochs before unknown labels may count as positive", "[0, inf)", (1, 2, 4)),
    ),
)
