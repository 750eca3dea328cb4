"""Finished runs as tables: a row for each setting, averaged over its seeds; Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from datasets import DATASETS
from losses import LOSSES
from reporting.runs import Run
from util.errors import UserError
from util.files import digest

CONFIDENCE = 0.95  # of the interval of a paired difference
PROTOCOL = {"model": "resnet50", "image_size": 448, "pretrained": True}  # of the published numbers
# a run of an earlier version does not say what it could not do otherwise
PROTOCOL |= {"weights": None, "val_labels": "clean", "skip_missing": False, "calibrate": "none"}
PROTOCOL |= {"mode": "end_to_end", "head": "linear", "select": "best", "ema": 0.0, "crop": 1.0, "randaugment": 0}


@dataclass
class Row:
    """The runs of one setting.

    shown      the setting as text, without the seed
    test, val  {seed: mAP in percent}; empty where a run does not state it
    chosen_by  what chose the epoch
    figures    means over the seeds of the other numbers of test.json
    apart      {setting: value} by which it differs from others of its method and data set
    """

    setting: dict[str, object]
    shown: dict[str, str]
    test: dict[int, float]
    val: dict[int, float]
    seeds: list[int]
    chosen_by: str
    figures: dict[str, float]
    apart: dict[str, str]

    @property
    def dataset(self) -> str:
        return self.shown["dataset"]

    @property
    def loss(self) -> str:
        return self.shown["loss"]

    @property
    def line(self) -> str:
        """The name of its line in a table."""
        apart = ", ".join(f"{name} {value}" for name, value in self.apart.items())
        return self.loss + (f" ({apart})" if apart else "")

    @property
    def oracle(self) -> bool:
        return self.loss in LOSSES and LOSSES[self.loss].oracle

    @property
    def trained(self) -> bool:
        """Whether its runs train something. A teacher alone has no seed: its one result goes with every seed."""
        return self.loss not in LOSSES or LOSSES[self.loss].loss is not None

    @property
    def published(self) -> float | None:
        """The published test mAP, where the setting is that of the published numbers."""
        same = all(self.setting.get(name, value) == value for name, value in PROTOCOL.items())
        return LOSSES[self.loss].published.get(self.dataset) if same and self.loss in LOSSES else None


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def deviation(values: Iterable[float]) -> float:
    """Standard deviation; NaN for fewer than two values."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def key(row: Row) -> str:
    """The same as Run.key of the row's runs."""
    return digest(row.setting)


def group(runs: list[Run]) -> list[Row]:
    """The rows, in the order of the tables: data sets, then methods, each in the order of its list."""
    by_setting = defaultdict(list)
    for run in runs:
        by_setting[run.key()].append(run)
    rows = []
    for members in by_setting.values():
        first, results = members[0], {run.seed: run.result for run in members}
        names = set.intersection(*(set(run.figures) for run in members))
        test = {seed: result.test_mAP for seed, result in results.items() if result.test_mAP is not None}
        val = {seed: result.val_mAP for seed, result in results.items() if result.val_mAP is not None}
        row = Row(
            setting=first.setting,
            shown={name: value for name, value in first.shown.items() if name != "seed"},
            test=test if len(test) == len(results) else {},
            val=val if len(val) == len(results) else {},
            seeds=sorted(results),
            chosen_by=first.result.chosen_by,
            figures={name: mean(run.figures[name] for run in members) for name in sorted(names)},
            apart={},
        )
        rows.append(row)
    add_distinguishing(rows)
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple:
    return place(DATASETS, row.dataset), place(LOSSES, row.loss), [natural(value) for value in row.apart.values()]


def place(known: Iterable[str], name: str) -> tuple[int, str]:
    """For sorting: known names in their order, then the others by name."""
    names = list(known)
    return (names.index(name) if name in names else len(names), name)


def is_number(text: str) -> bool:
    return natural(text)[0] != math.inf


def natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def add_distinguishing(rows: list[Row]) -> None:
    """Say of each row what sets it apart from the others of its method and data set."""
    cells = defaultdict(list)
    for row in rows:
        cells[row.dataset, row.loss].append(row)
    for members in cells.values():
        names = sorted({name for row in members for name in row.setting})
        differing = [name for name in names if len({str(row.setting.get(name)) for row in members}) > 1]
        shared = [name for name in differing if all(name in row.setting for row in members)]
        if len({tuple(str(row.setting[name]) for name in shared) for row in members}) == len(members):
            differing = shared  # they suffice: what only some read, as --lr beside --linear-lr, follows from them
        for row in members:
            row.apart = {name: row.shown.get(name, "-") for name in differing}
        for name in differing:  # two files of one name, or two numbers that round to one
            by_text = defaultdict(set)
            for row in members:
                by_text[row.apart[name]].add(str(row.setting.get(name)))
            for row in members:
                if len(by_text[row.apart[name]]) > 1:
                    row.apart[name] = " ".join(dict.fromkeys((row.apart[name], str(row.setting.get(name)))))


def where(runs: list[Run], conditions: list[str]) -> list[Run]:
    """The runs that meet every condition NAME=VALUE; several of one NAME are alternatives.

    Raises UserError for what is no condition, and for a name that no run has.
    """
    wanted = defaultdict(list)
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes NAME=VALUE, as dataset=pascal, not {condition!r}")
        wanted[name].append(value)
    known = sorted({name for run in runs for name in run.shown})
    for name in wanted:
        if name not in known and runs:
            raise UserError(f"--where {name}: no run has such a setting; there are {', '.join(known)}")
    return [run for run in runs if all(_matches(run.shown.get(name, "-"), values) for name, values in wanted.items())]


def _matches(shown: str, values: list[str]) -> bool:
    return any(shown == value or natural(shown)[0] == natural(value)[0] != math.inf for value in values)


# Cells


def spread(values: dict[int, float]) -> str:
    """Mean ± standard deviation; a dash where there are none."""
    if not values:
        return "-"
    return f"{mean(values.values()):.2f}" + (f" ± {deviation(values.values()):.2f}" if len(values) > 1 else "")


def cell(row: Row) -> str:
    """Test mAP with n, validation mAP, the published number and the difference from it."""
    parts = [f"n {len(row.seeds)}"] + ([f"val {mean(row.val.values()):.2f}"] if row.val else [])
    if row.published is not None:
        parts.append(f"published {row.published:.2f}, {mean(row.test.values()) - row.published:+.2f}")
    return f"{spread(row.test)} ({'; '.join(parts)})"


def _or_dash(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.line,
    "test": lambda row: spread(row.test),
    "val": lambda row: spread(row.val),
    "n": lambda row: str(len(row.seeds)),
    "seeds": lambda row: " ".join(map(str, row.seeds)),
    "published": lambda row: _or_dash(row.published),
    "difference": lambda row: _or_dash(row.published and mean(row.test.values()) - row.published, "+.2f"),
    "chosen_by": lambda row: row.chosen_by,
}


# Tables


@dataclass
class Table:
    """header, and sections: {title: rows of cells}."""

    header: list[str]
    sections: dict[str, list[list[str]]]


def _sections(lines: list[tuple[bool, list[str]]]) -> dict[str, list[list[str]]]:
    """Oracles apart from the rest, titled where there are any."""
    parts = {
        title: [cells for oracle, cells in lines if oracle is apart]
        for title, apart in (("oracles", True), ("single positives", False))
    }
    return {title: cells for title, cells in parts.items() if cells}


def pivot(rows: list[Row], cell: Callable[[Row], str] = cell) -> Table:
    """Methods down, data sets across."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines: dict[tuple, dict[str, str]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: _order(row)[1:]):
        lines[row.oracle, row.line][row.dataset] = cell(row)
    return Table(
        ["test mAP, %", *datasets],
        _sections([(oracle, [line, *(c.get(name, "") for name in datasets)]) for (oracle, line), c in lines.items()]),
    )


def flat(rows: list[Row], columns: list[str]) -> Table:
    """A row for each setting; columns are names of COLUMNS, of figures of test.json, or of settings."""
    figures = {name for row in rows for name in row.figures}
    settings = {name for row in rows for name in row.shown}
    for name in columns:
        if name not in {*COLUMNS, *figures, *settings}:
            known = ", ".join([*COLUMNS, *sorted(figures), *sorted(settings)])
            raise UserError(f"--columns {name}: there is no such column; there are {known}")

    def value(row: Row, name: str) -> str:
        if name == "method":  # with what sets it apart, except by settings that have columns
            return replace(row, apart={name: value for name, value in row.apart.items() if name not in columns}).line
        if name in COLUMNS:
            return COLUMNS[name](row)
        return row.shown[name] if name in row.shown else _or_dash(row.figures.get(name), ".4g")

    return Table(columns, _sections([(row.oracle, [value(row, name) for name in columns]) for row in rows]))


def markdown(table: Table) -> str:
    lines = [_markdown_line(table.header), "|" + "---|" * len(table.header)]
    for title, rows in table.sections.items():
        lines.append(_markdown_line([f"*{title}*", *[""] * (len(table.header) - 1)]))
        lines += [_markdown_line(cells) for cells in rows]
    return "\n".join(lines)


def _markdown_line(cells: list[str]) -> str:
    special = str.maketrans({"|": r"\|", "\\": r"\\", "<": "&lt;", "\n": " ", "\r": " "})
    return f"| {' | '.join(cell.translate(special) for cell in cells)} |"


LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ", "\r": " "}
)


def latex(table: Table, bold: frozenset[tuple[str, int]] = frozenset()) -> str:
    """A tabular with booktabs' rules; bold: (text of a line's first cell, column) of the cells set in bold."""
    width = len(table.header)
    lines = [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule", _latex_line(table.header)]
    for title, rows in table.sections.items():
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{title}}}}} \\"]
        lines += [_latex_line(cells, {column for name, column in bold if name == cells[0]}) for cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_line(cells: list[str], bold: Iterable[int] = ()) -> str:
    texts = [cell.translate(LATEX) for cell in cells]
    return " & ".join(rf"\textbf{{{t}}}" if i in bold else t for i, t in enumerate(texts)) + r" \\"


def best_cells(rows: list[Row], table: Table) -> frozenset[tuple[str, int]]:
    """Of a pivot's data sets, the line with the highest mean test mAP that is no oracle."""
    best = {}
    for row in (row for row in rows if row.test and not row.oracle):
        if row.dataset not in best or mean(row.test.values()) > mean(best[row.dataset].test.values()):
            best[row.dataset] = row
    return frozenset((row.line, table.header.index(dataset)) for dataset, row in best.items())


def to_csv(rows: list[Row]) -> str:
    """A line for each setting: figures, seeds with their mAPs in the same order, and every setting, not rounded."""
    names = list(dict.fromkeys(name for row in rows for name in row.setting))
    file = io.StringIO(newline="")
    fixed = ["mean", "deviation", "n", "seeds", "test_mAPs", "val_mAPs", "chosen_by"]
    writer = csv.DictWriter(file, [*fixed, *names], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = row.test.values()
        writer.writerow(
            {"mean": mean(values), "deviation": deviation(values), "n": len(row.seeds), "chosen_by": row.chosen_by}
            | {"seeds": " ".join(map(str, row.seeds))}
            | {"test_mAPs": " ".join(str(row.test[seed]) for seed in row.seeds if row.test)}
            | {"val_mAPs": " ".join(str(row.val[seed]) for seed in row.seeds if row.val)}
            | row.setting
        )
    return file.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows that to_csv wrote; settings are texts. Raises UserError where it did not."""
    rows = []
    try:
        for line in csv.DictReader(io.StringIO(text)):
            seeds = [int(seed) for seed in line["seeds"].split()]
            test, val = ([float(value) for value in line[name].split()] for name in ("test_mAPs", "val_mAPs"))
            names = list(line)[list(line).index("chosen_by") + 1 :]
            setting = {name: line[name] for name in names if line[name] != ""}
            scores = [dict(zip(seeds, values, strict=True)) if values else {} for values in (test, val)]
            rows.append(Row(setting, setting, *scores, seeds, line["chosen_by"], {}, {}))
            if not {"dataset", "loss"} <= setting.keys():
                raise ValueError
    except (KeyError, ValueError, AttributeError):
        raise UserError("it is no table that report.py wrote with --csv") from None
    add_distinguishing(rows)
    return sorted(rows, key=_order)


# Comparisons


@dataclass
class Paired:
    """The mean of the differences of two rows' test mAP, seed by seed, with its confidence interval."""

    row: Row
    baseline: Row
    n: int
    mean: float
    low: float
    high: float


def paired(row: Row, baseline: Row) -> Paired | None:
    """None where fewer than two seeds are common to both that train, or one has no test score. The interval is
    Student's t."""
    trained = [set(one.test) for one in (row, baseline) if one.trained or not one.test]
    seeds = sorted(set.intersection(*trained)) if trained else []
    if len(seeds) < 2:
        return None

    def at(one: Row, seed: int) -> float:
        return one.test[seed] if one.trained else mean(one.test.values())

    differences = np.array([at(row, seed) - at(baseline, seed) for seed in seeds])
    error = differences.std(ddof=1) / math.sqrt(len(seeds))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(seeds) - 1) * error)
    middle = float(differences.mean())
    return Paired(row, baseline, len(seeds), middle, middle - half, middle + half)


def baselines(rows: list[Row], line: str | None = None) -> dict[str, Row]:
    """{data set: the row that others are compared with}: that of the line, or the first that trains and is no oracle.

    Raises UserError where no row has that line.
    """
    chosen = {}
    for row in rows:
        if row.line == line if line else row.trained and not row.oracle:
            chosen.setdefault(row.dataset, row)
    if line and not chosen:
        raise UserError(f"--baseline {line}: there is no such line; there are {', '.join({r.line: 0 for r in rows})}")
    return chosen


def differences(rows: list[Row], baseline: dict[str, Row]) -> list[Paired]:
    found = [
        paired(row, baseline[row.dataset])
        for row in rows
        if row.dataset in baseline and row is not baseline[row.dataset]
    ]
    return [difference for difference in found if difference]


def differences_table(found: list[Paired]) -> Table:
    lines = [
        [d.row.dataset, d.row.line, d.baseline.line, f"{d.mean:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]", str(d.n)]
        for d in found
    ]
    header = ["data set", "method", "minus", "test mAP", f"{100 * CONFIDENCE:.0f} % interval", "seeds"]
    return Table(header, {"paired over seeds": lines})


def selections(rows: list[Row]) -> list[str]:
    """A warning for each method and data set of which several settings stand side by side: which one validation mAP
    chooses, and that choosing by test mAP would report a number that the test set itself has chosen."""
    cells = defaultdict(list)
    for row in rows:
        cells[row.loss, row.dataset].append(row)
    warnings = []
    for (loss, dataset), members in cells.items():
        if len(members) < 2:
            continue
        text = f"warning: {len(members)} settings of {loss} on {dataset} are compared by test mAP; report the one that "
        if len({row.chosen_by for row in members}) > 1:
            text += "validation mAP chooses, among those that were validated on the same labels"
        elif all(row.val for row in members):
            best = max(members, key=lambda row: mean(row.val.values()))
            apart = ", ".join(f"{name} {value}" for name, value in best.apart.items())
            text += f"validation mAP chooses: {apart} (val {mean(best.val.values()):.2f}, test {spread(best.test)})"
        else:
            text += "validation mAP chooses; these runs do not all state it"
        warnings.append(text)
    return warnings
