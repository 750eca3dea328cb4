"""Pseudo-labels judged without training: the counts at every threshold, the command, and what each run keeps."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy, only_run, taught_arguments, toy_arguments

import assess_teacher
import datasets
import main
import metrics
import supervision
from config import parse
from datasets.protocol import observe, split_indices
from preproc import format_pascal, generate_observed_labels
from pseudo_labels import label_quality
from pseudo_labels.label_quality import count, curve, estimate
from pseudo_labels.rules import softmax, threshold_labels

RANDOM = np.random.RandomState(0)
SCORES = RANDOM.rand(9000, 4).astype(np.float32)  # more rows than are counted at a time
TRUE = (RANDOM.rand(9000, 4) < SCORES).astype(np.int8)
OBSERVED = observe(TRUE)


def test_quality_by_hand():
    true, observed = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])
    pseudo, scores = np.array([[1, 0, 1, -1]]), np.array([[0.4, 0.3, 0.2, 0.1]])
    quality = label_quality.describe(pseudo, scores, observed, true)
    assert list(quality.values()) == [2.0, 1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0, 50.0]  # 2 of 4 classes have a positive
    empty = label_quality.describe(np.minimum(pseudo, 0), scores, observed, true)
    lines = label_quality.table(empty).splitlines()
    assert "no label became a positive pseudo-label" in lines[1]  # in place of rows of zeros
    assert [line.split("  ")[1] for line in lines[2:]] == [
        "negatives per image",
        "precision of negatives",
        "mAP of the teacher, %",
    ]
    unknown = label_quality.describe(pseudo, scores, observed, None)
    assert [name for name, value in unknown.items() if value is not None] == [
        "positives per image",
        "observed labels found",
        "negatives per image",
    ]


def test_the_entries_whose_label_is_not_known_are_counted_apart():
    true, observed = np.array([[1, 1, 1, 0]]), np.array([[1, 0, 0, -1]])
    pseudo, scores = np.array([[1, 1, 0, 1]]), np.full((1, 4), 0.1)
    quality = label_quality.describe(pseudo, scores, observed, true)
    assert quality["precision of positives"] == pytest.approx(2 / 3)
    assert quality["precision of positives, unobserved entries"] == 1.0
    assert quality["recall of positives, unobserved entries"] == 0.5


def test_soft_labels_are_judged_by_their_order():
    """Of the unobserved entries, ranked: hit, hit, miss, hit, miss."""
    true, observed = np.array([[1, 1, 1, 0, 1, 0]]), np.array([[1, 0, 0, 0, 0, 0]])
    scores = np.array([[0.1, 0.9, 0.8, 0.7, 0.6, 0.5]])
    quality = label_quality.describe(scores, scores, observed, true)
    assert quality["recall at precision 0.8, unobserved entries"] == pytest.approx(2 / 3)
    assert quality["best F1, unobserved entries"] == pytest.approx(2 * 3 / (4 + 3))
    assert set(label_quality.describe(scores, scores, observed, None).values()) == {None}


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
    quality = label_quality.as_json(counts, ["a", "b"], 0.3, 1.0)
    json.dumps(quality, allow_nan=False)
    assert quality["all"]["precision"][0] is None and quality["classes"][0]["recall"] is None


@pytest.mark.parametrize("loss, threshold", [("EM_PL", 0.3), ("gpr", None), ("CTL", None)])
def test_figures_at_the_threshold_are_kept_if_it_alone_makes_the_labels(toy, tmp_path, loss, threshold):
    config, splits = parse(toy_arguments(toy, "-l", loss)), datasets.load(toy, need_images=False)
    runtime = dict(cache=tmp_path, device=torch.device("cpu"), workers=1)
    _, quality = supervision.pseudo_labels_of(config, splits, **runtime)
    assert quality["threshold"] == threshold and ("classes" in quality) == (threshold is not None)


def test_a_run_finds_the_similarities_of_an_assessment_and_keeps_the_quality_of_its_labels(toy, tmp_path, figures):
    arguments = taught_arguments(toy, "--epochs", "1", "-th", "0.37")
    assess_teacher.main([*arguments, "--out", str(tmp_path / "out"), "--temperatures", "0.02"])
    made = sorted((toy / "cache").glob("similarity_*.npy"))
    main.main(arguments)
    assert made and sorted((toy / "cache").glob("similarity_*.npy")) == made

    folder = only_run(toy)
    kept = json.loads((folder / "pseudo_labels.json").read_text())
    quality = json.loads((folder / "test.json").read_text())["pseudo_labels"]
    at = kept["thresholds"].index(0.37)
    assert kept["threshold"] == 0.37 and kept["quality"] == quality
    assert kept["all"]["recall"][at] == pytest.approx(quality["recall of positives"], abs=1e-6)
    assert kept["unobserved"]["recall"][at] == pytest.approx(
        quality["recall of positives, unobserved entries"], abs=1e-6
    )
    assert [row["class"] for row in kept["classes"]] == ["red", "green", "blue"]
    assert (folder / "pseudo_labels.png").read_bytes().startswith(b"\x89PNG")


# The command


def assess(toy: Path, tmp_path: Path, *more: str) -> pd.DataFrame:
    assess_teacher.main([*toy_arguments(toy), "--out", str(tmp_path / "out"), *more])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    return pd.read_csv(tmp_path / "out.csv")


def printed(text: str, *start: str) -> list[str]:
    """The cells of the printed table's row that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row[len(start) :]


def test_a_teacher_is_assessed_without_training_and_without_the_images(tmp_path, capsys):
    toy = make_toy(tmp_path / "data")
    for image in (toy / "images").rglob("*.png"):
        image.unlink()
    rows = assess(toy, tmp_path, "--temperatures", "0.02", "0.05", "--calibrate", "bias")
    ways = set(zip(rows["calibrate"], rows["temperature"], strict=True))
    assert ways == {("none", 0.01), ("none", 0.02), ("none", 0.05), ("bias", 0.01)}
    classes = rows.groupby("calibrate")["class"].unique().map(set)
    assert classes["bias"] - {np.nan} == {"red", "green", "blue"} and classes["none"] == {np.nan}
    out = capsys.readouterr().out
    (row,) = rows.query("temperature == 0.02 and threshold == 0.3 and entries == 'all'").to_dict("records")
    names = ("positives_per_image", "precision", "recall", "f1")
    cells = printed(out, "temperature 0.02, not calibrated", "set", "0.3")
    assert cells[:4] == [f"{row[name]:.3f}" for name in names] and "lowest F1 first" in out
    assert not (tmp_path / "results").exists()


def test_labels_that_no_single_threshold_makes_are_assessed_as_the_rule_makes_them(toy, tmp_path, capsys):
    assess(toy, tmp_path, "-l", "CTL")
    out = capsys.readouterr().out
    assert printed(out, "scores") == ["recall at precision 0.8*", "best F1*", "mAP of the teacher, %"]
    train, similarity = datasets.load(toy, need_images=False).train, np.load(toy / "similarity.npz")
    scores = softmax(similarity["similarity"][np.isin(similarity["images"], train.names)], temperature=0.02)
    cells = printed(out, "temperature 0.02, not calibrated")
    assert cells[-1] == f"{metrics.mean_average_precision(scores, train.true):.3f}"


def test_if_only_observed_labels_are_known_the_estimate_is_called_one(tmp_path, capsys):
    toy = make_toy(tmp_path / "data")
    rows = assess(toy, tmp_path, "--observed-only")
    assert "a lower bound" in capsys.readouterr().out
    assert rows["precision"].isna().all() and rows["estimated_precision"].notna().any()
    assess(toy, tmp_path, "--observed-only", "--positives-per-image", "1.7")
    assert "and 1.7 true labels per image\n" in capsys.readouterr().out


def test_full_labels_of_validation_images_give_how_many_labels_an_image_has(toy, tmp_path, capsys):
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


def test_options_that_no_assessment_follows_from_are_refused_in_one_line(toy, tmp_path, fails):
    arguments = [*toy_arguments(toy), "--out", str(tmp_path / "out")]
    assert "takes no pseudo-labels" in fails(assess_teacher.main, [*arguments, "-l", "an"])
    for option, value in (("--temperatures", "0"), *(("--positives-per-image", value) for value in ("-1", "0", "nan"))):
        assert "must be above 0" in fails(assess_teacher.main, [*arguments, option, value])
    assert "--out '' is not the name" in fails(assess_teacher.main, [*arguments, "--out", ""])


def test_a_file_that_a_different_program_made_is_replaced_only_with_overwrite(toy, tmp_path, fails):
    arguments = [*toy_arguments(toy), "--out", str(tmp_path / "out"), "--temperatures", "0.02"]
    for file in (tmp_path / "out.png", tmp_path / "out.csv"):
        file.write_text("precious")
        assert f"--out '{file}' exists already" in fails(assess_teacher.main, arguments)
        assert file.read_text() == "precious"
    assess(toy, tmp_path, "--overwrite")
    assess(toy, tmp_path)  # its own files


def test_a_real_teacher_on_all_of_voc_has_the_measured_precision_and_recall(real, tmp_path, capsys):
    format_pascal.main(["--load-path", str(real / "realdata/voc2012"), "--save-path", str(tmp_path / "pascal")])
    generate_observed_labels.main(["--dataset", "pascal", "--data-root", str(tmp_path)])
    similarity = real / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    arguments = ["-d", "pascal", "--data-root", str(tmp_path), "--similarity", str(similarity), "-g", "cpu"]
    assess_teacher.main([*arguments, "--out", str(tmp_path / "out"), "--temperatures", "0.02"])
    cells = printed(capsys.readouterr().out, "temperature 0.01, not calibrated", "set", "0.3")
    precision, recall = map(float, cells[1:3])
    assert abs(precision - 0.8834) < 0.005 and abs(recall - 0.6284) < 0.005  # over train and validation together
