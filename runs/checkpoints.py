"""Checkpoints: tensors and plain values in one file, written whole and read with its checksums compared."""

import zipfile
from pathlib import Path

import torch

from util.errors import describe_error
from util.files import atomic, reading

RESTART = "start the run over with --overwrite"


def write(path: Path, state: dict) -> None:
    """Raises UserError if the disk is full."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a write that failed
            raise OSError(f"{describe_error(error)}; is the disk full?") from None


def read(path: Path) -> dict:
    """Raises UserError if the file is absent or damaged."""
    with reading(path, "a whole checkpoint", RESTART), zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():  # torch.load does not compare checksums
            raise ValueError(f"the checksum of {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
