"""Pseudo-labels judged without training: the counts at every threshold, the command, and what each run keeps."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import make_toy, only_run, taught_arguments, toy_arguments

import assess_teacher
import datasets
import label_quality
import main
import supervision
from config import parse
from datasets.protocol import observe, split_indices
from label_quality import count, curve, estimate
from preproc import format_pascal, generate_observed_labels
from pseudo_labels import threshold_labels

RANDOM = np.random.RandomState(0)
SCORES = RANDOM.rand(9000, 4).astype(np.float32)  # more rows than are counted at a time
TRUE = (RANDOM.rand(9000, 4) < SCORES).astype(np.int8)
OBSERVED = observe(TRUE)


@pytest.mark.parametrize("threshold", [0.3, 0.123, 0.95])
@pytest.mark.parametrize("label", [None, 2])
def test_every_threshold_counts_what_the_rule_would_label(threshold, label):
    counts = count(SCORES, OBSERVED, TRUE, [threshold])
    at = int(np.flatnonzero(counts.thresholds == threshold)[0])
    chosen = slice(None) if label is None else slice(label, label + 1)
    pseudo = threshold_labels(SCORES, threshold=threshold, negative_fraction=0)[:, chosen] == 1
    for entries, read in (("all", np.ones_like(OBSERVED, dtype=bool)), ("unobserved", OBSERVED == 0)):
        positive, present = pseudo & read[:, chosen], (TRUE == 1)[:, chosen] & read[:, chosen]
        found = curve(counts, entries, label)
        precision, recall = (positive & present).sum() / positive.sum(), (positive & present).sum() / present.sum()
        assert found["precision"][at] == pytest.approx(precision)
        assert found["recall"][at] == pytest.approx(recall)
        assert found["f1"][at] == pytest.approx(2 * precision * recall / (precision + recall))
        assert found["positives_per_image"][at] == pytest.approx(positive.sum() / len(positive))


def test_a_score_that_equals_the_threshold_is_not_above_it():
    scores = np.array([[0.3, 0.7]], dtype=np.float32)
    counts = count(scores, np.zeros((1, 2)), np.ones((1, 2)), [0.3])
    assert curve(counts, "all")["positives_per_image"][np.flatnonzero(counts.thresholds == 0.3)] == 1


def test_the_observed_labels_alone_estimate_precision_and_recall():
    true = (RANDOM.rand(20000, 4) < 0.4).astype(np.int8)  # recall does not depend on how many labels an image has
    scores = (0.5 * true + 0.5 * RANDOM.rand(20000, 4)).astype(np.float32)
    full, half = count(scores, observe(true), true), count(scores, observe(true), None)
    assert "precision" not in curve(half, "all")
    guess = estimate(half, true.sum() / len(true))
    known = curve(full, "all")["precision"]
    assert np.allclose(guess["observed_found"], curve(full, "all")["recall"], atol=0.02)
    assert np.nanmax(np.abs(guess["estimated_precision"] - known)[:-3]) < 0.02
    assert (estimate(half, 1.0)["estimated_precision"][:-3] <= known[:-3] + 0.02).all()


def test_a_share_of_nothing_is_null_and_not_nan():
    counts = count(np.zeros((3, 2), np.float32), np.zeros((3, 2)), np.zeros((3, 2)), [0.3])
    about = label_quality.as_json(counts, ["a", "b"], 0.3, 1.0)
    json.dumps(about, allow_nan=False)
    assert about["all"]["precision"][0] is None and about["classes"][0]["recall"] is None


def test_every_run_keeps_how_good_its_pseudo_labels_are(toy):
    main.main(toy_arguments(toy, "--epochs", "1", "-th", "0.37"))
    folder = only_run(toy)
    about = json.loads((folder / "pseudo_labels.json").read_text())
    at = about["thresholds"].index(0.37)
    quality = json.loads((folder / "test.json").read_text())["pseudo_labels"]
    assert about["threshold"] == 0.37 and about["quality"] == quality
    assert about["all"]["precision"][at] == pytest.approx(quality["precision of positives"], abs=1e-6)
    assert about["unobserved"]["recall"][at] == pytest.approx(
        quality["recall of positives, unobserved entries"], abs=1e-6
    )
    assert [row["class"] for row in about["classes"]] == ["red", "green", "blue"]
    assert (folder / "pseudo_labels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("loss, threshold", [("EM_PL", 0.3), ("gpr", None), ("CTL", None)])
def test_figures_at_the_threshold_are_kept_where_it_alone_makes_the_labels(toy, tmp_path, loss, threshold):
    config, splits = parse(toy_arguments(toy, "-l", loss)), datasets.load(toy, need_images=False)
    how = dict(cache=tmp_path, device=torch.device("cpu"), workers=1)
    _, about = supervision.pseudo_labels_of(
        config, splits, lambda split: supervision.make_pseudo_labels(config, splits.classes, split, **how)
    )
    assert about["threshold"] == threshold and ("classes" in about) == (threshold is not None)


def assess(toy, tmp_path, *more: str) -> list[dict]:
    assess_teacher.main([*toy_arguments(toy), "--out", str(tmp_path / "out"), *more])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "out.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_teacher_is_assessed_without_training_and_without_the_images(tmp_path, capsys):
    toy = make_toy(tmp_path / "data")
    for image in (toy / "images").rglob("*.png"):
        image.unlink()
    rows = assess(toy, tmp_path, "--temperatures", "0.02", "0.05", "--calibrate", "bias")
    assert {(row["calibrate"], float(row["temperature"])) for row in rows} == {
        ("none", 0.01),
        ("none", 0.02),
        ("none", 0.05),
        ("bias", 0.01),
    }
    assert {row["class"] for row in rows if row["calibrate"] == "bias"} == {"", "red", "green", "blue"}
    assert {row["class"] for row in rows if row["calibrate"] == "none"} == {""}
    out = capsys.readouterr().out
    assert "| temperature 0.02, not calibrated | set | 0.3 |" in out and "lowest F1 first" in out
    assert not (tmp_path / "results").exists()


def test_where_only_observed_labels_are_known_the_estimate_is_said_to_be_one(tmp_path, capsys):
    toy = make_toy(tmp_path / "data")
    rows = assess(toy, tmp_path, "--observed-only")
    assert "a lower bound" in capsys.readouterr().out
    assert all(row["precision"] == "" for row in rows) and rows[0]["estimated_precision"] != ""
    assess(toy, tmp_path, "--observed-only", "--positives-per-image", "1.7")
    assert "and 1.7 true labels per image\n" in capsys.readouterr().out


def test_full_labels_of_validation_images_say_how_many_labels_an_image_has(toy, tmp_path, capsys):
    train, val = split_indices(30)
    for part in ("images", "labels", "labels_obs"):
        rows = np.load(toy / f"formatted_train_{part}.npy")
        np.save(toy / f"formatted_train_{part}.npy", rows[train])
        np.save(toy / f"formatted_validation_{part}.npy", rows[val])
    labels = np.load(toy / "formatted_validation_labels.npy")
    toy_arguments(toy)  # makes the similarities while the truth is there
    (toy / "formatted_train_labels.npy").unlink()
    assess(toy, tmp_path)
    out = capsys.readouterr().out
    assert f"and {labels.sum(axis=1).mean():g} true labels per image\n" in out and "a lower bound" not in out


def test_a_teacher_is_scored_in_the_arithmetic_of_a_run_which_then_finds_its_similarities(toy, tmp_path):
    arguments = taught_arguments(toy, "--epochs", "1")
    assess_teacher.main([*arguments, "--out", str(tmp_path / "out"), "--temperatures", "0.02"])
    made = sorted((toy / "cache").glob("similarity_*.npy"))
    main.main(arguments)
    assert made and sorted((toy / "cache").glob("similarity_*.npy")) == made


def test_a_method_without_pseudo_labels_cannot_be_assessed(toy, fails):
    assert "takes no pseudo-labels" in fails(assess_teacher.main, toy_arguments(toy, "-l", "an"))
    assert "--temperatures must" in fails(assess_teacher.main, [*toy_arguments(toy), "--temperatures", "0"])


def test_a_real_teacher_on_all_of_voc_has_the_measured_precision_and_recall(real, tmp_path, capsys):
    format_pascal.main(["--load-path", str(real / "realdata/voc2012"), "--save-path", str(tmp_path / "pascal")])
    generate_observed_labels.main(["--dataset", "pascal", "--data-root", str(tmp_path)])
    similarity = real / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    arguments = ["-d", "pascal", "--data-root", str(tmp_path), "--similarity", str(similarity), "-g", "cpu"]
    assess_teacher.main([*arguments, "--out", str(tmp_path / "out"), "--temperatures", "0.02"])
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if "temperature 0.01, not calibrated | set" in line
    ]
    precision, recall = map(float, line.split(" | ")[4:6])
    assert abs(precision - 0.8834) < 0.005 and abs(recall - 0.6284) < 0.005  # over train and validation together
