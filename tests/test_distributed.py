"""Several processes, started by torchrun over gloo: they compute what one computes, and end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_toy, numbers, only_run, taught_arguments, toy_arguments

import main
from util import distributed

NO_BATCH_NORM = ("-m", "timm:test_convnext.r160_in1k", "--epochs", "3", "--lr", "1e-4")
LINEAR = "--mode linear --linear-epochs 3 --linear-batch-size 8 --ema 0.9 --schedule cosine".split()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(processes: int, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, str(processes), "main.py", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(err: str) -> list[str]:
    """The lines of the run, without those of torchrun."""
    return [line for line in err.splitlines() if line.startswith(("main.py:", "main.py, process"))]


def agree(one: Path, other: Path, tolerance: float) -> bool:
    (a, history, _), (b, other_history, _) = numbers(one), numbers(other)
    assert np.array_equal(a["images"], b["images"]) and np.array_equal(a["labels"], b["labels"])
    losses = [[row["train_loss"] for row in rows] for rows in (history, other_history)]
    return np.abs(a["probs"] - b["probs"]).max() < tolerance and np.allclose(*losses, rtol=0, atol=tolerance)


@pytest.fixture
def uneven(tmp_path) -> Path:
    """23 training images: no batch size leaves a last batch that two processes share evenly, unless it is 22 or 23."""
    return make_toy(tmp_path / "data", train=29)


@pytest.mark.parametrize(
    "more",
    [
        ("-l", "EM_PL", "--batch-size", "8"),  # a last batch of 7: 4 and 3
        ("-l", "role", "--batch-size", "22"),  # of 1: one process has none of it; estimates are learned by both
        pytest.param(("-l", "EM_APL", "--batch-size", "22", "--warmup-epochs", "1"), marks=pytest.mark.slow),
        pytest.param(("-l", "an", *LINEAR), marks=pytest.mark.slow),
    ],
)
def test_two_processes_compute_what_one_computes(uneven, tmp_path, more):
    arguments = taught_arguments(uneven, *NO_BATCH_NORM, *more)
    process = start(2, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("best epoch") == 1 and out.count("epoch 3/3") == 1  # the first process alone speaks
    shared = shutil.move(only_run(uneven), tmp_path / "shared")
    similarities = {path.name: np.load(path) for path in (uneven / "cache").glob("similarity_*.npy")}
    shutil.rmtree(uneven / "cache")
    alone = Path(main.main(arguments)["folder"])
    assert agree(Path(shared), alone, 1e-5)
    for name, values in similarities.items():
        assert np.abs(np.load(uneven / "cache" / name) - values).max() < 1e-5
    assert len(similarities) == ("EM_PL" in more)


@pytest.mark.slow
def test_batch_norm_runs_if_shares_are_uneven_and_empty(uneven):
    """On CPUs each process computes its own statistics, so numbers differ; the last batch of 1 leaves one without."""
    process = start(2, *toy_arguments(uneven, "-l", "EM", "--batch-size", "22", "--image-size", "64"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out.count("note: on CPUs batch norm") == 1, err
    (predictions, history, _) = numbers(only_run(uneven))
    assert np.isfinite(predictions["probs"]).all() and np.isfinite([row["train_loss"] for row in history]).all()


@pytest.mark.parametrize(("before", "after"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 1)])
def test_a_run_resumes_with_a_different_number_of_processes(uneven, tmp_path, capsys, before, after):
    """SIGTERM, which torchrun passes on, in mid-epoch."""
    arguments = toy_arguments(uneven, *NO_BATCH_NORM, "-l", "an", "--batch-size", "2", "--epochs", "16")
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    process = start(before, *arguments)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert process.returncode != 0
    state = torch.load(only_run(uneven) / "last.pt", weights_only=True)
    assert 2 < state["epoch"] < 16 and len(state["step_losses"]) == state["step"]
    if after == 1:
        main.main([*arguments, "--resume"])
        out = capsys.readouterr().out
    else:
        out, _ = start(after, *arguments, "--resume").communicate(timeout=300)
    assert f"resuming in epoch {state['epoch']}" in out
    assert agree(only_run(uneven), Path(undisturbed), 1e-3)  # rounding, over 192 steps


def test_a_dead_process_ends_the_run_with_its_reason_and_the_run_resumes(uneven, capsys):
    arguments = toy_arguments(uneven, *NO_BATCH_NORM, "-l", "an", "--batch-size", "2", "--epochs", "20")
    process = start(2, *arguments)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    died = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and time.monotonic() - died < 60
    assert "Signal 9 (SIGKILL)" in err
    main.main([*arguments, "--resume"])
    assert "resuming in epoch" in capsys.readouterr().out


def test_an_image_that_one_process_cannot_read_is_named_by_it(uneven):
    bad = uneven / "images/train/028.png"
    bad.write_bytes(b"no image")
    process = start(2, *toy_arguments(uneven, *NO_BATCH_NORM, "-l", "an"))
    _, err = process.communicate(timeout=120)
    line, *after = lines(err)  # after it the other process may say that it was ended, if torchrun is slow to do so
    assert process.returncode != 0
    assert (
        line.startswith("main.py, process 1: error: ")
        and f"1 of 23 images cannot be read: {bad} is not a readable image (of no known kind)" in line
    )
    assert all("a different process of this run has ended" in other or "stopped by SIGTERM" in other for other in after)


def test_a_batch_that_cannot_be_shared_out_is_one_line(uneven, monkeypatch, fails):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    line = fails(main.main, toy_arguments(uneven, *NO_BATCH_NORM, "-l", "an", "--batch-size", "5"))
    assert "--batch-size 5 cannot be divided evenly among 2 processes" in line
    assert not (uneven.parent.parent / "results").exists()
