"""Annotations of objects (COCO's JSON, VOC's XML, YOLO's text) and folders of classes, as labels of whole images."""

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import yaml

from datasets.consistency import duplicate
from datasets.walk import describe_left_out, find_images, is_hidden
from preproc.sources import SPLIT_NAMES, Source, clean_name, positives
from util.errors import UserError, describe_error
from util.files import read_text

INSIDE = ("_annotations.coco.json", "_classes.csv")  # beside the images of each split in Roboflow's exports
YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")


class Image(msgspec.Struct):
    id: int | float | str
    file_name: str


class Annotation(msgspec.Struct):
    image_id: int | float | str
    category_id: int | float | str


class Category(msgspec.Struct):
    id: int | float | str
    name: str
    supercategory: str | None = None


class Instances(msgspec.Struct):
    """The part of a COCO-style file that matters here; the decoder skips the rest, segmentations above all."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def decode_json(path: Path, kind: type) -> object:
    """Raises UserError for anything but JSON of this kind, and names encodings and values that other programs write."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is text in UTF-16; save it as UTF-8")
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a COCO-style file ({describe_error(error)})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if bad := re.search(rb"[:,\[]\s*(NaN|-?Infinity)\b", content):
            line = f"{bad[1].decode()} at byte {bad.start(1):,} is not JSON; write null or a number instead"
        else:
            line = describe_error(error)
        raise UserError(f"{path} is not valid JSON ({line})") from None


def _key(value: int | float | str) -> str:
    """0, 0.0 and "0" are one id."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def read_coco(path: Path, separator: str | None) -> Source:
    content = decode_json(path, Instances)
    names: dict[str, str] = {}
    for image in content.images:
        if (other := names.setdefault(_key(image.id), image.file_name)) != image.file_name:
            raise UserError(
                f"{path}: two images have the id {image.id} ({other} and {image.file_name}); number them anew"
            )
        if not image.file_name.strip():
            raise UserError(f"{path}: the image {image.id} has no file_name")
    used = {_key(annotation.category_id) for annotation in content.annotations}
    parents = {clean_name(category.supercategory or "") for category in content.categories}
    roots = [c for c in content.categories if _key(c.id) not in used and clean_name(c.name) in parents]
    if roots:
        shown = ", ".join(repr(category.name) for category in roots)
        print(f"{path}: left out {shown}: no annotation has this category, and others name it as their supercategory")
    kept = [category for category in content.categories if category not in roots]
    for what, listed in (("name", [clean_name(c.name) for c in kept]), ("id", [_key(c.id) for c in kept])):
        if (twice := duplicate(listed)) is not None:
            raise UserError(f"{path} has two categories of the {what} {twice!r}; rename or remove one")
    classes = {_key(category.id): clean_name(category.name) for category in kept}
    images, labels = list(names.values()), [""] * len(names)  # an image without annotations has no known label
    for annotation in content.annotations:
        image, category = _key(annotation.image_id), _key(annotation.category_id)
        if image not in names or category not in classes:
            what = f"image {image}" if image not in names else f"category {category}"
            raise UserError(f"{path}: an annotation is of {what}, which the file does not list")
        images.append(names[image])
        labels.append(classes[category])
    if not names:
        raise UserError(f"{path} lists no images")
    return _objects(path, path.parent, list(zip(images, labels, strict=True)), classes.values(), separator)


def _objects(
    path: Path, base: Path, entries: list[tuple[str, str]], classes=(), separator: str | None = None
) -> Source:
    images, labels = zip(*entries, strict=True)
    found = positives(path, base, [name.strip() for name in images], labels, separator, classes)
    return Source(found.images, found.classes, found.labels, base, found.ordered)  # two objects are no duplicates


def read_folder(folder: Path, separator: str | None) -> Source | Path:
    """The labels in a folder, or the file in it that has them."""
    if inside := next((folder / name for name in INSIDE if (folder / name).is_file()), None):
        return inside
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    splits = {SPLIT_NAMES[path.name.lower()]: path for path in folders if path.name.lower() in SPLIT_NAMES}
    if len(splits) > 1 and "train" in splits and len(splits) == len(folders):
        places = {split: path / "labels" if (path / "labels").is_dir() else path for split, path in splits.items()}
        order = [split for split in ("train", "val", "test") if split in places]
        command = shlex.join([part for split in order for part in (f"--{split}", str(places[split]))])
        raise UserError(f"{folder} holds folders of splits, not of classes; give {command} in place of --labels")
    if any(folder.glob("*.xml")):
        return _objects(folder, _images_beside(folder), list(_voc(folder)), (), separator)
    texts = sorted(path for path in folder.glob("*.txt") if path.name not in YOLO_NAMES)
    if texts and not folders:
        return _objects(folder, _images_beside(folder), list(_yolo(folder, texts)), (), separator)
    return _class_folders(folder, folders, separator)


def _images_beside(folder: Path) -> Path:
    """Where images of annotations in `folder` lie: JPEGImages, images/ in place of labels/, or with them."""
    swapped = Path(*("images" if part == "labels" else part for part in folder.parts))
    places = (folder.parent / "JPEGImages", swapped, folder.parent / "images")
    return next((place for place in places if place.is_dir() and place != folder), folder)


def _voc(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError) as error:
            raise UserError(f"{path} is not readable XML ({describe_error(error)})") from None
        image = root.findtext("filename") or path.stem
        yield image, ""
        yield from ((image, item.findtext("name") or "") for item in root.iter("object"))


def _yolo(folder: Path, texts: list[Path]) -> Iterator[tuple[str, str]]:
    places = (place / name for place in (folder, *folder.parents[:3]) for name in YOLO_NAMES)
    listing = next((path for path in places if path.is_file()), None)
    if listing is None:
        raise UserError(f"{folder} numbers its classes; write their names, a line each, into {folder / 'classes.txt'}")
    content = read_text(listing)
    try:
        names = yaml.safe_load(content)["names"] if listing.suffix == ".yaml" else content.split("\n")
        names = names if isinstance(names, dict) else dict(enumerate(names))
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{listing} has no list `names` of the classes ({describe_error(error)})") from None
    base = _images_beside(folder)
    images = {path.stem: path.relative_to(base).as_posix() for path in find_images(base)[0]}
    for path in texts:
        image = images.get(path.stem, path.stem)
        yield image, ""
        for line in filter(None, map(str.split, read_text(path).splitlines())):
            if not line[0].isdecimal() or int(line[0]) not in names:
                raise UserError(
                    f"{path}: {' '.join(line)[:60]!r} does not begin with the number of a class of {listing}"
                )
            yield image, str(names[int(line[0])])


def _class_folders(folder: Path, folders: list[Path], separator: str | None) -> Source:
    """folder/<class>/**: that folder's name is the known label; the same picture in two of them has both."""
    images, left_out = find_images(folder)
    if line := describe_left_out(left_out, folder):
        print(line)
    found = [(path, path.relative_to(folder).parts[0]) for path in images if path.parent != folder]
    if beside := [path for path in images if path.parent == folder]:
        print(f"left out {len(beside):,} images beside the folders of the classes, the first {beside[0]}")
    if not found:
        raise UserError(f"{folder} holds no folders of pictures; it must have one for each class, or a table of labels")
    if empty := sorted({path.name for path in folders} - {name for _, name in found}):
        raise UserError(f"{folder / empty[0]} holds no pictures; remove it, or put some of that class into it")
    sizes = Counter(path.stat().st_size for path, _ in found)
    first, entries = {}, []
    for path, name in found:
        content = path.stat().st_size
        if sizes[content] > 1:  # a file of unique size differs from all others
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        entries.append((first.setdefault(content, path).relative_to(folder).as_posix(), name))
    return _objects(folder, folder, entries, (), separator)
