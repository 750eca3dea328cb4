"""Backbones and the teacher, with random weights saved to files and loaded back; nothing is fetched."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import datasets
import models
from cli import UserError
from config import Config, parse
from models import clip, teacher, weights

CPU = torch.device("cpu")
TINY = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path: Path) -> tuple[str, str]:
    """A model config and random weights of it, as files."""
    config = tmp_path / "tiny_clip.json"
    config.write_text(json.dumps(TINY))
    torch.manual_seed(3)
    save_file(clip.create_clip(str(config), None).state_dict(), tmp_path / "tiny.safetensors")
    return str(config), str(tmp_path / "tiny.safetensors")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and empty caches."""
    from huggingface_hub import constants

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))

    def refuse(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


def config(**values) -> Config:
    return replace(Config(), pretrained=False, image_size=64, **values)


@pytest.mark.parametrize("name", ["resnet50", "timm:test_resnet", "timm:test_vit"])
def test_a_backbone_turns_pixels_into_logits_and_owns_its_normalisation(name):
    model = models.build(config(model=name), 5)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert model.mean.shape == model.std.shape == (3, 1, 1) and (model.std > 0).all()


def test_a_size_that_does_not_fit_is_told_before_training():
    with pytest.raises(UserError, match="cannot be trained with --image-size 65"):
        models.build(replace(config(model="timm:test_vit"), image_size=65), 5)


def test_the_clip_backbone_is_the_image_tower_with_a_linear_head(monkeypatch, tiny_clip):
    monkeypatch.setattr(sys.modules["models.vit_clip"], "NAME", tiny_clip[0])
    for size in (32, 48):
        model = models.build(replace(config(model="vit_clip"), image_size=size), 5)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)
        assert model.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_a_last_batch_that_batch_norm_refuses_is_told_before_training():
    models.build(config(model="timm:test_resnet"), 5, smallest_batch=1)
    with pytest.raises(UserError, match="a batch of 1 images"):  # 32 pixels: one by one at the end
        models.build(replace(config(model="timm:test_resnet"), image_size=32), 5, smallest_batch=1)


def test_a_whole_clip_can_be_the_clip_backbones_weights(monkeypatch, tiny_clip):
    monkeypatch.setattr(sys.modules["models.vit_clip"], "NAME", tiny_clip[0])
    model = models.build(replace(config(model="vit_clip", weights=tiny_clip[1]), image_size=32), 5)
    assert torch.equal(model.network.tower.proj, weights.read_weights(tiny_clip[1])["visual.proj"])


def test_logits_are_float32_under_bf16():
    for name in ("resnet50", "timm:test_resnet", "timm:test_vit"):
        with torch.autocast("cpu", torch.bfloat16):
            assert models.build(config(model=name), 5)(torch.zeros(2, 3, 64, 64)).dtype == torch.float32


def test_a_timm_model_without_published_weights_is_told():
    with pytest.raises(UserError, match="timm publishes no weights"):
        models.build(replace(Config(), model="timm:gcvit_xxtiny", image_size=224), 5)
    with pytest.raises(UserError, match=r"no model 'resnet50\.nonsense'"):
        models.check_name("timm:resnet50.nonsense")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_local_checkpoint_is_loaded_but_for_a_head_of_another_size(tmp_path, suffix):
    torch.manual_seed(1)
    old = models.build(config(model="timm:test_resnet"), 5)
    file = tmp_path / f"w.{suffix}"
    state = {name: value for name, value in old.network.state_dict().items()}
    save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state}, file)
    torch.manual_seed(2)
    new = models.build(config(model="timm:test_resnet", weights=str(file)), 7).state_dict()
    same = [name for name, value in old.state_dict().items() if torch.equal(value, new[name])]
    assert len(same) == len(new) - 2 and new["network.fc.weight"].shape[0] == 7


def test_a_runs_best_weights_can_start_another_run(tmp_path):
    old = models.build(config(model="timm:test_resnet"), 5)
    torch.save(old.state_dict(), tmp_path / "best.pt")
    new = models.build(config(model="timm:test_resnet", weights=str(tmp_path / "best.pt")), 5)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "kind, says",
    [
        ("text", "not a readable checkpoint"),
        ("pickle", "not a readable checkpoint"),
        ("other", "does not fit this backbone"),
        ("list", "no state dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told_and_never_unpickled(tmp_path, kind, says, capsys):
    file = tmp_path / "w.pt"
    if kind == "text":
        file.write_text("hello")
    else:
        torch.save({"pickle": Evil(), "other": {"a": torch.zeros(2)}, "list": [1]}[kind], file)
    with pytest.raises(UserError, match=says):
        models.build(config(model="timm:test_resnet", weights=str(file)), 5)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, file, folder",
    [
        ("resnet50", "resnet50-0676ba61.pth", "hub/checkpoints"),
        ("vit_clip", "timm/vit_large_patch14_clip_336.openai/open_clip_model.safetensors", "hf"),
        ("convnext_xlarge_22k", "timm/convnext_xlarge.fb_in22k/model.safetensors", "hf"),
        ("convnext_xlarge_1k", "timm/convnext_xlarge.fb_in22k_ft_in1k/model.safetensors", "hf"),
    ],
)
def test_weights_that_are_not_to_be_had_are_named_with_place_and_remedy(offline, name, file, folder):
    with pytest.raises(UserError) as error:
        models.build(replace(Config(), model=name), 20)
    assert file in str(error.value) and str(offline / folder) in str(error.value)
    assert "python preproc/download.py --models" in str(error.value) and "--weights FILE" in str(error.value)


def test_weights_in_the_librarys_cache_are_used_without_a_network(offline):
    from torchvision.models import resnet50

    torch.manual_seed(5)
    cached = resnet50().state_dict()
    (offline / "hub/checkpoints").mkdir(parents=True)
    torch.save(cached, offline / "hub/checkpoints/resnet50-0676ba61.pth")
    model = models.build(replace(Config(), image_size=64), 20)
    assert torch.equal(model.network.conv1.weight, cached["conv1.weight"])


def test_the_teachers_weights_that_are_not_to_be_had_are_named(offline):
    with pytest.raises(UserError) as error:
        clip.clip_file(Config.teacher, "openai", "teacher", teacher.OFFLINE)
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
        clip.clip_file(name, tag, "teacher", teacher.OFFLINE)


def teaching(toy: Path, tiny_clip: tuple[str, str], *more: str) -> tuple[Config, datasets.Splits]:
    settings = parse(
        [
            "-d",
            "toy",
            "--data-root",
            str(toy.parent),
            "--teacher",
            tiny_clip[0],
            "--teacher-weights",
            tiny_clip[1],
            *more,
        ]
    )
    settings = replace(settings, precision="float32")
    return settings, datasets.load(settings)


def scores(settings: Config, splits: datasets.Splits, folder: Path) -> np.ndarray:
    return teacher.similarities(settings, splits.train, splits.classes, folder, CPU, 2)


def test_similarities_are_cosines_of_squashed_unflipped_images_and_captions(toy, tiny_clip, tmp_path):
    from open_clip import get_tokenizer
    from PIL import Image

    settings, splits = teaching(toy, tiny_clip, "--prompt", "a photo of a {} bar")
    got = scores(settings, splits, tmp_path / "cache")
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

    settings, splits = teaching(toy, tiny_clip, "--teacher-preprocess", "reference")
    got = scores(settings, splits, tmp_path / "cache")
    model = clip.create_clip(*map(str, tiny_clip)).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mirrored = 0
    with torch.no_grad():
        text = teacher.encode_captions(model, "tiny_clip", splits.classes.names)
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
    settings, splits = teaching(toy, tiny_clip)
    whole = scores(settings, splits, tmp_path / "cache")
    half = scores(replace(settings, precision="bf16"), splits, tmp_path / "cache")
    assert not np.array_equal(half, half.astype(np.float16))
    assert 0 < np.abs(whole - half).max() < 2e-3


def test_similarities_that_overflow_are_one_line(toy, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(
        teacher.Teacher, "forward", lambda self, images, flip=None: torch.full((len(images), 3), torch.inf)
    )
    settings, splits = teaching(toy, tiny_clip)
    with pytest.raises(UserError, match="not finite at --precision bf16; take float32"):
        scores(replace(settings, precision="bf16"), splits, tmp_path / "cache")


def test_the_cache_is_filled_once_and_keyed_by_all_that_matters(toy, tiny_clip, tmp_path, monkeypatch):
    passes, real_score = [], teacher.score
    monkeypatch.setattr(teacher, "score", lambda *arguments: passes.append(1) or real_score(*arguments))
    settings, splits = teaching(toy, tiny_clip)
    first = scores(settings, splits, tmp_path / "cache")
    sweep = replace(settings, temperature=0.5, threshold=0.9, partial=0.5, seed=4)
    assert (scores(sweep, splits, tmp_path / "cache") == first).all() and len(passes) == 1

    torch.manual_seed(9)
    other = tmp_path / "other.safetensors"
    save_file(clip.create_clip(tiny_clip[0], None).state_dict(), other)
    np.save(tmp_path / "text.npy", np.random.RandomState(0).randn(3, 8))
    changes = [
        dict(prompt="a {}"),
        dict(teacher_weights=str(other)),
        dict(teacher_preprocess="reference"),
        dict(text_features=str(tmp_path / "text.npy")),
        dict(precision="bf16"),
    ]
    for count, change in enumerate(changes, 2):
        assert not np.array_equal(scores(replace(settings, **change), splits, tmp_path / "cache"), first), change
        assert len(passes) == count
    path = Path(splits.train.paths()[0])
    path.write_bytes(path.read_bytes() + b"changed")
    scores(*teaching(toy, tiny_clip), tmp_path / "cache")
    assert len(passes) == len(changes) + 2


def test_an_interrupted_pass_goes_on_where_it_stopped(toy, tiny_clip, tmp_path, monkeypatch):
    import storage

    settings, splits = teaching(toy, tiny_clip)
    settings = replace(settings, eval_batch_size=4)
    whole = scores(settings, splits, tmp_path / "one")
    monkeypatch.setattr(storage, "SAVE_SECONDS", 0.0)
    starts, real_score = [], teacher.score

    def stopping(model, paths, rows, *rest):
        starts.append(int(rows[0]))
        for count, block in enumerate(real_score(model, paths, rows, *rest)):
            if len(starts) == 1 and count == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(teacher, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        scores(settings, splits, tmp_path / "two")
    assert (scores(settings, splits, tmp_path / "two") == whole).all()
    assert starts == [0, 12]


@pytest.mark.parametrize("shape, says", [((4, 8), r"\(3, D\)"), ((3, 9), "9 numbers a label"), (None, "not a plain")])
def test_text_features_that_do_not_fit_are_told(toy, tiny_clip, tmp_path, shape, says):
    np.save(tmp_path / "t.npy", np.ones(shape) if shape else np.array([None]))
    settings, splits = teaching(toy, tiny_clip, "--text-features", str(tmp_path / "t.npy"))
    with pytest.raises(UserError, match=says):
        scores(settings, splits, tmp_path / "cache")


def test_the_published_text_features_fit_the_data_sets(real):
    for name, labels in (("VOC20text_feature_labelonly", 20), ("CoCo80text_feature", 80), ("CUB312text_feature", 312)):
        assert teacher.read_text_features(str(real / f"reference/text_features/{name}.npy"), labels).shape == (
            labels,
            768,
        )
