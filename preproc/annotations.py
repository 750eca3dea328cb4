"""Annotations of objects (COCO's JSON, VOC's XML, YOLO's text) and folders of classes, as labels of whole images."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import yaml

from datasets.walk import describe_left_out, find_images, is_hidden
from preproc.sources import SPLIT_NAMES, Source, check_unique, clean_name, positives
from util.errors import UserError
from util.files import read_bytes, read_text, reading

YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
Id = int | float | str


class Image(msgspec.Struct):
    id: Id
    file_name: str


class Annotation(msgspec.Struct):
    image_id: Id
    category_id: Id


class Category(msgspec.Struct):
    id: Id
    name: str
    supercategory: str | None = None


class Instances(msgspec.Struct):
    """The part of a COCO-style file that matters here; the decoder skips the rest, segmentations above all."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def read_instances(path: Path, hint: str = "") -> Instances:
    text = read_text(path, hint)
    with reading(path, "a COCO-style file", hint):
        try:
            return msgspec.json.decode(text, type=Instances)
        except msgspec.DecodeError:
            return msgspec.convert(json.loads(text), Instances)  # Python's own reader accepts NaN


def _key(value: Id) -> str:
    """0, 0.0 and "0" are one id."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def read_coco(path: Path) -> Source:
    content = read_instances(path)
    names: dict[str, str] = {}
    for image in content.images:
        if (other := names.setdefault(_key(image.id), image.file_name)) != image.file_name:
            raise UserError(
                f"{path}: two images have the id {image.id} ({other} and {image.file_name}); number them anew"
            )
    used = {_key(annotation.category_id) for annotation in content.annotations}
    parents = {clean_name(category.supercategory or "") for category in content.categories}
    listed = [(_key(category.id), clean_name(category.name)) for category in content.categories]
    roots = [(key, name) for key, name in listed if key not in used and name in parents]
    if roots:
        shown = ", ".join(repr(name) for _, name in roots)
        print(f"{path}: left out {shown}: no annotation has this category, and others name it as their supercategory")
    kept = [category for category in listed if category not in roots]
    for ids_or_names in zip(*kept, strict=True):
        check_unique(ids_or_names, f"{path}: the category", "rename or remove one")
    classes = dict(kept)
    entries = [(name, "") for name in names.values()]  # an image without annotations has no known label
    for annotation in content.annotations:
        image, category = _key(annotation.image_id), _key(annotation.category_id)
        if image not in names or category not in classes:
            what = f"image {image}" if image not in names else f"category {category}"
            raise UserError(f"{path}: an annotation is of {what}, which the file does not list")
        entries.append((names[image], classes[category]))
    return Source(positives(path, list(dict.fromkeys(entries)), None, tuple(classes.values())), path.parent)


def read_folder(folder: Path, separator: str | None) -> Source:
    """The labels of a folder of class folders, of VOC's or of YOLO's annotations."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    splits = {SPLIT_NAMES[path.name.lower()]: path for path in folders if path.name.lower() in SPLIT_NAMES}
    if len(splits) > 1 and "train" in splits and len(splits) == len(folders):
        places = {split: path / "labels" if (path / "labels").is_dir() else path for split, path in splits.items()}
        order = [split for split in ("train", "val", "test") if split in places]
        command = shlex.join([part for split in order for part in (f"--{split}", str(places[split]))])
        raise UserError(f"{folder} holds folders of splits, not of classes; give {command} in place of --labels")
    texts = sorted(path for path in folder.glob("*.txt") if path.name not in YOLO_NAMES)
    if any(folder.glob("*.xml")):
        base, entries = _images_beside(folder), _voc(folder)
    elif texts and not folders:
        base, entries = _images_beside(folder), _yolo(folder, texts)
    else:
        base, entries = folder, _class_folders(folder, folders)
    once = list(dict.fromkeys(entries))  # several objects of one class are no repetition
    return Source(positives(folder, once, separator), base)


def _images_beside(folder: Path) -> Path:
    """The folder of the images of annotations in `folder`: JPEGImages, images/ in place of labels/, or `folder`."""
    swapped = Path(*("images" if part == "labels" else part for part in folder.parts))
    places = (folder.parent / "JPEGImages", swapped, folder.parent / "images")
    return next((place for place in places if place.is_dir() and place != folder), folder)


def _voc(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.xml")):
        with reading(path, "XML"):
            root = ElementTree.fromstring(read_bytes(path))
        image = root.findtext("filename") or path.stem
        yield image, ""
        yield from ((image, item.findtext("name") or "") for item in root.iter("object"))


def _yolo(folder: Path, texts: list[Path]) -> Iterator[tuple[str, str]]:
    places = (place / name for place in (folder, *folder.parents[:3]) for name in YOLO_NAMES)
    listing, names = next((path for path in places if path.is_file()), folder / "classes.txt"), {}
    if listing.exists():
        content = read_text(listing)
        with reading(listing, "a file with a list `names` of the classes"):
            names = yaml.safe_load(content)["names"] if listing.suffix == ".yaml" else content.split("\n")
            names = names if isinstance(names, dict) else dict(enumerate(names))
    base = _images_beside(folder)
    images = {path.stem: path.relative_to(base).as_posix() for path in find_images(base)[0]}
    for path in texts:
        image = images.get(path.stem, path.stem)
        yield image, ""
        for line in filter(None, map(str.split, read_text(path).splitlines())):
            if not line[0].isdecimal() or int(line[0]) not in names:
                remedy = "add its name there" if listing.exists() else "write the names there, a line for each class"
                raise UserError(
                    f"{path}: {' '.join(line)[:60]!r} does not begin with the number of a class of {listing}; {remedy}"
                )
            yield image, str(names[int(line[0])])


def _class_folders(folder: Path, folders: list[Path]) -> Iterator[tuple[str, str]]:
    """folder/<class>/**: the name of the folder is the known label; the same picture in two of them has both."""
    images, left_out = find_images(folder)
    if line := describe_left_out(left_out, folder):
        print(line)
    found = [path for path in images if path.parent != folder]
    if beside := [path for path in images if path.parent == folder]:
        print(f"left out {len(beside):,} images beside the folders of the classes, the first {beside[0]}")
    names = {path: path.relative_to(folder).parts[0] for path in found}
    empty = [path for path in folders if path.name not in set(names.values())]
    if empty or not found:
        raise UserError(
            f"{empty[0] if found else folder} holds no pictures of a class; each class needs a folder of pictures, "
            "which is no link to the folder of a different class; or give a table of labels"
        )
    sizes, first = Counter(path.stat().st_size for path in found), {}
    for path in found:
        content = path.stat().st_size
        if sizes[content] > 1:  # a file of unique size differs from all others
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        yield first.setdefault(content, path).relative_to(folder).as_posix(), names[path]
