"""The real command at toy size: what it leaves behind, what it refuses, and what its options do."""

import csv
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command, make_toy, same_numbers, taught_arguments, toy_arguments
from PIL import Image
from training import TRAINED, early_arguments, values_of

import datasets
import engine
import losses
import main
import report
import supervision
from datasets.files import write_drawn
from datasets.protocol import observe
from util import devices
from util.files import write_array

FILES = {
    "config.json",
    "metrics.jsonl",
    "last.pt",
    "best.pt",
    "model.safetensors",
    "model.json",
    "pseudo_labels.json",
    "pseudo_labels.png",
    "test.json",
    "per_class.csv",
    "predictions.npz",
    "curves.png",
}


OF_TRAINING = {name for name in FILES if name.split(".")[0] in ("last", "best", "curves", "pseudo_labels", "model")}


def test_a_run_leaves_everything_it_promises(toy, capsys, figures):
    result = main.main(toy_arguments(toy, "-l", "EM_PL"))
    folder, out = Path(result["folder"]), capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "test.json").read_text()) == result
    assert "precision of positives" in out and f"test mAP {result['test_mAP']:.2f}" in out

    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2]
    assert result["val_mAP"] == max(row["val_mAP"] for row in history)
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        assert file["probs"].shape == (10, 3)
        assert result["test_mAP"] == pytest.approx(main.metrics.mean_average_precision(file["probs"], file["labels"]))
    with open(folder / "per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    assert np.mean([float(row["test_AP"]) for row in rows]) == pytest.approx(result["test_mAP"])
    about = json.loads((folder / "config.json").read_text())
    assert {"identity", "config", "command", "git_commit", "versions", "device"} <= about.keys()
    assert Image.open(folder / "curves.png").format == "PNG"
    torch.load(folder / "best.pt", weights_only=True)


@pytest.mark.parametrize("name", TRAINED)
def test_every_loss_trains(toy, name):
    if losses.LOSSES[name].check_labels:  # it needs observed negatives
        write_drawn(toy, {"train": observe(np.load(toy / "formatted_train_labels.npy"), num_neg=1)})
    result = main.main(toy_arguments(toy, *early_arguments(name)))
    assert 0 <= result["test_mAP"] <= 100
    state = torch.load(Path(result["folder"]) / "last.pt", weights_only=True)["loss"]
    at_first = losses.build(name, values_of(name), torch.zeros(24, 3, dtype=torch.int8)).state_dict()
    assert state.keys() == at_first.keys()
    assert not [key for key, value in state.items() if value.equal(at_first[key])]  # what it remembers has changed


def test_a_method_that_needs_observed_negatives_says_how_to_draw_some(toy, fails):
    line = fails(main.main, toy_arguments(toy, "-l", "iu"))
    assert "generate_observed_labels.py --dataset NAME --num-neg 1" in line
    assert not (toy.parent.parent / "results").exists()


def test_a_teacher_alone_scores_the_test_images(toy, fails, capsys):
    result = main.main(taught_arguments(toy, "-l", "zero_shot"))
    folder = Path(result["folder"])
    assert {path.name for path in folder.iterdir()} == FILES - OF_TRAINING
    assert json.loads((folder / "test.json").read_text()) == result and result["best_epoch"] == 0
    with np.load(folder / "predictions.npz") as file:
        assert file["probs"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert result["test_mAP"] == pytest.approx(main.metrics.mean_average_precision(file["probs"], file["labels"]))
    ignored = ("--lr", "1", "--calibrate", "bias", "-s", "3", "-m", "resnet50")  # one run, whatever the seed
    assert main.main(taught_arguments(toy, "-l", "zero_shot", *ignored)) == result
    assert folder.name.startswith("toy_zero_shot_") and not {"model", "seed", "mode"} & result.keys()
    with open(folder / "per_class.csv", newline="") as file:
        assert any(float(row["threshold"]) != 0.5 for row in csv.DictReader(file))
    report.main([str(folder), "--html", str(toy / "page.html")])
    assert f"n 1; val {result['val_mAP']:.2f}" in capsys.readouterr().out
    assert "classes are numbered" not in (toy / "page.html").read_text()
    assert 0 < result["val_mAP"] < 100 != main.main(taught_arguments(toy, "-l", "zero_shot", "-t", "1"))["val_mAP"]
    says = fails(main.main, toy_arguments(toy, "-l", "zero_shot"))  # a file of the training images only
    assert "no row for the image 'val/000.png' (10 are missing)" in says


def test_tiles_and_known_labels_reach_the_training(toy):
    """The teacher looks at tiles, the known labels calibrate it, and what it says is different each time."""
    found = [
        main.main(taught_arguments(toy, "-l", "CTL", "--epochs", "1", *more))
        for more in ((), ("--calibrate", "none"), ("--teacher-views", "tiles", "--teacher-tiles", "2"))
    ]
    assert len({run["folder"] for run in found}) == 3
    assert len({run["pseudo_labels"]["mAP of the teacher, %"] for run in found}) == 3
    assert all("best F1, unobserved entries" in run["pseudo_labels"] for run in found)


def test_training_learns_the_toy(toy):
    result = main.main(toy_arguments(toy, "-l", "bce", "--epochs", "8", "--lr", "3e-3"))
    assert result["test_mAP"] > 90


def test_the_same_command_twice_says_where_the_finished_run_is(toy, capsys):
    first = main.main(toy_arguments(toy))
    changed = os.stat(Path(first["folder"]) / "test.json").st_mtime_ns
    assert main.main(toy_arguments(toy)) == first
    assert f"finished: test mAP {first['test_mAP']:.2f} in {first['folder']}" in capsys.readouterr().out
    assert os.stat(Path(first["folder"]) / "test.json").st_mtime_ns == changed
    again = main.main(toy_arguments(toy, "--overwrite"))
    assert os.stat(Path(first["folder"]) / "test.json").st_mtime_ns > changed
    assert again == first


def test_where_images_are_kept_does_not_change_a_number(toy):
    results = toy.parent.parent / "results"
    folders = []
    for cache in ("disk", "none"):
        result = main.main(toy_arguments(toy, "--cache", cache))
        folders.append(shutil.move(result["folder"], results.with_name(cache)))
    assert same_numbers(Path(folders[0]), Path(folders[1]))


def test_other_labels_or_a_different_teacher_make_a_new_run(toy):
    first = main.main(toy_arguments(toy))
    labels = np.load(toy / "formatted_train_labels.npy")
    write_array(toy / "formatted_train_labels_obs.npy", labels)  # all positives observed
    second = main.main(toy_arguments(toy))
    with np.load(toy / "similarity.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(toy / "other.npz", **arrays | {"similarity": -arrays["similarity"]})
    third = main.main(toy_arguments(toy, "--similarity", str(toy / "other.npz")))
    (toy / "other.npz").touch()  # the same file to a run
    fourth = main.main(toy_arguments(toy, "--similarity", str(toy / "other.npz")))
    assert len({run["folder"] for run in (first, second, third)}) == 3 and fourth == third


def test_weights_that_diverge_are_one_line(toy, fails):
    line = fails(main.main, toy_arguments(toy, "--lr", "1e38", "--batch-size", "24"))
    assert "diverged" in line or "the loss is" in line


def test_the_test_set_is_scored_by_the_best_epochs_weights(toy, monkeypatch):
    one = main.main(toy_arguments(toy, "--epochs", "1"))
    values = iter((60.0, 50.0, 40.0))
    monkeypatch.setattr(main.metrics, "mean_average_precision", lambda *arrays: next(values))
    monkeypatch.setattr(main.metrics, "evaluate", lambda *arrays: {"mAP": 0.0, "classes_without_positives": 0})
    monkeypatch.setattr(supervision.label_quality, "describe", lambda *arrays: {"mAP of the teacher, %": None})
    three = main.main(toy_arguments(toy, "--epochs", "3"))
    assert three["best_epoch"] == 1
    probs = [np.load(Path(result["folder"]) / "predictions.npz")["probs"] for result in (one, three)]
    assert np.array_equal(*probs)


def test_the_epoch_is_chosen_by_observed_validation_labels_if_asked_for(toy, monkeypatch):
    chosen_by, real = [], main.metrics.mean_average_precision
    patch = lambda probs, labels: chosen_by.append(labels) or real(probs, labels)  # noqa: E731
    monkeypatch.setattr(main.metrics, "mean_average_precision", patch)
    clean, observed = (
        main.main(toy_arguments(toy, "-l", "an", "--val-labels", which)) for which in ("clean", "observed")
    )
    splits = datasets.load(toy)
    assert len(chosen_by) == 4
    assert all((labels == splits.val.true).all() for labels in chosen_by[:2])
    assert all((labels == (splits.val.observed == 1)).all() for labels in chosen_by[2:])
    assert clean["folder"] != observed["folder"]
    assert observed["chosen_by"] == "validation mAP on observed labels"
    for result in (clean, observed):  # the test is scored on all true labels
        with np.load(Path(result["folder"]) / "predictions.npz") as file:
            assert (file["labels"] == splits.test.true).all()


def weights_of(result: dict) -> torch.Tensor:
    return torch.load(Path(result["folder"]) / "best.pt", weights_only=True)["model"]["network.fc.weight"]


def test_the_rate_is_the_one_that_was_asked_for(toy):
    still = [weights_of(main.main(toy_arguments(toy, "--lr", "1e-12", "--epochs", epochs))) for epochs in ("1", "3")]
    moved = weights_of(main.main(toy_arguments(toy, "--lr", "1e-2")))
    assert torch.allclose(*still, atol=1e-8) and (moved - still[0]).abs().max() > 1e-3


def test_predictions_are_made_in_evaluation_mode(toy, monkeypatch):
    arguments = toy_arguments(toy, "--epochs", "1")
    probs = []
    for size in ("3", "64"):  # batch norm in training mode would see other batches
        result = main.main([*arguments, "--eval-batch-size", size, "--overwrite"])
        probs.append(np.load(Path(result["folder"]) / "predictions.npz")["probs"])
    assert np.abs(probs[0] - probs[1]).max() < 1e-5


def test_flips_mirror_the_training_images(toy):
    """Training on mirrored files, never flipped, is training on the files, always flipped."""
    arguments = toy_arguments(toy, "--image-size", "24", "--epochs", "1")
    flipped = weights_of(main.main([*arguments, "--flip", "1"]))
    plain = weights_of(main.main([*arguments, "--flip", "0"]))
    for path in (toy / "images/train").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    mirrored = weights_of(main.main([*arguments, "--flip", "0", "--overwrite"]))
    assert torch.equal(flipped, mirrored) and not torch.equal(flipped, plain)


def test_soft_labels_are_the_models_own_predictions(toy, monkeypatch):
    seen, real = [], engine.Training.predict

    def watched(training, images, name, after_batch):
        seen.append((name, real(training, images, name, after_batch)))
        return seen[-1][1]

    monkeypatch.setattr(engine.Training, "predict", watched)
    result = main.main(toy_arguments(toy, "-l", "EM_APL", "--warmup-epochs", "1", "--epochs", "3"))
    rounds = [probs for name, probs in seen if name == "labelling"]
    soft = torch.load(Path(result["folder"]) / "last.pt", weights_only=True)["loss"]["soft"]
    assert len(rounds) == 2 and not torch.equal(*rounds)
    assert ((soft == -1) | (soft == rounds[0]) | (soft == rounds[1])).all() and (soft == rounds[0]).any()


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_backbone_computes_in_the_precision_asked_for(toy, monkeypatch, precision, dtype):
    seen, build = set(), main.models.build

    @functools.wraps(build)
    def watched(*arguments, **options):
        model = build(*arguments, **options)
        convolution = next(part for part in model.modules() if isinstance(part, torch.nn.Conv2d))
        convolution.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
        return model

    monkeypatch.setattr(main.models, "build", watched)
    main.main(toy_arguments(toy, "--epochs", "1", "--precision", precision))
    assert seen == {dtype}


def test_a_loss_that_is_not_finite_stops_the_run_with_epoch_and_batch(toy, fails, monkeypatch):
    real, steps = losses.Loss.forward, []

    def broken(self, *given):
        steps.append(1)
        return real(self, *given) * (float("nan") if len(steps) == 5 else 1)

    monkeypatch.setattr(losses.Loss, "forward", broken)
    line = fails(main.main, toy_arguments(toy))
    assert "the loss is nan in epoch 2, batch 2 of 3" in line
    monkeypatch.setattr(losses.Loss, "forward", real)
    assert main.main(toy_arguments(toy, "--resume"))["best_epoch"] in (1, 2)


def test_results_that_cannot_be_written_are_one_line(toy, fails, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = fails(main.main, [*toy_arguments(toy)[:-2], "--results-dir", str(tmp_path / "file/results")])
    assert str(tmp_path / "file") in line


def test_a_data_folder_that_cannot_be_written_is_one_line(toy, fails, tmp_path):
    (toy / "cache").write_text("in the way")
    assert "give a different folder with --cache-root" in fails(main.main, toy_arguments(toy))
    assert main.main(toy_arguments(toy, "--cache-root", str(tmp_path / "elsewhere")))["best_epoch"] in (1, 2)


def test_a_mistake_of_the_real_process_is_one_line_and_status_2(tmp_path):
    done = command("main.py", "-d", "pascal", "--data-root", str(tmp_path), "-g", "cpu")
    assert done.returncode == 2 and "python preproc/format_pascal.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_missing_image_is_found_before_training_begins(toy, fails):
    (toy / "images/train/003.png").unlink()
    assert "train/003.png not found" in fails(main.main, toy_arguments(toy))
    assert not list((toy.parent.parent / "results").glob("*/config.json"))


def test_gpu_that_is_not_there_is_reported_in_one_line(toy, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("0").type == "cpu"
    assert (
        capsys.readouterr().out == "note: no CUDA device found, running on the CPU (-g cpu does so without this note)\n"
    )


def test_an_epochs_randomness_is_a_function_of_seed_and_epoch():
    assert torch.equal(engine.epoch_order(3, 2, 50), engine.epoch_order(3, 2, 50))
    assert sorted(engine.epoch_order(3, 2, 50).tolist()) == list(range(50))
    assert not torch.equal(engine.epoch_order(3, 2, 50), engine.epoch_order(3, 1, 50))
    flips = engine.epoch_flips(0, 1, 10_000, 0.5)
    assert 0.47 < flips.float().mean() < 0.53 and not engine.epoch_flips(0, 1, 100, 0.0).any()


def test_a_data_set_of_ones_own_needs_no_code(tmp_path):
    folder = make_toy(tmp_path / "data", "my-own-set")
    assert main.main(toy_arguments(folder))["dataset"] == "my-own-set"


def test_a_data_set_is_trained_by_its_path_too(toy, capsys):
    first = main.main(toy_arguments(toy))
    arguments = toy_arguments(toy)
    arguments[arguments.index("toy")] = str(toy)
    place = arguments.index("--data-root")
    assert main.main(arguments[:place] + arguments[place + 2 :]) == first
    assert "finished: test mAP" in capsys.readouterr().out


def test_a_head_with_a_separate_rate_makes_a_new_run(toy):
    usual, fast = (main.main(toy_arguments(toy, "-l", "an", *more)) for more in ((), ("--head-rate", "10")))
    assert usual["folder"] != fast["folder"] and not torch.equal(weights_of(usual), weights_of(fast))


def test_classes_without_test_positives_are_reported_with_the_mean_over_the_others(toy, capsys):
    labels = np.load(toy / "formatted_val_labels.npy")
    labels[:, 2] = 0
    write_array(toy / "formatted_val_labels.npy", labels)
    write_array(toy / "formatted_val_labels_obs.npy", labels)
    result = main.main(toy_arguments(toy, "-l", "an"))
    assert result["test_classes_without_positives"] == 1
    assert result["test_mAP"] == pytest.approx(2 / 3 * result["test_mAP_present"])
    told = f"({result['test_mAP_present']:.2f} over the classes with test positives; 1 classes have none and count 0)"
    assert told in capsys.readouterr().out


def test_a_run_is_kept_if_matplotlib_is_missing(toy, monkeypatch, capsys, figures):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # not installed
    result = main.main(toy_arguments(toy))
    assert not (Path(result["folder"]) / "curves.png").exists() and "curves.png is not drawn" in capsys.readouterr().out


def test_a_deterministic_run_takes_only_algorithms_that_are(toy, monkeypatch):
    step, seen = engine.Training.step, []

    def checked(*batch):
        loss = step(*batch)
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return loss

    monkeypatch.setattr(engine.Training, "step", checked)
    try:
        main.main(toy_arguments(toy, "-l", "EM_APL", "--warmup-epochs", "1", "--deterministic"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(seen) == {(True, False)}


@pytest.mark.slow
def test_the_compiled_step_learns_what_the_usual_one_learns_to_rounding(toy, capsys):
    given = toy_arguments(toy, "-l", "EM_PL", "--flip", "0", "--val-labels", "clean")
    usual = main.main(given)
    compiled = main.main([*given, "--compile", "--overwrite"])
    assert capsys.readouterr().out.count("the network is compiled, in ") == 1
    assert compiled["folder"] == usual["folder"] and compiled["val_mAP"] == pytest.approx(usual["val_mAP"], abs=1.0)
