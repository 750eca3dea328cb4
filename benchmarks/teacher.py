"""The teacher's pass: images per second, its share of the bf16 matrix rate; what half precision does to similarities.

    python benchmarks/teacher.py [--teacher ViT-L-14-336-quickgelu --images 64] [-g 0]

Speed is measured with random weights on photographs; agreement with the digits teacher, whose scores cross the
threshold.
"""

import sys
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

import config as configuration
import datasets
from benchmarks.common import (
    environment,
    matrix_rate,
    number,
    parser,
    photo_arguments,
    photographs,
    positive,
    products,
    random_teacher,
    rate,
    side_by_side,
    table,
)
from datasets import DATASETS
from datasets.images import decode_batches
from models.teachers import clip as teachers
from pseudo_labels import rules
from util.devices import default_workers, pick_device
from util.errors import run_script


def speed(name: str, paths: list[str], batch_size: int, repeats: int, device: torch.device, workers: int) -> None:
    teacher = random_teacher(name, 20).to(device)
    half = deepcopy(teacher).to_precision("bf16")
    batch_size = min(batch_size, len(paths))
    batch = torch.randint(256, (batch_size, 3, teacher.size, teacher.size), dtype=torch.uint8, device=device)
    torch.backends.mha.set_fastpath_enabled(False)  # whose attention the counter does not see
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        teacher(batch[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    flops = counter.get_total_flops()
    multiply, work = products(device, "bf16")

    @torch.inference_mode()
    def forward(teacher: teachers.Scorer) -> None:
        teacher(batch)

    def whole(teacher: teachers.Scorer) -> None:
        for _ in teachers.score(teacher, paths, np.arange(len(paths)), batch_size, device, workers):
            pass

    def decoding() -> None:
        batches = torch.arange(len(paths)).split(batch_size)
        for _ in decode_batches(paths, teacher.size, batches, workers, teachers.RESAMPLE):
            pass

    both = {"float32": teacher, "float16": half}
    taken = side_by_side(
        {"products": multiply, "decoding alone": decoding}
        | {f"{name}, one batch on the device": lambda one=one: forward(one) for name, one in both.items()}
        | {f"{name}, whole pass over files": lambda one=one: whole(one) for name, one in both.items()},
        repeats,
        device,
    )
    peak = work / np.median(taken.pop("products"))
    rows = []
    for what, values in taken.items():
        images = batch_size if "batch" in what else len(paths)
        tera = images * flops / np.median(values) / 1e12
        computes = what != "decoding alone"
        rows.append(
            [
                what,
                rate(images, values),
                number(tera) if computes else "-",
                f"{1e12 * tera / peak:.2f}" if computes else "-",
            ]
        )
    table(
        f"The teacher {name}: {len(paths)} images, {flops / 1e9:,.0f} GFLOP each, batches of {batch_size}",
        ["", "images/s", "TFLOP/s", "share of the bf16 matrix rate"],
        rows,
        f"Matrix rate: {matrix_rate(peak, device)}. "
        f"Median (lowest to highest), n {repeats}. {environment(device, ('open_clip_torch', 'timm'))}",
    )


def agreement(device: torch.device, workers: int) -> None:
    """What half precision changes, on the training scenes of the digits."""
    config = configuration.parse(["-d", "digits"])
    DATASETS["digits"].make(config.folder)
    splits = datasets.load(config.folder)
    how = dict(batch_size=config.eval_batch_size, device=device, workers=workers)
    similarity = {}
    with tempfile.TemporaryDirectory() as temporary:
        for precision in ("float32", "bf16"):
            teacher = replace(config, precision=precision).asked_teacher()
            (similarity[precision],) = teacher.similarities(splits.train, splits.classes, Path(temporary), **how)
    rule, observed = config.method.pseudo_labels, splits.train.observed
    labels = {
        precision: rules.make(rule, config.hparams, [values], observed)[0] for precision, values in similarity.items()
    }
    difference = np.abs(similarity["bf16"] - similarity["float32"])
    same = labels["bf16"] == labels["float32"]
    table(
        f"float16 beside float32: the digits teacher on {len(splits.train):,} scenes of 10 labels",
        ["", "measured", "target"],
        [
            ["largest difference of a similarity", f"{difference.max():.1e}", "1e-03"],
            ["same pseudo-labels, of all entries", f"{100 * same.mean():.3f} %", "99.9 %"],
            ["positive pseudo-labels, float32", f"{(labels['float32'] == 1).sum():,}", "-"],
        ],
        environment(device, ("open_clip_torch",)),
    )


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument(
        "--teacher", default=configuration.Config.teacher, help="open_clip model (default: %(default)s)"
    )
    arguments.add_argument("--images", type=positive, default=16, help="images of the pass (default: %(default)s)")
    arguments.add_argument(
        "--batch-size", type=positive, default=configuration.Config.eval_batch_size, help="%(default)s"
    )
    arguments.add_argument("-g", "--gpu", default="0", help="CUDA index, or cpu (default: %(default)s)")
    photo_arguments(arguments)
    options = arguments.parse_args()
    device = pick_device(options.gpu)
    workers = default_workers()
    with tempfile.TemporaryDirectory() as temporary:
        found = photographs(options.photos, Path(temporary) / "photos")
        paths = [str(found[row % len(found)]) for row in range(options.images)]
        speed(options.teacher, paths, options.batch_size, options.repeats, device, workers)
    agreement(device, workers)


if __name__ == "__main__":
    run_script(main)
