"""Training over several processes: images per second against their number.

    python benchmarks/ddp.py [--processes 1 2] [--official 200 --epochs 3] [options of main.py]

Each number of processes is a run of the real command under torchrun; an epoch's seconds are in its metrics.jsonl,
without the first epoch.
"""

import json
import os
import subprocess
import sys
import tempfile
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
    rate,
    table,
)
from util.errors import UserError, run_script


def epoch_seconds(processes: int, folder: Path, given: list[str]) -> list[float]:
    results = folder / f"results_{processes}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(ROOT / "main.py"), *given, "--results-dir", str(results)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{done.stderr}")
    history = next(results.glob("*/metrics.jsonl")).read_text().splitlines()
    return [json.loads(line)["seconds"] for line in history][1:]


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument(
        "--processes", type=positive, nargs="+", help="(default: 1, and doubled up to the GPUs or cores)"
    )
    arguments.add_argument(
        "--official", type=positive, default=200, help="official training images (default: %(default)s)"
    )
    photo_arguments(arguments)
    options, given = arguments.parse_known_args()
    most = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    numbers = options.processes or [2**power for power in range(most.bit_length()) if 2**power <= min(most, 8)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = photographs(options.photos, folder / "photos")
        make_dataset(folder, "photographs", photos, options.official, 20, labels=20)
        given += ["-d", "photographs", "--data-root", str(folder), "-l", "EM", "--no-pretrained"]
        given += ["--epochs", str(options.repeats + 1)]
        taken = {count: epoch_seconds(count, folder, given) for count in numbers}
    first = taken[numbers[0]]
    table(
        f"Epochs of {options.official} images (four fifths trained on, a fifth validated on) by K processes",
        ["K", "images/s", f"times K = {numbers[0]}"],
        [[count, rate(options.official, values), faster(values, first)] for count, values in taken.items()],
        f"Median (lowest to highest), n {options.repeats}. "
        f"{environment(torch.device('cuda') if torch.cuda.is_available() else None)}",
    )


if __name__ == "__main__":
    run_script(main)
