"""Write the README's table of the digits from files of runs.

    python report.py results/... --csv docs/digits_runs.csv    # the runs of sweeps/digits_table.sh
    python report.py results/... --csv docs/linear_runs.csv    # those of sweeps/linear_table.sh
    python docs/make_tables.py [--check]

`--check` writes nothing, and fails if the README does not show what these files hold.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of this folder

import pandas as pd

from losses import LOSSES
from reporting import compare, tables
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text, replace_block

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
RUNS = {"end to end": DOCS / "digits_runs.csv", "linear head": DOCS / "linear_runs.csv"}


def table(columns: dict[str, list[tables.Row]]) -> str:
    """Methods down; test mAP across, the choice of validation in bold; and what a method does.

    columns  the rows of a file of runs, one per method, by the column's title
    """
    most = max(len(row.test) for rows in columns.values() for row in rows)  # seeds and draws
    records: dict[str, dict[str, str]] = {}
    for title, rows in columns.items():
        for row in rows:
            first = {tables.SECTION: row.known, f"`-l` (n {most})": row.loss, **dict.fromkeys(columns, ""), " ": ""}
            record = records.setdefault(row.loss, first)
            record[title] = tables.spread(row.test) + ("" if len(row.test) == most else f" (n {len(row.test)})")
            record[" "] = LOSSES[row.loss].summary
    frame = pd.DataFrame([records[loss] for loss in LOSSES if loss in records])
    bold = [(row.loss, title) for title, rows in columns.items() for row in compare.winners(rows)]
    return tables.render(frame, bold=bold)


def read(path: Path) -> list[tables.Row]:
    return tables.from_csv(read_text(path, f"write it with `python report.py RESULTS --csv {path}`"))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the README is not current; write nothing")
    options = parser.parse_args(argv)
    before = README.read_text()
    after = replace_block(before, "table: digits", table({title: read(path) for title, path in RUNS.items()}))
    if options.check and after != before:
        raise UserError(f"{README} does not show what docs/*_runs.csv hold; run `python docs/make_tables.py`")
    if not options.check:
        README.write_text(after)


if __name__ == "__main__":
    run_script(main)
