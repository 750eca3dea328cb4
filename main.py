"""Train and evaluate a multi-label classifier from one known positive label per image.

    python main.py -d pascal -l EM_PL

Data set -> pseudo-labels -> images -> backbone and loss -> train and validate -> test once; `--help` lists all options.
"""

from util.errors import UserError, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import checks
import config as settings
import datasets
import engine
import losses
import metrics
import models
import run_folder
import supervision
from config import Config
from datasets.images import Augmentation, Images, cache_file, choose_cache, open_images
from models import clip, linear
from util import devices, distributed
from util.files import writable_folder
from util.settings import with_settings
from util.signals import Stop


def main(argv: list[str] | None = None) -> dict:
    """Run one training from the command line `argv` (None: the process's own).

    returns  the result, as in test.json: best_epoch, val_mAP and test_mAP in percent, folder, ...; without images to
             validate or test on, or without their labels, it lacks the score
    Raises UserError for a user's mistake, Interrupted for SIGINT and SIGTERM.
    """
    # Settings
    config = settings.parse(argv)
    device = devices.pick_device(config.gpu)
    distributed.initialize(device)
    phases = [config]
    if config.mode == "linear_init":  # the linear head is a run of its own, which others may share
        phases.insert(0, replace(settings.linear_phase(config), resume=True, overwrite=False))
    for phase in phases:
        if phase.batch_size % distributed.world_size():
            option = "--linear-batch-size" if phase.mode == "linear" else "--batch-size"
            raise UserError(
                f"{option} {phase.batch_size} cannot be divided evenly among {distributed.world_size()} processes; "
                "start a number of them that divides it (torchrun --nproc-per-node), or change it"
            )
    if config.deterministic:
        devices.make_deterministic()
    devices.set_threads(config.threads)
    precision = devices.pick_precision(config.precision, device)
    phases = [replace(phase, precision=precision) for phase in phases]
    if len(phases) > 1 and run_folder.load_result(phases[-1]):
        phases = phases[-1:]
    elif len(phases) > 1 and config.overwrite and not run_folder.load_result(phases[0]):
        phases[0] = replace(phases[0], resume=False, overwrite=True)  # what is there may be broken
    with Stop() as stop:
        for phase in phases:
            result = train_and_test(phase, device, stop, wait=phase is not phases[-1])
            stop.raise_if_asked_anywhere()
    distributed.shut_down()
    return result


def train_and_test(config: Config, device: torch.device, stop: Stop, wait: bool = False) -> dict:
    """One run of these settings, or its result where it is finished already.

    wait  for another process that is making the same run
    """
    workers, others = config.workers or devices.default_workers(), devices.OtherPrograms()

    # Data
    datasets.prepare(config.folder)
    cache = writable_folder(config.cache_folder, "--cache-root")
    how = dict(image_root=config.image_root, skip_missing=config.skip_missing)
    try:
        splits = datasets.load(config.folder, cache=cache, **how)
    except UserError as error:  # the images are gone, say, which a finished run needs no more
        if not (result := run_folder.load_result(config)):
            raise
        print(f"note: the images are not compared with those that the run read ({error})")
    else:
        result = run_folder.load_result(config, splits)
    if result:
        score = f"test mAP {result['test_mAP']:.2f}" if "test_mAP" in result else "no test score"
        print(f"finished: {score} in {result['folder']} (--overwrite runs it again)")
        return result
    print(settings.show(config))
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.named().items())
    print(f"{config.dataset_name}: {counts} images, {len(splits.classes.names)} labels")
    supervision.check_labels(config, splits)
    writable_folder(Path(config.results_dir), "--results-dir")  # now, not after the teacher's pass
    selection = supervision.select(config, splits)

    # Pseudo-labels, once per image, before training; a method without a loss is the teacher alone
    ask = partial(supervision.make_pseudo_labels, config, splits.classes, cache=cache, device=device, workers=workers)
    if config.method.loss is None:
        return score_by_teacher(config, splits, selection, ask, device)
    pseudo, about_pseudo = supervision.pseudo_labels_of(config, splits, ask)

    # Images
    read = {name: split for name, split in splits.named().items() if split is not splits.test or splits.scored()}
    where = choose_cache(config.cache, list(read.values()), config.image_size, cache, device)
    images = {}
    for name, split in read.items():
        images[name] = open_images(split, config.image_size, where, cache, device, workers)
        if config.checks and where == "gpu":
            checks.resident_rows(images[name].kept, cache_file(split, config.image_size, cache))

    # Backbone and loss
    backbone = build_backbone(config, len(splits.train), len(splits.classes.names), device)
    model = backbone
    if config.mode == "linear":
        how = dict(batch_size=config.eval_batch_size, precision=config.precision, device=device)
        mirrored = {"train"} if config.flip > 0 else set()
        for name, split in read.items():
            seen = dict(mirrored=name in mirrored, **how)
            images[name] = linear.features(backbone, config.model, split, images[name], cache, **seen)
        model = linear.Probe(linear.head_of(backbone))
    data = engine.TrainingSet.on(device, images["train"], splits.train, pseudo)
    loss = losses.build(config.loss, settings.facts(config), data.observed)
    augmentation = Augmentation(**{name: getattr(config, name) for name in vars(Augmentation())})
    more = dict(augmentation=augmentation, checked=config.checks)
    training = with_settings(engine.Training, vars(config) | more)(model, loss, data)
    print(devices.describe(device, config.precision, config.cuda_graph, where))
    check_start(config, model, images["train"], others, device)

    # Train and validate
    with run_folder.open_run(config, splits, device, wait) as run, stop.deferred():
        run.restore(training)
        if about_pseudo:
            run.keep_pseudo_labels(about_pseudo)
        validation = images.get("validation")
        training.fit(validation, selection.score, run, stop, config.checkpoint_minutes, config.select)

        # Thresholds, then the test, once, from the chosen epoch (differs: published after every epoch)
        run.load_best(training.evaluated)
        val_probs, probs = (
            training.predict(images[name], name, stop.raise_if_asked_anywhere).cpu().numpy() if split else None
            for name, split in (("validation", splits.val), ("test", splits.scored()))
        )
        whole = training.evaluated
        if config.mode == "linear":
            whole = linear.with_head(backbone, whole.network)
        trained = (whole, training.history, about_pseudo and about_pseudo["quality"])
        thresholds = selection.thresholds(val_probs)
        return finish(config, splits, run, probs, training.best, selection.chosen_by, thresholds, *trained)


def score_by_teacher(
    config: Config, splits: datasets.Splits, selection: supervision.Selection, ask: Callable, device: torch.device
) -> dict:
    """The run of a teacher alone: its scores of the test images are the predictions."""
    with run_folder.open_run(config, splits, device) as run:
        val_probs, probs = (None if part is None else ask(part)[0] for part in (splits.val, splits.scored()))
        best = {"epoch": 0, "val_mAP": None if val_probs is None else selection.score(val_probs)}
        chosen_by = "nothing: there is no epoch"
        return finish(config, splits, run, probs, best, chosen_by, selection.thresholds(val_probs))


def build_backbone(config: Config, num_train: int, num_labels: int, device: torch.device) -> models.Backbone:
    """The backbone on the device, as training begins: with new or published weights, or with the head that a linear
    run has trained."""
    torch.manual_seed(config.seed)
    smallest_batch = 2 if config.mode == "linear" else num_train % config.batch_size or config.batch_size
    if device.type == "cpu":  # on GPUs batch norm sees the whole batch
        smallest_batch = max(1, smallest_batch // distributed.world_size())
    build = with_settings(models.build, vars(config) | {"smallest_batch": smallest_batch})
    backbone = build(config.model, num_labels).to(device, memory_format=torch.channels_last)
    if config.mode == "linear_init":
        first = Path(config.results_dir) / run_folder.run_name(settings.linear_phase(config))
        linear.load_head(backbone, first / "model.safetensors")
    return backbone


def check_start(
    config: Config,
    model: models.Backbone,
    train: Images | linear.Features,
    others: devices.OtherPrograms,
    device: torch.device,
) -> None:
    """Compare what a GPU computes with the CPU; on a CPU say whether other programs use its cores."""
    if config.checks and device.type == "cuda":
        two = next(iter(train.stream([torch.arange(min(2, len(train)))], device)))
        checks.outputs(model, two, config.precision)
    if device.type == "cpu" and (note := devices.crowded(others.busy(), os.cpu_count(), torch.get_num_threads())):
        print(note)


def finish(
    config: Config,
    splits: datasets.Splits,
    run: run_folder.Run,
    probs: np.ndarray | None,
    best: dict,
    chosen_by: str,
    thresholds: tuple[np.ndarray, str],
    model: models.Backbone | None = None,
    history: list[dict] | None = None,
    quality: dict | None = None,
) -> dict:
    """Score the test images, write and print the result, and return it.

    probs           (N, L) float, of the test images; None: there are none, or their labels are not known
    best            the chosen epoch and its validation mAP
    thresholds      (L,), and by what they were chosen
    model, history  the chosen epoch's weights, and all epochs; None: nothing was trained
    quality         of the pseudo-labels
    """
    names, read = splits.classes.names, settings.effective_settings(config)
    test, scores, predictions, per_class = splits.scored(), {}, None, None
    if test is not None:
        scores = {f"test_{name}": value for name, value in metrics.evaluate(probs, test.true, thresholds[0]).items()}
        predictions = {"images": test.names, "probs": probs, "labels": test.true}
        per_class = metrics.per_class(probs, test.true, names, thresholds[0])
    result = {
        **{name: read[name] for name in ("loss", "model", "seed", "dataset", "mode") if name in read},
        "best_epoch": best["epoch"],
        "chosen_by": chosen_by,
        "thresholds_chosen_by": thresholds[1],
        **({} if best["val_mAP"] is None else {"val_mAP": best["val_mAP"]}),
        **scores,
        **{f"{name}_images": len(split) for name, split in splits.named().items()},
        "pseudo_labels": quality,
        "folder": str(run.folder),
    }
    about = {
        **{name: getattr(config, name) for name in ("model", "head", "image_size", "precision")},
        "tower": clip.tower_config(config.model),
        "classes": names,
        "prompt_names": splits.classes.prompt_names,
        "thresholds": thresholds[0].tolist(),
        "dataset": config.dataset_name,
        "method": config.loss,
        "paper": config.method.paper,
        "result": {name: value for name, value in result.items() if name != "folder"},
    }
    run.finish(result, history or [], model, about, predictions, per_class)
    validated = f" (val mAP {result['val_mAP']:.2f})" if "val_mAP" in result else ""
    epoch = (
        f"{'last' if chosen_by == supervision.LAST else 'best'} epoch {best['epoch']}"
        if history
        else "nothing was trained"
    )
    print(f"{epoch}{validated}: {metrics.summary(result)}")
    print(f"thresholds chosen by {thresholds[1]}")
    print(f"results: {run.folder}")
    return result


if __name__ == "__main__":
    run_script(main)
