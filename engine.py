"""The loops over batches, and what they run on: devices, precision, randomness."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import UserError
from datasets.images import Images, to_input
from losses import Loss, Targets
from models import Backbone
from storage import why

WARM_UP = 3  # steps before the capture: cuDNN picks its algorithms, the optimizer makes its state
TELL_SECONDS = 1.0  # how often the progress bar reads the loss, which waits for the device


def pick_device(gpu: str) -> torch.device:
    """The device of --gpu; without CUDA the CPU, said in one line."""
    if gpu == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("no CUDA device found: running on the CPU (-g cpu says so without this line)")
        return torch.device("cpu")
    if int(gpu) >= torch.cuda.device_count():
        raise UserError(f"--gpu {gpu}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
    torch.cuda.set_device(int(gpu))
    return torch.device("cuda", int(gpu))


def pick_precision(precision: str, device: torch.device) -> str:
    return precision if precision != "auto" else "bf16" if device.type == "cuda" else "float32"  # differs: float32


def default_workers() -> int:
    """Threads that decode images: the cores this process may use, 8 at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training draws from (dropout and its like; order and flips need none)."""
    return {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    )


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Randomness that is a function of (seed, epoch, purpose), so that resuming needs no hidden state."""
    state = int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """(N,) int64: the order in which an epoch visits the training images (differs: published from global state)."""
    return torch.randperm(num_images, generator=generator(seed, epoch, 0))


def epoch_flips(seed: int, epoch: int, num_images: int, probability: float) -> Tensor:
    """(N,) bool: the images that an epoch shows mirrored."""
    return torch.rand(num_images, generator=generator(seed, epoch, 1)) < probability


@dataclass(frozen=True)
class TrainingSet:
    """What a training step reads, on the device.

    images    the training images
    observed  (N, L) int8 in {-1, 0, +1};  true  (N, L) int8 in {0, 1};  pseudo  (N, L) int8 in {-1, 0, +1} or None
    """

    images: Images
    observed: Tensor
    true: Tensor
    pseudo: Tensor | None

    def targets(self, index: Tensor) -> Targets:
        pseudo = None if self.pseudo is None else self.pseudo[index]
        return Targets(self.observed[index], self.true[index], pseudo, index)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class TrainingStep:
    """A batch in, new weights and the batch's loss out.

    On a GPU a batch of 8 takes less time to compute than Python takes to launch its kernels. So there the step of a
    full batch is captured in a CUDA graph, after WARM_UP steps as usual, and replayed from then on; a smaller last
    batch is taken as usual. A replay reads and writes the memory of the capture: weights, optimizer state and a loss's
    buffers may change between steps, but only in place.
    """

    def __init__(
        self,
        model: Backbone,
        loss_function: Loss,
        optimizer: torch.optim.Optimizer,
        data: TrainingSet,
        *,
        batch_size: int,
        precision: str,
        cuda_graph: bool,
    ) -> None:
        self.model, self.loss_function, self.optimizer, self.data = model, loss_function, optimizer, data
        self.batch_size, self.precision = batch_size, precision
        self.device = data.observed.device
        self.stream = torch.cuda.Stream(self.device) if cuda_graph and self.device.type == "cuda" else None
        self.warmed_up = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, index: Tensor, flips: Tensor) -> Tensor:
        """The batch's loss, () float on the device, to be read before the next step.

        images  (B, 3, S, S) uint8;  index  (B,) int64 rows of the training set;  flips  (B,) bool
        Raises UserError where the step cannot be captured.
        """
        full = len(index) == self.batch_size
        torch.backends.cudnn.benchmark = full and not torch.are_deterministic_algorithms_enabled()
        if self.stream is None:
            return self._take(images, index, flips)
        if self.graph is None or not full:
            if full and self.warmed_up == WARM_UP:
                self._capture(images, index, flips)
            else:
                self.warmed_up += full
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(
                    self.stream
                ):  # the capture's own: gradients remember the stream they are made on
                    loss = self._take(images, index, flips)
                torch.cuda.current_stream().wait_stream(self.stream)
                return loss
        for held, given in zip(self.held, (images, index, flips), strict=True):
            held.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss

    def _take(self, images: Tensor, index: Tensor, flips: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            logits = self.model(to_input(images, self.model.mean, self.model.std, flips))
        loss = self.loss_function(logits, self.data.targets(index))
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _capture(self, *batch: Tensor) -> None:
        """Record the step of a full batch, without taking it; `held` is where a replay finds its batch."""
        self.held = [given.clone(memory_format=torch.preserve_format) for given in batch]
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients lie in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self._take(*self.held)
        except RuntimeError as error:
            raise UserError(
                f"the training step cannot be a CUDA graph ({why(error)}); run with --no-cuda-graph"
            ) from None
        self.graph = graph


def train_one_epoch(
    step: TrainingStep,
    *,
    seed: int,
    epoch: int,
    flip: float,
    losses: Tensor,
    start: int = 0,
    after_step: Callable[[int], None] = lambda steps_done: None,
) -> float:
    """Train from batch `start` of an epoch to its end; the mean loss of an image over the whole epoch.

    losses      (S,) float on the device: the loss of each of the epoch's S steps, filled as they are taken
    after_step  told how many steps of the epoch are done
    Raises UserError, with epoch and batch, where a loss is not finite.
    """
    device, batch_size, images = step.device, step.batch_size, step.data.images
    order = epoch_order(seed, epoch, len(images))
    flips = epoch_flips(seed, epoch, len(images), flip).to(device)
    remaining = order[start * batch_size :]
    rate = step.optimizer.param_groups[0]["lr"]
    told = time.monotonic()
    step.model.train()
    bar = tqdm(
        total=len(losses),
        initial=start,
        desc=f"epoch {epoch}",
        unit="batch",
        leave=False,
        disable=None,
        mininterval=TELL_SECONDS,
    )
    with bar:
        stream = images.stream(remaining, batch_size, device)
        batches = zip(stream, remaining.to(device).split(batch_size), strict=True) if len(remaining) else ()
        for done, (pixels, index) in enumerate(batches, start + 1):
            losses[done - 1] = step(pixels, index, flips[index])
            bar.update()
            if time.monotonic() - told > TELL_SECONDS:  # the only time the host waits for the device
                told = time.monotonic()
                check_finite(losses[:done], epoch)
                bar.set_postfix(loss=f"{losses[start:done].mean().item():.4f}", lr=f"{rate:g}", refresh=False)
            after_step(done)
    check_finite(losses, epoch)
    sizes = torch.tensor([len(part) for part in order.split(batch_size)], device=device)
    return float((losses * sizes).sum() / len(images))


def check_finite(losses: Tensor, epoch: int) -> None:
    """Raises UserError naming the first step whose loss is not finite."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        raise UserError(
            f"the loss is {losses[bad][0].item()} in epoch {epoch}, batch {int(bad.int().argmax()) + 1} of "
            f"{len(losses)}; nothing after the last checkpoint was kept. Lower --lr, or try --precision float32"
        )


@torch.inference_mode()
def predict(
    model: Backbone,
    images: Images,
    num_labels: int,
    *,
    batch_size: int,
    precision: str,
    device: torch.device,
    name: str,
) -> Tensor:
    """(N, L) float32 probabilities on the device, of every image once, in order, not flipped.

    Raises UserError where one is not a number: the weights have diverged.
    """
    model.eval()
    torch.backends.cudnn.benchmark = False  # sizes that come once are not worth the timing
    probs = torch.empty(len(images), num_labels, device=device)
    order, done = torch.arange(len(images)), 0
    with tqdm(total=len(images), desc=name, unit="image", leave=False, disable=None) as bar:
        for batch in images.stream(order, batch_size, device):
            with autocast(device, precision):
                logits = model(to_input(batch, model.mean, model.std))
            probs[done : done + len(batch)] = torch.sigmoid(logits.float())
            done += len(batch)
            bar.update(len(batch))
    if not torch.isfinite(probs).all():
        raise UserError(
            f"{name}: predictions are not finite, the weights have diverged; lower --lr and use --overwrite"
        )
    return probs
