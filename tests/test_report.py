"""The tables of finished runs: rows, columns, comparisons, formats, figures."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import report
from reporting import compare, tables
from util.distributed import progress_bar


def write_run(results: Path, dataset: str, loss: str, seed: int, test_map: float | None, val=None, **more) -> Path:
    """more: settings; `result` has entries of test.json."""
    folder = results / f"{dataset}_{loss}_{seed}_{len(list(results.glob('*')))}".replace("/", "_")
    folder.mkdir(parents=True)
    result = more.pop("result", {})
    identity = {"dataset": dataset, "loss": loss, "model": "resnet50", "seed": seed, "lr": 1e-5} | more
    config = {"identity": identity, "config": {"epochs": 4} | more, "started": "2026", "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(config))
    if test_map is not None:
        written = {"test_mAP": test_map, "chosen_by": "validation mAP on clean labels", "val_mAP": val}
        written["known_labels"] = {"positive": 1.0, "negative": 0.0, "true": None}
        (folder / "test.json").write_text(json.dumps(written | {"test_precision@1": 0.5} | result))
    return folder


def lines(capsys, *arguments: object) -> list[str]:
    """The printed lines, with tables' padding removed."""
    report.main(list(map(str, arguments)))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def write_table(results: Path) -> None:
    for seed, test_map in ((0, 71.0), (1, 72.0), (8, 73.0)):
        write_run(results, "coco", "EM_PL", seed, test_map, val=70 + seed, result={"published": 71.45})
    write_run(results, "pascal", "an", 0, 86.0)
    write_run(results, "coco", "an", 0, 60.0, val=59.0)
    write_run(results, "coco", "bce", 0, 76.0)
    write_run(results, "coco", "iun", 0, None)


def test_the_table_has_methods_down_and_data_sets_across_and_the_choice_of_validation_in_bold(tmp_path, capsys):
    write_table(tmp_path)
    out = lines(capsys, tmp_path)
    assert out[0] == "| test mAP, % | pascal | coco |"
    assert [line.split(" | ")[0] for line in out[2:7]] == [
        "| *oracles*", "| bce", "| *single positives*", "| an", "| EM_PL",
    ]  # fmt: skip
    assert "| EM_PL | | **72.00 ± 1.00 (n 3; val 73.00; published 71.45, +0.55)** |" in out
    assert any(line.startswith("| an | 86.00 (n 1) | 60.00 (n 1; val 59.00) |") for line in out)
    assert "; epoch chosen by validation mAP on clean labels; bold: chosen by validation mAP" in "\n".join(out)
    assert out[-1] == "not in the table: coco_iun_0_6 (running or stopped, 0 of 4 epochs)"


def test_the_csv_holds_every_number_of_the_table(tmp_path, capsys):
    write_table(tmp_path)
    lines(capsys, tmp_path, "--csv", tmp_path / "all.csv")
    frame = pd.read_csv(tmp_path / "all.csv").set_index(["dataset", "loss"])
    row = frame.loc["coco", "EM_PL"]
    assert (row["mean"], row["deviation"], row["n"], row["published"]) == (72.0, 1.0, 3, 71.45)
    assert (row["repeats"], row["test_mAPs"], row["val_mAPs"]) == ("0:0 0:1 0:8", "71.0 72.0 73.0", "70.0 71.0 78.0")
    assert list(frame.index) == [("pascal", "an"), ("coco", "bce"), ("coco", "an"), ("coco", "EM_PL")]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged_and_the_difference_is_named(tmp_path, capsys):
    for seed in (0, 1):
        for threshold in (0.2, 0.3):
            write_run(tmp_path, "coco", "EM_PL", seed, 70 + threshold, val=60 - threshold, threshold=threshold)
    out = lines(capsys, tmp_path)
    assert any(line.startswith("| EM_PL (threshold 0.2) | **70.20 ± 0.00 (n 2; val 59.80") for line in out)
    assert any(line.startswith("| EM_PL (threshold 0.3) | 70.30") for line in out)
    out = lines(capsys, tmp_path, "--columns", "loss", "threshold", "val")  # which names the threshold once
    assert any(line.startswith("| EM_PL | 0.2 | 59.80") for line in out), out
    (warning,) = [line for line in out if line.startswith("warning")]
    assert "validation mAP chooses: EM_PL (threshold 0.2), val 59.80, test 70.20 ± 0.00" in warning
    assert not any("warning" in line for line in lines(capsys, tmp_path, "--where", "threshold=0.30"))


def test_the_best_setting_is_named_by_its_method_in_tables_figures_and_the_page(tmp_path, capsys, monkeypatch):
    results, named = tmp_path / "results", []
    for threshold, val in ((0.2, 59.0), (0.3, 61.0), (0.4, 60.0)):
        with_predictions(write_run(results, "coco", "EM_PL", 0, 70 + threshold, val=val, threshold=threshold), 0)
    monkeypatch.setattr("reporting.figures.write", lambda rows, folder: named.extend(row.line for row in rows) or [])
    monkeypatch.setattr("reporting.page.make", lambda rows, *rest: named.extend(row.line for row in rows) or str(rest))
    out = lines(capsys, results, "--best", "--latex", "--figures", "f", "--html", tmp_path / "page.html")
    assert r"EM\_PL & 70.30 \\" in out and named == ["EM_PL", "EM_PL"]
    note = "chosen by validation mAP among 3 settings on coco: EM_PL (threshold 0.3)"
    assert f"% {note}" in out and note in (tmp_path / "page.html").read_text()
    assert all(line.startswith("%") for line in out[out.index(r"\end{tabular}") + 1 :])
    assert len(pd.read_csv(results / "summary.csv")) == 3
    assert "| EM_PL | 0.3 | 61.00 |" in lines(capsys, results, "--best", "--columns", "loss", "threshold", "val")


def test_a_note_lists_unequal_draws_and_seeds_and_the_conditions_for_equal_ones(tmp_path, capsys):
    for loss, repeats in (("an", (1, 2)), ("EM", (1, 2)), ("role", (0, 1, 2)), ("zero_shot", (0,))):
        for k in repeats:
            write_run(tmp_path, "coco", loss, k, 70.0, draw=k)
    (note,) = (line for line in lines(capsys, tmp_path) if "different runs" in line)
    which = "1:1 2:2 of an, EM; 0:0 1:1 2:2 of role; --where draw=1 draw=2 compares equal ones"
    assert note == f"methods on coco have different runs (draw:seed): {which}"
    assert not any("different runs" in line for line in lines(capsys, tmp_path, "--where", "draw=1", "draw=2"))
    write_run(tmp_path, "coco", "an", 3, 70.0, draw=1)
    assert any("draw=1 draw=2 seed=1 seed=2 compares" in line for line in lines(capsys, tmp_path))
    write_run(tmp_path, "coco", "iun", 9, 70.0, draw=9)
    assert any("none is common to all" in line for line in lines(capsys, tmp_path))


def test_seeds_and_draws_are_averaged_together(tmp_path, capsys):
    for draw in (0, 1):
        for seed in (0, 1):
            write_run(tmp_path, "coco", "an", seed, 70 + draw, draw=draw)
            write_run(tmp_path, "coco", "EM", seed, 72 + draw + seed, draw=draw)
    out = lines(capsys, tmp_path)
    assert any(line.startswith("| an | 70.50 ± 0.58 (n 4 (2 draws))") for line in out)
    (paired,) = [line for line in out if line.startswith("| coco | EM | an | +2.50")]
    assert paired.endswith("| 4 |")


def test_runs_are_grouped_by_what_was_known(tmp_path, capsys):
    write_run(tmp_path, "mine", "an", 0, 70.0, result={"known_labels": {"positive": 3.1, "negative": 6.9, "true": 3.1}})
    write_run(tmp_path, "coco", "an", 0, 60.0, result={"known_labels": {"positive": 0.9, "negative": 0.0, "true": 2.9}})
    out = lines(capsys, tmp_path)
    assert [line for line in out if "*" in line] == [
        "| *single positives* | | |",
        "| *3.10 positive, 6.90 negative known labels per image* | | |",
    ]


def test_settings_that_only_some_runs_read_are_named_if_the_others_do_not_suffice(tmp_path, capsys):
    write_run(tmp_path, "coco", "an", 0, 70.0, mode="end_to_end", epochs=7)
    write_run(tmp_path, "coco", "an", 0, 71.0, mode="linear", linear_epochs=25)
    out = lines(capsys, tmp_path)
    assert [line.split(" |")[0] for line in out[3:5]] == ["| an (mode end_to_end)", "| an (mode linear)"]
    write_run(tmp_path, "coco", "an", 0, 72.0, mode="linear", linear_epochs=50)
    names = [line.split(" |")[0] for line in lines(capsys, tmp_path)[3:6]]  # without what most of them share
    assert names == [
        "| an (epochs 7, linear_epochs -, mode end_to_end)", "| an (linear_epochs 25)", "| an (linear_epochs 50)",
    ]  # fmt: skip


def test_conditions_and_columns_choose_rows_and_figures(tmp_path, capsys):
    write_table(tmp_path)
    out = lines(capsys, tmp_path, "--where", "loss=EM_PL", "loss=an", "--columns", "loss", "test", "precision@1")
    assert "| dataset | loss | test | precision@1 |" in out and "| coco | EM_PL | 72.00 ± 1.00 | 0.5 |" in out
    assert not any("bce" in line for line in out)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--where", "dataset"], "--where takes NAME=VALUE"),
        (["--where", "nothing=3"], "no run has such a setting; there are dataset, loss"),
        (["--where", "dataset=cub"], "no finished run that meets --where"),
        (["--columns", "nothing"], "--columns nothing: no such name; there are loss, test"),
        (["--best"], "no finished run with a validation mAP"),
        (["--baseline", "nothing"], "--baseline nothing: no such name; there are an"),
        (["--csv", "."], "is not the name of a file"),
        (["--csv", ""], "is not the name of a file"),
        (["--csv", "{run}/test.json"], "exists already; name a new file, or replace it with --overwrite"),
        (["--csv", "x.csv", "--html", "x.csv"], "--html 'x.csv' is the file of --csv, too"),
    ],
)
def test_a_wrong_choice_is_one_line(tmp_path, monkeypatch, fails, arguments, reason):
    run = write_run(tmp_path, "coco", "an", 0, 65.0)
    monkeypatch.chdir(tmp_path)
    assert reason in fails(report.main, [str(tmp_path), *(argument.format(run=run) for argument in arguments)])


def test_differences_are_paired_by_seed_with_the_interval_of_students_t(tmp_path, capsys):
    for seed, base, other in ((0, 70.0, 71.0), (1, 71.0, 73.0), (2, 69.0, 72.0)):
        write_run(tmp_path, "coco", "an", seed, base)
        write_run(tmp_path, "coco", "EM", seed, other)
    write_run(tmp_path, "coco", "role", 7, 50.0)
    write_run(tmp_path, "coco", "zero_shot", 0, 60.0)
    out = lines(capsys, tmp_path)
    # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.303, so 2 +- 4.303 / sqrt(3)
    assert "| coco | EM | an | +2.00 | [-0.48, +4.48] | 3 |" in out
    assert "| coco | zero_shot | an | -10.00 | [-12.48, -7.52] | 3 |" in out  # its one result with every seed
    assert "left out, without two seeds or draws in common with the baseline: role on coco" in out
    assert any("| an | EM | -2.00" in line for line in lines(capsys, tmp_path, "--baseline", "EM"))


def test_latex_is_a_whole_tabular_with_special_characters_escaped(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path, "my_set\n\x1b[2J50%", "an", seed, 70.0, val=70.0)
        write_run(tmp_path, "my_set\n\x1b[2J50%", "EM_PL", seed, 71.0, val=71.0)
    out = lines(capsys, tmp_path, "--latex")
    assert out[0] == r"\begin{tabular}{lr}" and r"test mAP, \% & my\_set ?[2J50\% \\" in out
    assert r"EM\_PL & \textbf{71.00 $\pm$ 0.00} \\" in out and out.count(r"\end{tabular}") == 1
    assert not any("\x1b" in line for line in out)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_a_document_with_the_printed_tables_and_a_figure_compiles(tmp_path, capsys):
    results, parts = tmp_path / "results_1", []
    for dataset in ("my_set_50%", "é~^"):
        for loss, seed in (("an", 0), ("an", 1), ("EM_PL", 0), ("EM_PL", 1), ("bce", 7)):
            with_predictions(write_run(results, dataset, loss, seed, 70.0 + seed, val=70.0), seed)
    write_run(results, "my_set_50%", "EM", 0, None)
    figures = ("--where", "dataset=my_set_50%", "--figures", str(tmp_path / "figures"))
    columns = ("--columns", "loss", "test", "precision@1", "known", "--baseline", "an")
    for arguments in (figures, ("--per-class",), ("--best",), columns):
        report.main([str(results), "--latex", *arguments])
        parts.append(capsys.readouterr().out)
    (tmp_path / "figures/my_set_50%_test_mAP.pdf").rename(tmp_path / "test_mAP.pdf")
    figure = r"\includegraphics{test_mAP.pdf}"
    packages = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "all.tex").write_text("\n".join([packages, *parts, figure, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-1500:]


def test_a_damaged_run_and_a_second_copy_are_listed_and_not_averaged(tmp_path, capsys):
    write_run(tmp_path / "a", "coco", "an", 0, 65.0)
    for name, text in (("cut", '{"test_mAP": 70.0, "chos'), ("list", "[1]"), ("silent", '{"test_mAP": 70.0}')):
        (write_run(tmp_path / "a", "coco", name, 0, 1.0) / "test.json").write_text(text)
    write_run(tmp_path / "b", "coco", "an", 0, 99.0)
    out = lines(capsys, tmp_path / "a", tmp_path / "b")
    assert any(line.startswith("| an | 65.00 (n 1)") for line in out)
    assert out[-1].count("(damaged (") == 3 and "the same run as" in out[-1]


def test_a_file_is_shown_by_its_name_and_two_files_of_one_name_apart(tmp_path, capsys):
    for size in (1, 2):
        write_run(tmp_path, "coco", "an", 0, 70.0 + size, weights=["weights.pt", size])
    write_run(tmp_path, "pascal", "an", 0, 70.0, weights=["weights.pt", 1])
    out = "\n".join(lines(capsys, tmp_path))
    assert "an (weights ['weights.pt', 1])" in out and "an (weights ['weights.pt', 2])" in out
    assert "| pascal | weights.pt |" in lines(capsys, tmp_path, "--columns", "weights")


def test_watch_shows_how_far_the_unfinished_runs_are(tmp_path, capsys):
    write_run(tmp_path, "coco", "an", 0, 65.0)
    folder = write_run(tmp_path, "coco", "EM", 0, None)
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "train_loss": 0.5, "val_mAP": 61.5, "seconds": 2}\n')
    for path in folder.iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    out = lines(capsys, tmp_path, "--watch")
    assert out[0] == "1 finished, 1 unfinished, 0 unreadable runs"
    assert out[1].endswith("1 of 4 epochs, best val mAP 61.50, last written 2:00:00 ago")


def with_predictions(folder: Path, seed: int) -> None:
    random = np.random.RandomState(seed)
    labels = (random.rand(60, 3) < 0.4).astype(np.int8)
    probs = (labels + 3 * random.rand(60, 3)) / 4
    np.savez(folder / "predictions.npz", images=np.arange(60).astype(str), probs=probs, labels=labels)
    (folder / "per_class.csv").write_text("class,test_positives,test_AP,threshold\na,3,50.0,0.5\nNone,9,70.0,0.5\n")
    lines = ({"epoch": e, "train_loss": 1 / e, "val_mAP": 50.0 + e + seed, "seconds": 1.0} for e in (1, 2, 3))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_several_data_sets_have_a_column_and_a_data_set_without_test_scores_is_no_error(tmp_path, capsys, fails):
    for dataset in ("coco", "pascal"):
        for loss in ("an", "EM"):
            with_predictions(write_run(tmp_path / "runs", dataset, loss, 0, 70.0, val=60.0), 0)
    out = lines(capsys, tmp_path / "runs", "--per-class")
    assert out[0] == "| dataset | class | an | EM |" and "| pascal | None | 70.00 | 70.00 |" in out
    assert lines(capsys, tmp_path / "runs", "--columns", "loss")[0] == "| dataset | loss |"
    write_run(tmp_path / "unknown", "mine", "an", 0, 0.0, val=60.0, result={"test_mAP": None})
    for lr in (1, 2):
        write_run(tmp_path / "unknown", "mine", "EM", 0, 0.0, val=60.0 + lr, lr=lr, result={"test_mAP": None})
    out = lines(capsys, tmp_path / "unknown", "--bootstrap", "5")
    assert "| EM (lr 2) | - (n 1; val 62.00) |" in out
    assert not any("left out" in line or "warning" in line or "bold" in line for line in out)
    assert "none of these runs has a test score" in fails(report.main, [str(tmp_path / "unknown"), "--per-class"])


def test_classes_intervals_over_test_images_and_figures(tmp_path, capsys):
    results = tmp_path / "results"
    for loss, more in (("an", {}), ("EM_PL", {"threshold": 0.2}), ("EM_PL", {"threshold": 0.3})):
        for seed in (0, 1):
            with_predictions(write_run(results, "coco", loss, seed, 70.0 + seed, val=69.0, **more), seed)
    out = lines(capsys, results, "--per-class")
    assert "| None | 70.00 ± 0.00 | 70.00 ± 0.00 | 70.00 ± 0.00 |" in out
    (row, *_) = tables.group(report.read_runs([results], [])[0])
    low, high = compare.bootstrap(row, 50)
    assert 50 < low < high < 100 and (low, high) == compare.bootstrap(row, 50)
    report.main([str(results), "--figures", str(tmp_path / "figures")])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"coco_{n}.{k}" for n in ("learning_curves", "test_mAP", "per_class", "threshold") for k in ("pdf", "png")
    }
    assert b"/FontFile2" in (tmp_path / "figures/coco_test_mAP.pdf").read_bytes()  # embedded


def test_a_bar_shows_images_per_second_and_the_time_left_and_a_log_file_stays_quiet(monkeypatch, capsys):
    with progress_bar(100, "epoch 1") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(100, "epoch 1") as bar:
        bar.update(10)
        time.sleep(0.01)
        bar.refresh()
    assert "10/100 images" in capsys.readouterr().err
