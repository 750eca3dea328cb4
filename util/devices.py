"""The device that a run computes on, its precision, its random state."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from util import distributed
from util.errors import UserError, describe_error, started_by_torchrun, torchrun_rank

DRIVER = Path("/proc/driver/nvidia/version")
CPU_MAX, STAT, CPU_INFO = Path("/sys/fs/cgroup/cpu.max"), Path("/proc/stat"), Path("/proc/cpuinfo")


def pick_device(gpu: str) -> torch.device:
    """The device of --gpu, or under torchrun the GPU of this process; on a machine without an NVIDIA driver the CPU,
    with a note. Raises UserError where there is a driver and CUDA does not start, rather than run for days on the CPU.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if has_driver():
            raise UserError(f"this machine has an NVIDIA driver, but CUDA does not start: {why_no_cuda()} (-g cpu runs "
                            "on the CPU)")  # fmt: skip
        if torchrun_rank() == 0:
            print("note: no CUDA device found, running on the CPU (-g cpu does so without this note)")
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else int(gpu)
    if index >= (gpus := torch.cuda.device_count()):
        if started_by_torchrun():
            raise UserError(f"torchrun started more processes than the {gpus} GPUs here; use --nproc-per-node {gpus}")
        raise UserError(f"--gpu {gpu}: this machine has CUDA devices 0 to {gpus - 1}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver, whatever PyTorch makes of it."""
    if DRIVER.exists():
        return True
    program = shutil.which("nvidia-smi")  # which is all that containers and WSL may show of it
    return program is not None and subprocess.run([program, "-L"], capture_output=True).returncode == 0


def why_no_cuda() -> str:
    """PyTorch's own reason why it finds no CUDA device."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        return describe_error(error)
    return "it finds no device"


def describe(device: torch.device, precision: str, cuda_graph: bool, where: str) -> str:
    """One line: what a run computes on and how.

    where  gpu, disk or none: where its images are kept
    """
    kept = {"gpu": "images on the GPU", "disk": "images in a file", "none": "images decoded every epoch"}
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads, {precision}, {kept[where]}"
    version = re.search(r"\d+\.\d[\d.]*", DRIVER.read_text()) if DRIVER.is_file() else None
    driver = f" (driver {version[0]})" if version else ""
    graph = "CUDA graph" if cuda_graph and distributed.world_size() == 1 else "no CUDA graph"
    return f"{torch.cuda.get_device_name(device)}{driver}, {precision}, {graph}, {kept[where]}"


def set_threads(threads: int | None) -> None:
    """Compute with so many threads; if not given, with PyTorch's own number, but no more than this process may use."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))


def usable_cores() -> int:
    """The cores that this process may use: by its affinity, and by the limit of its cgroup (a container's --cpus)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_MAX.is_file():
        quota, period = CPU_MAX.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


class OtherPrograms:
    """How many cores other programs keep busy, on average since this was made."""

    def __init__(self) -> None:
        self.began, self.used = time.monotonic(), self._used()

    def busy(self) -> float:
        return max(0.0, (self._used() - self.used) / max(time.monotonic() - self.began, 1e-3))

    @staticmethod
    def _used() -> float:
        """CPU seconds of all programs but this one, where the system tells."""
        if not STAT.is_file():
            return 0.0
        user, nice, system, _, _, irq, softirq = map(int, STAT.read_text().split("\n", 1)[0].split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()


def crowded(busy: float, cores: int, threads: int) -> str:
    """A note, where PyTorch's threads would wait for cores that other programs use; else "". PyTorch's threads wait for
    each other after every operation, so a single one without a core holds all up."""
    if threads == 1 or busy + threads <= cores + 0.5:
        return ""
    free = max(1, int(cores - busy))
    return (
        f"note: other programs keep {busy:.1f} of {cores} cores busy, and {threads} threads of one run wait for each "
        f"other; --threads {free} may be several times faster (it changes the last bits of the results)"
    )


def make_deterministic() -> None:
    """Allow only algorithms that give the same numbers every time; PyTorch refuses an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision that --precision stands for on a device. From here on a GPU rounds what enters a float32 product or
    convolution to TF32's 10 bits where it is tf32, and nowhere else; PyTorch by itself does so in convolutions.
    """
    if precision == "auto":  # PyTorch emulates bf16 on GPUs before Ampere, which is slower than float32
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "float32"  # differs: float32
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 is arithmetic of GPUs; take float32")
    if precision == "bf16" and device.type == "cpu" and CPU_INFO.is_file() and "bf16" not in CPU_INFO.read_text():
        print("note: this processor has no bf16 instructions; --precision float32 is several times faster")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def default_workers() -> int:
    """Threads that decode images: this process's part of the cores that it may use, 8 at most."""
    return max(1, min(8, usable_cores() // (int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else 1)))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training draws from (for dropout and the like; order and flips need none).

    Of the main process; the others' are made anew by `seed_other_processes`, for their number may change.
    """
    return {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    )


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_other_processes(entropy: Iterable[int]) -> None:
    """Give every process but the main one a generator of its own."""
    if not distributed.is_main():
        torch.manual_seed(_seed([*entropy, distributed.rank()]))


def generator(*entropy: int) -> torch.Generator:
    """A generator that is a function of whole numbers such as (seed, epoch), so that resuming needs no hidden state."""
    return torch.Generator().manual_seed(_seed(entropy))


def _seed(entropy: Iterable[int]) -> int:
    return int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0])
