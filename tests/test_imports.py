"""Imports point one way: the table below allows every arrow between our modules, and none closes a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BELOW_CONFIG = {"util", "metrics", "pseudo_labels", "losses", "datasets", "models"}
MAY_IMPORT = {  # part: the parts of ours that it may import, beside itself
    "util": set(),
    "metrics": {"util"},
    "pseudo_labels": {"util", "metrics"},
    "losses": {"util", "pseudo_labels"},
    "datasets": {"util"},
    "models": {"util", "datasets"},
    "config": BELOW_CONFIG,
    "runs": {"util", "config", "pseudo_labels", "models", "datasets"},
    "engine": {"util", "losses", "datasets", "models"},
    "supervision": {"util", "metrics", "pseudo_labels", "datasets", "models", "config"},
    "preproc": {"util", "datasets"},
    "reporting": BELOW_CONFIG | {"config"},
    "report": BELOW_CONFIG | {"config", "reporting"},
    "benchmarks": BELOW_CONFIG | {"config", "runs", "engine", "preproc", "main"},
}
# of a command, which nothing but tests and benchmarks imports
ON_TOP = BELOW_CONFIG | {"config", "runs", "engine", "supervision"}
MAY_IMPORT["tune"] = ON_TOP | {"reporting", "main"}


def modules() -> dict[str, Path]:
    """{dotted name: file} of all our modules but the tests and the scripts that make pages."""
    files = [path for path in REPOSITORY.glob("*.py")]
    for folder in (path for path in REPOSITORY.iterdir() if path.is_dir() and path.name[0] not in "._"):
        if folder.name not in ("tests", "docs", "data", "results"):
            files += folder.rglob("*.py")
    names = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imported(name: str, path: Path, ours: set[str]) -> set[str]:
    """The modules of ours that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the origin of a name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {module for module in found if module in ours} - {name}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    ours = modules()
    return {name: imported(name, path, set(ours)) for name, path in ours.items()}


def part(module: str) -> str:
    return module.split(".")[0]


def test_every_arrow_is_one_that_the_table_allows(arrows):
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows.items()
        for other in others
        if part(other) not in MAY_IMPORT.get(part(name), ON_TOP) | {part(name)}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others(arrows):
    """A package counts by what its modules import, not by the re-exports of its __init__."""
    graph = {
        name: {
            other for other in others if not name.startswith(f"{other}.")
        }  # a module of a package is not its __init__
        for name, others in arrows.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_import_inside_a_function_names_a_module_of_ours():
    ours, hidden = set(modules()), []
    for name, path in modules().items():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                named = node.module if isinstance(node, ast.ImportFrom) else None
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [named]
                hidden += [f"{name}.{function.name} imports {other}" for other in names if other in ours]
    assert not hidden, "\n".join(hidden)


def test_outside_losses_no_file_names_a_method():
    """What depends on a method is read from its record. Names that are common words are looked for as strings only."""
    from losses import LOSSES

    allowed = {"config.py": {"EM_PL"}, "main.py": {"EM_PL"}}  # the default, and the usage in a docstring
    wrong = []
    for name, path in modules().items():
        if part(name) in ("losses", "benchmarks"):
            continue
        file = path.relative_to(REPOSITORY).as_posix()
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        wrong += [f"{file}: {method}" for method in LOSSES if method in strings and method not in allowed.get(file, ())]
    assert not wrong, "\n".join(wrong)
