"""Checks at the start of a run, for about a second: a GPU that computes something else than it should is noticed before
days are spent on it. `--no-checks` skips them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from util.devices import random_state, set_random_state

SAME_STEP = 0.1  # largest relative difference of two steps: atomic additions and bf16 stay below, other images do not


def constants(loss_function: nn.Module) -> dict[str, object]:
    """What the capture of a step turns into constants: the loss's plain attributes, and where its tensors lie."""
    return {
        f"{name}.{key}": value.data_ptr() if isinstance(value, Tensor) else value
        for name, module in loss_function.named_modules()
        for key, value in (vars(module) | module._parameters | module._buffers).items()
        if isinstance(value, Tensor | bool | int | float | str)
    }


@torch.no_grad()
def replay(
    eager: Callable[[], Tensor], replayed: Callable[[], Tensor], state: dict[str, list[Tensor]], device: torch.device
) -> tuple[Tensor, str]:
    """Take the same step eagerly and by a replay. The loss and the state of the replay, and "", if the two agree, bit
    for bit where only deterministic algorithms are allowed; else those of the eager step, and what differs.

    state  all tensors that a step changes, by kind
    """
    random, before = random_state(device), _copy(state)
    with torch.enable_grad():
        loss = eager().clone()
    after = _copy(state)
    _restore(state, before)
    set_random_state(random, device)
    with torch.enable_grad():
        other_loss = replayed()
    wrong = {}
    for kind, tensors in {"loss of the batch": [other_loss], **state}.items():
        expected, start = ([loss], [torch.zeros_like(loss)]) if kind not in state else (after[kind], before[kind])
        if difference := step_difference(tensors, expected, start):
            wrong[kind] = difference
    allowed = 0.0 if torch.are_deterministic_algorithms_enabled() else SAME_STEP
    wrong = {kind: difference for kind, difference in wrong.items() if not difference <= allowed}
    if not wrong:
        return other_loss, ""
    _restore(state, after)
    said = ", ".join(f"{kind} {difference:.1g}" for kind, difference in wrong.items())
    return loss, f"the replayed step differs from the eager one (relative difference of {said}; at most {allowed})"


def step_difference(got: list[Tensor], expected: list[Tensor], before: list[Tensor]) -> float:
    """|got - expected| / |expected - before|, all tensors taken as one vector; 0 where all are equal."""
    apart, moved = (
        sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5
        for one, other in ((got, expected), (expected, before))
    )
    return 0.0 if apart == 0 else apart / max(moved, 1e-30)


def _copy(state: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in state.items()}


def _restore(state: dict[str, list[Tensor]], values: dict[str, list[Tensor]]) -> None:
    for kind, tensors in state.items():
        for tensor, value in zip(tensors, values[kind], strict=True):
            tensor.copy_(value)
