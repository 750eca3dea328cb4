"""Tables, folders and JSON files of one's own become a data set, and what is wrong in them is one line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import files
from preproc import format_own

NAMES = ["b, c.jpg", "a b.jpg", "über/ü.jpg", "d.png"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four pictures, in `photos`, that all differ."""
    folder = tmp_path / "photos"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / name)
    return folder


def write(folder: Path, text: str, name: str = "labels.csv") -> str:
    path = folder.parent / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def form(folder: Path, *arguments: str) -> Path:
    """Format as `mine`, from pictures in `folder`."""
    root = folder.parent / "data"
    images = [] if "--images" in arguments else ["--images", str(folder)]
    format_own.main(["--name", "mine", "--data-root", str(root), *images, *arguments])
    return root / "mine"


def read(folder: Path, split: str = "train") -> tuple[list[str], list | None, list]:
    images, true, observed = files.read_all(folder)[split]
    return images.tolist(), None if true is None else true.tolist(), observed.tolist()


LIST = 'image,label\n"b, c.jpg",dog\na b.jpg,cat|dog\nüber/ü.jpg,cat\nd.png,\na b.jpg,dog\n'
COLUMNS = 'image,dog,cat\n"b, c.jpg",1,\na b.jpg,1,1\nüber/ü.jpg, -1,1.0\nd.png,0,\n'


def test_a_list_of_labels_says_what_is_present_and_nothing_else(photos, capsys):
    folder = form(photos, "--labels", write(photos, "\ufeff" + LIST))
    assert read(folder) == (NAMES, None, [[0, 1], [1, 1], [1, 0], [0, 0]])
    assert files.read_classes(folder, 2) == datasets.Classes(["cat", "dog"], ["cat", "dog"])
    out = capsys.readouterr().out
    assert (
        "train: 4 images, 2 classes, 4 positives (1.00 per image), 0 negatives; of all labels 50.0% are unknown" in out
    )
    assert "1 images with nothing known; 1 entries were there twice" in out and "cat 2, dog 2" in out
    assert "training sets a fifth of the training images aside" in out
    assert "a method that reads full labels (bce, iun) cannot be had" in out
    splits = datasets.load(folder)
    assert [len(split) for split in splits.named().values()] == [3, 1] and splits.test is None


def test_a_column_per_class_says_what_is_absent_too(photos):
    folder = form(photos, "--labels", write(photos, COLUMNS))
    assert read(folder) == (NAMES, None, [[1, 0], [1, 1], [0, 1], [-1, 0]])
    assert files.read_classes(folder, 2).names == ["dog", "cat"]


def test_columns_without_a_gap_are_full_labels(photos):
    folder = form(photos, "--labels", write(photos, COLUMNS.replace(",\n", ",0\n").replace(" -1", "0")))
    assert read(folder) == (NAMES, [[1, 0], [1, 1], [0, 1], [0, 0]], [[1, -1], [1, 1], [-1, 1], [-1, -1]])


def test_a_tab_or_another_delimiter_separates_columns(photos):
    tabs = LIST.replace('"b, c.jpg"', "b, c.jpg").replace(",dog", "\tdog").replace(",cat", "\tcat")
    tabs = tabs.replace("image,", "image\t").replace("png,", "png\t")
    expected = read(form(photos, "--labels", write(photos, LIST)))
    assert read(form(photos, "--labels", write(photos, tabs, "labels.tsv"), "--overwrite")) == expected
    semicolons = write(photos, tabs.replace("\t", ";"))
    assert read(form(photos, "--labels", semicolons, "--delimiter", ";", "--overwrite")) == expected


def test_a_split_that_names_all_its_labels_has_full_ones(photos):
    folder = form(photos, "--labels", write(photos, LIST), "--complete", "all", "--val-fraction", "0.25")
    assert read(folder)[1] is not None and len(read(folder)[0]) == 3
    assert len(read(folder, files.VALIDATION)[1]) == 1


def test_a_list_of_classes_gives_their_order_and_prompts(photos):
    classes = write(photos, "dog,a small dog\ncat\n", "classes.txt")
    folder = form(photos, "--labels", write(photos, LIST), "--classes", classes)
    assert files.read_classes(folder, 2) == datasets.Classes(["dog", "cat"], ["a small dog", "cat"])
    assert read(folder)[2] == [[1, 0], [1, 1], [0, 1], [0, 0]]
    folder = form(
        photos, "--labels", write(photos, COLUMNS), "--classes", write(photos, "cat\ndog\n", "c"), "--overwrite"
    )
    assert read(folder)[2] == [[0, 1], [1, 1], [1, 0], [0, -1]]


def test_splits_of_ones_own_are_taken_as_given(photos):
    header, val, train, test, *_ = LIST.splitlines()
    arguments = []
    for split, row in (("train", train), ("val", val), ("test", test)):
        arguments += [f"--{split}", write(photos, f"{header}\n{row}\n", f"{split}.csv")]
    folder = form(photos, *arguments)
    splits = datasets.load(folder)
    assert [split.names.tolist() for split in splits.named().values()] == [[NAMES[1]], [NAMES[0]], [NAMES[2]]]
    form(photos, "--labels", write(photos, LIST), "--overwrite", "--val-fraction", "0")
    splits = datasets.load(folder)  # the earlier splits are gone
    assert splits.val is None and splits.test is None and len(splits.train) == 4


def test_fractions_are_drawn_once_and_for_all(photos):
    how = ("--labels", write(photos, LIST), "--val-fraction", "0.25", "--test-fraction", "0.25", "--keep-empty")
    first = [split.names.tolist() for split in datasets.load(form(photos, *how)).named().values()]
    again = [split.names.tolist() for split in datasets.load(form(photos, *how, "--overwrite")).named().values()]
    assert first == again and [len(names) for names in first] == [2, 1, 1]
    assert sorted(name for names in first for name in names) == sorted(NAMES)


def test_a_folder_is_a_label_and_a_picture_in_two_folders_has_both(photos):
    for label, names in {"cat": NAMES[:2], "dog": NAMES[1:3]}.items():
        for name in names:
            place = photos.parent / "by class" / label / "deeper" / Path(name).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / name, place)
    by_class = photos.parent / "by class"
    (by_class / "dog/notes.txt").write_text("no picture")
    shutil.copy(by_class / "dog/deeper/a b.jpg", by_class / "dog/another name.jpg")
    folder = form(photos, "--labels", str(by_class), "--images", str(by_class))
    names = ["cat/deeper/a b.jpg", "cat/deeper/b, c.jpg", "dog/deeper/ü.jpg"]
    assert read(folder) == (names, None, [[1, 1], [1, 0], [0, 1]])
    assert len(datasets.load(folder).train) == 2
    folder = form(photos, "--labels", str(by_class), "--overwrite", "--images", str(photos.parent))
    assert read(folder)[0] == [f"by class/{name}" for name in names]


def coco(**changes: object) -> str:
    content = {
        "images": [{"id": 7, "file_name": NAMES[0], "width": 8}, {"id": "x", "file_name": NAMES[1]}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1]}] * 2 + [{"image_id": "x", "category_id": 1}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    return json.dumps(content | changes)


def test_a_coco_style_file_is_read(photos):
    folder = form(photos, "--labels", write(photos, coco(), "coco.json"))
    assert read(folder) == (NAMES[:2], None, [[1, 0], [0, 1]])
    assert files.read_classes(folder, 2).names == ["dog", "cat"]


def test_bad_images_are_counted_and_left_out_where_that_is_asked_for(photos, fails, capsys):
    (photos / NAMES[0]).write_text("no picture")
    (photos / NAMES[3]).unlink()
    labels = write(photos, LIST)
    line = fails(lambda argv: form(photos, *argv), ["--labels", labels])
    assert "b, c.jpg is unreadable (of 4 train images 1 missing, 1 unreadable)" in line and "--skip-bad" in line
    assert not (photos.parent / "data/mine").exists()
    assert read(form(photos, "--labels", labels, "--skip-bad"))[0] == NAMES[1:3]
    assert "left out 1 missing, 1 unreadable images" in capsys.readouterr().out
    assert len(read(form(photos, "--labels", labels, "--no-check", "--overwrite"))[0]) == 4


@pytest.mark.parametrize(
    "table, says",
    [
        ("", "is empty"),
        ("image,label\n", "a header and no rows"),
        ("image,dog\n\n \n", "a header and no rows"),
        ("image;label\na b.jpg;cat\n", "none for labels; give --delimiter ';'"),
        ("image\na b.jpg\n", "has the one column 'image', and none for labels"),
        ("image,label\na b.jpg,cat\nb, c.jpg,dog\n", "line 3: 3 fields, expected 2"),
        ("image,label\na b.jpg\n", "line 2: 1 fields, expected 2"),
        ("image,dog,cat\na b.jpg,1\n", "line 2: 2 fields, expected 3"),
        ("image,dog,cat\na b.jpg,1,0,1\n", "line 2: 4 fields, expected 3"),
        ("image,dog,cat\na b.jpg,1,yes\n", "line 2: 'yes' is none of 1, 0, -1 and empty"),
        ("a b.jpg,cat\nd.png,dog\n", "the header `image,label`"),
        ("image,dog,dog\na b.jpg,1,1\n", "names the class 'dog' twice"),
        ("image,dog,cat\na b.jpg,1,1\n\na b.jpg,1,0\n", "lines 2 and 4 disagree on 'cat' of 'a b.jpg'"),
        ("image,dog,cat\na b.jpg,1,\n", "1 of 2 classes have no positive training image, the first 'cat'"),
        ("image,label\n,cat\n", "line 2: '' is no name of an image"),
        ("image,label\n../a.jpg,cat\n", "'../a.jpg' lies outside the folder of images; --outside allows it"),
        ("image,label\n/elsewhere/a.jpg,cat\n", "'/elsewhere/a.jpg' lies outside"),
        ("image,label\nnone.jpg,cat\n", "none.jpg is missing (of 1 train images 1 missing)"),
        ('image,label\n"' + "x" * 200_000 + '",cat\n', "line 2: field larger than field limit"),
        ("image,label\na b.jpg,c\0\n", "'c\\x00' is no name of a class"),
        (b"image,label\n\xff\xfe,cat\n", "is not text in UTF-8"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(photos, fails, table, says):
    path = Path(write(photos, ""))
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    assert says in fails(lambda argv: form(photos, *argv), ["--labels", str(path)])
    assert not (photos.parent / "data/mine").exists()


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"images": []}, "an annotation is of image 7, which it does not list"),
        ({"categories": []}, "an annotation is of category 3"),
        ({"images": [], "annotations": []}, "lists no images"),
        ({"annotations": 3}, "is not a COCO-style file"),
        ({"images": [{"id": 7, "file_name": ""}]}, "image 7: '' is no name of an image"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "dog"}]}, "two categories of the name 'dog'"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]}, "first 'cow'"),
    ],
)
def test_a_json_file_that_is_wrong_is_one_line(photos, fails, changes, says):
    path = write(photos, coco(**changes), "coco.json")
    assert says in fails(lambda argv: form(photos, *argv), ["--labels", path])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--labels", "{list}", "--classes", "{one}"], "names the unknown label 'dog'"),
        (["--labels", "{columns}", "--classes", "{one}"], "names the unknown label 'dog'"),
        (["--labels", "{list}", "--classes", "{empty}"], "names no classes"),
        (["--labels", "none.csv"], "none.csv not found"),
        (["--labels", "{list}", "--train", "{list}"], "give --labels with all the data, or --train"),
        ([], "give --labels with all the data, or --train"),
        (["--val", "{list}"], "give --labels with all the data, or --train"),
        (["--train", "{list}", "--val", "{list}"], "is in two of the splits"),
        (["--train", "{list}", "--val", "{columns}", "--val-fraction", "0.1"], "not both"),
        (["--labels", "{list}", "--val-fraction", "1"], "must lie in [0, 1)"),
        (["--labels", "{list}", "--val-fraction", "0.5", "--test-fraction", "0.5"], "leave none of 4 images"),
        (["--labels", "{list}", "--name", "pascal"], "pascal is the name of a published data set"),
        (["--labels", "{list}", "--name", "../x"], "takes a plain name"),
        (["--labels", "{list}", "--delimiter", "ab"], "takes one character"),
        (["--labels", "{list}", "--images", "none"], "--images none is no folder"),
        (["--labels", "{photos}"], "holds no pictures"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(photos, fails, arguments, says):
    (photos / "nothing").mkdir()
    shutil.rmtree(photos / "über") if "{photos}" in arguments else None
    places = {
        "list": write(photos, LIST),
        "columns": write(photos, COLUMNS, "columns.csv"),
        "one": write(photos, "cat\n", "one.txt"),
        "empty": write(photos, "", "empty.txt"),
        "photos": str(photos),
    }
    assert says in fails(lambda argv: form(photos, *argv), [part.format(**places) for part in arguments])


def test_a_data_set_is_replaced_only_where_that_is_asked_for(photos, fails):
    form(photos, "--labels", write(photos, LIST))
    line = fails(lambda argv: form(photos, *argv), ["--labels", write(photos, COLUMNS)])
    assert "holds a data set; --overwrite replaces it" in line


def test_paths_may_lead_outside_where_that_is_allowed(photos):
    table = write(photos, f"image,label\n../photos/d.png,cat\n{photos}/a b.jpg,cat\n")
    folder = form(photos, "--labels", table, "--outside", "--val-fraction", "0")
    assert all(Path(path).is_file() for path in datasets.load(folder).train.paths())


def test_a_wide_table_is_read_as_a_narrow_one(photos):
    random = np.random.RandomState(0)
    marks = random.choice(["1", "0", "", "-1", "1.0", " 0"], size=(200, 40))
    rows = [[f"{row}.jpg", *part] for row, part in enumerate(marks.tolist())]
    table = write(photos, "\n".join(",".join(row) for row in [["image", *(f"c{i}" for i in range(40))], *rows]))
    observed = read(form(photos, "--labels", table, "--no-check"))[2]
    assert observed == [[format_own.FOUND[mark.strip().removesuffix(".0")] for mark in part] for part in marks.tolist()]


def test_two_spellings_of_a_name_are_one_image(photos):
    folder = form(photos, "--labels", write(photos, "image,label\nd.png,cat\n./d.png,dog\nüber//ü.jpg,dog\n"))
    assert read(folder) == (["d.png", "über/ü.jpg"], None, [[1, 1], [0, 1]])


def test_what_is_no_regular_file_is_told_at_once(photos, fails):
    os.mkfifo(photos / "pipe.png")
    path = write(photos, "image,label\npipe.png,cat\n")
    assert "pipe.png is unreadable" in fails(lambda argv: form(photos, *argv), ["--labels", path])
    os.truncate(path, 2**42)  # nothing but a hole
    assert "has 4,398,046,511,104 bytes" in fails(lambda argv: form(photos, *argv), ["--labels", path])
