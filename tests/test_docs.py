"""The pages: what they say of methods is what the records say, their example works, their commands and links exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from config import build_parser
from losses import LOSSES, Method
from util.errors import UserError
from util.files import replace_block

sys.path.append(str(REPOSITORY / "docs"))
import make_methods

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLE = re.search(r"```python\n(.*?)```", make_methods.PAGE.read_text(), re.DOTALL)[1]


def blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, a line that goes on with a backslash as one."""
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("name", re.findall(r"^### (\w+)$", make_methods.PAGE.read_text(), re.MULTILINE))
def test_the_page_of_methods_says_what_the_records_say(name):
    """A method that is not on the page yet is told by `make lint`: whoever adds one need not touch the page first."""
    assert make_methods.section(name, LOSSES[name]) in make_methods.PAGE.read_text()


def test_a_page_that_is_not_current_is_one_line(monkeypatch, fails, tmp_path):
    (tmp_path / "methods.md").write_text("<!-- methods -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(make_methods, "PAGE", tmp_path / "methods.md")
    assert "python docs/make_methods.py" in fails(make_methods.main, ["--check"])
    make_methods.main([])
    make_methods.main(["--check"])


def test_a_block_is_replaced_and_what_stands_around_it_is_kept():
    assert replace_block("a\n<!-- x -->\nb\n<!-- end -->\nc", "x", "d") == "a\n<!-- x -->\nd\n<!-- end -->\nc"


def test_the_example_of_a_method_is_a_whole_record():
    module: dict = {}
    exec(EXAMPLE, module)
    (method,) = (value for value in module.values() if isinstance(value, Method))
    method.verify("focal")
    with pytest.raises(UserError, match="gamma"):
        method.settings["gamma"].check("gamma", -1.0)


@pytest.mark.slow
def test_the_example_is_added_by_one_file_and_its_line_and_all_tests_of_methods_pass(tmp_path):
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (REPOSITORY / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "losses/lin2017.py").write_text(EXAMPLE)
    index = tmp_path / "losses/__init__.py"
    text = index.read_text().replace("from losses import ", "from losses import lin2017, ")
    index.write_text(text.replace("}\n", '    "focal": lin2017.FOCAL,\n}\n', 1))
    tests = [f"tests/test_{name}.py" for name in ("losses", "engine", "main", "docs", "config")]
    chosen = "focal or docs or config or record"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"(\d+) passed", done.stdout)


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
