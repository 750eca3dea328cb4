"""The page: one HTML file with tables, charts and a gallery, which opens from the disk without a network."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting import compare, figures, gallery, tables
from reporting.figures import svg
from reporting.tables import Row, mean_per_class

MOST_CURVES = 32  # settings of a data set, those with the best validation mAP
MOST_CHARTS = 8  # settings of a data set that are compared class by class, and whose pseudo-labels are drawn
MOST_SETTINGS = 20  # settings with their own column
FEWEST_TRIALS = 5  # of a search that is shown, beside its default
QUALITY = ("precision", "recall", "f1", "positives_per_image")  # of the pseudo-labels
FORMATS = {"difference": "+.2f", "F1": ".3f", "minutes": ".1f"}  # of columns; others: .2f
Choice = tuple[str, list[Markup], list[tuple]]  # title, drawings and rows of a table; a menu shows one of several


def make(
    rows: list[Row], baseline: dict[str, Row], notes: list[str], left_out: list, places: Iterable[Path], command: str
) -> str:
    """The page's HTML.

    baseline  {data set: the row that others are compared with}
    notes     on the comparison of the rows
    left_out  (name of a folder, why it is not in the table)
    places    folders that may hold the trials of tune.py
    """
    datasets = tables.by(rows, lambda row: row.dataset)
    options = dict(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    return environment.get_template("page.html").render(
        cells=_cells(rows, baseline),
        groups={known: [row for row in rows if row.known == known] for known in tables.sections(r.known for r in rows)},
        sections=[_section(dataset, members, baseline.get(dataset)) for dataset, members in datasets.items()],
        trials=list(_trials(places)),
        notes=notes,
        left_out=left_out,
        num_runs=sum(len(row.runs) for row in rows),
        made=time.strftime("%Y-%m-%d %H:%M"),
        command=command,
        swatch=figures.swatch,
        spread=tables.spread,
        tokens=lambda row: json.dumps([f"{name}={value}".lower() for name, value in row.shown.items()]),
    )


def _cells(rows: list[Row], baseline: dict[str, Row]) -> pd.DataFrame:
    """The texts of the table of runs, a line for each row; columns without content are left out."""
    settings, records = list(dict.fromkeys(name for row in rows for name in row.distinguishing)), []
    for row in rows:
        base, paired = baseline.get(row.dataset), ""
        if base and len(base.test) and len(row.test):
            paired = "baseline" if base is row else str(compare.paired(row, base) or "too few pairs")
        record = {"loss": row.loss, "val mAP": row.val.mean(), "test mAP": row.test.mean(), "dataset": row.dataset}
        record |= {"n": row.count, "seeds": tables.COLUMNS["seeds"](row), "sd": row.test.std()}
        record |= {"published": row.published, "difference": row.difference, "paired difference": paired}
        record["F1"] = row.figures.get("micro_F1@chosen")
        record["minutes"] = sum(run.history["seconds"].sum() for run in row.runs) / len(row.runs) / 60
        records.append(record | {name: row.shown.get(name, "") for name in settings[:MOST_SETTINGS]})
    frame = pd.DataFrame(records)
    useless = {"dataset": frame["dataset"].nunique() == 1, "minutes": frame["minutes"].max() < 0.1}
    frame = frame.drop(columns=[name for name, drop in useless.items() if drop])
    for name in frame:
        form, empty = FORMATS.get(name, ".2f"), "-" if name.endswith("mAP") else ""
        frame[name] = [v if isinstance(v, str) else empty if pd.isna(v) else format(v, form) for v in frame[name]]
    return frame.loc[:, (frame != "").any()]


def _section(dataset: str, rows: list[Row], baseline: Row | None) -> dict:
    """What the page shows of one data set."""
    ranked = compare.ranked(rows)
    ranked.sort(key=lambda row: "observed" in row.chosen_by)  # their validation mAP is a different figure
    drawn, fair = ranked[:MOST_CURVES], [row for row in ranked if not row.oracle]
    best = fair[0] if fair else None
    scored = [row for row in sorted(ranked, key=lambda row: row.oracle) if len(row.test) and row is not baseline]
    charts = {"train_loss": "training loss", "val_mAP": "validation mAP, %"}
    return {
        "dataset": dataset,
        "tested": any(len(row.test) for row in rows),
        "best": best,
        "best_difference": compare.paired(best, baseline) if best and baseline and best is not baseline else None,
        "curves": [svg(figures.curves, drawn, name, title) for name, title in charts.items()],
        "legend": [row for row in drawn if any(len(run.history) for run in row.runs)],
        "few_curves": len(ranked) > MOST_CURVES,
        "baseline": baseline,
        "classes": list(_classes(scored[:MOST_CHARTS], baseline)) if baseline and len(baseline.test) else [],
        "pseudo": list(_pseudo(fair[:MOST_CHARTS])),
        "gallery": gallery.make(best.runs[0]) if best and len(best.test) else None,
    }


def _classes(rows: list[Row], baseline: Row) -> Iterator[Choice]:
    """Per-class AP of each row beside the baseline's."""
    for row in rows:
        both = mean_per_class(baseline).join(mean_per_class(row)["test_AP"].rename("own"), how="inner")
        both["difference"] = both["own"] - both["test_AP"]
        both = both.sort_values("difference", ascending=False, kind="stable")
        if len(both):
            parts = [
                svg(figures.bars, both["difference"], "by class", "difference of test AP, percentage points"),
                svg(figures.against_frequency, both["test_positives"], both["difference"], "by frequency"),
            ]
            yield f"{row.line} minus {baseline.line}", parts, list(both.itertuples(name=None))


def _pseudo(rows: Iterable[Row]) -> Iterator[Choice]:
    """The quality of the pseudo-labels of each row's first run."""
    for row in rows:
        if quality := row.runs[0].quality:
            entries = ("all", "unobserved") if "precision" in quality["unobserved"] else ("all",)
            cells = []
            if quality["threshold"] is not None and "precision" in quality["all"]:
                at = quality["thresholds"].index(quality["threshold"])
                for name in entries:
                    cells.append((name, *(tables.or_dash(quality[name][figure][at], ".3f") for figure in QUALITY)))
            yield row.line, [svg(figures.pseudo_labels, quality, name) for name in entries], cells


def _trials(places: Iterable[Path]) -> Iterator[Choice]:
    """The trials of each search in tune.py's CSV files, and how strongly each setting goes with the validation mAP."""
    for path in (path for place in places for path in sorted(place.glob("tune_*.csv"))):
        for (method, study), trials in pd.read_csv(path).groupby(["method", "study"], sort=False):
            done = trials[trials["state"] == "COMPLETE"]
            settings = done.filter(regex="^params_").rename(columns=lambda name: name.removeprefix("params_"))
            settings = settings.dropna(how="all").dropna(axis=1, how="all")
            if len(settings) < FEWEST_TRIALS:
                continue
            settings = pd.get_dummies(settings, prefix_sep=" ", dtype=float)
            matters = settings.assign(value=done["value"]).corr(method="spearman")["value"].drop("value").dropna()
            matters = matters.sort_values(key=abs, ascending=False, kind="stable")
            parts = [
                svg(figures.trials, done.set_index(done["number"] + 1)["value"], "trials"),
                svg(figures.bars, matters, "which settings matter", "rank correlation with validation mAP"),
            ]
            title = f"{method} on {path.stem.removeprefix('tune_')}, {len(done)} of {len(trials)} trials finished"
            yield f"{title} (search {study.split()[1][:6]})", parts, []
