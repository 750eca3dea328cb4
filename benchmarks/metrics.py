"""Metrics of a COCO-sized test set: this code, scikit-learn and Python loops.

    python benchmarks/metrics.py [--images 40137 --labels 80]

A tenth of the scores are rounded, so that there are ties, as bf16 would make them.
"""

import sys
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

import metrics
from benchmarks import recipe
from benchmarks.common import environment, faster, parser, positive, shown, side_by_side, table
from util.errors import run_script


def main() -> None:
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--images", type=positive, default=40137, help="(default: %(default)s)")
    arguments.add_argument("--labels", type=positive, default=80, help="(default: %(default)s)")
    options = arguments.parse_args()
    from sklearn.metrics import average_precision_score

    random = np.random.RandomState(0)
    labels = (random.random_sample((options.images, options.labels)) < 2.9 / options.labels).astype(np.int8)
    probs = np.clip(random.normal(0.3, 0.15, labels.shape) + 0.2 * labels, 0, 1).astype(np.float32)
    probs[::10] = probs[::10].round(2)
    lists = probs.tolist(), labels.tolist()

    def sklearn() -> np.ndarray:
        return np.nan_to_num(average_precision_score(labels, probs, average=None))

    taken = side_by_side(
        {
            "mAP, this code": lambda: metrics.mean_average_precision(probs, labels),
            "mAP and precision, recall, top at 1, 3, 5, this code": lambda: metrics.evaluate(probs, labels),
            "mAP, scikit-learn": sklearn,
            "mAP, Python loops over lists": lambda: recipe.mean_average_precision(*lists),
        },
        options.repeats,
    )
    loops = taken["mAP, Python loops over lists"]
    difference = np.abs(metrics.average_precision(probs, labels) - sklearn()).max()
    table(
        f"Metrics of {options.images:,} x {options.labels} predictions",
        ["", "s", "times the loops' speed"],
        [[name, shown(values), faster(values, loops)] for name, values in taken.items()],
        f"Largest difference of an AP from scikit-learn's: {difference:.1e}. "
        f"Median (lowest to highest), n {options.repeats}. {environment(None, ('scikit-learn',))}",
    )


if __name__ == "__main__":
    run_script(main)
