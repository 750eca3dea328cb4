"""What only a GPU can show. On a machine without one, all are skipped and counted."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import REPOSITORY, TINY_CLIP, numbers, only_run, same_numbers, taught_arguments, toy_arguments
from torch import nn
from training import BATCH, LABELS, SIZE, TRAINED, MemoryStorage, StopAfter, fit, tiny_training

import engine
import main
import models
from datasets import load
from datasets.images import open_images
from models import Backbone, checks, teachers
from util import devices
from util.errors import Interrupted

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("error::UserWarning"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture
def deterministic():
    """Only algorithms that give the same numbers every time, so that numbers can be compared bit for bit."""
    devices.make_deterministic()
    devices.pick_precision("float32", GPU)
    yield
    torch.use_deterministic_algorithms(False)


def both(**options: object) -> list[tuple[list[float], torch.Tensor]]:
    """What is learned with the captured network and eagerly."""
    loss, results = options.pop("loss", "EM_PL"), []
    build = options.pop("build", lambda training: training)
    for graph in (True, False):
        training = build(tiny_training(loss, "cuda:0", cuda_graph=graph, **options))
        results.append(fit(training))
        assert (training.accelerated is not None) == graph
    return results


def same(results: list) -> bool:
    (means, probs), (other_means, other_probs) = results
    return means == other_means and torch.equal(probs, other_probs)


@pytest.mark.parametrize("loss", TRAINED)
def test_a_captured_network_learns_what_the_eager_one_learns_bit_for_bit(deterministic, loss):
    """Odd last batches, evaluation in between and the buffers of losses with memory included."""
    assert same(both(loss=loss))


@pytest.mark.parametrize("loss", ["EM_PL", "EM_APL"])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_without_deterministic_algorithms_they_agree_to_rounding(loss, precision):
    (means, probs), (other_means, other_probs) = both(loss=loss, precision=precision)
    assert means == pytest.approx(other_means, abs=2e-2) and torch.allclose(probs, other_probs, atol=2e-2)


def with_network(network: nn.Module, training: engine.Training) -> engine.Training:
    """A training of a different network; the random state is then the same for all."""
    model = Backbone(network).to(GPU, memory_format=torch.channels_last)
    how = dict(epochs=3, lr=1e-3, batch_size=BATCH, flip=0.5, cuda_graph=training.accelerates, eval_batch_size=5)
    torch.manual_seed(1)
    return engine.Training(model, training.loss_function, training.data, **how)


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_a_saved_model_computes_in_the_arithmetic_of_its_run(deterministic, tmp_path, precision):
    model = models.build("timm:test_resnet", 2, image_size=32, pretrained=False)
    about = dict(model="timm:test_resnet", image_size=32, classes=["a", "b"], prompt_names=["a", "b"])
    models.saved.write(tmp_path, model, about | {"precision": precision})
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    models.load(tmp_path, GPU)
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


NETWORKS = {
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, LABELS)
    ),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16), nn.Dropout(0.3), nn.Linear(16, LABELS)),
    "ResNet": lambda: timm.create_model("test_resnet", num_classes=LABELS),
    "ViT": lambda: timm.create_model("test_vit", num_classes=LABELS, img_size=SIZE),
    "ConvNeXt": lambda: timm.create_model("test_convnext", num_classes=LABELS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_are_captured(deterministic, name):
    def build(training: engine.Training) -> engine.Training:
        torch.manual_seed(0)
        return with_network(NETWORKS[name](), training)

    assert same(both(build=build))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["resnet50", "timm:vit_small_patch16_224", "timm:convnext_tiny", "timm:test_resnet"])
def test_the_check_at_the_start_lets_a_correct_card_pass(deterministic, name, precision):
    torch.manual_seed(0)
    model = models.build(name, 1, image_size=224, pretrained=False).to(GPU, memory_format=torch.channels_last)
    images = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, device=GPU)
    with torch.inference_mode():
        model.train()(model.to_input(images))  # batch norm that has seen images amplifies rounding most
    devices.pick_precision(precision, GPU)
    checks.outputs(model, images, precision)


@pytest.mark.slow
def test_a_compiled_network_learns_what_the_eager_one_learns():
    training = tiny_training("EM_PL", "cuda:0", compile=True, norm=nn.BatchNorm2d)
    means, _ = fit(training)
    assert means == pytest.approx(fit(tiny_training("EM_PL", "cuda:0", norm=nn.BatchNorm2d))[0], abs=2e-2)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("loss", ["EM_PL", "EM_APL"])
@pytest.mark.parametrize("batch", [3, 17])
def test_a_stopped_training_continues_to_the_same_numbers_on_a_gpu(deterministic, loss, batch, graph):
    storage, options = MemoryStorage(), dict(cuda_graph=graph, norm=nn.BatchNorm2d)
    expected = fit(tiny_training(loss, "cuda:0", **options))
    with pytest.raises(Interrupted):
        fit(tiny_training(loss, "cuda:0", **options), storage, StopAfter(batch))
    training = tiny_training(loss, "cuda:0", **options)
    training.load_state_dict(storage.load())
    got = fit(training)
    assert got[0] == expected[0] and torch.equal(got[1], expected[1])


def test_a_gpu_learns_what_the_cpu_learns(deterministic):
    results = [fit(tiny_training("EM_PL", name, epochs=2)) for name in ("cuda:0", "cpu")]
    (means, probs), (other_means, other_probs) = results
    assert means == pytest.approx(other_means, abs=1e-3) and torch.allclose(probs, other_probs, atol=1e-2)


def test_images_on_the_gpu_in_a_file_and_decoded_are_the_same(toy, tmp_path):
    split, order = load(toy).train, torch.randperm(24)
    streams = []
    for place in ("gpu", "disk", "none"):
        images = open_images(split, 16, place, tmp_path / "cache", GPU, 2)
        streams.append(torch.cat(list(images.stream(order.split(5), GPU))))
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])


@pytest.mark.parametrize("cache", ["gpu", "disk", "none"])
def test_the_whole_command_runs_on_a_gpu_with_its_checks(toy, capsys, cache):
    given = taught_arguments(toy, "-l", "EM_PL", "--cache", cache, "--checkpoint-minutes", "0")
    arguments = [part for part in given if part not in ("-g", "cpu")]
    result = main.main(arguments)
    out = capsys.readouterr().out
    assert 0 <= result["test_mAP"] <= 100 and "bf16, images" in out and "note:" not in out


def test_the_whole_command_resumes_bit_for_bit_with_deterministic(toy, tmp_path):
    """In processes of their own: the switches are PyTorch's, and stay."""
    given = [part for part in toy_arguments(toy, "--deterministic", "--epochs", "3") if part not in ("-g", "cpu")]
    program = [sys.executable, "main.py", *given]
    assert subprocess.run(program, cwd=REPOSITORY, timeout=300).returncode == 0
    undisturbed = shutil.move(only_run(toy), tmp_path / "undisturbed")
    process = subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            process.terminate()
            break
    process.communicate(timeout=120)
    subprocess.run([*program, "--resume"], cwd=REPOSITORY, timeout=300)
    assert same_numbers(only_run(toy), Path(undisturbed))


def test_the_teacher_in_half_precision_takes_the_fused_attention_and_says_the_same(toy, tiny_clip, tmp_path):
    splits, how = load(toy), dict(batch_size=4, device=GPU, workers=2)
    whole, half = (
        teachers.ClipTeacher(*tiny_clip, precision=precision).similarities(
            splits.train, splits.classes, tmp_path, checked=True, **how
        )[0]
        for precision in ("float32", "bf16")
    )
    assert TINY_CLIP["quick_gelu"] and 0 < np.abs(whole - half).max() < 2e-3


@pytest.mark.parametrize("processes", [1, 2])
def test_nccl_trains_what_a_single_process_trains(toy, tmp_path, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPUs")
    more = ("-m", "timm:test_convnext.r160_in1k", "-l", "EM", "--precision", "float32")
    given = [part for part in toy_arguments(toy, *more) if part not in ("-g", "cpu")]
    alone = shutil.move(main.main(given)["folder"], tmp_path / "alone")
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*program, "main.py", *given], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "destroy_process_group" not in done.stderr, done.stderr
    one, other = numbers(only_run(toy))[0]["probs"], numbers(Path(alone))[0]["probs"]
    assert np.abs(one - other).max() < 1e-3
