"""Backbones, with random weights saved to files and loaded back; nothing is fetched."""

import sys
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import toy_arguments
from safetensors.torch import save_file

import main
import models
from config import parse
from models import networks, weights
from models.backbone import starts_as_linear
from util.errors import UserError

UNTRAINED = dict(image_size=64, pretrained=False)


@pytest.mark.parametrize("name", ["resnet50", "timm:test_resnet", "timm:test_vit"])
def test_a_backbone_turns_pixels_into_logits_and_owns_its_normalisation(name):
    model = models.build(name, 5, **UNTRAINED)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert model.mean.shape == model.std.shape == (3, 1, 1) and (model.std > 0).all()


@pytest.mark.parametrize("name", ["resnet50", "clip", "timm:test_resnet", "timm:test_vit"])
def test_a_backbones_head_is_its_last_layer_alone(name, tiny_clip):
    name, size = (f"clip:{tiny_clip[0]}", 32) if name == "clip" else (name, 64)
    model = models.build(name, 5, pretrained=False, image_size=size)
    assert [len(parameter) for parameter in model.head_parameters()] == [5, 5]  # weights and biases of five labels
    assert {parameter for parameter in model.head_parameters()} < set(model.parameters())


def test_a_size_that_does_not_fit_is_reported_before_training():
    with pytest.raises(UserError, match="does not take a batch of 2 images of 65 x 65 pixels"):
        models.build("timm:test_vit", 5, pretrained=False, image_size=65)


def test_the_clip_backbone_is_the_image_tower_with_a_linear_head(tiny_clip):
    for size in (32, 48):
        model = models.build(f"clip:{tiny_clip[0]}", 5, pretrained=False, image_size=size)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)
        assert model.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_a_last_batch_that_batch_norm_refuses_is_reported_before_training():
    models.build("timm:test_resnet", 5, **UNTRAINED, smallest_batch=1)
    with pytest.raises(UserError, match="a batch of 1 images"):  # 32 pixels: one by one at the end
        models.build("timm:test_resnet", 5, pretrained=False, image_size=32, smallest_batch=1)


def test_a_whole_clip_can_be_the_clip_backbones_weights(tiny_clip):
    model = models.build(f"clip:{tiny_clip[0]}", 5, pretrained=False, image_size=32, weights=tiny_clip[1])
    assert torch.equal(model.network.tower.proj, weights.read_weights(tiny_clip[1])["visual.proj"])


def test_a_tower_of_open_clip_needs_weights_unless_it_is_untrained(tiny_clip):
    with pytest.raises(UserError, match="tiny_clip: give weights: clip:NAME:TAG"):
        models.build(f"clip:{tiny_clip[0]}", 5, image_size=32)


def test_a_tower_from_a_file_sees_pixels_as_its_model_was_trained(tiny_clip, monkeypatch):
    tower = sys.modules["models.clip"]
    monkeypatch.setattr(tower, "normalisation", lambda name, weights: ((0.5,) * 3, (0.25,) * 3) if weights else None)
    monkeypatch.setattr(tower, "load_weights", lambda *arguments, **options: None)
    model = models.build(f"clip:{tiny_clip[0]}", 5, image_size=32, weights="siglip.safetensors")
    assert model.mean.unique().tolist() == [0.5] and model.std.unique().tolist() == [0.25]


def test_a_thousand_labels_do_not_start_with_imagenets_classifier(tmp_path, monkeypatch):
    published = torchvision.models.resnet50()
    torch.save(published.state_dict(), tmp_path / "published.pth")
    monkeypatch.setattr(networks, "torchvision_file", lambda *arguments: tmp_path / "published.pth")
    network = models.build("resnet50", 1000, image_size=64).network
    assert torch.equal(network.conv1.weight, published.conv1.weight)
    assert not torch.equal(network.fc.weight, published.fc.weight)


def test_logits_are_float32_under_bf16():
    for name in ("resnet50", "timm:test_resnet", "timm:test_vit"):
        with torch.autocast("cpu", torch.bfloat16):
            assert models.build(name, 5, **UNTRAINED)(torch.zeros(2, 3, 64, 64)).dtype == torch.float32


# BoostLU


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_convnext", "timm:test_mambaout"])
def test_boostlu_classifies_by_feature_maps(name):
    model = models.build(name, 5, **UNTRAINED, head="boostlu").eval()
    weight, bias = model.head_parameters()
    assert len(weight) == len(bias) == 5 and weight.shape[2:] == (1, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = torch.randn(2, 3, 64, 64)
        maps, logits = model.network.maps(images), model(images)
    assert logits.shape == (2, 5) and logits.dtype == torch.float32
    if "mambaout" in name:  # its channels are last
        maps = maps.permute(0, 3, 1, 2)
    activations = torch.einsum("bchw,lc->blhw", maps.float(), weight[:, :, 0, 0]) + bias[:, None, None]
    expected = (activations + 4 * activations.clamp(min=0)).mean(dim=(2, 3))
    assert (activations > 0).any() and torch.allclose(logits, expected, atol=1e-4)


def test_every_weight_of_a_boostlu_network_is_used():
    """No pooling or linear head is left over, which several processes would wait for."""
    for name in ("resnet50", "timm:test_convnext"):
        model = models.build(name, 5, **UNTRAINED, head="boostlu")
        logits = model(torch.randn(2, 3, 64, 64))
        logits.sum().backward()
        assert logits.shape == (2, 5) and all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vit_clip", "clip:ViT-B-16:openai", "timm:test_vit"])
def test_boostlu_without_feature_maps_is_reported_before_any_data_is_read(fails, name):
    line = fails(parse, ["-m", name, "--head", "boostlu", "--image-size", "160"])
    assert f"--head boostlu needs feature maps, and {name} makes none" in line


def test_two_heads_at_once_are_one_line(fails):
    line = fails(parse, ["--head", "boostlu", "--mode", "linear_init"])
    assert "--mode linear_init trains a linear head alone; leave out --head boostlu" in line


def test_boostlu_trains(toy):
    result = main.main(toy_arguments(toy, "-l", "LL_R", "--head", "boostlu", "--image-size", "64"))
    network = models.load(result["folder"], "cpu").network
    assert network.network.head.weight.shape == (3, 96, 1, 1)
    state = torch.load(Path(result["folder"]) / "best.pt", weights_only=True)
    assert torch.equal(network.network.head.weight, state["model"]["network.head.weight"])


def test_a_timm_model_without_published_weights_is_reported():
    with pytest.raises(UserError, match="timm publishes no weights"):
        models.build("timm:gcvit_xxtiny", 5, image_size=224)
    with pytest.raises(UserError, match=r"no model 'resnet50\.nonsense'"):
        models.check_name("timm:resnet50.nonsense")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_local_checkpoint_is_loaded_but_for_a_head_of_a_different_size(tmp_path, suffix):
    torch.manual_seed(1)
    old = models.build("timm:test_resnet", 5, **UNTRAINED)
    file = tmp_path / f"w.{suffix}"
    state = {name: value for name, value in old.network.state_dict().items()}
    save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state}, file)
    torch.manual_seed(2)
    new = models.build("timm:test_resnet", 7, **UNTRAINED, weights=str(file)).state_dict()
    same = [name for name, value in old.state_dict().items() if torch.equal(value, new[name])]
    assert len(same) == len(new) - 2 and new["network.fc.weight"].shape[0] == 7


def test_a_runs_best_weights_can_start_a_different_run(tmp_path):
    old = models.build("timm:test_resnet", 5, **UNTRAINED)
    torch.save(old.state_dict(), tmp_path / "best.pt")
    new = models.build("timm:test_resnet", 5, **UNTRAINED, weights=str(tmp_path / "best.pt"))
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


@pytest.mark.parametrize("name", ["resnet50", "timm:test_convnext"])
def test_the_backbone_of_a_boostlu_run_can_start_a_different_run(tmp_path, name):
    old = models.build(name, 5, **UNTRAINED, head="boostlu").network.maps.state_dict()
    torch.save({f"network.maps.{key}": value for key, value in old.items()}, tmp_path / "best.pt")
    for head in ("linear", "boostlu"):
        new = models.build(name, 5, **UNTRAINED, head=head, weights=str(tmp_path / "best.pt")).network
        new = (new.maps if head == "boostlu" else new).state_dict()
        assert len(old) > 20 and all(torch.equal(value, new[key]) for key, value in old.items())


KINDS = {  # how training programs save a state dict
    "timm's train.py": lambda state: {"state_dict": state, "args": Namespace(lr=0.1), "epoch": 3},
    "a NumPy number": lambda state: {"model": state, "best": np.float64(0.5)},
    "weight averages": lambda state: {"state_dict": {"weight": torch.zeros(1)}, "state_dict_ema": state},
    "other names": lambda state: {"model_state_dict": {f"module.net.{name}": value for name, value in state.items()}},
    "a tuple": lambda state: ({"lr": 0.1}, state),
    "no counters": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, kind):
    old, new = (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)) for _ in range(2))
    torch.save(KINDS[kind](old.state_dict()), tmp_path / "w.pt")
    weights.load_weights(new, tmp_path / "w.pt")
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_read(tmp_path):
    old, new = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.jit.trace(old, torch.zeros(1, 3)).save(tmp_path / "clip.pt")
    weights.load_weights(new, tmp_path / "clip.pt")
    assert torch.equal(old.weight, new.weight)


def test_a_checkpoint_of_the_published_code_is_read(tmp_path):
    """Cole et al. 2021: a ResNet's layers as an nn.Sequential, and its head."""
    old = torchvision.models.resnet50(num_classes=5)
    layers = torch.nn.Sequential(*list(old.children())[:-1])
    state = {f"feature_extractor.{name}": value for name, value in layers.state_dict().items()}
    state |= {f"linear_classifier.fc.{name}": value for name, value in old.fc.state_dict().items()}
    torch.save(state, tmp_path / "best_model_state_f.pt")
    new = models.build("resnet50", 5, image_size=64, weights=str(tmp_path / "best_model_state_f.pt")).network
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_weights_that_cannot_be_read_are_one_line_with_the_way_out(toy, tmp_path, fails, offline):
    path, cached = tmp_path / "w.pth", offline / "hub/checkpoints/resnet50-0676ba61.pth"
    arguments = toy_arguments(toy, "-l", "an", "--weights", str(path))
    torch.save({"lr": 0.1}, path)
    assert "save its tensors alone in the program that wrote it" in fails(main.main, arguments)
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{path} is not a file of weights" in fails(main.main, arguments)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    assert "a pointer of Git LFS (`git lfs pull`)" in fails(main.main, arguments)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(bytes(1000))
    line = fails(main.main, toy_arguments(toy, "-l", "an", "-m", "resnet50", "--pretrained"))
    assert f"remove {cached}, and it is fetched again" in line


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("text", "not a file of weights"),
        ("pickle", "pickled objects, which are never read.; .*save its tensors alone .* torch.save"),
        ("other", "does not fit this network"),
        ("list", "no state dict of tensors, but list"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_reported_and_never_unpickled(tmp_path, kind, message, capsys):
    file = tmp_path / "w.pt"
    if kind == "text":
        file.write_text("hello")
    else:
        torch.save({"pickle": Evil(), "other": {"a": torch.zeros(2)}, "list": [1]}[kind], file)
    with pytest.raises(UserError, match=message):
        models.build("timm:test_resnet", 5, **UNTRAINED, weights=str(file))
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "status, message", [(401, "401.*log in with `hf auth login`"), (403, "403.*accept the licence"), (404, "404")]
)
def test_weights_that_the_hub_refuses_are_asked_for_with_the_users_token(monkeypatch, tmp_path, status, message):
    from huggingface_hub import constants, hf_api

    tokens = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            tokens.append(self.headers.get("authorization"))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        with pytest.raises(UserError, match=message):
            models.build("timm:test_resnet", 5, image_size=64)
        server.shutdown()
    assert set(tokens) == {"Bearer hf_mine"}


@pytest.mark.parametrize(
    "name, file, folder",
    [
        ("resnet50", "resnet50-0676ba61.pth", "hub/checkpoints"),
        ("vit_clip", "timm/vit_large_patch14_clip_336.openai/open_clip_model.safetensors", "hf"),
        ("convnext_xlarge_22k", "timm/convnext_xlarge.fb_in22k/model.safetensors", "hf"),
        ("convnext_xlarge_1k", "timm/convnext_xlarge.fb_in22k_ft_in1k/model.safetensors", "hf"),
    ],
)
def test_weights_that_are_not_to_be_had_are_named_with_place_and_remedy(offline, name, file, folder):
    with pytest.raises(UserError) as error:
        models.build(name, 20, image_size=448)
    assert file in str(error.value) and str(offline / folder) in str(error.value)
    assert "python models/download.py" in str(error.value) and "give --weights FILE, or" in str(error.value)


def test_weights_in_the_librarys_cache_are_used_without_a_network(offline):
    from torchvision.models import resnet50

    torch.manual_seed(5)
    cached = resnet50().state_dict()
    (offline / "hub/checkpoints").mkdir(parents=True)
    torch.save(cached, offline / "hub/checkpoints/resnet50-0676ba61.pth")
    model = models.build("resnet50", 20, image_size=64)
    assert torch.equal(model.network.conv1.weight, cached["conv1.weight"])


@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "timm:test_vit", "timm:mobilenetv1_100", "timm:test_efficientnet"]
)
def test_a_new_head_starts_as_pytorch_starts_a_linear_layer(name):
    torch.manual_seed(0)
    model = models.build(name, 20, image_size=160, pretrained=False)
    (head,) = (model.network.get_submodule(name) for name in model.heads)
    assert starts_as_linear(head)


def test_a_head_that_starts_wider_narrower_or_at_0_is_noticed():
    head = torch.nn.Linear(64, 20)
    assert starts_as_linear(head)
    for start in (lambda w: w.normal_(0, 1), lambda w: w.normal_(0, 0.02), lambda w: w.zero_()):
        with torch.no_grad():
            start(head.weight)
        assert not starts_as_linear(head)
