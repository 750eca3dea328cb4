"""Full labels -> observed labels: by default one known positive per image, as published by Cole et al. 2021.

    python preproc/generate_observed_labels.py --dataset coco [--num-pos 1 --num-neg 0 --seed 1200 --data-root data]

Writes formatted_{train,validation,val}_labels_obs.npy, (N, L) int8 in {-1, 0, +1}; 0 = unknown. Observed labels that
this command did not draw are replaced only with --overwrite, unless they are the full labels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import files
from datasets.protocol import SEED, observe
from preproc.common import whole_number
from util.errors import OneLineParser, UserError, run_script


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("-d", "--dataset", required=True, help="folder below the data root")
    kept = "kept per image (default: %(default)s)"
    parser.add_argument("--num-pos", type=whole_number, default=1, help=f"positives {kept}")
    parser.add_argument("--num-neg", type=whole_number, default=0, help=f"negatives {kept}")
    parser.add_argument("--seed", type=whole_number, default=SEED, help="(default: %(default)s, the published one)")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace observed labels that were not drawn here")
    options = parser.parse_args(argv)
    folder = Path(options.data_root) / options.dataset
    true = {split: files.read_split(folder, split)[1] for split in files.splits_of(folder)}
    counts = dict(num_pos=options.num_pos, num_neg=options.num_neg, seed=options.seed)
    drawn = {split: observe(labels, **counts) for split, labels in true.items() if labels is not None}
    if not drawn:
        raise UserError(f"{folder} has no full labels to draw from; its observed labels are all that is known")
    files.write_drawn(folder, drawn, options.overwrite)
    for split, observed in drawn.items():
        unknown = (observed == 0).all(axis=1).sum()
        print(
            f"{split}: {len(observed):,} images, {(observed == 1).sum():,} positives and {(observed == -1).sum():,} "
            f"negatives observed, {unknown:,} images with nothing observed"
        )


if __name__ == "__main__":
    run_script(main)
