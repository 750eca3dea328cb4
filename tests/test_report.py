"""The tables of finished runs, and what report.py says of folders that are not what they should be."""

import csv
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

import report
from reporting import tables
from util.distributed import progress_bar

sys.path.append(str(REPOSITORY / "docs"))
import make_tables

GARBAGE = {
    "cut short": '{"test_mAP": 70.0, "chos',
    "not a number": '{"test_mAP": NaN, "chosen_by": "validation mAP on clean labels"}',
    "infinite": '{"test_mAP": 1e999, "chosen_by": "validation mAP on clean labels"}',
    "more than all": '{"test_mAP": 101, "chosen_by": "validation mAP on clean labels"}',
    "a word": '{"test_mAP": "70", "chosen_by": "validation mAP on clean labels"}',
    "silent about its epoch": '{"test_mAP": 70.0}',
    "a list": "[]",
    "bytes": "\x00\xff",
    "empty": "",
}


def write_run(results: Path, dataset: str, loss: str, seed: int, test_map: float | None, val=None, **more) -> Path:
    folder = results / f"{dataset}_{loss}_{seed}_{len(list(results.glob('*')))}".replace("/", "_")
    folder.mkdir(parents=True)
    identity = {"dataset": dataset, "loss": loss, "model": "resnet50", "seed": seed, "lr": 1e-5} | more
    (folder / "config.json").write_text(json.dumps({"identity": identity, "config": {"epochs": 4}}))
    if test_map is not None:
        result = {"test_mAP": test_map, "seed": seed, "chosen_by": "validation mAP on clean labels", "val_mAP": val}
        (folder / "test.json").write_text(json.dumps(result | {"test_precision@1": 0.5}))
    return folder


def lines(capsys, *arguments: str) -> list[str]:
    report.main(list(map(str, arguments)))
    return capsys.readouterr().out.splitlines()


def write_table(results: Path) -> None:
    for seed, test_map in ((0, 71.0), (1, 72.0), (8, 73.0)):
        write_run(results, "coco", "EM_PL", seed, test_map)
    write_run(results, "pascal", "an", 0, 86.0)
    write_run(results, "coco", "bce", 0, 76.0)
    write_run(results, "coco", "iun", 0, None)


def test_the_table_has_methods_down_data_sets_across_and_published_numbers_beside(tmp_path, capsys):
    write_table(tmp_path)
    out = lines(capsys, tmp_path)
    assert out[0] == "| test mAP, % | pascal | coco |"
    assert [line.split(" | ")[0] for line in out[2:7]] == [
        "| *oracles*",
        "| bce",
        "| *single positives*",
        "| an",
        "| EM_PL",
    ]
    assert "| EM_PL |  | 72.00 ± 1.00 (n 3; published 71.45, +0.55) |" in out
    assert "| an | 86.00 (n 1; published 85.89, +0.11) |  |" in out
    assert "epoch chosen by validation mAP on clean labels" in "\n".join(out)
    assert out[-1] == "not in the table: coco_iun_0_5 (unfinished, 0 of 4 epochs: --resume goes on)"
    with open(tmp_path / "summary.csv") as file:
        rows = {row["loss"]: row for row in csv.DictReader(file)}
    assert rows["EM_PL"]["seeds"] == "0 1 8" and float(rows["EM_PL"]["mean"]) == 72


def test_the_csv_holds_every_number_of_the_table(tmp_path, capsys):
    write_table(tmp_path)
    out = lines(capsys, tmp_path, "--csv", tmp_path / "all.csv")
    rows = tables.from_csv((tmp_path / "all.csv").read_text())
    assert [row.test for row in rows if row.loss == "EM_PL"] == [{0: 71.0, 1: 72.0, 8: 73.0}]
    again = tables.markdown(tables.pivot(rows)).splitlines()
    assert [line.split(" (")[0] for line in again] == [line.split(" (")[0] for line in out[: len(again)]]
    with pytest.raises(report.UserError, match="no table"):
        tables.from_csv("a,b\n1,2\n")


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged_and_the_difference_is_named(tmp_path, capsys):
    for seed in (0, 1):
        for threshold in (0.2, 0.3):
            write_run(tmp_path, "coco", "EM_PL", seed, 70 + threshold, val=60 - threshold, threshold=threshold)
    out = lines(capsys, tmp_path)
    assert any(line.startswith("| EM_PL (threshold 0.2) | 70.20 ± 0.00 (n 2; val 59.80") for line in out)
    assert any(line.startswith("| EM_PL (threshold 0.3) | 70.30") for line in out)
    out = lines(capsys, tmp_path, "--columns", "method", "threshold", "val")  # which names the threshold once
    assert any(line.startswith("| EM_PL | 0.2 | 59.80") for line in out), out
    (warning,) = [line for line in out if line.startswith("warning")]
    assert "validation mAP chooses: threshold 0.2 (val 59.80, test 70.20 ± 0.00)" in warning
    assert not any("warning" in line for line in lines(capsys, tmp_path, "--where", "threshold=0.30"))


def test_settings_that_only_some_runs_read_are_named_where_the_others_do_not_suffice(tmp_path, capsys):
    write_run(tmp_path, "coco", "an", 0, 70.0, mode="end_to_end", epochs=7)
    write_run(tmp_path, "coco", "an", 0, 71.0, mode="linear", linear_epochs=25)
    out = lines(capsys, tmp_path)
    assert [line.split(" |")[0] for line in out[3:5]] == ["| an (mode end_to_end)", "| an (mode linear)"]
    write_run(tmp_path, "coco", "an", 0, 72.0, mode="linear", linear_epochs=50)
    assert any("mode linear" in line and "linear_epochs 50" in line for line in lines(capsys, tmp_path))


def test_validation_on_other_labels_chooses_between_no_settings(tmp_path, capsys):
    for labels, val in (("clean", 88.0), ("observed", 60.0)):
        path = write_run(tmp_path, "coco", "EM_PL", 0, 70.0, val=val, val_labels=labels) / "test.json"
        path.write_text(path.read_text().replace("clean", labels))
    (warning,) = [line for line in lines(capsys, tmp_path) if line.startswith("warning")]
    assert warning.endswith("validated on the same labels")


@pytest.mark.parametrize(
    "more",
    [
        *(dict(mode="linear"), dict(mode="linear_init"), dict(head="boostlu"), dict(select="last"), dict(ema=0.999)),
        *(dict(crop=0.5), dict(randaugment=9), dict(image_size=224), dict(model="vit_clip"), dict(weights="0a1b")),
        *(dict(val_labels="observed"), dict(skip_missing=True), dict(calibrate="matrix")),
    ],
)
def test_the_published_number_stands_beside_runs_of_its_protocol_alone(tmp_path, capsys, more):
    usual = dict(mode="end_to_end", head="linear", select="best", ema=0.0, crop=1.0, randaugment=0)
    write_run(tmp_path / "usual", "coco", "EM_PL", 0, 70.0, **usual)
    write_run(tmp_path / "other", "coco", "EM_PL", 0, 70.0, **usual | more)
    assert "published 71.45" in "\n".join(lines(capsys, tmp_path / "usual"))
    assert "published" not in "\n".join(lines(capsys, tmp_path / "other"))


def test_a_condition_may_name_a_setting_that_only_finished_or_only_unfinished_runs_have(tmp_path, capsys):
    write_run(tmp_path, "coco", "EM_PL", 0, 70.0, threshold=0.3)
    write_run(tmp_path, "coco", "an", 0, None, smoothing=0.1)
    out = lines(capsys, tmp_path, "--where", "threshold=0.3", "--html", tmp_path / "page.html")
    assert out[-1] == f"page: {tmp_path}/page.html" and not any("unfinished" in line for line in out)
    counts = [lines(capsys, tmp_path, "--watch", "--where", where)[0] for where in ("threshold=0.3", "smoothing=0.1")]
    assert [line[:25] for line in counts] == ["1 finished, 0 unfinished,", "0 finished, 1 unfinished,"]


def test_conditions_and_columns_choose_rows_and_figures(tmp_path, capsys):
    for threshold in (0.2, 0.3):
        write_run(tmp_path, "coco", "EM_PL", 0, 70 + threshold, threshold=threshold)
    write_run(tmp_path, "pascal", "an", 0, 86.0)
    conditions = ("--where", "threshold=0.3", "threshold=0.2", "dataset=coco")
    out = lines(capsys, tmp_path, *conditions, "--columns", "threshold", "test", "val", "published", "precision@1")
    assert out[0] == "| threshold | test | val | published | precision@1 |"
    assert out[3:5] == ["| 0.2 | 70.20 | - | 71.45 | 0.5 |", "| 0.3 | 70.30 | - | 71.45 | 0.5 |"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--where", "nothing=3"], "no run has such a setting; there are dataset, loss"),
        (["--where", "dataset"], "NAME=VALUE"),
        (["--where", "dataset=cub"], "no finished run that meets --where"),
        (["--columns", "nothing"], "there is no such column; there are method, test"),
        (["--baseline", "nothing"], "there is no such line; there are"),
        (["--csv", "."], "is a folder"),
    ],
)
def test_a_wrong_choice_is_told_in_one_line(tmp_path, fails, arguments, reason):
    write_table(tmp_path)
    assert reason in fails(report.main, [str(tmp_path), *arguments])


def test_differences_are_paired_by_seed_with_the_interval_of_students_t(tmp_path, capsys):
    for seed, (one, other) in enumerate([(80.0, 81.0), (70.0, 72.0), (60.0, 63.0)]):
        write_run(tmp_path, "coco", "an", seed, one)
        write_run(tmp_path, "coco", "EM_PL", seed, other)
    write_run(tmp_path, "coco", "EM", 0, 50.0)
    out = lines(capsys, tmp_path)
    half = 4.302653 / 3**0.5  # the quantile of t at 2 degrees of freedom, deviation 1, three seeds
    assert f"| coco | EM_PL | an | +2.00 | [{2 - half:+.2f}, {2 + half:+.2f}] | 3 |" in out
    assert sum("an |" in line for line in out) == 2  # one seed has no interval
    assert "| coco | an | EM_PL | -2.00 |" in "\n".join(lines(capsys, tmp_path, "--baseline", "EM_PL"))


def test_a_teacher_alone_is_compared_with_every_seed_and_is_no_baseline_unless_asked_for(tmp_path, capsys):
    write_run(tmp_path, "coco", "zero_shot", 0, 60.0)
    write_run(tmp_path, "coco", "an", 0, 61.0)
    write_run(tmp_path, "coco", "an", 1, 63.0)
    half = 12.706205  # the quantile of t at 1 degree of freedom, deviation sqrt(2), two seeds
    assert f"| coco | zero_shot | an | -2.00 | [{-2 - half:+.2f}, {-2 + half:+.2f}] | 2 |" in lines(capsys, tmp_path)
    out = lines(capsys, tmp_path, "--baseline", "zero_shot")
    assert f"| coco | an | zero_shot | +2.00 | [{2 - half:+.2f}, {2 + half:+.2f}] | 2 |" in out


def test_latex_is_a_whole_tabular_with_the_best_method_in_bold(tmp_path, capsys):
    write_table(tmp_path)
    write_run(tmp_path, "my_data & 50%", "an", 0, 12.0)
    out = lines(capsys, tmp_path, "--latex")
    text = "\n".join(out)
    assert out[0] == r"\begin{tabular}{lrrr}" and r"\end{tabular}" in out
    assert r"EM\_PL &  & \textbf{72.00 $\pm$ 1.00} &  \\" in out
    assert r"bce &  & 76.00 &  \\" in out and r"my\_data \& 50\%" in text
    assert text.count("{") == text.count("}")


def test_a_file_is_shown_by_its_name_and_two_of_one_name_apart(tmp_path, capsys):
    for seed, digits, name in ((0, "0123456789abcdef", "a/scores.npz"), (1, "fedcba9876543210", "b/scores.npz")):
        folder = write_run(tmp_path, "coco", "EM_PL", seed, 70.0, similarity=digits)
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | {"config": {"similarity": name}}))
    out = "\n".join(lines(capsys, tmp_path))
    assert "EM_PL (similarity scores.npz 0123456789abcdef)" in out
    (tmp_path / "coco_EM_PL_1_1" / "config.json").write_text(
        (tmp_path / "coco_EM_PL_1_1" / "config.json").read_text().replace("b/scores.npz", "b/tiles.npz")
    )
    assert "| EM_PL (similarity tiles.npz) | 70.00" in "\n".join(lines(capsys, tmp_path))


@pytest.mark.parametrize("name", GARBAGE)
def test_a_damaged_run_is_listed_and_never_averaged(tmp_path, capsys, name):
    write_run(tmp_path, "coco", "an", 0, 60.0)
    (write_run(tmp_path, "coco", "an", 1, 0.0) / "test.json").write_text(GARBAGE[name], encoding="latin-1")
    out = lines(capsys, tmp_path)
    assert any(line.startswith("| an | 60.00 (n 1") for line in out)
    assert out[-1].startswith("not in the table: coco_an_1_1 (damaged, test.json ")
    assert len([line for line in out if line.startswith("not in the table")]) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"identity": {"dataset": "coco"}}', '{"identity": 3}', "null", "\xff"])
def test_a_run_of_another_version_is_listed(tmp_path, capsys, text):
    write_run(tmp_path, "coco", "an", 0, 60.0)
    (write_run(tmp_path, "coco", "an", 1, 0.0) / "config.json").write_text(text, encoding="latin-1")
    assert "coco_an_1_1 (damaged, config.json" in lines(capsys, tmp_path)[-1]


def test_runs_without_test_images_are_compared_by_validation(tmp_path, capsys):
    observed = "validation mAP on observed labels"
    for loss, val in (("an", 41.0), ("EM_PL", 47.0)):
        for seed in (0, 1):
            result = {"chosen_by": observed, "val_mAP": val + seed}
            (write_run(tmp_path, "mine", loss, seed, 0.0) / "test.json").write_text(json.dumps(result))
    out = lines(capsys, tmp_path, "--html", tmp_path / "page.html")
    assert "| EM_PL | - (n 2; val 47.50) |" in out and any(line.endswith(observed) for line in out)
    assert "47.50" in (tmp_path / "page.html").read_text()
    assert tables.from_csv((tmp_path / "summary.csv").read_text())[0].seeds == [0, 1]
    (write_run(tmp_path, "mine", "an", 8, 0.0) / "test.json").write_text('{"chosen_by": "the last epoch"}')
    assert "| an | - (n 3) |" in lines(capsys, tmp_path)


def test_two_folders_of_one_identity_count_once(tmp_path, capsys):
    write_run(tmp_path / "a", "coco", "an", 0, 60.0)
    write_run(tmp_path / "b", "coco", "an", 0, 62.0)
    out = lines(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "a" / "coco_an_0_0")
    assert any(line.startswith("| an | 60.00 (n 1") for line in out)
    assert out[-1] == f"not in the table: coco_an_0_0 (the same run as {tmp_path}/a/coco_an_0_0)"


def test_a_name_with_pipes_and_tags_stays_in_its_cell(tmp_path, capsys):
    write_run(tmp_path, "a|b <b>\nc", "an", 0, 60.0)
    assert lines(capsys, tmp_path)[0] == r"| test mAP, % | a\|b &lt;b> c |"


def test_where_there_is_nothing_to_show_the_exit_status_says_so(tmp_path, fails):
    assert "no folder" in fails(report.main, [str(tmp_path / "none")])
    assert "no finished run in" in fails(report.main, [str(tmp_path)])


def test_a_device_is_written_through_and_not_replaced(tmp_path, capsys):
    write_table(tmp_path)
    read, write = os.pipe()
    lines(capsys, tmp_path, "--csv", f"/dev/fd/{write}")
    os.close(write)
    assert b"EM_PL" in os.read(read, 65536)
    lines(capsys, tmp_path, "--csv", "/dev/null")
    assert not Path("/dev/null").is_file()


def test_of_three_reports_at_once_none_loses_the_others_file(tmp_path):
    errors = []

    def write(text: str) -> None:
        try:
            for _ in range(8):
                report.write_text(tmp_path / "summary.csv", text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "summary.csv").read_text()
    assert not errors and text in ("a" * 1000, "b" * 1000, "c" * 1000)


def test_watch_shows_how_far_the_unfinished_runs_are(tmp_path, capsys):
    write_run(tmp_path, "coco", "an", 0, 60.0)
    folder = write_run(tmp_path, "coco", "an", 1, None)
    rows = [{"epoch": epoch, "train_loss": 0.5, "val_mAP": 40.0 + epoch, "seconds": 1.0} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = lines(capsys, tmp_path, "--watch")
    assert out[0] == "1 finished, 1 unfinished, 0 unreadable runs"
    assert out[1].startswith("  coco_an_1_1: 2 of 4 epochs, best val mAP 42.00, last written 0 s ago")


def test_a_thousand_runs_take_seconds(tmp_path, capsys):
    for number in range(1000):
        write_run(tmp_path / str(number // 100), "coco", "EM_PL", number % 10, 70.0, threshold=number // 10)
    began = time.process_time()
    out = lines(capsys, *tmp_path.iterdir())
    assert time.process_time() - began < 5
    assert sum(line.startswith("| EM_PL (threshold") for line in out) == 100


def test_the_table_of_the_readme_is_what_its_runs_say():
    make_tables.main(["--check"])


def test_a_table_of_the_readme_that_is_stale_is_one_line(tmp_path, monkeypatch, fails):
    for seed, test_map in ((0, 91.0), (1, 92.0)):
        write_run(tmp_path / "runs", "digits", "EM_PL", seed, test_map, model="timm:test_resnet")
        write_run(tmp_path / "runs", "digits", "bce", seed, test_map + 5, model="timm:test_resnet")
    write_run(tmp_path / "linear", "digits", "EM_PL", 0, 80.0, model="teacher")
    for name in ("runs", "linear"):
        report.main([str(tmp_path / name), "--csv", str(tmp_path / f"{name}.csv")])
    (tmp_path / "README.md").write_text("before\n<!-- table: digits -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(make_tables, "README", tmp_path / "README.md")
    columns = {"end to end": tmp_path / "runs.csv", "linear head": tmp_path / "linear.csv"}
    monkeypatch.setattr(make_tables, "RUNS", columns)
    assert "python docs/make_tables.py" in fails(make_tables.main, ["--check"])
    make_tables.main([])
    make_tables.main(["--check"])
    text = (tmp_path / "README.md").read_text()
    assert "| EM_PL | **91.50 ± 0.71** | **80.00 (n 1)** | VLPL" in text and "| bce | 96.50 ± 0.71 |  |" in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")


def test_a_bar_shows_images_per_second_and_the_time_left_and_a_log_file_stays_quiet(tmp_path, monkeypatch):
    for terminal in (True, False):
        file = io.StringIO()
        file.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", file)
        with progress_bar(100, "epoch 1", 8) as bar:
            bar.update(16)
            bar.refresh()
        text = file.getvalue()
        assert ("24/100 images" in text and "images/s" in text and "left" in text) if terminal else text == ""
