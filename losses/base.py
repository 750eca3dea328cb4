"""What a method is to the rest of the project: a loss, and one record of everything else about it.

The formulas in this folder share these arguments and are not annotated. Their docstrings add only what is special.

    logits    (B, L) float; p = sigmoid(logits)
    observed  (B, L) int8 in {-1, 0, +1}; 0 = unknown
    true      (B, L) int8 in {0, 1}; only oracles read them; None if they are not known
    pseudo    (B, L) int8 in {-1, 0, +1}, 0 = the teacher abstains; or soft labels, float in [0, 1]; None: no teacher.
              A loss reads it only if observed is 0
    index     (B,) int64 row of each image in the training set
    returns   (B, L), one loss per label, not reduced; of a regulariser: ()
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from pseudo_labels.rules import Rule
from util.errors import UserError
from util.files import digest
from util.settings import Setting, keywords, with_settings

CODE = ("losses.", "pseudo_labels.")  # modules whose functions count as code of a method that uses them
FACTS = ("epochs", "seed")  # what a stateful loss may ask about the run, beside its settings


@dataclass(frozen=True)
class Targets:
    """What is known about the images of a batch; losses read these fields by name."""

    observed: Tensor
    true: Tensor | None = None
    pseudo: Tensor | None = None
    index: Tensor | None = None


class Loss(nn.Module):
    """The batch loss: the mean of per_label over the B x L entries, plus the regulariser, in float32 or better.

    per_label    (logits, targets by name, *, settings by name) -> (B, L)
    regulariser  (logits, targets by name, *, settings by name) -> (); None: there is none
    rate         learning rate of the loss's own parameters, as a multiple of the backbone's

    A loss that remembers something between steps is a subclass with these as methods. Its `__init__` takes the training
    set's observed labels (N, L) and, by keyword, the settings and facts that it names. State is kept in buffers or
    parameters, so that it is in every checkpoint. Parameters are trained with the backbone.
    """

    per_label: Callable[..., Tensor]
    regulariser: Callable[..., Tensor] | None = None
    rate = 1.0

    def prepare(self, settings: dict[str, object]) -> "Loss":
        """Fill the settings into per_label and regulariser, and note the targets that they read."""
        self.reads = {}
        for name in ("per_label", "regulariser"):
            if function := getattr(self, name):
                self.reads[name] = target_names(function)
                setattr(self, name, with_settings(function, settings))
        return self

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, and when a run resumes in it. Epochs are counted from 1."""

    def start_step(self, step: int) -> None:
        """Called before each step. Steps are counted from 0 over the whole training."""

    def end_epoch(self, epoch: int, predict: Callable[[], Tensor]) -> None:
        """Called after the last step of an epoch. predict() passes over the training images and returns their (N, L)
        float probabilities."""

    def forward(self, logits: Tensor, targets: Targets) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        entries = self.per_label(logits, *(getattr(targets, name) for name in self.reads["per_label"]))
        loss = entries.sum() / max(entries.numel(), 1)  # one of several processes may have no image of a batch
        if self.regulariser:
            loss = loss + self.regulariser(logits, *(getattr(targets, name) for name in self.reads["regulariser"]))
        return loss


@dataclass(frozen=True)
class Method:
    """Everything about one method. A method is added by writing such a record and naming it in LOSSES.

    summary        what it does, in one line
    loss           a pure function (logits, targets by name, *, settings by name) -> (B, L); or a subclass of Loss;
                   None: nothing is trained, and the pseudo-labels of the test images are the predictions
    equation       the loss per label, as docs/methods.md shows it
    paper          authors, year, identifier
    settings       the method's own, by name; every keyword-only argument of its functions must be among them
    pseudo_labels  the rule by which a teacher's similarities become pseudo-labels; None: no teacher
    regulariser    a pure function (logits, targets by name, *, settings by name) -> (), added to the mean
    recipe         {common setting: {data set: value}} in which the paper departs from the protocol; "*" = all data sets
    check          called with the settings and facts that it names; raises UserError if they contradict each other
    check_labels   called with the observed labels of the training set (N, L); raises UserError if they do not suffice
    published      test mAP by data set (ImageNet ResNet-50, 448 px, the protocol's split and choice of epoch)
    source         of the published numbers, if it is not `paper`
    note           how the numbers depart from the protocol (start, size, split, choice of the epoch); further numbers
    """

    summary: str
    loss: Callable[..., Tensor] | type[Loss] | None
    equation: str
    paper: str
    settings: dict[str, Setting] = field(default_factory=dict)
    pseudo_labels: Rule | None = None
    regulariser: Callable[..., Tensor] | None = None
    recipe: dict[str, dict[str, object]] = field(default_factory=dict)
    check: Callable[..., None] | None = None
    check_labels: Callable[[np.ndarray], None] | None = None
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def all_settings(self) -> dict[str, Setting]:
        """The settings of the method's rule, then its own."""
        return (self.pseudo_labels.settings if self.pseudo_labels else {}) | self.settings

    @property
    def oracle(self) -> bool:
        """Whether it reads labels that single-positive data does not have."""
        return "true" in self.reads()

    def functions(self) -> list[Callable]:
        """The functions of logits and targets that the loss is made of."""
        owner = self.loss if isinstance(self.loss, type) else None
        found = (owner.per_label, owner.regulariser) if owner else (self.loss, self.regulariser)
        return [function for function in found if function]

    def reads(self) -> tuple[str, ...]:
        """The fields of Targets that the loss reads."""
        return tuple(dict.fromkeys(name for function in self.functions() for name in target_names(function)))

    def verify(self, name: str) -> None:
        """Raises UserError if the functions read a target or a setting that nobody declares."""
        targets, settings = tuple(Targets.__dataclass_fields__), (*self.all_settings(), *FACTS)
        faults = [f"{target!r}; it may read {', '.join(targets)}" for target in self.reads() if target not in targets]
        if "pseudo" in self.reads() and self.pseudo_labels is None:
            faults.append("pseudo-labels, but its record names no rule that makes them")
        for function in filter(None, (self.loss, *self.functions(), self.check)):
            if undeclared := set(keywords(function)) - set(settings):
                faults.append(
                    f"the setting {min(undeclared)!r} in {function.__name__}; it may read {', '.join(settings)}"
                )
        if faults:
            raise UserError(f"the method {name} reads {faults[0]}")

    def code_digest(self) -> str:
        """Digest of the loss and the rule, with the functions, classes and constants that they use. Comments,
        docstrings and the layout of the code do not count."""
        rule = self.pseudo_labels
        pending = [self.loss, self.regulariser, *((rule.score, rule.label) if rule else ())]
        code: dict[str, str] = {}
        while pending:
            part = pending.pop()
            if part is None or part is Loss or (name := f"{part.__module__}.{part.__qualname__}") in code:
                continue
            code[name], names = _code(part)
            known = vars(sys.modules[part.__module__])
            for name in names & known.keys():
                value = known[name]
                if inspect.isfunction(value) or inspect.isclass(value):
                    pending += [value] if value.__module__.startswith(CODE) else []
                elif not inspect.ismodule(value):
                    value = value.tolist() if hasattr(value, "tolist") else value  # an array or a tensor
                    value = sorted(map(repr, value)) if isinstance(value, set | frozenset) else value
                    code[f"{part.__module__}.{name}"] = re.sub(" at 0x[0-9a-f]+", "", repr(value))
        return digest(code, length=8)


@cache
def _code(part: Callable) -> tuple[str, set[str]]:
    """The code of a function or class without comments, docstrings and layout; and the names that it uses."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree), {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def target_names(function: Callable) -> tuple[str, ...]:
    """The positional arguments of a loss function after the logits: fields of Targets."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return tuple(names[1:])
