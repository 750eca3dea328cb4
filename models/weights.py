"""Weights: published ones from the caches of their libraries, and one reader of files. Nothing is ever unpickled."""

import argparse
import json
import pathlib
import re
import shlex
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from util.errors import UserError, describe_error, quiet
from util.files import REPOSITORY, local_file

# where training programs keep a state dict inside a checkpoint, the preferred one first
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "network", "module")
PREFIXES = {  # what they put before the names of a network: what the network has there
    **dict.fromkeys(("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "maps."), ""),
    "visual.": "tower.",  # the image tower of a whole CLIP
    "feature_extractor.": "",  # Cole et al. 2021: a ResNet's layers as an nn.Sequential, and its head
    **{"0.": "conv1.", "1.": "bn1.", "4.": "layer1.", "5.": "layer2.", "6.": "layer3.", "7.": "layer4."},
    "linear_classifier.": "fc.",
}
HARMLESS = [  # plain values that training programs keep beside the tensors; PyTorch's reader may build them
    *(argparse.Namespace, pathlib.PosixPath, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType),
    *(np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")),
]


# Published weights


@contextmanager
def _fetching(file: str, folder: str | Path, model: str, otherwise: str) -> Iterator[None]:
    """Turn whatever a library raises while it fetches a file into one UserError."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"the Hugging Face hub refuses {file} ({status}); log in with `hf auth login` or set HF_TOKEN, and "
                f"accept the licence on the model's page; or {otherwise}"
            ) from None
        raise UserError(
            f"weights {file} are not in {folder}, and fetching them failed ({describe_error(error)}); with internet "
            f"run `python models/download.py {shlex.quote(model)}` and copy that folder here, or {otherwise}"
        ) from None


def torchvision_file(url: str, model: str, otherwise: str) -> Path:
    """The local file of a torchvision weights URL, downloaded on first use.

    model      its name for `models/download.py`
    otherwise  what else a user without internet can do
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        with _fetching(path.name, path.parent, model, otherwise):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1])
    return path


def hub_file(repository: str, names: list[str], model: str, otherwise: str) -> Path:
    """The local file of a Hugging Face repository, the first of `names` that it has, downloaded on first use."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            return Path(found)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    with _fetching(f"{repository}/{names[0]}", folder, model, otherwise):
        for name in names:
            try:
                get_hf_file_metadata(
                    hf_hub_url(repository, name)
                )  # fails at once; a download retries for half a minute
                return Path(hf_hub_download(repository, name))
            except EntryNotFoundError:
                if name == names[-1]:
                    raise


# Files


def file_identity(value: object) -> object:
    """What identities and keys of caches call the file that a setting names: a file of this repository by its name,
    any other by name, size and modification time. A value that names no file is returned as it is."""
    path = local_file(value) if isinstance(value, str) else None
    if path is None or path.resolve().is_relative_to(REPOSITORY / "models"):
        return value
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names: safetensors, PyTorch's own format, or a TorchScript archive."""
    try:
        with quiet():
            checkpoint = _read(Path(path))
    except Exception as error:  # zip, pickle, safetensors and PyTorch each raise their own
        if isinstance(error, UnpicklingError) and (name := re.search(r"GLOBAL (\S+)", str(error))):
            raise UserError(f"{path} holds other objects than tensors ({name[1]}); {_save_alone(path)}") from None
        raise UserError(f"{path} is no readable file of weights ({_reason(error)}); {_replacing(path)}") from None
    state = _state_dict(checkpoint)
    if state is None:
        held = ", ".join(map(str, checkpoint))[:200] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(f"{path} holds no state dict of tensors, but {held}; {_save_alone(path)}")
    return {str(name): tensor for name, tensor in state.items()}


def _read(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS: `git lfs pull` fetches the file itself")
    if start[8:9] == b"{":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # as OpenAI publishes CLIP
                return torch.jit.load(path, map_location="cpu").state_dict()
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # absent, or not to be opened
        return describe_error(error)
    sign = "it is damaged, cut short, or of another kind"
    return describe_error(error) if isinstance(error, ValueError) else sign


def _replacing(path: str | Path) -> str:
    from huggingface_hub import constants

    real = Path(path).resolve()  # of a link in the hub's cache
    if any(real.is_relative_to(Path(folder).resolve()) for folder in (constants.HF_HUB_CACHE, torch.hub.get_dir())):
        return f"remove {real}, and it is fetched again"
    return "fetch it again"


def _save_alone(path: str | Path) -> str:
    name = json.dumps(str(path))
    code = f'import torch; c = torch.load({name}, weights_only=False); torch.save(c["state_dict"], "weights.pth")'
    return (
        f"if you trust it, save its tensors alone, by their key in place of state_dict: python -c {shlex.quote(code)}"
    )


def _state_dict(checkpoint: object) -> dict[str, Tensor] | None:
    """The state dict in a checkpoint: itself, or under a name of CONTAINERS, or in a tuple."""
    if not isinstance(checkpoint, dict):
        parts = checkpoint if isinstance(checkpoint, list | tuple) else []
        return next((state for part in parts if (state := _state_dict(part))), None)
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return checkpoint
    found = {name: state for name in CONTAINERS if (state := _state_dict(checkpoint.get(name)))}
    if len(found) > 1:
        print(f"note: of the weights under {', '.join(found)} those under {next(iter(found))} are taken")
    return next(iter(found.values()), None)


def renamed(state: dict[str, Tensor], own: Container[str], path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names of a network, `own`, without the prefixes that are not in them."""
    result = {}
    for name, tensor in state.items():
        while name not in own and (prefix := next((part for part in PREFIXES if name.startswith(part)), None)):
            name = PREFIXES[prefix] + name.removeprefix(prefix)
        if name in result and name in own:
            raise UserError(f"{path} holds {name} twice, under different prefixes; keep the tensors of one network")
        result[name] = tensor
    return result


def load_state(network: nn.Module, state: dict[str, Tensor], path: str | Path, head: tuple[str, ...] = ()) -> None:
    """Give a network the tensors that were read from a file. Absent counters of batch norm keep their value.

    head  prefixes of parameters that keep their values if those of the file have another shape
    """
    own = network.state_dict()
    found = renamed(state, own, path)

    def fits(name: str) -> bool:
        if name not in found:
            return name.endswith("num_batches_tracked")
        is_float = found[name].is_floating_point() or not own[name].is_floating_point()
        return found[name].shape == own[name].shape and is_float

    if wrong := [name for name in own if not fits(name) and not name.startswith(head)]:
        name, first = wrong[0], next(iter(state))
        there = f"{found[name].dtype} {tuple(found[name].shape)}" if name in found else f"absent (the first is {first})"
        raise UserError(
            f"{path} does not fit this network: {name} should be {own[name].dtype} {tuple(own[name].shape)}, in the "
            f"file it is {there}; {len(wrong)} of {len(own)} tensors do not fit"
        )
    if infinite := [name for name in own if name in found and not torch.isfinite(found[name]).all()]:
        raise UserError(f"{path}: {infinite[0]} holds numbers that are not finite; take a different checkpoint")
    network.load_state_dict({name: found[name] for name in own if name in found and fits(name)}, strict=False)


def load_weights(network: nn.Module, path: str | Path, head: tuple[str, ...] = ()) -> None:
    """Load a local checkpoint of a network, of a run (best.pt), or of a whole CLIP, whose image tower is taken."""
    state = read_weights(path)
    tower = {name: tensor for name, tensor in state.items() if "visual." in name}
    load_state(network, tower or state, path, head)
