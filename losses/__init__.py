"""Methods by name. To add one, write its formula and its record in a new file and name the record in LOSSES."""

import torch

from losses import chen2024, cole2021, ctl, kim2022, ridnik2021, tran2025, vlpl, zero_shot, zhang2021, zhou2022
from losses.base import FACTS, Loss, Method, Targets, with_settings
from util.errors import UserError

LOSSES: dict[str, Method] = {  # in the order of the tables: the teacher alone, oracles, then by year
    "zero_shot": zero_shot.ZERO_SHOT,
    "bce": cole2021.BCE,
    "bce_ls": cole2021.BCE_LS,
    "iun": cole2021.IUN,
    "an": cole2021.AN,
    "an_ls": cole2021.AN_LS,
    "wan": cole2021.WAN,
    "iu": cole2021.IU,
    "pr": cole2021.PR,
    "epr": cole2021.EPR,
    "role": cole2021.ROLE,
    "asl": ridnik2021.ASL,
    "hill": zhang2021.HILL,
    "splc": zhang2021.SPLC,
    "LL_R": kim2022.LL_R,
    "LL_Ct": kim2022.LL_Ct,
    "LL_Cp": kim2022.LL_Cp,
    "EM": zhou2022.EM,
    "EM_APL": zhou2022.EM_APL,
    "gr": chen2024.GR,
    "EM_PL": vlpl.EM_PL,
    "EM_PL_ASL": vlpl.EM_PL_ASL,
    "gpr": tran2025.GPR,
    "CTL": ctl.CTL,
}

__all__ = ["FACTS", "LOSSES", "Loss", "Method", "Targets", "build", "find", "with_settings"]


def find(name: str) -> Method:
    """The record of a method; raises UserError if there is none, or if the record contradicts its functions."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; there are {', '.join(LOSSES)}")
    LOSSES[name].verify(name)
    return LOSSES[name]


def build(name: str, settings: dict[str, object], observed: torch.Tensor) -> Loss:
    """The loss module of a run, on the device of `observed`.

    settings  the method's settings and the facts of the run, by name
    observed  (N, L) in {-1, 0, +1}: the observed labels of the training set
    returns   a module; module(logits, Targets) is the scalar batch loss
    """
    method = find(name)
    if isinstance(method.loss, type):
        loss = with_settings(method.loss, settings)(observed)
    else:
        loss = Loss()
        loss.per_label, loss.regulariser = method.loss, method.regulariser
    return loss.prepare(settings).to(observed.device)
