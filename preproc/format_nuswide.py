"""NUS-WIDE's published arrays -> data/nuswide/.

    python preproc/format_nuswide.py [--load-path data/nuswide] [--save-path data/nuswide]

The arrays are Cole et al.'s re-crawl (Zenodo record 10162606); `preproc/download.py --dataset nuswide` fetches them.
The images are Flickr.zip of the NUS-WIDE site, on request, extracted to LOAD_PATH/Flickr.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.files import SPLITS, array_path
from preproc.common import fetch_hint, format_published
from util.errors import run_script
from util.files import read_array

CLASSES = (
    "airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds computer coral cow "
    "dancing dog earthquake elk fire fish flags flowers food fox frost garden glacier grass harbor horses house lake "
    "leaf map military moon mountain nighttime ocean person plane plants police protest railroad rainbow reflection "
    "road rocks running sand sign sky snow soccer sports statue street sun sunset surf swimmers tattoo temple tiger "
    "tower town toy train tree valley vehicle water waterfall wedding whales window zebra"
).split()


def read(folder: Path) -> tuple:
    parts = ("images", "labels")  # downloaded under the names of formatted files
    splits = {
        split: [read_array(array_path(folder, split, part), fetch_hint("nuswide")) for part in parts]
        for split in SPLITS
    }
    root = folder if str(splits["train"][0][0]).startswith("Flickr") else folder / "Flickr"
    if not (folder / "Flickr").is_dir():
        print(f"to do: ask for Flickr.zip at the NUS-WIDE site and extract it to {folder}/Flickr")
    return splits, CLASSES, CLASSES, root


main = partial(format_published, __doc__, "nuswide", "folder that holds the downloaded arrays and Flickr/", read)

if __name__ == "__main__":
    run_script(main)
