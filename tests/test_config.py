"""The command line: defaults, presets, names, ranges, identity."""

from dataclasses import replace

import pytest
import torch

import config as settings
from config import Config, identity, parse, unread


def test_defaults_are_the_published_setting_for_pascal():
    config = parse([])
    assert (config.dataset, config.loss, config.model, config.gpu) == ("pascal", "EM_PL", "resnet50", "0")
    assert (config.temperature, config.threshold, config.partial, config.seed) == (0.01, 0.3, 0.0, 0)
    assert (config.epochs, config.batch_size, config.lr, config.image_size) == (10, 8, 1e-5, 448)
    assert (config.alpha, config.beta_pos, config.beta_neg) == (0.2, 0.7, 0.2)


def test_command_lines_of_the_published_code_go_on_working():
    line = "-d coco -l EM_PL -g 1 -m clip_vision --temp 0.03 --threshold 0.2 --partial 0.1 --pytorch_seed 8"
    config = parse(line.split())
    assert (config.model, config.temperature, config.seed, config.gpu) == ("vit_clip", 0.03, 8, "1")
    assert (
        parse(["-d", "coco", "-t", "0.03", "-th", "0.2", "-p", "0.1", "-s", "8", "-m", "vit_clip", "-g", "1"]) == config
    )


@pytest.mark.parametrize(
    "line, expected",
    [
        ("-d coco", dict(alpha=0.1, lr=1e-5, batch_size=8)),
        ("-d nuswide", dict(alpha=0.1, prompt="a photo of a {}")),
        ("-d cub", dict(alpha=0.01, lr=1e-4)),
        ("-d coco -l EM_APL", dict(alpha=0.1, batch_size=16, warmup_epochs=5, beta=0.9)),
        ("-d cub -l EM_APL", dict(alpha=0.01, batch_size=8, warmup_epochs=3, beta=0.4)),
        ("-m vit_clip", dict(batch_size=6, image_size=336)),
        ("-m vit_clip -d coco -l EM_APL", dict(batch_size=16, image_size=336)),
        ("-d coco --alpha 0.5", dict(alpha=0.5)),
        ("-d digits", dict(model="timm:test_resnet", image_size=64)),
        ("-d digits -m resnet50", dict(model="resnet50", image_size=64)),
    ],
)
def test_flag_beats_preset_beats_default_and_the_most_specific_preset_wins(line, expected):
    config = parse(line.split())
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "line, says",
    [
        ("-l em_pl", "EM_PL"),
        ("-m resnet51", "convnext_xlarge_22k"),
        ("-m timm:test_resnetx", "test_resnet"),
        ("-d imagenet", "nuswide"),
        ("-t 0", "(0, inf)"),
        ("-th 1", "(0, 1)"),
        ("-th nan", "(0, 1)"),
        ("-p 1.0", "[0, 1)"),
        ("-s -1", "[0, 4294967296)"),
        ("--epochs 0", "[1, inf)"),
        ("--epochs two", "invalid int value"),
        ("-g one", "CUDA index or cpu"),
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
    where = dict(gpu="cpu", workers=3, cache="none", results_dir="x", data_root="y", resume=True, eval_batch_size=1)
    assert identity(replace(base, **where)) == identity(base)
    for change in (
        dict(seed=1),
        dict(threshold=0.2),
        dict(alpha=0.3),
        dict(weights="x.pt"),
        dict(val_labels="observed"),
    ):
        assert identity(replace(base, **change)) != identity(base)


def test_what_a_loss_does_not_read_is_no_part_of_its_identity(capsys):
    an = parse(["-l", "an"])
    assert identity(replace(an, threshold=0.1, alpha=0.9)) == identity(an)
    parse(["-l", "an", "-th", "0.1"])
    assert "note: --threshold changes nothing here: the loss an asks no teacher" in capsys.readouterr().err
    assert {"pretrained", "beta_neg"} <= unread(replace(parse([]), weights="x.pt")).keys()
    assert "beta_neg" not in unread(parse(["-p", "0.1"]))
    given = replace(parse([]), similarity="file.npz")
    assert {"teacher", "prompt"} <= unread(given).keys() and "threshold" not in unread(given)


def test_help_shows_each_option_with_its_default_and_range(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "weight of the entropy of unknown labels (default 0.2; coco: 0.1; nuswide: 0.1; cub: 0.01" in text
    assert "(default 0.3; in (0, 1))" in text
    assert "read by EM, EM_APL, EM_PL" in text
    for title in (settings.WHAT, settings.TRAINING, settings.TEACHER, settings.COEFFICIENTS, settings.RUN):
        assert title in text


@pytest.mark.parametrize(
    "value, interval, expected",
    [(0, "(0, 1)", False), (0, "[0, 1)", True), (1, "[0, 1)", False), (1, "[0, 1]", True), (9e9, "(0, inf)", True)],
)
def test_intervals_read_as_in_mathematics(value, interval, expected):
    assert settings.inside(value, interval) is expected


def test_every_preset_sets_options_that_exist():
    for row, values in settings.PRESETS.items():
        assert len(row) == 3 and values.keys() <= {entry.name for entry in settings.fields(Config)}


@pytest.mark.parametrize(
    "error, says",
    [
        (
            RuntimeError("some_kernel does not have a deterministic implementation, but you set 'torch.use_det...'"),
            "some_kernel does not have a deterministic implementation; run without --deterministic",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "lower --batch-size"),
        (RuntimeError("Expected to have finished reduction in the prior iteration"), "train it in a single process"),
    ],
)
def test_what_pytorch_says_is_told_in_one_line(fails, error, says):
    def refused(argv):
        raise error

    assert says in fails(refused, [])
