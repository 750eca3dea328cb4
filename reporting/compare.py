"""Comparisons of rows: paired differences, the setting that validation chooses, intervals over test images."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

import metrics
from reporting.runs import read_predictions
from reporting.tables import SECTION, Repeat, Row, by, mean, spread
from util.errors import UserError

CONFIDENCE = 0.95  # of every interval


@dataclass
class Paired:
    """The mean of the differences of two rows' test mAP, repeat by repeat, with its confidence interval."""

    row: Row
    baseline: Row
    n: int
    mean: float
    low: float
    high: float


def paired(row: Row, baseline: Row) -> Paired | None:
    """None if fewer than two repeats are common to both that train, or one has no test score. The interval is
    Student's t."""
    trained = [set(one.test) for one in (row, baseline) if one.trained or not one.test]
    repeats = sorted(set.intersection(*trained)) if trained else []
    if len(repeats) < 2:
        return None

    def at(one: Row, repeat: Repeat) -> float:
        return one.test[repeat] if one.trained else mean(one.test.values())

    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes seconds to import

    differences = np.array([at(row, repeat) - at(baseline, repeat) for repeat in repeats])
    error = differences.std(ddof=1) / math.sqrt(len(repeats))
    half, middle = float(stdtrit(len(repeats) - 1, 0.5 + CONFIDENCE / 2) * error), float(differences.mean())
    return Paired(row, baseline, len(repeats), middle, middle - half, middle + half)


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


def differences(rows: list[Row], baseline: dict[str, Row]) -> tuple[list[Paired], list[str]]:
    """The paired differences from the baselines, and the names of the rows that have no repeats in common with them."""
    found, left_out = [], []
    for row in rows:
        base = baseline.get(row.dataset)
        if base is not None and row is not base:
            difference = paired(row, base)
            found += [difference] if difference else []
            left_out += [] if difference else [f"{row.line} on {row.dataset}"]
    return found, left_out


def differences_table(found: list[Paired]) -> pd.DataFrame:
    interval = f"{100 * CONFIDENCE:.0f} % interval"
    return pd.DataFrame(
        [
            {
                "dataset": d.row.dataset,
                "method": d.row.line,
                "minus": d.baseline.line,
                "test mAP": f"{d.mean:+.2f}",
                interval: f"[{d.low:+.2f}, {d.high:+.2f}]",
                "pairs": str(d.n),
            }
            for d in found
        ]
    )


def selections(rows: list[Row]) -> list[str]:
    """A warning for each method and data set with several settings: the one that validation mAP chooses is to be
    reported, because choosing by test mAP would make the test set choose its own number."""
    warnings = []
    for (loss, dataset), members in by(rows, lambda row: (row.loss, row.dataset)).items():
        if len(members) < 2:
            continue
        text = f"warning: {len(members)} settings of {loss} on {dataset} are compared by test mAP; report the one that "
        if len({row.chosen_by for row in members}) > 1:
            text += "validation mAP chooses among those that were validated on the same labels"
        elif all(row.val for row in members):
            chosen = max(members, key=lambda row: mean(row.val.values()))
            details = ", ".join(f"{name} {value}" for name, value in chosen.distinguishing.items())
            val = mean(chosen.val.values())
            text += f"validation mAP chooses: {details} (val {val:.2f}, test {spread(chosen.test)})"
        else:
            text += "validation mAP chooses; not all of these runs have one"
        warnings.append(text)
    return warnings


def bootstrap(row: Row, resamples: int, seed: int = 0) -> tuple[float, float]:
    """The interval of a row's mean test mAP over resampled test images (Efron 1979): its runs are scored on the same
    resampled images, drawn with replacement."""
    random, scores = np.random.RandomState(seed), []
    predictions = [read_predictions(run.folder)[1:] for run in row.runs]
    for _ in range(resamples):
        chosen = random.randint(len(predictions[0][0]), size=len(predictions[0][0]))
        maps = (metrics.mean_average_precision(probs[chosen], labels[chosen]) for probs, labels in predictions)
        scores.append(mean(maps))
    tail = 50 * (1 - CONFIDENCE)
    return tuple(np.percentile(scores, [tail, 100 - tail]).tolist())


def best(rows: list[Row]) -> tuple[list[Row], pd.DataFrame]:
    """Of each method and data set the setting with the highest mean validation mAP; and a table of these with the
    number of settings that were tried. Rows without validation mAP do not compete."""
    chosen, records = [], []
    for members in by(rows, lambda row: (row.dataset, row.known, row.loss)).values():
        fair = [row for row in members if row.val and row.chosen_by == members[0].chosen_by]
        if fair:
            chosen.append(max(fair, key=lambda row: mean(row.val.values())))
            row = chosen[-1]
            record = {SECTION: row.known, "dataset": row.dataset, "method": row.line, "settings tried": str(len(fair))}
            records.append(record | {"n": row.count, "val": spread(row.val), "test": spread(row.test)})
    return chosen, pd.DataFrame(records)


def winners(rows: list[Row]) -> list[Row]:
    """Of each data set the row that validation mAP chooses among those that are no oracles: tables show it in bold."""
    groups = by((row for row in rows if row.val and row.trained and not row.oracle), lambda row: row.dataset).values()
    return [max(members, key=lambda row: mean(row.val.values())) for members in groups if len(members) > 1]
