"""A finished run's model for other programs: an ONNX file, or a folder ready for the Hugging Face hub.

    python export.py results/RUN --onnx model.onnx
    python export.py results/RUN --hub DIR

The ONNX model reads pixels, (B, S, S, 3) uint8 RGB, and gives probabilities, (B, L); normalisation and sigmoid are
inside, and its metadata hold classes and thresholds.
"""

import copy
import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import models
from util.errors import OneLineParser, UserError, run_script
from util.files import atomic

NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # by which the probabilities of onnxruntime may differ from PyTorch's
CHECKED = 3  # images of the check, another number than the example's


class FromPixels(nn.Module):
    """(B, S, S, 3) uint8 -> (B, L) float32 probabilities."""

    def __init__(self, backbone: models.Backbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.sigmoid(self.backbone(self.backbone.to_input(pixels.permute(0, 3, 1, 2))))


def write_onnx(model: models.Predictor, path: Path) -> float:
    """Export, check against PyTorch with onnxruntime, and only then write; the largest difference of a probability.

    Raises UserError where a library is missing, the backbone cannot be exported, or its output differs.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install -r requirements-export.txt")
    import onnx
    import onnxruntime

    network = FromPixels(model.network).eval()
    shape = (model.image_size, model.image_size, 3)
    random = np.random.RandomState(0)
    example, pixels = (random.randint(0, 256, (count, *shape), dtype=np.uint8) for count in (2, CHECKED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own future
        try:
            program = torch.onnx.export(
                network,
                (torch.from_numpy(example),),
                dynamo=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{model.about['model']} cannot be exported to ONNX ({reason})") from None
    with atomic(path) as temporary:
        program.save(temporary)
        proto = onnx.load(temporary)
        about = {"classes": model.classes, "thresholds": model.thresholds.tolist(), "image_size": model.image_size}
        onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
        onnx.save(proto, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"pixels": pixels})
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels)).numpy()
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(f"the ONNX model differs from PyTorch by {difference:.1e}, more than {TOLERANCE}")
    return difference


def write_hub(model: models.Predictor, run: Path, folder: Path, license: str) -> str | None:
    """Weights, model.json, a model card, and where the backbone is one of timm's its config.json; timm's name of it."""
    if not (run / "model.json").exists():
        raise UserError(f"{run} is of an earlier version, without model.json; train it again with --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json"):
        with atomic(folder / name) as temporary:
            shutil.copyfile(run / name, temporary)
    if architecture := timm_name(model):
        write_timm_config(model, architecture, folder / "config.json")
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(card(model, architecture, license))
    return architecture


def timm_name(model: models.Predictor) -> str | None:
    """timm's name of the model's network; None where timm cannot build it."""
    if model.about.get("head", "linear") != "linear":
        return None
    if about := getattr(model.network.network, "pretrained_cfg", None):  # timm's own
        return about["architecture"] + (f".{about['tag']}" if about.get("tag") else "")
    return "resnet50" if model.about["model"] == "resnet50" else None  # torchvision's has timm's names


def write_timm_config(model: models.Predictor, architecture: str, path: Path) -> None:
    """config.json, by which `timm.create_model("local-dir:DIR", pretrained=True)` builds the network."""
    import timm
    from timm.models._hub import save_config_for_hf

    network = model.network.network
    if not hasattr(network, "pretrained_cfg"):  # torchvision's
        network = timm.create_model(architecture, num_classes=len(model.classes))
    shape = {"input_size": (3, model.image_size, model.image_size), "interpolation": "bilinear", "crop_mode": "squash"}
    how = shape | {"mean": model.about["mean"], "std": model.about["std"], "crop_pct": 1.0}
    with atomic(path) as temporary:
        save_config_for_hf(network, str(temporary), model_config={"label_names": model.classes}, data_config=how)


CARD = """---
license: {license}
tags: [image-classification, multi-label]
{library}---

# {model} on {dataset}, {num_labels} labels

A multi-label image classifier, trained from partially known labels with the method {method} ({paper}).

## Use

```python
{timm}import models  # of the code that trained it

model = models.load("DIR")
probs = model.predict(paths)  # (N, L) probabilities
```

Images are squashed to {size} x {size} pixels, whatever their proportions. A label counts as present from its threshold
in `model.json` on (chosen by {thresholds}).

## Data

{dataset}: {images} images. Classes: {classes}.

## Metrics

{metrics}

## Licence

{license}. The licences of the training images and of the starting weights apply too.
"""
TIMM_USE = """import timm

network = timm.create_model("local-dir:DIR", pretrained=True)  # normalised pixels -> logits

"""


def card(model: models.Predictor, architecture: str | None, license: str) -> str:
    """The model card: how it is used, what it was trained on and how, and what it reached."""
    about, result = model.about, model.about.get("result", {})
    images = [
        f"{result[key]:,} {name}" for name in ("train", "validation", "test") if (key := f"{name}_images") in result
    ]
    scores = {name.removeprefix("test_"): value for name, value in result.items() if name.startswith("test_")}
    scores = {name: value for name, value in scores.items() if isinstance(value, float)}
    rows = [
        f"| {name} | {value:.2f} |" if "mAP" in name else f"| {name} | {value:.4f} |" for name, value in scores.items()
    ]
    chosen = f"Test images; mAP in percent, the rest as fractions. Epoch chosen by {result.get('chosen_by')}."
    none = "There were no test images with full labels."
    return CARD.format(
        license=license,
        library="library_name: timm\n" if architecture else "",
        timm=TIMM_USE if architecture else "",
        model=about["model"],
        dataset=about.get("dataset", "unknown data"),
        method=about.get("method", "unknown"),
        paper=about.get("paper", ""),
        num_labels=len(model.classes),
        size=model.image_size,
        thresholds=result.get("thresholds_chosen_by", "nothing"),
        images=", ".join(images),
        classes=", ".join(model.classes),
        metrics="\n".join([chosen, "", "| | |", "|---|---|", *rows]) if rows else none,
    )


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--onnx", metavar="FILE", help="write an ONNX model, with pixels in and probabilities out")
    parser.add_argument("--hub", metavar="DIR", help="write a folder ready for the Hugging Face hub")
    parser.add_argument("--license", default="mit", help="of the model, for its card (default: %(default)s)")
    options = parser.parse_args(argv)
    if not options.onnx and not options.hub:
        parser.error("give --onnx FILE, --hub DIR, or both")
    model = models.load(options.run, "cpu")
    if options.onnx:
        difference = write_onnx(model, Path(options.onnx))
        print(f"{options.onnx}: probabilities within {difference:.1e} of PyTorch's")
    if options.hub:
        architecture = write_hub(model, Path(options.run), Path(options.hub), options.license)
        opened = (
            f"timm opens it as local-dir:{options.hub}" if architecture else "models.load opens it; it is not timm's"
        )
        print(f"{options.hub}: {opened}")


if __name__ == "__main__":
    run_script(main)
