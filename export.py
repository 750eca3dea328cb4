"""A finished run's model for other programs: an ONNX file, or a folder ready for the Hugging Face hub.

    python export.py results/RUN --onnx model.onnx
    python export.py results/RUN --hub DIR --license apache-2.0

The ONNX model reads pixels, (B, S, S, 3) uint8 RGB, and gives probabilities, (B, L); normalisation and sigmoid are
inside, and its metadata hold classes, thresholds and how to resize. Above 2 GB its weights lie in a second file.
"""

import copy
import json
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor, nn

import models
from util.errors import OneLineParser, UserError, describe_error, printable, run_script
from util.files import atomic, check_outputs, write_text

CARD = Path(models.__file__).with_name("model_card.md")  # a template of Jinja
TOLERANCE = 1e-4  # by which the probabilities of onnxruntime may differ from PyTorch's
RESIZE = "squash to image_size x image_size, bilinear with antialiasing (Pillow's BILINEAR), whatever the proportions"


class FromPixels(nn.Module):
    """(B, S, S, 3) uint8 -> (B, L) float32 probabilities."""

    def __init__(self, backbone: models.Backbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.sigmoid(self.backbone(self.backbone.to_input(pixels.permute(0, 3, 1, 2))))


def write_onnx(model: models.Predictor, path: Path) -> tuple[list[Path], float]:
    """Export, compare with PyTorch by onnxruntime, and only then write; the files, and the largest difference of a
    probability."""
    network, size, random = FromPixels(model.network).eval(), model.image_size, np.random.RandomState(0)
    example, pixels = (random.randint(0, 256, (count, size, size, 3), dtype=np.uint8) for count in (2, 3))
    options = dict(input_names=["pixels"], output_names=["probabilities"], dynamo=True, verbose=False)
    options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    try:
        import onnxruntime

        with warnings.catch_warnings(action="ignore"):  # the exporter warns about its own future
            program = torch.onnx.export(network, (torch.from_numpy(example),), **options)
    except (ImportError, OSError, torch.onnx.OnnxExporterError) as error:  # no library; a layer that has no operator
        raise UserError(
            f"{model.metadata.model} cannot be exported to ONNX ({describe_error(error)}); `pip install -r "
            "requirements-export.txt` installs the libraries that this needs"
        ) from None
    metadata = {"classes": model.classes, "thresholds": model.thresholds.tolist(), "image_size": size}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.model.metadata_props["resize"] = RESIZE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
        program.save(Path(folder, path.name))  # large weights go into a second file, which the first names
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels)).numpy()
        session = onnxruntime.InferenceSession(f"{folder}/{path.name}", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"pixels": pixels})
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(f"the ONNX model differs from PyTorch by {difference:.1e}, more than {TOLERANCE}")
        files = sorted(os.listdir(folder))
        for name in reversed(files):  # the weights first
            os.replace(Path(folder, name), path.parent / name)
    return [path.parent / name for name in files], difference


def write_hub(model: models.Predictor, run: Path, folder: Path, license: str) -> bool:
    """Weights, model.json, a model card, and if timm can build the network its config.json; whether it can.

    With config.json, `timm.create_model("local-dir:DIR", pretrained=True)` builds the network.
    """
    from timm.models._hub import save_config_for_hf

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json"):
        with atomic(folder / name) as temporary:
            shutil.copyfile(run / name, temporary)
    if network := timm_network(model):
        data = {"input_size": (3, model.image_size, model.image_size), "crop_mode": "squash", "crop_pct": 1.0}
        data |= {"mean": model.metadata.mean, "std": model.metadata.std, "interpolation": "bilinear"}
        with atomic(folder / "config.json") as temporary:
            save_config_for_hf(network, str(temporary), model_config={"label_names": model.classes}, data_config=data)
    write_text(folder / "README.md", card(model, network is not None, license))
    return network is not None


def timm_network(model: models.Predictor) -> nn.Module | None:
    """The model's network if timm can build it. timm's ResNet-50 has the names of torchvision's parameters."""
    import timm
    from torchvision.models import ResNet

    network = model.network.network
    if isinstance(network, ResNet):
        network = timm.create_model("resnet50", num_classes=len(model.classes))
    return network if hasattr(network, "pretrained_cfg") else None


def card(model: models.Predictor, by_timm: bool, license: str) -> str:
    """The model card: how to use the model, what it was trained on and how, and its metrics."""
    tags, result = ["image-classification", "multi-label"], model.metadata.result
    data = ModelCardData(license=license, tags=tags, library_name="timm" if by_timm else None)
    counts = {name: result.get(f"{name}_images") for name in ("train", "validation", "test")}
    scores = {name: value for name, value in result.items() if name.startswith("test_") and isinstance(value, float)}
    filled = ModelCard.from_template(
        data,
        str(CARD),
        model=model.metadata,
        images=", ".join(f"{count:,} {name}" for name, count in counts.items() if count is not None),
        classes=", ".join(map(text, model.classes)),
        scores={name.removeprefix("test_"): value for name, value in scores.items()},
        text=text,
    )
    return f"{filled}\n"


def text(name: str) -> str:
    """A name in Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(name))


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--onnx", metavar="FILE", help="write an ONNX model, with pixels in and probabilities out")
    parser.add_argument("--hub", metavar="DIR", help="write a folder ready for the Hugging Face hub")
    parser.add_argument("--license", help="of the model, for the card of --hub: the hub's name of it, such as mit")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(argv)
    if not options.onnx and not options.hub:
        parser.error("give --onnx FILE, --hub DIR, or both")
    if options.hub and not options.license:
        parser.error("--hub needs the model's licence for its card: --license NAME, such as mit or apache-2.0")
    onnx, hub = options.onnx, Path(options.hub or "")
    outputs = {"--onnx": onnx, "--onnx's weights": onnx and f"{onnx}.data"}
    if options.hub:
        if (hub / "test.json").exists() or hub.resolve() == Path(options.run).resolve():
            parser.error(f"--hub {hub} is the folder of a run; name a new folder")
        names = ("README.md", "config.json", "model.json", "model.safetensors")
        outputs |= {f"--hub's {name}": hub / name for name in names}
    check_outputs(outputs, options.overwrite)
    model = models.load(options.run, "cpu")
    if onnx:
        files, difference = write_onnx(model, Path(onnx))
        print(f"{' and '.join(map(str, files))}: probabilities within {difference:.1e} of PyTorch's")
    if options.hub:
        is_timm = write_hub(model, Path(options.run), hub, options.license)
        opened = f"timm opens it as local-dir:{hub}" if is_timm else "models.load opens it; it is not timm's"
        print(f"{hub}: {opened}")


if __name__ == "__main__":
    run_script(main)
