"""Weights: published ones from the caches of their libraries, and one reader of files. Nothing is ever unpickled."""

import argparse
import pathlib
import shlex
import warnings
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from util.errors import UserError, describe_error
from util.files import REPOSITORY, local_file, reading

OFFLINE = "give --weights FILE, or train from scratch with --no-pretrained"
# names of a state dict inside the checkpoints of training programs, the preferred one first
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "network", "module")
PREFIXES = {  # of parameter names in checkpoints: their replacement in a network of ours
    **dict.fromkeys(("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "maps."), ""),
    "visual.": "tower.",  # the image tower of a whole CLIP
    "feature_extractor.": "",  # Cole et al. 2021: a ResNet's layers as an nn.Sequential, and its head
    **{"0.": "conv1.", "1.": "bn1.", "4.": "layer1.", "5.": "layer2.", "6.": "layer3.", "7.": "layer4."},
    **dict.fromkeys(("linear_classifier.fc.", "linear_classifier."), "fc."),
}
HARMLESS = [  # plain values that training programs keep beside the tensors; PyTorch's reader may build them
    *(argparse.Namespace, pathlib.PosixPath, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType),
    *(np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")),
]


@contextmanager
def _fetching(file: str, folder: str | Path, model: str, otherwise: str) -> Iterator[None]:
    """Turn whatever a library raises while it fetches a file into one UserError.

    model      the name of the file's model for `models/download.py`
    otherwise  an alternative for users without internet
    """
    try:
        yield
    except Exception as error:
        status, reason = getattr(getattr(error, "response", None), "status_code", None), describe_error(error)
        hint = f"with internet run `python models/download.py {shlex.quote(model)}` and copy that folder here"
        if status in (401, 403):
            reason = f"refused with status {status}"
            hint = "log in with `hf auth login` or set HF_TOKEN, and accept the licence on the model's page"
        text = f"weights {file} are not in {folder} and cannot be fetched ({reason}); {hint}, or {otherwise}"
        raise UserError(text) from None


def torchvision_file(url: str, model: str, otherwise: str = OFFLINE) -> Path:
    """The local file of a torchvision weights URL, downloaded on first use."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        with _fetching(path.name, path.parent, model, otherwise):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1])
    return path


def hub_file(repository: str, names: list[str], model: str, otherwise: str = OFFLINE) -> Path:
    """The local file of a Hugging Face repository, the first of `names` that it has, downloaded on first use."""
    from huggingface_hub import constants, file_exists, hf_hub_download, try_to_load_from_cache

    for name in names:
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            return Path(found)
    with _fetching(f"{repository}/{names[0]}", constants.HF_HUB_CACHE, model, otherwise):
        # file_exists fails at once without internet; a download retries for half a minute
        return Path(hf_hub_download(repository, next(filter(partial(file_exists, repository), names), names[-1])))


def file_identity(value: object) -> object:
    """How identities and keys of caches name the file that a setting names: a file of this repository by its name,
    any other by name, size and modification time. A value that names no file is returned as it is."""
    path = local_file(value) if isinstance(value, str) else None
    if path is None or path.resolve().is_relative_to(REPOSITORY / "models"):
        return value
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names: safetensors, PyTorch's own format, or a TorchScript archive."""
    from huggingface_hub import constants

    real = Path(path).resolve()  # of a link in the hub's cache
    caches = [Path(folder).resolve() for folder in (constants.HF_HUB_CACHE, torch.hub.get_dir())]
    again = f"remove {real}, and it is fetched again" if any(map(real.is_relative_to, caches)) else "fetch it again"
    alone = 'save its tensors alone in the program that wrote it: torch.save(model.state_dict(), "weights.pth")'
    hint = f"if it is damaged, cut short or a pointer of Git LFS (`git lfs pull`), {again}; else {alone}"
    with reading(path, "a file of weights", hint), warnings.catch_warnings(action="ignore"):
        checkpoint = _read(real)
    if (state := _state_dict(checkpoint)) is None:
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(f"{path} holds no state dict of tensors, but {found[:200]}; {alone}")
    return {str(name): tensor for name, tensor in state.items()}


def _read(path: Path) -> object:
    with open(path, "rb") as file:
        if file.read(9)[8:] == b"{":
            return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # as OpenAI publishes CLIP
                return torch.jit.load(path, map_location="cpu").state_dict()
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


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

    head  prefixes of parameters that keep their values if the file's have a different shape
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
    network.load_state_dict({name: found[name] for name in own if name in found and fits(name)}, strict=False)


def load_weights(network: nn.Module, path: str | Path, head: tuple[str, ...] = ()) -> None:
    """Load a local checkpoint of a network, of a run (best.pt), or of a whole CLIP, whose image tower is taken."""
    state = read_weights(path)
    tower = {name: tensor for name, tensor in state.items() if "visual." in name}
    load_state(network, tower or state, path, head)
