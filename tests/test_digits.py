"""The digits and their teacher: splits without shared digits, and pseudo-labels of the documented quality."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file

import datasets
import main
from config import Config, parse
from datasets.protocol import split_indices
from models import clip, train_digits_teacher
from pseudo_labels import label_quality, rules


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A part of the data set."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.digits, "NUM_TRAIN", 1200)
        patch.setattr(datasets.digits, "NUM_TEST", 400)
        datasets.digits.make(folder)
    return folder


def teaching(digits: Path, *more: str) -> tuple[Config, datasets.Splits]:
    config = replace(parse(["-d", "digits", "--data-root", str(digits.parent), *more]), precision="float32")
    return config, datasets.load(config.folder)


def similarities(config: Config, splits: datasets.Splits, cache: Path) -> np.ndarray:
    options = dict(batch_size=config.eval_batch_size, device=torch.device("cpu"), workers=2, checked=config.checks)
    return config.asked_teacher().similarities(splits.train, splits.classes, cache, **options)[0]


def scores_and_labels(config: Config, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = rules.softmax(similarity, temperature=config.hparams["temperature"])
    how = {name: config.hparams[name] for name in ("threshold", "negative_fraction")}
    return scores, rules.threshold_labels(scores, **how)


def quality(digits: Path, cache: Path, *more: str) -> dict[str, float]:
    """The figures of the teacher's pseudo-labels in the run's table."""
    config, splits = teaching(digits, *more)
    scores, pseudo = scores_and_labels(config, similarities(config, splits, cache))
    return label_quality.describe(pseudo, scores, splits.train.observed, splits.train.true)


def promised(found: dict[str, float]) -> bool:
    return 0.85 <= found["precision of positives"] <= 0.97 and 0.3 <= found["recall of positives"] <= 0.7


def test_half_precision_moves_hardly_a_pseudo_label(digits, tmp_path):
    config, splits = teaching(digits)
    splits = replace(splits, train=splits.train.rows(np.arange(600)))
    whole, half = (
        similarities(replace(config, precision=precision), splits, tmp_path) for precision in ("float32", "bf16")
    )
    labels = [scores_and_labels(config, one)[1] for one in (whole, half)]
    assert (labels[0] == 1).sum() > 250  # scores that do cross the threshold
    assert 0 < np.abs(whole - half).max() < 2e-3 and (labels[0] == labels[1]).mean() >= 0.999


def test_no_digit_is_in_two_pools():
    pools = datasets.digits.pools()
    assert sum(len(images) for pool in pools.values() for images in pool) == 1797
    for label in range(10):
        seen = [image.tobytes() for pool in pools.values() for image in pool[label]]
        assert len(set(seen)) == len(seen)  # every digit of this class differs from every other, in all pools


def test_each_split_draws_on_its_own_pool(tmp_path, monkeypatch):
    drawn, real = [], datasets.digits.scene
    pools = datasets.digits.pools()
    owner = {id(pool): name for name, pool in pools.items()}
    patch = functools.partial(monkeypatch.setattr, datasets.digits)
    patch("pools", lambda: pools)
    patch("scene", lambda pool, random: drawn.append(owner[id(pool)]) or real(pool, random))
    patch("NUM_TRAIN", 50)
    patch("NUM_TEST", 10)
    datasets.digits.make(tmp_path / "digits")
    train, val = split_indices(50)
    assert {drawn[row] for row in train} == {"train"} and {drawn[row] for row in val} == {"validation"}
    assert set(drawn[50:]) == {"test"}


def test_scenes_hold_one_to_five_digits_and_have_one_observed_label(digits):
    for split in ("train", "val"):
        labels, observed = (np.load(digits / f"formatted_{split}_{part}.npy") for part in ("labels", "labels_obs"))
        assert (observed.sum(axis=1) == 1).all() and (labels[observed == 1] == 1).all()
        assert np.bincount(labels.sum(axis=1), minlength=6)[1:].min() > 0.15 * len(labels)
        assert labels.sum(axis=1).min() == 1 and labels.sum(axis=1).max() == 5
        assert labels.mean(axis=0) == pytest.approx(np.full(10, 0.3), abs=0.06)


def test_the_teacher_is_as_good_as_promised_and_no_better(digits, tmp_path):
    assert promised(quality(digits, tmp_path))


def test_the_committed_weights_are_small_and_in_half_precision():
    file = REPOSITORY / datasets.DATASETS["digits"].settings["teacher_weights"]
    assert file.stat().st_size < 4e6
    assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}


@pytest.mark.slow
def test_the_script_rebuilds_a_teacher_of_the_same_quality(digits, tmp_path):
    train_digits_teacher.main(["--save-path", str(tmp_path / "rebuilt.safetensors")])
    rebuilt = quality(digits, tmp_path, "--teacher-weights", str(tmp_path / "rebuilt.safetensors"))
    assert promised(rebuilt)
    assert rebuilt["recall of positives"] == pytest.approx(quality(digits, tmp_path)["recall of positives"], abs=0.05)


def test_the_teachers_script_writes_weights_that_load(tmp_path):
    model = train_digits_teacher.train(epochs=1, num_scenes=100)
    save_file({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = clip.create_clip(datasets.DATASETS["digits"].settings["teacher"], tmp_path / "w.safetensors")
    assert sum(value.numel() for value in loaded.parameters()) < 1.5e6


def test_the_first_run_makes_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.digits, "NUM_TRAIN", 100)
    monkeypatch.setattr(datasets.digits, "NUM_TEST", 20)
    folders = ("--data-root", str(tmp_path / "data"), "--results-dir", str(tmp_path))
    result = main.main(["-d", "digits", "-g", "cpu", "--epochs", "1", *folders])
    assert f"making the data set in {tmp_path / 'data/digits'}" in capsys.readouterr().out
    assert (result["train_images"], result["validation_images"], result["test_images"]) == (80, 20, 20)
    assert json.loads((tmp_path / "data/digits/dataset.json").read_text())["prompt_names"][7] == "seven"


@pytest.mark.slow
def test_EM_PL_beats_AN_and_EM_by_four_points_over_three_seeds(tmp_path):
    folders = ("--data-root", str(tmp_path / "data"), "--results-dir", str(tmp_path))

    def mean(loss: str) -> float:
        arguments = ["-d", "digits", "-g", "cpu", "-l", loss, *folders]
        return float(np.mean([main.main([*arguments, "-s", seed])["test_mAP"] for seed in ("0", "1", "8")]))

    assert mean("EM_PL") >= max(mean("an"), mean("EM")) + 4
