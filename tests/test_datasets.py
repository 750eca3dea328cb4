"""Formatted files, splits, decoding and caches: what is read, and what is told when it cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy
from PIL import Image

import datasets
from datasets import files, images, load
from datasets.images import choose_cache, decode, open_images, to_input
from datasets.protocol import observe
from util.errors import UserError

CPU = torch.device("cpu")


def test_a_data_set_is_a_known_one_or_a_folder(toy):
    datasets.check_name(toy)
    datasets.check_name(toy.parent / "coco")  # absent, but known: loading says how to make it
    with pytest.raises(UserError, match=r"unknown data set 'imagenet'; there are pascal.*digits, toy, and any folder"):
        datasets.check_name(toy.parent / "imagenet")


def test_the_splits_are_the_published_ones_of_the_formatted_arrays(toy):
    splits = load(toy)
    assert [len(split) for split in splits.named().values()] == [24, 6, 10]
    every = np.sort(np.concatenate([splits.train.names, splits.val.names]))
    assert (every == np.load(toy / "formatted_train_images.npy")).all()
    assert (splits.train.observed.sum(axis=1) == 1).all() and splits.train.observed.dtype == np.int8
    assert splits.classes.names == ["red", "green", "blue"]


def break_array(folder: Path, name: str, change) -> None:
    path = folder / f"formatted_{name}.npy"
    array = np.load(path)
    np.save(path, change(array))


def shifted(toy: Path) -> tuple:
    """The arguments of a formatting of the toy with its images and labels in another order."""
    splits, names = {}, np.roll(files.read_classes(toy, 3).names, 1).tolist()
    for split in files.SPLITS:
        found, labels = files.read_split(toy, split)
        splits[split] = (found[::-1].tolist(), np.roll(labels[::-1], 1, axis=1))
    return toy, splits, names, names, toy / "images"


@pytest.mark.parametrize("by_hand", [True, False])  # whether the old files were written without a manifest
def test_a_formatting_that_is_killed_between_two_files_is_no_data_set(toy, monkeypatch, by_hand):
    old, write_array, write_json = shifted(toy), files.write_array, files.write_json
    files.write_formatted(*old)
    new = shifted(toy)

    def killed(write):
        def write_or_die(path, content):
            if path.name != files.MANIFEST:
                left.pop()
            write(path, content)

        return write_or_die

    for written in range(6):
        files.write_formatted(*old)
        if by_hand:
            (toy / files.MANIFEST).unlink()
        left = [None] * written
        with monkeypatch.context() as patch, pytest.raises(IndexError):
            patch.setattr(files, "write_array", killed(write_array))
            patch.setattr(files, "write_json", killed(write_json))
            files.write_formatted(*new)
        with pytest.raises(UserError, match=r"was formatted together with the others.*make it with `python preproc"):
            load(toy)
    files.write_formatted(*new)
    draw(toy)
    assert load(toy).classes.names == new[2]


def draw(toy: Path) -> None:
    for split in files.SPLITS:
        files.write_observed(toy, split, observe(files.read_split(toy, split)[1]))


def test_a_file_of_a_formatting_that_is_gone_is_missed_and_without_the_manifest_it_is_not(toy):
    files.write_formatted(*shifted(toy))
    draw(toy)
    files.array_path(toy, "train", "labels").unlink()
    with pytest.raises(UserError, match=r"formatted_train_labels\.npy is not the file.*or remove .*formatted\.json"):
        load(toy)
    for part in ("images", "labels", "labels_obs"):
        files.array_path(toy, "val", part).unlink()
    (toy / files.MANIFEST).unlink()
    assert load(toy).train.true is None


def set_entry(value):
    def change(array):
        array[2, 1] = value
        return array

    return change


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("train_labels", lambda a: a[:-1], "29"),
        ("train_images", lambda a: a[:-1], "has 29 rows"),
        ("train_labels", set_entry(2), "holds 2 at row 2, label 1"),
        ("val_labels", lambda a: a[:, :2], "labels_obs.npy is (10, 3), but the labels are (10, 2)"),
        ("val_labels_obs", lambda a: a[:, :2], "labels_obs.npy is (10, 2)"),
        ("val_images", lambda a: a[:0], "has 0 rows"),
        ("train_labels_obs", set_entry(3), "one of (-1, 0, 1)"),
        ("train_labels_obs", lambda a: -a, "contradicts the labels"),
        ("train_images", lambda a: np.array([None] * 30, dtype=object), "not a plain NumPy array"),
        ("train_images", lambda a: np.arange(30), "expected strings"),
        ("train_labels", lambda a: a.astype(float) + 0.5, "labels must be one of (0, 1)"),
        ("train_labels", lambda a: a * float("nan"), "labels must be one of (0, 1)"),
    ],
)
def test_arrays_that_do_not_fit_are_told(toy, name, change, says):
    break_array(toy, name, change)
    with pytest.raises(UserError) as error:
        load(toy)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "name, command",
    [
        ("formatted_train_images.npy", "python preproc/format_coco.py --load-path"),
        ("formatted_val_labels_obs.npy", "python preproc/generate_observed_labels.py --dataset coco --data-root"),
        ("classes.json", "python preproc/format_coco.py"),
        ("source.json", "--image-root"),
    ],
)
def test_a_missing_file_comes_with_the_command_that_makes_it(tmp_path, name, command):
    folder = make_toy(tmp_path, "coco")
    (folder / name).unlink()
    with pytest.raises(UserError, match="not found") as error:
        load(folder)
    assert name in str(error.value) and command in str(error.value)


@pytest.mark.parametrize(
    "content, says", [("{", "not valid JSON"), ('{"names": ["a"]}', "3 strings"), ('["a", "a", "b"]', "differ")]
)
def test_class_names_that_do_not_fit_are_told(toy, content, says):
    (toy / "classes.json").write_text(content)
    with pytest.raises(UserError, match=says):
        load(toy)


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
    assert json.loads((toy / "source.json").read_text()) == {"image_root": "images"}
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
    with pytest.raises(UserError, match=r"bad\.jpg is not a readable image"):
        decode(str(path), 8)


@pytest.mark.parametrize("where", ["disk", "none"])
def test_a_stream_gives_the_images_asked_for_wherever_they_are_kept(toy, where, tmp_path):
    split = load(toy).train
    store = open_images(split, 16, where, tmp_path / "cache", CPU, 2)
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


def test_an_image_in_two_splits_is_refused(toy):
    break_array(toy, "val_images", lambda names: np.array(["train/001.png", *names[1:]]))
    with pytest.raises(UserError, match=r"train/001\.png is in both the train and the val images"):
        load(toy)


def test_a_bad_image_stops_the_cache_which_goes_on_once_it_is_mended(toy, tmp_path, monkeypatch):
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


def test_where_images_are_kept_follows_what_there_is_room_for(toy, tmp_path, monkeypatch, capsys):
    splits, huge = list(load(toy).named().values()), 10**7  # pixels
    assert choose_cache("none", splits, huge, tmp_path, CPU) == "none"
    assert choose_cache("auto", splits, 16, tmp_path, CPU) == "disk"
    assert choose_cache("auto", splits, huge, tmp_path, CPU) == "none"
    assert "no room" in capsys.readouterr().out
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**18}))
    assert choose_cache("auto", splits, huge, tmp_path, CPU) == "disk"
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    for split in splits:
        images.cache_file(split, 16, tmp_path).touch()  # what is there already needs no room
    assert choose_cache("auto", splits, 16, tmp_path, CPU) == "disk"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_cache("gpu", splits, 16, tmp_path, CPU)


@pytest.mark.parametrize("free, room", [(80e9, 64e9), (24e9, 12e9)])  # 16 GB are left, or half of the free memory
def test_the_gpu_keeps_the_images_that_leave_room_for_the_training(toy, tmp_path, monkeypatch, free, room):
    calls, split = [], load(toy).train
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("freed"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append("asked") or (free, 2 * free))
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**18}))
    size, gpu = int((room / 3 / len(split)) ** 0.5), torch.device("cuda")
    assert choose_cache("auto", [split], size - 1, tmp_path, gpu) == "gpu"
    assert choose_cache("auto", [split], size + 1, tmp_path, gpu) == "disk"
    assert calls == ["freed", "asked"] * 2  # what the teacher left in PyTorch's own cache is given back first


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
    }
    assert files.SPLITS == ("train", "val")
