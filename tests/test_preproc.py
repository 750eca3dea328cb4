"""Raw files become the published arrays, element by element; check.py and generate_observed_labels.py."""

import json

import numpy as np
import pytest
from conftest import make_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import files
from datasets.protocol import observe, split_indices
from preproc import check, format_coco, format_cub, format_nuswide, format_pascal, generate_observed_labels


def write_voc(root, train=("2008_000002", "2008_000001"), marks=("-1", "1")):
    folder = root / "VOCdevkit/VOC2012/ImageSets/Main"
    folder.mkdir(parents=True)
    for name in format_pascal.CLASSES:
        for split in ("train", "val"):
            (folder / f"{name}_{split}.txt").write_text(
                "".join(f"{a if split == 'train' else '1' + a} {b:>2}\n" for a, b in zip(train, marks, strict=True))
            )
    return folder


def test_pascal_becomes_the_published_arrays(real, tmp_path, capsys):
    reference = np.load(real / "reference/voc2012_protocol.npz")
    format_pascal.main(["--load-path", str(real / "realdata/voc2012"), "--save-path", str(tmp_path / "pascal")])
    generate_observed_labels.main(["--dataset", "pascal", "--data-root", str(tmp_path)])
    for split in files.SPLITS:
        images, true = files.read_split(tmp_path / "pascal", split)
        observed = files.read_all(tmp_path / "pascal")[split][2]
        assert (images == reference[f"{split}_images"]).all()
        assert (true == reference[f"{split}_labels"]).all()
        assert (observed.sum(axis=1) == 1).all()
        assert (observed.argmax(axis=1) == reference[f"{split}_observed_class"]).all()
    train, val = split_indices(len(reference["train_images"]))
    assert (train == reference["split_train_idx"]).all() and (val == reference["split_val_idx"]).all()
    assert "5,717 images (expected 5,717)" in capsys.readouterr().out


def test_pascal_sorts_images_and_warns_of_counts_that_differ(tmp_path, capsys):
    write_voc(tmp_path)
    format_pascal.main(["--load-path", str(tmp_path), "--save-path", str(tmp_path / "out")])
    images, labels = files.read_split(tmp_path / "out", "train")[0], files.read_split(tmp_path / "out", "train")[1]
    assert images.tolist() == ["2008_000001.jpg", "2008_000002.jpg"] and labels[:, 0].tolist() == [1, 0]
    assert "WARNING: train differs from the published counts of pascal" in capsys.readouterr().out
    assert files.image_root(tmp_path / "out", None) == tmp_path / "VOCdevkit/VOC2012/JPEGImages"


def test_pascal_counts_difficult_as_negative(tmp_path):
    write_voc(tmp_path, marks=("0", "1"))
    format_pascal.main(["--load-path", str(tmp_path), "--save-path", str(tmp_path / "out")])
    assert files.read_split(tmp_path / "out", "val")[1][:, 3].tolist() == [1, 0]


@pytest.mark.parametrize(
    "module, name", [(format_pascal, "pascal"), (format_coco, "coco"), (format_cub, "cub"), (format_nuswide, "nuswide")]
)
def test_absent_raw_files_are_reported_with_the_command_that_fetches_them(module, name, tmp_path, fails):
    line = fails(module.main, ["--load-path", str(tmp_path), "--save-path", str(tmp_path / "out")])
    assert f"python preproc/download.py --dataset {name}" in line
    assert not (tmp_path / "out").exists()


def write_coco(root, annotations=((9, 3), (10, 1), (10, 3), (9, 3))):
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        content = {
            "info": {"ignored": [1, {"deeply": None}]},
            "images": [{"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg"} for i in (7, 9, 10)],
            "annotations": [
                {"segmentation": [[1.5]], "image_id": i, "category_id": c, "id": 1} for i, c in annotations
            ],
            "categories": [{"id": 1, "name": "person", "supercategory": "x"}, {"id": 3, "name": "traffic light"}],
        }
        (root / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))


def test_coco_drops_images_without_annotation_and_sorts_ids_as_strings(tmp_path):
    write_coco(tmp_path)
    format_coco.main(["--load-path", str(tmp_path), "--save-path", str(tmp_path)])
    assert files.read_split(tmp_path, "train")[0].tolist() == [  # "10" < "9"
        "train2014/COCO_train2014_000000000010.jpg",
        "train2014/COCO_train2014_000000000009.jpg",
    ]
    assert files.read_split(tmp_path, "val")[1].tolist() == [[1, 1], [0, 1]]
    assert files.read_classes(tmp_path).names == ["person", "traffic light"]


def test_coco_mini_formats_like_the_whole(real, tmp_path):
    format_coco.main(["--load-path", str(real / "realdata/coco2014-mini"), "--save-path", str(tmp_path)])
    images, labels = files.read_split(tmp_path, "train")[0], files.read_split(tmp_path, "train")[1]
    assert labels.shape == (70, 80) and (labels.sum(axis=1) > 0).all()
    assert all((files.image_root(tmp_path, None) / name).exists() for name in images)


def write_cub(root, extra=""):
    folder = root / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True)
    (folder / "images.txt").write_text("1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n")
    (folder / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    (root / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n2 has_size::small_(5_-_9_in)\n")
    rows = [(image, attribute, (image + attribute) % 2) for image in (1, 2, 3) for attribute in (1, 2)]
    lines = [f"{i} {a} {p} 3 27.7080{extra if i == 2 else ''}\n" for i, a, p in rows]
    (folder / "attributes/image_attribute_labels.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("extra", ["", " 1.5 9"])
def test_cub_ignores_extra_columns(extra, tmp_path):
    write_cub(tmp_path, extra)
    format_cub.main(["--load-path", str(tmp_path), "--save-path", str(tmp_path)])
    assert files.read_split(tmp_path, "train")[0].tolist() == ["001.A/b.jpg", "002.B/c.jpg"]
    assert files.read_split(tmp_path, "train")[1].tolist() == [[1, 0], [0, 1]]
    assert files.read_split(tmp_path, "val")[1].tolist() == [[0, 1]]
    assert files.read_classes(tmp_path).prompt_names == ["curved (up or down) bill shape", "small (5 - 9 in) size"]


def write_nuswide(root):
    for split, count in (("train", 3), ("val", 2)):
        np.save(root / f"formatted_{split}_images.npy", np.array([f"{split}/{i}.jpg" for i in range(count)]))
        np.save(root / f"formatted_{split}_labels.npy", np.eye(count, 81))  # float64, as published


def test_nuswide_arrays_are_checked_and_described(tmp_path, capsys):
    write_nuswide(tmp_path)
    format_nuswide.main(["--load-path", str(tmp_path), "--save-path", str(tmp_path)])
    assert files.read_split(tmp_path, "train")[1].dtype == np.int8
    assert files.read_classes(tmp_path).names[-1] == "zebra"
    assert "Flickr.zip" in capsys.readouterr().out


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=8),
)
def test_observed_labels_are_some_of_the_true_ones(num_pos, num_neg, rows):
    labels = np.array(rows)
    observed = observe(labels, num_pos=num_pos, num_neg=num_neg)
    assert ((observed != 1) | (labels == 1)).all() and ((observed != -1) | (labels == 0)).all()
    assert (observed == 1).sum(axis=1).tolist() == np.minimum(num_pos, labels.sum(axis=1)).tolist()
    assert (observed == -1).sum(axis=1).tolist() == np.minimum(num_neg, (1 - labels).sum(axis=1)).tolist()


def test_rows_without_positives_stay_unknown_and_negatives_do_not_change_the_positives():
    labels = (np.random.RandomState(0).rand(50, 6) < 0.3).astype(np.int8)
    labels[7] = 0
    single, both = observe(labels), observe(labels, num_neg=2)
    assert (single[7] == 0).all()
    assert ((single == 1) == (both == 1)).all()


def test_drawing_labels_without_a_data_set_names_the_formatting_command(tmp_path, fails):
    line = fails(generate_observed_labels.main, ["--dataset", "coco", "--data-root", str(tmp_path)])
    assert "python preproc/format_coco.py" in line


def test_check_lists_every_bad_image(tmp_path, capsys):
    folder = make_toy(tmp_path)
    (folder / "images/train/001.png").unlink()
    (folder / "images/train/002.png").write_bytes((folder / "images/train/002.png").read_bytes()[:100])
    for name, kind in (("004.png", "AVIF"), ("005.png", "DDS")):
        Image.new("RGB", (32, 32)).save(folder / "images/train" / name, kind)
        content = (folder / "images/train" / name).read_bytes()
        (folder / "images/train" / name).write_bytes(content[: len(content) // 2])
    (folder / "images/val/003.png").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        check.main(["--dataset", "toy", "--data-root", str(tmp_path)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert "train: 4 of 30 images are bad" in out and "test: 1 of 10 images are bad" in out
    bad = ("001.png not found", "002.png", "004.png", "005.png", "003.png is not a readable image (of no known kind)")
    assert all(what in line for what, line in zip(bad, err.splitlines(), strict=True))


def test_check_reports_in_one_line_that_a_data_set_of_features_has_no_pixels(tmp_path, fails):
    line = fails(check.main, ["-d", "photos", "--data-root", str(tmp_path)])
    assert "photos has no pixels to check: none of its images is below" in line and "--image-root DIR" in line


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("images", lambda a: a[[0, *range(29)]], "the image 'train/000.png' is listed twice"),
        ("labels", lambda a: a[:, :2], "expected (30, 3): images and classes"),
        ("labels", lambda a: 2 * a, "full labels of train must be 0 or 1"),
        ("labels_obs", lambda a: 2 * a, "observed ones 0, or 1 and -1"),
        ("labels_obs", lambda a: -a, "as the full labels are 1 and 0"),
    ],
)
def test_check_reports_arrays_that_do_not_fit_together(toy, fails, part, change, message):
    path = files.array_path(toy, "train", part)
    np.save(path, change(np.load(path)))
    assert message in fails(check.main, ["--dataset", "toy", "--data-root", str(toy.parent)])


@pytest.mark.parametrize(
    "field, message", [("classes", "the class 'red' is listed twice"), ("prompt_names", "as many prompt names, not 2")]
)
def test_check_reports_class_names_that_do_not_fit(toy, fails, field, message):
    path = files.description_path(toy)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: ["red", "red"]}))
    assert message in fails(check.main, ["--dataset", "toy", "--data-root", str(toy.parent)])
