"""Chen et al., "Boosting Single Positive Multi-label Classification with Generalized Robust Loss", IJCAI 2024.

An unknown label costs a mixture of a robust positive and a robust negative loss. Its own probability decides the
mixture and the weight, more strictly as training proceeds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from losses.terms import HEAD_RATE, nlls
from util.settings import Setting

FIRST = dict(slope=0.0, offset=-2.0, mu=0.5, sigma=2.0)  # first values of the schedules; the settings are the last
SLOPE = "last value of w in K = sigmoid(w p + b), by which an unknown label counts as positive"
OFFSET = "last value of b in K = sigmoid(w p + b)"
Q3 = "robustness of an unknown label's negative loss (1 - (1-p)^q) / q: nll(1-p) for q towards 0, p at 1"
Q2 = "robustness of an unknown label's positive loss (1 - p^q) / q: nll(p) for q towards 0, 1-p at 1"
SHARED = dict(
    mu=Setting(0.8, "last value of mu, the probability at which an unknown label weighs most", "[0, 1]", "[0.4, 1]"),
    sigma=Setting(0.5, "last value of sigma, the width of that weight", "(0, inf)", "[0.2, 2]"),
    q2=Setting(0.01, Q2, "(0, inf)"),
    eps=Setting(1e-7, "added to p inside every logarithm, as in the published code", "(0, 1)"),
)


def robust(logits: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q, elementwise; its gradient is finite even if p is 0."""
    return -torch.expm1(q * F.logsigmoid(logits)) / q


class GeneralizedRobust(Loss):
    """GR (Chen et al. 2024, section 3). Over E epochs slope and offset approach their last values, mu and sigma reach
    them, in equal steps.
    """

    def __init__(self, observed: Tensor, *, slope: float, offset: float, mu: float, sigma: float, epochs: int) -> None:
        super().__init__()
        self.last, self.epochs = dict(slope=slope, offset=offset, mu=mu, sigma=sigma), epochs
        self.slope, self.offset, self.mu, self.sigma = FIRST.values()

    def start_epoch(self, epoch: int) -> None:
        for name, first in FIRST.items():
            steps = epoch - 1 if name in ("slope", "offset") else epoch
            setattr(self, name, first + (self.last[name] - first) * steps / self.epochs)

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """K = sigmoid(w p + b), by which an unknown label counts as positive, and its weight V = exp(-(p - mu)^2 /
        (2 sigma^2)); (B, L) each, without a gradient."""
        p = torch.sigmoid(logits.detach())
        return torch.sigmoid(self.slope * p + self.offset), torch.exp(-((p - self.mu) ** 2) / (2 * self.sigma**2))

    def per_label(self, logits, observed, *, q2, q3, eps):
        nll_pos, nll_neg = nlls(logits, eps)
        k, v = self.weights(logits)
        unknown = v * (k * robust(logits, q2) + (1 - k) * robust(-logits, q3))
        return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, unknown))


GR = Method(
    summary="an unknown label costs a noise-robust mixture of its positive and negative loss, by its own probability",
    loss=GeneralizedRobust,
    equation="observed: nll(p) or nll(1-p); unknown: V (K (1 - p^q2) / q2 + (1-K) (1 - (1-p)^q3) / q3), with "
    "K = sigmoid(w p + b) and V = exp(-(p - mu)^2 / (2 sigma^2)) without a gradient, w, b, mu, sigma on schedules; "
    "nll with eps 1e-7",
    paper="Chen et al. 2024, arXiv 2405.03501",
    settings=dict(
        slope=Setting(2.0, SLOPE, "", "[1, 10]"),
        offset=Setting(-2.0, OFFSET),
        q3=Setting(1.0, Q3, "(0, inf)"),
        **SHARED,
    ),
    recipe=dict(epochs={"*": 8, "digits": 7}, head_rate=HEAD_RATE),  # digits: as many as for every other method
    published=dict(pascal=89.83, coco=73.17, nuswide=49.08, cub=21.64),
)
