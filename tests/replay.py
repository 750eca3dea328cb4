"""A CUDA graph emulated on a CPU: the operations of a step are recorded, and replayed on the memory that they were
recorded with. What a graph freezes on a GPU (a Python number, the place of a tensor) is frozen here too."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import engine

WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # for the device, which a capture forbids


def waits(function, args: tuple) -> bool:
    """Whether an operation needs numbers from the device before it can go on; indexing does, with a mask."""
    if "index" in function.name() and len(args) > 1 and isinstance(args[1], list | tuple):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return any(tag in function.tags for tag in WAITS)


class Recorder(TorchDispatchMode):
    """Keeps the operations that are run under it, with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if waits(function, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    operations: list = ()

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, recorded in self.operations:
                tensors = lambda value: [part for part in tree_flatten(value)[0] if isinstance(part, torch.Tensor)]  # noqa: E731
                read = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
                for old, new in zip(tensors(recorded), tensors(function(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() not in read:  # neither a view nor changed in place
                        old.copy_(new)


class Stream:
    def wait_stream(self, other) -> None:
        pass


def emulate(monkeypatch, step: engine.TrainingStep, graph: type = Graph) -> list[int]:
    """Let a step on the CPU capture and replay. Returns a list that grows by the batch size at each replay."""
    replays = []

    class Counting(graph):
        def __init__(self) -> None:
            self.step = step

        def replay(self) -> None:
            replays.append(len(self.step.held[1]))
            super().replay()

    @contextlib.contextmanager
    def recording(graph, stream, capture_error_mode):
        """Undo what the recorded step computes: a capture computes nothing."""
        assert capture_error_mode == "thread_local"
        assert all(group["capturable"] for group in step.optimizer.param_groups)
        changing = [tensor for tensors in step._state().values() for tensor in tensors]
        before = [tensor.detach().clone() for tensor in changing]
        random = torch.get_rng_state()
        try:
            with Recorder() as recorder:
                yield
            graph.operations = recorder.operations
        finally:
            torch.set_rng_state(random)
            with torch.no_grad():
                for tensor, value in zip(changing, before, strict=True):
                    tensor.copy_(value)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Counting)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    step.stream, step.captures = Stream(), True
    return replays
