"""Write what the pages take from the methods' records and from files of runs.

    python docs/make_pages.py [--check]

docs/methods.md describes the records in `losses/`. docs/results_tables.md and a table in the README show docs/*.csv,
which are written by

    python report.py results/... --csv docs/digits_runs.csv    # the runs of sweeps/digits_table.sh
    TRIALS=16 sweeps/photos_table.sh --csv docs/photos_tuned.csv
    python tune.py -d photos -l EM_PL EM_PL_ASL CTL --trials 64 --draws 3 --csv docs/photos_tuned_64.csv
    TRIALS=16 sweeps/linear_table.sh --csv docs/linear_tuned.csv
    python tune.py -d digits -l EM_PL CTL --csv docs/digits_tuned.csv

`--check` writes nothing, and fails if a page is not current.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of this folder

import pandas as pd

from datasets import DATASETS
from losses import LOSSES, Method
from reporting.tables import ORACLES, SECTION, SINGLE, render
from util.errors import OneLineParser, UserError, run_script
from util.settings import Setting, flag

DOCS = Path(__file__).resolve().parent
COLUMNS = ("default", "tuned", "chosen settings")
TEN = ("bce", "an", "wan", "role", "EM", "EM_APL", "hill", "LL_R", "gr", "EM_PL", "CTL")  # oracle and ten methods

READS = {  # what a loss may read, in words
    "observed": "observed labels",
    "true": "all true labels",
    "pseudo": "pseudo-labels",
    "index": "its own state per training image",
}


def described(settings: dict[str, Setting]) -> str:
    """For each setting the default and the values for single data sets."""
    texts = []
    for name, setting in settings.items():
        values = [str(setting.default), *(f"{dataset} {value}" for dataset, value in setting.by_dataset.items())]
        texts.append(f"`{flag(name)}` {', '.join(values)}")
    return "; ".join(texts)


def recipe(method: Method) -> str:
    """The common settings that the method changes, as `--lr 0.001` or `--lr 0.001` (pascal, coco)."""
    texts = []
    for name, by_dataset in method.recipe.items():
        unset = [f"not {dataset}" for dataset, own in by_dataset.items() if own is None]
        for value in dict.fromkeys(own for own in by_dataset.values() if own is not None):
            names = [dataset for dataset, own in by_dataset.items() if own == value and dataset != "*"] or unset
            shown = " ".join(f'"{part}"' for part in value) if isinstance(value, tuple) else value
            texts.append(f"`{flag(name)} {shown}`" + (f" ({', '.join(names)})" if names else ""))
    return ", ".join(texts)


def searched(method: Method) -> str:
    """What tune.py chooses from, for each setting."""
    found = {name: setting.search for name, setting in method.all_settings().items() if setting.search}
    texts = {name: search if isinstance(search, str) else " ".join(map(str, search)) for name, search in found.items()}
    return "; ".join(f"`{flag(name)}` {text}" for name, text in texts.items())


def published(method: Method) -> str:
    figures = ", ".join(f"{dataset} {value:.2f}" for dataset, value in method.published.items())
    about = "; ".join(part for part in (method.source, method.note) if part)
    return figures + (f" ({about})" if figures and about else "")


def section(name: str, method: Method) -> str:
    facts = {
        "Loss per label": method.equation,
        "Reads": ", ".join(READS[target] for target in method.reads()),
        "Settings": described(method.settings),
        "Pseudo-labels": described({k: s for k, s in method.all_settings().items() if k not in method.settings}),
        "Searched": searched(method),
        "Sets": recipe(method),
        "Published test mAP": published(method),
        "Run": f"`python main.py -d pascal -l {name}`",
    }
    lines = [f"### {name}", "", f"{method.summary[0].upper()}{method.summary[1:]}. {method.paper}.", ""]
    return "\n".join(lines + [f"- {title}: {text}" for title, text in facts.items() if text])


def methods_table() -> str:
    """One row per method: what it reads, and the published test mAP per data set."""
    datasets = [dataset for dataset in DATASETS if any(dataset in method.published for method in LOSSES.values())]
    lines = [f"| `-l` | | teacher | {' | '.join(datasets)} |", "|---|---|---|" + "---|" * len(datasets)]
    for name, method in LOSSES.items():
        figures = [f"{method.published[dataset]:.2f}" if dataset in method.published else "" for dataset in datasets]
        summary = method.summary + (" (oracle)" if method.oracle else "")
        lines.append(f"| {name} | {summary} | {'yes' if method.pseudo_labels else ''} | {' | '.join(figures)} |")
    return "\n".join(lines)


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


def pages() -> dict[Path, dict[str, str]]:
    """The blocks of each page, by name."""
    methods = [methods_table(), *(section(name, method) for name, method in LOSSES.items())]
    tables = {
        "photos": tuned_table("photos_tuned"),
        "photos 64": tuned_table("photos_tuned_64"),
        "linear": tuned_table("linear_tuned"),
        "digits tuned": tuned_table("digits_tuned"),
        "digits": runs_table("digits_runs"),
    }
    return {
        DOCS / "methods.md": {"methods": "\n\n".join(methods)},
        DOCS / "results_tables.md": {f"table: {name}": table for name, table in tables.items()},
        DOCS.parent / "README.md": {"table: photos": tuned_table("photos_tuned", COLUMNS[:2], TEN)},
    }


def replace_block(text: str, name: str, content: str) -> str:
    """The text of a page with the lines between `<!-- NAME -->` and the next `<!-- end -->` replaced."""
    begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found, rest = text.partition(begin)
    assert found and end in rest, f"no block {name!r}"
    return before + begin + content + rest[rest.index(end) :]


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is not current; write nothing")
    options = parser.parse_args(argv)
    for page, blocks in pages().items():
        before = after = page.read_text()
        for name, content in blocks.items():
            after = replace_block(after, name, content)
        if not options.check:
            page.write_text(after)
        elif after != before:
            raise UserError(f"{page} is not current; write it with `python docs/make_pages.py`")


if __name__ == "__main__":
    run_script(main)
