"""Teachers: CLIP with random weights, its cache of similarities, and files of similarities; nothing is fetched."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import datasets
from config import parse
from models import clip, teachers
from models.teachers import ClipTeacher
from models.teachers import clip as clip_teacher
from util import row_cache
from util.errors import UserError


def test_the_teachers_weights_that_are_not_to_be_had_are_named(offline):
    with pytest.raises(UserError) as error:
        clip.clip_file(teachers.DEFAULT, teachers.DEFAULT_WEIGHTS, "teacher", clip_teacher.OFFLINE)
    assert "open_clip_model.safetensors" in str(error.value) and "--teacher-weights FILE" in str(error.value)


@pytest.mark.parametrize(
    "name, tag, says",
    [
        ("ViT-L-14-336", "openai", "take --teacher ViT-L-14-336-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "its tags|other GELU"),
        ("ViT-L-14-336-quickgelu", "nowhere.pt", "its tags: openai"),
        ("ViT-L-15", "openai", "no open_clip model"),
        ("nowhere.json", "openai", "no such file"),
    ],
)
def test_a_teacher_that_does_not_go_with_its_weights_is_an_error(name, tag, says):
    with pytest.raises(UserError, match=says):
        clip.clip_file(name, tag, "teacher", clip_teacher.OFFLINE)


def teaching(toy: Path, tiny_clip: tuple[str, str], **options) -> tuple[ClipTeacher, datasets.Splits]:
    return ClipTeacher(*tiny_clip, **options), datasets.load(toy)


def scores(teacher: ClipTeacher, splits: datasets.Splits, folder: Path, batch_size: int = 64) -> np.ndarray:
    how = dict(batch_size=batch_size, device=torch.device("cpu"), workers=2)
    return teachers.similarities(teacher, splits.train, splits.classes, folder, **how)


def test_the_teacher_is_the_one_that_the_command_line_names(tiny_clip):
    name, weights = tiny_clip
    line = ["--teacher", name, "--teacher-weights", weights, "--prompt", "a {}", "--teacher-preprocess", "reference"]
    asked = parse([*line, "--precision", "float32"]).clip_teacher()
    assert asked == ClipTeacher(name, weights, "a {}", "reference", None, "float32")


def test_similarities_are_cosines_of_squashed_unflipped_images_and_captions(toy, tiny_clip, tmp_path):
    from open_clip import get_tokenizer
    from PIL import Image

    teacher, splits = teaching(toy, tiny_clip, prompt="a photo of a {} bar")
    got = scores(teacher, splits, tmp_path / "cache")
    model = clip.create_clip(*map(str, tiny_clip)).eval()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in clip.normalisation(*tiny_clip))
    with torch.no_grad():
        text = model.encode_text(
            get_tokenizer("tiny_clip")([f"a photo of a {name} bar" for name in splits.classes.names])
        )
        for row in (0, 11):
            pixels = Image.open(splits.train.paths()[row]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
            image = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255 - mean) / std
            expected = torch.cosine_similarity(model.encode_image(image[None]), text)
            assert got[row] == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_reference_preprocessing_is_what_the_published_code_fed_it(toy, tiny_clip, tmp_path):
    """448 px, mirrored or not, ImageNet's mean and std, then resized to the teacher's size."""
    import torch.nn.functional as F
    from PIL import Image

    teacher, splits = teaching(toy, tiny_clip, preprocess="reference")
    got = scores(teacher, splits, tmp_path / "cache")
    model = clip.create_clip(*map(str, tiny_clip)).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mirrored = 0
    with torch.no_grad():
        text = clip_teacher.encode_captions(model, "tiny_clip", splits.classes.names)
        for row in range(8):
            pixels = Image.open(splits.train.paths()[row]).convert("RGB").resize((448, 448), Image.Resampling.BILINEAR)
            plain = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255 - mean) / std
            options = []
            for image in (plain, plain.flip(-1)):
                small = F.interpolate(image[None], size=32, mode="bilinear", antialias=True)
                options.append(torch.cosine_similarity(model.encode_image(small), text).numpy())
            closest = [np.abs(option - got[row]).max() for option in options]
            assert min(closest) < 1e-5
            mirrored += int(np.argmin(closest))
    assert 0 < mirrored < 8


def test_similarities_in_half_precision_are_not_rounded_to_it(toy, tiny_clip, tmp_path):
    teacher, splits = teaching(toy, tiny_clip)
    whole = scores(teacher, splits, tmp_path / "cache")
    half = scores(replace(teacher, precision="bf16"), splits, tmp_path / "cache")
    assert not np.array_equal(half, half.astype(np.float16))
    assert 0 < np.abs(whole - half).max() < 2e-3


def test_similarities_that_overflow_are_one_line(toy, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(
        clip_teacher.Scorer, "forward", lambda self, images, flip=None: torch.full((len(images), 3), torch.inf)
    )
    teacher, splits = teaching(toy, tiny_clip)
    with pytest.raises(UserError, match="not finite at --precision bf16; take float32"):
        scores(replace(teacher, precision="bf16"), splits, tmp_path / "cache")


def test_the_cache_is_filled_once_and_keyed_by_all_that_matters(toy, tiny_clip, tmp_path, monkeypatch):
    passes, real_score = [], clip_teacher.score
    monkeypatch.setattr(clip_teacher, "score", lambda *arguments: passes.append(1) or real_score(*arguments))
    line = ["-d", str(toy), "--teacher", tiny_clip[0], "--teacher-weights", tiny_clip[1], "--precision", "float32"]
    splits = datasets.load(toy)
    teacher = parse(line).clip_teacher()
    first = scores(teacher, splits, tmp_path / "cache")
    sweep = parse([*line, *"-t 0.5 -th 0.9 -p 0.5 -s 4".split()]).clip_teacher()
    assert (scores(sweep, splits, tmp_path / "cache") == first).all() and len(passes) == 1

    torch.manual_seed(9)
    other = tmp_path / "other.safetensors"
    save_file(clip.create_clip(tiny_clip[0], None).state_dict(), other)
    np.save(tmp_path / "text.npy", np.random.RandomState(0).randn(3, 8))
    changes = [
        dict(prompt="a {}"),
        dict(weights=str(other)),
        dict(preprocess="reference"),
        dict(text_features=str(tmp_path / "text.npy")),
        dict(precision="bf16"),
    ]
    for count, change in enumerate(changes, 2):
        assert not np.array_equal(scores(replace(teacher, **change), splits, tmp_path / "cache"), first), change
        assert len(passes) == count
    path = Path(splits.train.paths()[0])
    path.write_bytes(path.read_bytes() + b"changed")
    scores(*teaching(toy, tiny_clip), tmp_path / "cache")
    assert len(passes) == len(changes) + 2


def test_an_interrupted_pass_goes_on_where_it_stopped(toy, tiny_clip, tmp_path, monkeypatch):
    teacher, splits = teaching(toy, tiny_clip)
    whole = scores(teacher, splits, tmp_path / "one", batch_size=4)
    monkeypatch.setattr(row_cache, "SAVE_SECONDS", 0.0)
    starts, real_score = [], clip_teacher.score

    def stopping(scorer, paths, rows, *rest):
        starts.append(int(rows[0]))
        for count, block in enumerate(real_score(scorer, paths, rows, *rest)):
            if len(starts) == 1 and count == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(clip_teacher, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        scores(teacher, splits, tmp_path / "two", batch_size=4)
    assert (scores(teacher, splits, tmp_path / "two", batch_size=4) == whole).all()
    assert starts == [0, 12]


@pytest.mark.parametrize("shape, says", [((4, 8), r"\(3, D\)"), ((3, 9), "9 numbers per label"), (None, "not a plain")])
def test_text_features_that_do_not_fit_are_told(toy, tiny_clip, tmp_path, shape, says):
    np.save(tmp_path / "t.npy", np.ones(shape) if shape else np.array([None]))
    teacher, splits = teaching(toy, tiny_clip, text_features=str(tmp_path / "t.npy"))
    with pytest.raises(UserError, match=says):
        scores(teacher, splits, tmp_path / "cache")


def test_the_published_text_features_fit_the_data_sets(real):
    for name, labels in (("VOC20text_feature_labelonly", 20), ("CoCo80text_feature", 80), ("CUB312text_feature", 312)):
        assert clip_teacher.read_text_features(str(real / f"reference/text_features/{name}.npy"), labels).shape == (
            labels,
            768,
        )


def save(path: Path, **changes) -> Path:
    arrays = {
        "images": np.array(["a", "b", "c"]),
        "classes": np.array(["x", "y"]),
        "similarity": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_rows_and_columns_are_found_by_name(tmp_path):
    path = save(tmp_path / "s.npz")
    got = teachers.load_similarity(path, np.array(["c", "a"]), ["y", "x"])
    assert got.tolist() == [[5, 4], [1, 0]]


@pytest.mark.parametrize(
    "changes, images, classes, message",
    [
        ({}, ["a", "zebra.jpg"], ["x"], "no row for the image 'zebra.jpg'"),
        ({}, ["a"], ["x", "gnu"], "no column for the class 'gnu'"),
        ({"similarity": None}, ["a"], ["x"], "not an npz file"),
        ({"similarity": np.zeros((2, 2), np.float32)}, ["a"], ["x"], "expected float of 3 images x 2 classes"),
        ({"similarity": np.full((3, 2), np.nan)}, ["a"], ["x"], "similarities of a are not all finite"),
        ({"images": np.array(["a", "b", None], dtype=object)}, ["a"], ["x"], "not an npz file"),
    ],
)
def test_a_similarity_file_that_does_not_fit_is_told(tmp_path, changes, images, classes, message):
    with pytest.raises(UserError, match=message):
        teachers.load_similarity(save(tmp_path / "s.npz", **changes), np.array(images), classes)


def test_a_file_that_is_no_npz_is_told(tmp_path):
    (tmp_path / "s.npz").write_text("hello")
    with pytest.raises(UserError, match="not an npz file"):
        teachers.load_similarity(tmp_path / "s.npz", np.array(["a"]), ["x"])
