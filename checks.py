"""Checks at the start of a run, for about a second: a GPU that computes something else than it should is noticed before
days are spent on it. `--no-checks` skips them."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import Backbone
from util import distributed
from util.devices import autocast, random_state, set_random_state
from util.errors import UserError

ROWS = 16  # of a resident cache, compared with the file
# Largest relative difference from float32 on a CPU. Emulated there, bf16's rounding makes 0.10 in a random ResNet-50
# whose batch norm fits its images, TF32's makes 0.016; in a ViT-S, a ConvNeXt-T and others both make less
SAME_OUTPUT = {"float32": 1e-2, "tf32": 0.1, "bf16": 0.5}
SAME_STEP = 0.1  # of two steps: sums in another order on the way back make 0.03 in that ResNet-50, another batch 0.8
LOSS = "loss of the batch"


@torch.inference_mode()
def outputs(model: Backbone, images: Tensor, precision: str) -> None:
    """Raises UserError where features and logits of some images on their device are not those of a CPU in float32."""
    training = model.training
    model.eval()
    got = _outputs(model, images, precision)
    expected = _outputs(deepcopy(model).cpu(), images.cpu(), "float32")
    model.train(training)
    difference = step_difference([got], [expected], [torch.zeros_like(expected)])
    if not difference <= SAME_OUTPUT[precision]:
        raise UserError(
            f"features and logits on {images.device} in {precision} differ from a CPU's by {difference:.2g} of their "
            f"size (at most {SAME_OUTPUT[precision]:g}); try --precision float32 or another GPU (--no-checks goes on)"
        )


def _outputs(model: Backbone, images: Tensor, precision: str) -> Tensor:
    """What enters the classifier, and the logits, as one vector on the CPU. The logits of few labels may nearly cancel,
    and all of them is rounding then."""
    seen = []
    with ExitStack() as hooks, autocast(images.device, precision):
        for name in model.heads:
            head = model.network.get_submodule(name)
            hooks.callback(head.register_forward_pre_hook(lambda head, given: seen.append(given[0])).remove)
        logits = model(model.to_input(images))
    return torch.cat([part.float().cpu().flatten() for part in (*seen, logits)])


def resident_rows(kept: Tensor, path: Path) -> None:
    """Raises UserError where images on a GPU are not those of the file that they were copied from.

    kept  (N, S, S, 3) uint8
    """
    rows = np.random.RandomState(len(kept)).permutation(len(kept))[:ROWS]
    on_disk = np.load(path, mmap_mode="r", allow_pickle=False)[rows]
    for row, pixels in zip(rows.tolist(), on_disk, strict=True):
        if not np.array_equal(kept[row].cpu().numpy(), pixels):
            raise UserError(
                f"image {row} on {kept.device} is not that of {path}; take --cache disk (--no-checks goes on)"
            )


def equal_weights(parameters: Iterable[Tensor]) -> None:
    """Raises UserError where the processes of a run do not hold the same weights, bit for bit."""
    checksum = sum(int(parameter.detach().view(torch.int32).sum(dtype=torch.int64)) for parameter in parameters)
    if not distributed.all_equal(checksum):
        raise UserError(
            "the processes hold different weights after the first steps, so gradients are not averaged as they should "
            "be; train in a single process (--no-checks goes on)"
        )


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
    """Take the same step eagerly and by a replay. The loss of the batch, the state after it, and "", if the two agree,
    bit for bit where only deterministic algorithms are allowed; else those of the eager step, and what differs.

    Where a GPU adds in another order on the way forward, a network that amplifies rounding learns something else each
    time (by 0.5 in that ResNet-50). So what differs beside the loss counts only if the eager step repeats itself in it.

    state  all tensors that a step changes, by kind
    """
    allowed = 0.0 if torch.are_deterministic_algorithms_enabled() else SAME_STEP
    random, before = random_state(device), _copy(state)

    def take(step: Callable[[], Tensor]) -> Tensor:
        _restore(state, before)
        set_random_state(random, device)
        with torch.enable_grad():
            return step().clone()

    def different(other: Tensor) -> dict[str, float]:
        apart = {kind: step_difference(tensors, after[kind], before[kind]) for kind, tensors in state.items()}
        apart[LOSS] = step_difference([other], [loss], [torch.zeros_like(loss)])
        return {kind: difference for kind, difference in apart.items() if not difference <= allowed}

    loss, after = take(eager), _copy(state)
    other = take(replayed)
    wrong = different(other)
    if wrong and allowed and LOSS not in wrong:
        other = take(eager)
        wrong = {kind: difference for kind, difference in wrong.items() if kind not in different(other)}
    if not wrong:
        return other, ""
    _restore(state, after)
    said = ", ".join(f"{kind} {difference:.1g}" for kind, difference in wrong.items())
    return loss, f"the replayed step differs from the eager one (relative difference of {said}; at most {allowed})"


def step_difference(got: list[Tensor], expected: list[Tensor], before: list[Tensor]) -> float:
    """|got - expected| / |expected - before|, all tensors taken as one vector; 0 where all are equal."""
    apart = moved = 0.0
    for one, other, start in zip(got, expected, before, strict=True):
        other, start = other.to(one.device).double(), start.to(one.device).double()
        apart += float((one.double() - other).square().sum())
        moved += float((other - start).square().sum())
    return 0.0 if apart == 0 else apart**0.5 / max(moved**0.5, 1e-30)


def _copy(state: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """On the CPU: a GPU that holds weights and optimizer once need not hold them three times."""
    return {kind: [tensor.detach().to("cpu", copy=True) for tensor in tensors] for kind, tensors in state.items()}


def _restore(state: dict[str, list[Tensor]], values: dict[str, list[Tensor]]) -> None:
    for kind, tensors in state.items():
        for tensor, value in zip(tensors, values[kind], strict=True):
            tensor.copy_(value)
