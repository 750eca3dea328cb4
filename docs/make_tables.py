"""Write the README's table of the digits from docs/digits_runs.csv.

    python report.py --where dataset=digits --csv docs/digits_runs.csv    # after sweeps/digits_table.sh
    python docs/make_tables.py [--check]

`--check` writes nothing, and fails where the README does not show what the CSV file says.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder

from losses import LOSSES
from reporting import tables
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text, replace_block

README = Path(__file__).resolve().parent.parent / "README.md"
RUNS = Path(__file__).resolve().parent / "digits_runs.csv"


def table(rows: list[tables.Row]) -> str:
    """Method, what it does, test mAP with deviation and n; the best that is no oracle in bold."""
    best = max((row for row in rows if not row.oracle), key=lambda row: tables.mean(row.test.values()), default=None)
    sections: dict[str, list[list[str]]] = {}
    for row in rows:
        cells = [row.line, LOSSES[row.loss].summary if row.loss in LOSSES else "", tables.spread(row.test)]
        cells[2] += f" (n {len(row.test)})"
        cells = [f"**{cell}**" if row is best else cell for cell in cells[::2]] + cells[1:2]
        sections.setdefault("oracles" if row.oracle else "single positives", []).append([cells[0], cells[2], cells[1]])
    ordered = {title: sections[title] for title in ("oracles", "single positives") if title in sections}
    return tables.markdown(tables.Table(["`-l`", "", "test mAP, %"], ordered))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the README is not current; write nothing")
    options = parser.parse_args(argv)
    text = read_text(RUNS, "write it with `python report.py --where dataset=digits --csv docs/digits_runs.csv`")
    before = README.read_text()
    after = replace_block(before, "table: digits", table(tables.from_csv(text)))
    if options.check and after != before:
        raise UserError(f"{README} is not what {RUNS} says; write it anew with `python docs/make_tables.py`")
    if not options.check:
        README.write_text(after)


if __name__ == "__main__":
    run_script(main)
