"""Finished runs as tables: methods down, data sets across, mean and deviation over seeds.

    python report.py [RESULTS ...] [--where dataset=pascal threshold=0.3] [--columns method val test] [--latex]

RESULTS are folders of runs, or single runs. Runs are averaged only if they differ in nothing but the seed. Where one
cell of the table would hold runs that differ in more, each setting has a row of its own that names what differs.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from reporting import page, tables
from reporting.runs import Run, Runs, read_history, read_runs, seconds_since_written
from util.errors import OneLineParser, UserError, describe_error, run_script
from util.files import write_text

WATCH_SECONDS = 10.0


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(arguments)
    if options.watch:
        return watch(options)
    runs = read_runs(options.results)
    chosen, unfinished = meeting(runs, options.where)
    rows = tables.group(chosen)
    if rows:
        baseline = tables.baselines(rows, options.baseline)
        print_tables(rows, baseline, options)
        write_table(rows, options)
    for run in unfinished:
        runs.unread.append((run.folder.name, f"unfinished, {progress(run)}: --resume goes on"))
    if runs.unread:
        print("not in the table: " + ", ".join(f"{name} ({reason})" for name, reason in runs.unread))
    if options.html and rows:
        write_text(options.html, page.make(runs, chosen, rows, baseline, shlex.join(["report.py", *arguments])))
        print(f"page: {options.html}", file=sys.stderr if options.latex else sys.stdout)
    if not rows:
        what = " that meets --where" if runs.finished else ""
        raise UserError(f"no finished run{what} in {', '.join(map(str, options.results))}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="folders of runs, or runs (default: results)")
    about = "only runs with these settings; several values of one name are alternatives"
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=about)
    about = f"one row per setting with these columns: {', '.join(tables.COLUMNS)}, a setting, a figure of test.json"
    parser.add_argument("--columns", nargs="+", metavar="NAME", help=about)
    parser.add_argument("--latex", action="store_true", help="print LaTeX (booktabs) instead of Markdown")
    parser.add_argument("--csv", type=Path, help="file for all rows (default: RESULTS/summary.csv, for one RESULTS)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables, charts and a gallery")
    about = "line that others are compared with, seed by seed (default: the first that trains and is no oracle)"
    parser.add_argument("--baseline", metavar="LINE", help=about)
    parser.add_argument("--watch", action="store_true", help="show the unfinished runs and how far they are")
    options = parser.parse_args(argv)
    options.results = options.results or [Path("results")]
    return options


def meeting(runs: Runs, conditions: list[str]) -> tuple[list[Run], list[Run]]:
    """The finished and the unfinished runs that meet the conditions, which may name a setting of either."""
    every = tables.where(runs.finished + runs.unfinished, conditions)
    return [run for run in every if run.result is not None], [run for run in every if run.result is None]


def print_tables(rows: list[tables.Row], baseline: dict[str, tables.Row], options: argparse.Namespace) -> None:
    chosen_by = "; ".join(dict.fromkeys(row.chosen_by for row in rows if row.trained))
    about = "mean ± standard deviation over seeds" + (f"; epoch chosen by {chosen_by}" if chosen_by else "")
    found = tables.differences(rows, baseline)
    if options.latex:
        table = tables.flat(rows, options.columns) if options.columns else tables.pivot(rows, _brief)
        print(tables.latex(table, frozenset() if options.columns else tables.best_cells(rows, table)))
        print(f"% {about}; n: {', '.join(sorted({str(len(row.seeds)) for row in rows}))}")
        if found:
            print(tables.latex(tables.differences_table(found)))
    else:
        table = tables.flat(rows, options.columns) if options.columns else tables.pivot(rows)
        print(f"{tables.markdown(table)}\n\n{about}")
        if found:
            print(f"\n{tables.markdown(tables.differences_table(found))}\n")
    for warning in tables.selections(rows):
        print(f"% {warning}" if options.latex else warning)


def _brief(row: tables.Row) -> str:
    return tables.spread(row.test)


def write_table(rows: list[tables.Row], options: argparse.Namespace) -> None:
    if options.csv:
        write_text(options.csv, tables.to_csv(rows))
    elif len(options.results) == 1 and not (options.results[0] / "config.json").exists():
        try:
            write_text(options.results[0] / "summary.csv", tables.to_csv(rows))
        except (OSError, UserError) as error:  # somebody else's results, which may only be read
            print(
                f"note: summary.csv is not written ({describe_error(error)}); --csv names another file", file=sys.stderr
            )


def watch(options: argparse.Namespace) -> None:
    """The unfinished runs; on a terminal again and again, until there is none."""
    while True:
        runs = read_runs(options.results)
        finished, unfinished = meeting(runs, options.where)
        if sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(f"{len(finished)} finished, {len(unfinished)} unfinished, {len(runs.unread)} unreadable runs")
        for run in unfinished:
            print(f"  {run.folder.name}: {progress(run)}, last written {ago(seconds_since_written(run.folder))}")
        if not unfinished or not sys.stdout.isatty():
            return
        time.sleep(WATCH_SECONDS)


def progress(run: Run) -> str:
    """How far an unfinished run is."""
    total = run.config.get("epochs", "?")
    try:
        history = read_history(run.folder)
    except UserError:
        return "metrics.jsonl is damaged"
    validated = [row.val_mAP for row in history if row.val_mAP is not None]
    best = f", best val mAP {max(validated):.2f}" if validated else ""
    return f"{len(history)} of {total} epochs{best}"


def ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


if __name__ == "__main__":
    run_script(main)
