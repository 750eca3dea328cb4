"""results/<run>/: one folder per run, found by the run's identity; created, recorded, resumed, finished.

config.json         settings, identity, command, git commit, versions, device
pseudo_labels.json  quality of the pseudo-labels at the chosen threshold and at others; pseudo_labels.png shows it
metrics.jsonl       one line per epoch
last.pt             everything needed to resume; not needed once the run is finished
best.pt             the weights at the best validation epoch (or at the last, see test.json)
model.safetensors, model.json  the same weights and all that is needed to use them (models/saved.py)
predictions.npz     test images, probs, labels
per_class.csv       class, test positives, test AP, threshold
test.json           the result: test is scored once, from best.pt. A run with this file is finished
curves.png          loss and validation mAP over the epochs
"""

import csv
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from config import Config, effective_settings
from datasets import Splits, files
from models import Backbone, saved
from models.clip import backbone_identity
from models.weights import file_identity
from pseudo_labels import label_quality
from runs import checkpoints
from runs.checkpoints import RESTART
from runs.plots import Events, draw_curves, draw_figure
from util import distributed
from util.errors import UserError
from util.files import atomic, digest, locked, read_json, reading, write_json


def identity(config: Config) -> dict:
    """What makes two runs the same run: the settings that change its numbers, the files that they name, the formatted
    data, and the code of the method."""
    result = effective_settings(config)
    result |= {name: value for name, value in config.asked_teacher().identity().items() if name in result}
    result |= {name: file_identity(result[name]) for name in ("weights", "features") if name in result}
    if "model" in result:
        result["model"] = backbone_identity(config.model)
    for name, value in result.items():
        if isinstance(value, list) and [type(part) for part in value] == [str, int, int]:
            result[name] = value[:2]  # a file's name and size: to a run, though not to a cache, a copy is the same file
    return result | {"data": files.digest(config.folder), "code": config.method.code_digest()}


def run_name(config: Config) -> str:
    """Readable parts, then a digest of the whole identity."""
    known, parts = identity(config), [config.dataset_name, config.loss]
    if "seed" in known:  # a teacher alone has neither backbone nor seed
        parts += [config.model.replace(":", "-").replace("/", "-"), f"s{config.seed}"]
    return "_".join((*parts, digest(known, length=8)))


def folder_of(config: Config) -> Path:
    return Path(config.results_dir) / run_name(config)


def load_result(config: Config) -> dict | None:
    """The result of the run of this identity if it is finished and not to be overwritten.

    Raises UserError if the run is unfinished and neither --resume nor --overwrite is given.
    """
    folder = folder_of(config)
    if config.overwrite or not folder.exists():
        return None
    if (folder / "test.json").exists():
        return read_json(folder / "test.json") | {"folder": str(folder)}  # which may have moved
    if not config.resume:
        raise UserError(f"{folder} holds an unfinished run; continue it with --resume, or {RESTART}")
    return None


class Run:
    """One run's folder, which only the main process writes.

    key         digest of what the run trains on; its checkpoints carry it
    checkpoint  the state to resume from, or None
    """

    def __init__(self, folder: Path, key: str, checkpoint: dict | None, tensorboard: bool = False) -> None:
        self.folder, self.key, self.checkpoint = folder, key, checkpoint
        self.events = Events(folder / "tensorboard") if tensorboard and distributed.is_main() else None

    def keep_pseudo_labels(self, quality: dict) -> None:
        """Write the quality of the pseudo-labels if it is not there yet."""
        path = self.folder / "pseudo_labels.json"
        if distributed.is_main() and not path.exists():
            title = f"pseudo-labels of the {quality['images']:,} training images"
            draw_figure(self.folder / "pseudo_labels.png", label_quality.draw, quality, title)
            write_json(path, quality)

    def restore(self, training) -> None:
        """Put an engine.Training into the state of the checkpoint, if there is one."""
        if self.checkpoint is None:
            print(f"run: {self.folder}")
            return
        progress = self.checkpoint["epoch"], self.checkpoint["step"]
        newest = tuple(distributed.maximum(number) for number in progress)
        if progress != newest:
            raise UserError(f"{self.folder}/last.pt is older on this node than on others; run it again in a minute")
        with reading(self.folder / "last.pt", "a checkpoint of this run", RESTART):
            if self.checkpoint["run"] != self.key:
                raise ValueError("it belongs to a different run")
            training.load_state_dict(self.checkpoint)
        best = training.best["epoch"]
        if training.steps == 0 and best and best == training.epoch - 1:
            self.save_best(training.evaluated.state_dict())  # the process may have died before it was written
        print(f"resuming in epoch {training.epoch} after {training.steps} batches: {self.folder}")

    def save(self, state: dict) -> None:
        """Write last.pt, then metrics.jsonl, which repeats the history that last.pt holds."""
        if distributed.is_main():
            checkpoints.write(self.folder / "last.pt", state | {"run": self.key})
            self.write_history(state["history"])

    def save_best(self, model: dict) -> None:
        """Write best.pt. If the process dies before, `restore` makes it from last.pt."""
        if distributed.is_main():
            checkpoints.write(self.folder / "best.pt", {"model": model})

    def load_best(self, model: torch.nn.Module) -> None:
        """Give the model, on all processes, the weights of best.pt, which the main process reads."""
        if distributed.is_main():
            with reading(self.folder / "best.pt", "a checkpoint of this run", RESTART):
                model.load_state_dict(checkpoints.read(self.folder / "best.pt")["model"])
        distributed.broadcast(model.state_dict().values())

    def write_history(self, history: list[dict]) -> None:
        with atomic(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
        if self.events:
            self.events.write(history)

    def finish(
        self,
        result: dict,
        history: list[dict],
        model: Backbone | None,
        metadata: dict,
        predictions: dict[str, np.ndarray] | None,
        per_class: list[dict] | None,
    ) -> None:
        """Write the files of a finished run.

        model, metadata         the chosen epoch's weights, and the content of model.json; None: nothing was trained
        predictions, per_class  of the test images; None: nothing was tested
        """
        if not distributed.is_main():
            return
        if model is not None:
            saved.write(self.folder, model, metadata)
        self.write_history(history)  # again: the process that wrote last.pt may have died before it was written
        if predictions is not None:
            with atomic(self.folder / "predictions.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **predictions)
            with atomic(self.folder / "per_class.csv") as temporary:
                with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                    writer = csv.DictWriter(file, fieldnames=list(per_class[0]))
                    writer.writeheader()
                    writer.writerows(per_class)
        write_json(self.folder / "test.json", result)
        if history:
            draw_figure(self.folder / "curves.png", draw_curves, history, result)


@contextmanager
def open_run(config: Config, splits: Splits, device: torch.device, wait: bool = False) -> Iterator[Run]:
    """The run of this identity, created or resumed, locked against other processes.

    wait  wait if a different process is running it
    A run that fails before its first checkpoint leaves no folder.
    Raises UserError if images or labels are not those that the run began with, and, without `wait`, if a different
    process is running it.
    """
    folder, key, busy = folder_of(config), splits.key(), "is being run by a different process"
    with locked(folder, wait, f"{folder} {busy}") if distributed.is_main() else nullcontext():
        if distributed.is_main():
            _create(config, folder, key, device)
        distributed.barrier()
        distributed.wait_for_file(folder / "config.json")
        began = read_json(folder / "config.json")
        if began["data_key"] != key:
            raise UserError(f"images or labels are not those that {folder} began with; restore them, or {RESTART}")
        checkpoint = checkpoints.read(folder / "last.pt") if (folder / "last.pt").exists() else None
        if device.type == "cpu" and checkpoint and began["threads"] != torch.get_num_threads():
            print(
                f"note: this run began with {began['threads']} threads and continues with {torch.get_num_threads()}, "
                f"which changes the last bits of its numbers; --threads {began['threads']} keeps them"
            )
        try:
            yield Run(folder, digest(began["identity"], key), checkpoint, config.tensorboard)
        except Exception:
            if distributed.is_main() and not (folder / "last.pt").exists():
                shutil.rmtree(folder)
            raise


def _create(config: Config, folder: Path, key: str, device: torch.device) -> None:
    """Make the folder with config.json, unless a run is to be resumed in it."""
    if config.overwrite and folder.exists():
        shutil.rmtree(folder)
    if folder.exists():
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    content = {
        "identity": identity(config),
        "config": asdict(config),
        "data_key": key,
        "command": sys.argv,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    new = folder.with_name(f".{folder.name}.new")  # renamed, so that the folder never lacks a file
    shutil.rmtree(new, ignore_errors=True)
    write_json(new / "config.json", content)
    new.rename(folder)


def git_commit() -> str | None:
    """The commit of this code, with a + if files differ from it; None outside a repository and without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    if not shutil.which("git"):
        return None
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
