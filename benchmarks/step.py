"""The training step in its three forms, milliseconds: eager, --cuda-graph and --compile, on one batch on the device.

    python benchmarks/step.py [--batches 8 16] [options of main.py]

A CPU has the eager form alone.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

import config as configuration
import datasets
from benchmarks.common import (
    environment,
    make_dataset,
    parser,
    photo_arguments,
    photographs,
    positive,
    seconds,
    shown,
    side_by_side,
    table,
)
from benchmarks.train import Ours
from util.devices import pick_device, pick_precision
from util.errors import UserError, run_script

FORMS = {"eager": {}, "--cuda-graph": {"cuda_graph": True}, "--compile": {"compile": True}}
STEPS = 20  # timed together


def main() -> None:
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--batches", type=positive, nargs="+", default=[8, 16], help="batch sizes (default: 8 16)")
    photo_arguments(arguments)
    options, given = arguments.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = photographs(options.photos, folder / "photos")
        make_dataset(folder, "photographs", photos, 2 * max(options.batches), 1, labels=20)
        config = configuration.parse([*given, "-d", "photographs", "--data-root", temporary])
        device, splits, rows = pick_device(config.gpu), datasets.load(config.folder), []
        config = replace(config, precision=pick_precision(config.precision, device))
        for size in options.batches:
            functions, row = {}, dict.fromkeys(FORMS, "-")
            for form, changes in FORMS.items() if device.type == "cuda" else [("eager", {})]:
                ours = Ours(replace(config, batch_size=size, **changes), splits, device)
                try:
                    preparation = seconds(lambda ours=ours: ours.bare_steps(3), device)
                except UserError as error:
                    row[form] = str(error)
                    continue
                functions[form] = lambda ours=ours: ours.bare_steps(STEPS)
                row[form] = f"; first three {preparation:.1f} s"
            for form, values in side_by_side(functions, options.repeats, device).items():
                row[form] = shown(values, 1000 / STEPS) + row[form]
            rows.append([size, *row.values()])
    table(
        f"Milliseconds per training step: {config.model}, {config.image_size} px, {config.precision}",
        ["batch size", *FORMS],
        rows,
        f"Median (lowest to highest) of {STEPS} steps in a row, n {options.repeats}. {environment(device, ('timm',))}",
    )


if __name__ == "__main__":
    run_script(main)
