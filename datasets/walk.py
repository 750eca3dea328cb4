"""The images of a folder, for formatting and predicting."""

import os
from collections import defaultdict
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

with suppress(ImportError):  # optional: Pillow reads HEIC, the format of iPhones, with this package
    from pillow_heif import register_heif_opener

    register_heif_opener()

# folders of thumbnails, deleted files and archives' metadata, in lower case; hidden folders are left out anyway
IGNORED_FOLDERS = {
    *("@eadir", "__macosx", "thumbnails", "thumbs", "_thumbs", "lost+found", "system volume information"),
    *("$recycle.bin", "recycler", "#recycle", "@recycle", "#snapshot", "@recently-snapshot"),
}
IGNORED_FILES = {"thumbs.db", "desktop.ini"}
NO_IMAGES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow recognises and cannot decode
HEIC = {".heic", ".heif", ".hif"}


@cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case with the dot, of the files that Pillow decodes."""
    Image.init()
    kinds = Image.registered_extensions().items()
    readable = Image.OPEN.keys() - NO_IMAGES | {"MPO"}  # Pillow opens MPO as JPEG
    return frozenset(ending for ending, kind in kinds if kind in readable)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or made by a system for its own use."""
    return name.startswith(".") or name.lower() in IGNORED_FOLDERS | IGNORED_FILES


def find_images(folder: str | Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The images below a folder, sorted, and what was left out: {ending or reason: paths}.

    Links are followed, but each real folder is read once. Hidden files and folders are not listed.
    """
    images, left_out, seen = [], defaultdict(list), {os.path.realpath(folder)}
    for top, folders, files in os.walk(folder, followlinks=True):
        entered = []
        for name in sorted(folders, key=lambda name: (os.path.islink(os.path.join(top, name)), name)):
            path = Path(top, name)
            if name.lower() in IGNORED_FOLDERS:
                left_out["folders of thumbnails or deleted files"].append(path)
            elif not is_hidden(name) and (real := os.path.realpath(path)) in seen:
                left_out["links to a folder that was read already"].append(path)
            elif not is_hidden(name):
                seen.add(real)
                entered.append(name)
        folders[:] = entered
        for path in (Path(top, name) for name in sorted(files) if not is_hidden(name)):
            if not path.is_file():
                left_out["broken links or pipes"].append(path)
            elif path.suffix.lower() in image_endings():
                images.append(path)
            else:
                left_out[path.suffix or "without an ending"].append(path)
    return sorted(images), dict(left_out)


def describe_left_out(left_out: dict[str, list[Path]], folder: str | Path) -> str:
    """One line on what `find_images` left out, with an example of each kind; empty if it left out nothing."""
    parts = []
    for kind, paths in sorted(left_out.items(), key=lambda item: -len(item[1])):
        hint = "; convert them to JPEG, or pip install pillow-heif" if kind.lower() in HEIC else ""
        parts.append(f"{len(paths):,} {kind} ({paths[0].relative_to(folder)}{hint})")
    return f"left out below {folder}: {', '.join(parts)}" if parts else ""
