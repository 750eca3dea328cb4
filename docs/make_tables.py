"""Write the tables of the README and of docs/results_tables.md from files of runs.

    python report.py results/... --csv docs/digits_runs.csv    # the runs of sweeps/digits_table.sh
    TRIALS=16 sweeps/photos_table.sh --csv docs/photos_tuned.csv
    TRIALS=16 sweeps/linear_table.sh --csv docs/linear_tuned.csv
    python docs/make_tables.py [--check]

They fill docs/results_tables.md, and the table of the photographs in the README. `--check` writes nothing, and fails if
a page does not show what these files hold.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of this folder

import pandas as pd

from losses import LOSSES
from reporting import compare, tables
from util.errors import OneLineParser, UserError, run_script
from util.files import read_text, replace_block

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
RUNS = DOCS / "digits_runs.csv"
TUNED = {"photos": DOCS / "photos_tuned.csv", "linear": DOCS / "linear_tuned.csv"}
TEN = ("bce", "an", "wan", "role", "EM", "EM_APL", "hill", "LL_R", "gr", "EM_PL", "CTL")  # oracle and ten methods


def tuned_table(path: Path, methods: Iterable[str], settings: bool) -> str:
    """The table of tune.py: methods down, test mAP of default and tuned settings across, the choice of validation in
    bold."""
    frame = pd.read_csv(path, dtype=str).set_index("method")
    frame = frame.loc[[loss for loss in LOSSES if loss in methods and loss in frame.index]].reset_index()
    known = [tables.ORACLES if LOSSES[loss].oracle else tables.SINGLE for loss in frame["method"]]
    single = frame[[section == tables.SINGLE for section in known]]
    bold = []
    for title in ("default", "tuned"):
        means = single[f"{title} validation"].str.split().str[0].astype(float)
        bold.append((single["method"][means.idxmax()], title))
    frame.insert(0, tables.SECTION, known)
    return tables.render(
        frame[[tables.SECTION, "method", "default", "tuned", *["chosen settings"] * settings]], bold=bold
    )


def table(rows: list[tables.Row]) -> str:
    """Methods down; test mAP, the choice of validation in bold; and what a method does."""
    most = max(len(row.test) for row in rows)  # seeds and draws
    records = {
        row.loss: {
            tables.SECTION: row.known,
            f"`-l` (n {most})": row.loss,
            "end to end": tables.spread(row.test) + ("" if len(row.test) == most else f" (n {len(row.test)})"),
            " ": LOSSES[row.loss].summary,
        }
        for row in rows
    }
    frame = pd.DataFrame([records[loss] for loss in LOSSES if loss in records])
    return tables.render(frame, bold=[(row.loss, "end to end") for row in compare.winners(rows)])


def read(path: Path) -> list[tables.Row]:
    return tables.from_csv(read_text(path, f"write it with `python report.py RESULTS --csv {path}`"))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the README is not current; write nothing")
    options = parser.parse_args(argv)
    tuned = {name: tuned_table(path, LOSSES, settings=True) for name, path in TUNED.items()}
    pages = {
        README: {"photos": tuned_table(TUNED["photos"], TEN, settings=False)},
        DOCS / "results_tables.md": tuned | {"digits": table(read(RUNS))},
    }
    for page, blocks in pages.items():
        before = after = page.read_text()
        for name, content in blocks.items():
            after = replace_block(after, f"table: {name}", content)
        if options.check and after != before:
            raise UserError(f"{page} does not show what docs/*.csv hold; run `python docs/make_tables.py`")
        if not options.check:
            page.write_text(after)


if __name__ == "__main__":
    run_script(main)
