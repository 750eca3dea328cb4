"""Sweeps: one of the real command, and the shell around it with a stand-in for the interpreter."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, toy_arguments


def program(path: Path, does: str) -> Path:
    """A shell script in the place of a program."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


def sweep(script: str, *arguments: object, **environment: object) -> subprocess.CompletedProcess:
    """A sweep on the CPU that runs to its end."""
    command = [REPOSITORY / "sweeps" / script, *arguments]
    environment = {"GPUS": "cpu"} | {name: str(value) for name, value in environment.items()}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=100)


def test_a_sweep_of_the_real_command_trains_and_makes_a_page_of_its_runs(toy):
    arguments = [part for part in toy_arguments(toy, "--epochs", "1") if part not in ("-g", "cpu")]
    options = {"OMP_NUM_THREADS": 1, "LOGS": toy.parent / "logs", "SEEDS": 0, "THRESHOLDS": "0.2"}
    done = sweep("thresholds.sh", *arguments, "--prompt", "a photo of a {}", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (toy.parent.parent / "results").glob("*/test.json")
    config = json.loads((run.parent / "config.json").read_text())["config"]
    assert config["hparams"]["threshold"] == 0.2 and config["prompt"] == ["a photo of a {}"]  # words arrive whole
    (page,) = (toy.parent / "logs").glob("thresholds_*.html")
    assert f"page: {page}" in done.stdout and page.with_suffix(".csv").exists()
    assert "1 of 1 finished, 0 running, 0 failed" in done.stdout and "(n 1" in done.stdout


def test_a_run_that_fails_does_not_stop_the_others_and_is_listed_with_its_log(tmp_path):
    does = '[ "$1" = main.py ] || exit 0; [ "$6" != 1 ] || { echo "no such seed" && exit 2; }; echo "results: r/$6"'
    python = program(tmp_path / "py", does)
    done = sweep("seeds.sh", SEEDS="0 1 8", JOBS=2, LOGS=tmp_path / "logs", PYTHON=python)
    assert done.returncode == 1 and "2 of 3 finished, 0 running, 1 failed" in done.stdout
    log = done.stdout.split("failed runs, each with its log:\n")[1].splitlines()[0].rsplit(": ", 1)[1]
    assert "no such seed" in Path(log).read_text()


def test_two_sweeps_with_one_folder_of_logs_count_their_own_runs(tmp_path):
    """The interpreter waits in the middle of each run until the other sweep has started one too."""
    python = program(
        tmp_path / "py",
        f"""[ "$1" = main.py ] || {{ echo "report of $*" && exit; }}
        touch "{tmp_path}/$6"
        for turn in $(seq 300); do [ -e "{tmp_path}/an" ] && [ -e "{tmp_path}/EM" ] && break || sleep 0.1; done
        [ "$8" = 0 ] && echo "results: results/$6_$8" || echo "finished: test mAP 3 in results/$6_$8 (--overwrite runs)"
        """,
    )
    settings = {"GPUS": "cpu", "SEEDS": "0 1", "LOGS": str(tmp_path / "logs"), "PYTHON": str(python)}
    command = [REPOSITORY / "sweeps/seeds.sh", "-l"]
    sweeps = {
        loss: subprocess.Popen([*command, loss], env=os.environ | settings, stdout=subprocess.PIPE, text=True)
        for loss in ("an", "EM")
    }
    for loss, process in sweeps.items():
        out = process.communicate(timeout=60)[0]
        assert process.returncode == 0 and "2 of 2 finished, 0 running, 0 failed" in out
        assert f"report of report.py results/{loss}_0 results/{loss}_1 --csv" in out


@pytest.mark.parametrize(
    ("script", "settings", "expected"),
    [
        ("seeds.sh", {"SEEDS": "0 8"}, ["-d x -s 0", "-d x -s 8"]),
        ("thresholds.sh", {"SEEDS": "1", "THRESHOLDS": "0.2 0.3"}, ["-d x -th 0.2 -s 1", "-d x -th 0.3 -s 1"]),
        ("temperatures.sh", {"SEEDS": "1", "TEMPERATURES": "1e-2"}, ["-d x -t 1e-2 -s 1"]),
        ("paper_table.sh", {"SEEDS": "1", "DATASETS": "a b", "LOSSES": "an"},
         ["-d a -l an -s 1 -d x", "-d b -l an -s 1 -d x"]),
    ],
)  # fmt: skip
def test_a_sweep_lists_a_line_for_each_run(script, settings, expected):
    done = sweep(script, "-d", "x", LIST=1, **settings)
    assert [line.replace("'", "") for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("wrong", [{"JOBS": "0"}, {"SEEDS": "$(id)"}])
def test_a_value_that_is_no_number_is_one_line(wrong):
    done = sweep("seeds.sh", "-d", "coco", **wrong)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expected" in done.stderr


def test_a_sweep_that_is_stopped_lets_its_runs_save_and_starts_no_other(tmp_path):
    python = program(
        tmp_path / "py",
        f"""trap 'sleep 0.3; echo saved >>{tmp_path}/saved; exit 143' TERM
        echo run >>{tmp_path}/started
        while :; do sleep 0.05; done""",
    )
    settings = {"GPUS": "cpu", "SEEDS": "0 1 2", "JOBS": "2", "LOGS": str(tmp_path / "logs"), "PYTHON": str(python)}
    process = subprocess.Popen([REPOSITORY / "sweeps/seeds.sh"], env=os.environ | settings, stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists() or (tmp_path / "started").read_text().count("run") < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "saved").read_text() == "saved\n" * 2 and (tmp_path / "started").read_text() == "run\n" * 2


@pytest.mark.parametrize(
    ("gpus", "jobs", "threads", "shared"),
    [("0 0 0", 3, 2, True), ("0 1", 2, 4, False), ("0", 1, None, False), ("cpu", 2, 4, False)],
)
def test_runs_side_by_side_share_the_cores_and_a_gpu(tmp_path, monkeypatch, gpus, jobs, threads, shared):
    """On a machine of eight cores; nvidia-cuda-mps-control and the interpreter write down how they are called."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    calls = tmp_path / "calls"
    program(tmp_path / "nproc", "echo 8")
    program(tmp_path / "nvidia-cuda-mps-control", f'echo "mps $* $(timeout 0.1 cat)" >>{calls}')
    does = f'echo "run ${{OMP_NUM_THREADS:-none}} ${{CUDA_MPS_PIPE_DIRECTORY:+mps}} $*" >>{calls}'
    python = program(tmp_path / "py", does)
    options = {"GPUS": gpus, "JOBS": jobs, "PYTHON": python, "LOGS": tmp_path / "logs", "SEEDS": "0 1 8"}
    done = sweep("seeds.sh", "-d", "coco", **options, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    runs = [line for line in lines if "main.py" in line]
    assert len(runs) == 3 and all(line.startswith(f"run {threads or 'none'} ") for line in runs)
    assert all(("mps" in line and "--cache disk -d coco" in line) == shared for line in runs)
    assert {line.split(" -g ")[1].split()[0] for line in runs} == set(gpus.split())
    assert [line.rstrip() for line in lines if line.startswith("mps")] == (["mps -d", "mps  quit"] if shared else [])


def test_nothing_in_the_values_of_a_sweep_is_executed(tmp_path):
    made = tmp_path / "made"
    python = program(tmp_path / "python", f'printf "%s|" "$@" >>"{tmp_path}/run"')
    values = {"DATASETS": f"$(touch${{IFS}}{made}) ;touch *", "LOSSES": "an", "SEEDS": "0", "PYTHON": python}
    done = sweep("paper_table.sh", "--prompt", f"a $(touch {made}) {{}}", **values, LOGS=tmp_path / "logs")
    assert done.returncode == 0 and not made.exists(), done.stderr
    run = (tmp_path / "run").read_text()
    for dataset in (f"$(touch${{IFS}}{made})", ";touch", "*"):
        assert f"|-d|{dataset}|-l|an|-s|0|--prompt|a $(touch {made}) {{}}|" in run


def slurm(tmp_path: Path, jobs: str, task: int, status: int = 0) -> subprocess.CompletedProcess:
    """A task of an array, with srun and scontrol that write down how they are called."""
    (tmp_path / "jobs.txt").write_text(jobs)
    program(tmp_path / "bin/srun", f'printf "%s\\n" "$@" >"{tmp_path}/run"\nexit {status}')
    program(tmp_path / "bin/scontrol", f'echo "$*" >"{tmp_path}/asked"')
    environment = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7", "PYTHON": "py"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    command = [REPOSITORY / "sweeps/slurm.sh", tmp_path / "jobs.txt"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize(("status", "requeued"), [(0, ""), (143, "requeue 7_2\n"), (2, "")])
def test_a_task_of_a_slurm_array_runs_its_line_and_is_queued_again_after_sigterm(tmp_path, status, requeued):
    jobs = sweep("seeds.sh", "-d", "coco", "--prompt", "a photo of a {}", LIST=1, SEEDS="0 1 8").stdout
    assert slurm(tmp_path, jobs, 2, status).returncode == status
    expected = ["py", "main.py", "--resume", "-d", "coco", "--prompt", "a photo of a {}", "-s", "1"]
    assert (tmp_path / "run").read_text().splitlines() == expected
    assert ((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else "") == requeued


def test_nothing_in_a_line_of_jobs_is_executed(tmp_path):
    made = tmp_path / "made"
    jobs = f"-d $(touch {made}) --prompt 'it'\\''s a {{}}' ; touch {made} `touch {made}` *\n-d 'coco\n"
    assert slurm(tmp_path, jobs, 1).returncode == 0
    words = ["-d", "$(touch", f"{made})", "--prompt", "it's a {}", ";", "touch", f"{made}", "`touch", f"{made}`", "*"]
    assert (tmp_path / "run").read_text().splitlines() == ["py", "main.py", "--resume", *words]
    wrong = slurm(tmp_path, jobs, 2)
    assert wrong.returncode == 2 and "line 2 has quotes that do not match" in wrong.stderr
    assert not made.exists()
