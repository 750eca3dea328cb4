"""Losses by name. To add one: write its formula in a file of its family and name it in LOSSES.

A formula's own signature says what it needs: its positional arguments after the logits are fields of Targets, its
keyword-only arguments are fields of Config. `build` passes both by name, so nothing is declared twice.
"""

import inspect
from collections.abc import Callable

import torch

from cli import UserError
from config import Config
from losses import entropy, full, single_positive
from losses.base import Formula, Loss, Targets

LOSSES: dict[str, Callable | type[Loss]] = {
    "bce": full.bce,
    "iun": single_positive.iun,
    "an": single_positive.an,
    "EM": entropy.em,
    "EM_APL": entropy.AsymmetricPseudoLabels,
    "EM_PL": entropy.em_pl,
    "EM_PL_ASL": entropy.em_pl_asl,
}

__all__ = ["LOSSES", "Loss", "Targets", "build", "coefficients", "entry", "inputs"]


def entry(name: str) -> Callable | type[Loss]:
    """The entry of LOSSES; raises UserError with the list of names where there is none."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; there are {', '.join(LOSSES)}")
    return LOSSES[name]


def _parameters(name: str, kind: object) -> tuple[str, ...]:
    return tuple(p.name for p in inspect.signature(entry(name)).parameters.values() if p.kind is kind)


def coefficients(name: str) -> tuple[str, ...]:
    """The fields of Config that a loss reads."""
    return _parameters(name, inspect.Parameter.KEYWORD_ONLY)


def inputs(name: str) -> tuple[str, ...]:
    """The fields of Targets that a loss reads."""
    found = entry(name)
    return found.inputs if isinstance(found, type) else _parameters(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)[1:]


def build(name: str, config: Config, observed: torch.Tensor) -> Loss:
    """The loss module of a run.

    observed  (N, L) in {-1, 0, +1}, tensor or array: the training set's observed labels, for losses with a memory
    returns   a module; module(logits, Targets) is the scalar batch loss
    """
    values = {coefficient: getattr(config, coefficient) for coefficient in coefficients(name)}
    if isinstance(entry(name), type):
        return entry(name)(torch.as_tensor(observed), **values)
    return Formula(entry(name), inputs(name), values)
