"""A whole run by the real command, stage by stage: what `train.py --cell` measures."""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

import datasets
from benchmarks.common import environment, random_similarity, shown, table
from config import Config
from util.devices import pick_device
from util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def cell(config: Config, folder: Path, given: list[str], repeats: int) -> None:
    """A whole run by the real command: similarities given, cache warm; its stages by the time its lines come."""
    splits = datasets.load(config.folder)
    images, classes = splits.train.names, np.array(splits.classes.names)
    similarity = random_similarity(len(images), len(classes))
    np.savez(folder / "similarity.npz", images=images, classes=classes, similarity=similarity)
    command = [sys.executable, str(ROOT / "main.py"), *given, "-d", config.dataset, "--data-root", str(folder)]
    command += ["--similarity", str(folder / "similarity.npz"), "--no-pretrained"]

    def run(number: int, *more: str) -> dict[str, float]:
        began, marks, results = time.perf_counter(), {}, folder / f"results_{number}"
        whole = [*command, *more, "--results-dir", str(results)]
        with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            for line in process.stdout:
                for mark, beginning in {"data": f"{config.dataset_name}:", "run": "run:"}.items():
                    if line.startswith(beginning):
                        marks[mark] = time.perf_counter() - began
        if process.returncode:
            raise UserError(f"{' '.join(whole)} failed")
        marks["end"] = time.perf_counter() - began
        history = next(results.glob("*/metrics.jsonl")).read_text().splitlines()
        epochs = [json.loads(line)["seconds"] for line in history]
        return {
            "start-up (imports, device, file lists)": marks["data"],
            "images, pseudo-labels, backbone": marks["run"] - marks["data"],
            "first epoch beyond the others (first use of kernels)": epochs[0] - median(epochs),
            "epochs, without that": median(epochs) + sum(epochs[1:]),
            "checkpoints, test, results": marks["end"] - marks["run"] - sum(epochs),
            "whole command": marks["end"],
        }

    cold = run(0, "--epochs", "1")
    runs = [run(number) for number in range(1, repeats + 1)]
    rows = [[stage, shown([one[stage] for one in runs])] for stage in runs[0]]
    rows.insert(0, ["beforehand, once: decoding into the cache, and start-up", shown([sum(list(cold.values())[:2])])])
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.named().items())
    table(
        f"A whole cell by the real command: {config.model}, {config.image_size} px, batch {config.batch_size}, "
        f"{config.epochs} epochs, {sizes} images",
        ["stage", "s"],
        rows,
        f"Median (lowest to highest), n {repeats}. {environment(pick_device(config.gpu), ('torchvision',))}",
    )
