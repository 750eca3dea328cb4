"""Fixtures: a toy data set in the true format, the real command, and the real data if it is at hand."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datasets.files import write_own
from datasets.protocol import observe
from losses import LOSSES
from models.clip import create_clip
from runs import plots, run_folder
from util.errors import run_script

torch.set_num_threads(1)
REPOSITORY = Path(__file__).resolve().parent.parent
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
TINY_CLIP = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", action="append", help="run only the tests of this method, a name in LOSSES")


def pytest_configure(config: pytest.Config) -> None:
    if unknown := set(config.getoption("--method") or ()) - LOSSES.keys():
        raise pytest.UsageError(f"no method {', '.join(unknown)} in LOSSES; there are {', '.join(LOSSES)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--method")

    def chosen(item: pytest.Item) -> bool:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return any(isinstance(value, str) and value in names for value in values)

    items[:] = filter(chosen, items) if names else items


@pytest.fixture(scope="session", autouse=True)
def empty_figures():
    """Figures are empty files in the tests: drawing them takes half of a toy run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "draw_figure", lambda path, *arguments: path.touch())
        yield


@pytest.fixture
def figures(monkeypatch):
    """Figures are drawn."""
    monkeypatch.setattr(run_folder, "draw_figure", plots.draw_figure)


def make_toy(root: Path, name: str = "toy", train: int = 30, test: int = 10, size: int = 24) -> Path:
    """A formatted data set of noisy images with a red, green or blue bar for each label that is present."""
    folder, random, splits = root / name, np.random.RandomState(0), {}
    for split, count in (("train", train), ("val", test)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        labels = random.randint(0, 2, size=(count, 3)).astype(np.int8)
        labels[np.arange(count), random.randint(0, 3, size=count)] = 1
        names = [f"{split}/{row:03d}.png" for row in range(count)]
        for row, file in enumerate(names):
            pixels = random.randint(0, 60, size=(size, size, 3)).astype(np.uint8)
            for bar, (colour, present) in enumerate(zip(COLOURS.values(), labels[row], strict=True)):
                if present:
                    pixels[:, bar * 8 : bar * 8 + 6] = colour
            Image.fromarray(pixels).save(folder / "images" / file)
        splits[split] = (names, labels, observe(labels))
    write_own(folder, splits, list(COLOURS), list(COLOURS), folder / "images")
    return folder


def toy_similarity(folder: Path) -> Path:
    """A similarity file for the toy's training images and two tiles of each: the truth, blurred. Made before the truth
    is taken away."""
    path = folder / "similarity.npz"
    if path.exists():
        return path
    images = np.load(folder / "formatted_train_images.npy")
    labels = np.load(folder / "formatted_train_labels.npy")
    similarity = (0.2 + 0.02 * labels + 0.004 * np.random.RandomState(1).randn(*labels.shape)).astype(np.float32)
    tiles = np.stack([similarity, similarity - 0.01], axis=1)
    np.savez(path, images=images, classes=np.array(list(COLOURS)), similarity=similarity, tiles=tiles)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A toy data set of its own for a test that may change it."""
    return make_toy(tmp_path / "data")


def toy_arguments(folder: Path, *more: str) -> list[str]:
    """The real command at toy size: a few seconds, no network."""
    root = folder.parent
    return [
        *("-d", folder.name, "-g", "cpu", "-m", "timm:test_resnet", "--no-pretrained", "--image-size", "32"),
        *("--epochs", "2", "--lr", "1e-3", "--similarity", str(toy_similarity(folder))),
        *("--data-root", str(root), "--results-dir", str(root.parent / "results"), *more),
    ]


@pytest.fixture
def tiny_clip(tmp_path: Path) -> tuple[str, str]:
    """A model config and random weights of it, as files."""
    config = tmp_path / "tiny_clip.json"
    config.write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(3)
    save_file(create_clip(str(config), None).state_dict(), tmp_path / "tiny.safetensors")
    return str(config), str(tmp_path / "tiny.safetensors")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and empty caches."""
    from huggingface_hub import constants

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


def taught_arguments(folder: Path, *more: str) -> list[str]:
    """The same with a teacher that scores the images: the digits', which says something of any image."""
    arguments = toy_arguments(folder, *more)
    place = arguments.index("--similarity")
    teacher = ("--teacher", "models/digits_clip.json", "--teacher-weights", "models/digits_clip.safetensors")
    return [*arguments[:place], *teacher, *arguments[place + 2 :]]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture):
    """fails(main, argv) -> the one line on stderr of a command that ends with exit status 2."""

    def call(function, argv: list[str]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_script(lambda: function(argv))
        lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("note:")]
        assert stop.value.code == 2, lines
        assert len(lines) == 1, lines
        return lines[0]

    return call


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    """A script of the repository as a process of its own, one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=environment, **options
    )


def numbers(folder: Path) -> tuple[dict[str, np.ndarray], list[dict], dict]:
    """All that a finished run computed: predictions, history without its seconds, result without its folder."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        predictions = {name: file[name] for name in file.files}
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in history:
        del row["seconds"]
    result = json.loads((folder / "test.json").read_text())
    del result["folder"]
    return predictions, history, result


def same_numbers(one: Path, other: Path) -> bool:
    """Whether two finished runs agree bit for bit."""
    (a, *rest_a), (b, *rest_b) = numbers(one), numbers(other)
    return rest_a == rest_b and a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def only_run(toy: Path) -> Path:
    (folder,) = (path for path in (toy.parent.parent / "results").iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with realdata/ and reference/ of the environment variable SPML_REAL_DATA."""
    if not os.environ.get("SPML_REAL_DATA"):
        pytest.skip("SPML_REAL_DATA is not set")
    return Path(os.environ["SPML_REAL_DATA"])
