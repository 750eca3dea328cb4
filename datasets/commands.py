"""The commands that make the files of a data set."""

import shlex
from pathlib import Path

from util.files import REPOSITORY


def format_command(folder: str | Path) -> str:
    """The command that formats the data set in this folder, whose raw files lie in the same folder."""
    folder = Path(folder)
    script = f"preproc/format_{folder.name}.py"
    if folder.name == "own" or not (REPOSITORY / script).exists():
        return "python preproc/format_own.py"
    paths = [] if str(folder.parent) == "data" else ["--load-path", str(folder), "--save-path", str(folder)]
    return shlex.join(["python", script, *paths])


def observe_command(folder: str | Path) -> str:
    """The command that draws the observed labels of the data set in this folder."""
    folder = Path(folder)
    root = [] if str(folder.parent) == "data" else ["--data-root", str(folder.parent)]
    return shlex.join(["python", "preproc/generate_observed_labels.py", "--dataset", folder.name, *root])
