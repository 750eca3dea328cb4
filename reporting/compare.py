"""Comparisons of rows: paired differences, the setting that validation chooses, intervals over test images."""

from typing import NamedTuple

import numpy as np
import pandas as pd

import metrics
from reporting.tables import SECTION, Row, arrange, by, check_names, spread

CONFIDENCE = 0.95  # of every interval


class Paired(NamedTuple):
    """The mean of the differences of two rows' test mAP, repeat by repeat, with its confidence interval."""

    n: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired(row: Row, baseline: Row) -> Paired | None:
    """None if fewer than two repeats are common to both. The one result of a teacher alone is compared with every
    repeat. The interval is Student's t."""
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes seconds to import

    one, other = (one.test if one.trained else one.test.mean() for one in (row, baseline))
    differences = pd.Series(one - other, dtype=float).dropna()
    n, mean = len(differences), differences.mean()
    half = stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * differences.sem()
    return Paired(n, mean, mean - half, mean + half) if n > 1 else None


def baselines(rows: list[Row], name: str | None) -> dict[str, Row]:
    """{data set: the row that others are compared with}: the row whose line has this name, else the first row of the
    method; without a name the first row that trains and is no oracle."""
    fair = [row for row in rows if row.trained and not row.oracle]
    if name:
        check_names("--baseline", [name], dict.fromkeys(text for row in rows for text in (row.line, row.loss)))
        fair = sorted((row for row in rows if name in (row.line, row.loss)), key=lambda row: row.line != name)
    return {dataset: members[0] for dataset, members in by(fair, lambda row: row.dataset).items()}


def differences(rows: list[Row], baseline: dict[str, Row]) -> tuple[pd.DataFrame, list[str]]:
    """A table of the paired differences from the baselines, and the rows without two repeats in common with them."""
    records, left_out = [], []
    for row in rows:
        base = baseline.get(row.dataset, row)
        if row is base or row.test.empty or base.test.empty:
            continue
        if found := paired(row, base):
            mean, interval = str(found).split(" ", 1)
            names = {SECTION: row.known, "dataset": row.dataset, "loss": row.line, "minus": base.line}
            figures = {"test mAP": mean, f"{100 * CONFIDENCE:.0f} % interval": interval, "pairs": str(found.n)}
            records.append(names | figures)
        else:
            left_out.append(f"{row.line} on {row.dataset}")
    return pd.DataFrame(records), left_out


def selections(rows: list[Row]) -> list[str]:
    """A warning for each method and data set with several settings: the one that validation mAP chooses is to be
    reported, because choosing by test mAP would make the test set choose its own number."""
    warnings, scored = [], [row for row in rows if len(row.test)]
    for (loss, dataset, _), members in by(scored, lambda row: (row.loss, row.dataset, row.known)).items():
        best = ranked(members)[0]
        choice = f": {best.line}, val {best.val.mean():.2f}, test {spread(best.test)}"
        if any(row.val.empty or row.chosen_by != best.chosen_by for row in members):
            choice = "; not all of them were validated on the same labels"
        if len(members) > 1:
            text = "settings of {} on {} are compared by test mAP; report the one that validation mAP chooses"
            warnings.append(f"warning: {len(members)} {text.format(loss, dataset)}{choice}")
    return warnings


def bootstrap(row: Row, resamples: int) -> tuple[float, float]:
    """The interval of a row's mean test mAP over resampled test images (Efron 1979): its runs are scored on the same
    resampled images, drawn with replacement."""
    random, scores = np.random.RandomState(0), []
    predictions = [run.predictions()[1:] for run in row.runs]
    images = len(predictions[0][0])
    for _ in range(resamples):
        chosen = random.randint(images, size=images)
        scores.append(np.mean([metrics.mean_average_precision(p[chosen], true[chosen]) for p, true in predictions]))
    tail = 50 * (1 - CONFIDENCE)
    return tuple(np.percentile(scores, [tail, 100 - tail]).tolist())


def ranked(rows: list[Row]) -> list[Row]:
    """The rows with the best validation mAP first, and those without one last."""
    return sorted(rows, key=lambda row: -row.val.mean() if len(row.val) else np.inf)


def unequal(rows: list[Row]) -> list[str]:
    """A note for each data set whose trained rows have different draws and seeds: which have which, and the conditions
    that select equal ones."""
    notes = []
    for dataset, members in by((row for row in rows if row.trained), lambda row: row.dataset).items():
        groups = by(members, lambda row: row.repeats)
        repeats = [{run.repeat for run in some[0].runs} for some in groups.values()]
        common = set.intersection(*repeats)
        draws, seeds = (sorted({repeat[place] for repeat in common}) for place in (0, 1))
        conditions = [f"draw={draw}" for draw in draws]
        if any(draw in draws for draw, _ in set.union(*repeats) - common):
            conditions += [f"seed={seed}" for seed in seeds]
        advice = f"--where {' '.join(conditions)} compares equal ones" if common else "none is common to all"
        methods = {text: ", ".join(dict.fromkeys(row.loss for row in some)) for text, some in groups.items()}
        which = "; ".join(f"{text} of {names}" for text, names in methods.items())
        if len(groups) > 1:
            notes.append(f"methods on {dataset} have different runs (draw:seed): {which}; {advice}")
    return notes


def best(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Of each method and data set the setting with the highest mean validation mAP, named by the method alone, and a
    note for each choice. Rows without validation mAP do not compete."""
    chosen, notes = [], []
    for members in by(rows, lambda row: (row.dataset, row.known, row.loss)).values():
        fair = ranked([row for row in members if len(row.val) and row.chosen_by == members[0].chosen_by])
        chosen += fair[:1]
        if len(fair) > 1:
            choice = f"{len(fair)} settings on {fair[0].dataset}: {fair[0].line}"
            notes.append(f"chosen by validation mAP among {choice}")
    return arrange(chosen), notes


def winners(rows: list[Row]) -> list[Row]:
    """Of each data set and what was known the row that validation mAP chooses, among rows that are no oracles: tables
    show it in bold."""
    fair = [row for row in rows if len(row.val) and row.trained and not row.oracle]
    groups = by(fair, lambda row: (row.dataset, row.known)).values()
    chosen = [ranked(members)[0] for members in groups if len(members) > 1]
    return [row for row in chosen if len(row.test)]
