"""Checkpoints, which a thread writes: in order, the state as it was when it was saved, and errors are told."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread

import pytest
import torch
from conftest import toy_arguments

import main
from run_folder import Run, read_tensors
from util.errors import UserError


@pytest.fixture
def run(tmp_path):
    with ThreadPoolExecutor(1) as thread:
        run = Run(tmp_path, {"identity": {}, "data_key": ""}, {}, None, torch.device("cpu"), thread)
        run.make_again()
        yield run


def written(run: Run) -> set[str]:
    """The files beside those that describe the run."""
    return {path.name for path in run.folder.iterdir()} - {"config.json", "images.npz"}


@pytest.fixture
def gate(run, monkeypatch) -> Event:
    """What the thread waits for before it writes anything."""
    gate = Event()
    run.thread.submit(gate.wait, 60)
    return gate


def state(value: float) -> dict:
    return {"model": {"weight": torch.full((4,), value)}, "history": [{"epoch": 1}], "best": {"epoch": 1}}


def test_training_goes_on_while_its_state_of_before_is_written(run, gate):
    saved = state(1.0)
    run.save(saved)
    run.save_best(saved["model"])
    saved["model"]["weight"].fill_(2.0)
    saved["history"].append({"epoch": 2})
    assert not written(run)
    gate.set()
    run.wait()
    assert read_tensors(run.folder / "last.pt")["model"]["weight"].tolist() == [1.0] * 4
    assert read_tensors(run.folder / "best.pt")["model"]["weight"].tolist() == [1.0] * 4
    assert (run.folder / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


@pytest.mark.parametrize("told_by", ["save", "load_best", "wait"])
def test_a_write_that_failed_is_told_and_nothing_is_written_after_it(run, gate, monkeypatch, told_by):
    def full(path: Path, state: dict) -> None:
        raise UserError("is the disk full?")

    with monkeypatch.context() as patch:
        patch.setattr("run_folder.write_tensors", full)
        run.save(state(1.0))
        gate.set()
        run.thread.submit(int).result()  # whatever is queued is done
    run.save_best(state(1.0)["model"])
    arguments = {"save": [state(2.0)], "load_best": [torch.nn.Linear(1, 1)], "wait": []}[told_by]
    with pytest.raises(UserError, match="is the disk full"):
        getattr(run, told_by)(*arguments)
    assert not written(run)


def test_a_state_of_which_the_gpu_has_no_room_for_a_copy_is_written_at_once(run, monkeypatch):
    def full(state: dict) -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory")

    run.save(state(1.0))
    monkeypatch.setattr("run_folder.deepcopy", full)
    saved = state(2.0)
    run.save(saved)
    run.save_best(saved["model"])
    saved["model"]["weight"].fill_(3.0)
    run.wait()
    assert read_tensors(run.folder / "last.pt")["model"]["weight"].tolist() == [2.0] * 4
    assert read_tensors(run.folder / "best.pt")["model"]["weight"].tolist() == [2.0] * 4


def test_the_thread_that_writes_works_on_the_gpu_of_its_run(toy, monkeypatch):
    """A new thread's device is GPU 0, on which it would take memory."""
    used = []
    monkeypatch.setattr("util.devices.use", lambda device: used.append((current_thread().name, device)))
    main.main(toy_arguments(toy, "-l", "an", "--epochs", "1"))
    assert used == [("checkpoints_0", torch.device("cpu"))]
