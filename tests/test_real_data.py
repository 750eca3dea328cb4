"""Training on the part of VOC and COCO that is at hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_CLIP, same_numbers
from safetensors.torch import save_file

import main
from models import clip
from preproc import format_coco, format_pascal, generate_observed_labels
from runs import run_folder
from util.errors import UserError

SMALL = "-g cpu -m timm:test_resnet --no-pretrained --image-size 64 --epochs 2 --skip-missing".split()


@pytest.fixture(scope="module")
def voc(real, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "data"
    format_pascal.main(["--load-path", str(real / "realdata/voc2012"), "--save-path", str(root / "pascal")])
    generate_observed_labels.main(["--dataset", "pascal", "--data-root", str(root)])
    return root


def test_voc_trains_resumes_and_evaluates_over_the_photographs_at_hand(real, voc, tmp_path, capsys, monkeypatch):
    similarity = real / "realdata/voc2012/clip_rn50x64_train_similarity.npz"
    folders = ["--data-root", str(voc), "--results-dir", str(tmp_path)]
    arguments = ["-d", "pascal", *SMALL, "--similarity", str(similarity), *folders]
    result = main.main(arguments)
    out = capsys.readouterr().out
    assert result["train_images"] + result["validation_images"] == 150 and result["test_images"] == 100
    assert f"{result['train_images']:,} of 4,574 train images are on the disk" in out
    undisturbed = shutil.move(result["folder"], tmp_path / "undisturbed")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.Run, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            main.main(arguments)
    assert same_numbers(Path(main.main([*arguments, "--resume"])["folder"]), Path(undisturbed))


def test_voc_without_skip_missing_names_the_first_missing_image(voc, tmp_path):
    arguments = [part for part in SMALL if part != "--skip-missing"]
    with pytest.raises(UserError, match="of 4,574 train images are missing"):
        main.main(["-d", "pascal", *arguments, "--data-root", str(voc), "--results-dir", str(tmp_path)])


def test_coco_trains_with_a_teacher_of_random_weights(real, tmp_path):
    root = tmp_path / "data"
    format_coco.main(["--load-path", str(real / "realdata/coco2014-mini"), "--save-path", str(root / "coco")])
    generate_observed_labels.main(["--dataset", "coco", "--data-root", str(root)])
    (tmp_path / "tiny_clip_coco.json").write_text(json.dumps(TINY_CLIP))
    torch.manual_seed(0)
    model = clip.create_clip(str(tmp_path / "tiny_clip_coco.json"), None)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    folders = ["--data-root", str(root), "--results-dir", str(tmp_path)]
    teacher = ["--teacher", f"{tmp_path}/tiny_clip_coco.json", "--teacher-weights", f"{tmp_path}/teacher.safetensors"]
    result = main.main(["-d", "coco", *SMALL, "-p", "0.2", "-th", "0.02", *folders, *teacher])
    with np.load(Path(result["folder"]) / "predictions.npz") as file:
        assert file["probs"].shape == (45, 80)
    assert len(list((root / "coco/cache").glob("similarity_*.npy"))) == 1
