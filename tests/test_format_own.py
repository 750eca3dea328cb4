"""Your own tables, folders and JSON files become a data set, and mistakes in them are reported in one line."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import files
from preproc import format_own, generate_observed_labels

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


def test_a_list_of_labels_gives_positives_and_leaves_the_rest_unknown(photos, capsys):
    folder = form(photos, "--labels", write(photos, "\ufeff" + LIST))
    assert read(folder) == (NAMES, None, [[0, 1], [1, 1], [1, 0], [0, 0]])
    assert files.read_classes(folder) == datasets.Classes(["cat", "dog"], ["cat", "dog"])
    out = capsys.readouterr().out
    assert (
        "train: 4 images, 2 classes, 4 positives (1.00 per image), 0 negatives; of all labels 50.0% are unknown" in out
    )
    assert (
        "labels.csv: 1 entries repeat an image and its label" in out
        and "1 images with nothing known" in out
        and "cat 2, dog 2" in out
    )
    assert "training sets a fifth of the training images aside" in out
    assert "methods that read full labels (bce, iun) are not available" in out
    splits = datasets.load(folder)
    assert [len(split) for split in splits.named().values()] == [3, 1] and splits.test is None


def test_a_column_per_class_gives_negatives_too(photos):
    folder = form(photos, "--labels", write(photos, COLUMNS))
    assert read(folder) == (NAMES, None, [[1, 0], [1, 1], [0, 1], [-1, 0]])
    assert files.read_classes(folder).names == ["dog", "cat"]


def test_columns_without_a_gap_are_full_labels(photos):
    folder = form(photos, "--labels", write(photos, COLUMNS.replace(",\n", ",0\n").replace(" -1", "0")))
    assert read(folder) == (NAMES, [[1, 0], [1, 1], [0, 1], [0, 0]], [[1, -1], [1, 1], [-1, 1], [-1, -1]])


def test_a_list_of_classes_gives_their_order_and_prompts(photos):
    classes = write(photos, "dog,a small dog\ncat\n", "classes.txt")
    folder = form(photos, "--labels", write(photos, LIST), "--classes", classes)
    assert files.read_classes(folder) == datasets.Classes(["dog", "cat"], ["a small dog", "cat"])
    assert read(folder)[2] == [[1, 0], [1, 1], [0, 1], [0, 0]]
    folder = form(
        photos, "--labels", write(photos, COLUMNS), "--classes", write(photos, "cat\ndog\n", "c"), "--overwrite"
    )
    assert read(folder)[2] == [[0, 1], [1, 1], [1, 0], [0, -1]]


def test_your_own_splits_are_kept(photos):
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


def test_fractions_are_drawn_reproducibly(photos):
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
    shutil.copy(by_class / "dog/deeper/a b.jpg", by_class / "dog/other name.jpg")
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


def test_bad_images_are_counted_and_left_out_with_skip_bad(photos, fails, capsys):
    (photos / NAMES[0]).write_text("no picture")
    (photos / NAMES[3]).unlink()
    labels = write(photos, LIST)
    line = fails(lambda argv: form(photos, *argv), ["--labels", labels])
    assert (
        "2 of 4 images are bad, the first b, c.jpg is not a readable image (of no known kind)" in line
        and "--skip-bad" in line
    )
    assert not (photos.parent / "data/mine").exists()
    assert read(form(photos, "--labels", labels, "--skip-bad"))[0] == NAMES[1:3]
    out = capsys.readouterr().out
    assert "d.png not found\n" in out and "left out 2 of 4 images" in out
    assert len(read(form(photos, "--labels", labels, "--no-check", "--overwrite"))[0]) == 4


@pytest.mark.parametrize(
    "table, message",
    [
        ("", "labels.csv begins with ''; it must have the header"),
        ("image,dog\n\n \n", "`image` and the names of the classes, and a row for each image"),
        ("image\na b.jpg\n", "begins with 'image\\na b.jpg\\n'; it must have the header"),
        ("image,label\na b.jpg,cat\nb, c.jpg,dog\n", "line 3: 3 fields, expected 2"),
        ("image,dog,cat\na b.jpg,1\n", "line 2: 2 fields, expected 3"),
        ("image,dog,cat\na b.jpg,1,maybe\n", "'maybe' in the column 'cat' of 'a b.jpg': the column of a class has"),
        ("a b.jpg,cat\nd.png,dog\n", "begins with 'a b.jpg,cat\\nd.png,dog\\n'; it must have the header"),
        ("image,dog,dog\na b.jpg,1,1\n", "the column 'dog' is listed twice; rename or remove one"),
        ("image,dog,cat\na b.jpg,1,1\n\na b.jpg,1,0\n", "two rows of 'a b.jpg' disagree on 'cat'"),
        ("image,dog,cat\na b.jpg,1,\n", "1 of 2 classes have no positive training image, the first 'cat'"),
        ("image,label\n,cat\n", "a row names no image: ', cat'"),
        ("image,label\n../a.jpg,cat\n", "'../a.jpg' lies outside the folder of images; --outside allows it"),
        ("image,label\n/elsewhere/a.jpg,cat\n", "'/elsewhere/a.jpg' lies outside"),
        ("image,label\nnone.jpg,cat\n", "1 of 1 images are bad, the first none.jpg not found"),
        (b"image,label\n\xff\xfe,cat\n", "is not text in UTF-8"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(photos, fails, table, message):
    path = Path(write(photos, ""))
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    assert message in fails(lambda argv: form(photos, *argv), ["--labels", str(path)])
    assert not (photos.parent / "data/mine").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": []}, "an annotation is of image 7, which the file does not list"),
        ({"annotations": 3}, "is not a COCO-style file"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "dog"}]}, "the category 'dog' is listed twice"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 3, "name": "cat"}]}, "the category '3' is listed twice"),
        ({"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]}, "first 'cow'"),
    ],
)
def test_a_json_file_that_is_wrong_is_one_line(photos, fails, changes, message):
    path = write(photos, coco(**changes), "coco.json")
    assert message in fails(lambda argv: form(photos, *argv), ["--labels", path])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--labels", "{list}", "--classes", "{empty}"], "`name` or `name,prompt name`, not ''"),
        (["--labels", "none.csv"], "none.csv not found"),
        (["--labels", "{list}", "--train", "{list}"], "give --labels with all the data, or --train"),
        ([], "give --labels with all the data, or --train"),
        (["--train", "{list}", "--val", "{list}"], "is listed twice; list it once, in one split"),
        (["--train", "{list}", "--val", "{columns}", "--val-fraction", "0.1"], "leave out --val-fraction"),
        (["--labels", "{list}", "--val-fraction", "1"], "leave some to train on"),
        (["--labels", "{list}", "--val-fraction", "0.5", "--test-fraction", "0.5"], "leave some to train on"),
        (["--labels", "{list}", "--name", "pascal"], "a plain name, not the name of a published data set"),
        (["--labels", "{list}", "--name", "../x"], "takes a plain name"),
        (["--labels", "{list}", "--delimiter", "ab"], "must be a 1-character string"),
        (["--labels", "{list}", "--images", "none"], "--images none is no folder"),
        (["--labels", "{photos}"], "photos holds no pictures of a class; each class needs a folder of pictures"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(photos, fails, arguments, message):
    (photos / "nothing").mkdir()
    shutil.rmtree(photos / "über") if "{photos}" in arguments else None
    places = {
        "list": write(photos, LIST),
        "columns": write(photos, COLUMNS, "columns.csv"),
        "empty": write(photos, "", "empty.txt"),
        "photos": str(photos),
    }
    assert message in fails(lambda argv: form(photos, *argv), [part.format(**places) for part in arguments])


def test_a_data_set_is_replaced_only_with_overwrite(photos, fails):
    form(photos, "--labels", write(photos, LIST))
    line = fails(lambda argv: form(photos, *argv), ["--labels", write(photos, COLUMNS)])
    assert "holds a data set; --overwrite replaces it" in line


def test_paths_may_lead_outside_with_outside(photos):
    table = write(photos, f"image,label\n../photos/d.png,cat\n{photos}/a b.jpg,cat\n")
    folder = form(photos, "--labels", table, "--outside", "--val-fraction", "0")
    assert all(Path(path).is_file() for path in datasets.load(folder).train.paths())


def test_a_wide_table_is_read_as_a_narrow_one(photos):
    random = np.random.RandomState(0)
    marks = random.choice(["1", "0", "", "-1", "1.0", " 0"], size=(200, 40))
    rows = [[f"{row}.jpg", *part] for row, part in enumerate(marks.tolist())]
    table = write(photos, "\n".join(",".join(row) for row in [["image", *(f"c{i}" for i in range(40))], *rows]))
    observed = read(form(photos, "--labels", table, "--no-check"))[2]
    mark_of = {"1": 1, "0": -1, "": 0, "-1": 0}
    assert observed == [[mark_of[mark.strip().removesuffix(".0")] for mark in part] for part in marks.tolist()]


def test_two_spellings_of_a_name_are_one_image(photos):
    folder = form(photos, "--labels", write(photos, "image,label\nd.png,cat\n./d.png,dog\nüber//ü.jpg,dog\n"))
    assert read(folder) == (["d.png", "über/ü.jpg"], None, [[1, 1], [0, 1]])


def test_fully_labelled_data_are_reduced_to_one_positive_by_the_printed_command(photos, capsys):
    form(photos, "--labels", write(photos, COLUMNS), "--complete", "all")
    line = next(line for line in capsys.readouterr().out.splitlines() if "keep one positive" in line)
    script, *arguments = shlex.split(line.split(": ")[1])[1:]
    assert script == "preproc/generate_observed_labels.py"
    generate_observed_labels.main(arguments)
    observed = read(photos.parent / "data/mine")[2]
    assert [sorted(row) for row in observed] == [[0, 1], [0, 1], [0, 1], [0, 0]]


def test_a_class_folder_that_links_to_its_sibling_is_one_line(photos, fails):
    by_class = photos.parent / "by class"
    (by_class / "cat").mkdir(parents=True)
    shutil.copy(photos / "d.png", by_class / "cat")
    (by_class / "dog").symlink_to("cat")
    line = fails(format_own.main, ["--name", "mine", "--labels", str(by_class)])
    assert f"{by_class / 'dog'} holds no pictures of a class" in line and "no link to the folder" in line
