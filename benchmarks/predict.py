"""Images per second from files to probabilities, as predict.py does it, beside decoding and the forward pass alone.

    python benchmarks/predict.py [--photos DIR --sizes 64 448 --images 250 -g 0]

Where decoding and the forward pass use different hardware, the bound is the slower of the two. On a CPU they share its
cores, and the bound is both at once: the decoded pixels are thrown away, and the forward pass reads others.
"""

import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

import models
from benchmarks import common
from benchmarks.common import positive, rate
from datasets.images import ahead
from datasets.pixels import decode
from models.saved import AHEAD, Metadata
from util.devices import default_workers, pick_device, pick_precision, set_threads
from util.errors import run_script


def main() -> None:
    arguments = common.parser(__doc__, repeats=5)
    arguments.add_argument("-m", "--model", default="resnet50", help="with random weights (default: %(default)s)")
    arguments.add_argument("--sizes", type=positive, nargs="+", default=[64, 448], help="pixels (default: 64 448)")
    arguments.add_argument("--images", type=positive, default=250, help="(default: %(default)s)")
    arguments.add_argument("--batch-size", type=positive, default=64, help="(default: %(default)s)")
    arguments.add_argument("--workers", type=positive, default=default_workers(), help="threads (default: %(default)s)")
    arguments.add_argument("--threads", type=positive, help="of the forward pass on a CPU (default: PyTorch's)")
    arguments.add_argument("-g", "--gpu", default="0", help="CUDA index, or cpu (default: %(default)s)")
    common.photo_arguments(arguments)
    options = arguments.parse_args()
    device = pick_device(options.gpu)
    set_threads(options.threads)
    precision, rows = pick_precision("auto", device), []
    with tempfile.TemporaryDirectory() as temporary:
        found = common.photographs(options.photos, Path(temporary))
        paths = [str(found[row % len(found)]) for row in range(options.images)]
        for size in options.sizes:
            network = models.build(options.model, 20, image_size=size, pretrained=False).eval().to(device)
            classes = [str(label) for label in range(20)]
            metadata = Metadata(options.model, size, [0.5] * 3, [0.5] * 3, classes, [0.5] * 20, "", precision=precision)
            saved = models.Predictor(network.to(memory_format=torch.channels_last), metadata, np.full(20, 0.5))
            rows.append([size, *measured(saved, paths, options)])
    common.table(
        f"Predicting {options.images} photographs: {options.model}, {precision}, {options.workers} threads decode, "
        f"batches of {options.batch_size}; images/s",
        ["pixels", "decoding", "forward pass", "both at once", "predict", "of the slower", "of both at once"],
        rows,
        f"Median (lowest to highest), n {options.repeats}; shares are of the medians. {common.environment(device)}",
    )


def measured(saved: models.Predictor, paths: list[str], options) -> list[str]:
    """The cells of a line: the speeds, and predict's share of the slower one and of both at once."""
    size, batch_size = saved.image_size, options.batch_size
    pixels = np.stack([decode(path, size) for path in paths[:batch_size]])
    counts = [min(batch_size, len(paths) - start) for start in range(0, len(paths), batch_size)]

    def decoding() -> None:
        for _ in ahead(lambda path: decode(path, size), paths, options.workers, AHEAD * batch_size):
            pass

    def forward() -> None:
        for count in counts:
            saved._forward(pixels[:count])

    def both() -> None:
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(decoding)
            forward()
            beside.result()

    def predict() -> None:
        saved.predict(paths, batch_size=batch_size, workers=options.workers)

    functions = {"decoding": decoding, "forward": forward, "both": both, "predict": predict}
    taken = common.side_by_side(functions, options.repeats, saved.network.mean.device)
    wall = {name: statistics.median(values) for name, values in taken.items()}
    bounds = max(wall["decoding"], wall["forward"]), wall["both"]
    speeds = [rate(len(paths), values) for values in taken.values()]
    return speeds + [common.number(bound / wall["predict"]) for bound in bounds]


if __name__ == "__main__":
    run_script(main)
