"""Write the README's table of the digits from files of runs.

    python report.py results/... --csv docs/digits_runs.csv    # the runs of sweeps/digits_table.sh
    python report.py results/... --csv docs/linear_runs.csv    # those of sweeps/linear_table.sh
    python docs/make_tables.py [--check]

`--check` writes nothing, and fails where the README does not show what these files say.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder

from losses import LOSSES
from reporting import tables
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text, replace_block

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
RUNS = {"end to end": DOCS / "digits_runs.csv", "linear head": DOCS / "linear_runs.csv"}


def table(columns: dict[str, list[tables.Row]]) -> str:
    """Methods down; test mAP with its deviation across, the best that is no oracle in bold; and what a method does.

    columns  the rows of a file of runs, one per method, by the column's title
    """
    found = {title: {row.loss: row for row in rows} for title, rows in columns.items()}
    best = {}
    for title, rows in columns.items():
        single = [row for row in rows if not row.oracle]
        best[title] = max(single, key=lambda row: tables.mean(row.test.values()), default=None)
    most = max(len(row.test) for rows in columns.values() for row in rows)  # seeds

    def cell(title: str, loss: str) -> str:
        row = found[title].get(loss)
        if row is None:
            return ""
        text = tables.spread(row.test) + ("" if len(row.test) == most else f" (n {len(row.test)})")
        return f"**{text}**" if row is best[title] else text

    sections: dict[str, list[list[str]]] = {"oracles": [], "single positives": []}
    for loss, method in LOSSES.items():
        if any(loss in rows for rows in found.values()):
            cells = [loss, *(cell(title, loss) for title in columns), method.summary]
            sections["oracles" if method.oracle else "single positives"].append(cells)
    header = [f"`-l` (n {most})", *columns, ""]
    return tables.markdown(tables.Table(header, {title: rows for title, rows in sections.items() if rows}))


def read(path: Path) -> list[tables.Row]:
    return tables.from_csv(read_text(path, f"write it with `python report.py RESULTS --csv {path}`"))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the README is not current; write nothing")
    options = parser.parse_args(argv)
    before = README.read_text()
    after = replace_block(before, "table: digits", table({title: read(path) for title, path in RUNS.items()}))
    if options.check and after != before:
        raise UserError(f"{README} is not what docs/*_runs.csv say; write it anew with `python docs/make_tables.py`")
    if not options.check:
        README.write_text(after)


if __name__ == "__main__":
    run_script(main)
