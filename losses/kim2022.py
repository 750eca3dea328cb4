"""Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022.

Every unknown label is assumed negative. Those with the largest losses of a batch are taken for positives: they are left
out (LL_R), count as positive in this step (LL_Ct), or count as positive from now on (LL_Cp).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from losses.terms import FINE_TUNED
from util import distributed
from util.settings import Setting

PAPER = "Kim et al. 2022, arXiv 2206.03740"
RERUN = "a re-run by Kim et al. 2023 (BoostLU), arXiv 2304.01804"
DELTA = "per cent of a batch's labels that"
RECIPE = dict(
    lr=dict(pascal=5e-3, cub=7.5e-5),
    optimizer=dict(pascal="sgd"),
    weight_decay=dict(pascal=1e-3),
    head_rate=FINE_TUNED,
)


def an(logits: Tensor, observed: Tensor) -> Tensor:
    """Assume negative, without the eps of the other papers.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    returns   (B, L), not reduced
    """
    return F.softplus(torch.where(observed == 1, -logits, logits))


def excess_loss(logits: Tensor, observed: Tensor, share: Tensor) -> Tensor:
    """By how much the loss of an unknown label exceeds the k-th largest one of the batch, k = ceil(share x B x L).

    With several processes each gives its part of the batch, and the k-th largest is that of the whole.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    share     () float in [0, 1]
    returns   (B, L), without a gradient; -inf where a label is observed, and everywhere where k is 0
    """
    losses = F.softplus(logits.detach()).masked_fill(observed != 0, -torch.inf)
    descending = distributed.gather(losses).flatten().sort(descending=True).values
    k = torch.ceil(share * len(descending)).long().clamp(max=len(descending))
    largest = F.pad(descending, (1, 0), value=torch.inf)
    return losses - largest.index_select(0, k[None])  # largest[k] would wait for the device


class LargeLoss(Loss):
    """The share of labels whose losses are large grows by `delta` per cent after each epoch, from 0 in the first."""

    def __init__(self, observed: Tensor, *, delta: float) -> None:
        super().__init__()
        self.delta = delta
        self.register_buffer("share", torch.zeros((), dtype=torch.float64), persistent=False)

    def start_epoch(self, epoch: int) -> None:
        self.share.fill_((epoch - 1) * self.delta / 100)


class Rejection(LargeLoss):
    """LL_R: large losses are left out."""

    def per_label(self, logits: Tensor, observed: Tensor) -> Tensor:
        large = excess_loss(logits, observed, self.share) >= 0
        return torch.where(large, 0.0, an(logits, observed))


class TemporaryCorrection(LargeLoss):
    """LL_Ct: a label with a large loss counts as positive, this once."""

    def per_label(self, logits: Tensor, observed: Tensor) -> Tensor:
        large = excess_loss(logits, observed, self.share) >= 0
        return torch.where(large, F.softplus(-logits), an(logits, observed))


class PermanentCorrection(LargeLoss):
    """LL_Cp: as LL_Ct, and labels whose losses exceed the k-th largest count as observed positives from then on. The
    share is `delta` per cent in every epoch but the first.

    State: `flipped` (N, L) bool.
    """

    def __init__(self, observed: Tensor, *, delta: float) -> None:
        super().__init__(observed, delta=delta)
        self.register_buffer("flipped", torch.zeros_like(observed, dtype=torch.bool))

    def start_epoch(self, epoch: int) -> None:
        self.share.fill_((epoch > 1) * self.delta / 100)

    def per_label(self, logits: Tensor, observed: Tensor, index: Tensor) -> Tensor:
        flipped = self.flipped[index]
        observed = observed.masked_fill(flipped, 1)
        excess = excess_loss(logits, observed, self.share)
        self.flipped.index_copy_(0, distributed.gather(index), distributed.gather(flipped | (excess > 0)))
        return torch.where(excess >= 0, F.softplus(-logits), an(logits, observed))


LL_R = Method(
    summary="assume negative; the unknown labels with the largest losses are left out, more after each epoch",
    loss=Rejection,
    equation="AN: observed positive: -log p; other: -log(1-p); unknown and not below the k-th largest of the batch: 0; "
    "k = delta (epoch - 1) per cent",
    paper=PAPER,
    settings=dict(
        delta=Setting(0.2, f"{DELTA} are left out more after each epoch", "[0, 100]", coco=0.4, nuswide=0.4, cub=0.4)
    ),
    recipe=RECIPE,
    published=dict(pascal=89.2, coco=71.0, nuswide=47.4, cub=19.5),
    note="with --head boostlu, by Kim et al. 2023: pascal 89.29, coco 72.89, nuswide 49.59, cub 19.80",
)

LL_Ct = Method(
    summary="assume negative; the unknown labels with the largest losses count as positive, more after each epoch",
    loss=TemporaryCorrection,
    equation="as LL_R, but -log p where LL_R has 0",
    paper=PAPER,
    settings=dict(delta=Setting(0.2, f"{DELTA} are corrected more after each epoch", "[0, 100]", cub=0.4)),
    recipe=RECIPE,
    published=dict(pascal=87.79, coco=70.29, nuswide=48.08, cub=19.06),
    source=RERUN,
    note="there with --head boostlu: pascal 88.61, coco 71.78, nuswide 48.37, cub 19.25",
)

LL_Cp = Method(
    summary="assume negative; the unknown labels with the largest losses become positive for good",
    loss=PermanentCorrection,
    equation="as LL_Ct with k = delta per cent from the second epoch on; a label above the k-th largest stays positive",
    paper=PAPER,
    settings=dict(delta=Setting(0.1, f"{DELTA} become positive in a step", "[0, 100]", coco=0.2, nuswide=0.2, cub=0.2)),
    recipe=RECIPE,
    published=dict(pascal=87.44, coco=70.27, nuswide=47.92, cub=19.21),
    source=RERUN,
    note="there with --head boostlu: pascal 87.81, coco 71.41, nuswide 48.61, cub 19.34",
)
