"""A run's model leaves for other programs: ONNX with the same probabilities, a folder that timm opens."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import make_toy, toy_arguments
from huggingface_hub import ModelCard

import datasets
import export
import main
import models
from datasets.pixels import decode


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on the toy data set, which no test changes."""
    toy = make_toy(tmp_path_factory.mktemp("trained") / "data")
    return Path(main.main(toy_arguments(toy, "-l", "an"))["folder"])


def test_images(run: Path) -> list[str]:
    return datasets.load(run.parent.parent / "data/toy").test.paths()


test_images.__test__ = False


def test_onnx_gives_the_probabilities_of_pytorch_for_any_batch(run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    export.main([str(run), "--onnx", str(tmp_path / "model.onnx")])
    assert "within" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    model, paths = models.load(run, "cpu"), test_images(run)
    for count in (1, 10):
        pixels = np.stack([decode(path, 32) for path in paths[:count]])
        (probs,) = session.run(None, {"pixels": pixels})
        assert np.abs(probs - model.predict(paths[:count])).max() <= 1e-4
    about = dict(session.get_modelmeta().custom_metadata_map)
    assert "bilinear with antialiasing" in about.pop("resize")
    about = {name: json.loads(text) for name, text in about.items()}
    assert about["classes"] == ["red", "green", "blue"] and about["image_size"] == 32
    assert about["thresholds"] == model.thresholds.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_library_that_cannot_be_imported_is_named(run, tmp_path, monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = fails(export.main, [str(run), "--onnx", str(tmp_path / "model.onnx")])
    assert (
        "cannot be exported to ONNX (import of onnxruntime halted" in line
        and "pip install -r requirements-export.txt" in line
    )


def test_an_onnx_model_that_differs_is_not_left_behind(run, tmp_path, monkeypatch, fails):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "differs from PyTorch by" in fails(export.main, [str(run), "--onnx", str(tmp_path / "model.onnx")])
    assert not list(tmp_path.iterdir())


def test_timm_and_this_code_open_a_folder_for_the_hub(run, tmp_path, offline, capsys):
    folder = tmp_path / "hub folder"
    export.main([str(run), "--hub", str(folder), "--license", "mit"])
    assert f"timm opens it as local-dir:{folder}" in capsys.readouterr().out
    paths, model = test_images(run), models.load(run, "cpu")
    expected = model.predict(paths)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.from_numpy(np.stack([decode(path, 32) for path in paths])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probs = torch.sigmoid(network(model.network.to_input(pixels))).numpy()
    assert np.allclose(probs, expected, atol=1e-5)
    assert tuple(network.pretrained_cfg["mean"]) == tuple(model.metadata.mean)
    assert network.pretrained_cfg["input_size"] == (3, 32, 32) or network.pretrained_cfg["input_size"] == [3, 32, 32]
    assert np.allclose(models.load(folder, "cpu").predict(paths), expected)
    text = (folder / "README.md").read_text()
    for part in ("license: mit", "library_name: timm", "toy", "Cole et al.", "| mAP |", "red, green, blue", "24 train"):
        assert part in text


def test_a_torchvision_backbone_is_opened_by_timm_too(run, tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet50", 3, image_size=32, pretrained=False)
    about = json.loads((run / "model.json").read_text()) | {"model": "resnet50"}
    models.saved.write(tmp_path, model, {name: about[name] for name in about if name != "weights"})
    export.main([str(tmp_path), "--hub", str(tmp_path / "hub"), "--license", "mit"])
    network = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network(pixels), model.eval()(pixels), atol=1e-4)


def test_a_boostlu_model_is_exported_without_autocast_and_large_weights_lie_beside_it(
    run, tmp_path, monkeypatch, capsys
):
    onnx = pytest.importorskip("onnx")
    import torch.onnx._internal.exporter._onnx_program as program

    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 1000)
    model = models.build("timm:test_resnet", 3, image_size=64, pretrained=False, head="boostlu")
    about = json.loads((run / "model.json").read_text()) | {"head": "boostlu", "image_size": 64}
    models.saved.write(tmp_path, model, {name: about[name] for name in about if name != "weights"})
    path = tmp_path / "new" / "m.onnx"
    export.main([str(tmp_path), "--onnx", str(path), "--hub", str(tmp_path / "hub"), "--license", "mit"])
    out = capsys.readouterr().out
    assert f"{path} and {path}.data: probabilities within" in out
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert "models.load opens it; it is not timm's" in out
    assert not (tmp_path / "hub/config.json").exists() and "timm.create" not in (tmp_path / "hub/README.md").read_text()
    graph = onnx.load(path).graph
    assert {"autocast", "enter", "wrap"}.isdisjoint(node.op_type.split("_")[0].lower() for node in graph.node)


def test_misuse_is_one_line(run, tmp_path, fails):
    hub, license = str(tmp_path / "hub"), ["--license", "mit"]
    assert "give --onnx FILE, --hub DIR, or both" in fails(export.main, [str(run)])
    assert "--license NAME" in fails(export.main, [str(run), "--hub", hub])
    assert "model.json not found" in fails(export.main, [str(tmp_path / "none"), "--hub", hub, *license])
    assert "is the folder of a run" in fails(export.main, [str(run), "--hub", str(run), *license])
    (tmp_path / "README.md").write_text("mine")
    assert "README.md' exists already" in fails(export.main, [str(run), "--hub", str(tmp_path), *license])
    assert "exists already" in fails(export.main, [str(run), "--onnx", str(run / "model.json")])
    assert (tmp_path / "README.md").read_text() == "mine"


def test_names_stay_on_one_line_of_the_card(run):
    model = models.load(run, "cpu")
    model.metadata.dataset, model.metadata.classes[0] = "a\n---\nb", "<b>|\x1b`"
    text = export.card(model, False, "my: own\n# licence")
    assert "# timm:test\\_resnet on a?---?b, 3 labels" in text and r"\<b\>\|?\`" in text
    assert ModelCard(text).data.license == "my: own\n# licence"
