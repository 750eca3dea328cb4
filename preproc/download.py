"""Fetch the data sets that may be downloaded without asking anyone.

    python preproc/download.py --dataset pascal|coco|cub|nuswide [--data-root data]

An interrupted download goes on where it stopped. Sizes are checked against the server's, checksums where one is
published. Archives are extracted without leaving the target folder, then deleted.
"""

import errno
import json
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from huggingface_hub.file_download import http_get
from torchvision.datasets.utils import check_integrity
from torchvision.datasets.voc import DATASET_YEAR_DICT

from datasets.files import format_command
from util.errors import OneLineParser, UserError, describe_error, run_script
from util.files import FILE_LIMIT, atomic, open_regular

TIMEOUT = 30  # seconds
RANGE_NOT_SATISFIABLE = 416  # the answer to "from byte n on" where there are only n: the partial file is whole
COCO = "http://images.cocodataset.org"
ZENODO = "https://zenodo.org/api/records/10162606"  # Cole et al.'s arrays of NUS-WIDE


@dataclass(frozen=True)
class Remote:
    """A file to fetch; md5 is None where nobody publishes one."""

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
    "cub": [
        Remote(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
            "CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        )
    ],
}
BY_HAND = {
    "nuswide": "the images are given on request only: ask for Flickr.zip at the NUS-WIDE site "
    "(https://lms.comp.nus.edu.sg/research/NUS-WIDE.htm), extract it to {folder}/Flickr; "
}


def remote_size(url: str) -> int | None:
    """Bytes of a remote file; None where the server does not say (some refuse to be asked without a download)."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length")
    except OSError:
        return None
    return int(length) if length else None


def fetch(remote: Remote, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there; a partial file (NAME.part) is completed.

    Raises UserError where the network fails or the checksum differs.
    """
    path, partial = folder / remote.name, folder / f"{remote.name}.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            size = remote_size(remote.url)
            if size and partial.exists() and partial.stat().st_size > size:
                partial.unlink()
            with open(partial, "ab") as file:
                http_get(remote.url, file, resume_size=file.tell(), expected_size=size, displayed_filename=remote.name)
        except Exception as error:  # urllib, the hub's client and its transport each raise their own
            if getattr(getattr(error, "response", None), "status_code", None) != RANGE_NOT_SATISFIABLE:
                raise UserError(
                    f"{remote.url} could not be fetched ({describe_error(error)}); "
                    f"run the same command again to go on, or put the file into {folder} by hand"
                ) from None
        partial.replace(path)
    if remote.md5 and not check_integrity(str(path), remote.md5):
        path.unlink()
        raise UserError(f"{path} had another checksum than {remote.md5} and was removed; run the same command again")
    return path


def plain(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """The member, if it is a file or a folder that lies below `path`. A chain of links can lead out of it."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name} is a link or a device")
    return tarfile.data_filter(member, path)


def check_end(archive: tarfile.TarFile) -> None:
    """Raises TarError where an archive that was read as far as tarfile reads it does not end there.

    Any header that is damaged is the end to tarfile, and what follows would be missing in silence. To the end, where
    the decompressors compare their checksums, there may be zeros alone, and must be some.
    """
    if not archive.getmembers():
        raise tarfile.TarError("it is empty")
    archive.fileobj.seek(archive.offset)
    end = b""
    while block := archive.fileobj.read(2**20):
        end = block
        if block.strip(b"\0"):
            break
    if not end or end.strip(b"\0"):
        raise tarfile.TarError("it is cut short or damaged")


def extract(archive: Path, folder: Path) -> None:
    """Extract below `folder`; a member that would leave it, by path or by link, is refused."""
    print(f"extracting {archive.name}")
    try:
        if archive.suffix == ".zip":
            with open_regular(archive, limit=FILE_LIMIT) as content, zipfile.ZipFile(content) as file:
                file.extractall(folder)  # drops roots and ".." from names
        else:
            with open_regular(archive, limit=FILE_LIMIT) as content, tarfile.open(fileobj=content) as file:
                file.extractall(folder, filter=plain)
                check_end(file)
    except Exception as error:  # zip, tar and the decompressors each raise their own
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the others are of damaged content
            line = f"{folder} could not be written ({describe_error(error)}); make room and run the same command again"
        else:
            line = (
                f"{archive} could not be extracted ({describe_error(error)}); remove it and run the same command again"
            )
        raise UserError(line) from None


def zenodo_files() -> list[Remote]:
    try:
        with urllib.request.urlopen(ZENODO, timeout=TIMEOUT) as answer:
            record = json.load(answer)
        return [
            Remote(file["links"]["self"], file["key"], file["checksum"].removeprefix("md5:"))
            for file in record["files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{ZENODO} could not be read ({describe_error(error)}); run the same command again") from None


def download_dataset(name: str, folder: Path) -> None:
    for remote in ARCHIVES[name] if name in ARCHIVES else zenodo_files():
        done = folder / f".{remote.name}.done"
        if done.exists():
            print(f"{remote.name}: already here")
            continue
        path = fetch(remote, folder)
        if path.suffix in (".zip", ".tar", ".tgz", ".gz"):
            extract(path, folder)
            path.unlink()
        with atomic(done) as temporary:
            temporary.write_text(remote.url + "\n")
    command = format_command(Path(folder)).removeprefix("make it with ")
    print(f"{BY_HAND.get(name, '').format(folder=folder)}next: {command}")


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--dataset", choices=[*ARCHIVES, "nuswide"], required=True, help="fetched into DATA_ROOT/NAME")
    parser.add_argument("--data-root", default="data", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    download_dataset(options.dataset, Path(options.data_root) / options.dataset)


if __name__ == "__main__":
    run_script(main)
