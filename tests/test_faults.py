"""Runs that are killed at any moment, that run at the same time, that find no room: nothing is half-written, nothing is
lost, and all end with the numbers of an undisturbed run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, make_toy, only_run, same_numbers, taught_arguments, toy_arguments
from PIL import Image

import main
from runs import checkpoints
from util.errors import UserError
from util.files import read_json, write_array

# main.py with small blocks, so that a toy's passes have many moments to be killed in
DRIVER = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
import datasets.images, main
from util import errors
datasets.images.DECODED = 2
errors.run_script(lambda: main.main(sys.argv[1:]))
"""
MOMENTS = {  # what there is to be seen from outside when a stage has begun, and how long it lasts at most
    "the teacher's pass": ("data/toy/cache/.similarity_*.partial", 0.1),
    "caching": ("data/toy/cache/.images_*.partial", 0.05),
    "training": ("results/*/config.json", 0.2),
    "evaluation": ("results/*/metrics.jsonl", 0.2),
    "writing": ("results/*/.*.tmp", 0.005),
}
KILLS = [(stage, number) for number in range(4) for stage in MOMENTS]
OFTEN = [("the teacher's pass", 0), ("writing", 0)]


def arguments(root: Path) -> list[str]:
    more = ("--epochs", "3", "--checkpoint-minutes", "0", "--eval-batch-size", "2", "-l", "EM_PL", "--resume")
    return taught_arguments(root / "data/toy", *more)


def start(given: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", DRIVER, *given]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(program, cwd=REPOSITORY, env=environment, **pipes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with the toy, and an undisturbed run on it."""
    root = tmp_path_factory.mktemp("undisturbed")
    make_toy(root / "data")
    main.main(arguments(root))
    run = shutil.move(next((root / "results").glob("toy_*")), root / "run")
    shutil.rmtree(root / "data/toy/cache")
    shutil.rmtree(root / "results")
    return root, Path(run)


def all_whole(root: Path) -> bool:
    """Read every file that is not a temporary one."""
    for path in root.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        match path.suffix:
            case ".npy":
                np.load(path, allow_pickle=False)
            case ".npz":
                with np.load(path, allow_pickle=False) as file:
                    assert all(file[name] is not None for name in file.files)
            case ".json":
                read_json(path)
            case ".jsonl":
                assert all(json.loads(line) for line in path.read_text().splitlines())
            case ".pt":
                checkpoints.read(path)
            case ".png" if path.stat().st_size:  # figures are left empty in this process
                Image.open(path).verify()
    return True


@pytest.mark.parametrize(
    ("stage", "number"),
    [pytest.param(*kill, marks=() if kill in OFTEN else pytest.mark.slow) for kill in KILLS],
)
def test_a_run_that_is_killed_at_any_moment_resumes_to_the_same_numbers(undisturbed, tmp_path, figures, stage, number):
    source, expected = undisturbed
    shutil.copytree(source / "data", tmp_path / "data")  # with its times: the caches' names depend on them
    pattern, lasts = MOMENTS[stage]
    process = start(arguments(tmp_path))
    while process.poll() is None and not list(tmp_path.glob(pattern)):
        time.sleep(0.001 if stage == "writing" else 0.02)
    time.sleep(np.random.RandomState(number).uniform(0, lasts))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it had not ended before
    assert all_whole(tmp_path)
    main.main(arguments(tmp_path))
    assert all_whole(tmp_path) and same_numbers(only_run(tmp_path / "data/toy"), expected)
    assert not [
        path.name for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".partial") or ".rows" in path.name
    ]


def test_two_runs_at_the_same_moment_share_the_caches(undisturbed, tmp_path):
    source, expected = undisturbed
    shutil.copytree(source / "data", tmp_path / "data")
    other = start([*arguments(tmp_path), "--seed", "1"])
    while other.poll() is None and not list(tmp_path.glob(MOMENTS["the teacher's pass"][0])):
        time.sleep(0.02)
    main.main(arguments(tmp_path))
    _, err = other.communicate(timeout=300)
    assert other.returncode == 0, err
    assert len(list((tmp_path / "data/toy/cache").glob("*.npy"))) == 4  # images of three splits, similarities
    (first,) = (tmp_path / "results").glob("toy_*_s0_*")
    assert same_numbers(first, expected)


@pytest.mark.parametrize("size", [300, 40_000, 100_000])  # too small for similarities, for images, for checkpoints
def test_a_file_that_may_not_grow_is_one_line_and_the_run_resumes(undisturbed, tmp_path, fails, size):
    source, expected = undisturbed
    shutil.copytree(source / "data", tmp_path / "data")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        line = fails(main.main, arguments(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "too large" in line or "disk full" in line
    assert all_whole(tmp_path)
    main.main(arguments(tmp_path))
    assert same_numbers(only_run(tmp_path / "data/toy"), expected)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a separate file system of 1 MB, if this machine allows to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_resumes(undisturbed, tmp_path, small_disk, fails):
    source, expected = undisturbed
    shutil.copytree(source / "data", tmp_path / "data")
    given = [*arguments(tmp_path), "--results-dir", str(small_disk)]
    line = fails(main.main, given)
    assert "No space left" in line or "disk full" in line
    assert all_whole(small_disk)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    main.main(given)
    assert same_numbers(next(small_disk.glob("toy_*")), expected)


def test_an_array_that_does_not_fit_on_the_disk_leaves_the_old_one(small_disk):
    path = small_disk / "a.npy"
    write_array(path, np.arange(10))
    for count in (2**17 - 440, 2**18):  # a buffer or two more than is free; much more
        with pytest.raises(UserError, match=f"{path} cannot be written .No space left on device.; make room there"):
            write_array(path, np.arange(count))
        assert np.array_equal(np.load(path), np.arange(10)) and os.listdir(small_disk) == ["a.npy"]


def test_a_read_only_data_folder_is_one_line_that_names_the_option(tmp_path, small_disk, fails):
    make_toy(small_disk)
    given = toy_arguments(small_disk / "toy", "-l", "an", "--results-dir", str(tmp_path / "results"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "cannot be written; give a different folder with --cache-root" in fails(main.main, given)
    main.main([*given, "--cache-root", str(tmp_path / "caches")])
