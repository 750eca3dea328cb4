"""The device of a run and its precision, on other machines: PyTorch's answers are replaced."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

import assess_teacher
import main
import predict
from util import devices
from util.errors import UserError

CPU, GPU, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
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
def test_if_proc_shows_no_driver_nvidia_smi_is_asked(monkeypatch, tmp_path, status, found):
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


@pytest.mark.parametrize("precision, device", [("tf32", CPU), ("tf32", MPS), ("bf16", MPS)])
def test_a_precision_that_the_device_lacks_is_refused(precision, device):
    with pytest.raises(UserError, match=f"does not run on {device.type}; take float32"):
        devices.pick_precision(precision, device)


def test_an_apple_gpu_is_used_in_float32(monkeypatch):
    with pytest.raises(UserError, match="needs a Mac"):
        devices.pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device("mps") == MPS and devices.pick_precision("auto", MPS) == "float32"
    assert "Apple GPU, float32" in devices.describe(MPS, "float32", "disk")
    state = [torch.zeros(4)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", state.append)
    devices.set_random_state(devices.random_state(MPS), MPS)
    assert len(state) == 2 and state[1] is state[0]


@pytest.mark.parametrize("gpu", ["nonsense", "-1", "cuda:0", "1.5", ""])
@pytest.mark.parametrize("call", [main.main, predict.main, assess_teacher.main])
def test_every_command_refuses_a_device_that_does_not_exist(fails, call, gpu):
    arguments = ["run", "photo.jpg"] if call is predict.main else []
    assert f"--gpu takes a CUDA index such as 0, or cpu, or mps, not {gpu!r}" in fails(
        call, [*arguments, f"--gpu={gpu}"]
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_benchmarks_say_why_pytorch_finds_no_gpu(tmp_path):
    done = subprocess.run([REPOSITORY / "benchmarks/gpu_all.sh", tmp_path / "gpu.md"], capture_output=True, text=True)
    reason = devices.describe_cuda()
    assert done.returncode == 2 and reason in done.stderr and not (tmp_path / "gpu.md").exists()
    assert os.listdir(tmp_path) == []


def test_the_gpu_benchmarks_take_less_than_nine_minutes():
    lines = (REPOSITORY / "benchmarks/gpu_all.sh").read_text().splitlines()
    limits = [int(found[1]) for line in lines if (found := re.search(r"(?:^|&& | {4})run (\d+) ", line))]
    assert len(limits) == 8 and sum(limits) < 9 * 60


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
        "Milliseconds per training step",
        "All of it took",
    ):
        assert row in made
