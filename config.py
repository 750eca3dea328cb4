"""Every setting of a run: its default, its range, its place on the command line.

A value is taken from the command line, else from the most specific row of PRESETS that fits the data set, the loss
and the backbone, else from the default below. `parse` does this once; the result is frozen, printed, and saved with
the run.
"""

import argparse
import sys
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path

from cli import OneLineParser, UserError, torchrun_rank

WHAT, TRAINING, TEACHER, COEFFICIENTS, RUN = (
    "what is trained",
    "training",
    "teacher and pseudo-labels",
    "coefficients of the losses",
    "where and how it runs (no part of a run's identity)",
)


def option(
    default, help: str, *flags: str, group: str, within: str = "", choices: tuple[str, ...] = (), metavar: str = ""
) -> Field:
    """A dataclass field that is also a command-line option. `within` is an interval such as "(0, 1]"."""
    about = dict(help=help, flags=flags, group=group, within=within, choices=choices, metavar=metavar)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = option("pascal", "data set: a known one, or any folder of formatted files under the data root", "-d", group=WHAT)
    loss: str = option("EM_PL", "loss", "-l", group=WHAT)
    model: str = option("resnet50", "backbone; timm:NAME for any timm model", "-m", group=WHAT)
    seed: int = option(0, "seed of initialisation, order and flips", "-s", "--pytorch_seed", group=WHAT, within="[0, 4294967296)")

    epochs: int = option(10, "passes over the training images; VLPL trains 10", group=TRAINING, within="[1, inf)")
    batch_size: int = option(8, "images a step; VLPL: 8, and 6 for ViT-L", group=TRAINING, within="[1, inf)", metavar="IMAGES")
    lr: float = option(1e-5, "Adam's rate, constant", group=TRAINING, within="(0, inf)")
    image_size: int = option(448, "side of the square that images are squashed to, in pixels", group=TRAINING, within="[1, 4096]", metavar="PIXELS")
    flip: float = option(0.5, "probability that a training image is mirrored", group=TRAINING, within="[0, 1]")
    precision: str = option("auto", "arithmetic of backbone and teacher (whose half precision is float16); auto: bf16 on CUDA, else float32", group=TRAINING, choices=("auto", "float32", "bf16"))
    pretrained: bool = option(True, "start from the backbone's published weights", group=TRAINING)
    weights: str | None = option(None, "local checkpoint of the backbone, instead of the published weights", group=TRAINING, metavar="FILE")
    val_labels: str = option("clean", "validation labels that choose the epoch: all true ones, or the observed ones only", group=TRAINING, choices=("clean", "observed"))
    skip_missing: bool = option(False, "drop images that are not on the disk (after single positives and split are drawn)", group=TRAINING)

    temperature: float = option(0.01, "of the softmax over the teacher's similarities", "-t", "--temp", group=TEACHER, within="(0, inf)")
    threshold: float = option(0.3, "softmax similarity above which a label becomes a positive pseudo-label", "-th", group=TEACHER, within="(0, 1)")
    partial: float = option(0.0, "fraction of an image's labels, the least similar ones, taken as negative pseudo-labels", "-p", group=TEACHER, within="[0, 1)")
    teacher: str = option("ViT-L-14-336-quickgelu", "open_clip model name, or FILE.json with an open_clip model config", group=TEACHER)
    teacher_weights: str = option("openai", "open_clip tag, or a local FILE (which is given OpenAI's mean and std)", group=TEACHER)
    prompt: str = option("{}", "caption of a class; {} stands for its prompt name", group=TEACHER)
    teacher_preprocess: str = option("own", "own: the teacher's size, mean and std; reference: what the published code fed it", group=TEACHER, choices=("own", "reference"))
    text_features: str | None = option(None, "FILE.npy of (L, D) class text features, instead of the text tower", group=TEACHER, metavar="FILE")
    similarity: str | None = option(None, "FILE.npz with images, classes, similarity: someone else's teacher", group=TEACHER, metavar="FILE")

    alpha: float = option(0.2, "weight of the entropy of unknown labels", group=COEFFICIENTS, within="[0, inf)", metavar="WEIGHT")
    beta_pos: float = option(0.7, "weight of positive pseudo-labels", group=COEFFICIENTS, within="[0, inf)", metavar="WEIGHT")
    beta_neg: float = option(0.2, "weight of negative pseudo-labels; 0 is what the published code did", group=COEFFICIENTS, within="[0, inf)", metavar="WEIGHT")
    smoothing: float = option(0.1, "share of a pseudo-label's weight that goes to the opposite label", group=COEFFICIENTS, within="[0, 0.5]")
    beta: float = option(0.02, "weight of APL's soft negatives", group=COEFFICIENTS, within="[0, inf)", metavar="WEIGHT")
    warmup_epochs: int = option(5, "first epoch (from 1) after which APL labels; below --epochs", group=COEFFICIENTS, within="[1, inf)")
    neg_proportion: float = option(0.9, "share of a class's unlabelled images that APL labels in all", group=COEFFICIENTS, within="[0, 1]")
    gamma_pos: float = option(2.0, "EM_PL_ASL's focus on positives: the power of 1-p", group=COEFFICIENTS, within="[0, inf)")
    gamma_unknown: float = option(4.0, "EM_PL_ASL's focus on unknown labels: the power of 1-p", group=COEFFICIENTS, within="[0, inf)")
    gamma_neg: float = option(4.0, "EM_PL_ASL's focus on negatives: the power of p", group=COEFFICIENTS, within="[0, inf)")
    eps: float = option(1e-5, "added to p inside every logarithm, as in the published code", group=COEFFICIENTS, within="(0, 1)")

    gpu: str = option("0", "CUDA index, or cpu; under torchrun each process takes its own", "-g", group=RUN)
    workers: int | None = option(None, "threads that decode images; if not given, this process's share of the cores, 8 at most", group=RUN, within="[1, inf)")
    cache: str = option("auto", "where decoded images are kept: on the GPU, in memory, in a file beside the data set, or nowhere", group=RUN, choices=("auto", "gpu", "ram", "disk", "none"))
    cuda_graph: bool = option(True, "replay the training step as a CUDA graph (on one GPU)", group=RUN)
    deterministic: bool = option(False, "only algorithms that give the same numbers again, on a GPU too; slower there", group=RUN)
    eval_batch_size: int = option(64, "images a step where nothing is learned", group=RUN, within="[1, inf)", metavar="IMAGES")
    checkpoint_minutes: float = option(10.0, "minutes between checkpoints inside an epoch", group=RUN, within="[0, inf)")
    data_root: str = option("data", "folder that holds the data sets", group=RUN, metavar="DIR")
    image_root: str | None = option(None, "where the images lie, if not where the formatted files say", group=RUN, metavar="DIR")
    cache_root: str | None = option(None, "folder for caches, if not the data root", group=RUN, metavar="DIR")
    results_dir: str = option("results", "folder that holds the runs", group=RUN, metavar="DIR")
    resume: bool = option(False, "go on with an unfinished run of the same identity, if there is one", group=RUN)
    overwrite: bool = option(False, "start over, deleting what a run of the same identity left", group=RUN)
    # fmt: on


# What the papers (or, for digits, a search over the rate that served every loss) set otherwise. A row is
# (data set, loss, backbone), "*" fits all; of the rows that fit, the one that names more wins, then the later one.
PRESETS: dict[tuple[str, str, str], dict] = {
    ("*", "*", "vit_clip"): dict(batch_size=6, image_size=336),  # VLPL's batch; differs: 448 resized to 336
    ("coco", "*", "*"): dict(alpha=0.1),  # EM's published coefficients, which VLPL keeps
    ("nuswide", "*", "*"): dict(alpha=0.1, prompt="a photo of a {}"),
    ("cub", "*", "*"): dict(alpha=0.01, lr=1e-4, prompt="a photo of a bird with {}"),
    ("coco", "EM_APL", "*"): dict(batch_size=16, beta=0.9),  # Zhou et al. 2022; pascal's values are the defaults
    ("nuswide", "EM_APL", "*"): dict(batch_size=16, warmup_epochs=4, beta=0.2),
    ("cub", "EM_APL", "*"): dict(batch_size=8, warmup_epochs=3, beta=0.4),
    ("digits", "*", "*"): dict(
        model="timm:test_resnet",
        pretrained=False,
        image_size=64,
        flip=0.0,  # a mirrored digit is no digit
        batch_size=8,
        epochs=7,
        lr=3e-3,
        prompt="a photo of the digit {}",
        teacher="models/digits_clip.json",
        teacher_weights="models/digits_clip.safetensors",
    ),
}

MODEL_ALIASES = {"clip_vision": "vit_clip"}  # the published code's other name


def presets(dataset: str, loss: str, model: str) -> dict:
    """The preset values of a combination, the most specific row winning."""
    fitting = [row for row in PRESETS if all(a in ("*", b) for a, b in zip(row, (dataset, loss, model), strict=True))]
    fitting.sort(key=lambda row: sum(part != "*" for part in row))  # a stable sort: later rows stay later
    return {name: value for row in fitting for name, value in PRESETS[row].items()}


def inside(value: float, interval: str) -> bool:
    """Whether value lies in an interval written as in mathematics: "(0, 1]", "[1, inf)". NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def local_file(name: str) -> Path | None:
    """The file of that name below the current folder, or else below the repository; None where there is none."""
    here = Path(__file__).resolve().parent
    return next((path for path in (Path(name), here / name) if path.is_file()), None)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def unread(config: Config) -> dict[str, str]:
    """The options that cannot change this run's numbers, each with the reason."""
    import losses  # here, not above: losses imports this module

    reasons = {}
    coefficients, inputs = losses.coefficients(config.loss), losses.inputs(config.loss)
    for entry in fields(Config):
        group = entry.metadata["group"]
        if group == COEFFICIENTS and entry.name not in coefficients:
            reasons[entry.name] = f"the loss {config.loss} does not read it"
        if group == TEACHER and "pseudo" not in inputs:
            reasons[entry.name] = f"the loss {config.loss} asks no teacher"
    if config.similarity:
        for name in ("teacher", "teacher_weights", "prompt", "teacher_preprocess", "text_features"):
            reasons.setdefault(name, "--similarity replaces the teacher")
    if config.text_features:
        reasons.setdefault("prompt", "--text-features replaces the prompts")
    if config.weights:
        reasons["pretrained"] = "--weights replaces the published weights"
    if config.partial == 0:
        reasons.setdefault("beta_neg", "without --partial there are no negative pseudo-labels")
    return reasons


def identity(config: Config) -> dict:
    """The settings that make two runs the same run: all that change its numbers by more than rounding."""
    ignored = unread(config)
    return {
        entry.name: getattr(config, entry.name)
        for entry in fields(Config)
        if entry.metadata["group"] != RUN and entry.name not in ignored
    }


def parse(argv: list[str] | None = None) -> Config:
    """The command line as a Config. A mistake is one line on stderr and exit status 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    if "model" in given:
        given["model"] = MODEL_ALIASES.get(given["model"], given["model"])
    dataset, loss = (given.get(name, getattr(Config, name)) for name in ("dataset", "loss"))
    model = given.get("model", presets(dataset, loss, "*").get("model", Config.model))
    config = replace(Config(), **{"model": model, **presets(dataset, loss, model), **given})
    try:
        check(config)
    except UserError as error:
        parser.error(str(error))
    for name, reason in unread(config).items():
        if given.get(name, False) is not False and torchrun_rank() == 0:
            print(f"note: {flag(name)} changes nothing here: {reason}", file=sys.stderr)
    return config


def check(config: Config) -> None:
    """Raises UserError where values do not go together or name what does not exist."""
    import datasets
    import losses
    import models

    losses.entry(config.loss)
    models.check_name(config.model)
    datasets.check_name(config.dataset, config.data_root)
    for entry in fields(Config):
        value, within = getattr(config, entry.name), entry.metadata["within"]
        if within and value is not None and not inside(value, within):
            raise UserError(f"{flag(entry.name)} must lie in {within}, not {value}")
    if config.loss == "EM_APL" and not config.warmup_epochs < config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs} must be below --epochs {config.epochs}, or EM_APL never labels"
        )
    if "{}" not in config.prompt:
        raise UserError(f"--prompt needs {{}} where the class name goes, not {config.prompt!r}")
    if config.resume and config.overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it; give one of them")
    if config.gpu != "cpu" and not config.gpu.isdecimal():
        raise UserError(f"--gpu takes a CUDA index or cpu, not {config.gpu!r}")
    for name in ("weights", "text_features", "similarity"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise UserError(f"{flag(name)} {path} is not a file")


def build_parser() -> argparse.ArgumentParser:
    import datasets
    import losses
    import models

    known = {"loss": list(losses.LOSSES), "model": list(models.BACKBONES), "dataset": list(datasets.DATASETS)}
    parser = OneLineParser(
        "Train a multi-label classifier from one known positive label an image.",
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    groups = {title: parser.add_argument_group(title) for title in (WHAT, TRAINING, TEACHER, COEFFICIENTS, RUN)}
    kinds = typing.get_type_hints(Config)
    for entry in fields(Config):
        about = entry.metadata
        text = about["help"] + _facts(entry, known.get(entry.name, ()))
        if kinds[entry.name] is bool:
            action = argparse.BooleanOptionalAction if entry.default else "store_true"
            groups[about["group"]].add_argument(*about["flags"], flag(entry.name), action=action, help=text)
            continue
        groups[about["group"]].add_argument(
            *about["flags"],
            flag(entry.name),
            dest=entry.name,
            type=_plain_type(kinds[entry.name]),
            choices=known["loss"] if entry.name == "loss" else about["choices"] or None,
            metavar=about["metavar"] or entry.name.split("_")[-1].upper(),
            help=text.replace("%", "%%"),
        )
    return parser


def _plain_type(kind: object) -> Callable:
    return next(part for part in (typing.get_args(kind) or (kind,)) if part is not type(None))


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _facts(entry: Field, known: typing.Sequence[str]) -> str:
    """What stands behind an option's help: choices, default, presets, range, and which losses read it."""
    import losses

    facts = []
    if choices := entry.metadata["choices"] or known:
        facts.append(", ".join(choices))
    if entry.default is not None:
        facts.append(f"default {_shown(entry.default)}")
        facts += [
            f"{' '.join(part for part in row if part != '*')}: {_shown(values[entry.name])}"
            for row, values in PRESETS.items()
            if entry.name in values
        ]
    if entry.metadata["within"]:
        facts.append(f"in {entry.metadata['within']}")
    if entry.metadata["group"] == COEFFICIENTS:
        facts.append("read by " + ", ".join(name for name in losses.LOSSES if entry.name in losses.coefficients(name)))
    return f" ({'; '.join(facts)})" if facts else ""


def show(config: Config) -> str:
    """The resolved settings, a line a group, without those that this run does not read."""
    ignored, lines = unread(config), []
    for title in (WHAT, TRAINING, TEACHER, COEFFICIENTS, RUN):
        values = [
            f"{entry.name}={getattr(config, entry.name)}"
            for entry in fields(Config)
            if entry.metadata["group"] == title
            and entry.name not in ignored
            and getattr(config, entry.name) is not None
        ]
        if values:
            lines.append(f"{title.split(' (')[0]}: {', '.join(values)}")
    return "\n".join(lines)
