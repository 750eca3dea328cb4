"""Zhou et al., "Acknowledging the Unknown for Multi-Label Learning with Single Positive Labels", ECCV 2022.

Unknown labels are treated as unknown: their entropy is maximised (EM), and some become soft negatives (APL).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from losses.base import Loss, Method
from losses.terms import BATCH_16, EPS, entropy, nlls
from util.errors import UserError
from util.settings import Setting, flag

PAPER = "Zhou et al. 2022, arXiv 2203.16219"
ALPHA = Setting(
    0.2, "weight of the entropy of unknown labels", "[0, inf)", "[0.01, 1]", coco=0.1, nuswide=0.1, cub=0.01
)
CHUNK = 1 << 24  # entries sorted at a time: a sort takes four times the memory of what it sorts


def em(logits, observed, *, alpha, eps):
    """Entropy maximisation (Zhou et al. 2022, section 3.1)."""
    nll_pos, nll_neg = nlls(logits, eps)
    unknown = -alpha * entropy(logits, nll_pos, nll_neg)
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, unknown))  # differs: -1 is refused


def lowest_become_soft(probs: Tensor, unlabelled: Tensor, counts: Tensor) -> Tensor:
    """(N, L) bool: for each class l, the counts[l] unlabelled images with the lowest p (all that are left, if fewer).

    probs       (N, L) float
    unlabelled  (N, L) bool
    counts      (L,) int
    """
    chosen = torch.zeros_like(unlabelled)
    ranks = torch.arange(len(probs), device=probs.device)[:, None]
    for columns in torch.arange(probs.shape[1]).split(max(1, CHUNK // len(probs))):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        candidates = probs[:, part].masked_fill(~unlabelled[:, part], float("inf"))
        order = candidates.T.contiguous().argsort(dim=1, stable=True).T  # contiguous rows: half the time on a CPU
        chosen[:, part].scatter_(0, order, ranks < counts[part])
    return chosen & unlabelled


class AsymmetricPseudoLabels(Loss):
    """EM with soft negatives, whose target is the p they had (Zhou et al. 2022, section 3.2).

    After epoch `warmup_epochs` and each later one but the last, the least probable unlabelled images of a class become
    soft negatives: the same number each time, so that in the last epoch the share `neg_proportion` is labelled.

    State: `soft` (N, L) float, the target in [0, 1]; -1 = no soft negative.
    """

    def __init__(self, observed: Tensor, *, warmup_epochs: int, neg_proportion: float, epochs: int) -> None:
        super().__init__()
        self.warmup_epochs, self.epochs = warmup_epochs, epochs
        unknown = (observed == 0).sum(dim=0)
        counts = [int(neg_proportion * n / (epochs - warmup_epochs)) for n in unknown.tolist()]  # Python's rounding
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.register_buffer("unknown", observed == 0, persistent=False)
        self.register_buffer("soft", torch.full(observed.shape, -1.0))

    def per_label(self, logits, observed, index, *, alpha, beta, eps):
        soft = self.soft[index].to(logits.dtype)
        nll_pos, nll_neg = nlls(logits, eps)
        soft_neg = beta * (soft * nll_pos + (1 - soft) * nll_neg)
        return torch.where((observed == 0) & (soft >= 0), soft_neg, em(logits, observed, alpha=alpha, eps=eps))

    def end_epoch(self, epoch: int, predict: Callable[[], Tensor]) -> None:
        if not self.warmup_epochs <= epoch < self.epochs:  # differs: published after the last too
            return
        probs = predict()  # differs: published from randomly flipped images
        chosen = lowest_become_soft(probs, self.unknown & (self.soft < 0), self.counts)
        torch.where(chosen, probs.to(self.soft.dtype), self.soft, out=self.soft)


def check_warmup(*, warmup_epochs: int, epochs: int) -> None:
    if not warmup_epochs < epochs:
        raise UserError(
            f"{flag('warmup_epochs')} {warmup_epochs} must be below --epochs {epochs}, or no image is ever labelled"
        )


EM = Method(
    summary="entropy maximisation: unknown labels are pushed towards p = 1/2",
    loss=em,
    equation="observed: nll(p) or nll(1-p); unknown: -alpha H(p)",
    paper=PAPER,
    settings=dict(alpha=ALPHA, eps=EPS),
    recipe=dict(batch_size=BATCH_16),
    published=dict(pascal=89.09, coco=70.70, nuswide=47.15, cub=20.85),
)

EM_APL = Method(
    summary="EM, and the least probable unknown labels become soft negatives, more after each epoch",
    loss=AsymmetricPseudoLabels,
    equation="as EM; soft negative of target t: beta (t nll(p) + (1-t) nll(1-p))",
    paper=PAPER,
    settings=dict(
        alpha=ALPHA,
        beta=Setting(0.02, "weight of soft negatives", "[0, inf)", "[0.005, 1]", coco=0.9, nuswide=0.2, cub=0.4),
        warmup_epochs=Setting(
            5, "first epoch (from 1) after which labels are made", "[1, inf)", (1, 3, 5), nuswide=4, cub=3
        ),
        neg_proportion=Setting(0.9, "share of a class's unlabelled images that are labelled in all", "[0, 1]"),
        eps=EPS,
    ),
    recipe=dict(batch_size=BATCH_16),
    check=check_warmup,
    published=dict(pascal=89.19, coco=70.87, nuswide=47.59, cub=21.84),
    note="training stops at the first validation that does not improve",
)
