"""NUS-WIDE's published arrays -> data/nuswide/.

    python preproc/format_nuswide.py [--load-path data/nuswide] [--save-path data/nuswide]

The arrays are Cole et al.'s re-crawl (Zenodo record 10162606); `preproc/download.py --dataset nuswide` fetches them.
The images are Flickr.zip of the NUS-WIDE site, on request, extracted to LOAD_PATH/Flickr.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.files import SPLITS, array_path, read_split, write_formatted
from preproc.common import find_folder, format_parser, report
from util.errors import UserError, run_script

CLASSES = (
    "airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds computer coral cow "
    "dancing dog earthquake elk fire fish flags flowers food fox frost garden glacier grass harbor horses house lake "
    "leaf map military moon mountain nighttime ocean person plane plants police protest railroad rainbow reflection "
    "road rocks running sand sign sky snow soccer sports statue street sun sunset surf swimmers tattoo temple tiger "
    "tower town toy train tree valley vehicle water waterfall wedding whales window zebra"
).split()


def main(argv: list[str] | None = None) -> None:
    options = format_parser(__doc__, "nuswide", "folder that holds the downloaded arrays and Flickr/").parse_args(argv)
    folder = Path(options.load_path)
    for split in SPLITS:
        for part in ("images", "labels"):
            find_folder(options.load_path, (".",), array_path(Path(), split, part).name, "nuswide")
    splits = {split: read_split(folder, split) for split in SPLITS}  # downloaded under these names
    for split, (images, labels) in splits.items():
        if labels.shape[1] != len(CLASSES):
            raise UserError(
                f"{array_path(folder, split, 'labels')} is {labels.shape}, expected ({len(images)}, {len(CLASSES)}); "
                "fetch it again with `python preproc/download.py --dataset nuswide`"
            )
    root = folder / "Flickr" if not str(splits["train"][0][0]).startswith("Flickr") else folder
    write_formatted(options.save_path, splits, CLASSES, CLASSES, root)
    report("nuswide", options.save_path, splits)
    if not (folder / "Flickr").is_dir():
        print(f"next: ask for Flickr.zip at the NUS-WIDE site and extract it to {folder}/Flickr")


if __name__ == "__main__":
    run_script(main)
