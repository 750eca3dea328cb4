"""Every setting of a run: the common ones below, and those that the methods' records declare.

A value is taken from the command line, else from the method (for this data set), else from the data set, else from the
backbone, else from the default. `parse` does this once; the result is frozen and saved with the run.
"""

import argparse
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import losses
import models
from calibration import CALIBRATIONS
from datasets import DATASETS
from datasets import check_name as check_dataset
from datasets.images import Augmentation
from losses import LOSSES, Method
from models import BACKBONES, teachers
from util.errors import OneLineParser, UserError, torchrun_rank
from util.files import local_file
from util.settings import Setting, flag, keywords

WHAT, TRAINING, TEACHER, METHOD, RUN = (
    "what is trained",
    "training",
    "teacher",
    "settings of single methods",
    "where and how it runs (no part of a run's identity)",
)


def option(group: str, *setting: object, **more: object) -> object:
    """A dataclass field that is a command-line option; the rest as for Setting."""
    setting = Setting(*setting, **more)
    return field(default=setting.default, metadata={"group": group, "setting": setting})


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = option(WHAT, "pascal", "data set: a known one, or a folder of formatted files by its name below the data root or by its path", flags=("-d",))
    loss: str = option(WHAT, "EM_PL", "method", flags=("-l",), choices=tuple(LOSSES))
    model: str = option(WHAT, "resnet50", "backbone; timm:NAME for any of timm, clip:NAME:TAG for any image tower of open_clip, teacher for that of --teacher", flags=("-m",))
    seed: int = option(WHAT, 0, "seed of initialisation, order and flips", "[0, 4294967296)", flags=("-s", "--pytorch_seed"))

    mode: str = option(TRAINING, "end_to_end", "train everything; or a linear head on the features of the frozen backbone; or that first, then everything from there", choices=("end_to_end", "linear", "linear_init"))
    linear_epochs: int = option(TRAINING, 25, "epochs in which the linear head is trained alone; Cole et al.: 25", "[1, inf)", metavar="EPOCHS")
    linear_batch_size: int = option(TRAINING, 64, "images per step of the linear head alone; Cole et al.: 8 or 16, which take as long a step", "[1, inf)", metavar="IMAGES")
    linear_lr: float = option(TRAINING, 1e-3, "learning rate of the linear head alone; Cole et al. choose from 1e-2 to 1e-5", "(0, inf)", metavar="LR")
    epochs: int = option(TRAINING, 10, "passes over the training images; VLPL trains 10", "[1, inf)")
    batch_size: int = option(TRAINING, 8, "images per training step; VLPL: 8, and 6 for ViT-L", "[1, inf)", metavar="IMAGES")
    lr: float = option(TRAINING, 1e-5, "learning rate; where a schedule changes it, the highest", "(0, inf)")
    head_rate: float = option(TRAINING, 1.0, "learning rate of the classifier head, as a multiple of --lr", "(0, inf)", metavar="MULTIPLE")
    optimizer: str = option(TRAINING, "adam", "optimizer; sgd has momentum 0.9. VLPL: adam", choices=("adam", "adamw", "sgd"))
    weight_decay: float = option(TRAINING, 0.0, "weight decay of backbone and head; VLPL: none", "[0, inf)", metavar="DECAY")
    schedule: str = option(TRAINING, "constant", "learning rate over the steps: half a cosine to 0, or one cycle up and down. VLPL: constant", choices=("constant", "cosine", "onecycle"))
    ema: float = option(TRAINING, 0.0, "decay of a running average of the weights, which is then validated, chosen and tested (timm's ModelEmaV3, warmed up); 0: none", "[0, 1)", metavar="DECAY")
    head: str = option(TRAINING, "linear", "classifier head: linear on pooled features, or BoostLU's class activation maps (Kim et al. 2023), for backbones with feature maps", choices=models.HEADS)
    image_size: int = option(TRAINING, 448, "side of the square that images are squashed to, in pixels", "[1, 4096]", metavar="PIXELS")
    flip: float = option(TRAINING, 0.5, "probability that a training image is mirrored", "[0, 1]")
    crop: float = option(TRAINING, 1.0, "smallest share of its area that a random crop of a training image keeps; 1: no crops", "(0, 1]", metavar="SHARE")
    randaugment: int = option(TRAINING, 0, "magnitude of RandAugment's two operations on a training image, of 30 (its authors: 9); 0: none", "[0, 30]", metavar="MAGNITUDE")
    precision: str = option(TRAINING, "auto", "arithmetic of the backbone; auto: bf16 on GPUs that have it (from Ampere on), else float32. The teacher takes float16, except with float32", choices=("auto", "float32", "tf32", "bf16"))
    pretrained: bool = option(TRAINING, True, "start from the backbone's published weights")
    weights: str | None = option(TRAINING, None, "local checkpoint of the backbone, instead of the published weights", metavar="FILE")
    val_labels: str = option(TRAINING, "clean", "validation labels that choose the epoch: all true ones (where the data set has them), or the observed ones only", choices=("clean", "observed"))
    select: str = option(TRAINING, "best", "epoch whose weights are kept: the best by validation mAP, or the last", choices=("best", "last"))
    skip_missing: bool = option(TRAINING, False, "drop images that are not on the disk (after single positives and split are drawn)")

    teacher: str = option(TEACHER, teachers.DEFAULT, "open_clip model name, or FILE.json with an open_clip model config")
    teacher_weights: str = option(TEACHER, teachers.DEFAULT_WEIGHTS, "open_clip tag, or a local FILE")
    prompt: tuple[str, ...] = option(TEACHER, ("{}",), "caption of a class; {} stands for its prompt name; given more than once, the captions' normalised features are averaged; imagenet: CLIP's 80 templates for ImageNet")
    teacher_preprocess: str = option(TEACHER, "own", "own: the teacher's size, mean and std; reference: what the published code fed it", choices=("own", "reference"))
    text_features: str | None = option(TEACHER, None, "FILE.npy of (L, D) class text features, instead of the text tower", metavar="FILE")
    teacher_views: str = option(TEACHER, "global", "what the teacher scores: the whole image; with tiles or patches, each of these too", choices=tuple(teachers.VIEWS))
    teacher_tiles: int = option(TEACHER, 3, "tiles along each side of an image", "[2, 16]")
    teacher_pool: str = option(TEACHER, "max", "what the tiles of an image say together: their maximum or mean", choices=("max", "mean"))
    calibrate: str = option(TEACHER, "none", "whether the known labels calibrate the teacher's scores: by a factor and a bias of each label, or also by a matrix", choices=CALIBRATIONS)
    similarity: str | None = option(TEACHER, None, "FILE.npz with images, classes, similarity: another program's teacher", metavar="FILE")

    gpu: str = option(RUN, "0", "CUDA index, or cpu; under torchrun each process takes its own", flags=("-g",))
    workers: int | None = option(RUN, None, "threads that decode images; if not given, this process's part of the cores, 8 at most", "[1, 1024]")
    threads: int | None = option(RUN, None, "threads that compute on a CPU; if not given, PyTorch's own number. Another number changes the last bits of the results", "[1, 1024]")
    cache: str = option(RUN, "auto", "where decoded images are kept: on the GPU, in a file beside the data set, or nowhere", choices=("auto", "gpu", "disk", "none"))
    cuda_graph: bool = option(RUN, True, "replay the training step as a CUDA graph (on one GPU)")
    compile: bool = option(RUN, False, "train full batches through torch.compile, in a single process: minutes once, and other last bits of the results; needs a C++ compiler")
    checks: bool = option(RUN, True, "check for about a second at the start that a GPU computes what it should")
    deterministic: bool = option(RUN, False, "only algorithms that give the same numbers every time, on a GPU too; slower there")
    eval_batch_size: int = option(RUN, 64, "evaluation batch size", "[1, inf)", metavar="IMAGES")
    checkpoint_minutes: float = option(RUN, 10.0, "minutes between checkpoints inside an epoch", "[0, inf)")
    data_root: str = option(RUN, "data", "folder that holds the data sets", metavar="DIR")
    image_root: str | None = option(RUN, None, "where the images lie, if not where the formatted files say", metavar="DIR")
    cache_root: str | None = option(RUN, None, "folder for caches, if not the folder that holds the data set", metavar="DIR")
    results_dir: str = option(RUN, "results", "folder that holds the runs", metavar="DIR")
    tensorboard: bool = option(RUN, False, "write loss and validation mAP for TensorBoard too, into the run's folder")
    resume: bool = option(RUN, False, "continue an unfinished run of the same identity, if there is one")
    overwrite: bool = option(RUN, False, "start over, deleting what a run of the same identity left")
    # fmt: on
    hparams: dict[str, object] = field(default_factory=dict)  # of the method and its rule, by name

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        path = Path(self.dataset)
        return path if len(path.parts) > 1 or path.is_absolute() else Path(self.data_root) / path

    @property
    def dataset_name(self) -> str:
        return self.folder.resolve().name

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache_root or self.folder.parent) / self.dataset_name / "cache"

    @property
    def method(self) -> Method:
        return losses.find(self.loss)

    def asked_teacher(self) -> teachers.Teacher:
        """Who scores the images."""
        return teachers.find(vars(self))


COMMON = {entry.name: entry.metadata for entry in fields(Config) if "setting" in entry.metadata}


def parse(argv: list[str] | None = None) -> Config:
    """The command line as a Config. A mistake is one line on stderr and exit status 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        config = resolve(given)
        check(config)
    except UserError as error:
        parser.error(str(error))
    reasons = ignored_settings(config)
    if given.get("model") == "teacher":  # which names the backbone too
        reasons = {name: reason for name, reason in reasons.items() if name not in ("teacher", "teacher_weights")}
    for name in given:
        if name not in COMMON and name not in config.hparams:
            reasons[name] = f"the method {config.loss} does not read it"
        if name in reasons and given[name] is not False and torchrun_rank() == 0:
            print(f"note: {flag(name)} is ignored: {reasons[name]}", file=sys.stderr)
    return config


def resolve(given: dict[str, object]) -> Config:
    """The settings of a run, from those that were given."""
    asked = Config(**{name: given[name] for name in ("dataset", "data_root", "loss") if name in given})
    dataset, method = asked.dataset_name, asked.method
    of_dataset = DATASETS[dataset].settings if dataset in DATASETS else {}
    of_method = {name: values.get(dataset, values.get("*")) for name, values in method.recipe.items()}
    model = given.get("model", of_dataset.get("model", Config.model))
    model = models.ALIASES.get(model, model)
    of_model = {} if model == "teacher" else models.settings_of(model)
    common = of_model | of_dataset | {name: value for name, value in of_method.items() if value is not None}
    common |= {name: value for name, value in given.items() if name in COMMON}
    settings = {
        name: given.get(name, setting.by_dataset.get(dataset, setting.default))
        for name, setting in method.all_settings().items()
    }
    common["prompt"] = tuple(common.get("prompt", Config.prompt))
    config = Config(**common | {"model": model}, hparams=settings)
    if model == "teacher":
        config = with_the_teachers_tower(config, "image_size" in common)
    return linear_phase(config) if config.mode == "linear" else config


def with_the_teachers_tower(config: Config, sized: bool) -> Config:
    """-m teacher by its full name; sized: whether the image size was set, else it is the teacher's own."""
    size = {} if sized else models.settings_of(f"clip:{config.teacher}")
    if weights := config.weights or local_file(config.teacher_weights):
        return replace(config, model=f"clip:{config.teacher}", weights=str(weights), **size)
    return replace(config, model=f"clip:{config.teacher}:{config.teacher_weights}", pretrained=True, **size)


def linear_phase(config: Config) -> Config:
    """The run that trains the linear head alone."""
    how = dict(epochs=config.linear_epochs, batch_size=config.linear_batch_size, lr=config.linear_lr)
    return replace(config, mode="linear", head_rate=1.0, **vars(Augmentation()), **how)


def ignored_settings(config: Config) -> dict[str, str]:
    """The settings that cannot change this run's numbers, each with the reason."""
    reasons = {}
    if config.method.pseudo_labels is None:
        for name, about in COMMON.items():
            if about["group"] == TEACHER:
                reasons[name] = f"the method {config.loss} uses no teacher"
    if config.method.loss is None:
        training = [name for name, about in COMMON.items() if about["group"] == TRAINING]
        for name in ("model", "seed", *training, "calibrate"):
            if name not in ("precision", "val_labels", "skip_missing"):
                reasons[name] = f"the method {config.loss} trains nothing"
    for name in teachers.SETTINGS - vars(config.asked_teacher()).keys():
        if COMMON[name]["group"] == TEACHER:
            reasons.setdefault(
                name, "--similarity replaces the teacher" if config.similarity else "this teacher does not read it"
            )
    if config.teacher_views != "tiles":
        for name in ("teacher_tiles", "teacher_pool"):
            reasons.setdefault(name, "without --teacher-views tiles it has no effect")
    rule = config.method.pseudo_labels
    if rule and rule.of_tiles and config.calibrate == "none":
        reasons.setdefault("teacher_pool", f"the method {config.loss} reads the scores of single tiles")
    if rule and config.calibrate != "none":
        for name in set(keywords(rule.score)) - {"temperature"}:
            reasons[name] = "--calibrate takes the place of the rule's scores"
    if config.text_features:
        reasons.setdefault("prompt", "--text-features replaces the prompts")
    if config.mode == "end_to_end":
        for name in ("linear_epochs", "linear_batch_size", "linear_lr"):
            reasons[name] = "--mode end_to_end trains no linear head alone"
    if config.mode == "linear":
        for name in ("epochs", "batch_size", "lr"):
            reasons[name] = f"--mode linear reads {flag(f'linear_{name}')} instead"
        reasons["head_rate"] = "--mode linear trains the head alone, at --linear-lr"
        for name in vars(Augmentation()):
            reasons[name] = "--mode linear trains on features that are computed once"
    if config.weights:
        reasons["pretrained"] = "--weights replaces the published weights"
    for name, setting in config.method.all_settings().items():
        if setting.needs and not config.hparams[setting.needs]:
            reasons[name] = f"without {flag(setting.needs)} it has no effect"
    return reasons


def effective_settings(config: Config) -> dict[str, object]:
    """The settings that change a run's numbers, by more than rounding."""
    ignored = ignored_settings(config)
    common = {name: getattr(config, name) for name, about in COMMON.items() if about["group"] != RUN}
    common["dataset"] = config.dataset_name
    return {name: value for name, value in (common | config.hparams).items() if name not in ignored}


def check(config: Config) -> None:
    """Raises UserError where values do not go together or name what does not exist."""
    models.check_name(config.model)
    check_dataset(config.folder)
    for name, about in COMMON.items():
        about["setting"].check(name, getattr(config, name))
    if config.head != "linear" and config.mode != "end_to_end":
        raise UserError(f"--mode {config.mode} trains a linear head alone; leave out --head {config.head}")
    models.check_head(config.model, config.head, config.image_size)
    for name, setting in config.method.all_settings().items():
        setting.check(name, config.hparams[name])
    if config.method.check:
        for phase in (config, linear_phase(config))[: 1 + (config.mode == "linear_init")]:
            losses.with_settings(config.method.check, facts(phase))()
    for prompt in config.prompt:
        if "{}" not in prompt and prompt != "imagenet":
            raise UserError(f"--prompt needs {{}} where the class name goes, or the name imagenet, not {prompt!r}")
    if config.method.pseudo_labels:
        check_views(config)
    if config.resume and config.overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it; give one of them")
    if config.gpu != "cpu" and not config.gpu.isdecimal():
        raise UserError(f"--gpu takes a CUDA index or cpu, not {config.gpu!r}")
    for name in ("weights", "text_features", "similarity"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise UserError(f"{flag(name)} {path} is not a file")


def check_views(config: Config) -> None:
    """Raises UserError where the views of the teacher do not go with the rest."""
    if config.method.pseudo_labels.of_tiles and config.teacher_views != "tiles":
        raise UserError(f"the method {config.loss} reads the scores of tiles; leave out --teacher-views, or give tiles")
    if config.teacher_views != "global" and config.teacher_preprocess == "reference" and not config.similarity:
        raise UserError("--teacher-preprocess reference is of whole images; it goes with --teacher-views global")
    if config.teacher_views == "patches" and not config.asked_teacher().scores_new_images:
        raise UserError("--teacher-views patches needs a teacher; a --similarity file may hold tiles")


def facts(config: Config) -> dict[str, object]:
    """The method's settings, and what a loss may ask about the run (losses.FACTS)."""
    return config.hparams | {name: getattr(config, name) for name in losses.FACTS}


def build_parser() -> argparse.ArgumentParser:
    """The command line: the common settings, then those of the methods. Raises UserError for a wrong record."""
    parser = OneLineParser(
        "Train a multi-label classifier from one known positive label per image.",
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    groups = {title: parser.add_argument_group(title) for title in (WHAT, TRAINING, TEACHER, METHOD, RUN)}
    kinds = typing.get_type_hints(Config)
    listed = {"model": [*BACKBONES, "teacher"], "dataset": list(DATASETS)}
    for name, about in COMMON.items():
        setting = about["setting"]
        help = _described(setting.help, [*_listed(listed.get(name) or setting.choices), *_values(name, setting)])
        _add(groups[about["group"]], name, setting, kinds[name], help)
    for name, users in method_settings().items():
        parts = []
        for setting in dict.fromkeys(users.values()):
            readers = ", ".join(method for method, own in users.items() if own == setting)
            parts.append(_described(setting.help, [*_values(name, setting), f"read by {readers}"]))
        setting = next(iter(users.values()))
        _add(groups[METHOD], name, setting, type(setting.default), "; ".join(parts))
    return parser


def method_settings() -> dict[str, dict[str, Setting]]:
    """{setting: {method: its declaration}} of all methods."""
    result: dict[str, dict[str, Setting]] = {}
    for method in LOSSES:
        for name, setting in losses.find(method).all_settings().items():
            if name in COMMON:
                raise UserError(f"the method {method} declares {name!r}, which is a common setting: use `recipe`")
            result.setdefault(name, {})[method] = setting
    return result


def _add(group: argparse._ArgumentGroup, name: str, setting: Setting, kind: object, help: str) -> None:
    names, help = (*setting.flags, flag(name)), help.replace("%", "%%")
    if kind is bool:
        action = argparse.BooleanOptionalAction if setting.default else "store_true"
        group.add_argument(*names, dest=name, action=action, help=help)
        return
    metavar = setting.metavar or name.split("_")[-1].upper()
    if typing.get_origin(kind) is tuple:
        group.add_argument(*names, dest=name, action="append", metavar=metavar, help=help)
        return
    kind = _plain_type(kind)
    group.add_argument(*names, dest=name, type=kind, choices=setting.choices or None, metavar=metavar, help=help)


def _plain_type(kind: object) -> Callable:
    """float of float, str of str | None."""
    return next(part for part in (typing.get_args(kind) or (kind,)) if part is not type(None))


def _described(help: str, facts: list[str]) -> str:
    return f"{help} ({'; '.join(facts)})" if facts else help


def _listed(names: Iterable[str]) -> list[str]:
    return [", ".join(names)] if names else []


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " + ".join(value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _values(name: str, setting: Setting) -> list[str]:
    """A setting's default, its values for single data sets, backbones and methods, and its interval, as text."""
    parts = [] if setting.default is None else [f"default {_shown(setting.default)}"]
    special = [(known, about.settings) for known, about in (DATASETS | BACKBONES).items()]
    parts += [f"{known}: {_shown(values[name])}" for known, values in special if name in values]
    for method, record in LOSSES.items():
        for known, value in record.recipe.get(name, {}).items():
            where = "" if known == "*" else f" {known}"
            parts.append(f"{method}{where}: {'its own' if value is None else _shown(value)}")
    parts += [f"{dataset}: {_shown(value)}" for dataset, value in setting.by_dataset.items()]
    return [*parts, f"in {setting.within}"] if setting.within else parts


FIRST = ("dataset", "loss", "model", "seed")  # what a run is called by


def show(config: Config) -> str:
    """The settings in at most three lines: what is trained, what differs from this method's defaults, and the rest."""
    names = ("dataset", "data_root", "loss", "model")
    usual = effective_settings(resolve({name: getattr(config, name) for name in (*names, "mode")})) | {
        "mode": Config.mode
    }
    read = effective_settings(config)
    values = {name: value for name, value in read.items() if name not in FIRST}
    changed = {name: value for name, value in values.items() if usual.get(name, value) not in (value, "auto")}
    rest = {name: value for name, value in values.items() if name not in changed and value is not None}
    lines = [", ".join(f"seed {read[name]}" if name == "seed" else read[name] for name in FIRST if name in read)]
    for title, part in (("changed", changed), ("defaults", rest)):
        if part:
            lines.append(f"{title}: {', '.join(f'{name}={_shown(value)}' for name, value in part.items())}")
    return "\n".join(lines)
