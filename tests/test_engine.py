"""Training: a captured and replayed step is the eager one (on a GPU, and without one on a stand-in), and a training
that is stopped goes on to the same numbers."""

import contextlib

import pytest
import torch
from training import ALL_WAYS, BATCH, SIZE, STATEFUL, TRAINED, MemoryStorage, StopAfter, early, fit, tiny_training

import engine
from util.errors import Interrupted, UserError

CPU = torch.device("cpu")
WAYS = [*((loss, {}) for loss in TRAINED), ("EM_PL", ALL_WAYS), ("EM_APL", ALL_WAYS | dict(optimizer="adamw"))]


def needs_gpu(test):
    """Run where there is a GPU, where nothing may be warned of."""
    return pytest.mark.filterwarnings("error::UserWarning")(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test)
    )


@pytest.mark.parametrize(("loss", "options"), WAYS)
def test_a_captured_step_learns_what_the_usual_one_learns(monkeypatch, loss, options):
    """Without a GPU: a stand-in that, like a CUDA graph, records without computing, and replays on the same memory."""
    training = tiny_training(loss, **options)
    step, replays, read = training.step, [], []

    def held_fast() -> list:
        """Where all lies that a replay reads and writes, and the plain numbers of loss and optimizer, which a capture
        turns into constants."""
        data = (step.data.observed, step.data.true, step.data.pseudo)
        state = (tensor for state in step.optimizer.state.values() for tensor in state.values())
        memory = (*step.model.parameters(), *step.model.buffers(), *own_tensors(), *step.held)
        numbers = {name: value for name, value in vars(step.loss_function).items() if isinstance(value, int | float)}
        rates = [group["lr"] for group in step.optimizer.param_groups]
        constant = [rate for rate in rates if isinstance(rate, float)]
        rates = [rate for rate in rates if isinstance(rate, torch.Tensor)]
        return [numbers, constant, *(tensor.data_ptr() for tensor in (*data, *state, *memory, *rates))]

    def own_tensors() -> list[torch.Tensor]:
        return [*step.loss_function.parameters(), *step.loss_function.buffers()]

    class Graph:
        def replay(self) -> None:
            assert held_fast() == read
            replays.append(len(step.held[1]))
            step.loss = step._eager(*step.held, BATCH)

    @contextlib.contextmanager
    def recording(graph, stream):
        """Undo what the recorded step computes."""
        read[:] = held_fast()
        assert all(group["capturable"] for group in step.optimizer.param_groups)
        state = [tensor for state in step.optimizer.state.values() for tensor in state.values()]
        changing = [*step.model.parameters(), *own_tensors(), *state]
        before = [tensor.detach().clone() for tensor in changing]
        yield
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)

    class Stream:
        def wait_stream(self, other) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    step.stream = Stream()
    captured = fit(training)
    assert not any(group["capturable"] for group in step.optimizer.param_groups)
    assert replays == [BATCH] * (3 * 4 - engine.WARM_UP)
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


def test_a_step_that_cannot_be_captured_is_one_line(monkeypatch):
    training = tiny_training("EM_PL")
    training.step.stream, training.step.warmed_up = object(), engine.WARM_UP

    def refused(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refused)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda-graph"):
        fit(training)


@needs_gpu
@pytest.mark.parametrize(("loss", "options"), WAYS)
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("bf16", 2e-2)])
def test_on_a_gpu_a_captured_step_learns_what_the_usual_one_learns(loss, options, precision, tolerance):
    (means, probs), (other_means, other_probs) = (
        fit(tiny_training(loss, "cuda:0", cuda_graph=graph, precision=precision, **options)) for graph in (True, False)
    )
    assert means == pytest.approx(other_means, abs=tolerance)
    assert torch.allclose(probs, other_probs, atol=tolerance)


@needs_gpu
def test_a_gpu_learns_what_the_cpu_learns(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    (means, probs), (other_means, other_probs) = (
        fit(tiny_training("EM_PL", name, epochs=2)) for name in ("cuda:0", "cpu")
    )
    assert means == pytest.approx(other_means, abs=1e-3) and torch.allclose(probs, other_probs, atol=1e-2)
