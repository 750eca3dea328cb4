"""The photographs as numbers (-d photos), and --features: heads on features computed elsewhere."""

from pathlib import Path

import numpy as np
import pytest

import datasets
import predict
import report
from datasets import photos
from main import main
from models import linear
from util.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Arguments and result of a short run."""
    folder = tmp_path_factory.mktemp("photos")
    arguments = ["-d", "photos", "-g", "cpu", "--data-root", f"{folder}/data", "--results-dir", f"{folder}/results"]
    short = [*arguments, "--linear-epochs", "2"]
    return short, main([*short, "-l", "CTL", "--teacher-views", "tiles"])


def test_a_linear_head_learns_from_real_features_and_a_real_teacher(finished):
    _, result = finished
    assert 45 < result["test_mAP"] < 60 and result["model"] == "features"
    assert result["pseudo_labels"]["mAP of the teacher, %"] > 65
    assert (result["train_images"], result["validation_images"], result["test_images"]) == (1358, 339, 865)


def test_a_second_draw_is_a_different_run(finished):
    arguments, result = finished
    other = main([*arguments, "-l", "an", "--draw", "1"])
    assert other["folder"] != result["folder"] and 20 < other["test_mAP"] < 60


def test_counts_are_those_of_the_record(finished):
    arguments, _ = finished
    splits = datasets.load(Path(arguments[5]) / "photos", need_images=False)
    spec = datasets.DATASETS["photos"]
    assert len(splits.train) + len(splits.val) == spec.train == photos.NUM_TRAIN
    assert splits.test.true.shape == (spec.test, spec.labels) and splits.test.true.sum(axis=0).min() == 9


def test_predict_refuses_a_head_on_features_and_report_leaves_out_its_pictures(finished, tmp_path, capsys):
    _, result = finished
    with pytest.raises(UserError, match="run on given features"):
        predict.main([result["folder"], str(tmp_path)])
    report.main([result["folder"], "--html", f"{tmp_path}/page.html"])
    assert "CTL" in (tmp_path / "page.html").read_text()


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def split_of(*names: str) -> datasets.MultiLabelDataset:
    return datasets.MultiLabelDataset(Path(), np.array(names), None, np.zeros((len(names), 1)))


def test_features_are_found_by_name_with_their_mirrored_images(tmp_path):
    names, values = np.array(["a", "b", "c"]), np.arange(6, dtype=np.float16).reshape(3, 2)
    path = save(tmp_path / "f.npz", images=names, features=values, mirrored=-values)
    found = linear.load_features(path, split_of("c", "a"), "cpu").kept
    assert found.tolist() == [[[4, 5], [-4, -5]], [[0, 1], [0, -1]]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": np.zeros((2, 2))}, "expected images"),
        ({"images": np.array(["a", "a", "c"]), "features": np.eye(3, 2)}, "contradict each other"),
        ({"images": np.array(["a", "b", "d"])}, "no row for the image 'c'"),
        ({"features": np.full((3, 2), np.nan)}, "finite numbers of at most .* in features"),
        ({"mirrored": np.zeros((3, 1))}, "expected images"),
    ],
)
def test_a_wrong_file_of_features_is_reported(tmp_path, change, message):
    arrays = {"images": np.array(["a", "b", "c"]), "features": np.zeros((3, 2))} | change
    with pytest.raises(UserError, match=message):
        linear.load_features(save(tmp_path / "f.npz", **arrays), split_of("a", "b", "c"), "cpu")


def test_features_need_a_linear_head(finished, capsys):
    arguments, _ = finished
    with pytest.raises(SystemExit):
        main([*arguments, "--mode", "end_to_end"])
    assert "take --mode linear" in capsys.readouterr().err
