"""The model of a finished run labels photographs: in a program, at the command line, and what may be wrong."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_toy, toy_arguments
from PIL import Image
from safetensors.torch import save

import datasets
import main
import metrics
import models
import predict
from models import saved
from util.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on the toy data set, which no test changes."""
    toy = make_toy(tmp_path_factory.mktemp("trained") / "data")
    return Path(main.main(toy_arguments(toy, "-l", "an", "--epochs", "4", "--lr", "3e-3"))["folder"])


def data_of(run: Path) -> Path:
    return run.parent.parent / "data/toy"


def copy(run: Path, folder: Path) -> Path:
    """What a run's model is: two files."""
    folder.mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        shutil.copy(run / name, folder)
    return folder


def change(folder: Path, **values: object) -> Path:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | values))
    return folder


def test_two_files_are_all_that_a_model_needs(run, tmp_path, offline):
    model = models.load(copy(run, tmp_path / "elsewhere"), "cpu")
    test = datasets.load(data_of(run)).test
    with np.load(run / "predictions.npz") as file:
        assert np.allclose(model.predict(test.paths()), file["probs"], atol=1e-6)
    assert model.classes == ["red", "green", "blue"] and model.image_size == 32
    assert model.metadata.dataset == "toy" and model.metadata.method == "an"
    assert not model.network.training


def test_a_tower_from_a_file_is_all_in_the_two_files(toy, tmp_path, tiny_clip):
    config = shutil.copy(tiny_clip[0], tmp_path / "tower.json")
    arguments = toy_arguments(toy, "-l", "an", "--mode", "linear", "--linear-epochs", "1")
    arguments[arguments.index("-m") + 1] = f"clip:{config}"
    trained = Path(main.main(arguments)["folder"])
    test = datasets.load(toy).test
    expected = models.load(copy(trained, tmp_path / "one"), "cpu").predict(test.paths())
    Path(config).unlink()
    assert np.array_equal(models.load(copy(trained, tmp_path / "two"), "cpu").predict(test.paths()), expected)


def test_five_lines_of_a_notebook_run_from_a_different_folder(run, tmp_path):
    lines = f"""
import sys; sys.path.append({str(REPOSITORY)!r})
import models
model = models.load({str(run)!r})
probs = model.predict([{datasets.load(data_of(run)).test.paths()[0]!r}])
print(model.labels(probs), probs.shape, model.classes)
"""
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(1, 3) ['red', 'green', 'blue']" in done.stdout


def test_a_picture_is_a_path_an_image_or_pixels(run):
    model, path = models.load(run, "cpu"), datasets.load(data_of(run)).test.paths()[0]
    with Image.open(path) as image:
        pixels = np.array(image)
        forms = [path, Path(path), image, pixels]
        together = model.predict(forms, batch_size=3)
    assert together.shape == (4, 3) and np.allclose(together, together[0], atol=1e-6)
    assert np.allclose(model.predict(path), together[:1], atol=1e-6)
    assert np.allclose(model.predict(np.stack([pixels] * 2)), together[:2], atol=1e-6)
    assert model.predict([]).shape == (0, 3)
    with pytest.raises(UserError, match=r"none\.jpg"):
        model.predict(["none.jpg"])


def test_thresholds_are_chosen_on_validation_and_used(run):
    model, splits = models.load(run, "cpu"), datasets.load(data_of(run))
    probs = model.predict(splits.val.paths())
    expected, words = metrics.choose_thresholds(probs, splits.val.true == 1, complete=True)
    assert np.allclose(model.thresholds, expected, atol=1e-6)
    result = json.loads((run / "test.json").read_text())
    assert result["thresholds_chosen_by"] == words
    probs = model.predict(splits.test.paths())
    assert result["test_micro_F1@chosen"] == pytest.approx(metrics.f1(probs, splits.test.true, expected)["micro"])
    assert result["test_macro_F1@0.5"] == pytest.approx(metrics.f1(probs, splits.test.true, 0.5)["macro"])
    names = np.array(model.classes)
    for row, found in zip(probs, model.labels(probs), strict=True):
        assert set(found) == set(names[row >= model.thresholds])
        assert found == sorted(found, key=lambda name: -row[model.classes.index(name)])


def test_observed_labels_alone_choose_thresholds_by_the_known_positives(toy):
    result = main.main(toy_arguments(toy, "-l", "an", "--val-labels", "observed"))
    model, val = models.load(result["folder"], "cpu"), datasets.load(toy).val
    expected, words = metrics.choose_thresholds(model.predict(val.paths()), val.observed == 1, complete=False)
    assert np.allclose(model.thresholds, expected, atol=1e-6) and result["thresholds_chosen_by"] == words


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


OTHER = save({"network.fc.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is absent, damaged, or does not"),
        (cut, "model.safetensors is absent, damaged, or does not"),
        (lambda folder: (folder / "model.safetensors").write_bytes(OTHER), "does not belong to model.json"),
        (lambda folder: change(folder, classes=["a", "b"], thresholds=[0.5, 0.5]), "does not fit this network: fc"),
        (lambda folder: change(folder, image_size="large"), "image_size"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json"),
        (shutil.rmtree, "model.json not found; name the folder of a finished run"),
    ],
)
def test_a_model_that_is_not_whole_is_one_line(run, tmp_path, fails, damage, message):
    folder = copy(run, tmp_path / "model")
    damage(folder)
    assert message in fails(predict.main, [str(folder), str(data_of(run)), "-g", "cpu"])


def test_a_folder_becomes_a_table(run, tmp_path, capsys):
    photos, names = tmp_path / "photos", ["b, c.png", "a b.png", "über/ü.png"]
    test = datasets.load(data_of(run)).test
    for name, path in zip(names, test.paths()[:3], strict=True):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / name)
    table, lines = tmp_path / "out.csv", tmp_path / "out.json"
    probs = predict.main([str(run), str(photos), "-g", "cpu", "--csv", str(table), "--json", str(lines), "--top", "2"])
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).relative_to(photos).as_posix() for row in rows] == sorted(names)
    model = models.load(run, "cpu")
    assert np.allclose([[float(row[name]) for name in model.classes] for row in rows], probs, atol=1e-6)
    assert [row["labels"].split("|") if row["labels"] else [] for row in rows] == model.labels(probs)
    read = json.loads(lines.read_text())
    assert [entry["labels"] for entry in read] == model.labels(probs)
    assert list(read[0]["probabilities"]) == model.classes
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and all(sum(name in line.split("png")[1] for name in model.classes) == 2 for line in out)


def test_a_file_name_of_a_different_encoding_is_escaped(run, tmp_path):
    photo, table = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "out.csv"
    shutil.copy(datasets.load(data_of(run)).test.paths()[0], photo)
    predict.main([str(run), str(photo), "-g", "cpu", "--csv", str(table)])
    assert table.read_bytes().splitlines()[1].split(b",")[0].endswith(rb"caf\udce9.png")


def test_one_threshold_for_all_may_be_asked_for(run, tmp_path):
    photos = datasets.load(data_of(run)).test.paths()
    predict.main([str(run), *photos, "-g", "cpu", "--threshold", "0", "--json", str(tmp_path / "all.json")])
    assert all(len(entry["labels"]) == 3 for entry in json.loads((tmp_path / "all.json").read_text()))


def test_a_photograph_that_is_none_is_skipped_and_listed(run, tmp_path, capsys):
    good = datasets.load(data_of(run)).test.paths()[:2]
    bad, table = tmp_path / "bad; very.jpg", tmp_path / "out.csv"
    bad.write_text("no photograph")
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run), good[0], str(bad), good[1], "-g", "cpu", "--csv", str(table), "--batch-size", "2"])
    found = capsys.readouterr()
    assert stop.value.code == 1
    assert f"skipped: {bad} is not a readable image (of no known kind)\n" in found.err and "1 of 3 files" in found.err
    with open(table, newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == good


def test_a_labelled_data_set_gives_the_metrics_of_the_run(run, capsys):
    probs = predict.main([str(run), "--evaluate", "toy", "--data-root", str(data_of(run).parent), "-g", "cpu"])
    out = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    result = json.loads((run / "test.json").read_text())
    assert probs.shape == (10, 3)
    assert {name: float(value) for name, value in out.items()} == pytest.approx(
        {name.removeprefix("test_"): result[name] for name in result if name.removeprefix("test_") in out}, abs=1e-4
    )
    assert {"mAP", "micro_F1@chosen"} <= out.keys()


def test_a_labelled_data_set_needs_its_test_images_alone_and_takes_the_threshold_that_is_asked_for(
    run, toy, capsys, fails
):
    shutil.rmtree(toy / "images/train")
    arguments = [str(run), "--evaluate", str(toy), "-g", "cpu", "--threshold", "0.3"]
    probs = predict.main(arguments)
    out = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    expected = metrics.f1(probs, datasets.load(toy, need_images=False).test.true, 0.3)
    assert float(out["micro_F1@chosen"]) == pytest.approx(expected["micro"], abs=1e-4)
    assert float(out["macro_F1@chosen"]) == pytest.approx(expected["macro"], abs=1e-4)
    (toy / "images/val/003.png").unlink()
    assert "003.png not found; name its folder with --image-root DIR" in fails(predict.main, arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name photographs or folders of them"),
        (["a.jpg", "--evaluate", "toy"], "name photographs or folders of them"),
        (["none.jpg"], "no image at none.jpg: name photographs"),
        (["{empty}"], "no image at "),
        (["{empty}", "--threshold", "half"], "invalid threshold value: 'half'"),
        (["{empty}", "--threshold", "2"], "takes a number in [0, 1] or per-class, not 2.0"),
        (["{empty}", "--top", "0"], "must be at least 1"),
        (["--evaluate", "none"], "unknown data set 'none'"),
    ],
)
def test_misuse_is_one_line(run, tmp_path, fails, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [argument.replace("{empty}", str(tmp_path / "empty")) for argument in arguments]
    assert message in fails(predict.main, [str(run), *arguments, "-g", "cpu"])


def test_metrics_need_the_models_classes_and_full_labels_alone(run, toy, fails):
    arguments = [str(run), "--evaluate", str(toy), "-g", "cpu"]
    (toy / "formatted_val_labels.npy").unlink()
    assert "has no test images with full labels" in fails(predict.main, arguments)
    other = make_toy(toy.parent, "other")
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(description | {"classes": ["red", "green", "violet"]}))
    assert "does not have the classes of the model, in this order: red, green, blue" in fails(
        predict.main, [str(run), "--evaluate", str(other), "-g", "cpu"]
    )


def test_options_may_stand_between_the_run_and_the_photographs(run, tmp_path):
    photo = datasets.load(data_of(run)).test.paths()[0]
    assert predict.main([str(run), "--csv", str(tmp_path / "o.csv"), str(photo), "-g", "cpu"]).shape == (1, 3)


def test_no_file_is_replaced_unless_asked(run, tmp_path, fails):
    photo = shutil.copy(datasets.load(data_of(run)).test.paths()[0], tmp_path)
    folder, arguments = copy(run, tmp_path / "model"), [str(photo), "-g", "cpu"]
    for option, name, message in (
        ("--csv", photo, "exists already"),
        ("--csv", str(folder / "model.json"), "exists already"),
        ("--json", "", "--json '' is not the name of a file"),
        ("--json", "/dev/null/x", "is not the name of a file"),
        ("--csv", str(tmp_path), "is not the name of a file"),
    ):
        assert message in fails(predict.main, [str(folder), *arguments, option, name])
    both = ["--csv", str(tmp_path / "x"), "--json", str(tmp_path / "model/../x")]
    assert "is the file of --csv, too" in fails(predict.main, [str(folder), *arguments, *both])
    table = tmp_path / "o.csv"
    table.write_text("mine")
    predict.main([str(folder), *arguments, "--csv", str(table), "--overwrite"])
    assert table.read_text().startswith("image,labels")


def test_files_that_are_no_photographs_are_listed_with_status_1(run, tmp_path, capsys):
    photo = datasets.load(data_of(run)).test.paths()[0]
    for name in ("a.png", ".trash/b.png", "@eaDir/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / name)
    assert predict.main([str(run), str(tmp_path), "-g", "cpu"]).shape == (1, 3)
    (tmp_path / "IMG_1.HEIC").write_text("no image")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run), str(tmp_path), "-g", "cpu"])
    assert stop.value.code == 1 and "1 .HEIC (IMG_1.HEIC; convert them" in capsys.readouterr().err


def test_probabilities_that_are_not_finite_are_listed(run, monkeypatch, capsys):
    photos = datasets.load(data_of(run)).test.paths()[:2]
    monkeypatch.setattr(saved.Predictor, "_forward", lambda self, pixels: np.array([[0.1] * 3, [0.1, np.nan, 0.1]]))
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run), *map(str, photos), "-g", "cpu"])
    assert stop.value.code == 1
    assert f"skipped: {photos[1]} has probabilities that are not finite" in capsys.readouterr().err


def test_a_name_cannot_move_the_cursor(run, tmp_path, capsys):
    photo = shutil.copy(datasets.load(data_of(run)).test.paths()[0], tmp_path / "a\n\x1b[2Jb.png")
    predict.main([str(run), str(photo), "-g", "cpu"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 1
