"""What every loss is to the rest of the project: a module from logits and targets to a scalar."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Targets:
    """What may be known of a batch.

    observed  (B, L) int8 in {-1, 0, +1}; 0 = unknown
    true      (B, L) int8 in {0, 1}; None where nobody knows. Only oracles read it
    pseudo    (B, L) int8 in {-1, 0, +1}; 0 = the teacher abstains. None without a teacher
    index     (B,) int64 row of each image in the training set
    """

    observed: Tensor
    true: Tensor | None = None
    pseudo: Tensor | None = None
    index: Tensor | None = None


class Loss(nn.Module, ABC):
    """The mean over the B x L entries of a loss per label, computed in float32 or better.

    Subclasses that remember something between steps keep it in buffers, so that every checkpoint holds it, and change
    them in place, so that a captured step sees the change. Epochs are counted from 1.
    """

    inputs: tuple[str, ...] = ()  # fields of Targets that per_label is given, by name

    @abstractmethod
    def per_label(self, logits: Tensor, **targets: Tensor) -> Tensor:
        """(B, L) loss of every label."""

    def wants_predictions(self, epoch: int) -> bool:
        """Whether end_epoch(epoch) needs the training set's predictions; making them costs a pass over the images."""
        return False

    def start_epoch(self, epoch: int) -> None:
        """Told before the first step of an epoch."""

    def end_epoch(self, epoch: int, probs: Tensor | None = None) -> None:
        """Told after the last step of an epoch; probs (N, L) is given if wants_predictions(epoch)."""

    def forward(self, logits: Tensor, targets: Targets) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.per_label(logits, **{name: getattr(targets, name) for name in self.inputs}).mean()


class Formula(Loss):
    """A loss without memory: a pure function of the logits, the targets it names and its coefficients."""

    def __init__(self, formula: Callable[..., Tensor], inputs: tuple[str, ...], coefficients: dict[str, float]) -> None:
        super().__init__()
        self.formula, self.inputs, self.coefficients = formula, inputs, coefficients

    def per_label(self, logits: Tensor, **targets: Tensor) -> Tensor:
        return self.formula(logits, **targets, **self.coefficients)
