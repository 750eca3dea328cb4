"""Every setting of a run: the common ones below, and those that the methods' records declare.

A value is taken from the command line, else from the method (for this data set), else from the data set, else from the
backbone, else from the default. `parse` does this once; the result is frozen and saved with the run.
"""

import argparse
import sys
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import losses
import models
from datasets import DATASETS
from datasets import check_name as check_dataset
from datasets.images import Augmentation
from losses import LOSSES, Method
from models import BACKBONES, teachers
from pseudo_labels.calibration import CALIBRATIONS
from util.errors import OneLineParser, UserError, torchrun_rank
from util.files import local_file, read_json
from util.settings import Setting, flag, keywords

WHAT, TRAINING, TEACHER, RUN = (
    "what is trained",
    "training",
    "teacher",
    "how and on what it runs (not part of a run's identity)",
)


FROM_SCRATCH = 1e-3  # learning rate without published weights: Adam's own default


def option(group: str, *setting: object, **more: object) -> object:
    """A dataclass field that is a command-line option; the rest as for Setting."""
    setting = Setting(*setting, **more)
    return field(default=setting.default, metadata={"group": group, "setting": setting})


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = option(WHAT, "pascal", "data set: a known one, or a folder of formatted files by its name below the data root or by its path", flags=("-d",))
    loss: str = option(WHAT, "EM_PL", "method", flags=("-l",), choices=tuple(LOSSES))
    model: str = option(WHAT, "resnet50", "backbone; timm:NAME for any of timm's, clip:NAME:TAG for any image tower of open_clip, teacher for the teacher's image tower", flags=("-m",))
    seed: int = option(WHAT, 0, "seed of initialisation, order and flips", "[0, 4294967296)", flags=("-s", "--pytorch_seed"))
    draw: int = option(WHAT, 0, "draw of the known labels: 0 takes the formatted ones; K > 0 draws anew from the full labels, by the published procedure with seed 1200 + K", "[0, 1000000]")

    mode: str = option(TRAINING, "end_to_end", "train everything; or a linear head on the features of the frozen backbone; or that first, then everything from there", choices=("end_to_end", "linear", "linear_init"))
    linear_epochs: int = option(TRAINING, 25, "epochs in which the linear head is trained alone; Cole et al.: 25", "[1, inf)", metavar="EPOCHS")
    linear_batch_size: int = option(TRAINING, 64, "images per step of the linear head alone; Cole et al.: 8 or 16, which take as long a step", "[1, inf)", metavar="IMAGES")
    linear_lr: float = option(TRAINING, 1e-3, "learning rate of the linear head alone; Cole et al. choose from 1e-2 to 1e-5", "(0, inf)", metavar="LR")
    epochs: int = option(TRAINING, 10, "passes over the training images; VLPL trains 10", "[1, inf)")
    batch_size: int = option(TRAINING, 8, "images per training step; VLPL: 8, and 6 for ViT-L", "[1, inf)", metavar="IMAGES")
    lr: float = option(TRAINING, 1e-5, "learning rate, with a schedule the highest; 1e-3 with --no-pretrained", "(0, inf)")
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
    val_labels: str = option(TRAINING, "clean", "validation labels that choose the epoch: all true ones (if the data set has them), or the observed ones only", choices=("clean", "observed"))
    select: str = option(TRAINING, "best", "epoch whose weights are kept: the best by validation mAP, or the last", choices=("best", "last"))
    features: str | None = option(TRAINING, None, "FILE.npz with images, features: --mode linear trains on features computed by a different program", metavar="FILE")
    skip_missing: bool = option(TRAINING, False, "drop images that are not on the disk (after single positives and split are drawn)")
    threads: int | None = option(TRAINING, None, "threads that compute on a CPU (if not given: PyTorch's default). Results depend on it in their last bits", "[1, 1024]")

    teacher: str = option(TEACHER, teachers.DEFAULT, "open_clip model name, or FILE.json with an open_clip model config")
    teacher_weights: str = option(TEACHER, teachers.DEFAULT_WEIGHTS, "open_clip tag, or a local FILE")
    prompt: tuple[str, ...] = option(TEACHER, ("{}",), "caption of a class, with {} for its prompt name; if given more than once, the captions' normalised features are averaged; imagenet: CLIP's 80 templates for ImageNet")
    teacher_preprocess: str = option(TEACHER, "own", "own: the teacher's size, mean and std; reference: the published preprocessing", choices=("own", "reference"))
    text_features: str | None = option(TEACHER, None, "FILE.npy of (L, D) class text features, instead of the text tower", metavar="FILE")
    teacher_views: str = option(TEACHER, "global", "what the teacher scores: the whole image; with tiles or patches, each of these too", choices=tuple(teachers.VIEWS), search=("global", "tiles"))
    teacher_tiles: int = option(TEACHER, 3, "tiles along each side of an image", "[2, 16]")
    teacher_pool: str = option(TEACHER, "max", "how tile scores are pooled: by their maximum or mean", choices=("max", "mean"))
    calibrate: str = option(TEACHER, "none", "whether the known labels calibrate the teacher's scores: by a factor and a bias of each label, or also by a matrix", choices=CALIBRATIONS, search=("none", "bias", "matrix"))
    similarity: str | None = option(TEACHER, None, "FILE.npz with images, classes, similarity: scores computed by a different program", metavar="FILE")

    gpu: str = option(RUN, "0", "CUDA index, or cpu, or mps (Apple); under torchrun each process takes its own", flags=("-g",))
    workers: int | None = option(RUN, None, "threads that decode images (if not given: this process's share of the cores, 8 at most)", "[1, 1024]")
    cache: str = option(RUN, "auto", "place of decoded images: the GPU, a file beside the data set, or none", choices=("auto", "gpu", "disk", "none"))
    truncated: bool = option(RUN, False, "accept images that are cut short; the missing part is grey or black")
    cuda_graph: bool = option(RUN, False, "capture the network as a CUDA graph for full training batches (on a GPU, in a single process)")
    compile: bool = option(RUN, False, "compile the network for full training batches (torch.compile, in a single process): takes minutes once, changes the last bits of the results, and needs a C++ compiler")
    checks: bool = option(RUN, True, "compare the GPU's results with the CPU's at the start, for about a second")
    deterministic: bool = option(RUN, False, "only algorithms that give the same numbers every time, on a GPU too; slower there")
    eval_batch_size: int = option(RUN, 64, "evaluation batch size", "[1, inf)", metavar="IMAGES")
    checkpoint_minutes: float = option(RUN, 10.0, "minutes between checkpoints inside an epoch", "[0, inf)")
    data_root: str = option(RUN, "data", "folder that holds the data sets", metavar="DIR")
    image_root: str | None = option(RUN, None, "folder of the images, if it is not the one named in dataset.json", metavar="DIR")
    cache_root: str | None = option(RUN, None, "folder for caches, if not the folder that holds the data set", metavar="DIR")
    results_dir: str = option(RUN, "results", "folder that holds the runs", metavar="DIR")
    tensorboard: bool = option(RUN, False, "write loss and validation mAP for TensorBoard too, into the run's folder")
    resume: bool = option(RUN, False, "continue an unfinished run of the same identity, if there is one")
    overwrite: bool = option(RUN, False, "start over, deleting the run of the same identity")
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
    argv = sys.argv[1:] if argv is None else argv
    asked = first_look(argv)
    parser = build_parser(asked.loss)
    given = vars(parser.parse_args(argv))
    try:
        file = read_file(given["config"]) if "config" in given else []
        config = resolve(vars(parser.parse_args(file)) | given)
        check(config)
    except UserError as error:
        parser.error(str(error))
    reasons = ignored_settings(config)
    if given.get("model") == "teacher":  # which names the backbone too
        reasons = {name: reason for name, reason in reasons.items() if name not in ("teacher", "teacher_weights")}
    unknown = given.keys() - COMMON.keys() - config.hparams.keys() - {"config", "traceback"}
    reasons |= dict.fromkeys(unknown, f"the method {config.loss} does not read it")
    for name in given.keys() & reasons.keys():
        if given[name] is not False and torchrun_rank() == 0:
            print(f"note: {flag(name)} is ignored: {reasons[name]}", file=sys.stderr)
    return config


def first_look(argv: list[str]) -> argparse.Namespace:
    """The method that a command line names, before it is parsed; None if it names none or an unknown one."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-l", "--loss", choices=tuple(LOSSES))
    try:
        return parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # the parser of the whole line reports it
        return argparse.Namespace(loss=None)


def read_file(path: str) -> list[str]:
    """--config FILE.json as a command line: {setting: value}, or a run's config.json, of which the settings are taken
    that change a run's numbers."""
    values = read_json(path, kind=dict[str, object])
    if "identity" in values:
        values = values["config"]
        values = {name: values[name] for name in COMMON.keys() - group(RUN) if name in values} | values["hparams"]
    argv = []
    for name, value in values.items():
        if isinstance(value, bool):
            argv += [flag(name)] if value else [flag(f"no_{name}")] * (name in COMMON and getattr(Config, name) is True)
        elif value is not None:
            argv += [f"{flag(name)}={part}" for part in (value if isinstance(value, list) else [value])]
    return argv


def resolve(given: dict[str, object]) -> Config:
    """The settings of a run. Of several layers that set a value the last counts: defaults, backbone, data set, method,
    and what is given by --config or on the command line."""
    config = Config(**{name: given[name] for name in ("dataset", "data_root", "loss") if name in given})
    dataset, method = config.dataset_name, config.method
    of_dataset = DATASETS[dataset].settings if dataset in DATASETS else {}
    of_method = {name: values.get(dataset, values.get("*")) for name, values in method.recipe.items()}
    model = given.get("model", of_dataset.get("model", config.model))
    model = models.ALIASES.get(model, model)
    if given.get("features", of_dataset.get("features")):
        model = models.FEATURES
    from_scratch = given.get("pretrained") is False and not given.get("weights")
    layers = {
        "no published weights": {"lr": FROM_SCRATCH} if from_scratch else {},
        "backbone": {} if model == "teacher" else models.settings_of(model),
        "data set": of_dataset
        | {name: own.by_dataset.get(dataset, own.default) for name, own in method.all_settings().items()},
        "method": {name: value for name, value in of_method.items() if value is not None},
        "given": given | {"model": model},
    }
    values = {name: value for layer in layers.values() for name, value in layer.items()}
    common = {name: value for name, value in values.items() if name in COMMON}
    common["prompt"] = tuple(common.get("prompt", Config.prompt))
    config = Config(**common, hparams={name: values[name] for name in method.all_settings()})
    if model == "teacher":
        config = with_the_teachers_tower(config, "image_size" in common)
    return linear_phase(config) if config.mode == "linear" else config


def with_the_teachers_tower(config: Config, sized: bool) -> Config:
    """-m teacher by its full name.

    sized  whether the image size was set; if not, it is the teacher's own
    """
    size = {} if sized else models.settings_of(f"clip:{config.teacher}")
    if weights := config.weights or local_file(config.teacher_weights):
        return replace(config, model=f"clip:{config.teacher}", weights=str(weights), **size)
    return replace(config, model=f"clip:{config.teacher}:{config.teacher_weights}", pretrained=True, **size)


def linear_phase(config: Config) -> Config:
    """The run that trains the linear head alone."""
    of_head = dict(epochs=config.linear_epochs, batch_size=config.linear_batch_size, lr=config.linear_lr)
    return replace(config, mode="linear", head_rate=1.0, **vars(Augmentation()), **of_head)


def group(title: str) -> set[str]:
    """The names of the common settings of a group."""
    return {name for name, metadata in COMMON.items() if metadata["group"] == title}


def ignored_settings(config: Config) -> dict[str, str]:
    """The settings that cannot change this run's numbers, each with the reason."""
    reasons: dict[str, str] = {}
    for names, reason in _ignored(config):
        reasons = dict.fromkeys(names, reason) | reasons
    return reasons


def _ignored(config: Config) -> Iterator[tuple[Iterable[str], str]]:
    """(names of settings, the reason why they have no effect); the first reason for a name counts."""
    rule, training = config.method.pseudo_labels, group(TRAINING)
    if config.method.loss is None:
        read = {"precision", "val_labels", "skip_missing"}
        yield {"model", "seed", "calibrate"} | training - read, f"the method {config.loss} trains nothing"
    if rule is None:
        yield group(TEACHER), f"the method {config.loss} uses no teacher"
    elif config.calibrate != "none" and config.method.loss is not None:
        yield set(keywords(rule.score)), "--calibrate replaces the rule's scores"
    elif rule.of_tiles:
        yield {"teacher_pool"}, f"the method {config.loss} reads the scores of single tiles"
    unread = group(TEACHER) & (teachers.SETTINGS - vars(config.asked_teacher()).keys())
    yield unread, "--similarity replaces the teacher" if config.similarity else "this teacher does not read it"
    if config.teacher_views != "tiles":
        yield {"teacher_tiles", "teacher_pool"}, "without --teacher-views tiles it has no effect"
    if config.text_features:
        yield {"prompt"}, "--text-features replaces the prompts"
    if config.mode == "end_to_end":
        yield {name for name in training if name.startswith("linear_")}, "--mode end_to_end trains no linear head alone"
    if config.mode == "linear":
        for name in ("epochs", "batch_size", "lr"):
            yield {name}, f"--mode linear reads {flag(f'linear_{name}')} instead"
        yield {"head_rate"}, "--mode linear trains the head alone, at --linear-lr"
        yield vars(Augmentation()), "--mode linear trains on features that are computed once"
    if config.features:
        read = {"pretrained", "weights", "image_size", "head", "precision"}
        yield read, "--features replaces the backbone"
    if config.weights:
        yield {"pretrained"}, "--weights replaces the published weights"
    for name, setting in config.method.all_settings().items():
        if setting.needs and not config.hparams[setting.needs]:
            yield {name}, f"without {flag(setting.needs)} it has no effect"


def effective_settings(config: Config) -> dict[str, object]:
    """The settings that change a run's numbers by more than rounding."""
    ignored = ignored_settings(config)
    common = {name: getattr(config, name) for name in COMMON if name not in group(RUN)}
    common["dataset"] = config.dataset_name
    return {name: value for name, value in (common | config.hparams).items() if name not in ignored}


def default_settings(config: Config, *also: str) -> dict[str, object]:
    """The effective settings that a run of the same method and data set has by default.

    also  further settings to take from this run
    """
    return effective_settings(
        resolve({name: getattr(config, name) for name in ("dataset", "data_root", "loss", *also)})
    )


def check(config: Config) -> None:
    """Raises UserError if values do not go together or name what does not exist."""
    if not config.features:
        models.check_name(config.model)
        models.check_head(config.model, config.head, config.image_size)
    check_dataset(config.folder)
    for name, metadata in COMMON.items():
        metadata["setting"].check(name, getattr(config, name))
    for name, setting in config.method.all_settings().items():
        setting.check(name, config.hparams[name])
    if config.method.check:
        for phase in (config, linear_phase(config))[: 1 + (config.mode == "linear_init")]:
            losses.with_settings(config.method.check, facts(phase))()
    if text := next(_contradictions(config), None):
        raise UserError(text)


def _contradictions(config: Config) -> Iterator[str]:
    """What does not go together, each with its remedy."""
    if config.features and config.mode != "linear":
        yield f"--features holds features for a linear head: take --mode linear, not {config.mode}"
    if config.head != "linear" and config.mode != "end_to_end":
        yield f"--mode {config.mode} trains a linear head alone; leave out --head {config.head}"
    for prompt in config.prompt:
        if "{}" not in prompt and prompt != "imagenet":
            yield f"--prompt needs {{}} in place of the class name, or the name imagenet, not {prompt!r}"
    if config.resume and config.overwrite:
        yield "--resume continues a run and --overwrite deletes it; give one of them"
    for name in ("weights", "text_features", "similarity", "features"):
        path = getattr(config, name)
        if path is not None and not local_file(path):
            yield f"{flag(name)} {path} is not a file"
    if rule := config.method.pseudo_labels:
        if rule.of_tiles and config.teacher_views != "tiles":
            yield f"the method {config.loss} reads the scores of tiles; leave out --teacher-views, or give tiles"
        if config.teacher_views != "global" and config.teacher_preprocess == "reference" and not config.similarity:
            yield "--teacher-preprocess reference is of whole images; it goes with --teacher-views global"
        if config.teacher_views == "patches" and not config.asked_teacher().scores_new_images:
            yield "--teacher-views patches needs a teacher; a --similarity file may hold tiles"


def facts(config: Config) -> dict[str, object]:
    """The method's settings, and what a loss may ask about the run (losses.FACTS)."""
    return config.hparams | {name: getattr(config, name) for name in losses.FACTS}


def build_parser(method: str | None = None) -> argparse.ArgumentParser:
    """The command line: the common settings, then the methods' settings. Raises UserError for a wrong record.

    method  the method whose values and settings the help shows; None: the common settings alone
    """
    parser = OneLineParser(
        "Train a multi-label classifier from one known positive label per image.",
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
        epilog=None if method else "python main.py -l METHOD --help also lists the settings of a method.",
    )
    of_method = f"settings of {method}" if method else "settings of the method"
    groups = {title: parser.add_argument_group(title) for title in (WHAT, TRAINING, TEACHER, of_method, RUN)}
    kinds = typing.get_type_hints(Config)
    listed = {"model": [*BACKBONES, "teacher"], "dataset": list(DATASETS)}
    for name, metadata in COMMON.items():
        setting = metadata["setting"]
        names = listed.get(name) or setting.choices
        facts = [", ".join(names)] * bool(names) + _values(name, setting, method)
        _add(groups[metadata["group"]], name, setting, kinds[name], _described(setting.help, facts))
    help = "JSON file of settings, such as a run's config.json; the command line overrides it"
    groups[RUN].add_argument("--config", metavar="FILE", help=help)
    for name, users in method_settings().items():
        setting = users.get(method, next(iter(users.values())))
        help = _described(setting.help, _values(name, setting, method)) if method in users else None
        _add(groups[of_method], name, setting, type(setting.default), help)
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


def _add(group: argparse._ArgumentGroup, name: str, setting: Setting, kind: object, help: str | None) -> None:
    """help  None: the help does not list this option"""
    names, help = (*setting.flags, flag(name)), argparse.SUPPRESS if help is None else help.replace("%", "%%")
    if kind is bool:
        action = argparse.BooleanOptionalAction if setting.default else "store_true"
        group.add_argument(*names, dest=name, action=action, help=help)
        return
    metavar = setting.metavar or name.split("_")[-1].upper()
    if typing.get_origin(kind) is tuple:
        group.add_argument(*names, dest=name, action="append", metavar=metavar, help=help)
        return
    kind = next(part for part in (typing.get_args(kind) or (kind,)) if part is not type(None))  # str of str | None
    group.add_argument(*names, dest=name, type=kind, choices=setting.choices or None, metavar=metavar, help=help)


def _described(help: str, facts: list[str]) -> str:
    return f"{help} ({'; '.join(facts)})" if facts else help


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " + ".join(value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _values(name: str, setting: Setting, method: str | None) -> list[str]:
    """A setting's default, its values for single data sets, backbones and the method, and its interval, as text."""
    parts = [] if setting.default is None else [f"default {_shown(setting.default)}"]
    special = [(known, spec.settings) for known, spec in (DATASETS | BACKBONES).items()]
    parts += [f"{known}: {_shown(values[name])}" for known, values in special if name in values]
    for known, value in (LOSSES[method].recipe.get(name, {}) if method else {}).items():
        place = method if known == "*" else f"{method} {known}"
        parts.append(f"{place}: {'its own' if value is None else _shown(value)}")
    parts += [f"{dataset}: {_shown(value)}" for dataset, value in setting.by_dataset.items()]
    return [*parts, f"in {setting.within}"] if setting.within else parts


SHOWN = ("epochs", "batch_size", "lr", "linear_epochs", "linear_lr", "image_size")  # common settings shown before a run
TEACHERS = ("calibrate", "teacher_views")  # likewise, after the method's own
MOST = 10  # settings shown before a run; all of them are in config.json


def show(config: Config) -> str:
    """What is trained, what differs from this method's defaults, and the defaults that matter most, at most MOST."""
    read = effective_settings(config)
    default = default_settings(config, "model", "weights", "mode")
    default |= {"mode": default_settings(config).get("mode")}
    named = ("dataset", "loss", "model", "seed")
    changed = [name for name in read if name not in named and default.get(name, read[name]) not in (read[name], "auto")]
    rest = [name for name in (*SHOWN, *config.hparams, *TEACHERS) if name in read and name not in changed]
    rest = rest[: MOST - len(changed)]
    lines = [", ".join(f"seed {read[name]}" if name == "seed" else read[name] for name in named if name in read)]
    for title, names in (("changed", changed), ("defaults", rest)):
        if names:
            lines.append(f"{title}: {', '.join(f'{name}={_shown(read[name])}' for name in names)}")
    return "\n".join(lines)
