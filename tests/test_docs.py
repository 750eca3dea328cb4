"""The pages: methods are described as in the records, the examples work, commands and links exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from training import values_of

import losses
from config import build_parser
from losses import LOSSES, Method
from util.files import replace_block

sys.path.append(str(REPOSITORY / "docs"))
import make_methods

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLES = re.findall(r"`losses/(\w+).py`:\n\n```python\n(.*?)```", make_methods.PAGE.read_text(), re.DOTALL)
ADDED = {"focal": "lin2017.FOCAL", "class_mean": "class_mean.CLASS_MEAN"}


def blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, a line that goes on with a backslash as one."""
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("name", re.findall(r"^### (\w+)$", make_methods.PAGE.read_text(), re.MULTILINE))
def test_the_page_of_methods_says_what_the_records_say(name):
    """`make lint` reports a method that is not on the page yet; its tests do not need the page."""
    assert make_methods.section(name, LOSSES[name]) in make_methods.PAGE.read_text()


def test_a_page_that_is_not_current_is_one_line(monkeypatch, fails, tmp_path):
    (tmp_path / "methods.md").write_text("<!-- methods -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(make_methods, "PAGE", tmp_path / "methods.md")
    assert "python docs/make_methods.py" in fails(make_methods.main, ["--check"])
    make_methods.main([])
    make_methods.main(["--check"])


def test_a_block_is_replaced_and_what_stands_around_it_is_kept():
    assert replace_block("a\n<!-- x -->\nb\n<!-- end -->\nc", "x", "d") == "a\n<!-- x -->\nd\n<!-- end -->\nc"


@pytest.mark.parametrize("text", [text for _, text in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_the_example_of_a_method_costs_at_one_half_what_its_record_says(text, monkeypatch):
    module: dict = {}
    exec(text, module)
    (method,) = (value for value in module.values() if isinstance(value, Method))
    monkeypatch.setitem(LOSSES, "example", method)
    observed = torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8)
    loss = losses.build("example", values_of("example"), observed)
    found = loss.per_label(torch.zeros(1, 5, dtype=torch.float64), observed)
    assert found[0].tolist() == pytest.approx(method.at_half, abs=1e-12)


@pytest.mark.slow
def test_the_examples_of_methods_are_added_without_touching_a_test(tmp_path):
    """In a copy of the repository, every test of a method passes for them, and `--check` asks to make the page."""
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (REPOSITORY / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    assert [name for name, _ in EXAMPLES] == ["lin2017", "class_mean"]
    for name, text in EXAMPLES:
        (tmp_path / f"losses/{name}.py").write_text(text)
    index = tmp_path / "losses/__init__.py"
    text = index.read_text().replace("from losses import ", "from losses import class_mean, lin2017, ")
    lines = "".join(f'    "{name}": {record},\n' for name, record in ADDED.items())
    index.write_text(text.replace("}\n", lines + "}\n", 1))
    methods = [part for name in ADDED for part in ("--method", name)]
    tests = [f"tests/test_{name}.py" for name in ("losses", "engine", "main", "docs")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *methods, *tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 15
    made = subprocess.run(
        [sys.executable, "docs/make_methods.py", "--check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert made.returncode == 2 and "python docs/make_methods.py" in made.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_training_command_of_a_page_is_one_that_the_command_line_takes(page):
    for line in blocks(page):
        found = re.search(r"\bmain\.py (-[^#']*)", line)
        if found and "--help" not in found[1]:
            build_parser().parse_args(shlex.split(found[1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    scripts = re.findall(r"(?:python|bash) ([\w/]+\.(?:py|sh))", text) + re.findall(r"(sweeps/\w+\.sh)", text)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [name for name in scripts if not (REPOSITORY / name).exists()]
    missing += [link for link in links if link and not (page.parent / link).exists()]
    assert not [name for name in missing if "NAME" not in name], missing
