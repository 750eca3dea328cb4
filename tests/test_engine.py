"""Training: a captured and replayed step is the eager one (emulated; on a GPU see test_gpu.py), and a training that is
stopped goes on to the same numbers."""

import numpy as np
import pytest
import torch
from replay import Graph, emulate
from training import ALL_WAYS, BATCH, SIZE, STATEFUL, TRAINED, MemoryStorage, StopAfter, early, fit, tiny_training

import engine
import losses
from util.errors import Interrupted, UserError

CPU = torch.device("cpu")
WAYS = [*((loss, {}) for loss in TRAINED), ("EM_PL", ALL_WAYS), ("EM_APL", ALL_WAYS | dict(optimizer="adamw"))]


@pytest.mark.parametrize(("loss", "options"), WAYS)
def test_a_captured_step_learns_what_the_usual_one_learns(monkeypatch, loss, options):
    """Without a GPU: emulated, as a graph that replays the recorded operations on the memory that they were recorded
    with."""
    training = tiny_training(loss, **options)
    replays = emulate(monkeypatch, training.step)
    captured = fit(training)
    assert not any(group["capturable"] for group in training.step.optimizer.param_groups)
    assert replays == [BATCH] * (3 * 4 - engine.WARM_UP) and training.step.captures
    usual = fit(tiny_training(loss, **options))
    assert captured[0] == usual[0] and torch.equal(captured[1], usual[1])


STOPS = [3, 9, 17, 29]  # of at least 39 batches: five of training and eight of validation in each epoch


@pytest.mark.parametrize(
    ("loss", "options", "batch"),
    [(*way, batch) for way in WAYS for batch in (STOPS if way[0] in ("EM_PL", *STATEFUL) else [17])],
)
def test_a_training_that_is_stopped_goes_on_to_the_same_numbers(loss, options, batch):
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
    """EM_APL labels after the first epoch, LL_Cp flips and SPLC corrects in the second one, so that stops and captures
    meet what the methods do."""
    training = tiny_training("EM_APL")
    fit(training)
    assert (training.loss_function.soft >= 0).any(dim=0).all()
    training = tiny_training("LL_Cp")
    fit(training)
    assert 0 < training.loss_function.flipped.sum() < training.loss_function.flipped.numel()
    assert early("splc") == {"warmup_epochs": 1} and early("LL_R") == {"delta": 20.0}


def test_a_process_without_images_computes_in_float32(monkeypatch):
    """As the others' batch norm does under bf16: what they gather must be of one type."""
    step = tiny_training("EM_PL", precision="bf16").step
    enabled, none = [], torch.zeros(0, dtype=torch.int64)
    step.model.register_forward_hook(lambda *call: enabled.append(torch.is_autocast_enabled("cpu")))
    before = [parameter.clone() for parameter in step.model.parameters()]
    assert step(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), none, none.bool(), BATCH) == 0
    assert all(torch.equal(parameter, old) for parameter, old in zip(step.model.parameters(), before, strict=True))
    index = torch.arange(2)
    step(next(step.data.images.stream([index], CPU)), index, index > 9, BATCH)
    assert enabled == [False, True]


class Scheduled(losses.Loss):
    """A loss whose weight is a plain number, which a capture freezes; `hide` puts it where nobody looks."""

    def __init__(self, every_step: bool = False, hide: bool = False) -> None:
        super().__init__()
        self.every_step, self.hidden = every_step, [1.0] if hide else None
        self.weight = 1.0

    def start_epoch(self, epoch: int) -> None:
        self.change(epoch)

    def start_step(self, step: int) -> None:
        if self.every_step:
            self.change(step)

    def change(self, value: float) -> None:
        if self.hidden:
            self.hidden[0] = value
        else:
            self.weight = value

    def per_label(self, logits: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return (self.hidden[0] if self.hidden else self.weight) * (logits - observed).square()


def with_loss(loss: losses.Loss, **options: object) -> engine.Training:
    training = tiny_training("an", **options)
    training.loss_function = training.step.loss_function = loss.prepare({})
    return training


@pytest.mark.parametrize(("every_step", "replayed"), [(False, 3 * 4 - engine.WARM_UP), (True, 2)])
def test_a_plain_number_of_a_loss_is_not_frozen_by_a_capture(monkeypatch, capsys, every_step, replayed):
    """It changes between epochs: the step is captured again. At every step: steps stay eager, which is said."""
    training = with_loss(Scheduled(every_step))
    replays = emulate(monkeypatch, training.step)
    captured, usual = fit(training), fit(with_loss(Scheduled(every_step)))
    assert captured[0] == usual[0] and torch.equal(captured[1], usual[1]) and len(replays) == replayed
    assert capsys.readouterr().out.count("the loss changes plain numbers at every step") == every_step


def test_the_emulated_replay_freezes_what_a_gpu_would_freeze(monkeypatch):
    training = with_loss(Scheduled(hide=True), checked=False)  # or the check would find it here
    emulate(monkeypatch, training.step)
    captured, usual = fit(training), fit(with_loss(Scheduled(hide=True)))
    assert captured[0][0] == usual[0][0] and captured[0][1] != usual[0][1]


class Waiting(Scheduled):
    def per_label(self, logits: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return super().per_label(logits, observed) * (2.0 if float(logits.detach().sum()) > 1e9 else 1.0)


class Hungry(Scheduled):
    """Out of memory in the capture, which needs memory of its own."""

    step = None

    def per_label(self, logits: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        if any(group.get("capturable") for group in self.step.optimizer.param_groups):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().per_label(logits, observed)


@pytest.mark.parametrize(("loss", "says"), [(Waiting, "operation not permitted"), (Hungry, "out of memory for it")])
def test_a_step_that_cannot_be_captured_stays_eager_with_a_note_and_untouched_weights(monkeypatch, capsys, loss, says):
    training, other, streams = with_loss(loss()), with_loss(loss()), []
    training.loss_function.__dict__["step"], other.loss_function.__dict__["step"] = training.step, other.step
    replays = emulate(monkeypatch, training.step)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    captured, usual = fit(training), fit(other)
    assert captured[0] == usual[0] and torch.equal(captured[1], usual[1]) and not replays
    assert len(streams) == 1  # the stream that was current before the capture is so again
    out = capsys.readouterr().out
    assert out.count("note: steps are not replayed as a CUDA graph") == out.count(says) == 1


def test_a_gpu_that_is_out_of_memory_in_an_eager_step_ends_the_run(monkeypatch):
    training = with_loss(Hungry())
    training.loss_function.__dict__["step"] = training.step
    training.step.optimizer.param_groups[0]["capturable"] = True
    with pytest.raises(torch.OutOfMemoryError):
        fit(training)


class Stale(Graph):
    """Learns the batch that was captured again and again, as a graph would that reads other memory than is written."""

    def replay(self) -> None:
        if not hasattr(self, "first"):
            self.first = [held.clone() for held in self.step.held]
        for held, first in zip(self.step.held, self.first, strict=True):
            held.copy_(first)
        super().replay()


@pytest.mark.parametrize("checked", [True, False])
def test_a_replay_that_learns_something_else_is_found_by_the_check(monkeypatch, capsys, checked):
    training = tiny_training("EM_PL", checked=checked, epochs=2)
    replays = emulate(monkeypatch, training.step, Stale)
    captured, usual = fit(training), fit(tiny_training("EM_PL", epochs=2))
    assert (captured[0] == usual[0] and torch.equal(captured[1], usual[1])) == checked
    assert len(replays) == (2 if checked else 5)
    assert ("the replayed step differs from the eager one" in capsys.readouterr().out) == checked


class Forgetful(Graph):
    """Learns right, and leaves a wrong gradient average behind, small beside the counter of steps that lies with it."""

    def replay(self) -> None:
        super().replay()
        for state in self.step.optimizer.state.values():
            state["exp_avg"].mul_(0.5)


def test_a_replay_that_remembers_something_else_is_found_by_the_check(monkeypatch, capsys):
    training = tiny_training("EM_PL", epochs=2)
    emulate(monkeypatch, training.step, Forgetful)
    fit(training)
    assert "the replayed step differs from the eager one" in capsys.readouterr().out


def chaotic(training: engine.Training) -> engine.Training:
    """Gradients that are others at every call, as atomic additions make them in a network that amplifies rounding. What
    a capture holds is frozen, and so differs from the eager step."""
    factors = iter(np.random.RandomState(0).uniform(-5, 5, 1_000))
    training.model.network[0].weight.register_hook(lambda gradient: gradient * next(factors))
    return training


def test_a_step_that_does_not_repeat_itself_is_no_reason_to_give_the_graph_up(monkeypatch, capsys):
    training = chaotic(tiny_training("EM_PL", epochs=2))
    replays = emulate(monkeypatch, training.step)
    fit(training)
    assert training.step.captures and len(replays) == 2 * 4 - engine.WARM_UP
    assert "note: steps are not replayed" not in capsys.readouterr().out


def test_batch_norms_counters_cost_nothing_and_keep_their_places(monkeypatch):
    training = tiny_training("EM_PL", norm=torch.nn.BatchNorm2d)
    usual = fit(tiny_training("EM_PL", norm=torch.nn.BatchNorm2d))
    emulate(monkeypatch, training.step)
    captured = fit(training)
    written = [
        args[0] for function, args, *_ in training.step.graph.operations if function.name() == "aten::add_.Tensor"
    ]
    assert len(written) == 0 and captured[0] == usual[0]
    assert training.model.state_dict()["network.1.num_batches_tracked"] == 0


def test_a_cumulative_batch_norm_keeps_counting():
    training = tiny_training("EM_PL", norm=lambda width: torch.nn.BatchNorm2d(width, momentum=None), epochs=1)
    fit(training)
    assert training.model.network[1].num_batches_tracked == 5


@pytest.mark.parametrize("graph", [False, True])
def test_full_batches_go_through_the_compiled_network(monkeypatch, capsys, graph):
    sizes = []

    def compiled(model: torch.nn.Module, dynamic: bool) -> object:
        return lambda images: sizes.append(len(images)) or model(images)

    monkeypatch.setattr(torch, "compile", compiled)
    training = tiny_training("EM_PL", compile=True)
    if graph:
        emulate(monkeypatch, training.step)
    got, usual = fit(training), fit(tiny_training("EM_PL"))
    assert got[0] == usual[0] and torch.equal(got[1], usual[1])
    assert sizes == [BATCH] * (engine.WARM_UP + 2 if graph else 3 * 4)  # with the capture, and the step that checks it
    assert capsys.readouterr().out.count("the network is compiled, in 0 s") == 1


def test_a_compiler_that_is_missing_is_told_in_one_line(monkeypatch):
    def broken(images: torch.Tensor) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: broken)
    with pytest.raises(UserError, match=r"--compile does not work here \(.*No working C\+\+ compiler.*leave it out"):
        fit(tiny_training("EM_PL", compile=True))
