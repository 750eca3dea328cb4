"""results/<run>/: one folder per run, found by the run's identity; created, recorded, checkpointed, resumed, finished.

config.json      settings, identity, command, git commit, versions, device
pseudo_labels.json  how good the pseudo-labels are, at this threshold and at others; pseudo_labels.png shows it
metrics.jsonl    one line per epoch
last.pt          everything needed to resume; not needed once the run is finished
best.pt          the backbone at the best validation epoch (or the last, see test.json)
model.safetensors, model.json  the same weights and all that is needed to use them (models/saved.py)
test.json        the result: test is scored once, from best.pt. Written last: where it is, the run is finished
per_class.csv    class, test positives, test AP
predictions.npz  test images, probs, labels
curves.png       loss and validation mAP over the epochs
"""

import csv
import json
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import config as settings
import label_quality
from config import Config
from datasets import files
from models import Backbone, saved
from util import devices, distributed
from util.errors import UserError, why
from util.files import atomic, digest, file_digest, local_file, locked, read_json, write_arrays, write_json


def identity(config: Config) -> dict:
    """What makes two runs the same run: the settings that they read, with the content of every file that they name."""
    result = settings.read_settings(config)
    for name in ("weights", "text_features", "similarity", "teacher", "teacher_weights"):
        if result.get(name) and (path := local_file(result[name])):
            result[name] = file_digest(path)
    return result | {"data": files.digest(config.folder)}


def run_name(config: Config) -> str:
    """Readable parts, then a digest of the whole identity."""
    parts = (config.dataset_name, config.loss, config.model.replace(":", "-").replace("/", "-"), f"s{config.seed}")
    return "_".join((*parts, digest(identity(config), length=8)))


class State(Protocol):
    """What a checkpoint saves and restores: engine.Training."""

    epoch: int
    steps: int
    best: dict
    evaluated: torch.nn.Module

    def load_state_dict(self, state: dict) -> None: ...


class Run:
    """One run's folder, which only the main process writes.

    Checkpoints are written by a thread, one after the other, from a copy of the state, while training goes on. What
    goes wrong there is raised by the next `save`, and at the latest by `wait`.

    checkpoint  the state to resume from, or None
    device      of the states that are saved
    thread      writes the checkpoints
    """

    def __init__(self, folder: Path, checkpoint: dict | None, device: torch.device, thread: ThreadPoolExecutor) -> None:
        self.folder, self.checkpoint, self.device, self.thread = folder, checkpoint, device, thread
        self.writing: Future | None = None

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
        with fitting(self.folder / "last.pt"):
            training.load_state_dict(self.checkpoint)
        if not distributed.all_equal(training.epoch, training.steps):
            raise UserError(f"{self.folder}/last.pt is not yet the same on all nodes; wait a minute and run it again")
        if training.steps == 0 and training.best["epoch"] == training.epoch - 1:
            self.save_best(training.evaluated.state_dict())  # the process may have died before it was written
        print(f"resuming in epoch {training.epoch} after {training.steps} batches: {self.folder}")

    def save(self, state: dict) -> None:
        """Write last.pt, then metrics.jsonl, which repeats the history that last.pt holds."""
        self.wait()  # so that there is never more than one copy of the state
        self._later(self._write_last, state)

    def _write_last(self, state: dict) -> None:
        with atomic(self.folder / "last.pt") as temporary:
            write_tensors(temporary, state)
        self.write_history(state["history"])

    def write_history(self, history: list[dict]) -> None:
        with atomic(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))

    def save_best(self, model: dict) -> None:
        """Write best.pt, after last.pt, which can stand for it if the process dies in between."""
        self._later(self._write_best, model)

    def _write_best(self, model: dict) -> None:
        with atomic(self.folder / "best.pt") as temporary:
            write_tensors(temporary, model)

    def _later(self, write: Callable[[dict], None], state: dict) -> None:
        """Call write(copy of the state) in the thread, unless what was to be written before it could not be."""
        if not distributed.is_main():
            return
        before, copy = self.writing, deepcopy(state)
        stream = devices.side_stream(self.device)

        def then() -> None:
            if before is not None:
                before.result()
            with stream:
                write(copy)

        self.writing = self.thread.submit(then)

    def wait(self) -> None:
        """Until all that was saved is on the disk. Raises what went wrong there."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def load_best(self, model: torch.nn.Module) -> None:
        """Give the model, on all processes, the weights of the best validation epoch."""
        self.wait()
        load_best(self.folder, model)

    def finish(
        self,
        result: dict,
        history: list[dict],
        model: Backbone | None,
        about: dict,
        predictions: dict[str, np.ndarray] | None,
        per_class: list[dict] | None,
    ) -> None:
        """Write what a finished run leaves: first what is needed to use its model, last the result.

        model, about            the chosen epoch's weights, and what model.json says of them; None: nothing was trained
        predictions, per_class  of the test images; None where nothing was tested
        """
        if not distributed.is_main():
            return
        if model is not None:
            saved.write(self.folder, model, about)
        self.write_history(history)  # again: the process that wrote last.pt may have died before it was written
        if predictions is not None:
            write_arrays(self.folder / "predictions.npz", **predictions)
            with atomic(self.folder / "per_class.csv") as temporary, open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(per_class[0]))
                writer.writeheader()
                writer.writerows(per_class)
        if history:
            draw_figure(self.folder / "curves.png", draw_curves, history, result)
        write_json(self.folder / "test.json", result)


def draw_figure(path: Path, draw: Callable, *arguments: object) -> None:
    """Write the figure that draw(path, *arguments) makes."""
    try:
        with atomic(path) as temporary:
            draw(temporary, *arguments)
    except ImportError as error:  # no reason to lose a run
        print(f"{path.name} is not drawn ({error}); install the packages of requirements.txt")


def load_best(folder: Path, model: torch.nn.Module) -> None:
    """Give the model, on all processes, the weights that a run in the folder has kept."""
    if distributed.is_main():
        with fitting(folder / "best.pt"):
            model.load_state_dict(read_tensors(folder / "best.pt"))
    distributed.broadcast(model.state_dict().values())


def write_tensors(path: Path, state: dict) -> None:
    """torch.save; raises UserError where the disk is full."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a write that failed
            raise UserError(f"{path.parent}: a checkpoint could not be written ({error}); is the disk full?") from None


def read_tensors(path: Path) -> dict:
    """A checkpoint of ours; raises UserError where it is absent or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            if broken := file.testzip():  # torch.load does not compare checksums
                raise ValueError(f"the checksum of {broken} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise UserError(f"{path} not found; start the run over with --overwrite") from None
    except Exception as error:  # zip, pickle and PyTorch each raise their own
        raise UserError(f"{path} is damaged ({why(error)}); start the run over with --overwrite") from None


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside, while a checkpoint is put to use, into a UserError that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} does not fit this run ({why(error)}); start the run over with --overwrite") from None


def finished(config: Config) -> dict | None:
    """The result of the run of this identity, if it is finished and not to be overwritten.

    Raises UserError where it is unfinished and neither --resume nor --overwrite is given: at once, not after an hour
    of preparation.
    """
    folder = Path(config.results_dir) / run_name(config)
    if config.overwrite or not folder.exists():
        return None
    if (folder / "test.json").exists():
        return read_json(folder / "test.json")
    if not config.resume:
        raise UserError(f"{folder} holds an unfinished run; go on with --resume, or start over with --overwrite")
    return None


@contextmanager
def open_run(config: Config, data_key: str, device: torch.device) -> Iterator[Run]:
    """The run of this identity, created or resumed, held against other runs of it.

    data_key: digest of the images and labels that the run reads. Pseudo-labels are made of these and of what the run's
    identity names, and soft ones differ in their last bits between machines.
    Raises UserError where the data is not what the run began with, and where another process is running it.
    """
    folder = Path(config.results_dir) / run_name(config)
    busy = f"{folder} is being run by another process"
    with locked(folder, wait=False, busy=busy) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            if config.overwrite and folder.exists():
                shutil.rmtree(folder)
            if not folder.exists():
                _create(folder, config, data_key, device)
        distributed.barrier()
        distributed.wait_for_file(folder / "config.json")
        if read_json(folder / "config.json").get("data_key") != data_key:
            raise UserError(f"images or labels are not those that {folder} began with; start over with --overwrite")
        checkpoint = read_tensors(folder / "last.pt") if (folder / "last.pt").exists() else None
        with ThreadPoolExecutor(1, "checkpoints") as thread:
            run = Run(folder, checkpoint, device, thread)
            try:
                yield run
            finally:
                run.wait()


def _create(folder: Path, config: Config, data_key: str, device: torch.device) -> None:
    """The folder with its config.json, made under another name and renamed, so that it never lacks it."""
    making = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    versions = {module: sys.modules[module].__version__ for module in ("torch", "numpy")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    about = {
        "identity": identity(config),
        "config": asdict(config),
        "data_key": data_key,
        "command": sys.argv,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{device.type}: {name}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(making / "config.json", about)
    making.rename(folder)


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
