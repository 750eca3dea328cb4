"""One process, or as many as torchrun started, which divide batches, images and caches among themselves.

All processes of a run call these functions in the same order. With a single process each does nothing, at no cost.
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

from util.errors import UserError, describe_error, started_by_torchrun

_long_group: dist.ProcessGroup | None = None  # waits days, as for a run that fills a cache; the default one, minutes
FILE_SECONDS = 120.0  # a network file system may take this long to show a file that a different machine made
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left{postfix}"


def initialize(device: torch.device) -> None:
    """Form the process group if torchrun started this process. From then on only the main process prints."""
    global _long_group
    if started_by_torchrun() and not dist.is_initialized():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            _long_group = dist.new_group(backend="gloo", timeout=timedelta(days=2))
        except (RuntimeError, ValueError, OSError) as error:
            text = f"the processes that torchrun started do not find each other ({describe_error(error)})"
            raise UserError(f"{text}; start them again, or unset torchrun's environment variables") from None
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def shut_down() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes the files of the run."""
    return rank() == 0


def maximum(value: int) -> int:
    """The largest of the processes' values."""
    values = torch.tensor([int(value)])
    if world_size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX, group=_long_group)
    return int(values)


def barrier() -> None:
    """Wait until all processes have called this."""
    maximum(0)


def all_sum(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(rows: Tensor) -> Tensor:
    """The processes' rows, which may differ in number, in the order of the processes; without a gradient."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    padded = rows.new_zeros(int(all_sum(counts).max()), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of the main one, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def shard(num_rows: int) -> range:
    """This process's rows of `num_rows`: contiguous, and as many as any other process's, or one less."""
    return range(num_rows * rank() // world_size(), num_rows * (rank() + 1) // world_size())


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as training calls it. With several processes gradients are averaged, and on GPUs batch norm computes
    its statistics over all of them."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # PyTorch's would drop the activation of timm's layers

        model = convert_sync_batchnorm(model)
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        print("note: on CPUs batch norm uses the statistics of each process's part of the batch; numbers will differ")
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def wait_for_file(path: Path) -> None:
    """Wait until a file that the main process has made is visible on this machine."""
    until = time.monotonic() + (0 if is_main() else FILE_SECONDS)
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)


def progress_bar(total: int, desc: str, initial: int = 0) -> tqdm:
    """A bar over images, with images per second and the time left, on the terminal of the main process only."""
    disable = None if is_main() else True  # None: unless it is a terminal, so that a log file stays short
    look = dict(unit=" images", bar_format=BAR, leave=False, dynamic_ncols=True, mininterval=1.0)
    return tqdm(total=total, desc=desc, initial=initial, disable=disable, **look)
