"""Every benchmark runs at toy size and prints its tables."""

import runpy
import sys
import warnings

import pytest
import torch
from conftest import REPOSITORY

SMALL = "--official 20 --image-size 32 --no-pretrained -m timm:test_resnet -g cpu"
TOY = f"{SMALL} --test 10"


@pytest.mark.parametrize(
    "script, arguments, rows",
    [
        (
            "train",
            f"{TOY} --teacher models/digits_clip.json",
            [
                "train, images/s",
                "train, share of the float32 matrix rate",
                "whole epoch, s",
                "teacher",
                "VOC (5,717",
                "COCO (82,081",
            ],
        ),
        pytest.param(
            "train",
            f"--cell {TOY} --epochs 2",
            ["start-up", "epochs, without that", "whole command"],
            marks=pytest.mark.slow,
        ),
        pytest.param("ddp", f"--processes 1 2 {SMALL}", ["| 1 |", "| 2 |"], marks=pytest.mark.slow),
        pytest.param("jobs", f"--jobs 2 --epochs 1 {SMALL}", ["| 1 |", "| 2 |"], marks=pytest.mark.slow),
        (
            "step",
            f"{SMALL.replace('--official 20 ', '')} --batches 2 4",
            ["| 2 |", "| 4 |", "--cuda-graph | --compile |"],
        ),
        ("scale", "--sizes 200x5", ["| 200 x 5 |", "peak, GiB"]),
        pytest.param(
            "teacher",
            "--teacher ViT-B-32-quickgelu --images 2 -g cpu",
            ["float16, whole pass", "same pseudo-labels"],
            marks=pytest.mark.slow,
        ),
        ("decode", "--images 6 --size 32", ["resized by PyTorch", "from the cache: memory-mapped file"]),
        (
            "predict",
            "-m timm:test_resnet --sizes 32 --images 6 --batch-size 4 --threads 1 -g cpu",
            ["| 32 |", "of both at once"],
        ),
        ("metrics", "--images 300 --labels 5", ["mAP, this code", "mAP, Python loops", "difference of an AP"]),
        ("preproc", "--share 0.001", ["COCO's two instance files", "CUB's table", "single positives of 82 x 80"]),
    ],
)
def test_a_benchmark_prints_its_tables(script, arguments, rows, monkeypatch, capsys):
    """In this process, which has imported most of what a benchmark imports."""
    repeats = [] if script == "scale" else ["--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}.py", *repeats, *arguments.split()])
    monkeypatch.setattr(sys, "path", ["benchmarks", *sys.path])  # a script replaces the first entry
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which a script replaces, too
    monkeypatch.chdir(REPOSITORY)
    threads = torch.get_num_threads()
    runpy.run_path(f"benchmarks/{script}.py", run_name="__main__")
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert all(row in out for row in rows), out
