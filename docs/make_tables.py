"""Write the tables of the README and of docs/results_tables.md from files of runs.

    python report.py results/... --csv docs/digits_runs.csv    # the runs of sweeps/digits_table.sh
    TRIALS=16 sweeps/photos_table.sh --csv docs/photos_tuned.csv
    python tune.py -d photos -l EM_PL EM_PL_ASL CTL --trials 64 --draws 3 --csv docs/photos_tuned_64.csv
    TRIALS=16 sweeps/linear_table.sh --csv docs/linear_tuned.csv
    python tune.py -d digits -l EM_PL CTL --csv docs/digits_tuned.csv
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
from reporting.tables import ORACLES, SECTION, SINGLE, render
from util.errors import OneLineParser, UserError, run_script
from util.files import replace_block

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
COLUMNS = ("default", "tuned", "chosen settings")
TEN = ("bce", "an", "wan", "role", "EM", "EM_APL", "hill", "LL_R", "gr", "EM_PL", "CTL")  # oracle and ten methods


def tuned_table(name: str, columns: Iterable[str] = COLUMNS, methods: Iterable[str] = LOSSES) -> str:
    """The table of tune.py: methods down, test mAP of default and tuned settings across."""
    frame = pd.read_csv(DOCS / f"{name}.csv", dtype=str).set_index("method")
    means = {title: frame[f"{title} validation"].str.split().str[0].astype(float) for title in ("default", "tuned")}
    return table(frame[list(columns)], pd.DataFrame(means), methods)


def runs_table(name: str) -> str:
    """The table of report.py's runs: methods down; test mAP, and what a method does."""
    frame = pd.read_csv(DOCS / f"{name}.csv").set_index("loss")
    most = frame["n"].max()  # seeds and draws
    deviation = frame["deviation"].map(" ± {:.2f}".format).where(frame["n"] > 1, "")
    few = frame["n"].map(" (n {})".format).where(frame["n"] < most, "")
    shown = pd.DataFrame({"end to end": frame["mean"].map("{:.2f}".format) + deviation + few})
    shown[" "] = [LOSSES[loss].summary for loss in frame.index]
    means = frame["val_mAPs"].map(lambda text: pd.Series(str(text).split(), dtype=float).mean())
    trained = frame.index.map(lambda loss: LOSSES[loss].loss is not None)
    return table(shown.rename_axis(f"`-l` (n {most})"), means[trained].to_frame("end to end"))


def table(frame: pd.DataFrame, validation: pd.DataFrame, methods: Iterable[str] = LOSSES) -> str:
    """The methods in the order of their list; bold is the best single-positive one by validation mAP."""
    frame = frame.loc[[loss for loss in LOSSES if loss in methods and loss in frame.index]]
    known = [ORACLES if LOSSES[loss].oracle else SINGLE for loss in frame.index]
    fair = validation.reindex([loss for loss, section in zip(frame.index, known, strict=True) if section == SINGLE])
    bold = [(SINGLE, fair[column].idxmax(), column) for column in fair]
    frame = frame.reset_index()
    frame.insert(0, SECTION, known)
    return render(frame, bold=bold)


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the README is not current; write nothing")
    options = parser.parse_args(argv)
    blocks = {
        "photos": tuned_table("photos_tuned"),
        "photos 64": tuned_table("photos_tuned_64"),
        "linear": tuned_table("linear_tuned"),
        "digits tuned": tuned_table("digits_tuned"),
        "digits": runs_table("digits_runs"),
    }
    pages = {README: {"photos": tuned_table("photos_tuned", COLUMNS[:2], TEN)}, DOCS / "results_tables.md": blocks}
    for page, contents in pages.items():
        before = after = page.read_text()
        for name, content in contents.items():
            after = replace_block(after, f"table: {name}", content)
        if not options.check:
            page.write_text(after)
        elif after != before:
            raise UserError(f"{page} does not show what docs/*.csv hold; run `python docs/make_tables.py`")


if __name__ == "__main__":
    run_script(main)
