"""Training: its state, its steps, its epochs, and predictions."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets import MultiLabelDataset
from datasets.images import Augmentation, Images, on_device
from losses import Loss, Targets
from models import Backbone
from models.linear import Features
from util import distributed
from util.devices import autocast, generator, random_state, seed_other_processes, set_random_state
from util.errors import UserError, describe_error
from util.signals import Stop

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
        """Labels become tensors here only."""
        labels = (split.observed, split.true, pseudo)
        return cls(images, *(None if part is None else torch.from_numpy(part).to(device) for part in labels))

    def targets(self, index: Tensor) -> Targets:
        labels = (self.observed, self.true, self.pseudo)
        return Targets(*(None if part is None else part[index] for part in labels), index)


def parameter_groups(model: Backbone, loss_function: Loss, lr: float, head_rate: float) -> list[dict]:
    """The optimizer's groups: the backbone at rate lr, its head at head_rate x lr, and the parameters of the loss at
    loss.rate x lr, without weight decay."""
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


def accelerate(model: Backbone, inputs: Tensor, compiled: bool) -> torch.nn.Module:
    """The network for training batches of this shape, captured as a CUDA graph or compiled. Other batches use the model
    itself, whose tensors it shares. Making it runs the network, so batch norm's statistics and the random state are
    restored afterwards. Raises UserError if PyTorch cannot make it."""
    began, device = time.monotonic(), inputs.device
    buffers, random = [buffer.clone() for buffer in model.buffers()], random_state(device)
    option, done = ("--compile", "compiled") if compiled else ("--cuda-graph", "captured as a CUDA graph")
    try:
        if compiled:
            network = torch.compile(model, dynamic=False, mode="reduce-overhead")
            network(inputs).sum().backward()
            model.zero_grad()
        else:
            # gradients are accumulated on the capture's stream, with which autograd synchronizes the current one
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            network = torch.cuda.make_graphed_callables(torch.nn.Sequential(model), (inputs,))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{option} does not work here ({describe_error(error)}); leave it out") from None
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    set_random_state(random, device)
    print(f"the network is {done}, in {time.monotonic() - began:.0f} s")
    return network


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
        cuda_graph: bool = False,
        compile: bool = False,
        eval_batch_size: int = 64,
    ) -> None:
        self.model, self.loss_function, self.data = model, loss_function, data
        self.epochs, self.batch_size, self.seed, self.flip = epochs, batch_size, seed, flip
        self.augmentation, self.precision, self.eval_batch_size = augmentation, precision, eval_batch_size
        self.device = data.observed.device
        groups = parameter_groups(model, loss_function, lr, head_rate)
        self.rates, self.schedule = [group["lr"] for group in groups], SCHEDULES[schedule]
        self.optimizer = OPTIMIZERS[optimizer](groups, weight_decay=weight_decay)
        self.network = distributed.wrap(model, self.device)
        self.compile = compile
        self.accelerates = distributed.world_size() == 1 and (compile or (cuda_graph and self.device.type == "cuda"))
        self.accelerated: torch.nn.Module | None = None
        self.average = running_average(model, ema) if ema else None
        self.evaluated = self.average.module if self.average else model
        self.num_steps = -(-len(data.images) // batch_size)
        self.step_losses = torch.zeros(self.num_steps, device=self.device)  # this process's part of each step's loss
        self.epoch, self.steps = 1, 0
        self.history: list[dict] = []
        self.best = {"epoch": 0, "val_mAP": -1.0}

    def state_dict(self) -> dict:
        """Raises UserError if a loss is not finite: such a state is not kept."""
        losses = distributed.all_sum(self.step_losses[: self.steps].clone())
        check_losses(losses, self.epoch)
        return {
            "model": self.model.state_dict(),
            **({"average": self.evaluated.state_dict()} if self.average else {}),
            "optimizer": self.optimizer.state_dict(),
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
        learned = {"state": state["optimizer"]["state"]}  # the learning rates follow from the settings
        self.optimizer.load_state_dict(self.optimizer.state_dict() | learned)
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
        Raises Interrupted, with the state saved, if the run was asked to stop.
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

        Raises UserError, with epoch and batch, if a loss is not finite.
        """
        images, losses, start = self.data.images, self.step_losses, self.steps
        order = epoch_order(self.seed, self.epoch, len(images))
        flips = epoch_flips(self.seed, self.epoch, len(images), self.flip).to(self.device)
        batches = order.split(self.batch_size)
        mine = [batch.tensor_split(distributed.world_size())[distributed.rank()] for batch in batches[start:]]
        reported = time.monotonic()
        self.loss_function.start_epoch(self.epoch)
        self.network.train()
        with distributed.progress_bar(len(images), f"epoch {self.epoch}", start * self.batch_size) as bar:
            batches_here = zip(mine, images.stream(mine, self.device), on_device(mine, self.device), strict=True)
            for rows, pixels, index in batches_here:
                number = (self.epoch - 1) * self.num_steps + self.steps  # of the step, from 0 over the whole training
                self.loss_function.start_step(number)
                if self.schedule:
                    multiple = self.schedule(number, self.epochs * self.num_steps)
                    for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                        group["lr"] = float(np.float32(rate * multiple))  # the rounding of a rate in a tensor
                if self.augmentation:
                    pixels = self.augmentation(pixels, rows, self.seed, self.epoch)
                losses[self.steps] = self.step(pixels, index, flips[index], len(batches[self.steps]))
                if self.average:
                    self.average.update(self.model, number + 1)
                self.steps += 1
                bar.update(len(batches[self.steps - 1]))
                if time.monotonic() - reported > REPORT_SECONDS:  # in a single process, the only wait for the device
                    reported = time.monotonic()
                    check_losses(losses[: self.steps], self.epoch)
                    mean = losses[start : self.steps].mean().item() * distributed.world_size()
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                after_step()
        for network in dict.fromkeys((self.model, self.evaluated)):
            distributed.broadcast(network.buffers())  # on CPUs each process has its own batch norm statistics
        whole = distributed.all_sum(losses.clone())
        check_losses(whole, self.epoch)
        sizes = torch.tensor([len(batch) for batch in batches], device=self.device)
        return float((whole * sizes).sum() / len(images))

    def step(self, images: Tensor, index: Tensor, flips: Tensor, batch_size: int) -> Tensor:
        """One training step: new weights, and this process's part of the loss of the batch, () float on the device.

        With several processes each computes its part of the batch. In a single process, full batches go through the
        accelerated network if `cuda_graph` (on a GPU) or `compile` is set; loss and optimizer are always eager.

        images      (B, 3, S, S) uint8, or features (B, V, D) float
        index       (B,) int64 rows of the training set;  flips  (B,) bool
        batch_size  images of the batch on all processes
        """
        full, world_size = batch_size == self.batch_size, distributed.world_size()
        torch.backends.cudnn.benchmark = full and not torch.are_deterministic_algorithms_enabled()
        self.optimizer.zero_grad(set_to_none=True)
        # SyncBatchNorm gathers float32 from processes with images, and expects the same type from one without
        with autocast(self.device, self.precision if len(index) else "float32"):
            inputs = self.model.to_input(images, flips)
            if full and self.accelerates and self.accelerated is None:
                self.accelerated = accelerate(self.model, inputs, self.compile)
            network = self.accelerated if full and self.accelerates else self.network
            logits = network(inputs)
        loss = self.loss_function(logits, self.data.targets(index))
        if len(index) != batch_size:
            loss = loss * (len(index) / batch_size)
        (loss * world_size).backward()  # gradients are averaged over the processes
        if world_size > 1:
            for parameter in self.loss_function.parameters():  # DistributedDataParallel averages the network's
                distributed.all_sum(parameter.grad).div_(world_size)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def predict(self, images: Images | Features, name: str, after_batch: Callable[[], None] = lambda: None) -> Tensor:
        """(N, L) float32 probabilities on the device, of every image once, in order, not flipped; divided among the
        processes, and the same on all of them.

        after_batch  called after each batch, the same number of times by every process
        Raises UserError if one is not a number: the weights have diverged.
        """
        model, size = self.evaluated.eval(), self.eval_batch_size
        torch.backends.cudnn.benchmark = False  # timing algorithms for an odd last size does not pay
        probs = torch.zeros(len(images), self.data.observed.shape[1], device=self.device)
        mine = distributed.shard(len(images))
        batches = torch.arange(mine.start, mine.stop).split(size) if len(mine) else ()
        with distributed.progress_bar(len(mine), name) as bar:
            for rows, batch in zip(batches, images.stream(batches, self.device), strict=True):
                with autocast(self.device, self.precision):
                    logits = model(model.to_input(batch))
                probs[rows[0] : rows[-1] + 1] = torch.sigmoid(logits.float())
                bar.update(len(batch))
                after_batch()
        most = -(-len(images) // distributed.world_size())  # images of the process that has most
        for _ in range(len(batches), -(-most // size)):
            after_batch()
        distributed.all_sum(probs)
        if not torch.isfinite(probs).all():
            raise UserError(
                f"{name}: predictions are not finite, the weights have diverged; lower --lr and use --overwrite"
            )
        return probs


def check_losses(losses: Tensor, epoch: int) -> None:
    """Raises UserError naming the first step whose loss is not finite."""
    bad = ~torch.isfinite(losses)
    if bad.any():
        raise UserError(
            f"the loss is {losses[bad][0].item()} in epoch {epoch}, batch {int(bad.int().argmax()) + 1} of "
            f"{len(losses)}; nothing after the last checkpoint was kept. Lower --lr, or try --precision float32"
        )
