"""Your own data: splits without full labels, and data without validation or test images."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import toy_arguments, toy_similarity
from training import early_arguments

import datasets
import main
from datasets import files
from preproc import generate_observed_labels


def only_observed(folder: Path, *splits: str) -> Path:
    """The folder without the full labels of these splits."""
    toy_similarity(folder)
    for split in splits:
        files.array_path(folder, split, "labels").unlink()
    return folder


def move_rows(folder: Path, count: int) -> None:
    """Make the last `count` training images the data set's own validation split."""
    for part in ("images", "labels", "labels_obs"):
        rows = np.load(files.array_path(folder, "train", part))
        np.save(files.array_path(folder, "train", part), rows[: len(rows) - count])
        np.save(files.array_path(folder, files.VALIDATION, part), rows[len(rows) - count :])


def without_test(folder: Path) -> None:
    for part in ("images", "labels", "labels_obs"):
        files.array_path(folder, "val", part).unlink()


def test_a_validation_split_is_kept(toy):
    names = np.load(toy / "formatted_train_images.npy")
    move_rows(toy, 7)
    splits = datasets.load(toy)
    assert (splits.train.names == names[:23]).all() and (splits.val.names == names[23:]).all()
    move_rows(toy, 0)  # an empty validation split
    splits = datasets.load(toy)
    assert splits.val is None and len(splits.train) == 23 and list(splits.named()) == ["train", "test"]


@pytest.mark.parametrize("loss", ["EM_PL", "EM_APL"])
def test_observed_labels_are_all_that_a_run_needs(toy, loss, capsys):
    without_test(only_observed(toy, "train"))
    result = main.main(toy_arguments(toy, *early_arguments(loss)))
    out, folder = capsys.readouterr().out, Path(result["folder"])
    assert result["chosen_by"] == "validation mAP on observed labels" and "test_mAP" not in result
    assert json.loads((folder / "test.json").read_text()) == result
    assert not (folder / "predictions.npz").exists() and not (folder / "per_class.csv").exists()
    assert "toy: 24 train, 6 validation images, 3 labels" in out and "no test score" in out
    if loss == "EM_PL":
        assert "observed labels found" in out and "precision of positives" not in out
        assert "need the full labels of the training images" in out
    assert main.main(toy_arguments(toy, *early_arguments(loss))) == result
    assert f"finished: no test score in {folder}" in capsys.readouterr().out


def test_without_full_labels_the_epoch_is_chosen_as_with_val_labels_observed(toy):
    asked = main.main(toy_arguments(toy, "-l", "an", "--val-labels", "observed"))
    only_observed(toy, "train")
    alone = main.main(toy_arguments(toy, "-l", "an"))
    same = [name for name in asked if name not in ("folder", "known_labels")]
    assert {name: asked[name] for name in same} == {name: alone[name] for name in same}


@pytest.mark.parametrize("how", ["--select last", "no validation images"])
def test_the_last_epoch_is_kept_with_select_last_or_without_validation_images(toy, how, capsys):
    if how == "no validation images":
        move_rows(toy, 0)
    result = main.main(toy_arguments(toy, "-l", "an", *(["--select", "last"] if how == "--select last" else [])))
    assert result["best_epoch"] == 2 and result["chosen_by"] == "the last epoch"
    assert ("val_mAP" in result) == (how == "--select last")
    assert "last epoch 2" in capsys.readouterr().out
    history = [json.loads(line) for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()]
    assert [row["val_mAP"] is None for row in history] == [how != "--select last"] * 2


@pytest.mark.parametrize("loss", ["bce", "iun"])
def test_an_oracle_names_the_labels_it_lacks(toy, loss, fails):
    line = fails(main.main, toy_arguments(only_observed(toy, "train"), "-l", loss))
    assert f"{loss} reads the full labels of the training images, and toy has observed ones only" in line


def test_a_test_set_of_observed_labels_is_not_scored(toy):
    result = main.main(toy_arguments(only_observed(toy, "val"), "-l", "an"))
    assert result["test_images"] == 10 and not [name for name in result if "mAP" in name and "val" not in name]


def draw(folder: Path, *more: str) -> None:
    generate_observed_labels.main(["--dataset", folder.name, "--data-root", str(folder.parent), *more])


def test_observed_labels_that_were_not_drawn_are_not_overwritten(toy, fails):
    draw(toy)  # the same labels
    draw(toy, "--num-pos", "2")  # replaces what it drew
    path = files.array_path(toy, "train", "labels_obs")
    observed = np.load(path)
    assert observed.sum() > len(observed)
    observed[3] = 0  # edited by hand
    np.save(path, observed)
    line = fails(draw_from, [str(toy)])
    assert "formatted_train_labels_obs.npy holds labels that were not drawn; the same command with --overwrite" in line
    assert (np.load(path) == observed).all()
    draw(toy, "--overwrite")
    assert (np.load(path).sum(axis=1) == 1).all()


def draw_from(argv: list[str]) -> None:
    draw(Path(argv[0]))


def test_observed_labels_are_not_drawn_without_full_ones(toy, fails):
    only_observed(toy, "train")
    before = np.load(files.array_path(toy, "train", "labels_obs"))
    draw(toy)  # of the test images, whose full labels are known
    assert (np.load(files.array_path(toy, "train", "labels_obs")) == before).all()
    only_observed(toy, "val")
    assert "has no full labels to draw from" in fails(draw_from, [str(toy)])
