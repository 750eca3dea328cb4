"""Sweeps of the real command."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, toy_arguments


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

    logs = toy.parent / "logs"
    assert "2 of 2 finished, 0 running, 0 failed" in first.stdout
    (page,) = logs.glob("seeds_*.html")
    assert f"page: {page}" in first.stdout and "(n 2" in first.stdout and page.with_suffix(".csv").exists()

    second = sweep("seeds.sh", toy, SEEDS="0 -1 1")  # -1 is no seed
    assert second.returncode == 1
    assert "failed runs, each with its log:" in second.stdout
    assert "2 of 3 finished, 0 running, 1 failed" in second.stdout and "(n 2" in second.stdout
    (log,) = [line.rsplit(": ", 1)[1] for line in second.stdout.splitlines() if line.endswith(".log")]
    assert "--seed must lie in" in Path(log).read_text()
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/test.json")} == made
    assert not [path for path in logs.iterdir() if path.is_dir()]  # the lists of the sweep


def test_two_sweeps_with_one_folder_of_logs_count_their_own_runs(tmp_path):
    """The interpreter waits in the middle of each run until the other sweep has started one too."""
    (tmp_path / "py").write_text(
        f"""#!/bin/sh
        [ "$1" = main.py ] || {{ echo "report of $*" && exit; }}
        touch "{tmp_path}/$6"
        for turn in $(seq 300); do [ -e "{tmp_path}/an" ] && [ -e "{tmp_path}/EM" ] && break || sleep 0.1; done
        echo "results: results/$6_$8"
        """
    )
    (tmp_path / "py").chmod(0o755)
    settings = {"GPUS": "cpu", "SEEDS": "0 1", "LOGS": str(tmp_path / "logs"), "PYTHON": str(tmp_path / "py")}
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
    ("script", "variable", "field"),
    [("thresholds.sh", "THRESHOLDS", "threshold"), ("temperatures.sh", "TEMPERATURES", "temperature")],
)
def test_a_grid_runs_every_value(toy, script, variable, field):
    done = sweep(script, toy, "--prompt", "a photo of a {}", SEEDS="0", **{variable: "0.2 0.3"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text())["config"] for path in (toy.parent.parent / "results").glob("*/config.json")]
    assert sorted(config["hparams"][field] for config in found) == [0.2, 0.3]
    assert all(config["prompt"] == ["a photo of a {}"] for config in found)  # words with spaces arrive whole


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
    assert "stopped by SIGTERM; the same command with --resume continues" in log.read_text()
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


@pytest.mark.parametrize(
    ("gpus", "jobs", "threads", "shared"),
    [("0 0 0", 3, 2, True), ("0 1", 2, 4, False), ("0", 1, None, False), ("cpu", 2, 4, False)],
)
def test_runs_side_by_side_share_the_cores_and_a_gpu(tmp_path, gpus, jobs, threads, shared):
    """On a machine of eight cores; nvidia-cuda-mps-control and the interpreter write down how they are called."""
    programs = {
        "nproc": "echo 8",
        "nvidia-cuda-mps-control": f'echo "mps $* $(timeout 0.1 cat)" >>{tmp_path}/calls',
        "py": f'echo "run ${{OMP_NUM_THREADS:-none}} ${{CUDA_MPS_PIPE_DIRECTORY:+mps}} $*" >>{tmp_path}/calls',
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    settings = {
        "GPUS": gpus,
        "JOBS": str(jobs),
        "PYTHON": str(tmp_path / "py"),
        "LOGS": str(tmp_path / "logs"),
        "SEEDS": "0 1 8",
    }
    usual = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [REPOSITORY / "sweeps/seeds.sh", "-d", "coco"], env=usual | settings | path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    runs = [call for call in calls if call.startswith("run")]
    assert len(runs) == 3 and all(call.startswith(f"run {threads or 'none'} ") for call in runs)
    assert all(("mps" in call and "--cache disk -d coco" in call) == shared for call in runs)
    others = [call.rstrip() for call in calls if call.startswith("mps")]
    assert others == (["mps -d", "mps  quit"] if shared else [])


def test_nothing_in_a_line_of_jobs_is_executed(tmp_path):
    jobs, tools, made = tmp_path / "jobs.txt", tmp_path / "bin", tmp_path / "made"
    jobs.write_text(f"-d $(touch {made}) --prompt 'it'\\''s a {{}}' ; touch {made} `touch {made}` *\n-d 'coco\n")
    tools.mkdir()
    (tools / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/run"\n')
    (tools / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": "py"}

    def task(number: str) -> subprocess.CompletedProcess:
        slurm = environment | {"SLURM_ARRAY_TASK_ID": number}
        return subprocess.run([REPOSITORY / "sweeps/slurm.sh", jobs], env=slurm, capture_output=True, text=True)

    assert task("1").returncode == 0
    words = ["-d", "$(touch", f"{made})", "--prompt", "it's a {}", ";", "touch", f"{made}", "`touch", f"{made}`", "*"]
    assert (tmp_path / "run").read_text().splitlines() == ["py", "main.py", "--resume", *words]
    wrong = task("2")
    assert wrong.returncode == 2 and "line 2 has quotes that do not match" in wrong.stderr
    assert not made.exists()


def test_nothing_in_the_values_of_a_sweep_is_executed(tmp_path):
    made, python = tmp_path / "made", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >>"{tmp_path}/run"\n')
    python.chmod(0o755)
    values = {"DATASETS": f"$(touch${{IFS}}{made}) ;touch *", "LOSSES": "an", "SEEDS": "0", "PYTHON": str(python)}
    done = subprocess.run(
        [REPOSITORY / "sweeps/paper_table.sh", "--prompt", f"a $(touch {made}) {{}}"],
        env=os.environ | values | {"GPUS": "cpu", "LOGS": str(tmp_path / "logs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not made.exists(), done.stderr
    run = (tmp_path / "run").read_text()
    for dataset in (f"$(touch${{IFS}}{made})", ";touch", "*"):
        assert f"|-d|{dataset}|-l|an|-s|0|--prompt|a $(touch {made}) {{}}|" in run
