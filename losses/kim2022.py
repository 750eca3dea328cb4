"""Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022.

Every unknown label is assumed negative. The unknown labels with the largest losses of a batch are treated as positives:
they are left out (LL_R), count as positive in this step (LL_Ct), or count as positive from now on (LL_Cp).
"""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.base import Loss, Method
from losses.terms import HEAD_RATE
from util import distributed
from util.settings import Setting

PAPER = "Kim et al. 2022, arXiv 2206.03740"
RERUN = "a re-run by Kim et al. 2023 (BoostLU), arXiv 2304.01804, whose recipe is taken here: Adam, rate 1e-5"
DELTA, RANGES = "per cent of a batch's labels that", ("[0, 100]", "[0.02, 2]")
RECIPE = dict(batch_size={"*": 16, "digits": None}, head_rate=HEAD_RATE)  # None: the data set's own value
SGD = dict(lr=dict(pascal=5e-3, cub=7.5e-5), optimizer=dict(pascal="sgd"), weight_decay=dict(pascal=1e-3))


def an(logits, observed):
    """Assume negative, without the eps of the other papers."""
    return F.softplus(torch.where(observed == 1, -logits, logits))


def is_large(logits: Tensor, observed: Tensor, share: float) -> Tensor:
    """(B, L) bool: whether a label is unknown and its loss at least the k-th largest one of the batch's unknown labels,
    k = ceil(share x B x L); none if k is 0. With several processes, the k-th largest of the whole batch counts."""
    losses = F.softplus(logits.detach()).masked_fill(observed != 0, -torch.inf)
    descending = distributed.gather(losses).flatten().sort(descending=True).values
    k = min(ceil(share * len(descending)), len(descending))
    return (observed == 0) & (losses >= (descending[k - 1] if k else torch.inf))


class LargeLoss(Loss):
    """The share of labels with large losses grows by `delta` per cent after each epoch, from 0 in the first."""

    def __init__(self, observed: Tensor, *, delta: float) -> None:
        super().__init__()
        self.delta, self.share = delta, 0.0

    def start_epoch(self, epoch: int) -> None:
        self.share = (epoch - 1) * self.delta / 100


class Rejection(LargeLoss):
    """LL_R: labels with large losses are left out."""

    def per_label(self, logits, observed):
        return torch.where(is_large(logits, observed, self.share), 0.0, an(logits, observed))


class TemporaryCorrection(LargeLoss):
    """LL_Ct: a label with a large loss counts as positive in this step."""

    def per_label(self, logits, observed):
        return torch.where(is_large(logits, observed, self.share), F.softplus(-logits), an(logits, observed))


class PermanentCorrection(LargeLoss):
    """LL_Cp: a label with a large loss counts as an observed positive from this step on. The share is `delta` per cent
    in every epoch but the first.

    State: `flipped` (N, L) bool.
    """

    def __init__(self, observed: Tensor, *, delta: float) -> None:
        super().__init__(observed, delta=delta)
        self.register_buffer("flipped", torch.zeros_like(observed, dtype=torch.bool))

    def start_epoch(self, epoch: int) -> None:
        self.share = (epoch > 1) * self.delta / 100

    def per_label(self, logits, observed, index):
        observed = observed.masked_fill(self.flipped[index], 1)
        large = is_large(logits, observed, self.share)
        # differs: the code of 2022 flips only losses above the k-th largest, so none if k is 1
        flipped = distributed.gather(self.flipped[index] | large)
        self.flipped.index_copy_(0, distributed.gather(index), flipped)
        return torch.where(large, F.softplus(-logits), an(logits, observed))


LL_R = Method(
    summary="assume negative; the unknown labels with the largest losses are left out, more after each epoch",
    loss=Rejection,
    equation="observed positive: -log p; other: -log(1-p); unknown and among the k largest of the batch: 0; "
    "k = delta (epoch - 1) per cent of its labels",
    paper=PAPER,
    settings=dict(
        delta=Setting(
            0.2, f"{DELTA} are left out in addition after each epoch", *RANGES, coco=0.4, nuswide=0.4, cub=0.4
        )
    ),
    recipe=RECIPE | SGD,
    published=dict(pascal=89.2, coco=71.0, nuswide=47.4, cub=19.5),
    note="by Kim et al. 2023 with Adam, rate 1e-5 and --delta 0.5: pascal 88.27, coco 70.70, nuswide 48.76, cub 19.56; "
    "with --head boostlu: pascal 89.29, coco 72.89, nuswide 49.59, cub 19.80",
)

LL_Ct = Method(
    summary="assume negative; the unknown labels with the largest losses count as positive, more after each epoch",
    loss=TemporaryCorrection,
    equation="as LL_R, but -log p in place of 0",
    paper=PAPER,
    settings=dict(delta=Setting(0.2, f"{DELTA} are corrected in addition after each epoch", *RANGES)),
    recipe=RECIPE | dict(lr=dict(cub=1e-5)),
    published=dict(pascal=87.79, coco=70.29, nuswide=48.08, cub=19.06),
    source=RERUN,
    note="with --head boostlu: pascal 88.61, coco 71.78, nuswide 48.37, cub 19.25",
)

LL_Cp = Method(
    summary="assume negative; the unknown labels with the largest losses become positive permanently",
    loss=PermanentCorrection,
    equation="as LL_Ct with k = delta per cent from the second epoch on; a corrected label stays positive",
    paper=PAPER,
    settings=dict(delta=Setting(0.1, f"{DELTA} become positive in a step", *RANGES)),
    recipe=RECIPE | dict(lr=dict(cub=1e-5)),
    published=dict(pascal=87.44, coco=70.27, nuswide=47.92, cub=19.21),
    source=RERUN,
    note="with --head boostlu: pascal 87.81, coco 71.41, nuswide 48.61, cub 19.34",
)
