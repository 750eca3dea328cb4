"""Runs that die, are stopped or are damaged: they resume to the same numbers, or say in one line why not."""

import functools
import itertools
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import only_run, same_numbers, toy_arguments
from PIL import Image
from training import early_arguments

import engine
import losses
import main
from config import parse
from runs import run_folder
from util.errors import Interrupted, UserError
from util.files import locked


class Stopped(BaseException):
    """Stands for a process that dies: nothing cleans up after it."""


def interrupt(monkeypatch, module, name: str, call: int) -> None:
    """Let the call-th call of module.name die."""
    calls, real = [], getattr(module, name)

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise Stopped
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, dying)


def die_before_finishing(toy: Path, monkeypatch) -> None:
    """Leave a run of the toy that has trained, best in its first epoch, and has not been finished."""
    scores = itertools.count(50, -1)
    with monkeypatch.context() as patch:
        patch.setattr(main.metrics, "mean_average_precision", lambda probs, labels: float(next(scores)))
        interrupt(patch, run_folder.Run, "finish", 1)
        with pytest.raises(Stopped):
            main.main(toy_arguments(toy))


DEATHS = [
    (engine, "check_losses", 2),
    (engine.Training, "predict", 1),
    (engine.Training, "predict", 4),
    (run_folder.Run, "save", 3),
    (run_folder.Run, "finish", 1),
    (run_folder, "write_json", 2),
]


# in memory every method is stopped and goes on, in test_engine.py; here one of each kind: without memory, with soft
# labels, with parameters of its own, with flipped labels, with a schedule
KINDS = {"EM_PL": DEATHS, "EM_APL": DEATHS, **dict.fromkeys(("role", "LL_Cp", "gr"), DEATHS[3:4])}


@pytest.mark.parametrize(
    "loss, module, name, call", [(loss, *death) for loss, deaths in KINDS.items() for death in deaths]
)
def test_a_run_that_dies_anywhere_resumes_to_the_same_numbers(toy, tmp_path, monkeypatch, loss, module, name, call):
    arguments = toy_arguments(toy, "--epochs", "3", *early_arguments(loss))
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        interrupt(patch, module, name, call)
        with pytest.raises(Stopped):
            main.main(arguments)
    with pytest.raises(UserError, match="continue it with --resume, or start the run over with --overwrite"):
        main.main(arguments)
    assert same_numbers(Path(main.main([*arguments, "--resume"])["folder"]), Path(undisturbed))


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGTERM, 3)])
def test_a_signal_in_mid_epoch_saves_the_step_and_resumes_to_the_same_numbers(
    toy, tmp_path, monkeypatch, number, step, capsys
):
    arguments, build = toy_arguments(toy), main.models.build

    @functools.wraps(build)
    def with_dropout(*given, **options):  # so that the state of the random generators matters
        model = build(*given, **options)
        model.network = torch.nn.Sequential(torch.nn.Dropout(0.3), model.network)
        return model

    monkeypatch.setattr(main.models, "build", with_dropout)
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    steps, real = [], losses.Loss.forward

    def signalling(self, *given):
        steps.append(1)
        if len(steps) == 3 + step:  # in the second epoch, which has three steps like every other
            os.kill(os.getpid(), number)
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(losses.Loss, "forward", signalling)
        with pytest.raises(Interrupted) as stop:
            main.main(arguments)
    assert stop.value.args == (number,)
    state = torch.load(only_run(toy) / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, step)
    result = main.main([*arguments, "--resume"])
    assert f"resuming in epoch 2 after {step} batches" in capsys.readouterr().out
    assert same_numbers(Path(result["folder"]), Path(undisturbed))


@pytest.mark.parametrize("name", ["validation", "labelling", "test"])
def test_a_signal_while_nothing_is_learned_saves_too(toy, tmp_path, monkeypatch, name):
    arguments = toy_arguments(toy, "-l", "EM_APL", "--warmup-epochs", "1", "--eval-batch-size", "4")
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    real = engine.Training.predict

    def signalling(training, images, part, after_batch):
        def then():
            os.kill(os.getpid(), signal.SIGTERM)
            after_batch()

        return real(training, images, part, then if part == name else after_batch)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Training, "predict", signalling)
        with pytest.raises(Interrupted):
            main.main(arguments)
    state = torch.load(only_run(toy) / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == ((3, 0) if name == "test" else (1, 3))
    assert same_numbers(Path(main.main([*arguments, "--resume"])["folder"]), Path(undisturbed))


def test_a_run_is_not_resumed_on_other_data(toy, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, engine.Training, "predict", 2)
        with pytest.raises(Stopped):
            main.main(toy_arguments(toy))
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(toy / "images/val/000.png")
    with pytest.raises(UserError, match=r"images or labels are not those that .* began with; restore them"):
        main.main(toy_arguments(toy, "--resume"))


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
def test_a_checkpoint_with_flipped_bytes_is_one_line(toy, monkeypatch, fails, file):
    die_before_finishing(toy, monkeypatch)
    content = bytearray((only_run(toy) / file).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (only_run(toy) / file).write_bytes(content)
    line = fails(main.main, toy_arguments(toy, "--resume"))
    assert f"{file} is not a whole checkpoint" in line and "start the run over with --overwrite" in line


def test_a_run_that_dies_between_its_two_checkpoints_keeps_both_right(toy, tmp_path, monkeypatch):
    undisturbed = shutil.move(main.main(toy_arguments(toy))["folder"], tmp_path / "undisturbed")
    for name in ("save_best", "write_history"):
        with monkeypatch.context() as patch:
            interrupt(patch, run_folder.Run, name, 1)
            with pytest.raises(Stopped):
                main.main(toy_arguments(toy))
        result = main.main(toy_arguments(toy, "--resume"))
        assert same_numbers(Path(result["folder"]), Path(undisturbed))
        shutil.rmtree(result["folder"])


def test_a_finished_run_answers_without_its_images(toy, capsys):
    first = main.main(toy_arguments(toy))
    shutil.rmtree(toy / "images")
    assert main.main(toy_arguments(toy)) == first and "finished: test mAP" in capsys.readouterr().out


def test_a_run_that_fails_before_it_begins_leaves_no_folder(toy, monkeypatch):
    def failing(*arguments):
        raise UserError("the loss is nan")

    monkeypatch.setattr(engine, "check_losses", failing)
    with pytest.raises(UserError):
        main.main(toy_arguments(toy))
    assert not list((toy.parent.parent / "results").glob("toy_*"))


def test_an_edited_formula_makes_a_new_run(toy, monkeypatch):
    config = parse(toy_arguments(toy, "-l", "an"))
    before, terms = run_folder.run_name(config), losses.LOSSES["an"]

    def an(logits, observed, *, eps):
        return 5 * terms.loss(logits, observed, eps=eps)

    monkeypatch.setitem(losses.LOSSES, "an", replace(terms, loss=an))
    assert run_folder.run_name(config) != before


def test_an_edited_constant_of_any_kind_makes_a_new_run(monkeypatch):
    digests = []
    for value in ([1], [2], {1, 2}, {1, 3}, None, torch.ones(2), torch.zeros(2)):
        monkeypatch.setattr(losses.zhou2022, "CHUNK", value)
        digests += [losses.find("EM_APL").code_digest()] * 2
    assert len(set(digests)) == len(digests) / 2


def test_two_processes_do_not_share_a_run(toy, fails):
    config = parse(toy_arguments(toy))
    folder = Path(config.results_dir) / run_folder.run_name(main.replace(config, precision="float32"))
    with locked(folder):
        assert "is being run by a different process" in fails(main.main, toy_arguments(toy))


def test_the_history_is_written_for_tensorboard_once_also_by_a_run_that_was_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = [{"epoch": epoch, "train_loss": 1 / epoch, "val_mAP": 50.0 + epoch} for epoch in (1, 2, 3)]
    run_folder.Events(tmp_path).write(history[:2])
    time.sleep(1.1)  # event files are named by the second
    resumed = run_folder.Events(tmp_path)
    resumed.write(history[:2])
    resumed.write(history)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val_mAP")] == [(1, 51.0), (2, 52.0), (3, 53.0)]
    assert len(events.Scalars("train_loss")) == 3


def test_a_figure_that_cannot_be_drawn_costs_no_result(toy, monkeypatch, capsys, figures):
    def nonsense(*arguments):
        raise ValueError("no such font")

    monkeypatch.setattr(run_folder, "draw_curves", nonsense)
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    result = main.main(toy_arguments(toy))
    assert "curves.png is not drawn (no such font); everything else is written" in capsys.readouterr().out
    assert main.main(toy_arguments(toy)) == result and (only_run(toy) / "pseudo_labels.png").exists()
