"""The ways to train: optimizers, schedules, averages, augmentation, a linear head alone; by hand, and by the real
command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_numbers, taught_arguments, toy_arguments
from training import StopAfter, fit, tiny_training

import engine
import main
import models
from config import COMMON, linear_phase, parse
from datasets.images import Augmentation
from models import linear
from models.backbone import Float32Linear
from runs import run_folder
from util.errors import Interrupted
from util.signals import Stop

EVERYTHING = "--optimizer adamw --weight-decay 0.1 --schedule onecycle --ema 0.9 --crop 0.5 --randaugment 9".split()


def test_the_command_line_names_what_training_knows():
    for name, known in (("optimizer", engine.OPTIMIZERS), ("schedule", engine.SCHEDULES)):
        assert list(COMMON[name]["setting"].choices) == list(known)


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 57])
def test_schedules_are_those_of_pytorch(steps):
    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step() if len(found) < steps else None
        return found

    known = torch.optim.lr_scheduler
    expected = rates(lambda optimizer: known.CosineAnnealingLR(optimizer, steps))
    assert [engine.cosine(step, steps) for step in range(steps)] == pytest.approx(expected, abs=1e-9)
    if steps > 3:  # PyTorch's cannot rise in fewer
        expected = rates(lambda optimizer: known.OneCycleLR(optimizer, 1.0, steps, cycle_momentum=False))
        assert [engine.one_cycle(step, steps) for step in range(steps)] == pytest.approx(expected, abs=1e-9)
    assert all(0 < engine.one_cycle(step, steps) <= 1 for step in range(steps))


def test_each_step_is_taken_at_the_rate_of_its_schedule(monkeypatch):
    training, seen = tiny_training("an", epochs=2, schedule="cosine", head_rate=5.0, optimizer="sgd"), []
    real = training.optimizer.step
    groups = training.optimizer.param_groups
    monkeypatch.setattr(
        training.optimizer, "step", lambda: seen.append([float(group["lr"]) for group in groups]) or real()
    )
    fit(training)
    expected = [[rate * engine.cosine(step, 10) for rate in (0.01, 0.05)] for step in range(10)]
    assert torch.tensor(seen).allclose(torch.tensor(expected), rtol=1e-6)


def test_sgd_has_momentum_and_its_decay_is_of_the_networks_weights_only(monkeypatch):
    training = tiny_training("an", optimizer="sgd", weight_decay=0.1)
    (group,) = training.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 0.1)
    own = torch.nn.Linear(1, 1)
    own.rate = 10.0
    *_, last = engine.OPTIMIZERS["sgd"](
        engine.parameter_groups(training.model, own, 0.01, 1.0), weight_decay=0.1
    ).param_groups
    assert last["params"] == list(own.parameters()) and (last["weight_decay"], last["lr"]) == (0.0, 0.1)


@pytest.mark.parametrize("optimizer", engine.OPTIMIZERS)
def test_a_scheduled_rate_that_stays_learns_what_a_constant_one_learns(optimizer, monkeypatch):
    """A rate that is a tensor, and one that is a number, differ by rounding alone."""
    monkeypatch.setitem(engine.SCHEDULES, "cosine", lambda step, steps: 1.0)
    one, other = (fit(tiny_training("an", optimizer=optimizer, schedule=name)) for name in ("constant", "cosine"))
    assert one[0] == pytest.approx(other[0], abs=1e-6) and torch.allclose(one[1], other[1], atol=1e-6)


def test_the_average_of_the_weights_is_what_is_validated_and_kept():
    """By hand: decay d_t = min(0.5, 1 - t^(-2/3)) at step t, counted from 1; the first is a copy."""
    training, seen = tiny_training("an", epochs=1, ema=0.5), []
    real = training.average.update

    def update(model, step):
        seen.append(model.network[4].weight.detach().clone())
        real(model, step)

    training.average.update = update
    _, probs = fit(training)
    expected = seen[0]
    for step, weight in enumerate(seen[1:], start=2):
        decay = min(0.5, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(training.evaluated.network[4].weight, expected, atol=1e-6)
    assert not torch.allclose(training.model.network[4].weight, expected, atol=1e-4)
    images = next(training.data.images.stream([torch.arange(36)], training.device))
    with torch.no_grad():
        logits = training.evaluated(training.evaluated.to_input(images))
    assert torch.allclose(probs, torch.sigmoid(logits), atol=1e-6)


def test_an_augmented_image_is_a_function_of_seed_epoch_and_row_alone():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, before = torch.tensor([5, 9, 2, 30]), torch.get_rng_state()
    for augmentation in (Augmentation(crop=0.4), Augmentation(randaugment=15), Augmentation(0.4, 15)):
        changed = augmentation(images, rows, 3, 7)
        assert changed.dtype == torch.uint8 and changed.shape == images.shape and not torch.equal(changed, images)
        assert torch.equal(augmentation(images[[2, 0]], rows[[2, 0]], 3, 7), changed[[2, 0]])
        assert not torch.equal(augmentation(images, rows, 3, 8), changed)
        assert not torch.equal(augmentation(images, rows, 4, 7), changed)
    assert torch.equal(torch.get_rng_state(), before)
    assert not Augmentation()


def test_a_crop_keeps_the_share_that_was_asked_for():
    """Of an image that is 255 in its left half and 0 in its right, a crop of at least 0.9 of the area shows both."""
    image = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    image[..., :10] = 255
    wide = [Augmentation(crop=0.9)(image, torch.tensor([row]), 0, 1).float().mean() / 255 for row in range(50)]
    narrow = [Augmentation(crop=0.05)(image, torch.tensor([row]), 0, 1).float().mean() / 255 for row in range(50)]
    assert min(wide) > 0.4 and max(wide) < 0.6
    assert min(narrow) < 0.1 and max(narrow) > 0.9


def test_every_option_makes_a_run_of_its_own_and_all_together_resume_to_the_same_numbers(toy, tmp_path, monkeypatch):
    usual = run_folder.run_name(parse(toy_arguments(toy)))
    for flag, value in zip(EVERYTHING[::2], EVERYTHING[1::2], strict=True):
        assert run_folder.run_name(parse(toy_arguments(toy, flag, value))) != usual
    arguments = toy_arguments(toy, "-l", "an", "--checkpoint-minutes", "0", *EVERYTHING)
    undisturbed = shutil.move(main.main(arguments)["folder"], tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(main, "Stop", lambda: StopAfter(5))  # in the second epoch
        with pytest.raises(Interrupted):
            main.main(arguments)
    assert same_numbers(Path(main.main([*arguments, "--resume"])["folder"]), Path(undisturbed))


def test_features_are_what_the_head_reads_and_are_computed_once(toy, monkeypatch):
    arguments = toy_arguments(toy, "-l", "an", "--mode", "linear", "--linear-epochs", "2", "--flip", "0.5")
    result = main.main(arguments)
    cached = sorted((toy.parent / "toy/cache").glob("features_*.npy"))
    kinds = [np.load(path) for path in cached]  # (images, views, features)
    assert sorted((len(rows), rows.shape[1]) for rows in kinds) == [
        (6, 1),
        (10, 1),
        (24, 2),
    ]  # train: mirrored
    with np.load(Path(result["folder"]) / "predictions.npz") as file:
        images, probs = file["images"].tolist(), file["probs"]
    whole = models.load(result["folder"], "cpu")  # the network with the trained head
    assert np.allclose(whole.predict([toy / "images" / name for name in images]), probs, atol=1e-5)

    monkeypatch.setattr(main.linear.Images, "stream", None)  # from now on no image is read
    main.main([*arguments, "--linear-lr", "1e-2"])
    assert sorted((toy.parent / "toy/cache").glob("features_*.npy")) == cached


def test_features_of_other_weights_are_other_features(toy):
    for seed in ("0", "1"):  # the weights are random: a different seed is a different backbone
        main.main(toy_arguments(toy, "-l", "an", "--mode", "linear", "--linear-epochs", "1", "-s", seed))
    assert len(list((toy.parent / "toy/cache").glob("features_*.npy"))) == 6


def test_the_mirrored_view_is_taken_if_an_image_is_flipped():
    probe = linear.Probe(Float32Linear(1, 1))
    views = torch.tensor([[[1.0], [10.0]], [[2.0], [20.0]]])
    assert probe.to_input(views, torch.tensor([False, True])).tolist() == [[1.0], [20.0]]
    assert probe.to_input(views).tolist() == [[1.0], [2.0]]
    assert probe.to_input(views[:, :1], torch.tensor([True, True])).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("half", ["linear", "end_to_end"])
def test_linear_init_continues_from_the_linear_head_and_resumes_from_either_half(toy, tmp_path, monkeypatch, half):
    arguments = toy_arguments(toy, "-l", "EM_APL", "--warmup-epochs", "1", "--mode", "linear_init", "--epochs", "2")
    arguments += ["--linear-epochs", "3", "--linear-lr", "1e-2", "--checkpoint-minutes", "0", "--ema", "0.9"]
    results, kept = toy.parent.parent / "results", tmp_path / "undisturbed"
    undisturbed = Path(main.main(arguments)["folder"])
    names = [run_folder.run_name(config) for config in (linear_phase(parse(arguments)), parse(arguments))]
    names = {path.name for path in results.iterdir() if path.is_dir()}
    assert len(names) == 2 and undisturbed.name in names
    results.rename(kept)

    class StopInHalf(StopAfter):
        """In the second batch of the chosen half, which begins when signals are deferred."""

        begun = 0

        def deferred(self):
            self.begun += 1
            return super().deferred()

        def asked_anywhere(self, or_else=False):
            chosen = self.begun == 1 + (half == "end_to_end")
            return super().asked_anywhere(or_else) if chosen else Stop.asked_anywhere(self, or_else)

    with monkeypatch.context() as patch:
        patch.setattr(main, "Stop", lambda: StopInHalf(2))
        with pytest.raises(Interrupted):
            main.main(arguments)
    main.main([*arguments, "--resume"])
    for name in names:
        assert same_numbers(results / name, kept / name)
    identity = json.loads((results / undisturbed.name / "config.json").read_text())["identity"]
    assert identity["linear_lr"] == 1e-2 and identity["epochs"] == 2


def test_linear_init_needs_of_the_linear_run_no_more_than_its_model_and_overwrites_a_broken_one(toy, capsys):
    arguments = toy_arguments(toy, "-l", "an", "--mode", "linear_init", "--epochs", "1", "--linear-epochs", "1")
    first = main.main(arguments)
    whole = Path(first["folder"])
    (head,) = [path for path in whole.parent.iterdir() if path.is_dir() and path != whole]
    for name in ("best.pt", "last.pt"):
        (head / name).unlink()
    assert main.main([*arguments, "--overwrite"])["test_mAP"] == first["test_mAP"]
    assert "finished: " in capsys.readouterr().out
    (head / "test.json").unlink()
    (head / "last.pt").write_bytes(b"broken")
    assert main.main([*arguments, "--overwrite"])["test_mAP"] == first["test_mAP"]
    assert (head / "test.json").exists()


def test_an_image_tower_from_a_file_is_what_the_file_says(toy, tiny_clip):
    path = Path(tiny_clip[0])

    def identity(path: Path) -> dict:
        return run_folder.identity(parse(toy_arguments(toy, "-l", "an", "-m", f"clip:{path}")))

    before = identity(path)
    path.write_text(path.read_text().replace('"layers": 1', '"layers": 12', 1))
    assert {name for name, value in identity(path).items() if value != before[name]} == {"model"}


def test_the_teachers_image_tower_serves_as_a_frozen_backbone(toy):
    arguments = taught_arguments(toy, "-l", "EM_PL", "--mode", "linear", "--linear-epochs", "2")
    place = arguments.index("-m")
    arguments[place + 1] = "teacher"
    result = main.main([*arguments[: place + 2], *arguments[place + 3 :]])  # without --no-pretrained
    assert result["model"] == "clip:models/digits_clip.json" and result["mode"] == "linear"
    assert parse(["-m", "teacher"]).model == "clip:ViT-L-14-336-quickgelu:openai"
    assert parse(["-m", "teacher"]).image_size == 336


@pytest.mark.parametrize(
    "line, says",
    [
        ("--ema 1", "[0, 1)"),
        ("--crop 0", "(0, 1]"),
        ("--randaugment 31", "[0, 30]"),
        ("--optimizer lion", "adamw"),
        ("-m clip:nothing", "open_clip has no model"),
    ],
)
def test_a_mistake_is_one_line(line, says, fails):
    assert says in fails(parse, line.split())


def test_a_backbone_without_one_linear_head_trains_none_alone(toy, fails):
    arguments = toy_arguments(toy, "-l", "an", "--mode", "linear")
    arguments[arguments.index("-m") + 1] = "timm:test_vit"
    assert main.main([*arguments, "--linear-epochs", "1"])["mode"] == "linear"
    model = models.Backbone(torch.nn.Sequential(torch.nn.Flatten()), heads=())
    assert "one linear head" in fails(lambda argv: linear.head_of(model), [])
