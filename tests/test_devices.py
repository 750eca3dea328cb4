"""The device of a run and its precision, on machines that this one is not: PyTorch's answers are made up."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from util import devices
from util.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A machine whose driver is too old for this PyTorch."""

    def refuse():
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(devices, "DRIVER", tmp_path)  # which exists


def test_a_driver_without_cuda_stops_the_run_with_pytorchs_reason(broken):
    with pytest.raises(UserError) as error:
        devices.pick_device("0")
    assert TOO_OLD in str(error.value) and "-g cpu" in str(error.value)
    assert devices.pick_device("cpu") == CPU


def test_a_pytorch_built_without_cuda_is_named_too(broken, monkeypatch):
    def refuse():
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(UserError, match="not compiled with CUDA"):
        devices.pick_device("0")


@pytest.mark.parametrize("status, found", [(0, True), (9, False)])
def test_where_proc_shows_no_driver_nvidia_smi_is_asked(monkeypatch, tmp_path, status, found):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.has_driver() == found


@pytest.mark.parametrize(
    "asked, device, ampere, taken, tf32",
    [
        ("auto", CPU, True, "float32", False),
        ("auto", GPU, True, "bf16", False),
        ("auto", GPU, False, "float32", False),  # which PyTorch lets compute in bf16 all the same, by emulation
        ("float32", GPU, True, "float32", False),
        ("tf32", GPU, True, "tf32", True),
    ],
)
def test_float32_is_float32_in_convolutions_too(monkeypatch, asked, device, ampere, taken, tf32):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: ampere or including_emulation)
    assert devices.pick_precision(asked, device) == taken
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    devices.pick_precision("float32", CPU)


def test_tf32_on_a_cpu_is_told():
    with pytest.raises(UserError, match="take float32"):
        devices.pick_precision("tf32", CPU)


@pytest.mark.parametrize(("flags", "told"), [("avx2 avx512_bf16 amx_bf16", 0), ("avx2 avx512f", 1)])
def test_bf16_on_a_processor_without_it_is_slow_which_is_told(monkeypatch, tmp_path, capsys, flags, told):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    assert devices.pick_precision("bf16", CPU) == "bf16"
    assert capsys.readouterr().out.count("this processor has no bf16 instructions") == told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_benchmarks_say_why_pytorch_finds_no_gpu(tmp_path):
    done = subprocess.run([REPOSITORY / "benchmarks/gpu_all.sh", tmp_path / "gpu.md"], capture_output=True, text=True)
    reason = devices.why_no_cuda()
    assert done.returncode == 2 and reason in done.stderr and not (tmp_path / "gpu.md").exists()
    assert os.listdir(tmp_path) == []


def test_the_gpu_benchmarks_take_less_than_nine_minutes():
    lines = (REPOSITORY / "benchmarks/gpu_all.sh").read_text().splitlines()
    limits = [int(found[1]) for line in lines if (found := re.search(r"(?:^|&& | {4})run (\d+) ", line))]
    assert len(limits) == 7 and sum(limits) < 9 * 60


@pytest.mark.slow
def test_the_gpu_benchmarks_run_at_toy_size_on_a_cpu(tmp_path):
    program, given = (
        [REPOSITORY / "benchmarks/gpu_all.sh", tmp_path / "gpu.md"],
        {"GPU": "cpu", "PYTHON": sys.executable},
    )
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | given)
    made = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0 and "not measured" not in made, done.stderr
    for row in (
        "train, images/s",
        "share of the float32 matrix rate",
        "whole command",
        "runs per hour",
        "All of it took",
    ):
        assert row in made


@pytest.mark.parametrize(
    "busy, cores, threads, says",
    [(0.0, 2, 2, ""), (0.4, 2, 2, ""), (1.0, 2, 2, "--threads 1 "), (30.0, 64, 64, "--threads 34 "), (9.0, 2, 1, "")],
)
def test_threads_that_would_wait_for_other_programs_are_told_with_the_remedy(busy, cores, threads, says):
    note = devices.crowded(busy, cores, threads)
    assert (says in note) if says else not note


def test_other_programs_are_told_from_this_one(monkeypatch, tmp_path):
    """On a machine of which two cores are busy, one of them with this program."""
    ticks, seconds = os.sysconf("SC_CLK_TCK"), iter([0.0, 10.0])
    monkeypatch.setattr(devices.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(devices.time, "process_time", lambda: own)
    monkeypatch.setattr(devices, "STAT", tmp_path / "stat")
    own = 5.0
    (tmp_path / "stat").write_text(f"cpu  {100 * ticks} 0 0 7 7 0 0 0 0 0\ncpu0 1\n")
    others = devices.OtherPrograms()
    own = 15.0
    (tmp_path / "stat").write_text(f"cpu  {115 * ticks} 0 {5 * ticks} 9 9 0 0 0 0 0\ncpu0 1\n")
    assert others.busy() == pytest.approx(1.0)


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 8)])
def test_a_containers_limit_of_cores_is_respected(monkeypatch, tmp_path, limit, cores):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(devices, "CPU_MAX", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert devices.usable_cores() == cores
