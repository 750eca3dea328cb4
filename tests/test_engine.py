"""The training step: captured and replayed, it is the step taken as usual; on a GPU, and without one on a stand-in."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import engine
import losses
from cli import UserError
from config import Config
from datasets.images import Images
from models import Backbone

CPU = torch.device("cpu")
NUM_IMAGES, BATCH, SIZE, LABELS = 36, 8, 16, 3  # four full batches and a half one


def needs_gpu(test):
    """Run where there is a GPU, where nothing may be warned of."""
    return pytest.mark.filterwarnings("error::UserWarning")(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test)
    )


def training_step(device: torch.device, *, cuda_graph: bool, loss: str = "EM_PL", precision: str = "float32"):
    torch.manual_seed(0)
    random = np.random.RandomState(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, LABELS))
    model = Backbone(network).to(device, memory_format=torch.channels_last)
    observed, pseudo = (
        torch.from_numpy(random.randint(low, 2, (NUM_IMAGES, LABELS)).astype(np.int8)).to(device) for low in (0, -1)
    )
    pixels = torch.from_numpy(random.randint(0, 256, (NUM_IMAGES, SIZE, SIZE, 3)).astype(np.uint8))
    images = Images([""] * NUM_IMAGES, SIZE, pixels.to(device), 1)
    module = losses.build(loss, Config(epochs=3, warmup_epochs=1), observed).to(device)
    return engine.TrainingStep(
        model,
        module,
        engine.TrainingSet(images, observed, observed, pseudo),
        lr=1e-2,
        batch_size=BATCH,
        precision=precision,
        cuda_graph=cuda_graph,
    )


def train(step: engine.TrainingStep, epochs: int) -> tuple[list[float], torch.Tensor]:
    """The losses of each epoch, and what the weights come to say of the images."""
    per_step = torch.zeros(-(-NUM_IMAGES // BATCH), device=step.device)
    means = []
    for epoch in range(1, epochs + 1):
        means.append(engine.train_one_epoch(step, seed=0, epoch=epoch, flip=0.5, losses=per_step))
        how = dict(batch_size=5, precision="float32", device=step.device, name="labelling")
        probs = engine.predict(step.model, step.data.images, LABELS, **how)
        step.loss_function.end_epoch(epoch, probs)
    return means, probs.cpu()


@pytest.mark.parametrize("loss", ["EM_PL", "EM_APL"])
def test_a_captured_step_learns_what_the_usual_one_learns(monkeypatch, loss):
    """Without a GPU: a stand-in that, like a CUDA graph, records without computing, and replays on the same memory."""
    step = training_step(CPU, cuda_graph=False, loss=loss)
    replays, read = [], []

    def places() -> list[int]:
        """Where all lies that a replay reads and writes."""
        data = (step.data.observed, step.data.true, step.data.pseudo)
        state = (tensor for state in step.optimizer.state.values() for tensor in state.values())
        modules = (*step.model.parameters(), *step.model.buffers(), *step.loss_function.buffers())
        return [tensor.data_ptr() for tensor in (*data, *state, *modules, *step.held)]

    class Graph:
        def replay(self) -> None:
            assert places() == read
            replays.append(len(step.held[1]))
            step.loss = step._take(*step.held, BATCH)

    @contextlib.contextmanager
    def recording(graph, stream):
        """Undo what the recorded step computes."""
        read[:] = places()
        assert all(group["capturable"] for group in step.optimizer.param_groups)
        changing = [*step.model.parameters(), *(t for state in step.optimizer.state.values() for t in state.values())]
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
    captured = train(step, epochs=3)
    assert not any(group["capturable"] for group in step.optimizer.param_groups)
    assert replays == [BATCH] * (3 * 4 - engine.WARM_UP)
    usual = train(training_step(CPU, cuda_graph=False, loss=loss), epochs=3)
    assert captured[0] == usual[0] and torch.equal(captured[1], usual[1])


def test_a_process_without_images_computes_in_float32(monkeypatch):
    """As the others' batch norm does under bf16: what they gather must be of one type."""
    step = training_step(CPU, cuda_graph=False, precision="bf16")
    enabled, none = [], torch.zeros(0, dtype=torch.int64)
    step.model.register_forward_hook(lambda *call: enabled.append(torch.is_autocast_enabled("cpu")))
    before = [parameter.clone() for parameter in step.model.parameters()]
    assert step(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), none, none.bool(), BATCH) == 0
    assert all(torch.equal(parameter, old) for parameter, old in zip(step.model.parameters(), before, strict=True))
    index = torch.arange(2)
    step(next(step.data.images.stream([index], CPU)), index, index > 9, BATCH)
    assert enabled == [False, True]


def test_a_step_that_cannot_be_captured_is_one_line(monkeypatch):
    step = training_step(CPU, cuda_graph=False)
    step.stream, step.warmed_up = object(), engine.WARM_UP

    def refused(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refused)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda-graph"):
        train(step, epochs=1)


@needs_gpu
@pytest.mark.parametrize("loss", ["EM_PL", "EM_APL"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("bf16", 2e-2)])
def test_on_a_gpu_a_captured_step_learns_what_the_usual_one_learns(loss, precision, tolerance):
    device = torch.device("cuda", 0)
    (means, probs), (other_means, other_probs) = (
        train(training_step(device, cuda_graph=graph, loss=loss, precision=precision), epochs=3)
        for graph in (True, False)
    )
    assert means == pytest.approx(other_means, abs=tolerance)
    assert torch.allclose(probs, other_probs, atol=tolerance)


@needs_gpu
def test_a_gpu_learns_what_the_cpu_learns(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    (means, probs), (other_means, other_probs) = (
        train(training_step(torch.device(name), cuda_graph=True), epochs=2) for name in ("cuda:0", "cpu")
    )
    assert means == pytest.approx(other_means, abs=1e-3) and torch.allclose(probs, other_probs, atol=1e-2)
