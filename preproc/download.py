"""Fetch the data sets that can be downloaded without asking anyone.

    python preproc/download.py --dataset pascal|coco|cub|nuswide [--data-root data]

An interrupted download is continued. Sizes are checked against the server's, and checksums if one is
published. Archives are extracted inside the target folder, then deleted.
"""

import json
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from huggingface_hub import utils as hub
from huggingface_hub.file_download import http_get
from torchvision.datasets.utils import check_integrity
from torchvision.datasets.voc import DATASET_YEAR_DICT

from datasets.files import format_command
from util.errors import OneLineParser, UserError, describe_error, run_script
from util.files import reading, write_text

RANGE_NOT_SATISFIABLE = 416  # the answer to "from byte n on" if there are only n: the partial file is whole
COCO = "http://images.cocodataset.org"
CUB = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
ZENODO = "https://zenodo.org/api/records/10162606"  # Cole et al.'s arrays of NUS-WIDE


class Remote(NamedTuple):
    """A file to fetch; md5 is None if nobody publishes one."""

    url: str
    name: str
    md5: str | None = None


ARCHIVES = {
    "pascal": [
        Remote(DATASET_YEAR_DICT["2012"]["url"], "VOCtrainval_11-May-2012.tar", DATASET_YEAR_DICT["2012"]["md5"])
    ],
    "coco": [
        Remote(f"{COCO}/annotations/annotations_trainval2014.zip", "annotations_trainval2014.zip"),
        Remote(f"{COCO}/zips/train2014.zip", "train2014.zip"),
        Remote(f"{COCO}/zips/val2014.zip", "val2014.zip"),
    ],
    "cub": [Remote(CUB, "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78")],
}


def fetch(remote: Remote, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there; a partial file (NAME.part) is completed.

    Raises UserError if the network fails or the checksum differs.
    """
    path, partial = folder / remote.name, folder / f"{remote.name}.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        hub.logging.set_verbosity(hub.logging.CRITICAL)  # each failed attempt is a warning of several lines
        try:
            with open(partial, "ab") as file:
                http_get(remote.url, file, resume_size=file.tell(), displayed_filename=remote.name)
        except Exception as error:  # the hub's client and its transport each raise their own
            if getattr(getattr(error, "response", None), "status_code", None) != RANGE_NOT_SATISFIABLE:
                raise UserError(
                    f"{remote.url} could not be fetched ({describe_error(error)}); "
                    f"run the same command again to continue, or put the file into {folder} by hand"
                ) from None
        partial.replace(path)
    if remote.md5 and not check_integrity(str(path), remote.md5):
        path.unlink()
        raise UserError(f"{path} did not have the checksum {remote.md5} and was removed; run the same command again")
    return path


def extract(archive: Path, folder: Path) -> None:
    """Extract inside `folder`: links and paths that lead out of it are refused."""
    print(f"extracting {archive.name}")
    hint = "make room if the disk is full, or else remove the archive, and run the same command again"
    with reading(archive, f"an archive that can be extracted into {folder}", hint):
        options = {} if archive.suffix == ".zip" else {"filter": "data"}  # a zip file's names are always made relative
        shutil.unpack_archive(archive, folder, **options)


def zenodo_files() -> list[Remote]:
    with reading(ZENODO, "a record of files", "run the same command again"):
        with urllib.request.urlopen(ZENODO, timeout=30) as answer:
            record = json.load(answer)
        return [Remote(f["links"]["self"], f["key"], f["checksum"].removeprefix("md5:")) for f in record["files"]]


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    choices = [*ARCHIVES, "nuswide"]
    parser.add_argument("-d", "--dataset", choices=choices, required=True, help="fetched into DATA_ROOT/NAME")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    folder = Path(options.data_root) / options.dataset
    for remote in ARCHIVES.get(options.dataset) or zenodo_files():
        done = folder / f".{remote.name}.done"
        if done.exists():
            print(f"{remote.name}: already here")
            continue
        path = fetch(remote, folder)
        if path.suffix in (".zip", ".tar", ".tgz"):
            extract(path, folder)
            path.unlink()
        write_text(done, remote.url + "\n")
    if options.dataset == "nuswide":
        print(
            "the images are given on request only: ask for Flickr.zip at the NUS-WIDE site "
            f"(https://lms.comp.nus.edu.sg/research/NUS-WIDE.htm) and extract it to {folder}/Flickr"
        )
    print(f"next: {format_command(folder)}")


if __name__ == "__main__":
    run_script(main)
