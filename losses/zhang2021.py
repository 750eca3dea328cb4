"""Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", 2021: Hill and SPLC.

Both assume unknown labels negative, and let those count less, or change sides, of which the model is sure that they are
positive.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from util.settings import Setting

PAPER = "Zhang et al. 2021, arXiv 2112.07368"
MARGIN = Setting(1.0, "by which the logits of observed positives are lowered", "[0, inf)")


def hill(logits: Tensor, observed: Tensor, *, margin: float, gamma: float, hill_lambda: float) -> Tensor:
    """Hill loss (Zhang et al. 2021, section 3.2): a negative's loss falls again where p comes near 1.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    returns   (B, L), not reduced
    """
    p, lowered = torch.sigmoid(logits), logits - margin
    return torch.where(
        observed == 1, torch.sigmoid(-lowered) ** gamma * F.softplus(-lowered), (hill_lambda - p) * p.square()
    )


def splc(logits: Tensor, observed: Tensor, corrects: Tensor, *, margin: float, gamma: float, tau: float) -> Tensor:
    """Self-paced loss correction (Zhang et al. 2021, section 3.3), with the focal loss.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    corrects  () bool: unknown labels with p > tau count as positive
    returns   (B, L), not reduced
    """
    logits = torch.where(observed == 1, logits - margin, logits)
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    positive = (observed == 1) | (corrects & (observed == 0) & (p > tau))
    return torch.where(positive, q**gamma * F.softplus(-logits), p**gamma * F.softplus(logits))


class SelfPacedLossCorrection(Loss):
    """Corrects from the epoch after `warmup_epochs` on."""

    def __init__(self, observed: Tensor, *, margin: float, gamma: float, tau: float, warmup_epochs: int) -> None:
        super().__init__()
        self.margin, self.gamma, self.tau, self.warmup_epochs = margin, gamma, tau, warmup_epochs
        self.register_buffer("corrects", torch.tensor(False), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        self.corrects.fill_(epoch > self.warmup_epochs)

    def per_label(self, logits: Tensor, observed: Tensor) -> Tensor:
        return splc(logits, observed, self.corrects, margin=self.margin, gamma=self.gamma, tau=self.tau)


HILL = Method(
    summary="assume negative, with a loss that falls again for unknown labels that look positive",
    loss=hill,
    equation="observed positive: -(1-p')^gamma log p', p' = sigmoid(logit - margin); other: (lambda - p) p^2",
    paper=PAPER,
    settings=dict(
        margin=MARGIN,
        gamma=Setting(2.0, "focus on positives: the power of 1-p", "[0, inf)"),
        hill_lambda=Setting(
            1.5, "lambda of the negative loss (lambda - p) p^2, which falls above 2/3 lambda", "[1, inf)"
        ),
    ),
)

SPLC = Method(
    summary="assume negative, and unknown labels that look positive count as positive after the first epoch",
    loss=SelfPacedLossCorrection,
    equation="observed positive: -(1-p')^gamma log p', p' = sigmoid(logit - margin); unknown with p > tau, after the "
    "warm-up: -(1-p)^gamma log p; other: -p^gamma log(1-p)",
    paper=PAPER,
    settings=dict(
        margin=MARGIN,
        gamma=Setting(2.0, "focus: the power of a label's error", "[0, inf)"),
        tau=Setting(0.6, "probability above which an unknown label counts as positive", "(0, 1)"),
        warmup_epochs=Setting(1, "epochs before unknown labels may count as positive", "[0, inf)"),
    ),
)
