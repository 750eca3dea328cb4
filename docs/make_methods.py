"""Write the part of docs/methods.md that comes from the methods' records.

    python docs/make_methods.py [--check]

`--check` writes nothing, and fails if the page does not agree with the records.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder

from datasets import DATASETS
from losses import LOSSES, Method
from util.errors import OneLineParser, UserError, run_script
from util.files import replace_block
from util.settings import Setting, flag

PAGE = Path(__file__).resolve().parent / "methods.md"


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


def table() -> str:
    """One row per method: what it reads, and the published test mAP per data set."""
    datasets = [dataset for dataset in DATASETS if any(dataset in method.published for method in LOSSES.values())]
    lines = [f"| `-l` | | teacher | {' | '.join(datasets)} |", "|---|---|---|" + "---|" * len(datasets)]
    for name, method in LOSSES.items():
        figures = [f"{method.published[dataset]:.2f}" if dataset in method.published else "" for dataset in datasets]
        summary = method.summary + (" (oracle)" if method.oracle else "")
        lines.append(f"| {name} | {summary} | {'yes' if method.pseudo_labels else ''} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not current; write nothing")
    options = parser.parse_args(argv)
    before = PAGE.read_text()
    parts = [table(), *(section(name, method) for name, method in LOSSES.items())]
    after = replace_block(before, "methods", "\n\n".join(parts))
    if not options.check:
        PAGE.write_text(after)
    elif after != before:
        raise UserError(f"{PAGE} does not agree with the methods' records; write it with `python docs/make_methods.py`")


if __name__ == "__main__":
    run_script(main)
