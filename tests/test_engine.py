"""The training step: resumed training, the accelerated network, and what an epoch does with it."""

import pytest
import torch
from torch import nn
from training import (
    ALL_WAYS,
    BATCH,
    NUM_IMAGES,
    SIZE,
    STATEFUL,
    TRAINED,
    MemoryStorage,
    StopAfter,
    early,
    fit,
    one_step,
    tiny_training,
)

import engine
from util.errors import Interrupted, UserError

CPU = torch.device("cpu")
WAYS = [*((loss, {}) for loss in TRAINED), ("EM_PL", ALL_WAYS), ("EM_APL", ALL_WAYS | dict(optimizer="adamw"))]

STOPS = [3, 9, 17, 29]  # of at least 39 batches: five of training and eight of validation in each epoch


@pytest.mark.parametrize(
    ("loss", "options", "batch"),
    [(*way, batch) for way in WAYS for batch in (STOPS if way[0] in ("EM_PL", *STATEFUL) else [17])],
)
def test_a_training_that_is_stopped_continues_to_the_same_numbers(loss, options, batch):
    undisturbed, storage = tiny_training(loss, **options), MemoryStorage()
    expected = fit(undisturbed)
    with pytest.raises(Interrupted):
        fit(tiny_training(loss, **options), storage, StopAfter(batch))
    training = tiny_training(loss, **options)
    for parameter in training.model.parameters():
        torch.nn.init.ones_(parameter)  # all comes from the saved state
    training.load_state_dict(storage.load())
    means, probs = fit(training)
    assert means == expected[0] and torch.equal(probs, expected[1])
    for name, value in undisturbed.loss_function.state_dict().items():
        assert torch.equal(training.loss_function.state_dict()[name], value), name


def test_what_a_method_does_late_it_does_in_these_tests():
    """EM_APL labels after the first epoch; LL_Cp flips and SPLC corrects in the second one. So the stops above
    interrupt all that the methods do."""
    training = tiny_training("EM_APL")
    fit(training)
    assert (training.loss_function.soft >= 0).any(dim=0).all()
    training = tiny_training("LL_Cp")
    fit(training)
    assert 0 < training.loss_function.flipped.sum() < training.loss_function.flipped.numel()
    assert early("splc") == {"warmup_epochs": 1} and early("LL_R") == {"delta": 20.0}


def test_a_process_without_images_computes_in_float32(monkeypatch):
    """As the others' batch norm does under bf16: what they gather must be of one type."""
    training = tiny_training("EM_PL", precision="bf16")
    enabled, none = [], torch.zeros(0, dtype=torch.int64)
    training.model.register_forward_hook(lambda *call: enabled.append(torch.is_autocast_enabled("cpu")))
    before = [parameter.clone() for parameter in training.model.parameters()]
    assert training.step(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), none, none.bool(), BATCH) == 0
    assert all(map(torch.equal, training.model.parameters(), before))
    one_step(training)
    assert enabled == [False, True]


class Graphed(nn.Module):
    """Stands for what make_graphed_callables returns: it runs the module, and counts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.sizes = module, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return self.module(images)


def warm_up(module: nn.Module, inputs: tuple[torch.Tensor]) -> Graphed:
    """As the warm-up of a capture does: passes that change batch norm's statistics and draw random numbers."""
    assert module.training and torch.is_grad_enabled()
    for _ in range(3):
        torch.autograd.grad(module(*inputs).sum(), [*module.parameters()])
    return Graphed(module)


def accelerated(**options: object) -> engine.Training:
    """A training whose network has batch norm and dropout, with the network for full batches that is asked for."""
    norm = lambda width: nn.Sequential(nn.BatchNorm2d(width), nn.Dropout(0.2))  # noqa: E731
    training = tiny_training("EM_PL", norm=norm, **options)
    training.accelerates = bool(options.keys() & {"cuda_graph", "compile"})  # as on a GPU
    return training


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_full_batches_go_through_the_captured_network_and_learn_the_same(monkeypatch, capsys, precision):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", warm_up)
    training = accelerated(cuda_graph=True, precision=precision)
    got, usual = fit(training), fit(accelerated(precision=precision))
    assert got[0] == usual[0] and torch.equal(got[1], usual[1])
    assert training.accelerated.sizes == [BATCH] * 3 * (NUM_IMAGES // BATCH)  # not the last one, nor in evaluation
    assert capsys.readouterr().out.count("the network is captured as a CUDA graph") == 1


def test_full_batches_go_through_the_compiled_network_and_learn_the_same(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, mode: Graphed(model))
    training = accelerated(compile=True)
    got, usual = fit(training), fit(accelerated())
    assert got[0] == usual[0] and torch.equal(got[1], usual[1])
    assert training.accelerated.sizes == [BATCH] * (1 + 3 * (NUM_IMAGES // BATCH))
    assert capsys.readouterr().out.count("the network is compiled") == 1


def test_a_missing_compiler_is_reported_in_one_line(monkeypatch):
    def broken(images: torch.Tensor) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda model, **options: broken)
    with pytest.raises(UserError, match=r"--compile does not work here \(.*No working C\+\+ compiler.*leave it out"):
        fit(tiny_training("EM_PL", compile=True))
