"""What a run learns from, and what chooses its epoch and its thresholds: pseudo-labels, and validation labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import datasets
import metrics
from config import TEACHER, Config, default_settings, effective_settings, group
from pseudo_labels import label_quality, rules
from util.errors import UserError


def known_labels(split: datasets.MultiLabelDataset) -> dict[str, float | None]:
    """Mean number of known positive, known negative and true labels of an image; true: None if these are not known."""
    positive, negative = ((split.observed == sign).sum(axis=1).mean() for sign in (1, -1))
    true = None if split.true is None else float(split.true.sum(axis=1).mean())
    return {"positive": float(positive), "negative": float(negative), "true": true}


def published_score(config: Config, known: dict[str, float | None]) -> float | None:
    """The published test mAP that this run repeats; None if a setting is not the default for its method and data set,
    if the known labels depart from the protocol, or if no number was published."""
    run, default = effective_settings(config), default_settings(config)
    same = all(run.get(name) == default.get(name) for name in (run.keys() | default.keys()) - {"seed", "precision"})
    as_published = config.method.oracle or (known["positive"] <= 1 and known["negative"] == 0)
    return config.method.published.get(config.dataset_name) if same and as_published else None


def check_labels(config: Config, splits: datasets.Splits) -> None:
    """Raises UserError if the data set lacks labels that the method reads."""
    if config.method.oracle and splits.train.true is None:
        raise UserError(
            f"{config.loss} reads the full labels of the training images, and {config.dataset_name} has observed ones "
            f"only; use a method that needs no more, such as -l {Config.loss} or -l an"
        )
    if config.method.check_labels:
        config.method.check_labels(splits.train.observed)


def similarities_of(
    config: Config,
    classes: datasets.Classes,
    split: datasets.MultiLabelDataset,
    *,
    cache: Path,
    device: torch.device,
    workers: int,
) -> list[np.ndarray]:
    """The teacher's similarities of a split's images, for each of its views."""
    options = dict(batch_size=config.eval_batch_size, device=device, workers=workers, checked=config.checks)
    return config.asked_teacher().similarities(split, classes, cache, **options)


def calibration_of(config: Config) -> str:
    """--calibrate; none for a method that trains nothing: a teacher alone reads no label."""
    return config.calibrate if config.method.loss else "none"


def depends_on(config: Config) -> tuple:
    """What pseudo-labels depend on, beside the images and their labels: hashable."""
    rule = config.method.pseudo_labels
    if rule is None:
        return (None,)
    teacher = {name: value for name, value in effective_settings(config).items() if name in group(TEACHER)}
    values = {name: config.hparams[name] for name in rule.settings}
    return (
        config.folder,
        config.draw,
        config.skip_missing,
        rule.label.__name__,
        repr(sorted((teacher | values).items())),
    )


def make_pseudo_labels(
    config: Config, classes: datasets.Classes, split: datasets.MultiLabelDataset, **runtime: object
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pseudo-labels (N, L) of a split's images by the method's rule, the scores (N, L) that they are made of, and
    messages to print.

    runtime  cache, device and workers, as in similarities_of
    """
    views = similarities_of(config, classes, split, **runtime)
    rule, options = config.method.pseudo_labels, dict(calibration=calibration_of(config), pool=config.teacher_pool)
    pseudo, scores, notes = rules.make(rule, config.hparams, views, split.observed, **options)
    return pseudo, scores, notes + rules.warnings(views, split.observed)


def pseudo_labels_of(
    config: Config, splits: datasets.Splits, **runtime: object
) -> tuple[np.ndarray | None, dict | None]:
    """(N, L) pseudo-labels of the training images, and the content of pseudo_labels.json: their quality, also at other
    thresholds. None and None for a method without a teacher."""
    if config.method.pseudo_labels is None:
        return None, None
    train = splits.train
    pseudo, scores, notes = make_pseudo_labels(config, splits.classes, train, **runtime)
    quality = label_quality.describe(pseudo, scores, train.observed, train.true)
    print("\n".join([label_quality.table(quality), *notes]))
    threshold = config.method.pseudo_labels.threshold(config.hparams)
    counts = label_quality.count(scores, train.observed, train.true, [threshold] if threshold else [])
    metadata = {"settings": config.hparams | {"calibrate": config.calibrate}, "quality": quality}
    expected = splits.positives_per_image() or 1.0
    return pseudo, metadata | label_quality.as_json(counts, splits.classes.names, threshold, expected)


@dataclass(frozen=True)
class Selection:
    """What chooses the epoch and the thresholds.

    chosen_by  in words, as in test.json
    clean      whether the validation labels are all true ones, or the observed positives with everything else as
               negative (Cole et al. 2021, appendix)
    labels     (N, L) in {0, 1} of the validation images; None: there are none
    """

    chosen_by: str
    clean: bool
    labels: np.ndarray | None
    num_labels: int
    by_score: bool = False  # whether validation mAP chooses the epoch, and not its number

    def score(self, probs: np.ndarray) -> float:
        """mAP of the validation images, in percent, from (N, L) probabilities."""
        return metrics.mean_average_precision(probs, self.labels)

    def thresholds(self, probs: np.ndarray | None) -> tuple[np.ndarray, str]:
        """(L,) probabilities from which on a label counts as present, chosen on validation; and by what, in words.

        Losses that leave unknown labels free rank labels; their probabilities are not calibrated at 0.5.
        """
        if probs is None:
            return np.full(self.num_labels, 0.5), "nothing: 0.5, because there are no validation images"
        return metrics.choose_thresholds(probs, self.labels == 1, complete=self.clean)


def select(config: Config, splits: datasets.Splits) -> Selection:
    """By --select and --val-labels, and by what is known of the validation images."""
    val, num_labels = splits.val, len(splits.classes.names)
    chosen_by = "nothing: there is no epoch" if config.method.loss is None else "the last epoch"
    if val is None:
        return Selection(chosen_by, False, None, num_labels)
    clean = config.val_labels == "clean" and val.true is not None
    if config.val_labels == "clean" and not clean:
        print("validation labels: the observed ones, for the full ones are not known")
    by_score = config.method.loss is not None and config.select == "best"
    if by_score:
        chosen_by = f"validation mAP on {'clean' if clean else 'observed'} labels"
    return Selection(chosen_by, clean, val.true if clean else val.observed == 1, num_labels, by_score)
