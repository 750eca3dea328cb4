"""Gather finished runs into the paper's table: methods down, data sets across, mean and deviation over seeds.

    python report.py [results/] [--csv results/summary.csv]

Runs are averaged only if they differ in nothing but the seed. Where one cell of the table would hold runs that differ
in more, each setting has a row of its own that names what differs.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from datasets import DATASETS
from losses import LOSSES
from util.errors import OneLineParser, UserError, run_script
from util.files import atomic, read_json


def read_runs(results: Path) -> tuple[list[tuple[dict, dict]], list[str]]:
    """(identity, result) of each finished run, and the names of those that are not, each with the reason."""
    finished, others = [], []
    for path in sorted(results.glob("*/config.json")):
        if not (path.parent / "test.json").exists():
            others.append(f"{path.parent.name} (unfinished: --resume goes on)")
            continue
        try:
            identity, result = read_json(path)["identity"], read_json(path.parent / "test.json")
            if "test_mAP" in result:
                finished.append((identity, result))
            else:
                others.append(f"{path.parent.name} (no test score)")
        except (UserError, KeyError, TypeError):
            others.append(f"{path.parent.name} (damaged: --overwrite runs it again)")
    return finished, others


def group(runs: list[tuple[dict, dict]]) -> list[dict]:
    """A row for each setting: its identity without the seed, seeds, and mean, deviation and number of test mAPs."""
    by_setting = defaultdict(list)
    for identity, result in runs:
        setting = {name: value for name, value in identity.items() if name != "seed"}
        by_setting[tuple(sorted((name, str(value)) for name, value in setting.items()))].append((setting, result))
    rows = []
    for members in by_setting.values():
        maps = np.array([result["test_mAP"] for _, result in members])
        rows.append(
            {
                "setting": members[0][0],
                "seeds": sorted(result["seed"] for _, result in members),
                "mean": float(maps.mean()),
                "deviation": float(maps.std(ddof=1)) if len(maps) > 1 else float("nan"),
                "n": len(maps),
                "chosen_by": members[0][1]["chosen_by"],
            }
        )
    return rows


def name_rows(rows: list[dict]) -> None:
    """Give each row the name of its line: the loss, and what sets it apart where its cell holds several settings."""
    for row in rows:
        same_cell = [
            other["setting"]
            for other in rows
            if all(other["setting"][name] == row["setting"][name] for name in ("dataset", "loss"))
        ]
        names = {name for setting in same_cell for name in setting}
        differing = sorted(name for name in names if len({str(setting.get(name)) for setting in same_cell}) > 1)
        apart = ", ".join(f"{name} {row['setting'].get(name, '-')}" for name in differing)
        row["line"] = row["setting"]["loss"] + (f" ({apart})" if apart else "")


def table(rows: list[dict]) -> str:
    """A Markdown table: mean and deviation, n, and the difference from the published number where there is one."""
    present = {row["setting"]["dataset"] for row in rows}
    datasets = [name for name in DATASETS if name in present] + sorted(present - set(DATASETS))
    cells = {(row["line"], row["setting"]["dataset"]): row for row in rows}
    order = {name: place for place, name in enumerate(LOSSES)}
    names = sorted({row["line"] for row in rows}, key=lambda line: (order.get(line.split(" (")[0], 99), line))
    oracles = [name for name, method in LOSSES.items() if method.oracle]
    lines = [f"| test mAP, % | {' | '.join(datasets)} |", "|---|" + "---|" * len(datasets)]
    for heading, oracle in (("oracles", True), ("single positives", False)):
        members = [name for name in names if (name.split(" (")[0] in oracles) == oracle]
        if members:
            lines.append(f"| *{heading}* |" + " |" * len(datasets))
        for name in members:
            shown = [_cell(cells.get((name, dataset))) for dataset in datasets]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    deviation = "" if row["n"] == 1 else f" ± {row['deviation']:.2f}"
    setting = row["setting"]
    method = LOSSES.get(setting["loss"]) if setting["model"] == "resnet50" else None
    known = method.published.get(setting["dataset"]) if method else None
    beside = "" if known is None else f"; published {known:.2f}, {row['mean'] - known:+.2f}"
    return f"{row['mean']:.2f}{deviation} (n {row['n']}{beside})"


def write_csv(path: Path, rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["setting"]))
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, ["mean", "deviation", "n", "seeds", "chosen_by", *names])
        writer.writeheader()
        for row in rows:
            figures = {name: row[name] for name in ("mean", "deviation", "n", "chosen_by")}
            writer.writerow(figures | {"seeds": " ".join(map(str, row["seeds"]))} | row["setting"])


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("results", nargs="?", default="results", help="folder of runs (default: %(default)s)")
    parser.add_argument("--csv", help="file for the same rows (default: RESULTS/summary.csv)")
    options = parser.parse_args(argv)
    if not Path(options.results).is_dir():
        raise UserError(f"{options.results} is no folder; name the --results-dir of the runs")
    finished, others = read_runs(Path(options.results))
    rows = group(finished)
    if rows:
        name_rows(rows)
        print(table(rows))
        print(
            "\nmean ± standard deviation over seeds; epoch chosen by "
            + "; ".join(sorted({r["chosen_by"] for r in rows}))
        )
        write_csv(Path(options.csv or Path(options.results) / "summary.csv"), rows)
    else:
        print(f"no finished run in {options.results}", file=sys.stderr)
    if others:
        print("not in the table: " + ", ".join(others))


if __name__ == "__main__":
    run_script(main)
