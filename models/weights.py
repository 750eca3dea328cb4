"""Weights: from a library's cache, the network, or a local file. Nothing is ever unpickled."""

import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from util.errors import UserError, describe_error, quiet
from util.files import FILE_LIMIT, REPOSITORY, file_digest, local_file, open_regular

TIMEOUT = 10  # seconds until the network counts as absent


def _unreachable(file: str, folder: str | Path, error: Exception, models: str, otherwise: str) -> UserError:
    return UserError(
        f"weights {file} are not in {folder}, and fetching them failed ({describe_error(error)}); where there is "
        f"internet run `python models/download.py {models}` and copy that folder here, or {otherwise}"
    )


def torchvision_file(url: str, models: str, otherwise: str) -> Path:
    """The local file of a torchvision weights URL, downloaded on first use.

    models     what `models/download.py` calls them
    otherwise  what else a user without internet can do
    Raises UserError naming the file, where it is looked for, and how to get it there.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            checksum = path.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum)
        except (OSError, RuntimeError) as error:
            raise _unreachable(path.name, folder, error, models, otherwise) from None
    return path


def hub_file(repository: str, names: list[str], models: str, otherwise: str) -> Path:
    """The local file of a Hugging Face repository, the first of `names` that it has, downloaded on first use.

    Parameters and errors as for torchvision_file.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    for name in names:
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            return Path(found)
    for name in names:
        try:  # one quick request first: the hub's own client retries an absent network for most of a minute
            with urllib.request.urlopen(
                urllib.request.Request(hf_hub_url(repository, name), method="HEAD"), timeout=TIMEOUT
            ):
                pass
            return Path(hf_hub_download(repository, name))
        except urllib.error.HTTPError as error:
            last = error
            if error.code != 404:
                break
        except Exception as error:  # the hub's client raises errors of several libraries
            last = error
            break
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    raise _unreachable(f"{repository}/{names[0]}", folder, last, models, otherwise)


def file_identity(value: object) -> object:
    """What identities and keys of caches call the file that a setting names: a file of this repository by its name,
    any other by name, size and modification time. A value that names no file is returned as it is."""
    path = local_file(value) if isinstance(value, str) else None
    if path is None or path.resolve().is_relative_to(REPOSITORY / "models"):
        return value
    return file_digest(path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, or a PyTorch file of tensors, bare or under "state_dict" or "model".

    Raises UserError for a file that is anything else, or holds numbers that are not finite.
    """
    with open_regular(path, limit=FILE_LIMIT) as file, quiet():
        try:
            if str(path).endswith(".safetensors"):
                state = load_file(path)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):
                if isinstance(state, dict) and isinstance(state.get(key), dict):
                    state = state[key]
            if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
                raise TypeError("it holds no state dict of tensors")
            check_finite(state)
            return {str(name).removeprefix("module."): value for name, value in state.items()}
        except Exception as error:  # zip, pickle, safetensors and tensors of every kind raise their own
            raise UserError(f"{path} is not a readable checkpoint of tensors ({describe_error(error)})") from None


def check_finite(value: object) -> None:
    """Raises ValueError where a tensor, in dicts and lists of any depth, has a number that is complex or not finite."""
    if isinstance(value, Tensor) and (value.is_complex() or not torch.isfinite(value).all()):
        raise ValueError("it holds numbers that are complex or not finite")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        check_finite(part)


def check_kinds(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raises ValueError where a tensor holds whole numbers in the place of floating-point ones, or fractions in the
    place of whole numbers, which PyTorch would round. Counters kept in half precision are neither."""
    for name, tensor in state.items():
        if name not in own or tensor.is_floating_point() == own[name].is_floating_point():
            continue
        if not (tensor.is_floating_point() and torch.equal(tensor, tensor.round())):
            raise ValueError(f"{name} is {tensor.dtype}, expected {own[name].dtype}")


def load_weights(
    network: nn.Module, path: str | Path, head: tuple[str, ...], rename: tuple[str, str] = ("network.", "")
) -> None:
    """Load a local checkpoint of a backbone, or of a whole run (best.pt), of one with BoostLU without its head.

    head    prefixes of the head's parameters: a head of another number of labels is left as initialised
    rename  a prefix of the file's names, and what stands in its place here
    Raises UserError where any other tensor is absent or does not fit.
    """
    state = {name.removeprefix("network.").removeprefix("maps."): value for name, value in read_weights(path).items()}
    old, new = rename
    state = {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}
    own = network.state_dict()
    fitting = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    wrong = [name for name in own if name not in fitting and not name.startswith(head)]
    if wrong:
        found = f"is {tuple(state[wrong[0]].shape)}" if wrong[0] in state else "is absent"
        raise UserError(
            f"{path} does not fit this backbone: {wrong[0]} should be {tuple(own[wrong[0]].shape)}, in the file it "
            f"{found} ({len(wrong)} of {len(own)} tensors do not fit)"
        )
    try:
        check_kinds(fitting, own)
    except ValueError as error:
        raise UserError(f"{path} does not fit this backbone: {error}") from None
    network.load_state_dict(fitting, strict=False)
