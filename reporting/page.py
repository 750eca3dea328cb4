"""The page: one HTML file with tables, charts and a gallery, which opens from the disk without a network."""

import base64
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting import charts, gallery, tables
from reporting.gallery import Gallery
from reporting.runs import Epoch, Run, Runs, read_history, read_per_class
from reporting.tables import Row, mean
from util.errors import UserError
from util.files import read_json

MOST_CURVES = 60  # settings of a data set, those with the best validation mAP
MOST_CHARTS = 8  # settings of a data set that are compared class by class, and whose pseudo-labels are drawn
MOST_APART = 8  # settings with a column of their own
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
    """What the page says of one data set."""

    dataset: str
    best: Row | None = None
    best_difference: tables.Paired | None = None
    curves: list[Markup] = field(default_factory=list)
    classes: list[Choice] = field(default_factory=list)
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
    numbers = {id(row): number for number, row in enumerate(rows)}
    members = defaultdict(list)
    for run in chosen:
        members[run.key()].append(run)
    of_row = {number: members[tables.key(row)] for number, row in enumerate(rows)}
    histories, notes = _histories(chosen)
    header, lines = _table(rows, of_row, histories, baseline)
    sections = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        sections.append(_section(dataset, here, numbers, of_row, histories, baseline.get(dataset)))
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("page.html")
    return template.render(
        header=header,
        lines={"Single positives": [line for line in lines if not line.row.oracle],
               "Oracles": [line for line in lines if line.row.oracle]},
        sections=sections,
        warnings=tables.selections(rows),
        notes=notes,
        unread=runs.unread,
        num_runs=len(chosen),
        made=time.strftime("%Y-%m-%d %H:%M"),
        command=command,
        colour=charts.colour,
        spread=tables.spread,
        mean=mean,
        data_uri=_data_uri,
    )  # fmt: skip


def _data_uri(text: str, kind: str) -> Markup:
    content = base64.b64encode(text.encode(errors="backslashreplace")).decode()
    return Markup(f"data:{kind};base64,{content}")


def _histories(runs: list[Run]) -> tuple[dict[Path, list[Epoch]], list[str]]:
    found, notes = {}, []
    for run in runs:
        try:
            found[run.folder] = read_history(run.folder)
        except UserError as error:
            notes.append(str(error))
    return found, notes


def _table(
    rows: list[Row], of_row: dict[int, list[Run]], histories: dict[Path, list[Epoch]], baseline: dict[str, Row]
) -> tuple[list[str], list[Line]]:
    """Column titles, and a line for each row."""
    apart = list(dict.fromkeys(name for row in rows for name in row.apart))[:MOST_APART]
    header = ["method", "data", *apart, "n", "seeds", "val mAP", "test mAP", "sd", "published", "difference"]
    header += ["paired difference", "F1", "minutes"]
    lines = []
    for number, row in enumerate(rows):
        test = mean(row.test.values())
        paired = tables.paired(row, baseline[row.dataset]) if row.dataset in baseline else None
        is_baseline = baseline.get(row.dataset) is row
        seconds = [sum(epoch.seconds for epoch in histories.get(run.folder, ())) for run in of_row[number]]
        settings = [row.apart.get(name, "") for name in apart]
        cells = [
            (row.loss, row.loss),
            (row.dataset, row.dataset),
            *((value, tables.natural(value)[0] if tables.is_number(value) else value) for value in settings),
            (str(len(row.seeds)), len(row.seeds)),
            (" ".join(map(str, row.seeds)), " ".join(map(str, row.seeds))),
            _figure(mean(row.val.values())),
            _figure(test),
            _figure(tables.deviation(row.test.values())),
            _figure(row.published),
            _figure(None if row.published is None else test - row.published, "+.2f"),
            ("baseline", "") if is_baseline else _interval(paired),
            _figure(row.figures.get("micro_F1@chosen"), ".3f"),
            _figure(sum(seconds) / len(seconds) / 60 if any(seconds) else None, ".1f"),
        ]
        shown = {name: row.shown[name] for name in ("dataset", "loss", "model") if name in row.shown} | row.apart
        lines.append(Line(number, row, cells, json.dumps([f"{name}={value}".lower() for name, value in shown.items()])))
    used = [place for place in range(len(header)) if any(line.cells[place][0] for line in lines)]
    for line in lines:
        line.cells = [line.cells[place] for place in used]
    return [header[place] for place in used], lines


def _figure(value: float | None, form: str = ".2f") -> tuple[str, float | str]:
    return ("", "") if value is None or math.isnan(value) else (format(value, form), value)


def _interval(paired: tables.Paired | None) -> tuple[str, float | str]:
    if paired is None:
        return "", ""
    return f"{paired.mean:+.2f} [{paired.low:+.2f}, {paired.high:+.2f}]", paired.mean


def _section(
    dataset: str,
    rows: list[Row],
    numbers: dict[int, int],
    of_row: dict[int, list[Run]],
    histories: dict[Path, list[Epoch]],
    baseline: Row | None,
) -> Section:
    section = Section(dataset)
    ranked = sorted(rows, key=lambda row: -mean(row.val.values()) if row.val else math.inf)
    ranked.sort(key=lambda row: "observed" in row.chosen_by)  # their validation mAP is another figure
    fair = [row for row in ranked if not row.oracle]
    section.best = fair[0] if fair else None
    if section.best and baseline and section.best is not baseline:
        section.best_difference = tables.paired(section.best, baseline)

    drawn = [
        (numbers[id(row)], run.seed, histories[run.folder])
        for row in ranked[:MOST_CURVES]
        for run in of_row[numbers[id(row)]]
        if histories.get(run.folder)
    ]
    if drawn:
        section.curves = [
            charts.curves(drawn, "train_loss", "training loss"),
            charts.curves(drawn, "val_mAP", "validation mAP, %"),
        ]
    if len(ranked) > MOST_CURVES:
        section.notes.append(f"curves of the {MOST_CURVES} settings with the best validation mAP")

    runs_of = {id(row): of_row[numbers[id(row)]] for row in rows}
    if baseline:
        section.baseline = baseline.line
        compared = [row for row in [*fair, *(row for row in ranked if row.oracle)] if row is not baseline]
        section.classes = _classes(compared[:MOST_CHARTS], baseline, runs_of, section.notes)
    section.pseudo = _pseudo(fair[:MOST_CHARTS], runs_of, section.notes)
    if section.best:
        try:
            section.gallery = gallery.make(runs_of[id(section.best)][0])
            section.suspects = gallery.to_csv(section.gallery.suspects)
        except UserError as error:
            section.notes.append(f"no gallery: {error}")
    return section


def _mean_per_class(runs: list[Run]) -> dict[str, tuple[int, float]]:
    """{class: (test positives, mean AP over the runs)}."""
    tables_of = [read_per_class(run.folder) for run in runs]
    names = [name for name in tables_of[0] if all(name in one for one in tables_of)]
    return {name: (tables_of[0][name][0], mean(one[name][1] for one in tables_of)) for name in names}


def _classes(rows: list[Row], baseline: Row, runs_of: dict[int, list[Run]], notes: list[str]) -> list[Choice]:
    """Per-class AP of each row beside that of the baseline."""
    choices = []
    try:
        base = _mean_per_class(runs_of[id(baseline)])
    except UserError as error:
        notes.append(f"no comparison of classes: {error}")
        return []
    for row in rows:
        try:
            own = _mean_per_class(runs_of[id(row)])
        except UserError as error:
            notes.append(f"{row.line} is not compared class by class: {error}")
            continue
        names = [name for name in own if name in base]
        if not names:
            notes.append(f"{row.line} has no class in common with {baseline.line}")
            continue
        differences = [own[name][1] - base[name][1] for name in names]
        positives = [base[name][0] for name in names]
        title = f"{row.line} minus {baseline.line}"
        order = np.argsort(differences, kind="stable")[::-1]
        cells = [(names[i], positives[i], base[names[i]][1], own[names[i]][1], differences[i]) for i in order]
        parts = [
            charts.class_differences(names, differences, "by class"),
            charts.against_frequency(names, positives, differences, "by frequency"),
        ]
        choices.append(Choice(title, parts, cells))
    return choices


def _pseudo(rows: Iterable[Row], runs_of: dict[int, list[Run]], notes: list[str]) -> list[Choice]:
    """The pseudo-labels of each row, those of its first run."""
    choices = []
    for row in rows:
        path = runs_of[id(row)][0].folder / "pseudo_labels.json"
        if not path.exists():
            continue
        try:
            about = read_json(path, dict)
            entries = ("all", "unobserved") if "precision" in about["unobserved"] else ("all",)
            parts = [charts.pseudo_labels(about, name) for name in entries]
            cells = []
            if about["threshold"] is not None:
                at = about["thresholds"].index(about["threshold"])
                cells = [(name, *(_at(about[name], figure, at) for figure in FIGURES)) for name in entries]
            choices.append(Choice(row.line, parts, cells))
        except (UserError, KeyError, TypeError, ValueError, IndexError) as error:
            notes.append(f"pseudo-labels of {row.line} are not shown: {error}")
    return choices


def _at(curve: dict, figure: str, at: int) -> str:
    value = curve.get(figure, {at: None})[at]
    return "-" if value is None else f"{value:.3f}"
