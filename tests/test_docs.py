"""The pages: methods are described as in the records, the examples work, commands and links exist."""

import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, REPOSITORY, make_toy
from training import values_of

import losses
from config import build_parser
from losses import LOSSES, Method

sys.path.append(str(REPOSITORY / "docs"))
import make_pages

METHODS = REPOSITORY / "docs/methods.md"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLES = re.findall(r"`losses/(\w+).py`:\n\n```python\n(.*?)```", METHODS.read_text(), re.DOTALL)
NLL = -math.log(0.5 + 1e-5)  # at p = 1/2
ADDED = {"focal": "lin2017.FOCAL", "class_mean": "class_mean.CLASS_MEAN"}


def blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, with lines joined that end with a backslash."""
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("name", re.findall(r"^### (\w+)$", METHODS.read_text(), re.MULTILINE))
def test_the_page_of_methods_agrees_with_the_records(name):
    """`make lint` reports a method that is not on the page yet; its tests do not need the page."""
    assert make_pages.section(name, LOSSES[name]) in METHODS.read_text()


def test_the_tables_are_what_the_files_of_runs_hold():
    for page, blocks in make_pages.pages().items():
        assert page == METHODS or all(content in page.read_text() for content in blocks.values())


def test_a_page_that_is_not_current_is_one_line(monkeypatch, fails, tmp_path):
    (tmp_path / "page.md").write_text("before\n<!-- x -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(make_pages, "pages", lambda: {tmp_path / "page.md": {"x": "new"}})
    assert "python docs/make_pages.py" in fails(make_pages.main, ["--check"])
    make_pages.main([])
    make_pages.main(["--check"])
    assert (tmp_path / "page.md").read_text() == "before\n<!-- x -->\nnew\n<!-- end -->\nafter\n"


@pytest.mark.parametrize("name, at_half", [("lin2017", NLL / 4), ("class_mean", NLL)])
def test_the_example_of_a_method_costs_at_one_half_what_was_calculated_by_hand(name, at_half, monkeypatch):
    text, module = dict(EXAMPLES)[name], {}
    exec(text, module)
    (method,) = (value for value in module.values() if isinstance(value, Method))
    monkeypatch.setitem(LOSSES, "example", method)
    observed = torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8)
    loss = losses.build("example", values_of("example"), observed)
    found = loss.per_label(torch.zeros(1, 5, dtype=torch.float64), observed)
    assert found[0].tolist() == pytest.approx([at_half] * 5, abs=1e-12)


def copy_repository(folder: Path) -> None:
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def insert(file: Path, before: str, text: str) -> None:
    """Insert lines before the first occurrence of a text."""
    content = file.read_text()
    assert before in content, (file, before)
    file.write_text(content.replace(before, text + before, 1))


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_examples_of_methods_are_added_without_touching_a_test(tmp_path):
    """Every test of a method passes for them, and `--check` asks to make the page again."""
    copy_repository(tmp_path)
    assert [name for name, _ in EXAMPLES] == ["lin2017", "class_mean"]
    for name, text in EXAMPLES:
        (tmp_path / f"losses/{name}.py").write_text(text)
        insert(tmp_path / "losses/__init__.py", "from losses.base", f"from losses import {name}\n")
    for name, record in ADDED.items():
        insert(tmp_path / "losses/__init__.py", '    "CTL"', f'    "{name}": {record},\n')
    methods = [part for name in ADDED for part in ("--method", name)]
    done = script(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *methods, "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 15
    made = script(tmp_path, "docs/make_pages.py", "--check")
    assert made.returncode == 2 and "python docs/make_pages.py" in made.stderr


def test_the_examples_of_every_extension_train_together(tmp_path):
    """A method, a data set, a teacher, a backbone and an augmentation, as docs/extend.md adds them."""
    copy_repository(tmp_path)
    page = (REPOSITORY / "docs/extend.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    *files, field, transform, option = blocks
    assert all(sum(map(bool, block.splitlines())) <= 15 for block in blocks)
    names = re.findall(r"^`([\w/]+\.py)`, and", page, re.MULTILINE)
    for name, text in zip(names, files, strict=True):
        (tmp_path / name).write_text(text)
    entries = re.findall(r"and `(\"\w+\": .*?)` in `(\w+)`", page)
    places = {
        "LOSSES": ("losses/__init__.py", '    "CTL"', "from losses import soft_target"),
        "DATASETS": ("datasets/__init__.py", '    "digits"', ""),
        "TEACHERS": ("models/teachers/__init__.py", '    "clip"', "from models.teachers.colour import ColourTeacher"),
        "BACKBONES": ("models/__init__.py", '    "vit_clip"', "from models.small_cnn import small_cnn"),
    }
    for entry, dictionary in entries:
        file, before, imported = places.pop(dictionary)
        insert(tmp_path / file, before, f"    {entry},\n")
        insert(
            tmp_path / file,
            "from dataclasses" if "from dataclasses" in (tmp_path / file).read_text() else "import",
            imported + "\n",
        )
    assert not places
    insert(tmp_path / "datasets/images.py", "\n    def __bool__", field)
    insert(tmp_path / "datasets/images.py", "        if self.randaugment:", transform)
    insert(tmp_path / "config.py", "    precision: str = option", option)
    make_toy(tmp_path / "toy")
    for split, count in (("train", 30), ("val", 10)):
        labels = np.load(tmp_path / f"toy/toy/formatted_{split}_labels.npy")
        (tmp_path / f"data/colours/images/{split}").mkdir(parents=True)
        for row in range(count):
            name = "+".join(label for label, present in zip(COLOURS, labels[row], strict=True) if present)
            image = tmp_path / f"toy/toy/images/{split}/{row:03d}.png"
            image.rename(tmp_path / f"data/colours/images/{split}/{name}_{row:03d}.png")
    commands = (
        "preproc/format_colours.py",
        "preproc/generate_observed_labels.py --dataset colours",
        "main.py -d colours -l soft_target -m small_cnn --teacher colour:rgb --grayscale 0.5 --epochs 2 -g cpu",
    )
    one_process = f"""import runpy, sys
for line in {commands}:
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = script(tmp_path, "-c", one_process)
    assert done.returncode == 0 and "test mAP" in done.stdout and "grayscale=0.5" in done.stdout, done.stderr


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
    examples = re.findall(r"^`([\w/]+\.py)`, and", text, re.MULTILINE)
    assert not [name for name in missing if "NAME" not in name and name not in examples], missing
