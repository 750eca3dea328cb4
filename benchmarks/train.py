"""Training: the reference recipe (a), this code (b) and the bare step without a data path (c), images a second.

    python benchmarks/train.py [--official 40 --test 40] [options of main.py]
    python benchmarks/train.py -d digits
    python benchmarks/train.py --cell -g 0                # a whole run of VOC's size, by the real command

Weights are random: they do not change how long a step takes. Similarities are given, and (b)'s images are decoded
before the clock starts; what that costs once is said beside the table.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in the place of this folder, whose names are other modules

import config as settings
import datasets
import engine
import losses
import metrics
import models
import pseudo_labels
from benchmarks.cell import cell
from benchmarks.common import (
    environment,
    faster,
    make_dataset,
    number,
    parser,
    photo_arguments,
    photographs,
    positive,
    rate,
    shown,
    side_by_side,
    table,
)
from benchmarks.recipe import PARTS, Recipe
from cli import run_script
from config import Config
from datasets import DATASETS
from datasets.images import Images, open_images, to_input, where_kept
from losses import Targets
from models import Backbone
from models.clip import create_clip, normalisation
from models.teacher import Teacher
from preproc import make_digits

PHASES = ("train", "validation", "test")
CELLS = {"pascal": "VOC", "coco": "COCO"}


def random_teacher(config: Config, num_labels: int) -> Teacher:
    logging.disable(logging.WARNING)  # open_clip's, that no weights are loaded
    clip = create_clip(config.teacher, None).eval().requires_grad_(False)
    features = torch.randn(num_labels, clip.text_projection.shape[1])
    return Teacher(clip, features, *normalisation(config.teacher, config.teacher_weights), "own")


def time_reference(
    config: Config, splits: datasets.Splits, device: torch.device, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(a): seconds of each phase of an epoch, repeated, and of the parts in the median epoch's phases together."""
    num_labels = len(splits.classes.names)
    student = models.build(config, num_labels).to(device)
    teacher = random_teacher(config, num_labels).to(device)
    formula = losses.build(config.loss, config, splits.train.observed)

    def loss(logits: torch.Tensor, observed: torch.Tensor, pseudo: torch.Tensor) -> torch.Tensor:
        return formula(logits, Targets(observed, pseudo=pseudo))

    recipe = Recipe(
        student,
        teacher,
        loss,
        lr=config.lr,
        temperature=config.temperature,
        threshold=config.threshold,
        device=device,
    )
    loaders = {
        name: recipe.loader(
            split, config.image_size, config.flip if name == "train" else 0.0, config.batch_size, name == "train"
        )
        for name, split in splits.named().items()
    }
    warm = next(iter(loaders["train"]))[0].to(device)  # kernels chosen, weights paged in, no step taken
    with torch.no_grad():
        student(warm)
        recipe.pseudo_labels(warm)
    result = {name: [] for name in PHASES}
    for _ in range(repeats):
        for name, loader in loaders.items():
            began = time.perf_counter()
            recipe.phase(loader, train=name == "train")
            result[name].append(time.perf_counter() - began)
    return result, {part: total / repeats for part, total in recipe.seconds.items()}


class Ours:
    """(b), set up as main.py does, and the step and the forward pass that (c) repeats."""

    def __init__(self, config: Config, splits: datasets.Splits, device: torch.device, cache: Path) -> None:
        self.config, self.splits, self.device = config, splits, device
        workers = config.workers or engine.default_workers()
        where = where_kept(config.cache, list(splits.named().values()), config.image_size, cache, device)
        began = time.perf_counter()
        self.images: dict[str, Images] = {
            name: open_images(split, config.image_size, where, cache, device, workers)
            for name, split in splits.named().items()
        }
        self.opening, self.where = time.perf_counter() - began, where
        self.model: Backbone = models.build(config, len(splits.classes.names)).to(
            device, memory_format=torch.channels_last
        )
        similarity = np.random.RandomState(0).normal(0.2, 0.02, splits.train.true.shape).astype(np.float32)
        pseudo = pseudo_labels.assign(
            similarity, temperature=config.temperature, threshold=config.threshold, negative_fraction=config.partial
        )
        observed, true = (torch.from_numpy(array).to(device) for array in (splits.train.observed, splits.train.true))
        loss = losses.build(config.loss, config, splits.train.observed).to(device)
        data = engine.TrainingSet(self.images["train"], observed, true, torch.from_numpy(pseudo).to(device))
        self.step = engine.TrainingStep(
            self.model,
            loss,
            data,
            lr=config.lr,
            batch_size=config.batch_size,
            precision=config.precision,
            cuda_graph=config.cuda_graph,
        )
        self.losses = torch.zeros(-(-len(splits.train) // config.batch_size), device=device)
        self.epoch = 0

    def train(self) -> None:
        self.epoch += 1
        engine.train_one_epoch(self.step, seed=0, epoch=self.epoch, flip=self.config.flip, losses=self.losses)

    def evaluate(self, name: str) -> None:
        split = getattr(self.splits, "val" if name == "validation" else name)
        probs = engine.predict(
            self.model,
            self.images[name],
            split.true.shape[1],
            batch_size=self.config.eval_batch_size,
            precision=self.config.precision,
            device=self.device,
            name=name,
        )
        metrics.evaluate(probs.cpu().numpy(), split.true)

    def phase(self, name: str) -> Callable[[], None]:
        return self.train if name == "train" else lambda: self.evaluate(name)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = torch.arange(min(size, len(self.splits.train)))
        images = next(self.images["train"].stream([rows], self.device))
        return images, rows.to(self.device), torch.zeros(len(rows), dtype=torch.bool, device=self.device)

    def bare_steps(self, steps: int) -> None:
        """(c): the same step on one batch that lies on the device."""
        self.model.train()
        batch = self.batch(self.config.batch_size)
        for _ in range(steps):
            self.step(*batch, self.step.batch_size)

    @torch.inference_mode()
    def bare_forward(self, passes: int) -> None:
        self.model.eval()
        images, _, _ = self.batch(self.config.eval_batch_size)
        for _ in range(passes):
            with engine.autocast(self.device, self.config.precision):
                self.model(to_input(images, self.model.mean, self.model.std))


def compare(config: Config, device: torch.device, cache: Path, repeats: int, with_reference: bool) -> None:
    splits = datasets.load(config)
    counts = {name: len(split) for name, split in splits.named().items()}
    ours = Ours(config, splits, device, cache)
    steps = len(ours.losses)
    passes = max(1, round(counts["test"] / config.eval_batch_size))
    taken = side_by_side(
        {name: ours.phase(name) for name in PHASES}
        | {"step": lambda: ours.bare_steps(steps), "forward": lambda: ours.bare_forward(passes)},
        repeats,
        device,
    )
    b = {name: taken[name] for name in PHASES}
    per_step = steps * min(config.batch_size, counts["train"])
    per_forward = passes * min(config.eval_batch_size, counts["train"])
    c = {name: [s * counts[name] / per_forward for s in taken["forward"]] for name in PHASES[1:]}
    c["train"] = [s * counts["train"] / per_step for s in taken["step"]]
    a, parts = time_reference(config, splits, device, repeats) if with_reference else (None, None)

    def epoch(side: dict[str, list[float]]) -> list[float]:
        return [sum(phase) for phase in zip(*(side[name] for name in PHASES), strict=True)]

    def row(name: str, number: Callable[[list[float]], str], sides: list[list[float] | None]) -> list[str]:
        first, second, third = sides
        return [
            name,
            number(first) if first else "-",
            number(second),
            number(third),
            faster(second, first) if first else "-",
            faster(second, third),
        ]

    rows = [
        row(
            f"{name}, images/s",
            lambda values, name=name: rate(counts[name], values),
            [a[name] if a else None, b[name], c[name]],
        )
        for name in PHASES
    ]
    rows.append(row("whole epoch, s", shown, [epoch(a) if a else None, epoch(b), epoch(c)]))
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    table(
        f"Training: {config.dataset}, {config.model}, {config.image_size} px, batch {config.batch_size}, "
        f"{config.precision}; {sizes} images",
        ["", "a: reference recipe", "b: this code", "c: bound", "speed b/a", "speed b/c"],
        rows,
        f"Median (lowest to highest), n {repeats}. Cache: {ours.where}, opened in {ours.opening:.1f} s beforehand. "
        f"{environment(device, ('torchvision', 'timm', 'pillow'))}",
    )
    if parts:
        whole = sum(parts.values())
        table(
            f"Where the reference recipe spends its epoch (teacher {config.teacher})",
            ["part", "s", "share"],
            [[part, f"{parts[part]:.3g}", f"{100 * parts[part] / whole:.0f} %"] for part in PARTS],
        )
    if config.dataset == "digits":
        return
    rows = [
        [
            f"{cell} ({DATASETS[name].train:,} + {DATASETS[name].val:,} images)",
            *(
                _cell_minutes(side, counts, config.epochs, name, test_each_epoch)
                for side, test_each_epoch in ((a, True), (b, False), (c, False))
            ),
        ]
        for name, cell in CELLS.items()
    ]
    table(
        f"A whole paper cell of {config.epochs} epochs, minutes, projected from the rates above",
        ["", "a (test every epoch)", "b (test once)", "c (test once)"],
        rows,
        "Start-up, decoding and the teacher's pass of b are not in it.",
    )


def _cell_minutes(
    side: dict[str, list[float]] | None, counts: dict[str, int], epochs: int, name: str, test_each_epoch: bool
) -> str:
    if side is None:
        return "-"
    each = {phase: median(side[phase]) / counts[phase] for phase in PHASES}
    train, val = (0.8 * DATASETS[name].train, 0.2 * DATASETS[name].train)
    tests = epochs if test_each_epoch else 1
    total = epochs * (train * each["train"] + val * each["validation"]) + tests * DATASETS[name].val * each["test"]
    return number(total / 60)


def main() -> None:
    arguments = parser(__doc__, repeats=3)
    arguments.add_argument(
        "--official", type=positive, help="official training images (default: 40; with --cell, VOC's)"
    )
    arguments.add_argument("--test", type=positive, help="test images (40; with --cell, VOC's)")
    arguments.add_argument("--labels", type=positive, default=20, help="(default: %(default)s)")
    arguments.add_argument("--cell", action="store_true", help="time a whole run by the real command")
    arguments.add_argument("--no-reference", action="store_true", help="leave (a) out")
    photo_arguments(arguments)
    options, given = arguments.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "digits" in given:
            config = settings.parse(given)
            make_digits.ensure(Path(config.data_root) / "digits")
        else:
            voc = DATASETS["pascal"]
            sizes = (
                options.official or (voc.train if options.cell else 40),
                options.test or (voc.val if options.cell else 40),
            )
            photos = photographs(options.photos, folder / "photos")
            make_dataset(folder, "photographs", photos, *sizes, labels=options.labels)
            config = settings.parse([*given, "-d", "photographs", "--data-root", str(folder)])
        if options.cell:
            cell(config, folder, given, options.repeats)
            return
        device = engine.pick_device(config.gpu)
        config = replace(config, precision=engine.pick_precision(config.precision, device), pretrained=False)
        compare(config, device, datasets.cache_folder(config), options.repeats, not options.no_reference)


if __name__ == "__main__":
    run_script(main)
