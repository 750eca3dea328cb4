"""Sweeps of the real command, and the table that gathers them."""

import csv
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, toy_arguments

import report


def write_run(results: Path, dataset: str, loss: str, seed: int, test_map: float | None, **more) -> None:
    folder = results / f"{dataset}_{loss}_{seed}_{len(list(results.glob('*')))}"
    folder.mkdir(parents=True)
    identity = {"dataset": dataset, "loss": loss, "model": "resnet50", "seed": seed, "lr": 1e-5} | more
    (folder / "config.json").write_text(json.dumps({"identity": identity}))
    if test_map is not None:
        result = {"test_mAP": test_map, "seed": seed, "chosen_by": "validation mAP on clean labels"}
        (folder / "test.json").write_text(json.dumps(result))


def lines(capsys, *arguments: str) -> list[str]:
    report.main(list(arguments))
    return capsys.readouterr().out.splitlines()


def test_the_table_has_methods_down_data_sets_across_and_published_numbers_beside(tmp_path, capsys):
    for seed, test_map in ((0, 71.0), (1, 72.0), (8, 73.0)):
        write_run(tmp_path, "coco", "EM_PL", seed, test_map)
    write_run(tmp_path, "pascal", "an", 0, 86.0)
    write_run(tmp_path, "coco", "bce", 0, 76.0)
    write_run(tmp_path, "coco", "iun", 0, None)
    out = lines(capsys, str(tmp_path))
    assert out[0] == "| test mAP, % | pascal | coco |"
    assert [line.split(" | ")[0] for line in out[2:7]] == [
        "| *oracles*",
        "| bce",
        "| *single positives*",
        "| an",
        "| EM_PL",
    ]
    assert "| EM_PL |  | 72.00 ± 1.00 (n 3; published 71.45, +0.55) |" in out
    assert "| an | 86.00 (n 1; published 85.89, +0.11) |  |" in out
    assert "epoch chosen by validation mAP on clean labels" in "\n".join(out)
    assert out[-1].startswith("not in the table: coco_iun_0_5 (unfinished: --resume goes on)")
    next(tmp_path.glob("pascal_an_*/test.json")).write_text("{")
    assert "pascal_an_0_3 (damaged: --overwrite runs it again)" in lines(capsys, str(tmp_path))[-1]
    with open(tmp_path / "summary.csv") as file:
        rows = {row["loss"]: row for row in csv.DictReader(file)}
    assert rows["EM_PL"]["seeds"] == "0 1 8" and float(rows["EM_PL"]["mean"]) == 72


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged_and_the_difference_is_named(tmp_path, capsys):
    for seed in (0, 1):
        for threshold in (0.2, 0.3):
            write_run(tmp_path, "coco", "EM_PL", seed, 70 + threshold, threshold=threshold)
    out = lines(capsys, str(tmp_path))
    assert any(line.startswith("| EM_PL (threshold 0.2) | 70.20") for line in out)
    assert any(line.startswith("| EM_PL (threshold 0.3) | 70.30") for line in out)


def test_a_folder_without_runs_is_told(tmp_path, capsys, fails):
    assert "no folder" in fails(report.main, [str(tmp_path / "none")])
    report.main([str(tmp_path)])
    assert "no finished run" in capsys.readouterr().err


def sweep(script: str, toy: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    arguments = toy_arguments(toy, "--epochs", "1", *more)
    arguments = [part for part in arguments if part not in ("-g", "cpu")]
    settings = {"GPUS": "cpu cpu", "JOBS": "2", "OMP_NUM_THREADS": "1", "LOGS": str(toy.parent / "logs"), **environment}
    return subprocess.run(
        [REPOSITORY / "sweeps" / script, *arguments], capture_output=True, text=True, env=os.environ | settings
    )


def test_a_sweep_skips_what_is_finished_and_lists_what_failed(toy):
    first = sweep("seeds.sh", toy, SEEDS="0 1")
    assert first.returncode == 0, first.stdout + first.stderr
    results = toy.parent.parent / "results"
    made = {path: path.stat().st_mtime_ns for path in results.glob("*/test.json")}
    assert len(made) == 2

    second = sweep("seeds.sh", toy, SEEDS="0 -1 1")  # -1 is no seed
    assert second.returncode == 1
    assert "failed runs, each with its log:" in second.stdout
    (log,) = [line.rsplit(": ", 1)[1] for line in second.stdout.splitlines() if line.endswith(".log")]
    assert "--seed must lie in" in Path(log).read_text()
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/test.json")} == made


@pytest.mark.parametrize(
    ("script", "variable", "field"),
    [("thresholds.sh", "THRESHOLDS", "threshold"), ("temperatures.sh", "TEMPERATURES", "temperature")],
)
def test_a_grid_runs_every_value(toy, script, variable, field):
    done = sweep(script, toy, "--prompt", "a photo of a {}", SEEDS="0", **{variable: "0.2 0.3"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text())["config"] for path in (toy.parent.parent / "results").glob("*/config.json")]
    assert sorted(config["settings"][field] for config in found) == [0.2, 0.3]
    assert {config["prompt"] for config in found} == {"a photo of a {}"}  # words with spaces arrive whole


def test_a_sweep_that_is_stopped_saves_its_runs_and_starts_no_other(toy):
    arguments = [part for part in toy_arguments(toy, "-l", "an", "--epochs", "2000") if part not in ("-g", "cpu")]
    settings = {"GPUS": "cpu", "SEEDS": "0 1", "OMP_NUM_THREADS": "1", "LOGS": str(toy.parent / "logs")}
    command = [REPOSITORY / "sweeps/seeds.sh", *arguments]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    results, until = toy.parent.parent / "results", time.monotonic() + 120
    while not list(results.glob("*/last.pt")) and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    (log,) = (toy.parent / "logs").glob("*.log")
    assert "stopped by SIGTERM; the same command with --resume goes on" in log.read_text()
    assert len(list(results.glob("*/config.json"))) == 1


@pytest.mark.parametrize(("status", "requeued"), [(0, ""), (143, "requeue 7_2\n"), (2, "")])
def test_a_task_of_a_slurm_array_runs_its_line_and_is_queued_again_after_sigterm(tmp_path, status, requeued):
    jobs, tools, asked = tmp_path / "jobs.txt", tmp_path / "bin", tmp_path / "asked"
    listing = subprocess.run(
        [REPOSITORY / "sweeps/seeds.sh", "-d", "coco", "--prompt", "a photo of a {}"],
        capture_output=True,
        text=True,
        env=os.environ | {"LIST": "1", "SEEDS": "0 1 8"},
    )
    jobs.write_text(listing.stdout)
    assert len(listing.stdout.splitlines()) == 3
    tools.mkdir()
    (tools / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/run"\nexit {status}\n')
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$*" >"{asked}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7", "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([REPOSITORY / "sweeps/slurm.sh", jobs], env=os.environ | slurm | {"PYTHON": "py"})
    assert done.returncode == status
    expected = ["py", "main.py", "--resume", "-d", "coco", "--prompt", "a photo of a {}", "-s", "1"]
    assert (tmp_path / "run").read_text().splitlines() == expected
    assert (asked.read_text() if asked.exists() else "") == requeued
