"""Pixels: which 8-bit RGB values an image file becomes."""

import warnings
from contextlib import suppress
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

import datasets.walk  # noqa: F401  registers HEIC if its reader is installed
from util.errors import UserError
from util.files import read_bytes, reading

warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged files: they are decoded, or reported in one line
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # long metadata does not make a PNG unreadable
GREY_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners


def read_image(path: str) -> np.ndarray:
    """The pixels of a file as in `rgb`. Raises UserError if it cannot be decoded."""
    hint = "name its folder with --image-root DIR, replace it, or accept images that are cut short with --truncated"
    with reading(path, "a readable image", hint):
        try:
            with Image.open(BytesIO(read_bytes(path, hint))) as image:
                return rgb(image)
        except UnidentifiedImageError:
            raise ValueError("of no known kind") from None  # Pillow's text names the buffer


def decode(path: str, size: int, resample: str = "bilinear") -> np.ndarray:
    """(size, size, 3) uint8 RGB, the whole image squashed to a square. Raises UserError."""
    return squash(read_image(path), size, resample)


def image_problem(path: str) -> str | None:
    """What is wrong with an image file, in a few words; None if it can be decoded."""
    try:
        read_image(path)
    except UserError as error:
        return str(error).removeprefix(path).split("; ")[0].strip()


def accept_truncated(accept: bool) -> None:
    """Whether images that are cut short are accepted. Their missing part becomes grey or black."""
    ImageFile.LOAD_TRUNCATED_IMAGES = accept


def rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a Pillow image, upright: turned and mirrored by its EXIF orientation.

    What each of Pillow's modes becomes; increase dataset.PIXELS if a rule changes:

    RGB                  as stored; Pillow keeps the high byte of 16-bit colours
    1, L, P              the grey level or the palette's colour
    RGBA, LA, PA, and any mode with a transparent colour or palette  composed on white
    I;16, I;16B, I       grey of 8, 10, 12, 14 or 16 bits, the fewest that hold its largest value: its highest 8 bits.
                         Values are clipped to 0..65535
    F                    grey: times 255 if no value is above 1, else taken as 0..255; rounded, clipped, NaN is black
    CMYK, YCbCr, others  Pillow's conversion, without colour profile

    Of an animation, the current frame: in a file just opened, the first. Damaged EXIF is ignored.
    """
    image = image.copy()
    with suppress(Exception):  # each kind of damage raises its own; the pixels are turned before EXIF is rewritten
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = values.clip(0, 65535).astype(np.uint16)
        bits = next(bits for bits in GREY_BITS if grey.max() < 2**bits)
        grey = (grey >> bits - 8).astype(np.uint8)
        image = Image.fromarray(np.where(values == image.info.get("transparency"), np.uint8(255), grey))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def squash(pixels: np.ndarray, size: int, resample: str = "bilinear") -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, the whole image.

    resample: "bilinear" or "bicubic", with antialiasing. PyTorch computes Pillow's filter of that name to within 2 of
    255 levels, and no library tried is much faster (benchmarks/decode.py).
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (size, size), mode=resample, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
