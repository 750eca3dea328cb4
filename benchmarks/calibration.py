"""What the known labels add to a real teacher: its scores of VOC's unobserved labels, before and after calibration.

    SPML_REAL_DATA=DIR python benchmarks/calibration.py [--images 60 200 600 1500 5717]

DIR holds the labels of VOC 2012's 5,717 training images, and the similarities of CLIP RN50x64 to these images and to
their 3 x 3 tiles. Fewer images are drawn five times. An entry (image, label) that is observed is left out, except in
the column of all entries: a method does not read its score.
"""

import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

import metrics
from benchmarks.common import environment, table
from datasets.protocol import observe
from models import teachers
from pseudo_labels import label_quality, rules
from pseudo_labels.calibration import CALIBRATIONS
from util.errors import OneLineParser, UserError, run_script

TEMPERATURE, THRESHOLD = 0.01, 0.3  # VLPL's
DRAWS = 5  # of fewer images than there are


def measure(scores: np.ndarray, observed: np.ndarray, true: np.ndarray) -> list[float]:
    """Columns of the table: mAP of the unobserved entries; of these, ranked together, recall at precision 0.8 and the
    best F1; mAP of all entries.

    scores  (N, L) float;  observed  (N, L) in {-1, 0, +1};  true  (N, L) in {0, 1}
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    unobserved = observed == 0
    per_class = [
        average_precision_score(true[rows, label], scores[rows, label])
        for label, rows in enumerate(unobserved.T)
        if true[rows, label].any()
    ]
    precision, recall, _ = precision_recall_curve(true[unobserved], scores[unobserved])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    all_entries = metrics.mean_average_precision(scores, true)
    return [100 * np.mean(per_class), recall[precision >= 0.8].max(), f1.max(), all_entries]


def main(argv: list[str] | None = None) -> None:
    arguments = OneLineParser(__doc__)
    arguments.add_argument(
        "--data", default=os.environ.get("SPML_REAL_DATA"), metavar="DIR", help="(default: $SPML_REAL_DATA)"
    )
    arguments.add_argument("--images", type=int, nargs="+", default=[60, 200, 600, 1500, 5717], metavar="N")
    options = arguments.parse_args(argv)
    if not options.data or not Path(options.data, "reference/voc2012_protocol.npz").is_file():
        raise UserError("--data DIR, or SPML_REAL_DATA, must name a folder with reference/voc2012_protocol.npz")
    folder = Path(options.data)
    with np.load(folder / "reference/voc2012_protocol.npz", allow_pickle=False) as file:
        images, true = file["train_images"], file["train_labels"]
    similarity = folder / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    with np.load(similarity, allow_pickle=False) as file:
        classes = file["classes"].tolist()
    (whole,) = teachers.load_similarities(similarity, images, classes)
    file = similarity.with_name("clip_rn50x64_train_tiles.npz")
    (tiles,) = teachers.load_similarities(file, images, classes, ["tiles_max"])
    views = {"image": [whole], "image and tiles": [whole, tiles[:, None]]}
    settings, observed, cells = dict(temperature=TEMPERATURE), observe(true), []
    for number, name in itertools.product(options.images, views):
        draws = [np.random.RandomState(draw).permutation(len(true))[:number] for draw in range(DRAWS)]
        for calibration in CALIBRATIONS:
            measured, began = [], time.perf_counter()
            for rows in draws[: 1 if number >= len(true) else DRAWS]:
                seen = [view[rows] for view in views[name]]
                rule = rules.SOFT_RULE
                _, scores, _ = rules.make(rule, settings, seen, observed[rows], calibration=calibration)
                measured.append(measure(scores, observed[rows], true[rows]))
            seconds = (time.perf_counter() - began) / len(measured)
            mean, error = np.mean(measured, axis=0), np.std(measured, axis=0)[0]
            spread = f" ± {error:.1f}" if len(measured) > 1 else ""
            columns = [f"{mean[0]:.1f}{spread}", *(f"{value:.3f}" for value in mean[1:3]), f"{mean[3]:.2f}"]
            cells.append([f"{number:,}", name, f"--calibrate {calibration}", *columns, f"{seconds:.1f}"])
    scores = rules.softmax(whole, temperature=TEMPERATURE)
    labels = rules.threshold_labels(scores, threshold=THRESHOLD, negative_fraction=0.0)
    quality = label_quality.describe(labels, scores, observed, true)
    shares = [
        f"{quality[f'{what} of positives{which}']:.4f}"
        for which in ("", ", unobserved entries")
        for what in ("precision", "recall")
    ]
    table(
        "Scores of the unobserved labels of VOC images",
        ["images", "views", "", "mAP", "recall at precision 0.8", "best F1", "mAP, all entries", "seconds"],
        cells,
        f"VLPL's rule, threshold {THRESHOLD}: precision {shares[0]} and recall {shares[1]} over all entries, "
        f"{shares[2]} and {shares[3]} over the unobserved ones. {environment()}",
    )


if __name__ == "__main__":
    run_script(main)
