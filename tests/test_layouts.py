"""The layouts in which people have their labels are read, or refused in one line."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from datasets import files
from preproc import format_own

COCO = {
    "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1.0, "file_name": "b.jpg"}],
    "annotations": [{"image_id": "0", "category_id": 1.0}, {"image_id": 1, "category_id": "2"}],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animals"}, {"id": 2, "name": "dog"}],
}
ROOT = {"id": 0, "name": "animals", "supercategory": "none"}
TWO = {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
VOC = "<annotation><filename>{}</filename><object><name>{}</name></object></annotation>"
SPLIT_FOLDERS = {f"{split}/_classes.csv": f"filename, cat, dog\n{split}.jpg, 1, 1\n" for split in ("train", "valid")}
KINDS = {  # files beside a.jpg, b.jpg; arguments; labels of the images, or a part of the error; a part of the output
    "semicolon": (
        {"l.csv": "image;cat, domestic;dog\na.jpg;1;0\nb.jpg;0;1\n"},
        "--labels l.csv",
        {"a.jpg": {"cat, domestic"}, "b.jpg": {"dog"}},
        "",
    ),
    "excel": (
        {"l.csv": "\ufeffsep=;\r\nimage;label;\r\na.jpg;cat;\r\nb.jpg;dog;\r\n;;\r\n"},
        "--labels l.csv",
        TWO,
        "",
    ),
    "tab as typed": ({"l.csv": "image\tlabel\na.jpg\tcat\nb.jpg\tdog\n"}, "--labels l.csv --delimiter \\t", TWO, ""),
    "ambiguous delimiter": ({"l.csv": "image;a,b\na.jpg;1,0\n"}, "--labels l.csv", "choose with --delimiter", ""),
    "true and false": ({"l.csv": "image,cat,dog\na.jpg,True,FALSE\nb.jpg,.0,1.0\n"}, "--labels l.csv", TWO, ""),
    "minus one": (
        {"l.csv": "image,cat,dog\na.jpg,1,-1\nb.jpg,-1,1\n"},
        "--labels l.csv",
        TWO,
        "no 0; -1 is read as unknown",
    ),
    "glued": ({"l.csv": "image,cat,dog\na.jpg,100\n"}, "--labels l.csv", "line 2: 2 fields, expected 3", ""),
    "newline": (
        {"l.csv": 'image,label\na.jpg,"cat\n  siamese"\nb.jpg,dog\n'},
        "--labels l.csv",
        {"a.jpg": {"cat siamese"}, "b.jpg": {"dog"}},
        "",
    ),
    "index": ({"l.csv": ",image,label\n0,a.jpg,cat\n1,b.jpg,dog\n"}, "--labels l.csv", TWO, ""),
    "boxes": (
        {"l.csv": "width,filename,class,xmin\n8,a.jpg,cat,1\n8,b.jpg,dog,2\n"},
        "--labels l.csv",
        TWO,
        "not read: 'width', 'xmin'",
    ),
    "no marks": ({"l.csv": "image,label\na.jpg,\nb.jpg,\n"}, "--labels l.csv", "names no labels", ""),
    "split column": (
        {"l.csv": "image,label,split\na.jpg,cat,train\nb.jpg,cat,Test\n"},
        "--labels l.csv",
        {"a.jpg": {"cat"}},
        "test: 1 images",
    ),
    "comma in a label": (
        {"l.csv": 'image,label\na.jpg,"cat, dog"\nb.jpg,dog\nb.jpg,cat\n'},
        "--labels l.csv",
        "--separator ','",
        "",
    ),
    "parts of labels": (
        {"l.csv": "image,label\na.jpg,cat;dog\nb.jpg,dog;cow\nb.jpg,cat\n"},
        "--labels l.csv",
        "--separator ';'",
        "",
    ),
    "separator": (
        {"l.csv": "image,label\na.jpg,cat dog\nb.jpg,dog\n"},
        ["--labels", "l.csv", "--separator", " "],
        {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}},
        "",
    ),
    "not separated": (
        {"l.csv": 'image,label\na.jpg,"cat, wild"\nb.jpg,dog\n'},
        "--labels l.csv",
        {"a.jpg": {"cat, wild"}, "b.jpg": {"dog"}},
        "",
    ),
    "lists": (
        {"l.csv": "image;label\na.jpg;['cat', 'dog']\nb.jpg;" + '{"choices":["dog"]}' + "\n"},
        "--labels l.csv",
        {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}},
        "",
    ),
    "missing values": (
        {"l.csv": "image,label\na.jpg,cat\na.jpg,nan\nb.jpg,None\nb.jpg,dog\n"},
        "--labels l.csv",
        TWO,
        "2 rows have nan, None or null",
    ),
    "one spelling": (
        {"l.csv": "image,label\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\u200b \nb.jpg,Caf\u00e9\n"},
        "--labels l.csv",
        {"a.jpg": {"caf\u00e9"}, "b.jpg": {"caf\u00e9", "Caf\u00e9"}},
        "differ in case only",
    ),
    "nearly": (
        {
            "l.csv": "image,label\n.\\A.JPG,cat\n b ,dog\n",
            "sub/c d\u00e9.png": "",
            "m.csv": "image,label\nsub\\c%20de\u0301.PNG,cow\n",
        },
        "--train l.csv --val m.csv --no-check --keep-empty",
        TWO,
        "1 names of images differ",
    ),
    "choice of classes": (
        {"l.csv": "image,label\na.jpg,cat\nb.jpg,dog\nb.jpg,dgo\n", "c.txt": "dog\ncat,a cat\n"},
        "--labels l.csv --classes c.txt",
        TWO,
        "leaves out 1 classes of the labels: 'dgo' (1 positives)",
    ),
    "beside each table": (
        SPLIT_FOLDERS | {"train/train.jpg": "", "valid/valid.jpg": ""},
        "--train train/_classes.csv --val valid --no-check",
        {"train/train.jpg": {"cat", "dog"}},
        "val: 1 images",
    ),
    "coco": (
        {"l.json": "\ufeff" + json.dumps(COCO | {"categories": [ROOT, *COCO["categories"]]})},
        "--labels l.json",
        TWO,
        "left out 'animals'",
    ),
    "coco's repeated id": (
        {"l.json": json.dumps(COCO | {"images": [{"id": 0, "file_name": "a.jpg"}, {"id": "0", "file_name": "b.jpg"}]})},
        "--labels l.json",
        "two images have the id 0 (a.jpg and b.jpg)",
        "",
    ),
    "coco's nan": ({"l.json": json.dumps(COCO | {"score": float("nan")})}, "--labels l.json", TWO, ""),
    "utf-16": (
        {"l.csv": "image,label\na.jpg,cat\nb.jpg,dog\n".encode("utf-16")},
        "--labels l.csv",
        TWO,
        "",
    ),
    "pipe": ({"l.csv": None}, "--labels l.csv", "l.csv is no regular file", ""),
    "pipe of classes": (
        {"l.csv": "image,label\na.jpg,cat\n", "c.txt": None},
        "--labels l.csv --classes c.txt",
        "c.txt is no regular file",
        "",
    ),
    "pipe of annotations": ({"voc/a.xml": None}, "--labels voc", "a.xml is no regular file", ""),
    "pipe as image": (
        {"l.csv": "image,label\nc.jpg,cat\n", "c.jpg": None},
        "--labels l.csv",
        "c.jpg is no regular file",
        "",
    ),
    "voc": (
        {"Annotations/a.xml": VOC.format("a.jpg", "cat"), "Annotations/b.xml": VOC.format("b", "dog")},
        "--labels Annotations --images .",
        TWO,
        "",
    ),
    "yolo": (
        {
            "set/labels/train/a.txt": "1 .5 .5 1 1\n",
            "set/labels/train/b.txt": "0 .5 .5 1 1\n0 .1 .1 1 1\n",
            "set/data.yaml": "names: {0: dog, 1: cat}",
            "set/images/train/a.png": "",
            "set/images/train/b.jpeg": "",
        },
        "--labels set/labels/train --no-check",
        {"a.png": {"cat"}, "b.jpeg": {"dog"}},
        "",
    ),
    "yolo without names": (
        {"labels/a.txt": "1 .5 .5 1 1\n"},
        "--labels labels",
        "write the names there, a line for each class",
        "",
    ),
    "folders of splits": ({"p/train/cat/1.jpg": "", "p/Valid/cat/2.jpg": ""}, "--labels p", "p/train --val", ""),
    "left out": (
        {"p/cat/1.jpg": "", "p/cat/2.HEIC": "", "p/@eaDir/3.jpg": "", "p/cat/.Trash/4.jpg": "", "p/5.jpg": ""},
        "--labels p --no-check",
        {"cat/1.jpg": {"cat"}},
        "1 images beside the folders",
    ),
    "a class that loses its image": (
        {"l.csv": "image,label\na.jpg,cat\nb.jpg,dog\n"},
        "--labels l.csv --test-fraction 0.5",
        "a different --seed may draw others",
        "",
    ),
    "a fraction of nothing": (
        {"l.csv": "image,label\na.jpg,cat\nb.jpg,cat\n"},
        "--labels l.csv --test-fraction 0.1",
        "--test-fraction 0.1 of 2 images must set some aside",
        "",
    ),
    "a class whose images are all bad": (
        {"l.csv": "image,label\na.jpg,cat\nbad.jpg,dog\n", "bad.jpg": "<html>"},
        "--labels l.csv --skip-bad",
        {"a.jpg": {"cat"}},
        "left out 1 classes whose training images are all bad: 'dog'",
    ),
    "a class whose images are all bad, kept": (
        {"l.csv": "image,cat,dog\na.jpg,1,0\nbad.jpg,0,1\n", "bad.jpg": "<html>"},
        "--labels l.csv --skip-bad --keep-empty",
        {"a.jpg": {"cat"}},
        "left out 1 of 2 images",
    ),
    "nothing but bad images": (
        {"l.csv": "image,label\nbad.jpg,dog\n", "bad.jpg": "<html>"},
        "--labels l.csv --skip-bad",
        "the first bad.jpg is not a readable image (of no known kind); name their folder with --images DIR\n",
        "",
    ),
    "no test image is left": (
        {"l.csv": "image,label\na.jpg,dog\n", "m.csv": "image,label\nnone.jpg,dog\n"},
        "--train l.csv --test m.csv --skip-bad",
        "1 of 2 images are bad, the first none.jpg not found; name their folder with --images DIR\n",
        "",
    ),
    "no images": (
        {"l.csv": "image,label\none,cat\ntwo,dog\n"},
        "--labels l.csv --no-images",
        {"one": {"cat"}, "two": {"dog"}},
        "--features FILE.npz",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_common_files_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch, capsys, fails):
    contents, arguments, expected, printed = KINDS[kind]
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for number, name in enumerate(("a.jpg", "b.jpg")):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    arguments = ["--name", "mine", *(arguments.split() if isinstance(arguments, str) else arguments)]
    if isinstance(expected, str):
        assert expected in fails(format_own.main, arguments) + "\n" and not (tmp_path / "data").exists()
        return
    format_own.main(arguments)
    assert printed in capsys.readouterr().out
    folder = tmp_path / "data/mine"
    images, _, observed = files.read_all(folder)["train"]
    names = np.array(files.read_classes(folder).names)
    assert {image: set(names[row == 1]) for image, row in zip(images.tolist(), observed, strict=True)} == expected


def documented_tables() -> list[tuple[str, str, str]]:
    """(options, header, row) of each table in the list of layouts in docs/own_data.md."""
    text = (REPOSITORY / "docs/own_data.md").read_text().replace("\\|", "\0")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if "`image," in line and line.startswith("|")]
    found = [(re.findall("`(.+?)`", layout), re.findall("`(.+?)`", example)) for layout, example in rows]
    return [(" ".join(o for o in options if o.startswith("--")), *example) for options, example in found]


@pytest.mark.parametrize("options, header, row", documented_tables())
def test_the_tables_in_the_documentation_are_read(tmp_path, monkeypatch, options, header, row):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.jpg")
    Path("l.csv").write_text(f"{header}\n{row}\n".replace("\0", "|"))
    format_own.main(["--name", "mine", "--labels", "l.csv", "--keep-empty", *shlex.split(options)])
    images, _, observed = files.read_all("data/mine")["train"]
    assert len(images) == 1 and sum(mark == 1 for mark in observed[0]) == (2 if "dog" in row else 1)
