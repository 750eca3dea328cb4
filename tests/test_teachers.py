"""Teachers: CLIP with random weights, its cache of similarities, and files of similarities; nothing is fetched."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import taught_arguments
from safetensors.torch import save_file

import assess_teacher
import datasets
import main
from config import parse
from datasets.files import Classes
from datasets.pixels import decode
from models import clip, teachers
from models.teachers import ClipTeacher, captions, patches
from models.teachers import clip as clip_teacher
from util.errors import UserError


def test_the_teachers_weights_that_are_not_to_be_had_are_named(offline):
    with pytest.raises(UserError) as error:
        clip_teacher.build(ClipTeacher(teachers.DEFAULT, teachers.DEFAULT_WEIGHTS), Classes(["cat"], ["cat"]))
    assert "open_clip_model.safetensors" in str(error.value) and "--teacher-weights FILE" in str(error.value)


@pytest.mark.parametrize(
    "name, tag, message",
    [
        ("ViT-L-14-336", "openai", "take ViT-L-14-336-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "a different GELU|nor a tag"),
        ("ViT-L-14-336-quickgelu", "nowhere.pt", "nor a tag; .*: openai"),
        ("ViT-L-15", "openai", "open_clip has no model 'ViT-L-15'; did you mean ViT-L-"),
        ("nowhere.json", "openai", "nowhere.json not found; it must be an open_clip model config"),
    ],
)
def test_a_teacher_that_does_not_go_with_its_weights_is_an_error(name, tag, message):
    with pytest.raises(UserError, match=message):
        clip.clip_file(name, tag)


def teaching(toy: Path, tiny_clip: tuple[str, str], **options) -> tuple[ClipTeacher, datasets.Splits]:
    return ClipTeacher(*tiny_clip, **options), datasets.load(toy)


def scores(teacher: ClipTeacher, splits: datasets.Splits, folder: Path, batch_size: int = 64) -> np.ndarray:
    options = dict(batch_size=batch_size, device=torch.device("cpu"), workers=2, checked=False)
    return teacher.similarities(splits.train, splits.classes, folder, **options)[0]


def test_the_teacher_is_the_one_that_the_command_line_names(tiny_clip):
    name, weights = tiny_clip
    line = ["--teacher", name, "--teacher-weights", weights, "--prompt", "a {}", "--teacher-preprocess", "reference"]
    asked = parse([*line, "--precision", "float32"]).asked_teacher()
    assert asked == ClipTeacher(name, weights, ("a {}",), "reference", None, "float32")
    asked = parse("--prompt {} --prompt a{} --teacher-views tiles --teacher-tiles 4".split()).asked_teacher()
    assert (asked.prompt, asked.teacher_views, asked.teacher_tiles) == (("{}", "a{}"), "tiles", 4)


def test_similarities_are_cosines_of_squashed_unflipped_images_and_captions(toy, tiny_clip, tmp_path):
    from open_clip import get_tokenizer
    from PIL import Image

    teacher, splits = teaching(toy, tiny_clip, prompt=("a photo of a {} bar",))
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

    teacher, splits = teaching(toy, tiny_clip, teacher_preprocess="reference")
    got = scores(teacher, splits, tmp_path / "cache")
    model = clip.create_clip(*map(str, tiny_clip)).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mirrored = 0
    with torch.no_grad():
        names = splits.classes.names
        text = captions.encode_captions(model, "tiny_clip", [names], names)
        for row in range(8):
            pixels = decode(splits.train.paths()[row], 448)  # to within rounding Pillow's, which test_pixels shows
            plain = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
            options = []
            for image in (plain, plain.flip(-1)):
                small = F.interpolate(image[None], size=32, mode="bilinear")
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


def test_a_folded_quick_gelu_is_the_same_function(tiny_clip):
    """x sigmoid(1.702 x) by one SiLU: to rounding in float32; every block of ViT-B/32's kind is folded."""
    model = clip.create_clip(*map(str, tiny_clip)).eval()
    torch.manual_seed(0)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        before = model.encode_image(images)
        clip_teacher.fold_quick_gelu(model.visual)
        after = model.encode_image(images)
        clip_teacher.fold_quick_gelu(model.visual)  # which finds nothing more to fold
        assert torch.equal(model.encode_image(images), after)
    assert not torch.equal(before, after) and torch.allclose(before, after, atol=1e-5)
    assert all(isinstance(block.mlp.gelu, torch.nn.SiLU) for block in model.visual.transformer.resblocks)


def operations(function) -> dict[str, int]:
    """How often a call runs each of PyTorch's operations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key: event.count for event in profile.key_averages()}


def test_half_precision_takes_the_fused_attention_and_casts_the_pixels_alone(tiny_clip):
    scorer = clip_teacher.Scorer(
        clip.create_clip(*map(str, tiny_clip)).eval(), torch.randn(3, 8), *[(0.5,) * 3] * 2, "own"
    )
    scorer.to_precision("bf16").requires_grad_(False)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        counts = operations(lambda: scorer(images))
    assert counts["aten::_native_multi_head_attention"] == counts["aten::silu"] == 1
    assert "aten::sigmoid" not in counts and counts["aten::_to_copy"] <= 4


def test_results_are_read_one_behind_and_all_arrive():
    launched = []

    def results():
        for number in range(3):
            launched.append(number)
            yield torch.tensor([number])

    read = [(int(block[0]), len(launched)) for block in clip_teacher.read_behind(results())]
    assert read == [(0, 2), (1, 3), (2, 3)] and not list(clip_teacher.read_behind([]))


def test_similarities_that_overflow_are_one_line(toy, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(
        clip_teacher.Scorer, "forward", lambda self, images, flip=None: torch.full((len(images), 3), torch.inf)
    )
    teacher, splits = teaching(toy, tiny_clip)
    with pytest.raises(UserError, match=r"in torch\.float16 are not finite; take --precision float32"):
        scores(replace(teacher, precision="bf16"), splits, tmp_path / "cache")


def test_the_cache_is_filled_once_and_keyed_by_all_that_matters(toy, tiny_clip, tmp_path, monkeypatch):
    passes, real_score = [], clip_teacher.score
    monkeypatch.setattr(clip_teacher, "score", lambda *a, **o: passes.append(1) or real_score(*a, **o))
    line = ["-d", str(toy), "--teacher", tiny_clip[0], "--teacher-weights", tiny_clip[1], "--precision", "float32"]
    splits = datasets.load(toy)
    teacher = parse(line).asked_teacher()
    first = scores(teacher, splits, tmp_path / "cache")
    sweep = parse([*line, *"-t 0.5 -th 0.9 -p 0.5 -s 4".split()]).asked_teacher()
    assert (scores(sweep, splits, tmp_path / "cache") == first).all() and len(passes) == 1

    torch.manual_seed(9)
    other = tmp_path / "other.safetensors"
    save_file(clip.create_clip(tiny_clip[0], None).state_dict(), other)
    np.save(tmp_path / "text.npy", np.random.RandomState(0).randn(3, 8))
    changes = [
        dict(prompt=("a {}",)),
        dict(prompt=("a {}", "{}")),
        dict(teacher_weights=str(other)),
        dict(teacher_preprocess="reference"),
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


def test_an_interrupted_pass_resumes(toy, tiny_clip, tmp_path, monkeypatch):
    teacher, splits = teaching(toy, tiny_clip)
    whole = scores(teacher, splits, tmp_path / "one", batch_size=4)
    starts, real_score = [], clip_teacher.score

    def stopping(scorer, paths, rows, *rest, **more):
        starts.append(int(rows[0]))
        for count, block in enumerate(real_score(scorer, paths, rows, *rest, **more)):
            if len(starts) == 1 and count == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(clip_teacher, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        scores(teacher, splits, tmp_path / "two", batch_size=4)
    assert (scores(teacher, splits, tmp_path / "two", batch_size=4) == whole).all()
    assert starts == [0, 12]


@pytest.mark.parametrize(
    "shape, message",
    [((4, 8), r"\(4, 8\), expected .* \(3, 8\)"), ((3, 9), r"\(3, 8\)"), (None, "not a plain")],
)
def test_text_features_that_do_not_fit_are_reported(toy, tiny_clip, tmp_path, shape, message):
    np.save(tmp_path / "t.npy", np.ones(shape) if shape else np.array([None]))
    teacher, splits = teaching(toy, tiny_clip, text_features=str(tmp_path / "t.npy"))
    with pytest.raises(UserError, match=message):
        scores(teacher, splits, tmp_path / "cache")


def test_the_published_text_features_fit_the_data_sets(real):
    for name, labels in (("VOC20text_feature_labelonly", 20), ("CoCo80text_feature", 80), ("CUB312text_feature", 312)):
        captions.read_text_features(str(real / f"reference/text_features/{name}.npy"), (labels, 768))


# Prompts


def text_of(tiny_clip: tuple[str, str], prompts: tuple[str, ...], classes: datasets.Classes) -> torch.Tensor:
    return clip_teacher.build(ClipTeacher(*tiny_clip, prompt=prompts), classes).text_features


def test_the_features_of_several_prompts_are_averaged_after_normalisation(tiny_clip):
    classes = datasets.Classes(["x", "y"], ["cat", "dog"])
    one, other, both = (text_of(tiny_clip, prompts, classes) for prompts in (("a {}",), ("{}s",), ("a {}", "{}s")))
    assert torch.allclose(both, torch.nn.functional.normalize(one + other, dim=1), atol=1e-6)
    assert not torch.allclose(one, other, atol=1e-2)


def test_imagenet_names_the_templates_of_CLIP(tiny_clip):
    templates = captions.templates(("imagenet", "my {}"))
    assert len(templates) == 81 and templates[-1] == "my {}" and "a photo of many {}." in templates
    assert all("{}" in template for template in templates)
    classes = datasets.Classes(["x"], ["cat"])
    assert ClipTeacher(*tiny_clip, prompt=("imagenet",)).captions(classes)[0] == [templates[0].replace("{}", "cat")]


def test_a_caption_that_is_cut_is_reported_and_classes_that_become_the_same_are_refused(toy, tiny_clip, capsys, fails):
    """The tiny text tower reads 16 tokens."""
    words = " ".join(["photo"] * 15)
    given = taught_arguments(toy, "--teacher", tiny_clip[0], "--teacher-weights", tiny_clip[1])
    line = fails(main.main, [*given, "--prompt", f"{words} {{}}"])
    assert "the captions of red and green are the same in the first 16 tokens" in line
    more = ["--out", str(toy / "out"), "--prompt", "{}", "--prompt"]
    assess_teacher.main([*given, *more, f"{words} {{}}"])  # the first caption still differs
    assert "3 of 3 classes have longer ones, the first red (18 tokens)" in capsys.readouterr().out
    assess_teacher.main([*given, *more, "a photo of {}"])
    assert "tokens" not in capsys.readouterr().out


# Views


def views(teacher: ClipTeacher, splits: datasets.Splits, folder: Path) -> list[np.ndarray]:
    options = dict(batch_size=16, device=torch.device("cpu"), workers=2)
    return teacher.similarities(splits.train, splits.classes, folder, **options)


def test_tiles_are_cut_row_by_row_and_scored_as_images_of_their_own(toy, tiny_clip, tmp_path):
    pixels = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    tiles = clip_teacher.cut(pixels, 2)
    assert tiles.shape == (8, 3, 4, 4) and torch.equal(tiles[5], pixels[1, :, :4, 4:])
    teacher, splits = teaching(toy, tiny_clip, teacher_views="tiles", teacher_tiles=2)
    whole, parts = views(teacher, splits, tmp_path / "cache")
    assert whole.shape == (24, 3) and parts.shape == (24, 4, 3)
    scorer = clip_teacher.build(teacher, splits.classes)
    image = torch.from_numpy(decode(splits.train.paths()[7], 64, "bicubic")).permute(2, 0, 1)
    with torch.no_grad():
        assert parts[7, 2] == pytest.approx(scorer(image[None, :, 32:, :32])[0].numpy(), abs=1e-5)


def test_each_view_is_scored_once_and_the_whole_image_is_shared(toy, tiny_clip, tmp_path, monkeypatch):
    passes, real_score = [], clip_teacher.score
    monkeypatch.setattr(clip_teacher, "score", lambda *a, **o: passes.append(o["view"]) or real_score(*a, **o))
    for change in (
        {},
        dict(teacher_views="tiles", teacher_tiles=2),
        dict(teacher_views="patches"),
        dict(teacher_views="tiles"),
        {},
        dict(teacher_views="tiles"),
    ):
        views(*teaching(toy, tiny_clip, **change), tmp_path / "cache")
    assert passes == ["global", "tiles", "patches", "tiles"]


def test_the_heads_are_those_of_the_blocks_own_attention(tiny_clip):
    block = clip.create_clip(*tiny_clip).visual.transformer.resblocks[0].eval()
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    queries, keys, values = (patches.heads(block, tokens, part) for part in range(3))
    weights = torch.softmax(queries @ keys.transpose(2, 3) / 8**0.5, dim=3)
    mixed = block.attn.out_proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(mixed, block.attention(block.ln_1(tokens)), atol=1e-5)


def test_patches_attend_to_what_looks_like_them(tiny_clip):
    """One block: its attention is softmax(q q^T) + softmax(k k^T), and neither its MLP nor the class token counts."""
    torch.manual_seed(0)
    tower = clip.create_clip(*tiny_clip).visual.eval()
    images, block = torch.randn(2, 3, 32, 32), tower.transformer.resblocks[0]
    with torch.no_grad():
        tokens, expected = tower._embeds(images), torch.zeros(2, 5, 16)
        query, key, value = (
            torch.nn.functional.linear(block.ln_1(tokens), weight, bias)
            for weight, bias in zip(block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True)
        )
        for head in (slice(0, 8), slice(8, 16)):
            for image in range(2):
                weights = sum(torch.softmax(v[image, :, head] @ v[image, :, head].T / 8**0.5, 1) for v in (query, key))
                expected[image, :, head] = weights @ value[image, :, head]
        expected = tower.ln_post(tokens + block.attn.out_proj(expected))[:, 1:] @ tower.proj
        assert torch.allclose(patches.patch_features(tower, images), expected, atol=1e-5)


def test_the_score_of_patches_is_the_largest_of_a_softmax_over_the_classes(toy, tiny_clip, tmp_path):
    teacher, splits = teaching(toy, tiny_clip, teacher_views="patches")
    found = views(teacher, splits, tmp_path / "cache")[1]
    scorer = clip_teacher.build(teacher, splits.classes)
    image = torch.from_numpy(decode(splits.train.paths()[3], 32, "bicubic")).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = patches.patch_features(scorer.network.visual, (image / 255 - scorer.mean) / scorer.std)[0]
        scores = torch.softmax(100 * torch.nn.functional.normalize(features, dim=1) @ scorer.text_features.T, dim=1)
    assert np.exp(found[3] / 0.01) == pytest.approx(scores.amax(dim=0).numpy(), abs=1e-4)
    half = views(replace(teacher, precision="bf16"), splits, tmp_path / "cache")[1]
    assert 0 < np.abs(half - found).max() < 2e-3


def test_a_teacher_without_a_ViT_has_no_patches(toy, tmp_path):
    teacher, splits = teaching(
        toy, ("models/digits_clip.json", "models/digits_clip.safetensors"), teacher_views="patches"
    )
    with pytest.raises(UserError, match=r"open_clip's own ViT.*not a TimmModel; take --teacher-views tiles"):
        views(teacher, splits, tmp_path / "cache")


@pytest.mark.parametrize(
    "line, message",
    [
        ("--prompt photo", "needs {} in place of the class name, or the name imagenet"),
        ("--teacher-views tiles --teacher-preprocess reference", "goes with --teacher-views global"),
        ("--teacher-views patches --similarity README.md", "needs a teacher"),
        ("--teacher-tiles 1", "[2, 16]"),
        ("--teacher-views everything", "global"),
    ],
)
def test_views_that_do_not_go_with_the_rest_are_one_line(line, message, fails):
    assert message in fails(parse, line.split())


# SigLIP


SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "map",
                   "timm_proj": "none"},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1,
                 "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
}  # fmt: skip
SIGLIP_2 = SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}}}


def written(folder: Path, name: str, config: dict) -> tuple[str, str]:
    """A model config and random weights of it, as files."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    state = clip.create_clip(str(path), None).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return str(path), str(folder / f"{name}.safetensors")


@pytest.mark.parametrize("name, config", [("one_sig", SIGLIP), ("two_sig", SIGLIP_2)])
def test_models_of_the_kind_of_SigLIP_are_teachers_too(toy, tmp_path, name, config):
    """A timm tower with attention pooling, a text tower that reads both ways, a bias on the logits."""
    teacher, splits = teaching(toy, written(tmp_path, name, config), teacher_views="tiles", teacher_tiles=2)
    whole, tiles = views(teacher, splits, tmp_path / "cache")
    assert np.abs(whole).max() <= 1 and np.ptp(whole, axis=0).min() > 0 and np.ptp(whole, axis=1).min() > 0
    assert np.isfinite(tiles).all()


def test_a_file_of_weights_is_normalised_as_the_models_tags_are(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    half, file = ((0.5,) * 3, (0.5,) * 3), str(tmp_path / "w.safetensors")
    assert clip.normalisation("ViT-B-16-SigLIP2", file) == clip.normalisation("ViT-B-16-SigLIP2", "webli") == half
    openai = clip.normalisation("ViT-L-14-336-quickgelu", "openai")
    assert openai != half
    for name in ("ViT-L-14-336-quickgelu", "ViT-L-14", "models/digits_clip.json"):  # one tag, tags that differ, no tag
        assert clip.normalisation(name, file) == openai


def test_a_tokenizer_that_cannot_be_had_is_one_line(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # not installed
    config = SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}
    pair = written(tmp_path, "hf_sig", config)
    teacher, splits = teaching(toy, pair)
    with pytest.raises(UserError, match=r"tokenizer of hf_sig is not installed .*--text-features FILE"):
        views(teacher, splits, tmp_path / "cache")
    np.save(tmp_path / "text.npy", np.random.RandomState(0).randn(3, 64).astype(np.float32))
    found = views(replace(teacher, text_features=str(tmp_path / "text.npy")), splits, tmp_path / "cache")
    assert found[0].shape == (24, 3)
