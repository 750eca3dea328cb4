"""results/<run>/: one folder per run, found by the run's identity; created, recorded, checkpointed, resumed, finished.

config.json      settings, identity, command, git commit, versions, device
images.npz       names of the images that it reads, and a hash of each one's content
pseudo_labels.json  how good the pseudo-labels are, at this threshold and at others; pseudo_labels.png shows it
metrics.jsonl    one line per epoch
last.pt          everything needed to resume; not needed once the run is finished
best.pt          the weights at the best validation epoch (or the last, see test.json), with the run's key
model.safetensors, model.json  the same weights and all that is needed to use them (models/saved.py)
predictions.npz  test images, probs, labels
per_class.csv    class, test positives, test AP, threshold
test.json        the result: test is scored once, from best.pt. Where it is, the run is finished
curves.png       loss and validation mAP over the epochs, where they can be drawn
"""

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol

import msgspec
import numpy as np
import torch

import config as settings
import label_quality
from config import Config
from datasets import Splits, files
from models import Backbone, saved
from models.clip import tower_digest
from models.weights import check_finite, check_kinds, file_identity
from util import distributed
from util.errors import UserError, describe_error, quiet
from util.files import (
    atomic,
    digest,
    locked,
    open_regular,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

RESTART = "start the run over with --overwrite"


def identity(config: Config) -> dict:
    """What makes two runs the same run: the settings that they read, with the content of every file that they name."""
    result = settings.effective_settings(config)
    teacher = config.asked_teacher().identity()
    result |= {name: value for name, value in teacher.items() if name in result}
    if "weights" in result:
        result["weights"] = file_identity(config.weights)
    if "model" in result:
        result["model"] = tower_digest(config.model) or config.model
    return result | {"data": files.digest(config.folder)}


def run_name(config: Config) -> str:
    """Readable parts, then a digest of the whole identity."""
    about, parts = identity(config), [config.dataset_name, config.loss]
    if "seed" in about:  # a teacher alone has neither backbone nor seed
        parts += [config.model.replace(":", "-").replace("/", "-"), f"s{config.seed}"]
    return "_".join((*parts, digest(about, length=8)))


class State(Protocol):
    """What a checkpoint saves and restores: engine.Training."""

    epochs: int
    num_steps: int
    epoch: int
    steps: int
    best: dict
    evaluated: torch.nn.Module

    def load_state_dict(self, state: dict) -> None: ...


Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]  # neither NaN nor infinite


class Result(msgspec.Struct):
    """What is read of test.json."""

    folder: str
    test_mAP: Percent | msgspec.UnsetType = msgspec.UNSET


class Best(msgspec.Struct):
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    val_mAP: Annotated[float, msgspec.Meta(ge=-1, le=100)] | None  # -1: no epoch yet


class Epoch(msgspec.Struct):
    epoch: int
    train_loss: Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]  # likewise
    val_mAP: Percent | None


class Progress(msgspec.Struct):
    """The part of last.pt that is not tensors."""

    run: str
    epoch: Annotated[int, msgspec.Meta(ge=1)]
    step: Annotated[int, msgspec.Meta(ge=0)]
    best: Best
    history: list[Epoch]

    def check(self, key: str, epochs: int, num_steps: int) -> None:
        """Raises ValueError where this is not a state that the run of this key can be in."""
        if self.run != key:
            raise ValueError("it is another run's")
        if self.epoch > epochs + 1 or self.step > (num_steps if self.epoch <= epochs else 0):
            raise ValueError(f"it is in epoch {self.epoch} after {self.step} batches of {num_steps}")
        if [row.epoch for row in self.history] != list(range(1, self.epoch)) or self.best.epoch >= self.epoch:
            raise ValueError(f"its history is not that of {self.epoch - 1} epochs")
        if self.best.epoch and self.history[self.best.epoch - 1].val_mAP != self.best.val_mAP:
            raise ValueError(f"its best epoch {self.best.epoch} is not in its history")


class Run:
    """One run's folder, which only the main process writes.

    about       what config.json says
    images      names and keys of the images
    checkpoint  the state to resume from, or None
    tensorboard  whether the history is written for TensorBoard too
    """

    def __init__(
        self,
        folder: Path,
        about: dict,
        images: dict[str, np.ndarray],
        checkpoint: dict | None,
        tensorboard: bool = False,
    ) -> None:
        self.folder, self.about, self.images, self.checkpoint = folder, about, images, checkpoint
        self.key = digest(about["identity"], about["data_key"])
        self.best_epoch, self.best_file = 0, None
        self.events = Events(folder / "tensorboard") if tensorboard and distributed.is_main() else None

    def keep_pseudo_labels(self, about: dict) -> None:
        """Write how good the pseudo-labels are, if they are not there yet."""
        path = self.folder / "pseudo_labels.json"
        if not distributed.is_main() or path.exists():
            return
        title = f"pseudo-labels of the {about['images']:,} training images"
        draw_figure(self.folder / "pseudo_labels.png", label_quality.draw, about, title)
        write_json(path, about)

    def restore(self, training: State) -> None:
        """Put the training into the state of the checkpoint, if there is one."""
        if self.checkpoint is None:
            print(f"run: {self.folder}")
            return
        with checkpoint_errors(self.folder / "last.pt"):
            plain = {name: self.checkpoint[name] for name in Progress.__struct_fields__}
            msgspec.convert(plain, Progress).check(self.key, training.epochs, training.num_steps)
            check_finite(self.checkpoint)
            check_kinds(self.checkpoint["model"], training.model.state_dict())
            training.load_state_dict(self.checkpoint)
        if not distributed.all_equal(training.epoch, training.steps):
            raise UserError(f"{self.folder}/last.pt is not yet the same on all nodes; wait a minute and run it again")
        self.best_epoch = training.best["epoch"]
        if training.steps == 0 and self.best_epoch and self.best_epoch == training.epoch - 1:
            self.save_best(training.evaluated.state_dict())  # the process may have died before it was written
        elif self.best_epoch and distributed.is_main():
            self.keep_best()
        print(f"resuming in epoch {training.epoch} after {training.steps} batches: {self.folder}")

    def save(self, state: dict) -> None:
        """Write last.pt, then metrics.jsonl, which repeats the history that last.pt holds."""
        self.best_epoch = state["best"]["epoch"]
        if not distributed.is_main():
            return
        self.make_again()
        with atomic(self.folder / "last.pt") as temporary:
            write_tensors(temporary, state | {"run": self.key})
        self.write_history(state["history"])

    def make_again(self) -> None:
        """Make the folder again where somebody has removed it, or its description, while the run trains."""
        if distributed.is_main() and not (self.folder / "config.json").exists():
            print(f"warning: {self.folder} was removed while the run was in it; it is made again, and the run goes on")
            _describe(self.folder, self.about, self.images)

    def write_history(self, history: list[dict]) -> None:
        with atomic(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
        if self.events:
            self.events.write(history)

    def save_best(self, model: dict) -> None:
        """Write best.pt, the weights of the epoch that the last saved state calls the best; last.pt, which is written
        before it, can stand for it if the process dies in between."""
        if not distributed.is_main():
            return
        with atomic(self.folder / "best.pt") as temporary:
            write_tensors(temporary, {"model": model, "run": self.key, "epoch": self.best_epoch})
        self.keep_best()

    def keep_best(self) -> None:
        """Keep best.pt open: it can be read to the end of the run, also where somebody removes it."""
        self.best_file = open_regular(self.folder / "best.pt", RESTART)

    def load_best(self, model: torch.nn.Module) -> None:
        """Give the model, on all processes, the weights of the best validation epoch."""
        load_best(self.folder, model, (self.key, self.best_epoch), self.best_file)

    def finish(
        self,
        result: dict,
        history: list[dict],
        model: Backbone | None,
        about: dict,
        predictions: dict[str, np.ndarray] | None,
        per_class: list[dict] | None,
    ) -> None:
        """Write what a finished run leaves: what is needed to use its model, the result, then what is nice to have.

        model, about            the chosen epoch's weights, and what model.json says of them; None: nothing was trained
        predictions, per_class  of the test images; None where nothing was tested
        """
        if not distributed.is_main():
            return
        self.make_again()
        if model is not None:
            saved.write(self.folder, model, about)
        self.write_history(history)  # again: the process that wrote last.pt may have died before it was written
        if predictions is not None:
            write_arrays(self.folder / "predictions.npz", **predictions)
            with atomic(self.folder / "per_class.csv") as temporary:
                with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                    writer = csv.DictWriter(file, fieldnames=list(per_class[0]))
                    writer.writeheader()
                    writer.writerows(per_class)
        write_json(self.folder / "test.json", result)
        if history:
            draw_figure(self.folder / "curves.png", draw_curves, history, result)


def draw_figure(path: Path, draw: Callable, *arguments: object) -> None:
    """Write the figure that draw(path, *arguments) makes."""
    os.environ.pop("MPLBACKEND", None)  # of a notebook, say: nothing is shown here
    try:
        with atomic(path) as temporary:
            draw(temporary, *arguments)
    except Exception as error:  # of the library, its backend or its fonts: no reason to lose a run
        print(f"{path.name} is not drawn ({describe_error(error)}); everything else is written")


def load_best(
    folder: Path, model: torch.nn.Module, expected: tuple[str, int] | None = None, file: BinaryIO | None = None
) -> None:
    """Give the model, on all processes, the weights that a run in the folder has kept.

    expected  the run's key and its best epoch; None: any run's
    """
    if distributed.is_main():
        with checkpoint_errors(folder / "best.pt"):
            best = read_tensors(folder / "best.pt", file)
            if expected is not None and expected != (best["run"], best["epoch"]):
                raise ValueError("it is another run's, or of another epoch")
            check_finite(best["model"])
            check_kinds(best["model"], model.state_dict())
            model.load_state_dict(best["model"])
    distributed.broadcast(model.state_dict().values())


class Events:
    """The history as TensorBoard reads it, written anew by a run that is resumed."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard, which no other run needs

        self.writer, self.written = SummaryWriter(str(folder), purge_step=1), 0

    def write(self, history: list[dict]) -> None:
        """Write the epochs that are not there yet."""
        for row in history[self.written :]:
            for name in ("train_loss", "val_mAP"):
                if row.get(name) is not None:
                    self.writer.add_scalar(name, row[name], row["epoch"])
        self.written = len(history)
        self.writer.flush()


def write_tensors(path: Path, state: dict) -> None:
    """torch.save; raises OSError where the disk is full."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a write that failed
            raise OSError(f"{describe_error(error)}; is the disk full?") from None


def read_tensors(path: Path, file: BinaryIO | None = None) -> dict:
    """A checkpoint of ours, from the file if it is open; raises UserError where it is absent or damaged."""
    file = file or open_regular(path, RESTART)
    try:
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():  # torch.load does not compare checksums
                raise ValueError(f"the checksum of {broken} is wrong")
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # zip, pickle and PyTorch each raise their own
        raise UserError(f"{path} is damaged ({describe_error(error)}); {RESTART}") from None


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside, while a checkpoint is put to use, into a UserError that names it."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # msgspec, PyTorch and Python each raise their own
        raise UserError(f"{path} does not fit this run ({describe_error(error)}); {RESTART}") from None


def load_result(config: Config, splits: Splits | None = None) -> dict | None:
    """The result of the run of this identity, if it is finished and not to be overwritten.

    splits: the data set as it is now; None: the images are not compared.
    Raises UserError where its images are not those that the run read, and where the run is unfinished and neither
    --resume nor --overwrite is given: at once, not after an hour of preparation.
    """
    folder = Path(config.results_dir) / run_name(config)
    if config.overwrite or not folder.exists():
        return None
    if (folder / "test.json").exists():
        if splits is not None:
            check_images(folder, splits.images())
        read_json(folder / "test.json", Result, RESTART)
        found = read_json(folder / "test.json", dict[str, object], RESTART)
        return found | {"folder": str(folder)}  # which may have moved
    if not config.resume:
        raise UserError(f"{folder} holds an unfinished run; go on with --resume, or start over with --overwrite")
    return None


def check_images(folder: Path, images: dict[str, np.ndarray]) -> None:
    """Raises UserError, with what differs, where these are not the images that a run reads or has read."""
    parts = ("splits", "names", "keys")
    then = dict(zip(parts, read_arrays(folder / "images.npz", parts, RESTART), strict=True))
    if all(np.array_equal(then[part], images[part]) for part in parts):
        return
    before, now = (
        dict(zip(zip(*(array[part].tolist() for part in parts[:2]), strict=True), array["keys"].tolist(), strict=True))
        for array in (then, images)
    )
    found = {
        "are gone": [image for image in before if image not in now],
        "hold another picture": [image for image in before if now.get(image, before[image]) != before[image]],
        "are new": [image for image in now if image not in before],
    }
    told = ", ".join(f"{len(images):,} {how} ({' '.join(images[0])})" for how, images in found.items() if images)
    raise UserError(
        f"the images are not those of {folder}: {told or 'their order is another'}; put those back, name their folder "
        "with --image-root DIR, or start over with --overwrite"
    )


class Description(msgspec.Struct):
    """What is read of config.json."""

    identity: dict[str, object]
    data_key: str
    threads: int | None = None


@contextmanager
def open_run(config: Config, splits: Splits, device: torch.device, wait: bool = False) -> Iterator[Run]:
    """The run of this identity, created or resumed, held against other runs of it.

    Pseudo-labels are made of its images and labels and of what the run's identity names; soft ones differ in their last
    bits between machines, and are not compared.
    wait  for another process that is running it
    Raises UserError where the data is not what the run began with, and, without `wait`, where another process is
    running it.
    """
    folder = Path(config.results_dir) / run_name(config)
    busy = f"{folder} is being run by another process"
    with locked(folder, wait=wait, busy=busy) if distributed.is_main() else nullcontext():
        images, data_key = splits.images(), digest([split.key() for split in splits.named().values()])
        about = describe(config, data_key, device)
        if distributed.is_main():
            if config.overwrite and folder.exists():
                shutil.rmtree(folder)
            if not os.path.lexists(folder):
                making = folder.with_name(f".{folder.name}.new")  # renamed, so that the folder never lacks a file
                shutil.rmtree(making, ignore_errors=True)
                _describe(making, about, images)
                making.rename(folder)
        distributed.barrier()
        distributed.wait_for_file(folder / "config.json")
        check_images(folder, images)
        began = read_json(folder / "config.json", Description, RESTART)
        if began.data_key != data_key:
            raise UserError(f"the labels are not those that {folder} began with; {RESTART}")
        checkpoint = read_tensors(folder / "last.pt") if os.path.lexists(folder / "last.pt") else None
        if device.type == "cpu" and checkpoint and began.threads not in (None, torch.get_num_threads()):
            print(
                f"note: this run began with {began.threads} threads and goes on with {torch.get_num_threads()}, which "
                f"changes the last bits of its numbers; --threads {began.threads} keeps them"
            )
        yield Run(folder, about, images, checkpoint, config.tensorboard)


def _describe(folder: Path, about: dict, images: dict[str, np.ndarray]) -> None:
    write_arrays(folder / "images.npz", **images)
    write_json(folder / "config.json", about)


def describe(config: Config, data_key: str, device: torch.device) -> dict:
    """What config.json says of a run."""
    versions = {module: sys.modules[module].__version__ for module in ("torch", "numpy")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "identity": identity(config),
        "config": asdict(config),
        "data_key": data_key,
        "command": sys.argv,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """The commit of this code, with a + where files differ from it; None outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def draw_curves(path: Path, history: list[dict], result: dict) -> None:
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss")
    if "val_mAP" in result:
        right.plot(epochs, [row["val_mAP"] for row in history], marker="o", markersize=3, label="validation")
    right.axvline(result["best_epoch"], color="0.7", linestyle=":", label=f"chosen epoch {result['best_epoch']}")
    if "test_mAP" in result:
        right.axhline(result["test_mAP"], color="C1", label=f"test {result['test_mAP']:.2f}")
    right.set(xlabel="epoch", ylabel="mAP, %")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{result['dataset']}, {result['loss']}, {result['model']}, seed {result['seed']}", fontsize=10)
    figure.savefig(path, format="png", dpi=120)
