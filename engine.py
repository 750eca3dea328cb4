"""Training: its state, its steps, its epochs, and predictions."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

import checks
from datasets import MultiLabelDataset
from datasets.images import Augmentation, Images, on_device
from losses import Loss, Targets
from models import Backbone
from models.linear import Features
from util import distributed
from util.devices import autocast, generator, random_state, seed_other_processes, set_random_state
from util.errors import UserError, describe_error
from util.signals import Stop

WARM_UP = 3  # steps before the capture: cuDNN picks its algorithms, the optimizer makes its state
REPORT_SECONDS = 1.0  # how often the progress bar reads the loss, which waits for the device


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """(N,) int64: the order in which an epoch visits the training images (differs: published from global state)."""
    return torch.randperm(num_images, generator=generator(seed, epoch, 0))


def epoch_flips(seed: int, epoch: int, num_images: int, probability: float) -> Tensor:
    """(N,) bool: the images that an epoch shows mirrored."""
    return torch.rand(num_images, generator=generator(seed, epoch, 1)) < probability


@dataclass(frozen=True)
class TrainingSet:
    """What a training step reads, on the device.

    images    the training images, or their features
    observed  (N, L) int8 in {-1, 0, +1};  true  (N, L) int8 in {0, 1}, or None: not known
    pseudo    (N, L) int8 in {-1, 0, +1}, or float in [0, 1]; None without a teacher
    """

    images: Images | Features
    observed: Tensor
    true: Tensor | None
    pseudo: Tensor | None

    @classmethod
    def on(
        cls, device: torch.device, images: Images | Features, split: MultiLabelDataset, pseudo: np.ndarray | None
    ) -> "TrainingSet":
        """The only place where labels become tensors."""
        labels = (split.observed, split.true, pseudo)
        return cls(images, *(None if part is None else torch.from_numpy(part).to(device) for part in labels))

    def targets(self, index: Tensor) -> Targets:
        labels = (self.observed, self.true, self.pseudo)
        return Targets(*(None if part is None else part[index] for part in labels), index)


def parameter_groups(model: Backbone, loss_function: Loss, lr: float, head_rate: float) -> list[dict]:
    """The optimizer's groups: the backbone at rate lr, its head at head_rate x lr, the loss's own parameters at its and
    without weight decay, for they are no weights of the network."""
    head = set(model.head_parameters()) if head_rate != 1 else set()
    groups = [
        {"params": [parameter for parameter in model.parameters() if parameter not in head], "lr": lr},
        {"params": [parameter for parameter in model.parameters() if parameter in head], "lr": lr * head_rate},
        {"params": list(loss_function.parameters()), "lr": lr * loss_function.rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017), as torch's CosineAnnealingLR."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def one_cycle(step: int, steps: int) -> float:
    """Half a cosine from 1/25 to 1 over three tenths of the steps, then one to 4e-6 (Smith and Topin 2018), as torch's
    OneCycleLR; the momentum stays."""
    first, last, top = 1 / 25, 1 / 25 / 1e4, 0.3 * steps - 1
    if step < top:
        return 1 + (first - 1) * cosine(step, top)
    return last + (1 - last) * cosine(step - top, steps - 1 - top)


SCHEDULES = {"constant": None, "cosine": cosine, "onecycle": one_cycle}  # (step, steps) -> multiple of the rate


@contextmanager
def uncounted(layers: list[_BatchNorm]) -> Iterator[None]:
    """Without the counters of batches of batch norm layers that have a momentum, and so never read them: on a GPU each
    costs a kernel. They keep their values, and their places in checkpoints."""
    counters = [layer.num_batches_tracked for layer in layers]
    for layer in layers:
        layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, counter in zip(layers, counters, strict=True):
            layer.num_batches_tracked = counter


class TrainingStep:
    """One training step: a batch in, new weights and the loss of the batch out.

    On a GPU a batch of 8 takes less time to compute than Python takes to launch its kernels. There the step of a full
    batch is captured in a CUDA graph, after WARM_UP eager steps, and replayed from then on; a smaller last batch is
    trained eagerly. A replay reads and writes the memory of the capture: weights, optimizer state and a loss's buffers
    may change between steps, but only in place; so does a learning rate that has a schedule, which is a tensor then.
    Where a plain number of the loss has changed, the step is captured again; where it changes all the time, or where a
    capture fails or its replay learns something else than the eager step (`checks`), steps stay eager, with a note.

    Where asked for, full batches go through the network as torch.compile makes it, in a single process.

    With several processes each computes its part of the batch, and no step is captured.
    """

    def __init__(
        self,
        model: Backbone,
        loss_function: Loss,
        data: TrainingSet,
        *,
        lr: float,
        batch_size: int,
        precision: str = "float32",
        cuda_graph: bool = True,
        head_rate: float = 1.0,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        scheduled: bool = False,
        checked: bool = True,
        compiled: bool = False,
    ) -> None:
        self.model, self.loss_function, self.data = model, loss_function, data
        self.batch_size, self.precision, self.checked = batch_size, precision, checked
        self.device = data.observed.device
        groups = parameter_groups(model, loss_function, lr, head_rate)
        self.rates = [group["lr"] for group in groups]
        if scheduled:
            groups = [group | {"lr": torch.tensor(group["lr"], device=self.device)} for group in groups]
        self.optimizer = OPTIMIZERS[optimizer](groups, weight_decay=weight_decay)
        self.network = distributed.wrap(model, self.device)
        self.to_compile = compiled and distributed.world_size() == 1
        self.network_of_full = torch.compile(model, dynamic=False) if self.to_compile else self.network
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.momentum is not None]
        self.batch_norms = [norm for norm in norms if not isinstance(norm, SyncBatchNorm)]  # which insists on a counter
        captures = cuda_graph and self.device.type == "cuda" and distributed.world_size() == 1
        self.stream = torch.cuda.Stream(self.device) if captures else None
        self.captures = captures
        self.warmed_up = self.replays = self.short = 0  # short: captures in a row that were of use once
        self.graph: torch.cuda.CUDAGraph | None = None

    def set_rate(self, multiple: float) -> None:
        """Give the next step this multiple of each learning rate."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"].fill_(rate * multiple)

    def load_optimizer(self, state: dict) -> None:
        """Restore what the optimizer remembers of each parameter. Its rates are those of this step: a schedule is a
        function of the step's number."""
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["state"]})

    def __call__(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        """This process's part of the loss of the batch, () float on the device, overwritten by the next step.

        images      (B, 3, S, S) uint8, or features (B, V, D) float
        index       (B,) int64 rows of the training set;  flips  (B,) bool
        batch_size  images of the batch on all processes
        """
        full = batch_size == self.batch_size
        torch.backends.cudnn.benchmark = full and not torch.are_deterministic_algorithms_enabled()
        batch = (images, index, flips)
        if full and self.to_compile:
            return self._compile(*batch)
        if self.stream is None:
            loss = self._eager(*batch, batch_size)
            self.warmed_up += 1
            if self.checked and self.warmed_up == WARM_UP and distributed.world_size() > 1:
                checks.equal_weights([*self.model.parameters(), *self.loss_function.parameters()])
            return loss
        if full and self.captures and self.warmed_up == WARM_UP:
            self._capture_if_stale(*batch)
        if full and self.graph is not None:
            self.replays += 1
            return self._checked_replay(*batch) if self.checked and self.replays == 2 else self._replay(*batch)
        self.warmed_up += full and self.warmed_up < WARM_UP
        return self._beside(*batch, batch_size)

    def _compile(self, *batch: Tensor) -> Tensor:
        """The first step of a full batch, in which PyTorch compiles the network. Raises UserError where it cannot."""
        began, self.to_compile = time.monotonic(), False
        try:
            loss = self(*batch, self.batch_size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of the compiler, or that there is none
            raise UserError(f"--compile does not work here ({describe_error(error)}); leave it out") from None
        print(f"the network is compiled, in {time.monotonic() - began:.0f} s")
        return loss

    def _beside(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        """The eager step on the capture stream, where the gradients of a step that is captured must be created."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self._eager(images, index, flips, batch_size)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _replay(self, images: Tensor, index: Tensor, flips: Tensor) -> Tensor:
        for held, given in zip(self.held, (images, index, flips), strict=True):
            held.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss

    def _checked_replay(self, *batch: Tensor) -> Tensor:
        """The replay of another batch than the captured one, if it is what the eager step is, else the eager step."""
        loss, wrong = checks.replay(
            lambda: self._beside(*batch, self.batch_size), lambda: self._replay(*batch), self._state(), self.device
        )
        if wrong:
            self._stay_eager(wrong)
        return loss

    def _state(self) -> dict[str, list[Tensor]]:
        """All that a step changes, by kind: what differs in size is told apart."""
        remembered: dict[str, list[Tensor]] = {}
        for state in self.optimizer.state.values():
            for name, tensor in state.items():
                remembered.setdefault(f"the optimizer's {name}", []).append(tensor)
        return remembered | {
            "weights": list(self.model.parameters()),
            "buffers": list(self.model.buffers()),
            "loss": [*self.loss_function.parameters(), *self.loss_function.buffers()],
        }

    def _eager(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        # SyncBatchNorm gathers float32 from processes with images, and wants the same type from one without
        with uncounted(self.batch_norms), autocast(self.device, self.precision if len(index) else "float32"):
            network = self.network_of_full if batch_size == self.batch_size else self.network
            logits = network(self.model.to_input(images, flips))
        loss = self.loss_function(logits, self.data.targets(index))
        if len(index) != batch_size:
            loss = loss * (len(index) / batch_size)
        world_size = distributed.world_size()  # gradients are averaged over processes
        (loss * world_size if world_size > 1 else loss).backward()
        if world_size > 1:
            for parameter in self.loss_function.parameters():  # the network averages its own
                distributed.all_sum(parameter.grad).div_(world_size)
        self.optimizer.step()
        return loss.detach()

    def _capture_if_stale(self, images: Tensor, index: Tensor, flips: Tensor) -> None:
        constants = checks.constants(self.loss_function)
        if self.graph is not None:
            if constants == self.constants:
                return
            self.short = self.short + 1 if self.replays == 1 else 0
            if self.short == 2:
                self._stay_eager("the loss changes plain numbers at every step; a buffer, changed in place, would do")
                return
        self.constants, self.graph = constants, None
        self._capture(images, index, flips)

    def _capture(self, images: Tensor, index: Tensor, flips: Tensor) -> None:
        """Record the step of a full batch, without computing it; `held` is where a replay reads its batch. Where that
        fails nothing has been computed either, so weights and optimizer are as they were."""
        self.held = [given.clone(memory_format=torch.preserve_format) for given in (images, index, flips)]
        graph, current, self.replays = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), 0
        self._capturable(True)
        try:  # thread_local: a thread that copies a checkpoint meanwhile is no error
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.loss = self._eager(*self.held, self.batch_size)
            self.graph = graph
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # leaving a capture that failed does not
            cause = error.__context__ or error  # leaving it fails too, and says less
            out = isinstance(cause, torch.OutOfMemoryError)
            self._stay_eager("the GPU is out of memory for it" if out else describe_error(cause))
        finally:
            self._capturable(False)

    def _stay_eager(self, reason: str) -> None:
        """Give the graph up, and its memory."""
        self.captures, self.graph, self.held = False, None, None
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        print(f"note: steps are not replayed as a CUDA graph, which is slower: {reason}")

    def _capturable(self, on: bool) -> None:
        """Adam must be marked so during a capture, and warns if it is elsewhere; a fused one is capturable anyway."""
        for group in self.optimizer.param_groups:
            group["capturable"] = on


def running_average(model: Backbone, decay: float) -> torch.nn.Module:
    """Of the model's weights over the steps, in its `module`. The decay rises to its value as 1 - t^(-2/3) with the
    steps t, so that a short run forgets how it began."""
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)


class Storage(Protocol):
    """Where a training is saved: the run's folder."""

    def save(self, state: dict) -> None: ...
    def save_best(self, weights: dict) -> None: ...


class Training:
    """All that training changes: weights, their average, optimizer, loss, randomness, progress, history, best epoch.

    evaluated     what is validated, chosen and tested: the model, or with `ema` the running average of its weights
    epoch, steps  the epoch that is trained, from 1, and the steps of it that are done
    history       one dict per finished epoch
    best          the epoch whose weights are kept: of the highest validation mAP, in percent, or the last
    """

    def __init__(
        self,
        model: Backbone,
        loss_function: Loss,
        data: TrainingSet,
        *,
        epochs: int,
        lr: float,
        batch_size: int,
        seed: int = 0,
        flip: float = 0.0,
        head_rate: float = 1.0,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        schedule: str = "constant",
        ema: float = 0.0,
        augmentation: Augmentation | None = None,
        precision: str = "float32",
        cuda_graph: bool = True,
        checked: bool = True,
        compile: bool = False,
        eval_batch_size: int = 64,
    ) -> None:
        self.model, self.loss_function, self.data = model, loss_function, data
        self.epochs, self.seed, self.flip, self.eval_batch_size = epochs, seed, flip, eval_batch_size
        self.schedule, self.augmentation = SCHEDULES[schedule], augmentation
        self.step = TrainingStep(
            model, loss_function, data, lr=lr, batch_size=batch_size, precision=precision, cuda_graph=cuda_graph,
            head_rate=head_rate, optimizer=optimizer, weight_decay=weight_decay, scheduled=self.schedule is not None,
            checked=checked, compiled=compile,
        )  # fmt: skip
        self.average = running_average(model, ema) if ema else None
        self.evaluated = self.average.module if self.average else model
        self.device, self.precision = self.step.device, precision
        self.num_steps = -(-len(data.images) // batch_size)
        self.step_losses = torch.zeros(self.num_steps, device=self.device)  # this process's part of each step's loss
        self.epoch, self.steps = 1, 0
        self.history: list[dict] = []
        self.best = {"epoch": 0, "val_mAP": -1.0}

    def state_dict(self) -> dict:
        """Raises UserError where a loss is not finite: such a state is not kept."""
        losses = distributed.all_sum(self.step_losses[: self.steps].clone())
        check_finite(losses, self.epoch)
        return {
            "model": self.model.state_dict(),
            **({"average": self.evaluated.state_dict()} if self.average else {}),
            "optimizer": self.step.optimizer.state_dict(),
            "loss": self.loss_function.state_dict(),
            "random": random_state(self.device),
            "epoch": self.epoch,
            "step": self.steps,
            "step_losses": losses,
            "best": self.best,
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        if self.average:
            self.evaluated.load_state_dict(state["average"])
        self.step.load_optimizer(state["optimizer"])
        self.loss_function.load_state_dict(state["loss"])
        set_random_state(state["random"], self.device)
        self.epoch, self.steps, self.best = state["epoch"], state["step"], state["best"]
        self.history = state["history"]
        if distributed.is_main():  # the parts of the processes add up
            self.step_losses[: self.steps] = state["step_losses"].to(self.device)

    def fit(
        self,
        validation: Images | Features | None,
        score: Callable[[np.ndarray], float],
        storage: Storage,
        stop: Stop,
        checkpoint_minutes: float,
        select: str = "best",
    ) -> None:
        """Train until the last epoch; after each one, validate and save.

        validation  images; None: there are none, and the last epoch is kept
        score       (N, L) float probabilities of the validation images -> mAP in percent
        select      best: keep the epoch with the highest validation mAP; last: keep the last
        Raises Interrupted, with the state saved, where the run was asked to stop.
        """
        seed_other_processes([self.seed, self.epoch, self.steps])
        saved = time.monotonic()

        def between_batches() -> None:
            nonlocal saved
            if stop.asked_anywhere(or_else=time.monotonic() - saved > 60 * checkpoint_minutes):
                storage.save(self.state_dict())
                saved = time.monotonic()
                stop.raise_if_asked()

        while self.epoch <= self.epochs:
            began, epoch = time.monotonic(), self.epoch
            train_loss = self.train_epoch(between_batches)
            val_map = None
            if validation is not None:
                val_map = score(self.predict(validation, "validation", between_batches).cpu().numpy())
            self.loss_function.end_epoch(epoch, lambda: self.predict(self.data.images, "labelling", between_batches))
            by_score = select == "best" and val_map is not None
            if val_map > self.best["val_mAP"] if by_score else epoch == self.epochs:
                self.best = {"epoch": epoch, "val_mAP": val_map}
            seconds = time.monotonic() - began
            self.history.append({"epoch": epoch, "train_loss": train_loss, "val_mAP": val_map, "seconds": seconds})
            self.epoch, self.steps = epoch + 1, 0
            storage.save(self.state_dict())
            saved = time.monotonic()
            if self.best["epoch"] == epoch:
                storage.save_best(self.evaluated.state_dict())
            mark = " (best)" if by_score and self.best["epoch"] == epoch else ""
            validated = "" if val_map is None else f"  val mAP {val_map:.2f}{mark}"
            print(f"epoch {epoch}/{self.epochs}  loss {train_loss:.4f}{validated}  {seconds:.1f} s")
            stop.raise_if_asked_anywhere()

    def train_epoch(self, after_step: Callable[[], None] = lambda: None) -> float:
        """Train from step `steps` of the epoch to its end; the mean loss per image over the whole epoch.

        Raises UserError, with epoch and batch, where a loss is not finite.
        """
        images, losses, start = self.data.images, self.step_losses, self.steps
        order = epoch_order(self.seed, self.epoch, len(images))
        flips = epoch_flips(self.seed, self.epoch, len(images), self.flip).to(self.device)
        batches = order.split(self.step.batch_size)
        mine = [batch.tensor_split(distributed.world_size())[distributed.rank()] for batch in batches[start:]]
        reported = time.monotonic()
        self.loss_function.start_epoch(self.epoch)
        self.step.network.train()
        with distributed.progress_bar(len(images), f"epoch {self.epoch}", start * self.step.batch_size) as bar:
            batches_here = zip(mine, images.stream(mine, self.device), on_device(mine, self.device), strict=True)
            for rows, pixels, index in batches_here:
                number = (self.epoch - 1) * self.num_steps + self.steps  # of the step, from 0 over the whole training
                self.loss_function.start_step(number)
                if self.schedule:
                    self.step.set_rate(self.schedule(number, self.epochs * self.num_steps))
                if self.augmentation:
                    pixels = self.augmentation(pixels, rows, self.seed, self.epoch)
                losses[self.steps] = self.step(pixels, index, flips[index], len(batches[self.steps]))
                if self.average:
                    self.average.update(self.model, number + 1)
                self.steps += 1
                bar.update(len(batches[self.steps - 1]))
                if time.monotonic() - reported > REPORT_SECONDS:  # in a single process, the only wait for the device
                    reported = time.monotonic()
                    check_finite(losses[: self.steps], self.epoch)
                    mean = losses[start : self.steps].mean().item() * distributed.world_size()
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                after_step()
        for network in dict.fromkeys((self.model, self.evaluated)):
            distributed.broadcast(network.buffers())  # on CPUs each process has its own batch norm statistics
        whole = distributed.all_sum(losses.clone())
        check_finite(whole, self.epoch)
        sizes = torch.tensor([len(batch) for batch in batches], device=self.device)
        return float((whole * sizes).sum() / len(images))

    def predict(self, images: Images | Features, name: str, after_batch: Callable[[], None] = lambda: None) -> Tensor:
        """(N, L) float32 probabilities; see `predict`."""
        return predict(
            self.evaluated, images, self.data.observed.shape[1], batch_size=self.eval_batch_size,
            precision=self.precision, device=self.device, name=name, after_batch=after_batch,
        )  # fmt: skip


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
    images: Images | Features,
    num_labels: int,
    *,
    batch_size: int,
    precision: str,
    device: torch.device,
    name: str,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """(N, L) float32 probabilities on the device, of every image once, in order, not flipped; divided among the
    processes, and the same on all of them.

    after_batch  called after each batch, the same number of times by every process
    Raises UserError where one is not a number: the weights have diverged.
    """
    model.eval()
    torch.backends.cudnn.benchmark = False  # timing algorithms for an odd last size does not pay
    probs = torch.zeros(len(images), num_labels, device=device)
    mine = distributed.shard(len(images))
    batches = torch.arange(mine.start, mine.stop).split(batch_size) if len(mine) else ()
    with distributed.progress_bar(len(mine), name) as bar:
        for rows, batch in zip(batches, images.stream(batches, device), strict=True):
            with autocast(device, precision):
                logits = model(model.to_input(batch))
            probs[rows[0] : rows[-1] + 1] = torch.sigmoid(logits.float())
            bar.update(len(batch))
            after_batch()
    most = -(-len(images) // distributed.world_size())  # images of the process that has most
    for _ in range(len(batches), -(-most // batch_size)):
        after_batch()
    distributed.all_sum(probs)
    if not torch.isfinite(probs).all():
        raise UserError(
            f"{name}: predictions are not finite, the weights have diverged; lower --lr and use --overwrite"
        )
    return probs
