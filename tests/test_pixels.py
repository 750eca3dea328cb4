"""The pixels of a file, for each of Pillow's modes."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_toy
from PIL import ExifTags, Image, PngImagePlugin

from datasets import dataset, load
from datasets.images import cache_file
from datasets.pixels import accept_truncated, decode, image_problem, rgb
from models.saved import Predictor
from util.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=2)
ALPHA = RAMP.T.copy()  # every pair of its row and column of RAMP


def read(image: Image.Image, path, **options) -> np.ndarray:
    """The pixels of a square image that is saved to a file and decoded at its own size."""
    image.save(path, **options)
    pixels = decode(str(path), image.width)
    with Image.open(path) as opened:
        assert (rgb(opened) == pixels).all()
    return pixels


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(share * colours + (1 - share) * 255)


@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "webp"])
def test_colours_stay_as_they_are(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {}
    assert (read(Image.fromarray(COLOURS), tmp_path / f"a.{kind}", **options) == COLOURS).all()


def test_grey_levels_palettes_and_black_and_white_become_their_colours(tmp_path):
    assert (read(Image.fromarray(RAMP), tmp_path / "grey.png") == grey(RAMP)).all()
    assert (read(Image.fromarray(RAMP > 99), tmp_path / "bits.png") == grey(255 * (RAMP > 99))).all()
    palette = Image.fromarray(RAMP)
    palette.putpalette(COLOURS.tobytes())
    assert palette.mode == "P" and (read(palette, tmp_path / "palette.png") == COLOURS).all()


def saved(image: Image.Image, path, orientation: int, **options) -> np.ndarray:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return read(image, path, exif=exif, **options)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_an_image_is_turned_by_its_exif_orientation(tmp_path, kind, orientation, upright):
    options = {"lossless": True} if kind == "webp" else {}
    got = saved(Image.fromarray(COLOURS), tmp_path / f"a.{kind}", orientation, **options)
    assert (got == upright(COLOURS)).all()


def test_a_photograph_taken_upright_is_as_high_as_it_was_wide():
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    photograph = Image.open(buffer)
    assert rgb(photograph).shape == (30, 20, 3)
    assert photograph.size == (30, 20)  # the image given is left as it was


def test_16_bits_and_an_orientation_go_together(tmp_path):
    got = saved(Image.fromarray(RAMP.astype(np.uint16) << 8), tmp_path / "deep.png", 6)
    assert (got == grey(np.rot90(RAMP, -1))).all()


def test_damaged_exif_is_ignored(tmp_path):
    for exif in (b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12"):
        assert (read(Image.fromarray(COLOURS), tmp_path / "a.png", exif=exif) == COLOURS).all()


def test_an_image_is_turned_though_the_rest_of_its_exif_cannot_be_written_again(tmp_path, monkeypatch):
    def fail(self, offset=8):
        raise TypeError("a value that EXIF cannot hold")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    orientation_6 = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x06\0\0\0\0\0\0"
    assert (read(Image.fromarray(COLOURS), tmp_path / "a.png", exif=orientation_6) == np.rot90(COLOURS, -1)).all()


DEEP = np.array([[0, 255, 256], [257, 32768, 65279], [65280, 65534, 65535]])
SHALLOW = grey([[0, 0, 1], [1, 128, 254], [255, 255, 255]])


def test_grey_of_16_bits_is_scaled_not_saturated(tmp_path):
    for kind in ("png", "tiff"):
        assert (read(Image.fromarray(DEEP.astype(np.uint16)), tmp_path / f"a.{kind}") == SHALLOW).all()
    assert (read(Image.fromarray(DEEP.astype(np.int32)), tmp_path / "wide.tiff") == SHALLOW).all()
    big_endian = Image.frombytes("I;16B", (3, 3), DEEP.astype(">u2").tobytes())
    assert (rgb(big_endian) == SHALLOW).all()
    assert (read(big_endian, tmp_path / "big.tiff") == SHALLOW).all()
    assert (rgb(Image.fromarray(np.array([[-5, 70000]], dtype=np.int32))) == grey([[0, 255]])).all()


def test_grey_of_fewer_bits_in_16_or_32_is_scaled_by_what_the_file_uses(tmp_path):
    for bits in (8, 10, 12, 14):
        values = np.array([[0, 2 ** (bits - 1)], [2**bits - 1, 2 ** (bits - 2)]])
        for kind, dtype in (("a.png", np.uint16), ("b.tiff", np.uint16), ("c.tiff", np.int32)):
            assert (read(Image.fromarray(values.astype(dtype)), tmp_path / kind) == grey([[0, 128], [255, 64]])).all()


def test_long_metadata_do_not_make_a_picture_unreadable(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 2**22, zip=True)
    assert (read(Image.fromarray(COLOURS), tmp_path / "a.png", pnginfo=text) == COLOURS).all()


def test_a_truncated_image_is_read_if_the_user_accepts_it(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in image_problem(str(path))
    try:
        accept_truncated(True)
        assert image_problem(str(path)) is None and decode(str(path), 8)[0, 0, 0] == 200
    finally:
        accept_truncated(False)


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    expected = SHALLOW.copy()
    expected[1, 1] = 255
    assert (read(Image.fromarray(DEEP.astype(np.uint16)), tmp_path / "a.png", transparency=32768) == expected).all()


def test_real_numbers_up_to_1_are_fractions_and_larger_ones_levels(tmp_path):
    def levels(*values):
        image = Image.fromarray(np.array(values, dtype=np.float32).reshape(2, 2))
        return read(image, tmp_path / "a.tiff")[..., 0].ravel().tolist()

    assert levels(0, 0.5, 0.2, 1) == [0, 128, 51, 255]
    assert levels(-1, float("nan"), 0.4, 0.8) == [0, 0, 102, 204]
    assert levels(0, 1, 254.6, 300) == [0, 1, 255, 255]
    assert levels(0, 0, 0, 0) == [0] * 4


def test_what_is_transparent_is_composed_on_white(tmp_path):
    with_alpha = Image.fromarray(np.concatenate([COLOURS, ALPHA[..., None]], axis=2))
    for kind, options in (("png", {}), ("tiff", {}), ("webp", {"lossless": True, "exact": True})):
        assert np.abs(read(with_alpha, tmp_path / f"a.{kind}", **options) - on_white(COLOURS, ALPHA)).max() <= 1
    grey_alpha = Image.fromarray(np.stack([RAMP, ALPHA], axis=2))
    assert grey_alpha.mode == "LA"
    assert np.abs(read(grey_alpha, tmp_path / "la.png") - on_white(grey(RAMP), ALPHA)).max() <= 1
    for alpha, expected in ((255, COLOURS), (0, np.full_like(COLOURS, 255))):
        with_alpha.putalpha(alpha)
        assert (read(with_alpha, tmp_path / "exact.png") == expected).all()


def test_palettes_and_colours_that_are_transparent_become_white(tmp_path):
    palette = Image.fromarray(RAMP)
    palette.putpalette(COLOURS.tobytes())
    expected = np.where((RAMP == 7)[..., None], 255, COLOURS)
    assert (read(palette, tmp_path / "palette.png", transparency=7) == expected).all()
    assert (read(palette, tmp_path / "palette.gif", transparency=7) == expected).all()
    colour = tuple(COLOURS[3, 4].tolist())
    expected = np.where((colour == COLOURS).all(axis=2, keepdims=True), 255, COLOURS)
    assert (read(Image.fromarray(COLOURS), tmp_path / "colour.png", transparency=colour) == expected).all()
    expected = grey(np.where(RAMP == 9, 255, RAMP))
    assert (read(Image.fromarray(RAMP), tmp_path / "grey.png", transparency=9) == expected).all()
    both = Image.frombytes("PA", (16, 16), np.stack([RAMP, ALPHA], axis=2).tobytes())
    both.putpalette(COLOURS.tobytes())
    assert np.abs(rgb(both) - on_white(COLOURS, ALPHA)).max() <= 1


def test_cmyk_is_converted(tmp_path):
    inks = np.zeros((2, 2, 4), dtype=np.uint8)
    inks[0, 1], inks[1, 0], inks[1, 1] = (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)
    got = read(Image.fromarray(inks, mode="CMYK"), tmp_path / "a.tiff")
    assert got.tolist() == [[[255, 255, 255], [0, 255, 255]], [[255, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    got = read(frames[0], tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / f"a.{kind}").n_frames == 3
    assert (got == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "JPEG2000", "WEBP", "TIFF"])
def test_a_truncated_file_of_any_kind_is_named(tmp_path, kind):
    buffer, path = io.BytesIO(), tmp_path / "some.file"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())
    assert decode(str(path), 8).shape == (8, 8, 3)
    for size in (20, 60, len(buffer.getvalue()) // 2):
        path.write_bytes(buffer.getvalue()[:size])
        with pytest.raises(UserError, match=r"some\.file (cannot be read|is not a readable image)"):
            decode(str(path), 8)


def test_a_cache_of_other_rules_of_decoding_is_not_used(tmp_path, monkeypatch):
    split = load(make_toy(tmp_path)).train
    before = cache_file(split, 16, tmp_path)
    assert before == cache_file(split, 16, tmp_path)
    monkeypatch.setattr(dataset, "PIXELS", dataset.PIXELS + 1)
    assert before != cache_file(split, 16, tmp_path)


def test_the_published_photographs_become_what_pillow_reads(real):
    paths = sorted((real / "realdata").rglob("*.jpg"))
    assert len(paths) == 365
    for path in paths:
        with Image.open(path) as image:
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1, path
            assert (rgb(image) == np.array(image.convert("RGB"))).all(), path


def test_a_model_reads_a_pillow_image_as_it_reads_the_file(tmp_path):
    model = Predictor(None, SimpleNamespace(image_size=16), np.zeros(0))
    with_alpha = Image.fromarray(np.concatenate([COLOURS, ALPHA[..., None]], axis=2))
    with_alpha.save(tmp_path / "a.png")
    assert (model._pixels(with_alpha) == model._pixels(tmp_path / "a.png")).all()
    assert (model._pixels(with_alpha) == rgb(with_alpha)).all()
