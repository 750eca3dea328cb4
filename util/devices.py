"""The device that a run computes on, its precision, its random state."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import Tensor

from util import distributed
from util.errors import UserError, describe_error, started_by_torchrun, torchrun_rank

DRIVER = Path("/proc/driver/nvidia/version")


def pick_device(gpu: str) -> torch.device:
    """The device of --gpu, or under torchrun the GPU of this process; on a machine without an NVIDIA driver the CPU,
    with a note. Raises UserError if there is a driver and CUDA does not start, rather than train for days on the CPU.
    """
    if gpu == "mps" and not torch.backends.mps.is_available():
        raise UserError("-g mps needs a Mac with Apple silicon and a PyTorch that was built for it; take -g cpu")
    if gpu in ("cpu", "mps"):
        return torch.device(gpu)
    if not (gpu.isascii() and gpu.isdecimal()):
        raise UserError(f"--gpu takes a CUDA index such as 0, or cpu, or mps, not {gpu!r}")
    index = int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else int(gpu)
    if torch.cuda.is_available() and index < torch.cuda.device_count():
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if torch.cuda.is_available() or has_driver():
        raise UserError(f"PyTorch has no CUDA device {index}: {describe_cuda()} (-g cpu runs on the CPU)")
    if torchrun_rank() == 0:
        print("note: no CUDA device found, running on the CPU (-g cpu does so without this note)")
    return torch.device("cpu")


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver, even if PyTorch cannot use it."""
    program = shutil.which("nvidia-smi")  # containers and WSL may show nothing else of the driver
    return DRIVER.exists() or (bool(program) and subprocess.run([program, "-L"], capture_output=True).returncode == 0)


def describe_cuda() -> str:
    """The number of CUDA devices, or PyTorch's reason why there is none."""
    try:
        torch.cuda.init()
        return f"it finds {torch.cuda.device_count()}"
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        return describe_error(error)


def describe(device: torch.device, precision: str, place: str) -> str:
    """One line: device, precision and cache of a run.

    place  gpu, disk, none (the cache of its images), or features
    """
    names = {"cpu": f"CPU, {torch.get_num_threads()} threads", "mps": "Apple GPU"}
    name = names.get(device.type) or torch.cuda.get_device_name(device)
    places = {"gpu": "images on the GPU", "disk": "images in a file", "none": "images decoded every epoch"}
    return f"{name}, {precision}, {places.get(place, 'features in memory')}"


def set_threads(threads: int | None) -> None:
    """Compute with this many threads; by default with PyTorch's own number, but no more than this process may use."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), joblib.cpu_count()))


def default_workers() -> int:
    """Threads that decode images: this process's part of the cores that it may use, 8 at most."""
    processes = int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else 1
    return max(1, min(8, joblib.cpu_count() // processes))  # by affinity, and by a container's --cpus


def make_deterministic() -> None:
    """Allow only algorithms that give the same numbers every time; PyTorch refuses an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision that --precision selects on a device. With tf32, and only then, a GPU from here on rounds inputs of
    float32 products and convolutions to 10 bits; by default PyTorch does so in convolutions."""
    if precision == "auto":  # PyTorch emulates bf16 on GPUs before Ampere, which is slower than float32
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "float32"  # differs: float32
    if (precision == "tf32" and device.type != "cuda") or (precision == "bf16" and device.type == "mps"):
        raise UserError(f"--precision {precision} does not run on {device.type}; take float32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 if the precision is bf16. Casts of weights are not cached, as the capture of a CUDA graph requires; a
    forward pass reads each weight once."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the main process's generators, from which dropout draws; order and flips need none. The other
    processes, whose number may change, get new seeds from `seed_other_processes`."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else state | {device.type: torch.get_device_module(device).get_rng_state()}


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:  # a run may be resumed on a different device
        torch.get_device_module(device).set_rng_state(state[device.type])


def seed_other_processes(entropy: Iterable[int]) -> None:
    if not distributed.is_main():
        torch.manual_seed(generator(*entropy, distributed.rank()).initial_seed())


def generator(*entropy: int) -> torch.Generator:
    """A generator that is a function of whole numbers such as (seed, epoch), so that resuming needs no hidden state."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
