"""Training: the reference recipe (a), this code (b) and the bare step without a data path (c), images per second.

    python benchmarks/train.py [--official 40 --test 40] [options of main.py]
    python benchmarks/train.py -d digits
    python benchmarks/train.py --cell -g 0                # a whole run of VOC's size, by the real command

Weights are random: they do not change how long a step takes. Similarities are given, and (b)'s images are decoded
before the clock starts; that cost is stated beside the table.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose names hide other modules

import config as configuration
import datasets
import engine
import losses
import metrics
import models
from benchmarks.cell import cell
from benchmarks.common import (
    environment,
    faster,
    make_dataset,
    matrix_rate,
    number,
    parser,
    photo_arguments,
    photographs,
    positive,
    products,
    random_similarity,
    random_teacher,
    rate,
    shown,
    side_by_side,
    table,
)
from benchmarks.recipe import PARTS, Recipe
from config import Config
from datasets import DATASETS
from datasets.images import Images, choose_cache, open_images, to_input
from pseudo_labels import rules
from util.devices import autocast, default_workers, pick_device, pick_precision
from util.errors import run_script
from util.settings import with_settings

PHASES = ("train", "validation", "test")
CELLS = {"pascal": "VOC", "coco": "COCO"}


def time_reference(
    config: Config, splits: datasets.Splits, device: torch.device, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(a): seconds of each phase of an epoch, repeated, and of the parts in the median epoch's phases together."""
    num_labels = len(splits.classes.names)
    student = models.build(config.model, num_labels, image_size=config.image_size, pretrained=False).to(device)
    teacher = random_teacher(config.teacher, num_labels).to(device)
    loss = losses.build(config.loss, configuration.facts(config), torch.from_numpy(splits.train.observed).to(device))
    recipe = Recipe(student, teacher, loss, lr=config.lr, device=device)
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
    """(b), an `engine.Training` as main.py makes it, and the step and the forward pass that (c) repeats."""

    def __init__(self, config: Config, splits: datasets.Splits, device: torch.device) -> None:
        self.config, self.splits, self.device = config, splits, device
        cache, workers = config.cache_folder, config.workers or default_workers()
        cache.mkdir(parents=True, exist_ok=True)
        self.place = choose_cache(
            config.cache, list(splits.named().values()), config.image_size, cache, device, workers
        )
        began = time.perf_counter()
        self.images: dict[str, Images] = {
            name: open_images(split, config.image_size, self.place, cache, device, workers)
            for name, split in splits.named().items()
        }
        self.opening = time.perf_counter() - began
        pseudo, rule, observed = None, config.method.pseudo_labels, splits.train.observed
        if rule:
            views = [random_similarity(*observed.shape)]
            pseudo, _, _ = rules.make(rule, config.hparams, views, observed, calibration=config.calibrate)
        data = engine.TrainingSet.on(device, self.images["train"], splits.train, pseudo)
        model = models.build(
            config.model, len(splits.classes.names), image_size=config.image_size, pretrained=False
        ).to(device, memory_format=torch.channels_last)
        loss = losses.build(config.loss, configuration.facts(config), data.observed)
        self.training = with_settings(engine.Training, vars(config) | {"augmentation": None})(model, loss, data)

    def train(self) -> None:
        self.training.train_epoch()
        self.training.epoch, self.training.steps = self.training.epoch + 1, 0

    def evaluate(self, name: str) -> None:
        probs = self.training.predict(self.images[name], name).cpu().numpy()
        metrics.evaluate(probs, self.splits.named()[name].true)

    def phase(self, name: str) -> Callable[[], None]:
        return self.train if name == "train" else lambda: self.evaluate(name)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = torch.arange(min(size, len(self.splits.train)))
        images = next(self.images["train"].stream([rows], self.device))
        return images, rows.to(self.device), torch.zeros(len(rows), dtype=torch.bool, device=self.device)

    def bare_steps(self, steps: int) -> None:
        """(c): the same step on one batch that lies on the device."""
        self.training.model.train()
        batch = self.batch(self.config.batch_size)
        for _ in range(steps):
            self.training.step(*batch, self.config.batch_size)

    @torch.inference_mode()
    def bare_forward(self, passes: int) -> None:
        model = self.training.model.eval()
        images, _, _ = self.batch(self.config.eval_batch_size)
        for _ in range(passes):
            with autocast(self.device, self.config.precision):
                model(to_input(images, model.mean, model.std))


def step_flops(model: models.Backbone, size: int) -> float:
    """Floating-point operations of a training step, per image, of products and convolutions, counted by shape."""
    shapes = deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        shapes(torch.empty(2, 3, size, size, device="meta")).sum().backward()
    return counter.get_total_flops() / 2


def compare(config: Config, device: torch.device, repeats: int, with_reference: bool) -> None:
    splits = datasets.load(config.folder)
    counts = {name: len(split) for name, split in splits.named().items()}
    ours = Ours(config, splits, device)
    multiply, work = products(device, config.precision)
    steps = ours.training.num_steps
    passes = max(1, round(counts["test"] / config.eval_batch_size))
    taken = side_by_side(
        {name: ours.phase(name) for name in PHASES}
        | {"step": lambda: ours.bare_steps(steps), "forward": lambda: ours.bare_forward(passes), "products": multiply},
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
    flops, peak = step_flops(ours.training.model, config.image_size), work / median(taken["products"])
    shares = [f"{counts['train'] * flops / median(side['train']) / peak:.2g}" for side in (b, c)]
    rows.insert(1, [f"train, share of the {config.precision} matrix rate", "-", *shares, "-", "-"])
    rows.append(row("whole epoch, s", shown, [epoch(a) if a else None, epoch(b), epoch(c)]))
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    table(
        f"Training: {config.dataset}, {config.model}, {config.image_size} px, batch {config.batch_size}, "
        f"{config.precision}; {sizes} images",
        ["", "a: reference recipe", "b: this code", "c: bound", "speed b/a", "speed b/c"],
        rows,
        f"Median (lowest to highest), n {repeats}. A step is {flops / 1e9:.3g} GFLOP per image. Matrix rate: "
        f"{matrix_rate(peak, device)}. Cache: {ours.place}, opened in {ours.opening:.1f} s beforehand. "
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
            f"{cell} ({DATASETS[name].train:,} + {DATASETS[name].test:,} images)",
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
    total = epochs * (train * each["train"] + val * each["validation"]) + tests * DATASETS[name].test * each["test"]
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
            config = configuration.parse(given)
            DATASETS["digits"].make(config.folder)
        else:
            voc = DATASETS["pascal"]
            sizes = (
                options.official or (voc.train if options.cell else 40),
                options.test or (voc.test if options.cell else 40),
            )
            photos = photographs(options.photos, folder / "photos")
            make_dataset(folder, "photographs", photos, *sizes, labels=options.labels)
            config = configuration.parse([*given, "-d", "photographs", "--data-root", str(folder)])
        if options.cell:
            cell(config, folder, given, options.repeats)
            return
        device = pick_device(config.gpu)
        config = replace(config, precision=pick_precision(config.precision, device))
        compare(config, device, options.repeats, not options.no_reference)


if __name__ == "__main__":
    run_script(main)
