"""Finished runs as tables: methods down, data sets across, mean and deviation over seeds and draws.

    python report.py [RESULTS ...] [--where dataset=pascal threshold=0.3] [--columns loss val test] [--latex]

RESULTS are folders of runs, or single runs. Runs are averaged only if they differ in nothing but the seed and the draw
of the known labels. If one cell of the table would hold runs that differ in more, each setting has its own row, whose
name states the difference. Bold marks the row that validation mAP chooses.
"""

import argparse
import os
import shlex
import sys
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from reporting import compare, tables
from reporting.runs import read_runs
from util.errors import OneLineParser, UserError, run_script
from util.files import check_outputs, write_text

WATCH_SECONDS = 10.0


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(arguments)
    if options.watch:
        return watch(options)
    runs, left_out = read_runs(options.results, options.where)
    left_out += [(run.folder.name, f"running or stopped, {run.progress()}") for run in runs if not run.result]
    rows, notes = tables.group(runs), []
    if rows:
        write_table(rows, options)
    if options.best:
        rows, notes = compare.best(rows)
    if rows:
        notes += compare.unequal(rows) + compare.selections(rows)
        baseline = compare.baselines(rows, options.baseline)
        print_tables(rows, baseline, options)
    reasons = ", ".join(f"{name} ({reason})" for name, reason in left_out)
    for line in [*notes, *([f"not in the table: {reasons}"] if reasons else [])]:
        print(f"% {line}" if options.latex else f"\n{line}")
    if not rows:
        what = " that meets --where" if options.where else ""
        what += " with a validation mAP, which --best needs," if options.best else ""
        raise UserError(f"no finished run{what} in {', '.join(map(str, options.results))}")
    if options.figures:
        figures = import_module("reporting.figures")  # imports matplotlib, which tables do not need
        print(f"figures: {', '.join(map(str, figures.write(rows, options.figures)))}", file=sys.stderr)
    if options.html:
        page, command = import_module("reporting.page"), shlex.join(["report.py", *arguments])
        write_text(options.html, page.make(rows, baseline, notes, left_out, options.results, command))
        print(f"page: {options.html}", file=sys.stderr if options.latex else sys.stdout)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("results", nargs="*", type=Path, default=[Path("results")], help="folders of runs, or runs (default: results)")
    help = "only runs with these settings; several values of one name are alternatives"
    add("--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=help)
    help = f"one row per setting with these columns: {', '.join(tables.COLUMNS)}, a setting, a figure of test.json"
    add("--columns", nargs="+", metavar="NAME", help=help)
    add("--per-class", action="store_true", help="test AP of every class, rows across")
    add("--best", action="store_true", help="only the setting of each method that validation chooses")
    add("--bootstrap", type=int, metavar="N", help="intervals of the test mAP over N resamplings of the images")
    add("--latex", action="store_true", help="print LaTeX (booktabs); with differences only if --baseline is given")
    add("--csv", type=Path, help="file for all rows (default: RESULTS/summary.csv, for one RESULTS)")
    add("--html", type=Path, metavar="FILE", help="write a page with tables, charts, trials of tune.py and a gallery")
    add("--figures", metavar="DIR", help="write figures for a paper, as PDF and PNG")
    help = "line or method that others are compared with (default: the first that trains and is no oracle)"
    add("--baseline", metavar="LINE", help=help)
    add("--watch", action="store_true", help="show the unfinished runs and how far they are")
    add("--overwrite", action="store_true", help="replace files of other origin at --csv and --html")
    options = parser.parse_intermixed_args(argv)
    if options.bootstrap is not None and options.bootstrap < 1:
        parser.error(f"--bootstrap must be at least 1, not {options.bootstrap}")
    ours = (b"mean,deviation,n,", b"class,", b"dataset,class,", b"<!doctype html>")
    check_outputs({"--csv": options.csv, "--html": options.html}, options.overwrite, ours)
    return options


def print_tables(rows: list[tables.Row], baseline: dict[str, tables.Row], options: argparse.Namespace) -> None:
    blank, comment, bold = ("", "% ", []) if options.latex else ("\n", "", [])
    if options.per_class:
        frame = tables.per_class(rows)
    elif options.columns:
        frame = tables.flat(rows, options.columns)
    else:
        frame = tables.pivot(rows, (lambda row: tables.spread(row.test)) if options.latex else tables.cell)
        bold = [(row.known, row.line, row.dataset) for row in compare.winners(rows)]
    print(tables.render(frame, options.latex, bold))
    about = f"mean ± standard deviation over seeds and draws, n {', '.join(sorted({row.count for row in rows}))}"
    if chosen_by := dict.fromkeys(row.chosen_by for row in rows if row.trained):
        about += f"; epoch chosen by {'; '.join(chosen_by)}"
    print(f"{blank}{comment}{about}{'; bold: chosen by validation mAP' if bold else ''}")
    if options.per_class:
        return
    found, left_out = compare.differences(rows, baseline)
    if len(found) and (options.baseline or not options.latex):
        print(f"\n{tables.render(found, options.latex)}")
    if left_out:
        print(f"\n{comment}left out, without two seeds or draws in common with the baseline: {', '.join(left_out)}")
    for row in (row for row in rows if options.bootstrap and len(row.test)):
        low, high = compare.bootstrap(row, options.bootstrap)
        score = f"{tables.spread(row.test)}, over test images [{low:.2f}, {high:.2f}]"
        print(f"{comment}{row.dataset}, {row.line}: {score}")


def write_table(rows: list[tables.Row], options: argparse.Namespace) -> None:
    place = options.results[0]
    if options.csv:
        text = tables.per_class(rows).to_csv(index=False) if options.per_class else tables.to_csv(rows)
        write_text(options.csv, text)
    elif len(options.results) == 1 and not (place / "config.json").exists() and os.access(place, os.W_OK):
        write_text(place / "summary.csv", tables.to_csv(rows))


def watch(options: argparse.Namespace) -> None:
    """The unfinished runs; on a terminal again and again, until there is none."""
    while True:
        runs, left_out = read_runs(options.results, options.where)
        unfinished = [run for run in runs if not run.result]
        if sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        finished = len(runs) - len(unfinished)
        print(f"{finished} finished, {len(unfinished)} unfinished, {len(left_out)} unreadable runs")
        for run in unfinished:
            written = max(path.stat().st_mtime for path in run.folder.iterdir())
            age = timedelta(seconds=max(0, round(time.time() - written)))
            print(f"  {run.folder.name}: {run.progress()}, last written {age} ago")
        if not unfinished or not sys.stdout.isatty():
            return
        time.sleep(WATCH_SECONDS)


if __name__ == "__main__":
    run_script(main)
