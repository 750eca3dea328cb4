"""The checks at the start of a run see faults that are put in on purpose, and nothing if there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_arguments
from training import tiny_training

import main
from models import checks, teachers
from models.teachers import clip as clip_teacher
from util.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_outputs_that_are_not_the_cpus_are_reported(monkeypatch, precision):
    model = tiny_training("an").model
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    checks.outputs(model, images, precision)
    assert model.training and not model.network[4]._forward_pre_hooks
    wrong = tiny_training("an").model
    with torch.no_grad():
        wrong.network[0].weight.mul_(4)
    monkeypatch.setattr(checks, "deepcopy", lambda model: wrong)
    with pytest.raises(UserError, match=rf"in {precision} differ from a CPU's.*--no-checks"):
        checks.outputs(model, images, precision)


def test_logits_that_nearly_cancel_are_no_fault():
    """Of a single label, say: what is left of them is rounding."""
    model = tiny_training("an").model
    images = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8).expand(2, -1, -1, -1)
    with torch.no_grad():
        model.network[4].bias.sub_(model(model.to_input(images)).mean(dim=0))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(model.to_input(images)).float()
        exact = model(model.to_input(images))
    assert (rounded - exact).norm() > checks.SAME_OUTPUT["bf16"] * exact.norm()
    checks.outputs(model, images, "bf16")


def test_a_teacher_that_half_precision_changes_is_reported(toy, tiny_clip, tmp_path, monkeypatch):
    import datasets

    splits, half = datasets.load(toy), teachers.ClipTeacher(*tiny_clip, precision="bf16")
    how = dict(batch_size=8, device=CPU, workers=2)

    def similarities(folder: str, **more: object) -> np.ndarray:
        return half.similarities(splits.train, splits.classes, tmp_path / folder, **(dict(checked=True) | how | more))[
            0
        ]

    right, real = similarities("right"), clip_teacher.Scorer.to_precision

    def broken(self, precision: str):
        with torch.no_grad():
            self.network.visual.proj.mul_(torch.randn_like(self.network.visual.proj))
        return real(self, precision)

    monkeypatch.setattr(clip_teacher.Scorer, "to_precision", broken)
    with pytest.raises(UserError, match=r"in half precision differ by .*--precision float32"):
        similarities("wrong")
    assert np.abs(similarities("unchecked", checked=False) - right).max() > clip_teacher.SAME_SIMILARITY


def test_a_run_says_in_one_line_what_it_runs_on_and_warns_of_a_different_number_of_threads(toy, capsys):
    threads = torch.get_num_threads()
    main.main(toy_arguments(toy, "-l", "an", "--epochs", "1"))
    assert f"CPU, {threads} threads, float32, images in a file" in capsys.readouterr().out.splitlines()
    (folder,) = (path for path in Path(toy.parent.parent / "results").iterdir() if path.is_dir())
    (folder / "test.json").unlink()
    torch.set_num_threads(threads + 1)
    try:
        main.main(toy_arguments(toy, "-l", "an", "--epochs", "1", "--resume"))
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert f"began with {threads} threads and continues with {threads + 1}" in out and f"--threads {threads}" in out
