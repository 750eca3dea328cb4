"""Formatted files, splits, decoding and caches, and the errors of missing and damaged files."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy
from PIL import Image

import datasets
from datasets import files, images, load
from datasets.images import choose_cache, open_images, to_input
from datasets.pixels import decode
from datasets.protocol import observe, split_indices
from util.errors import UserError

CPU = torch.device("cpu")


def test_a_data_set_is_a_known_one_or_a_folder(toy):
    datasets.check_name(toy)
    datasets.check_name(toy.parent / "coco")  # absent, but known: loading gives the command that makes it
    with pytest.raises(
        UserError, match=r"unknown data set 'imagenet'; there are pascal.*digits, photos, toy, and any folder"
    ):
        datasets.check_name(toy.parent / "imagenet")


def test_the_splits_are_the_published_ones_of_the_formatted_arrays(toy):
    splits = load(toy)
    assert [len(split) for split in splits.named().values()] == [24, 6, 10]
    every = np.sort(np.concatenate([splits.train.names, splits.val.names]))
    assert (every == np.load(toy / "formatted_train_images.npy")).all()
    assert (splits.train.observed.sum(axis=1) == 1).all() and splits.train.observed.dtype == np.int8
    assert splits.classes.names == ["red", "green", "blue"]


def test_a_formatting_that_is_killed_between_two_files_leaves_no_data_set(toy, monkeypatch):
    splits = {split: (found[::-1], true[::-1], None) for split, (found, true, _) in files.read_all(toy).items()}
    write = files.write_array
    for written in range(4):
        shutil.copytree(toy, toy.parent / "copy", dirs_exist_ok=True)
        left = [None] * written
        with monkeypatch.context() as patch, pytest.raises(IndexError):
            patch.setattr(files, "write_array", lambda *given, left=left: (left.pop(), write(*given)))
            files.write_own(toy.parent / "copy", splits, ["a", "b", "c"], ["a", "b", "c"], toy / "images")
        with pytest.raises(UserError, match=r"dataset\.json not found; make it with `python preproc/format_own.py`"):
            load(toy.parent / "copy")


def test_formatting_again_keeps_observed_labels_only_if_nothing_else_changed(toy):
    names, data = files.read_classes(toy).names, files.digest(toy)
    splits = {split: (found, true, None) for split, (found, true, _) in files.read_all(toy).items()}
    files.write_own(toy, splits, names, names, toy / "images")
    assert files.digest(toy) == data and len(load(toy).train) == 24
    splits["train"] = (splits["train"][0][::-1], *splits["train"][1:])
    files.write_own(toy, splits, names, names, toy / "images")
    assert files.digest(toy) != data
    with pytest.raises(UserError, match=r"formatted_train_labels_obs.npy not found.*generate_observed_labels"):
        load(toy)


def test_the_digest_of_a_data_set_depends_on_its_arrays_alone(toy):
    data = files.digest(toy)
    array = np.load(files.array_path(toy, "train", "labels_obs"))
    np.save(files.array_path(toy, "train", "labels_obs"), array)
    assert files.digest(toy) == data
    np.save(files.array_path(toy, "train", "labels_obs"), -array)
    assert files.digest(toy) != data
    files.write_drawn(toy, {"train": array})
    assert files.digest(toy) == data


def test_known_labels_may_be_drawn_again_without_writing(toy):
    fixed, drawn = load(toy), load(toy, draw=3)
    true = np.load(files.array_path(toy, "train", "labels"))
    assert (drawn.train.observed == observe(true, seed=1203)[np.isin(np.arange(30), split_indices(30)[0])]).all()
    assert (drawn.train.names == fixed.train.names).all() and (load(toy).train.observed == fixed.train.observed).all()
    files.array_path(toy, "train", "labels").unlink()
    with pytest.raises(UserError, match="--draw 3 draws the known labels from the full ones"):
        load(toy, draw=3)


@pytest.mark.parametrize(
    "name, command",
    [
        ("formatted_train_images.npy", "python preproc/format_coco.py --load-path"),
        ("formatted_val_labels_obs.npy", "python preproc/generate_observed_labels.py --dataset coco --data-root"),
        ("dataset.json", "python preproc/format_coco.py"),
    ],
)
def test_a_missing_file_comes_with_the_command_that_makes_it(tmp_path, name, command):
    folder = make_toy(tmp_path, "coco")
    (folder / name).unlink()
    with pytest.raises(UserError, match="not found") as error:
        load(folder)
    assert name in str(error.value) and command in str(error.value)


def test_a_missing_image_is_an_error_unless_missing_ones_are_skipped(toy, capsys):
    whole = load(toy)
    gone = whole.train.names[5]
    (toy / "images" / gone).unlink()
    with pytest.raises(UserError, match=r"1 of 24 train images are missing.*--skip-missing"):
        load(toy)
    rest = load(toy, skip_missing=True)
    assert "23 of 24 train images are on the disk" in capsys.readouterr().out
    assert (rest.train.names == np.delete(whole.train.names, 5)).all()  # split and positives are the whole set's
    assert (rest.train.observed == np.delete(whole.train.observed, 5, axis=0)).all()
    assert (rest.val.names == whole.val.names).all()


def test_images_may_lie_elsewhere(toy, tmp_path):
    (toy / "images").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--image-root"):
        load(toy)
    assert len(load(toy, image_root=str(tmp_path / "moved")).test) == 10


def test_an_image_root_inside_the_folder_moves_with_it(toy, tmp_path):
    assert files.read_description(toy).image_root == "images"
    toy.rename(tmp_path / "data/other")
    assert len(load(tmp_path / "data/other").train) == 24


def test_decoding_squashes_the_whole_image_to_rgb(tmp_path):
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).convert("L").save(tmp_path / "grey.png")
    got = decode(str(tmp_path / "grey.png"), 8)
    assert got.shape == (8, 8, 3) and got.dtype == np.uint8
    assert (got[:, :3] == 0).all() and (got[:, 5:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_an_image_is_resized_to_what_pillow_makes_of_it(tmp_path, mode, resample):
    smooth = np.random.RandomState(0).randint(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(smooth).resize((100, 75)).convert(mode).save(tmp_path / "some.jpg", quality=90)
    with Image.open(tmp_path / "some.jpg") as image:
        pillow = np.array(image.convert("RGB").resize((48, 48), Image.Resampling[resample.upper()]))
    difference = np.abs(decode(str(tmp_path / "some.jpg"), 48, resample).astype(int) - pillow)
    assert difference.max() <= 2 and difference.mean() < 0.2


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_bad_image_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(UserError, match=r"bad\.jpg (cannot be read|is not a readable image)"):
        decode(str(path), 8)


@pytest.mark.parametrize("place", ["disk", "none"])
def test_a_stream_gives_the_images_asked_for_wherever_they_are_kept(toy, place, tmp_path):
    split = load(toy).train
    store = open_images(split, 16, place, tmp_path / "cache", CPU, 2)
    order = torch.tensor([3, 0, 23, 3, 7])
    batches = list(store.stream(order.split(2), CPU))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)]
    expected = np.stack([decode(split.paths()[row], 16) for row in order.tolist()]).transpose(0, 3, 1, 2)
    assert (torch.cat(batches).numpy() == expected).all()


def test_a_cache_is_decoded_once_and_never_used_for_other_images(toy, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(images, "decode", lambda path, *rest: calls.append(path) or decode(path, *rest))
    for _ in range(2):
        open_images(load(toy).train, 16, "disk", tmp_path / "cache", CPU, 2)
    assert len(calls) == 24
    path = load(toy).train.paths()[0]
    Image.fromarray(np.zeros((50, 30, 3), dtype=np.uint8)).save(path)
    kept = open_images(load(toy).train, 16, "disk", tmp_path / "cache", CPU, 2).kept
    assert len(calls) == 48 and (kept[:1] == 0).all()


def test_a_bad_image_stops_the_cache_which_continues_once_it_is_replaced(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "DECODED", 4)
    split = load(toy).train
    good = Path(split.paths()[10]).read_bytes()
    Path(split.paths()[10]).write_bytes(bytes(len(good)))
    with pytest.raises(UserError, match=split.names[10]):
        open_images(split, 16, "disk", tmp_path / "cache", CPU, 2)
    Path(split.paths()[10]).write_bytes(good)
    calls = []
    monkeypatch.setattr(images, "decode", lambda path, *rest: calls.append(path) or decode(path, *rest))
    kept = open_images(split, 16, "disk", tmp_path / "cache", CPU, 2).kept
    assert len(calls) < 24  # the first rows were kept
    assert (kept[:] == np.stack([decode(path, 16) for path in split.paths()])).all()


def disk_of(monkeypatch, free: float) -> None:
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))


def test_images_are_decoded_in_every_epoch_if_that_keeps_up_or_the_disk_has_no_room(toy, tmp_path, monkeypatch, capsys):
    splits = list(load(toy).named().values())

    def choose(mode: str, size: int) -> str:
        return choose_cache(mode, splits, size, tmp_path, CPU, 2)

    rates = {8_000: 1e9}  # image size: images/s
    monkeypatch.setattr(images, "decoding_rate", lambda paths, size, workers: rates.get(size, 1e-9))
    disk_of(monkeypatch, 1e12)
    assert choose("none", 8_000) == "none" and choose("auto", 16) == "disk"
    assert "writing 0 MB of decoded images" in capsys.readouterr().out
    assert choose("auto", 8_000) == "none" and choose("disk", 8_000) == "disk" and choose("auto", 9_000) == "disk"
    assert "writing 9,720 MB of decoded images" in capsys.readouterr().out
    disk_of(monkeypatch, 15e9)
    assert choose("auto", 9_000) == "none"
    assert "9.7 GB of decoded images are more than half of the free disk" in capsys.readouterr().out
    disk_of(monkeypatch, 0)
    for split in splits:
        images.cache_file(split, 16, tmp_path).touch()  # existing files need no room
    assert choose("auto", 16) == "disk"
    with pytest.raises(UserError, match="needs a GPU"):
        choose("gpu", 16)


def test_the_decoding_rate_is_measured_on_a_few_images(toy):
    assert images.decoding_rate(load(toy).train.paths(), 16, 2) > 1


@pytest.mark.parametrize("free, room", [(80e9, 64e9), (24e9, 12e9)])  # 16 GB are left, or half of the free memory
def test_the_gpu_keeps_the_images_that_leave_room_for_the_training(toy, tmp_path, monkeypatch, free, room):
    calls, split = [], load(toy).train
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("freed"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append("asked") or (free, 2 * free))
    monkeypatch.setattr(images, "decoding_rate", lambda *given: 0)
    disk_of(monkeypatch, 1e18)
    size, gpu = int((room / 3 / len(split)) ** 0.5), torch.device("cuda")
    assert choose_cache("auto", [split], size - 1, tmp_path, gpu, 2) == "gpu"
    assert choose_cache("auto", [split], size + 1, tmp_path, gpu, 2) == "disk"
    assert calls == ["freed", "asked"] * 2  # what the teacher left in PyTorch's own cache is given back first


@pytest.mark.parametrize("place", ["disk", "none"])
def test_a_run_lists_all_images_that_cannot_be_read(toy, tmp_path, place):
    split = load(toy).train
    for path in split.paths()[3:15]:
        Path(path).write_text("no image")
    with pytest.raises(UserError, match=r"12 of 24 images cannot be read: .*\(of no known kind\)") as error:
        list(open_images(split, 16, place, tmp_path, CPU, 2).stream([torch.arange(24)], CPU))
    (path,) = re.findall(r"\S*bad_images_\S*\.txt", str(error.value))
    assert len(Path(path).read_text().splitlines()) == 12 and str(error.value).count("no known kind") == 10
    Path(path).unlink()


def test_network_input_is_flipped_and_normalised():
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).expand(2, 3, 2, 2)
    mean, std = torch.full((3, 1, 1), 0.2), torch.full((3, 1, 1), 0.4)
    got = to_input(pixels, mean, std, torch.tensor([False, True]))
    assert got[0, 0].flatten().tolist() == pytest.approx([-0.5, 2.0, 0.0, 0.5], abs=1e-6)
    assert got[1, 0].flatten().tolist() == pytest.approx([2.0, -0.5, 0.5, 0.0], abs=1e-6)


def test_ahead_keeps_the_order_and_passes_errors_on():
    assert list(images.ahead(lambda x: x * x, range(20), 4, 3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(images.ahead(lambda x: 1 // (3 - x), range(20), 4, 3))


def test_known_counts_are_those_of_the_protocol():
    assert {name: (known.train, known.test, known.labels) for name, known in datasets.DATASETS.items()} == {
        "pascal": (5717, 5823, 20),
        "coco": (82081, 40137, 80),
        "nuswide": (150000, 60260, 81),
        "cub": (5994, 5794, 312),
        "digits": (3000, 1000, 10),
        "photos": (1697, 865, 12),
    }
    assert files.SPLITS == ("train", "val")
