"""The loops over batches, and what they run on: devices, precision, randomness."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import processes
from cli import UserError, started_by_torchrun, torchrun_rank
from datasets.images import Images, on_device, to_input
from losses import Loss, Targets
from models import Backbone
from storage import why

WARM_UP = 3  # steps before the capture: cuDNN picks its algorithms, the optimizer makes its state
TELL_SECONDS = 1.0  # how often the progress bar reads the loss, which waits for the device


def pick_device(gpu: str) -> torch.device:
    """The device of --gpu, or under torchrun the GPU of this process; without CUDA the CPU, said in one line."""
    if gpu == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if torchrun_rank() == 0:
            print("no CUDA device found: running on the CPU (-g cpu says so without this line)")
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else int(gpu)
    if index >= (gpus := torch.cuda.device_count()):
        if started_by_torchrun():
            raise UserError(f"torchrun started more processes than the {gpus} GPUs here; --nproc-per-node {gpus}")
        raise UserError(f"--gpu {gpu}: this machine has CUDA devices 0 to {gpus - 1}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def be_deterministic() -> None:
    """Let PyTorch take only algorithms that give the same numbers again; one that has none is refused by name."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory


def pick_precision(precision: str, device: torch.device) -> str:
    return precision if precision != "auto" else "bf16" if device.type == "cuda" else "float32"  # differs: float32


def default_workers() -> int:
    """Threads that decode images: this process's share of the cores it may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training draws from (dropout and its like; order and flips need none).

    Of the first process; the others' are made anew by `seed_others`, for their number may change.
    """
    return {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    )


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_others(seed: int, epoch: int, step: int) -> None:
    """Give every process but the first a generator of its own."""
    if not processes.is_first():
        state = np.random.SeedSequence([seed, epoch, step, processes.rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))


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

    With several processes each takes its share of the batch, and none captures.
    """

    def __init__(
        self,
        model: Backbone,
        loss_function: Loss,
        data: TrainingSet,
        *,
        lr: float,
        batch_size: int,
        precision: str,
        cuda_graph: bool,
    ) -> None:
        self.model, self.loss_function, self.data = model, loss_function, data
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        self.batch_size, self.precision = batch_size, precision
        self.device = data.observed.device
        self.network = processes.distributed(model, self.device)
        captures = cuda_graph and self.device.type == "cuda" and processes.count() == 1
        self.stream = torch.cuda.Stream(self.device) if captures else None
        self.warmed_up = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        """This process's part of the batch's loss, () float on the device, to be read before the next step.

        images      (B, 3, S, S) uint8;  index  (B,) int64 rows of the training set;  flips  (B,) bool
        batch_size  images of the batch on all processes
        Raises UserError where the step cannot be captured.
        """
        full = batch_size == self.batch_size
        torch.backends.cudnn.benchmark = full and not torch.are_deterministic_algorithms_enabled()
        if self.stream is None:
            return self._take(images, index, flips, batch_size)
        if self.graph is None or not full:
            if full and self.warmed_up == WARM_UP:
                self._capture(images, index, flips)
            else:
                self.warmed_up += full
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.stream):  # the capture's: gradients remember the stream of their birth
                    loss = self._take(images, index, flips, batch_size)
                torch.cuda.current_stream().wait_stream(self.stream)
                return loss
        for held, given in zip(self.held, (images, index, flips), strict=True):
            held.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss

    def _take(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        # SyncBatchNorm wants the same type from every process, and has float32 from those with images
        with autocast(self.device, self.precision if len(index) else "float32"):
            logits = self.network(to_input(images, self.model.mean, self.model.std, flips))
        loss = self.loss_function(logits, self.data.targets(index)) if len(index) else logits.sum()
        if len(index) != batch_size:
            loss = loss * (len(index) / batch_size)
        (loss * processes.count() if processes.count() > 1 else loss).backward()  # gradients are averaged over them
        self.optimizer.step()
        return loss.detach()

    def _capture(self, images: Tensor, index: Tensor, flips: Tensor) -> None:
        """Record the step of a full batch, without taking it; `held` is where a replay finds its batch."""
        self.held = [given.clone(memory_format=torch.preserve_format) for given in (images, index, flips)]
        graph = torch.cuda.CUDAGraph()
        self._capturable(True)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self._take(*self.held, self.batch_size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # leaving the capture fails too, and says less
            raise UserError(f"the step cannot become a CUDA graph ({why(cause)}); use --no-cuda-graph") from None
        finally:
            self._capturable(False)
        self.graph = graph

    def _capturable(self, on: bool) -> None:
        """What a capture demands of the optimizer, and what it warns of elsewhere; a fused one is so in any case."""
        for group in self.optimizer.param_groups:
            group["capturable"] = on


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

    losses      (S,) float on the device: this process's part of the loss of each of the epoch's S steps, filled as
                they are taken; the processes' parts add up to it
    after_step  told how many steps of the epoch are done
    Raises UserError, with epoch and batch, where a loss is not finite.
    """
    device, images = step.device, step.data.images
    order = epoch_order(seed, epoch, len(images))
    flips = epoch_flips(seed, epoch, len(images), flip).to(device)
    batches = order.split(step.batch_size)
    mine = [batch.tensor_split(processes.count())[processes.rank()] for batch in batches[start:]]
    rate = step.optimizer.param_groups[0]["lr"]
    told = time.monotonic()
    step.network.train()
    bar = processes.bar(
        total=len(losses), initial=start, desc=f"epoch {epoch}", unit="batch", leave=False, mininterval=TELL_SECONDS
    )
    with bar:
        steps = zip(images.stream(mine, device), on_device(mine, device), strict=True)
        for done, (pixels, index) in enumerate(steps, start + 1):
            losses[done - 1] = step(pixels, index, flips[index], len(batches[done - 1]))
            bar.update()
            if time.monotonic() - told > TELL_SECONDS:  # with one process, the only time it waits for the device
                told = time.monotonic()
                check_finite(losses[:done], epoch)
                mean = losses[start:done].mean().item() * processes.count()
                bar.set_postfix(loss=f"{mean:.4f}", lr=f"{rate:g}", refresh=False)
            after_step(done)
    processes.copy_from_first(step.model.buffers())  # on CPUs each process has batch norm statistics of its own
    whole = processes.add_up(losses.clone())
    check_finite(whole, epoch)
    sizes = torch.tensor([len(batch) for batch in batches], device=device)
    return float((whole * sizes).sum() / len(images))


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
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """(N, L) float32 probabilities on the device, of every image once, in order, not flipped; shared out over the
    processes, and the same on all of them.

    after_batch  called after each batch, as often by every process
    Raises UserError where one is not a number: the weights have diverged.
    """
    model.eval()
    torch.backends.cudnn.benchmark = False  # an odd last size is not worth the timing
    probs = torch.zeros(len(images), num_labels, device=device)
    mine = processes.share(len(images))
    batches = torch.arange(mine.start, mine.stop).split(batch_size) if len(mine) else ()
    with processes.bar(total=len(mine), desc=name, unit="image", leave=False) as bar:
        for rows, batch in zip(batches, images.stream(batches, device), strict=True):
            with autocast(device, precision):
                logits = model(to_input(batch, model.mean, model.std))
            probs[rows[0] : rows[-1] + 1] = torch.sigmoid(logits.float())
            bar.update(len(batch))
            after_batch()
    most = -(-len(images) // processes.count())  # images of the largest share
    for _ in range(len(batches), -(-most // batch_size)):
        after_batch()
    processes.add_up(probs)
    if not torch.isfinite(probs).all():
        raise UserError(
            f"{name}: predictions are not finite, the weights have diverged; lower --lr and use --overwrite"
        )
    return probs
