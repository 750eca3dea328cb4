"""Runs that die, are stopped or are damaged: they resume to the same numbers, or say in one line why not."""

import functools
import itertools
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy, only_run, same_numbers, toy_arguments
from PIL import Image
from training import early_arguments

import engine
import losses
import main
import run_folder
from config import parse
from util.errors import Interrupted, UserError
from util.files import locked


class Stopped(Exception):
    """Stands for a process that dies."""


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
    (engine, "check_finite", 2),
    (engine, "predict", 1),
    (engine, "predict", 4),
    (run_folder.Run, "save", 3),
    (run_folder.Run, "finish", 1),
    (run_folder, "write_json", 2),
]


# in memory every method is stopped and goes on, in test_engine.py; here one of each kind: without memory, with soft
# labels, with parameters of its own, with flipped labels, with a schedule
KINDS = {"EM_PL": DEATHS, "EM_APL": DEATHS, **dict.fromkeys(("role", "LL_Cp", "gr"), DEATHS[3:4])}


@pytest.mark.parametrize(
    "loss, where, name, call", [(loss, *death) for loss, deaths in KINDS.items() for death in deaths]
)
def test_a_run_that_dies_anywhere_resumes_to_the_same_numbers(toy, tmp_path, monkeypatch, loss, where, name, call):
    arguments = toy_arguments(toy, "--epochs", "3", *early_arguments(loss))
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        interrupt(patch, where, name, call)
        with pytest.raises(Stopped):
            main.main(arguments)
    with pytest.raises(UserError, match="go on with --resume, or start over with --overwrite"):
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
    real = engine.predict

    def signalling(*given, after_batch, **more):
        def then():
            os.kill(os.getpid(), signal.SIGTERM)
            after_batch()

        return real(*given, after_batch=then if more["name"] == name else after_batch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "predict", signalling)
        with pytest.raises(Interrupted):
            main.main(arguments)
    state = torch.load(only_run(toy) / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == ((3, 0) if name == "test" else (1, 3))
    assert same_numbers(Path(main.main([*arguments, "--resume"])["folder"]), Path(undisturbed))


def test_a_run_is_not_resumed_on_other_data(toy, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, engine, "predict", 2)
        with pytest.raises(Stopped):
            main.main(toy_arguments(toy))
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(toy / "images/val/000.png")
    with pytest.raises(UserError, match=r"1 hold another picture \(test val/000.png\); put those back"):
        main.main(toy_arguments(toy, "--resume"))


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
def test_a_checkpoint_with_flipped_bytes_is_one_line(toy, monkeypatch, fails, file):
    die_before_finishing(toy, monkeypatch)
    content = bytearray((only_run(toy) / file).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (only_run(toy) / file).write_bytes(content)
    line = fails(main.main, toy_arguments(toy, "--resume"))
    assert f"{file} is damaged" in line and "checksum" in line


def test_a_checkpoint_of_something_else_is_one_line(toy, monkeypatch, fails):
    die_before_finishing(toy, monkeypatch)
    shutil.copy(only_run(toy) / "best.pt", only_run(toy) / "last.pt")
    assert "last.pt does not fit this run" in fails(main.main, toy_arguments(toy, "--resume"))


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


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
def test_a_damaged_checkpoint_is_one_line(toy, monkeypatch, fails, file):
    die_before_finishing(toy, monkeypatch)
    path = only_run(toy) / file
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    line = fails(main.main, toy_arguments(toy, "--resume"))
    assert f"{file} is damaged" in line and "--overwrite" in line


def test_two_processes_do_not_share_a_run(toy, fails):
    config = parse(toy_arguments(toy))
    folder = Path(config.results_dir) / run_folder.run_name(main.replace(config, precision="float32"))
    with locked(folder):
        assert "is being run by another process" in fails(main.main, toy_arguments(toy))


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


def test_a_finished_run_answers_on_its_own_pictures_alone_and_also_where_they_are_gone(toy, tmp_path, fails, capsys):
    first = main.main(toy_arguments(toy))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(toy / "images", elsewhere)
    assert main.main(toy_arguments(toy, "--image-root", str(elsewhere))) == first  # the same pictures
    path = elsewhere / "train/003.png"
    times = os.stat(path).st_mtime_ns
    shutil.copy(elsewhere / "train/004.png", path)
    os.utime(path, ns=(times, times))
    line = fails(main.main, toy_arguments(toy, "--image-root", str(elsewhere)))
    assert "1 hold another picture (train train/003.png); put those back, name their folder with --image-root" in line
    (toy / "source.json").write_text(f'{{"image_root": "{elsewhere}"}}')
    assert "1 hold another picture" in fails(main.main, toy_arguments(toy))
    shutil.rmtree(elsewhere)
    assert main.main(toy_arguments(toy)) == first
    out = capsys.readouterr().out
    assert "note: the images are not compared with those that the run read" in out and "finished: test mAP" in out
    (only_run(toy) / "test.json").write_text('{"test_mAP": null}')
    assert "test.json does not hold what it should" in fails(main.main, toy_arguments(toy))


OTHERS = {"seed": ("--seed", "1"), "length": ("--epochs", "3")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A toy with a run that has trained and is not finished; copies of its folder and of those of other such runs."""
    root = tmp_path_factory.mktemp("trained")
    toy, kept = make_toy(root / "data"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.Run, "finish", dying)
        for name, more in {**OTHERS, "this": ()}.items():
            with pytest.raises(Stopped):
                main.main(toy_arguments(toy, *more))
            folder = only_run(toy)
            kept[name] = Path(shutil.move(folder, root / name))
    shutil.copytree(kept["this"], folder)
    return toy, kept


def dying(*arguments, **options) -> None:
    raise Stopped


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_not_taken_for_this_ones(trained, fails, file, other):
    toy, kept = trained
    shutil.copy(kept[other] / file, only_run(toy) / file)
    line = fails(main.main, toy_arguments(toy, "--resume"))
    shutil.copy(kept["this"] / file, only_run(toy) / file)
    assert f"{file} does not fit this run (it is another run's" in line
    assert not (only_run(toy) / "test.json").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda state: state["history"].pop(), "its history is not that of 2 epochs"),
        (lambda state: state["history"].append(state["history"][-1]), "its history is not that of 2 epochs"),
        (lambda state: state["history"][0].update(train_loss=float("nan")), "train_loss|>="),
        (lambda state: state.update(epoch=9), "it is in epoch 9"),
        (lambda state: state.update(epoch=2**70), "does not fit|is damaged"),
        (lambda state: state.update(step=1), "after 1 batches"),
        (lambda state: state.update(best={"epoch": 1, "val_mAP": 99.5}), "its best epoch 1 is not in its history"),
        (lambda state: state.update(best=torch.ones(3)), "does not fit this run"),
        (lambda state: state.update(model={}), "does not fit this run"),
        (lambda state: state["model"].update({k: v.int() for k, v in state["model"].items()}), "expected torch.float"),
        (lambda state: state.pop("history"), "it lacks history"),
    ],
)
def test_a_state_that_this_run_cannot_be_in_is_told(trained, fails, change, says):
    toy, kept = trained
    state = torch.load(kept["this"] / "last.pt", weights_only=True)
    change(state)
    torch.save(state, only_run(toy) / "last.pt")
    line = fails(main.main, toy_arguments(toy, "--resume"))
    shutil.copy(kept["this"] / "last.pt", only_run(toy) / "last.pt")
    assert re.search(says, line) and "last.pt" in line and "start the run over with --overwrite" in line


@pytest.mark.parametrize(
    "what", ["the folder", *(pytest.param(file, marks=pytest.mark.slow) for file in ("config.json", "best.pt"))]
)
def test_a_run_whose_folder_is_removed_while_it_trains_says_so_and_keeps_its_result(
    toy, tmp_path, monkeypatch, capsys, what
):
    undisturbed = shutil.move(main.main(toy_arguments(toy))["folder"], tmp_path / "undisturbed")
    calls, real = [], engine.predict

    def removing(*given, **more):
        calls.append(1)
        if len(calls) == 2:  # the validation of the second epoch
            time.sleep(0.2)  # the checkpoint before it is written
            folder = only_run(toy)
            shutil.rmtree(folder) if what == "the folder" else (folder / what).unlink()
        return real(*given, **more)

    monkeypatch.setattr(engine, "predict", removing)
    result = main.main(toy_arguments(toy))
    out = capsys.readouterr().out
    assert ("was removed while the run was in it; it is made again" in out) == (what != "best.pt")
    assert same_numbers(Path(result["folder"]), Path(undisturbed))
    assert {"config.json", "images.npz"} <= {path.name for path in Path(result["folder"]).iterdir()}


def test_a_figure_that_cannot_be_drawn_costs_no_result(toy, monkeypatch, capsys):
    def nonsense(*arguments):
        raise ValueError("no such font")

    monkeypatch.setattr(run_folder, "draw_curves", nonsense)
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    result = main.main(toy_arguments(toy))
    assert "curves.png is not drawn (no such font); everything else is written" in capsys.readouterr().out
    assert main.main(toy_arguments(toy)) == result and (only_run(toy) / "pseudo_labels.png").exists()
