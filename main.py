"""Train and evaluate a multi-label classifier from one known positive label per image.

    python main.py -d pascal -l EM_PL

Data set -> pseudo-labels -> images -> backbone and loss -> train and validate -> test once; `--help` lists all options.
"""

from util.errors import UserError, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import config as configuration
import datasets
import engine
import losses
import metrics
import models
import supervision
from config import Config
from datasets.images import Augmentation, Images, choose_cache, open_images
from datasets.pixels import accept_truncated
from models import checks, clip, linear
from runs import run_folder
from util import devices, distributed
from util.files import writable_folder
from util.settings import with_settings
from util.signals import Stop


def main(argv: list[str] | None = None) -> dict:
    """Run the command line `argv` (None: the process's own); returns the result of `run`."""
    return run(configuration.parse(argv))


def train(**given: object) -> dict:
    """The same from Python, with settings by their names: train(dataset="mine", loss="CTL", seed=0).

    Raises UserError for a user's mistake.
    """
    config = configuration.resolve(given)
    configuration.check(config)
    return run(config)


@dataclass
class Session:
    """What several runs in one process share.

    device  of all of them
    stop    whether SIGINT or SIGTERM has asked to stop
    memory  data, pseudo-labels and features, by what they depend on; None: nothing is kept from run to run
    """

    device: torch.device
    stop: Stop = field(default_factory=lambda: Stop())
    memory: dict | None = None

    def once(self, make: Callable[[], object], *key: object) -> object:
        """make(), or what it returned before for an equal key."""
        if self.memory is None:
            return make()
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


def run(config: Config) -> dict:
    """Train and test as the settings say, or find the result of a finished run.

    returns  the result, as in test.json: best_epoch, val_mAP and test_mAP in percent, folder, ...; a score is absent if
             there are no images to compute it from, or no labels
    Raises UserError for a user's mistake, Interrupted for SIGINT and SIGTERM.
    """
    session = Session(devices.pick_device(config.gpu))
    config = prepare_process(config, session.device)
    phases = [config]
    if config.mode == "linear_init" and not run_folder.load_result(config):  # runs may share the linear head's run
        first = replace(configuration.linear_phase(config), resume=True, overwrite=False)
        if config.overwrite and not run_folder.load_result(first):
            first = replace(first, resume=False, overwrite=True)
        phases = [first, config]
    for phase in phases:
        if phase.batch_size % distributed.world_size():
            option = "--linear-batch-size" if phase.mode == "linear" else "--batch-size"
            raise UserError(
                f"{option} {phase.batch_size} cannot be divided evenly among {distributed.world_size()} processes; "
                "start a number of them that divides it (torchrun --nproc-per-node), or change it"
            )
    with session.stop:
        for phase in phases:
            result = train_and_test(phase, session, wait=phase is not phases[-1])
            session.stop.raise_if_asked_anywhere()
    distributed.shut_down()
    return result


def prepare_process(config: Config, device: torch.device) -> Config:
    """Set up this process for runs of these settings; the settings with the precision of this device."""
    distributed.initialize(device)
    accept_truncated(config.truncated)
    if config.deterministic:
        devices.make_deterministic()
    devices.set_threads(config.threads)
    return replace(config, precision=devices.pick_precision(config.precision, device))


def train_and_test(config: Config, session: Session, wait: bool = False) -> dict:
    """One run.

    wait  wait if a different process is making the same run
    """
    # A finished run needs no images
    if result := run_folder.load_result(config):
        score = f"test mAP {result['test_mAP']:.2f}" if "test_mAP" in result else "no test score"
        print(f"finished: {score} in {result['folder']} (--overwrite runs it again)")
        return result

    # Data
    print(configuration.show(config))
    splits, selection = load_data(config, session)
    if config.method.loss is None:
        return score_by_teacher(config, session, splits, selection)

    # Pseudo-labels, images, backbone and loss
    prepared = prepare_training(config, session, splits)
    training, images = prepared.training, prepared.images
    if config.checks and session.device.type != "cpu":
        two = next(iter(images["train"].stream([torch.arange(min(2, len(splits.train)))], session.device)))
        checks.outputs(training.model, two, config.precision)

    # Train and validate
    with run_folder.open_run(config, splits, session.device, wait) as folder, session.stop.deferred():
        folder.restore(training)
        if prepared.quality:
            folder.keep_pseudo_labels(prepared.quality)
        validation = images.get("validation")
        training.fit(validation, selection.score, folder, session.stop, config.checkpoint_minutes, config.select)

        # Thresholds, then the test, once, from the chosen epoch (differs: published after every epoch)
        folder.load_best(training.evaluated)
        val_probs, probs = (
            training.predict(images[name], name, session.stop.raise_if_asked_anywhere).cpu().numpy() if split else None
            for name, split in (("validation", splits.val), ("test", splits.scored()))
        )
        return finish(config, splits, selection, folder, val_probs, probs, prepared)


def load_data(config: Config, session: Session) -> tuple[datasets.Splits, supervision.Selection]:
    """The data set's splits, and what chooses epoch and thresholds; prints what the splits hold, and checks that they
    suffice for the method."""
    datasets.prepare(config.folder)
    writable_folder(config.cache_folder, "--cache-root")
    options = dict(image_root=config.image_root, skip_missing=config.skip_missing, draw=config.draw)
    options["need_images"] = not config.features
    make = partial(datasets.load, config.folder, **options)
    splits = session.once(make, "splits", config.folder, *options.values())
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.named().items())
    print(f"{config.dataset_name}: {counts} images, {len(splits.classes.names)} labels")
    known = supervision.known_labels(splits.train)
    true = "" if known["true"] is None else f" ({known['true']:.1f} true)"
    print(f"known labels per image: {known['positive']:.2f} positive, {known['negative']:.2f} negative{true}")
    supervision.check_labels(config, splits)
    writable_folder(Path(config.results_dir), "--results-dir")  # now, not after the teacher's pass
    return splits, supervision.select(config, splits)


@dataclass
class Prepared:
    """What a run trains with.

    training  its network is the whole backbone, or in a linear run the head alone
    images    of the splits that are read, or their features
    backbone  the whole network
    quality   content of pseudo_labels.json; None without a teacher
    """

    training: engine.Training
    images: dict[str, Images | linear.Features]
    backbone: models.Backbone
    quality: dict | None

    def whole(self) -> models.Backbone:
        """The whole network with the weights that were validated."""
        evaluated = self.training.evaluated
        return evaluated if self.training.model is self.backbone else linear.with_head(self.backbone, evaluated.network)


def prepare_training(config: Config, session: Session, splits: datasets.Splits) -> Prepared:
    """Pseudo-labels, images or features, backbone and loss."""
    device, workers = session.device, config.workers or devices.default_workers()
    runtime = dict(cache=config.cache_folder, device=device, workers=workers)

    # Pseudo-labels, once per image, before training
    make = partial(supervision.pseudo_labels_of, config, splits, **runtime)
    pseudo, quality = session.once(make, "pseudo-labels", *supervision.depends_on(config)) or (None, None)

    # Images, decoded or read as --cache chooses, and the backbone; a linear run trains a head on features instead
    read = {name: split for name, split in splits.named().items() if split is not splits.test or splits.scored()}
    num_labels = len(splits.classes.names)
    if config.features:
        place, images = "features", {}
        for name, split in read.items():
            make = partial(linear.load_features, config.features, split, device)
            images[name] = session.once(make, "given features", config.folder, config.features, name)
        torch.manual_seed(config.seed)
        model = backbone = linear.new_probe(images["train"], num_labels).to(device)
    else:
        place = choose_cache(config.cache, list(read.values()), config.image_size, config.cache_folder, device, workers)
        images = {
            name: open_images(split, config.image_size, place, config.cache_folder, device, workers)
            for name, split in read.items()
        }
        model = backbone = build_backbone(config, len(splits.train), num_labels, device)
    if config.mode == "linear" and not config.features:
        weights = linear.weights_identity(config.model, config.weights, config.pretrained, config.seed)
        options = dict(batch_size=config.eval_batch_size, precision=config.precision, device=device, weights=weights)
        for name, split in read.items():
            mirrored = name == "train" and config.flip > 0
            make = partial(linear.features, backbone, split, images[name], config.cache_folder)
            make = partial(make, mirrored=mirrored, **options)
            key = ("features", config.folder, name, str(weights))
            images[name] = session.once(make, *key, config.image_size, mirrored, config.precision, config.skip_missing)
        model = linear.Probe(linear.head_of(backbone))

    # Loss
    data = engine.TrainingSet.on(device, images["train"], splits.train, pseudo)
    loss = losses.build(config.loss, configuration.facts(config), data.observed)
    augmentation = Augmentation(**{name: getattr(config, name) for name in vars(Augmentation())})
    training = with_settings(engine.Training, vars(config) | {"augmentation": augmentation})(model, loss, data)
    print(devices.describe(device, config.precision, place))
    return Prepared(training, images, backbone, quality)


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
        linear.load_head(backbone, run_folder.folder_of(configuration.linear_phase(config)))
    return backbone


def score_by_teacher(
    config: Config, session: Session, splits: datasets.Splits, selection: supervision.Selection
) -> dict:
    """The run of a teacher alone: its scores of the test images are the predictions."""
    workers = config.workers or devices.default_workers()
    runtime = dict(cache=config.cache_folder, device=session.device, workers=workers)
    with run_folder.open_run(config, splits, session.device) as folder:
        val_probs, probs = (
            supervision.make_pseudo_labels(config, splits.classes, part, **runtime)[0] if part is not None else None
            for part in (splits.val, splits.scored())
        )
        return finish(config, splits, selection, folder, val_probs, probs)


def finish(
    config: Config,
    splits: datasets.Splits,
    selection: supervision.Selection,
    run: run_folder.Run,
    val_probs: np.ndarray | None,
    probs: np.ndarray | None,
    prepared: Prepared | None = None,
) -> dict:
    """Score the test images, write and print the result, and return it.

    val_probs, probs  (N, L) float, of the validation and the test images; None: there are none, or their labels are
                      not known
    prepared          what was trained; None: the teacher alone was scored
    """
    names, read, test = splits.classes.names, configuration.effective_settings(config), splits.scored()
    thresholds, thresholds_by = selection.thresholds(val_probs)
    if prepared:
        best, history, model = prepared.training.best, prepared.training.history, prepared.whole()
        quality = prepared.quality and prepared.quality["quality"]
    else:
        best = {"epoch": 0, "val_mAP": None if val_probs is None else selection.score(val_probs)}
        history, model, quality = [], None, None
    scores, predictions, per_class = {}, None, None
    if test is not None:
        found = metrics.evaluate(probs, test.true, thresholds)
        scores = {f"test_{name}": value for name, value in found.items()}
        predictions = {"images": test.names, "probs": probs, "labels": test.true}
        per_class = metrics.per_class(probs, test.true, names, thresholds)
    known = supervision.known_labels(splits.train)
    result = {
        **{name: read[name] for name in ("loss", "model", "seed", "dataset", "mode") if name in read},
        "best_epoch": best["epoch"],
        "chosen_by": selection.chosen_by,
        "thresholds_chosen_by": thresholds_by,
        **({} if best["val_mAP"] is None else {"val_mAP": best["val_mAP"]}),
        **scores,
        **{f"{name}_images": len(split) for name, split in splits.named().items()},
        "known_labels": known,
        "published": supervision.published_score(config, known),
        "pseudo_labels": quality,
        "folder": str(run.folder),
    }
    metadata = {
        **{name: getattr(config, name) for name in ("model", "head", "image_size", "precision")},
        "tower": clip.tower_config(config.model),
        "classes": names,
        "prompt_names": splits.classes.prompt_names,
        "thresholds": thresholds.tolist(),
        "dataset": config.dataset_name,
        "method": config.loss,
        "paper": config.method.paper,
        "result": {name: value for name, value in result.items() if name != "folder"},
    }
    run.finish(result, history, model, metadata, predictions, per_class)
    validated = f" (val mAP {result['val_mAP']:.2f})" if "val_mAP" in result else ""
    epoch = f"{'best' if selection.by_score else 'last'} epoch {best['epoch']}" if history else "nothing was trained"
    print(f"{epoch}{validated}: {metrics.summary(result)}")
    print(f"thresholds chosen by {thresholds_by}")
    print(f"results: {run.folder}")
    return result


if __name__ == "__main__":
    run_script(main)
