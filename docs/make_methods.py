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


def values(setting: Setting) -> str:
    """A setting's default and its values for single data sets."""
    return ", ".join([str(setting.default), *(f"{dataset} {value}" for dataset, value in setting.by_dataset.items())])


def recipe(method: Method) -> list[str]:
    """The common settings that the method changes, as `--lr 0.001` or `--lr 0.001` (pascal, coco)."""
    rows = []
    for name, by_dataset in method.recipe.items():
        unset = [f"not {dataset}" for dataset, own in by_dataset.items() if own is None]
        for value in dict.fromkeys(own for own in by_dataset.values() if own is not None):
            names = [dataset for dataset, own in by_dataset.items() if own == value and dataset != "*"]
            names = ", ".join(names or unset)
            shown = " ".join(f'"{part}"' for part in value) if isinstance(value, tuple) else value
            rows.append(f"`{flag(name)} {shown}`" + (f" ({names})" if names else ""))
    return rows


def searched(method: Method) -> str:
    """What tune.py chooses from, for each setting."""
    found = {name: setting.search for name, setting in method.all_settings().items() if setting.search}
    return "; ".join(
        f"`{flag(name)}` {values if isinstance(values, str) else ' '.join(map(str, values))}"
        for name, values in found.items()
    )


def inputs(method: Method) -> str:
    """What the loss reads, in words."""
    words = {
        "observed": "observed labels",
        "true": "all true labels",
        "pseudo": "pseudo-labels",
        "index": "its own state per training image",
    }
    return ", ".join(words[name] for name in method.reads())


def section(name: str, method: Method) -> str:
    lines = [f"### {name}", "", f"{method.summary[0].upper()}{method.summary[1:]}. {method.paper}.", ""]
    lines += [f"- Loss per label: {method.equation}"] if method.equation else []
    lines += [f"- Reads: {inputs(method)}"] if method.functions() else []
    if rows := [f"`{flag(key)}` {values(setting)}" for key, setting in method.settings.items()]:
        lines.append(f"- Settings: {'; '.join(rows)}")
    if method.pseudo_labels and method.pseudo_labels.settings:
        rule = {key: setting for key, setting in method.pseudo_labels.settings.items() if key not in method.settings}
        own = "; ".join(f"`{flag(key)}` {values(setting)}" for key, setting in rule.items())
        lines.append(f"- Pseudo-labels: {own}")
    lines += [f"- Searched: {found}"] if (found := searched(method)) else []
    lines += [f"- Sets: {', '.join(rows)}"] if (rows := recipe(method)) else []
    if method.published:
        figures = ", ".join(f"{dataset} {value:.2f}" for dataset, value in method.published.items())
        about = "; ".join(part for part in (method.source, method.note) if part)
        lines.append(f"- Published test mAP: {figures}" + (f" ({about})" if about else ""))
    lines.append(f"- Run: `python main.py -d pascal -l {name}`")
    return "\n".join(lines)


def table() -> str:
    """One row per method: what it reads, and the published test mAP per data set."""
    datasets = [dataset for dataset in DATASETS if any(dataset in method.published for method in LOSSES.values())]
    lines = [f"| `-l` | | teacher | {' | '.join(datasets)} |", "|---|---|---|" + "---|" * len(datasets)]
    for name, method in LOSSES.items():
        figures = [f"{method.published[dataset]:.2f}" if dataset in method.published else "" for dataset in datasets]
        summary = method.summary + (" (oracle)" if method.oracle else "")
        lines.append(f"| {name} | {summary} | {'yes' if method.pseudo_labels else ''} | {' | '.join(figures)} |")
    return "\n".join(lines)


def page() -> str:
    return "\n\n".join([table(), *(section(name, method) for name, method in LOSSES.items())])


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not current; write nothing")
    options = parser.parse_args(argv)
    before = PAGE.read_text()
    after = replace_block(before, "methods", page())
    if options.check and after != before:
        raise UserError(
            f"{PAGE} does not agree with the methods' records; write it again with `python docs/make_methods.py`"
        )
    if not options.check:
        PAGE.write_text(after)


if __name__ == "__main__":
    run_script(main)
