"""Train and evaluate a multi-label classifier from one known positive label per image.

    python main.py -d pascal -l EM_PL

Data set -> pseudo-labels -> images -> backbone and loss -> train and validate -> test once; `--help` lists all options.
"""

from util.errors import UserError, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import checks
import config as settings
import datasets
import engine
import label_quality
import losses
import metrics
import models
import pseudo_labels
import run_folder
from config import Config
from datasets.images import Augmentation, Images, cache_file, open_images, where_kept
from models import linear, teachers
from util import devices, distributed
from util.files import writable_folder
from util.signals import Stop

LAST = "the last epoch"
RECALL = 0.9  # of the known positives, where thresholds are chosen by them alone: no false positive can be counted


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
    if config.batch_size % distributed.world_size():
        option = "--linear-batch-size" if config.mode == "linear" else "--batch-size"
        raise UserError(
            f"{option} {config.batch_size} cannot be divided evenly among {distributed.world_size()} processes; "
            "start a number of them that divides it (torchrun --nproc-per-node), or change it"
        )
    if config.deterministic:
        devices.make_deterministic()
    devices.set_threads(config.threads)
    config = replace(config, precision=devices.pick_precision(config.precision, device))
    if config.mode == "linear_init" and not run_folder.finished(config):  # a run of its own, which others may share
        train_and_test(settings.linear_phase(config), device)
    result = train_and_test(config, device)
    distributed.shut_down()
    return result


def train_and_test(config: Config, device: torch.device) -> dict:
    """One run of these settings, or its result where it is finished already."""
    workers = config.workers or devices.default_workers()
    known = datasets.DATASETS.get(config.dataset_name)
    if known and known.make:
        known.make(config.folder)
    others = devices.OtherPrograms()

    with Stop() as stop:
        # Data
        cache = writable_folder(config.cache_folder, "--cache-root")
        how = dict(image_root=config.image_root, skip_missing=config.skip_missing)
        splits = datasets.load(config.folder, cache=cache, **how)
        if result := run_folder.finished(config, splits):
            score = f"test mAP {result['test_mAP']:.2f}" if "test_mAP" in result else "no test score"
            print(f"finished: {score} in {result['folder']} (--overwrite runs it again)")
            return result
        print(settings.show(config))
        names = splits.classes.names
        counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.named().items())
        print(f"{config.dataset_name}: {counts} images, {len(names)} labels")
        check_labels(config, splits)
        writable_folder(Path(config.results_dir), "--results-dir")  # now, not after the teacher's pass
        chosen_by, val_kind, val_labels = selection(config, splits.val)

        def score(probs: np.ndarray) -> float:
            return metrics.mean_average_precision(probs, val_labels)

        # A teacher alone: its scores are the predictions, and nothing is trained
        if config.method.loss is None:
            with run_folder.open_run(config, splits, device) as run:
                parts = (splits.val, splits.scored())
                val_probs, probs = (
                    None if part is None else ask_teacher(config, part, splits.classes, cache, device, workers)[0]
                    for part in parts
                )
                best = {"epoch": 0, "val_mAP": None if val_probs is None else score(val_probs)}
                thresholds = choose_thresholds(val_probs, val_labels, val_kind, len(names))
                return finish(config, splits, run, probs, best, "nothing: there is no epoch", thresholds)

        # Pseudo-labels, once per image, before training
        pseudo, about_pseudo = None, None
        if config.method.pseudo_labels:
            pseudo, about_pseudo = make_pseudo_labels(config, splits, cache, device, workers)

        # Images
        where = where_kept(config.cache, list(splits.named().values()), config.image_size, cache, device)
        images = {
            name: open_images(split, config.image_size, where, cache, device, workers)
            for name, split in splits.named().items()
        }
        if config.checks and where == "gpu":
            for name, split in splits.named().items():
                checks.resident_rows(images[name].kept, cache_file(split, config.image_size, cache))

        # Backbone and loss
        torch.manual_seed(config.seed)
        smallest_batch = len(splits.train) % config.batch_size or config.batch_size
        if device.type == "cpu":  # on GPUs batch norm sees the whole batch
            smallest_batch = max(1, smallest_batch // distributed.world_size())
        backbone = models.build(
            config.model,
            len(names),
            image_size=config.image_size,
            pretrained=config.pretrained,
            weights=config.weights,
            head=config.head,
            smallest_batch=smallest_batch,
        ).to(device, memory_format=torch.channels_last)
        if config.mode == "linear_init":
            first = Path(config.results_dir) / run_folder.run_name(settings.linear_phase(config))
            run_folder.load_best(first, linear.Probe(linear.head_of(backbone)))
        if config.mode == "linear":
            images = frozen_features(config, backbone, splits, images, cache, device)
        model = linear.Probe(linear.head_of(backbone)) if config.mode == "linear" else backbone
        train, val = images["train"], images.get("validation")
        data = engine.TrainingSet.on(device, train, splits.train, pseudo)
        training = engine.Training(
            model,
            losses.build(config.loss, settings.facts(config), data.observed),
            data,
            epochs=config.epochs,
            lr=config.lr,
            head_rate=config.head_rate,
            optimizer=config.optimizer,
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            ema=config.ema,
            augmentation=Augmentation(config.crop, config.randaugment),
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            seed=config.seed,
            flip=config.flip,
            precision=config.precision,
            cuda_graph=config.cuda_graph,
            checked=config.checks,
        )
        print(devices.describe(device, config.precision, config.cuda_graph, where))
        if config.checks and device.type == "cuda":
            checks.logits(model, next(iter(train.stream([torch.arange(min(2, len(train)))], device))), config.precision)
        if device.type == "cpu" and (note := devices.crowded(others.busy(), os.cpu_count(), torch.get_num_threads())):
            print(note)

        # Train and validate
        with run_folder.open_run(config, splits, device) as run, stop.deferred():
            run.restore(training)
            if about_pseudo:
                run.keep_pseudo_labels(about_pseudo)
            training.fit(val, score, run, stop, config.checkpoint_minutes, config.select)

            # Thresholds, then the test, once, from the chosen epoch (differs: published after every epoch)
            run.load_best(training.evaluated)
            val_probs, probs = (
                training.predict(images[name], name, stop.raise_if_asked_anywhere).cpu().numpy() if split else None
                for name, split in (("validation", splits.val), ("test", splits.scored()))
            )
            thresholds = choose_thresholds(val_probs, val_labels, val_kind, len(names))
            if config.mode == "linear":
                whole = linear.with_head(backbone, training.evaluated.network)
            else:
                whole = training.evaluated
            trained = (whole, training.history, about_pseudo and about_pseudo["quality"])
            return finish(config, splits, run, probs, training.best, chosen_by, thresholds, *trained)


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
    names, test, scores, predictions, per_class = splits.classes.names, splits.scored(), {}, None, None
    if test is not None:
        scores = {f"test_{name}": value for name, value in metrics.evaluate(probs, test.true, thresholds[0]).items()}
        predictions = {"images": test.names, "probs": probs, "labels": test.true}
        per_class = metrics.per_class(probs, test.true, names)
    result = {
        **{name: getattr(config, name) for name in ("loss", "model", "seed")},
        "dataset": config.dataset_name,
        "mode": config.mode,
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
    epoch = f"{'last' if chosen_by == LAST else 'best'} epoch {best['epoch']}" if history else "nothing was trained"
    print(f"{epoch}{validated}: {metrics.summary(result)}")
    print(f"results: {run.folder}")
    return result


def frozen_features(
    config: Config,
    backbone: models.Backbone,
    splits: datasets.Splits,
    images: dict[str, Images],
    cache: Path,
    device: torch.device,
) -> dict[str, linear.Features]:
    """What the backbone makes of the images of each split, computed once and cached; of the training images, where
    they are to be flipped, also of the mirrored ones."""
    how = dict(batch_size=config.eval_batch_size, precision=config.precision, device=device)
    return {
        name: linear.features(
            backbone, config.model, split, images[name], cache, mirrored=name == "train" and config.flip > 0, **how
        )
        for name, split in splits.named().items()
    }


def check_labels(config: Config, splits: datasets.Splits) -> None:
    """Raises UserError where the method reads labels that the data set does not have, before anything is computed."""
    if config.method.oracle and splits.train.true is None:
        raise UserError(
            f"{config.loss} reads the full labels of the training images, and {config.dataset_name} has observed ones "
            f"only; take a method that needs no more, such as -l {Config.loss} or -l an"
        )
    if config.method.check_labels:
        config.method.check_labels(splits.train.observed)


def selection(config: Config, val: datasets.MultiLabelDataset | None) -> tuple[str, str, np.ndarray | None]:
    """What chooses the epoch, in words; which validation labels do, clean or observed; and these labels, (N, L) in
    {0, 1}: all true ones, or the observed positives with everything else as negative (Cole et al. 2021, appendix)."""
    if val is None:
        return LAST, "", None
    clean = config.val_labels == "clean" and val.true is not None
    if config.val_labels == "clean" and not clean:
        print("validation labels: the observed ones, for the full ones are not known")
    kind = "clean" if clean else "observed"
    chosen_by = f"validation mAP on {kind} labels" if config.select == "best" else LAST
    return chosen_by, kind, val.true if clean else val.observed == 1


def choose_thresholds(
    probs: np.ndarray | None, labels: np.ndarray | None, kind: str, num_labels: int
) -> tuple[np.ndarray, str]:
    """(L,) probabilities from which on a label counts as present, chosen on validation; and by what, in words.

    Losses that leave unknown labels free put an absent label anywhere below a present one, rarely below 1/2.
    """
    if probs is None:
        return np.full(num_labels, 0.5), "nothing: 0.5, for there are no validation images"
    if kind == "clean":
        return metrics.f1_thresholds(probs, labels), "F1 on clean validation labels"
    return metrics.recall_thresholds(probs, labels == 1, RECALL), f"recall {RECALL} of the known validation positives"


def make_pseudo_labels(
    config: Config, splits: datasets.Splits, cache: Path, device: torch.device, workers: int
) -> tuple[np.ndarray, dict]:
    """(N, L) pseudo-labels of the training images, by the method's rule; and what pseudo_labels.json keeps: how good
    they are, also at other thresholds."""
    train = splits.train
    pseudo, scores, notes = ask_teacher(config, train, splits.classes, cache, device, workers)
    quality = pseudo_labels.describe(pseudo, scores, train.observed, train.true)
    if train.true is None:
        notes = ["  precision, recall and mAP need the full labels of the training images, which are not known", *notes]
    print("\n".join([pseudo_labels.table(quality), *notes]))
    threshold = config.settings.get("threshold")
    counts = label_quality.count(scores, train.observed, train.true, [threshold] if threshold else [])
    about = {"settings": config.settings | {"calibrate": config.calibrate}, "quality": quality}
    expected = splits.positives_per_image() or 1.0
    return pseudo, about | label_quality.as_json(counts, splits.classes.names, threshold, expected)


def ask_teacher(
    config: Config,
    split: datasets.MultiLabelDataset,
    classes: datasets.Classes,
    cache: Path,
    device: torch.device,
    workers: int,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """By the rule of the method, from the (cached) similarities of a split's images: pseudo-labels (N, L), the scores
    (N, L) that they are made of, and lines to be told about them."""
    how = dict(batch_size=config.eval_batch_size, device=device, workers=workers, checked=config.checks)
    views = teachers.views(config.asked_teacher(), split, classes, cache, **how)
    rule, how = config.method.pseudo_labels, dict(calibration=config.calibrate, pool=config.teacher_pool)
    pseudo, scores, notes = pseudo_labels.make(rule, config.settings, views, split.observed, **how)
    return pseudo, scores, notes + pseudo_labels.warnings(pseudo, views)


if __name__ == "__main__":
    run_script(main)
