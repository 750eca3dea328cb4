"""The ways to train: optimizers and schedules, by hand and against PyTorch's, and by the real command."""

import pytest
import torch
from conftest import toy_arguments
from training import fit, tiny_training

import engine
import main
from config import COMMON


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
    real = training.step.optimizer.step
    groups = training.step.optimizer.param_groups
    monkeypatch.setattr(
        training.step.optimizer, "step", lambda: seen.append([float(group["lr"]) for group in groups]) or real()
    )
    fit(training)
    expected = [[rate * engine.cosine(step, 10) for rate in (0.01, 0.05)] for step in range(10)]
    assert torch.tensor(seen).allclose(torch.tensor(expected), rtol=1e-6)


def test_sgd_has_momentum_and_its_decay_is_of_the_networks_weights_only(monkeypatch):
    training = tiny_training("an", optimizer="sgd", weight_decay=0.1)
    (group,) = training.step.optimizer.param_groups
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


def test_optimizer_decay_and_schedule_make_runs_of_their_own(toy):
    lines = [[], ["--optimizer", "adamw", "--weight-decay", "0.1"], ["--optimizer", "sgd", "--schedule", "onecycle"]]
    results = [main.main(toy_arguments(toy, "-l", "an", "--epochs", "1", *line)) for line in lines]
    assert len({result["folder"] for result in results}) == 3
    assert len({result["val_mAP"] for result in results}) > 1
