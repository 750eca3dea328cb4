"""The page: one HTML file with tables, charts and a gallery, which opens from the disk without a network."""

import base64
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting import charts, compare, gallery, tables
from reporting.gallery import Gallery
from reporting.runs import Run, Runs, read_history, read_per_class
from reporting.tables import Row, mean
from util.errors import UserError

MOST_CURVES = 32  # settings of a data set, those with the best validation mAP
MOST_CHARTS = 8  # settings of a data set that are compared class by class, and whose pseudo-labels are drawn
MOST_SETTINGS = 20  # settings with a column of their own
FIGURES = ("precision", "recall", "f1", "positives_per_image")  # of the pseudo-labels


@dataclass
class Line:
    """A row of the page's table.

    cells   what is shown, and what is sorted by
    tokens  NAME=VALUE of everything that can be filtered by
    """

    number: int
    row: Row
    cells: list[tuple[str, float | str]]
    tokens: str


@dataclass
class Choice:
    """One of several drawings that a menu of the page chooses from."""

    title: str
    parts: list[Markup]
    rows: list[tuple] = field(default_factory=list)


@dataclass
class Section:
    """The page's part on one data set."""

    dataset: str
    best: Row | None = None
    best_difference: compare.Paired | None = None
    curves: list[Markup] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)
    classes: list[Choice] = field(default_factory=list)
    nothing_to_compare: str = ""
    baseline: str = ""
    pseudo: list[Choice] = field(default_factory=list)
    gallery: Gallery | None = None
    suspects: str = ""
    notes: list[str] = field(default_factory=list)


def make(runs: Runs, chosen: list[Run], rows: list[Row], baseline: dict[str, Row], command: str) -> str:
    """The page's HTML.

    chosen    the finished runs that `rows` are made of
    baseline  {data set: the row that others are compared with}
    """
    histories = {run.folder: read_history(run.folder) for run in chosen}
    header, lines = _table(rows, histories, baseline)
    numbers = {id(row): number for number, row in enumerate(rows)}
    sections = [
        _section(dataset, [row for row in rows if row.dataset == dataset], numbers, histories, baseline.get(dataset))
        for dataset in dict.fromkeys(row.dataset for row in rows)
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    files = {name: Markup((Path(__file__).parent / f"page.{name}").read_text()) for name in ("css", "js")}
    return environment.get_template("page.html").render(
        **files,
        header=header,
        groups={known: [line for line in lines if line.row.known == known] for known in _groups(rows)},
        sections=sections,
        warnings=compare.selections(rows),
        unread=runs.unread,
        num_runs=len(chosen),
        made=time.strftime("%Y-%m-%d %H:%M"),
        command=command,
        swatch=charts.swatch,
        spread=tables.spread,
        mean=mean,
        data_uri=_data_uri,
    )


def _groups(rows: list[Row]) -> list[str]:
    """What was known, single positives first and oracles last."""
    return sorted(
        {row.known for row in rows}, key=lambda known: (known == tables.ORACLES, known != tables.SINGLE, known)
    )


def _data_uri(text: str, kind: str) -> Markup:
    content = base64.b64encode(text.encode(errors="backslashreplace")).decode()
    return Markup(f"data:{kind};base64,{content}")


def _table(
    rows: list[Row], histories: dict[Path, pd.DataFrame], baseline: dict[str, Row]
) -> tuple[list[str], list[Line]]:
    """Column titles, and a line for each row."""
    settings = list(dict.fromkeys(name for row in rows for name in row.distinguishing))[:MOST_SETTINGS]
    header = ["method", "val mAP", "test mAP", "dataset", *settings, "n", "seeds", "sd", "published", "difference"]
    header += ["paired difference", "F1", "minutes"]
    lines = []
    for number, row in enumerate(rows):
        test = mean(row.test.values())
        paired = compare.paired(row, baseline[row.dataset]) if row.dataset in baseline else None
        minutes = mean(histories[run.folder]["seconds"].sum() for run in row.runs) / 60
        values = [row.distinguishing.get(name, "") for name in settings]
        seeds = tables.COLUMNS["seeds"](row)
        cells = [
            (row.loss, row.loss),
            _figure(mean(row.val.values())),
            _figure(test),
            (row.dataset, row.dataset),
            *((value, value if tables.natural(value)[0] == math.inf else tables.natural(value)[0]) for value in values),
            (row.count, len(row.repeats)),
            (seeds, seeds),
            _figure(tables.deviation(row.test.values())),
            _figure(row.published),
            _figure(None if row.published is None else test - row.published, "+.2f"),
            ("baseline", "") if baseline.get(row.dataset) is row else _interval(paired),
            _figure(row.figures.get("micro_F1@chosen"), ".3f"),
            _figure(minutes or None, ".1f"),
        ]
        shown = {
            name: row.shown[name] for name in ("dataset", "loss", "model") if name in row.shown
        } | row.distinguishing
        lines.append(Line(number, row, cells, json.dumps([f"{name}={value}".lower() for name, value in shown.items()])))
    used = [place for place in range(len(header)) if any(line.cells[place][0] for line in lines)]
    for line in lines:
        line.cells = [line.cells[place] for place in used]
    return [header[place] for place in used], lines


def _figure(value: float | None, form: str = ".2f") -> tuple[str, float | str]:
    return ("", "") if value is None or math.isnan(value) else (format(value, form), value)


def _interval(paired: compare.Paired | None) -> tuple[str, float | str]:
    if paired is None:
        return "", ""
    return f"{paired.mean:+.2f} [{paired.low:+.2f}, {paired.high:+.2f}]", paired.mean


def _section(
    dataset: str,
    rows: list[Row],
    numbers: dict[int, int],
    histories: dict[Path, pd.DataFrame],
    baseline: Row | None,
) -> Section:
    section = Section(dataset)
    ranked = sorted(rows, key=lambda row: -mean(row.val.values()) if row.val else math.inf)
    ranked.sort(key=lambda row: "observed" in row.chosen_by)  # their validation mAP is a different figure
    fair = [row for row in ranked if not row.oracle]
    section.best = fair[0] if fair else None
    if section.best and baseline and section.best is not baseline:
        section.best_difference = compare.paired(section.best, baseline)

    drawn = [(numbers[id(row)], [histories[run.folder] for run in row.runs]) for row in ranked[:MOST_CURVES]]
    drawn = [(number, found) for number, found in drawn if any(len(history) for history in found)]
    made = (
        charts.curves(drawn, *names) for names in (("train_loss", "training loss"), ("val_mAP", "validation mAP, %"))
    )
    section.curves = [chart for chart in made if chart]
    section.legend = [(numbers[id(row)], row.line) for row in ranked[:MOST_CURVES] if section.curves]
    if len(ranked) > MOST_CURVES:
        section.notes.append(f"curves of the {MOST_CURVES} settings with the best validation mAP")

    scored = [row for row in [*fair, *(row for row in ranked if row.oracle)] if row.test]
    if baseline is None or not baseline.test:
        section.nothing_to_compare = "The baseline has no test score, because the test labels are not known."
    elif scored == [baseline]:
        section.nothing_to_compare = f"{baseline.line} is the only setting with a test score."
    else:
        section.baseline = baseline.line
        section.classes = _classes([row for row in scored if row is not baseline][:MOST_CHARTS], baseline)
        if not section.classes:
            section.nothing_to_compare = f"No other setting has a class in common with {baseline.line}."
    section.pseudo = _pseudo(fair[:MOST_CHARTS])
    if section.best and section.best.test:
        try:
            section.gallery = gallery.make(section.best.runs[0])
            section.suspects = section.gallery.suspects.to_csv(index=False, float_format="%.4f")
        except UserError as error:
            section.notes.append(f"no gallery: {error}")
    return section


def _mean_per_class(row: Row) -> pd.DataFrame:
    """test_positives and test_AP by class, mean over the row's runs."""
    found = pd.concat([read_per_class(run.folder) for run in row.runs])
    return found.groupby(level=0, sort=False)[["test_positives", "test_AP"]].mean()


def _classes(rows: list[Row], baseline: Row) -> list[Choice]:
    """Per-class AP of each row beside that of the baseline."""
    choices, base = [], _mean_per_class(baseline)
    for row in rows:
        both = base.join(_mean_per_class(row)["test_AP"].rename("own"), how="inner")
        if both.empty:
            continue
        both["difference"] = both["own"] - both["test_AP"]
        ordered = both.sort_values("difference", ascending=False, kind="stable")
        parts = [
            charts.class_differences(both["difference"], "by class"),
            charts.against_frequency(both["test_positives"], both["difference"], "by frequency"),
        ]
        choices.append(Choice(f"{row.line} minus {baseline.line}", parts, list(ordered.itertuples(name=None))))
    return choices


def _pseudo(rows: Iterable[Row]) -> list[Choice]:
    """The pseudo-labels of each row, those of its first run."""
    choices = []
    for row in rows:
        path = row.runs[0].folder / "pseudo_labels.json"
        if not path.exists():
            continue
        quality = json.loads(path.read_text())
        entries = ("all", "unobserved") if "precision" in quality["unobserved"] else ("all",)
        cells = []
        if quality["threshold"] is not None and "precision" in quality["all"]:
            at = quality["thresholds"].index(quality["threshold"])
            cells = [(name, *(_at(quality[name], figure, at) for figure in FIGURES)) for name in entries]
        choices.append(Choice(row.line, [charts.pseudo_labels(quality, name) for name in entries], cells))
    return choices


def _at(curve: dict, figure: str, at: int) -> str:
    value = curve.get(figure, {at: None})[at]
    return "-" if value is None else f"{value:.3f}"
