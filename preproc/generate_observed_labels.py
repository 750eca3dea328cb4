"""Full labels -> observed labels: by default one known positive per image, as published by Cole et al. 2021.

    python preproc/generate_observed_labels.py --dataset coco [--num-pos 1 --num-neg 0 --seed 1200 --data-root data]

Writes formatted_{train,validation,val}_labels_obs.npy, (N, L) int8 in {-1, 0, +1}; 0 = unknown. Observed labels that
this command did not draw are replaced only with --overwrite, unless they are the full labels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from datasets import files
from datasets.protocol import SEED, observe
from util.errors import OneLineParser, UserError, run_script


def every_label(path: Path, true: np.ndarray) -> bool:
    """Whether the observed labels are the full ones, as format_own.py writes them: replacing them loses nothing."""
    return path.exists() and np.array_equal(np.load(path), 2 * true - 1)


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--dataset", required=True, help="folder below the data root")
    parser.add_argument("--num-pos", type=int, default=1, help="positives kept per image (default: %(default)s)")
    parser.add_argument("--num-neg", type=int, default=0, help="negatives kept per image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="(default: %(default)s, the published one)")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace observed labels that were not drawn here")
    options = parser.parse_args(argv)
    if options.num_pos < 0 or options.num_neg < 0 or not 0 <= options.seed < 2**32:
        raise UserError("--num-pos and --num-neg must be at least 0, --seed in [0, 4294967296)")
    folder = Path(options.data_root) / options.dataset
    counts = dict(num_pos=options.num_pos, num_neg=options.num_neg, seed=options.seed)
    true = {split: files.read_split(folder, split)[1] for split in files.splits_of(folder)}
    if all(labels is None for labels in true.values()):
        raise UserError(f"{folder} has no full labels to draw from; its observed labels are all that is known")
    drawn = {split: observe(labels, **counts) for split, labels in true.items() if labels is not None}
    for split, observed in drawn.items():
        if not options.overwrite and not every_label(files.array_path(folder, split, "labels_obs"), true[split]):
            files.check_drawn(folder, split, observed)
    files.write_drawn(folder, drawn)
    for split, observed in drawn.items():
        unknown = int((observed == 0).all(axis=1).sum())
        print(
            f"{split}: {len(observed):,} images, {(observed == 1).sum():,} positives and {(observed == -1).sum():,} "
            f"negatives observed, {unknown:,} images with nothing observed"
        )


if __name__ == "__main__":
    run_script(main)
