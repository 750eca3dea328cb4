"""Runs per hour: several at a time on one GPU, against one after the other.

    python benchmarks/jobs.py [--jobs 3] [--official 640 --epochs 2] [options of main.py]

The runs are made by sweeps/seeds.sh, start-up included; images are decoded before the clock starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose names hide other modules

from benchmarks.common import (
    environment,
    faster,
    make_dataset,
    parser,
    photo_arguments,
    photographs,
    positive,
    shown,
    table,
)
from util.errors import UserError, run_script


def sweep(results: Path, jobs: int, gpu: str, runs: int, given: list[str]) -> float:
    """Seconds that so many runs take, `jobs` at a time."""
    seeds, logs = " ".join(map(str, range(runs))), str(results / "logs")
    about = {"JOBS": str(jobs), "GPUS": " ".join([gpu] * jobs), "SEEDS": seeds, "LOGS": logs, "PYTHON": sys.executable}
    command, began = [str(ROOT / "sweeps/seeds.sh"), *given, "--results-dir", str(results)], time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | about)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--jobs", type=positive, default=3, help="runs at a time, and in all (default: %(default)s)")
    arguments.add_argument("--official", type=positive, default=640, help="training images (default: %(default)s)")
    arguments.add_argument("-g", "--gpu", default="0", help="CUDA index, or cpu (default: %(default)s)")
    photo_arguments(arguments)
    options, given = arguments.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = photographs(options.photos, folder / "photos")
        make_dataset(folder, "photographs", photos, options.official, 20, labels=20)
        given = [
            "-d",
            "photographs",
            "--data-root",
            str(folder),
            "-l",
            "EM",
            "--no-pretrained",
            "--epochs",
            "2",
            *given,
        ]
        sweep(folder / "cold", 1, options.gpu, 1, [*given, "--cache", "disk"])
        taken = {jobs: [] for jobs in (1, options.jobs)}
        for turn in range(options.repeats):
            for jobs, values in taken.items():
                values.append(sweep(folder / f"{turn}_{jobs}", jobs, options.gpu, options.jobs, given))
    table(
        f"{options.jobs} runs over {options.official} images on one device, JOBS at a time",
        ["JOBS", "s", "runs per hour", "times JOBS = 1"],
        [
            [jobs, shown(values), shown([3600 * options.jobs / value for value in values]), faster(values, taken[1])]
            for jobs, values in taken.items()
        ],
        f"Median (lowest to highest), n {options.repeats}. "
        f"{environment(None if options.gpu == 'cpu' else torch.device('cuda', int(options.gpu)))}",
    )


if __name__ == "__main__":
    run_script(main)
