"""Formatting at the data sets' true sizes, beside the cost of reading the files.

    python benchmarks/preproc.py [--share 0.01]

The files are made up, in the true format: COCO's two instance files with polygons of the usual length, CUB's table of
attribute labels, COCO's label matrix.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder

from benchmarks.common import environment, number, parser, shown, side_by_side, table
from datasets import DATASETS
from datasets.protocol import observe
from preproc.format_coco import read_split
from preproc.format_cub import read_labels
from util.errors import UserError, run_script

ANNOTATIONS = {"train": 604_907, "val": 291_875}  # of COCO 2014
CUB_ROWS = 3_677_856  # 11,788 images x 312 attributes


def write_coco(path: Path, images: int, annotations: int) -> None:
    random = np.random.RandomState(0)
    polygon = ",".join(f"{value:.2f}" for value in random.uniform(0, 640, 70))
    image_ids, categories = random.randint(0, images, annotations), random.randint(1, 81, annotations)
    image_ids[:images] = np.arange(images)
    with open(path, "w") as file:
        file.write('{"images": [')
        file.write(
            ",".join(f'{{"id": {image}, "file_name": "{image:012d}.jpg", "height": 480}}' for image in range(images))
        )
        file.write('], "annotations": [')
        for start in range(0, annotations, 10_000):
            file.write("," if start else "")
            file.write(
                ",".join(
                    f'{{"segmentation": [[{polygon}]], "area": 702.1, "iscrowd": 0, "image_id": {image_ids[row]}, '
                    f'"bbox": [473.07, 395.93, 38.65, 28.67], "category_id": {categories[row]}, "id": {row}}}'
                    for row in range(start, min(start + 10_000, annotations))
                )
            )
        names = ",".join(f'{{"supercategory": "thing", "id": {row}, "name": "class {row}"}}' for row in range(1, 81))
        file.write(f'], "categories": [{names}]}}')


def write_cub(path: Path, rows: int) -> None:
    random = np.random.RandomState(0)
    present, certainty, seconds = random.randint(0, 2, rows), random.randint(1, 5, rows), random.uniform(0, 20, rows)
    with open(path, "w") as file:
        for row in range(rows):
            file.write(f"{row // 312 + 1} {row % 312 + 1} {present[row]} {certainty[row]} {seconds[row]:.3f}\n")


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument("--share", type=float, default=1.0, help="of the true sizes (default: %(default)s)")
    options = arguments.parse_args()
    if not 0 < options.share <= 1:
        raise UserError(f"--share must lie in (0, 1], not {options.share}")
    share, known = options.share, DATASETS["coco"]
    random = np.random.RandomState(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "annotations").mkdir()
        coco = {split: folder / f"annotations/instances_{split}2014.json" for split in ANNOTATIONS}
        for (split, path), images in zip(coco.items(), (known.train, known.test), strict=True):
            write_coco(path, int(share * images), int(share * ANNOTATIONS[split]))
        cub = folder / "image_attribute_labels.txt"
        birds = int(share * CUB_ROWS) // 312
        write_cub(cub, birds * 312)
        labels = (random.random_sample((int(share * known.train), known.labels)) < 2.9 / known.labels).astype(np.int8)
        labels[:, 0] |= labels.sum(axis=1) == 0
        np.save(folder / "labels.npy", labels)
        jobs = {
            "COCO's two instance files": (list(coco.values()), lambda: [read_split(folder, split) for split in coco]),
            "CUB's table of attribute labels": (
                [cub],
                lambda: read_labels(cub, list(range(1, birds + 1)), list(range(1, 313))),
            ),
            f"single positives of {labels.shape[0]:,} x {labels.shape[1]}": (
                [folder / "labels.npy"],
                lambda: observe(labels),
            ),
        }
        rows = []
        for name, (paths, job) in jobs.items():
            taken = side_by_side(
                {"read": lambda paths=paths: [path.read_bytes() for path in paths], "job": job}, options.repeats
            )
            size = sum(path.stat().st_size for path in paths) / 1e6
            times = number(np.median(taken["job"]) / np.median(taken["read"]))
            rows.append([name, number(size), shown(taken["read"]), shown(taken["job"]), times])
    table(
        f"Formatting, at {share:g} of the true sizes",
        ["", "MB", "reading the bytes, s", "formatting, s", "times"],
        rows,
        f"Median (lowest to highest), n {options.repeats}; files in the page cache. {environment(None, ('msgspec',))}",
    )


if __name__ == "__main__":
    run_script(main)
