"""Chen et al., "Boosting Single Positive Multi-label Classification with Generalized Robust Loss", IJCAI 2024.

An unknown label costs a mixture of a robust positive and a robust negative loss. How positive it is taken for, and how
much it counts, follows from its own probability, more strictly as training goes on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from losses.terms import FINE_TUNED, nlls
from util.settings import Setting

PAPER = "Chen et al. 2024, arXiv 2405.03501"
FIRST = dict(slope=0.0, offset=-2.0, mu=0.5, sigma=2.0)  # where the schedules begin; the settings are where they end
SLOPE = "last value of w in K = sigmoid(w p + b), by which an unknown label counts as positive"
OFFSET = "last value of b in K = sigmoid(w p + b)"
Q3 = "robustness of an unknown label's negative loss (1 - (1-p)^q) / q: nll(1-p) for q towards 0, p at 1"
MU = Setting(0.8, "last value of mu, the probability at which an unknown label weighs most", "[0, 1]")
SIGMA = Setting(0.5, "last value of sigma, the width of that weight", "(0, inf)")
Q2 = Setting(
    0.01, "robustness of an unknown label's positive loss (1 - p^q) / q: nll(p) for q towards 0, 1-p at 1", "(0, inf)"
)
EPS = Setting(1e-7, "added to p inside every logarithm, as in the published code", "(0, 1)")
RECIPE = dict(epochs={"*": 8, "digits": 7}, head_rate=FINE_TUNED)  # digits: as long as every other method


def robust(logits: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q, elementwise; its gradient is finite where p is 0."""
    return -torch.expm1(q * F.logsigmoid(logits)) / q


def gr(logits: Tensor, observed: Tensor, k: Tensor, v: Tensor, *, q2: float, q3: float, eps: float) -> Tensor:
    """Generalized robust loss (Chen et al. 2024, section 3).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    k         (B, L) in [0, 1]: how far an unknown label counts as positive
    v         (B, L) in [0, 1]: how much it counts
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    unknown = v * (k * robust(logits, q2) + (1 - k) * robust(-logits, q3))
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, unknown))


class GeneralizedRobust(Loss):
    """GR with its schedules: in E equal steps slope and offset come near their last values, mu and sigma reach them.

    State: `slope`, `offset`, `mu`, `sigma`, () float64 each, that of the epoch.
    """

    def __init__(
        self,
        observed: Tensor,
        *,
        slope: float,
        offset: float,
        mu: float,
        sigma: float,
        q2: float,
        q3: float,
        eps: float,
        epochs: int,
    ) -> None:
        super().__init__()
        self.last = dict(slope=slope, offset=offset, mu=mu, sigma=sigma)
        self.q2, self.q3, self.eps, self.epochs = q2, q3, eps, epochs
        for name, value in FIRST.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        for name, first in FIRST.items():
            steps = epoch - 1 if name in ("slope", "offset") else epoch
            getattr(self, name).fill_(first + (self.last[name] - first) * steps / self.epochs)

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """K = sigmoid(w p + b) and V = exp(-(p - mu)^2 / (2 sigma^2)), (B, L) each, without a gradient."""
        p = torch.sigmoid(logits.detach())
        return torch.sigmoid(self.slope * p + self.offset), torch.exp(-((p - self.mu) ** 2) / (2 * self.sigma**2))

    def per_label(self, logits: Tensor, observed: Tensor) -> Tensor:
        return gr(logits, observed, *self.weights(logits), q2=self.q2, q3=self.q3, eps=self.eps)


GR = Method(
    summary="an unknown label costs a noise-robust mixture of its positive and negative loss, by its own probability",
    loss=GeneralizedRobust,
    equation="observed: nll(p) or nll(1-p); unknown: V (K (1 - p^q2) / q2 + (1-K) (1 - (1-p)^q3) / q3), with "
    "K = sigmoid(w p + b) and V = exp(-(p - mu)^2 / (2 sigma^2)) without a gradient, w, b, mu, sigma on schedules; "
    "nll with eps 1e-7",
    paper=PAPER,
    settings=dict(
        slope=Setting(2.0, SLOPE),
        offset=Setting(-2.0, OFFSET),
        mu=MU,
        sigma=SIGMA,
        q2=Q2,
        q3=Setting(1.0, Q3, "(0, inf)"),
        eps=EPS,
    ),
    recipe=RECIPE,
    published=dict(pascal=89.83, coco=73.17, nuswide=49.08, cub=21.64),
)
