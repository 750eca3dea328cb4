"""The command line: defaults, values of data sets, backbones and methods, names, ranges, identity."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import config as settings
from config import COMMON, Config, effective_settings, ignored_settings, parse
from datasets import DATASETS
from losses import LOSSES
from models import BACKBONES
from runs.run_folder import run_name
from util.settings import inside


def value(config: Config, name: str) -> object:
    """A common setting, or one of the method's."""
    return getattr(config, name) if name in COMMON else config.hparams[name]


def changed(config: Config, **values) -> Config:
    """The configuration with other values of common settings and of the method's."""
    common = {name: values.pop(name) for name in list(values) if name in COMMON}
    assert values.keys() <= config.hparams.keys()
    return replace(config, **common, hparams=config.hparams | values)


def test_defaults_are_the_published_setting_for_pascal():
    config = parse([])
    assert (config.dataset, config.loss, config.model, config.gpu) == ("pascal", "EM_PL", "resnet50", "0")
    assert config.seed == 0
    assert [value(config, name) for name in ("temperature", "threshold", "negative_fraction")] == [0.01, 0.3, 0.0]
    assert (config.epochs, config.batch_size, config.lr, config.image_size) == (10, 8, 1e-5, 448)
    assert [value(config, name) for name in ("alpha", "beta_pos", "beta_neg")] == [0.2, 0.7, 0.2]


def test_command_lines_of_the_published_code_work():
    line = "-d coco -l EM_PL -g 1 -m clip_vision --temp 0.03 --threshold 0.2 --partial 0.1 --pytorch_seed 8"
    config = parse(line.split())
    assert (config.model, config.seed, config.gpu) == ("vit_clip", 8, "1")
    assert [value(config, name) for name in ("temperature", "threshold", "negative_fraction")] == [0.03, 0.2, 0.1]
    assert parse("-d coco -t 0.03 -th 0.2 -p 0.1 -s 8 -m vit_clip -g 1".split()) == config


@pytest.mark.parametrize(
    "line, expected",
    [
        ("-d coco", dict(alpha=0.1, lr=1e-5, batch_size=8)),
        ("-d nuswide", dict(alpha=0.1, prompt=("a photo of a {}",))),
        ("-d cub", dict(alpha=0.01, lr=1e-4)),
        ("-d coco -l EM_APL", dict(alpha=0.1, batch_size=16, warmup_epochs=5, beta=0.9)),
        ("-d cub -l EM_APL", dict(alpha=0.01, batch_size=8, warmup_epochs=3, beta=0.4)),
        ("-m vit_clip", dict(batch_size=6, image_size=336)),
        ("-m vit_clip -d coco -l EM_APL", dict(batch_size=16, image_size=336)),
        ("-d coco --alpha 0.5", dict(alpha=0.5)),
        ("-d digits", dict(model="timm:test_resnet", image_size=64)),
        ("-d digits -m resnet50", dict(model="resnet50", image_size=64)),
        ("-d digits -m vit_clip", dict(batch_size=6, image_size=64)),
    ],
)
def test_flag_beats_method_beats_data_set_beats_backbone_beats_default(line, expected):
    config = parse(line.split())
    assert {name: value(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "line, says",
    [
        ("-l em_pl", "EM_PL"),
        ("-m resnet51", "convnext_xlarge_22k"),
        ("-m timm:test_resnetx", "test_resnet"),
        ("-d imagenet", "nuswide"),
        ("-t 0", "[1e-6, inf)"),
        ("-th 1", "(0, 1)"),
        ("-th nan", "(0, 1)"),
        ("-p 1.0", "[0, 1)"),
        ("-s -1", "[0, 4294967296)"),
        ("--epochs 0", "[1, inf)"),
        ("--epochs two", "invalid int value"),
        ("-l EM_APL --epochs 5", "--warmup-epochs 5 must be below --epochs 5"),
        ("--prompt photo", "needs {}"),
        ("--resume --overwrite", "give one of them"),
        ("--similarity nowhere.npz", "nowhere.npz is not a file"),
        ("--image-size 1000000", "[1, 4096]"),
        ("--precision float16", "bf16"),
        ("--tresh 0.2", "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_right(line, says, fails):
    assert says in fails(parse, line.split())


def test_identity_is_what_changes_the_numbers_and_nothing_else():
    base = parse([])
    runtime = dict(gpu="cpu", workers=3, cache="none", results_dir="x", data_root="y", resume=True, eval_batch_size=1)
    assert effective_settings(changed(base, **runtime)) == effective_settings(base)
    for change in (
        dict(seed=1),
        dict(threshold=0.2),
        dict(alpha=0.3),
        dict(weights="x.pt"),
        dict(head_rate=10.0),
        dict(val_labels="observed"),
    ):
        assert effective_settings(changed(base, **change)) != effective_settings(base)
        assert run_name(changed(base, **change)) != run_name(base)


def test_what_a_loss_does_not_read_is_no_part_of_its_identity(capsys):
    an = parse(["-l", "an"])
    assert not {"threshold", "alpha", "teacher", "prompt"} & effective_settings(an).keys()
    assert parse(["-l", "an", "-th", "0.1", "--alpha", "0.9"]) == an
    assert "note: --threshold is ignored: the method an does not read it" in capsys.readouterr().err
    assert run_name(parse(["-l", "an", "--prompt", "a {}"])) == run_name(an)
    assert "note: --prompt is ignored: the method an uses no teacher" in capsys.readouterr().err
    assert {"pretrained", "beta_neg"} <= ignored_settings(replace(parse([]), weights="x.pt")).keys()
    assert "beta_neg" not in ignored_settings(parse(["-p", "0.1"]))
    assert "teacher_pool" in ignored_settings(parse(["-l", "gpr"])) and "eta" not in ignored_settings(
        parse(["-l", "gpr"])
    )
    calibrated = ignored_settings(parse(["-l", "gpr", "--calibrate", "bias"]))
    assert {"eta", "temperature"} <= calibrated.keys() and "teacher_pool" not in calibrated
    given = replace(parse([]), similarity="file.npz")
    assert {"teacher", "prompt"} <= ignored_settings(given).keys() and "threshold" not in ignored_settings(given)


def test_a_setting_without_the_one_that_it_needs_is_no_part_of_the_identity(capsys):
    assert run_name(parse(["--beta-neg", "0.9"])) == run_name(parse([]))
    assert "note: --beta-neg is ignored: without --negative-fraction it has no effect" in capsys.readouterr().err
    assert run_name(parse(["--beta-neg", "0.9", "-p", "0.1"])) != run_name(parse(["-p", "0.1"]))


def test_a_data_set_is_found_by_its_name_or_by_its_path(toy, monkeypatch):
    by_name = parse(["-d", "toy", "--data-root", str(toy.parent)])
    monkeypatch.chdir(toy.parent.parent)
    for path in (str(toy), "data/toy", "data/toy/"):
        by_path = parse(["-d", path])
        assert by_path.folder.samefile(toy) and by_path.dataset_name == "toy"
        assert by_path.cache_folder.resolve() == by_name.cache_folder.resolve()
        assert run_name(by_path) == run_name(by_name)


def test_the_values_of_a_known_data_set_hold_by_its_path_too(tmp_path):
    assert parse(["-d", str(tmp_path / "coco")]) == replace(parse(["-d", "coco"]), dataset=str(tmp_path / "coco"))


def test_the_settings_are_shown_in_three_lines_those_that_were_changed_apart():
    lines = settings.show(parse("-d coco -th 0.2 --lr 1e-4 -s 3".split())).splitlines()
    assert lines[0] == "coco, EM_PL, resnet50, seed 3"
    assert lines[1] == "changed: lr=0.0001, threshold=0.2"
    assert len(lines) == 3 and lines[2].startswith("defaults: epochs=10") and "alpha=0.1" in lines[2]
    assert not any("beta_neg" in line for line in lines)  # without negative pseudo-labels it has no effect


def test_help_shows_each_option_with_its_default_and_range(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "weight of the entropy" not in text and "-l METHOD --help" in text
    with pytest.raises(SystemExit):
        parse(["-l", "EM_PL", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "weight of the entropy of unknown labels (default 0.2; coco: 0.1; nuswide: 0.1; cub: 0.01" in text
    assert "(default 0.3; in (0, 1))" in text and "--teacher-topk" not in text
    for title in (settings.WHAT, settings.TRAINING, settings.TEACHER, "settings of EM_PL", settings.RUN):
        assert title in text


def test_a_file_of_settings_stands_below_the_command_line(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"dataset": "coco", "lr": 0.5, "pretrained": false, "threshold": 0.2, "prompt": ["a {}", "{}"]}')
    config = parse(["--config", str(path), "--lr", "0.25"])
    assert (config.dataset, config.lr, config.pretrained, config.prompt) == ("coco", 0.25, False, ("a {}", "{}"))
    assert config.hparams["threshold"] == 0.2
    path.write_text(json.dumps({"identity": {}, "config": asdict(replace(config, gpu="cpu"))}))
    again = parse(["--config", str(path)])
    assert again == config  # of a run's config.json only what changes its numbers is taken
    path.write_text('{"lr": "fast"}')
    with pytest.raises(SystemExit):
        parse(["--config", str(path)])


@pytest.mark.parametrize(
    "value, interval, expected",
    [(0, "(0, 1)", False), (0, "[0, 1)", True), (1, "[0, 1)", False), (1, "[0, 1]", True), (9e9, "(0, inf)", True)],
)
def test_intervals_read_as_in_mathematics(value, interval, expected):
    assert inside(value, interval) is expected


def test_every_value_of_a_data_set_backbone_or_method_is_of_a_setting_that_exists():
    for about in (*DATASETS.values(), *BACKBONES.values()):
        assert about.settings.keys() <= COMMON.keys()
    for method in LOSSES.values():
        assert method.recipe.keys() <= COMMON.keys()
        assert {dataset for values in method.recipe.values() for dataset in values} <= {*DATASETS, "*"}
        assert {dataset for setting in method.all_settings().values() for dataset in setting.by_dataset} <= {*DATASETS}


@pytest.mark.parametrize(
    "error, says",
    [
        (
            RuntimeError("some_kernel does not have a deterministic implementation, but you set 'torch.use_det...'"),
            "some_kernel does not have a deterministic implementation; run without --deterministic",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "lower --batch-size"),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), "-g cpu"),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), "lower --batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "--cache disk"),
    ],
)
def test_what_pytorch_says_is_reported_in_one_line(fails, error, says):
    def refused(argv):
        raise error

    assert says in fails(refused, [])
