"""The processes of one run: a single one, or as many as torchrun started, which share out batches, images and caches.

All of a run's processes call these functions in the same order. With a single process each does nothing, at no cost.
"""

import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cli import started_by_torchrun

PATIENCE = timedelta(days=2)  # how long processes wait for one another, or for another run, while a cache is filled
_patient: dist.ProcessGroup | None = None  # the same processes; the usual group loses patience in minutes
SEEN_SECONDS = 120.0  # how long a network file system may take to show a file that another machine made


def join(device: torch.device) -> None:
    """Meet the other processes that torchrun started, if it did. From here on only the first one prints."""
    global _patient
    if started_by_torchrun() and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that prints, and writes what there is one of."""
    return rank() == 0


def largest(value: int) -> int:
    """The largest of the processes' values; all of them have come here when it returns."""
    if count() == 1:
        return int(value)
    values = torch.tensor([int(value)])
    dist.all_reduce(values, dist.ReduceOp.MAX, group=_patient)
    return int(values)


def agree(*values: int) -> bool:
    """Whether all processes hold the same values."""
    return all([largest(value) == -largest(-value) for value in values])


def wait() -> None:
    """Until all have come here."""
    largest(0)


def add_up(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, in place."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process what the first one holds, in place."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def share(num_rows: int) -> range:
    """The rows of `num_rows` that are this process's: contiguous, as many as any other's but for one."""
    return range(num_rows * rank() // count(), num_rows * (rank() + 1) // count())


def distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as training calls it: with several processes, their gradients are averaged, and on GPUs batch norm
    takes its statistics over all of them."""
    if count() == 1:
        return model
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # PyTorch's would drop the activation of timm's layers

        model = convert_sync_batchnorm(model)
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        print("note: on CPUs batch norm takes the statistics of each process's share alone; numbers will differ")
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def until_seen(path: Path) -> None:
    """Wait for a file that another process has made to be seen from this machine."""
    until = time.monotonic() + SEEN_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)


def bar(**options) -> tqdm:
    """A progress bar, on the first process's terminal only."""
    return tqdm(**options, disable=None if is_first() else True)
