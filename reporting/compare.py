"""Comparisons of rows: paired differences, the setting that validation chooses, intervals over test images."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

import metrics
from reporting.tables import SECTION, Row, arrange, by, spread
from util.errors import UserError

CONFIDENCE = 0.95  # of every interval


@dataclass
class Paired:
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
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return None
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * differences.sem())
    return Paired(n, mean, mean - half, mean + half)


def baselines(rows: list[Row], line: str | None = None) -> dict[str, Row]:
    """{data set: the row that others are compared with}: the row of that line, or of that method the one with its
    defaults; without a line the first that trains and is no oracle. Raises UserError if there is no such row."""
    chosen = {}
    for exact in (True, False):
        for row in rows:
            fits = (row.line if exact else row.loss) == line if line else row.trained and not row.oracle
            if fits:
                chosen.setdefault(row.dataset, row)
    if line and not chosen:
        known = ", ".join(dict.fromkeys(row.line for row in rows))
        raise UserError(f"--baseline {line}: there is no such line; there are {known}")
    return chosen


def differences(rows: list[Row], baseline: dict[str, Row]) -> tuple[pd.DataFrame, list[str]]:
    """A table of the paired differences from the baselines, and the rows without two repeats in common with them."""
    records, left_out = [], []
    for row in rows:
        base = baseline.get(row.dataset, row)
        if row is base or row.test.empty or base.test.empty:
            continue
        if found := paired(row, base):
            names = {SECTION: row.known, "dataset": row.dataset, "loss": row.line, "minus": base.line}
            interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
            figures = {"test mAP": f"{found.mean:+.2f}", f"{100 * CONFIDENCE:.0f} % interval": interval}
            records.append(names | figures | {"pairs": str(found.n)})
        else:
            left_out.append(f"{row.line} on {row.dataset}")
    return pd.DataFrame(records), left_out


def selections(rows: list[Row]) -> list[str]:
    """A warning for each method and data set with several settings: the one that validation mAP chooses is to be
    reported, because choosing by test mAP would make the test set choose its own number."""
    warnings, scored = [], [row for row in rows if len(row.test)]
    for (loss, dataset, _), members in by(scored, lambda row: (row.loss, row.dataset, row.known)).items():
        if len(members) < 2:
            continue
        text = f"warning: {len(members)} settings of {loss} on {dataset} are compared by test mAP; report the one that "
        if len({row.chosen_by for row in members}) > 1 or any(row.val.empty for row in members):
            text += "validation mAP chooses; not all of them were validated on the same labels"
        else:
            row = ranked(members)[0]
            text += f"validation mAP chooses: {row.line}, val {row.val.mean():.2f}, test {spread(row.test)}"
        warnings.append(text)
    return warnings


def bootstrap(row: Row, resamples: int, seed: int = 0) -> tuple[float, float]:
    """The interval of a row's mean test mAP over resampled test images (Efron 1979): its runs are scored on the same
    resampled images, drawn with replacement."""
    random, scores = np.random.RandomState(seed), []
    predictions = [run.predictions()[1:] for run in row.runs]
    for _ in range(resamples):
        chosen = random.randint(len(predictions[0][0]), size=len(predictions[0][0]))
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
        groups = by(members, lambda row: tuple(run.repeat for run in row.runs))
        if len(groups) < 2:
            continue
        which = []
        for repeats, some in groups.items():
            methods = ", ".join(dict.fromkeys(row.loss for row in some))
            which.append(f"{' '.join(f'{draw}:{seed}' for draw, seed in repeats)} of {methods}")
        common = set.intersection(*map(set, groups))
        draws, seeds = ({repeat[place] for repeat in common} for place in (0, 1))
        conditions = [f"draw={draw}" for draw in sorted(draws)]
        if any(repeat[0] in draws for repeats in groups for repeat in set(repeats) - common):
            conditions += [f"seed={seed}" for seed in sorted(seeds)]
        advice = f"--where {' '.join(conditions)} compares equal ones" if common else "none is common to all"
        notes.append(f"methods on {dataset} have different runs (draw:seed): {'; '.join(which)}; {advice}")
    return notes


def best(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Of each method and data set the setting with the highest mean validation mAP, named by the method alone, and a
    note for each choice. Rows without validation mAP do not compete."""
    chosen, notes = [], []
    for members in by(rows, lambda row: (row.dataset, row.known, row.loss)).values():
        fair = [row for row in members if len(row.val) and row.chosen_by == members[0].chosen_by]
        if fair:
            chosen.append(row := ranked(fair)[0])
            if len(fair) > 1:
                notes.append(f"chosen by validation mAP among {len(fair)} settings on {row.dataset}: {row.line}")
    if not chosen:
        raise UserError("--best: none of these runs has a validation mAP")
    return arrange(chosen), notes


def winners(rows: list[Row]) -> list[Row]:
    """Of each data set and what was known the row that validation mAP chooses, among rows that are no oracles: tables
    show it in bold."""
    fair = [row for row in rows if len(row.val) and row.trained and not row.oracle]
    groups = by(fair, lambda row: (row.dataset, row.known)).values()
    chosen = [ranked(members)[0] for members in groups if len(members) > 1]
    return [row for row in chosen if len(row.test)]
