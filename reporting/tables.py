"""Finished runs as tables: a row for each setting, averaged over seeds and draws; Markdown, LaTeX and CSV by pandas."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import pandas as pd

from datasets import DATASETS
from losses import LOSSES
from reporting.runs import Run, natural
from util.errors import UserError, printable
from util.files import digest

ORACLES, SINGLE = "oracles", "single positives"


class Row:
    """The finished runs of one setting.

    setting         the identity without seed and draw;  shown  the same as text
    distinguishing  {setting: value} that name it among the rows of its method and data set
    draws, seeds    sorted, without repetition
    test, val       mAP in percent, indexed by draw and seed; empty if one of the runs has none
    figures         means of the other numbers of test.json
    chosen_by       what chose the epoch
    known           which labels were known: ORACLES, SINGLE, or the number of known labels per image
    trained         whether the runs train something; a teacher alone has one result, without a seed
    published       the published test mAP, if the runs repeat it;  difference  of the row from it
    number          its place among all rows
    """

    number: int

    def __init__(self, runs: list[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.repeat)
        first = self.runs[0]
        self.setting = first.setting
        self.shown = {name: first.shown[name] for name in first.setting}
        self.dataset, self.loss = self.shown["dataset"], self.shown["loss"]
        self.distinguishing: dict[str, str] = {}
        repeats = [run.repeat for run in self.runs]
        self.draws, self.seeds = (sorted(set(numbers)) for numbers in zip(*repeats, strict=True))
        results = [{"test_mAP": None, "val_mAP": None} | run.result for run in self.runs]
        results = pd.DataFrame(results, pd.MultiIndex.from_tuples(repeats))
        scores = (results[name].astype(float) for name in ("test_mAP", "val_mAP"))
        self.test, self.val = (values if values.notna().all() else values[:0] for values in scores)
        figures = results.filter(regex="^test_").select_dtypes("number").dropna(axis=1).mean()
        self.figures = {name.removeprefix("test_"): value for name, value in figures.items()}
        self.chosen_by = first.result["chosen_by"]
        method, known = LOSSES.get(self.loss), first.result["known_labels"]  # None: a method that was removed
        self.trained = method is None or method.loss is not None
        self.oracle = method is not None and method.oracle
        single = known["positive"] <= 1 and known["negative"] == 0
        counts = "{positive:.2f} positive, {negative:.2f} negative known labels per image".format(**known)
        self.known = ORACLES if self.oracle else SINGLE if single else counts
        published = {run.result.get("published") for run in runs}
        self.published = published.pop() if len(published) == 1 else None
        self.difference = self.published and self.test.mean() - self.published

    def name(self, without: Iterable[str] = ()) -> str:
        """The method with the distinguishing settings, but for those that a table shows elsewhere."""
        details = ", ".join(f"{name} {value}" for name, value in self.distinguishing.items() if name not in without)
        return self.loss + (f" ({details})" if details else "")

    @property
    def line(self) -> str:
        return self.name()

    @property
    def count(self) -> str:
        """n, with the number of draws if there are several."""
        return f"{len(self.runs)}" + (f" ({len(self.draws)} draws)" if len(self.draws) > 1 else "")

    @property
    def repeats(self) -> str:
        """draw:seed of each run."""
        return " ".join("{}:{}".format(*run.repeat) for run in self.runs)


def group(runs: list[Run]) -> list[Row]:
    """The rows of the finished runs."""
    finished = (run for run in runs if run.result)
    return arrange([Row(members) for members in by(finished, lambda run: digest(run.setting)).values()])


def arrange(rows: list[Row]) -> list[Row]:
    """The rows in the order of the lists of data sets and methods, with their names and numbers."""
    for members in by(rows, lambda row: (row.dataset, row.loss)).values():
        add_distinguishing(members)
    rows = sorted(rows, key=_order)
    for number, row in enumerate(rows):
        row.number = number
    return rows


def add_distinguishing(rows: list[Row]) -> None:
    """Set for each row the settings by which it differs from the others, without values that most of them share.
    Settings that all rows have are preferred, because those that only some have follow from them."""
    texts = pd.DataFrame([{name: str(value) for name, value in row.setting.items()} for row in rows])
    differing = texts.loc[:, texts.nunique(dropna=False) > 1]
    shared = differing.dropna(axis=1)
    chosen = sorted(differing if shared.duplicated().any() or shared.empty else shared)
    shown = pd.DataFrame([row.shown for row in rows]).reindex(columns=chosen).fillna("-")
    for name in chosen:  # two files of one name, or two numbers that round to one
        if shown[name].nunique() < texts[name].nunique(dropna=False):
            shown[name] = texts[name].fillna("-")
    shares = {name: shown[name].value_counts(normalize=True) for name in chosen}
    usual = {name: share.index[0] for name, share in shares.items() if share.iloc[0] > 0.5}
    for row, values in zip(rows, shown.to_dict("records"), strict=True):
        row.distinguishing = {name: value for name, value in values.items() if value != usual.get(name)}


def by(items: Iterable, key: Callable) -> dict[object, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _order(row: Row) -> tuple:
    return place(DATASETS, row.dataset), place(LOSSES, row.loss), [natural(v) for v in row.distinguishing.values()]


def place(known: Iterable[str], name: str) -> tuple[int, str]:
    """For sorting: known names in their order, then the others by name."""
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def check_names(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError if a name given with an option is not among the known ones."""
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{option} {unknown[0]}: no such name; there are {', '.join(known)}")


# Cells


def spread(values: pd.Series | list[float]) -> str:
    """Mean ± standard deviation; a dash if there are no values."""
    values = pd.Series(values, dtype=float)
    return or_dash(values.mean()) + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def or_dash(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def cell(row: Row) -> str:
    """Test mAP with n, validation mAP, the published number and the difference from it."""
    parts = [f"n {row.count}"] + ([] if row.val.empty else [f"val {row.val.mean():.2f}"])
    if row.published is not None:
        parts.append(f"published {row.published:.2f}, {row.difference:+.2f}")
    return f"{spread(row.test)} ({'; '.join(parts)})"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "loss": lambda row: row.line,
    "test": lambda row: spread(row.test),
    "val": lambda row: spread(row.val),
    "n": lambda row: row.count,
    "seeds": lambda row: " ".join(map(str, row.seeds)),
    "draws": lambda row: " ".join(map(str, row.draws)),
    "published": lambda row: or_dash(row.published),
    "difference": lambda row: or_dash(row.difference, "+.2f"),
    "chosen_by": lambda row: row.chosen_by,
    "known": lambda row: row.known,
}


# Tables: a frame of texts, whose column SECTION divides its rows

SECTION = "section"
WORDS = ("dataset", "loss", "minus", "class", "seeds", "draws", "chosen_by", "known")  # aligned at the left


def pivot(rows: list[Row], cell: Callable[[Row], str] = cell) -> pd.DataFrame:
    """Methods down, data sets across."""
    lines: dict[tuple, dict[str, str]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: _order(row)[1:]):
        lines[row.known, row.line][row.dataset] = cell(row)
    columns = [SECTION, "test mAP, %", *dict.fromkeys(row.dataset for row in rows)]
    records = [{SECTION: known, "test mAP, %": line} | cells for (known, line), cells in lines.items()]
    return pd.DataFrame(records, columns=columns).fillna("")


def flat(rows: list[Row], columns: list[str]) -> pd.DataFrame:
    """A row for each setting; columns are names of COLUMNS, of figures of test.json, or of settings."""
    more = {name for row in rows for name in (*row.figures, *row.shown)} - COLUMNS.keys()
    check_names("--columns", columns, [*COLUMNS, *sorted(more)])
    if len({row.dataset for row in rows}) > 1 and "dataset" not in columns:
        columns = ["dataset", *columns]

    def value(row: Row, name: str) -> str:
        if name == "loss":
            return row.name(without=columns)
        if name in COLUMNS:
            return COLUMNS[name](row)
        return row.shown[name] if name in row.shown else or_dash(row.figures.get(name), ".4g")

    return pd.DataFrame([{SECTION: row.known} | {name: value(row, name) for name in columns} for row in rows])


def mean_per_class(row: Row) -> pd.DataFrame:
    """test_positives and test_AP by class, mean over the row's runs."""
    found = pd.concat([run.per_class for run in row.runs])
    return found.groupby(level=0, sort=False)[["test_positives", "test_AP"]].mean()


def per_class(rows: list[Row]) -> pd.DataFrame:
    """Test AP in percent: classes down, the rows with a test score across, mean ± deviation."""
    frames = {}
    for dataset, members in by((row for row in rows if len(row.test)), lambda row: row.dataset).items():
        scores = {row.line: pd.concat([run.per_class["test_AP"] for run in row.runs], axis=1) for row in members}
        frames[dataset] = pd.DataFrame({line: found.apply(spread, axis=1) for line, found in scores.items()})
    if not frames:
        raise UserError("--per-class: none of these runs has a test score")
    frame = pd.concat(frames, names=["dataset", "class"]).fillna("").reset_index()
    return frame if len(frames) > 1 else frame.drop(columns="dataset")


def render(frame: pd.DataFrame, latex: bool = False, bold: Iterable[tuple[str, str, str]] = ()) -> str:
    """The frame as Markdown or as a LaTeX tabular with booktabs' rules.

    bold  (section, text of a row's first cell, column) of the cells to set in bold
    """
    strong, title = (r"\textbf{{{}}}", r"\emph{{{}}}") if latex else ("**{}**", "*{}*")
    columns = [name for name in frame if name != SECTION]

    def escape(text: str) -> str:
        return printable(" ".join(str(text).split())).translate(LATEX if latex else MARKDOWN)

    texts = frame[columns].map(escape)
    for section, first, column in bold:
        cell = (frame[SECTION] == section) & (frame[columns[0]] == first), column
        texts.loc[cell] = texts.loc[cell].map(strong.format)
    if SECTION in frame:
        parts = []
        for name in sections(frame[SECTION]):
            parts += [pd.DataFrame([{columns[0]: title.format(escape(name))}]), texts[frame[SECTION] == name]]
        texts = pd.concat(parts)[columns].fillna("")
    texts.columns = [escape(name) for name in columns]
    if latex:
        form = "".join("l" if name == columns[0] or name in WORDS else "r" for name in columns)
        return texts.to_latex(index=False, escape=False, column_format=form).rstrip()
    return texts.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=["left"] * len(columns))


def sections(known: Iterable[str]) -> list[str]:
    """What was known, in the order of the tables."""
    return sorted(set(known), key=lambda name: place((ORACLES, SINGLE), name))


MARKDOWN = str.maketrans({"|": r"\|", "\\": r"\\", "<": "&lt;"})
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


def to_csv(rows: list[Row]) -> str:
    """A line for each setting: figures, repeats (draw:seed) with their mAPs in the same order, and every setting."""
    records = [
        {"mean": row.test.mean(), "deviation": row.test.std(), "n": len(row.runs), "repeats": row.repeats}
        | {"test_mAPs": " ".join(map(str, row.test)), "val_mAPs": " ".join(map(str, row.val))}
        | {"known": row.known, "published": row.published, "chosen_by": row.chosen_by}
        | row.setting
        for row in rows
    ]
    return pd.DataFrame(records).to_csv(index=False, lineterminator="\n")
