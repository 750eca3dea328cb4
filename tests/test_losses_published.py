"""Losses and their gradients against the values that the published code computes (tests/reference/)."""

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from training import build

from losses import LOSSES, Targets

REFERENCE = np.load(Path(__file__).parent / "reference/losses.npz")
PEERS = np.load(Path(__file__).parent / "reference/peer_losses.npz")
CASES = sorted({name.split("_")[0] for name in REFERENCE.files})
WITH_REFERENCE = [name for name in LOSSES if f"{CASES[0]}_{name}_loss" in REFERENCE.files]


def reference_batch(case: str, name: str, dtype: torch.dtype):
    """logits, targets and the loss module of one reference case."""
    arrays = {key: torch.from_numpy(REFERENCE[f"{case}_{key}"]) for key in ("logits", "observed", "true", "pseudo")}
    observed, true, pseudo = (arrays[key].to(torch.int8) for key in ("observed", "true", "pseudo"))
    module = build(name, observed, **({"beta_neg": 0.0} if name == "EM_PL" else {}))  # as published
    if name == "iu":
        observed = torch.from_numpy(REFERENCE[f"{case}_observed_with_negatives"]).to(torch.int8)
    if name == "role":
        module.estimates.data = torch.logit(torch.from_numpy(REFERENCE[f"{case}_estimated"]))
    if name == "EM_APL":  # the reference stores a soft negative as minus its target
        stored = torch.from_numpy(REFERENCE[f"{case}_observed_soft"])
        is_soft = (stored < 0) & (stored > -1)
        module.soft = torch.where(is_soft, -stored, -torch.ones_like(stored))
        observed = torch.where(is_soft, 0, stored).to(torch.int8)
    logits = arrays["logits"].to(dtype).requires_grad_()
    return logits, Targets(observed, true, pseudo, torch.arange(len(observed))), module


def large_losses(share: float):
    return lambda module: setattr(module, "share", share)


def epoch(number: int):
    return lambda module: module.start_epoch(number)


PEER_STATES = {  # what brings a method into the state of each reference
    "LL_R": ("LL_R", large_losses(1 - 0.9375)),
    "LL_Ct": ("LL_Ct", large_losses(1 - 0.9375)),
    "LL_Cp": ("LL_Cp", large_losses(0.015625)),
    "hill": ("hill", epoch(1)),
    "asl": ("asl", epoch(1)),
    "splc_epoch0": ("splc", epoch(1)),  # there counted from 0
    "splc_epoch1": ("splc", epoch(2)),
    "gr_early": ("gr", epoch(1)),
    "gr_late": ("gr", epoch(8)),
    "gpr_early": ("gpr", epoch(1)),
    "gpr_late": ("gpr", epoch(8)),
}


def peer_batch(case: str, key: str, dtype: torch.dtype = torch.float64):
    """logits, targets and the loss module of one reference case of the peers."""
    observed, pseudo = (torch.from_numpy(PEERS[f"{case}_{part}"]).to(torch.int8) for part in ("observed", "pseudo"))
    name, advance = PEER_STATES[key]
    module = build(name, observed, epochs=8)
    advance(module)
    logits = torch.from_numpy(PEERS[f"{case}_logits"]).to(dtype).requires_grad_()
    return logits, Targets(observed, None, pseudo, torch.arange(len(observed))), module


def test_every_loss_of_the_reference_is_compared():
    for file, compared in ((REFERENCE, WITH_REFERENCE), (PEERS, PEER_STATES)):
        keys = {name.removesuffix("_loss") for name in file.files if name.endswith("_loss")}
        assert keys == {f"{case}_{key}" for case in CASES for key in compared}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("key", [*WITH_REFERENCE, *PEER_STATES])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_published_ones(case, key, dtype, tolerance):
    tolerance = max(tolerance, 1e-7) if key in ("LL_Ct", "LL_Cp") else tolerance  # their targets are float32 there
    file, batch = (PEERS, peer_batch) if key in PEER_STATES else (REFERENCE, reference_batch)
    logits, targets, module = batch(case, key, dtype)
    loss = module(logits, targets)
    loss.backward()
    for ours, theirs in ((loss, file[f"{case}_{key}_loss"]), (logits.grad, file[f"{case}_{key}_grad"])):
        assert np.abs(ours.detach().numpy() - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
def test_the_estimates_of_role_have_the_published_gradient(case):
    """The reference has that on the probabilities g; on the logits it is g (1 - g) times as large."""
    logits, targets, module = reference_batch(case, "role", torch.float64)
    module(logits, targets).backward()
    g = REFERENCE[f"{case}_estimated"]
    theirs = REFERENCE[f"{case}_role_grad_estimated"] * g * (1 - g)
    assert np.abs(module.estimates.grad.numpy() - theirs).max() <= 1e-9 * np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("when", ["early", "late"])
def test_the_schedules_of_gr_pass_through_the_published_values(case, when):
    _, _, module = peer_batch(case, f"gr_{when}")
    found = [getattr(module, name) for name in ("slope", "offset", "mu", "sigma")]
    assert found == pytest.approx(PEERS[f"{case}_schedule_{when}_w_b_mu_sigma"].tolist(), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_permanent_correction_flips_what_the_published_code_flips_and_the_kth_largest(case):
    """The code of 2022 flips what exceeds the k-th largest loss; the re-run whose numbers are quoted, that one too."""
    logits, targets, module = peer_batch(case, "LL_Cp")
    module(logits, targets)
    unknown = torch.nn.functional.softplus(logits.detach()).masked_fill(targets.observed != 0, -torch.inf)
    kth = unknown.flatten().argsort(descending=True)[ceil(0.015625 * logits.numel()) - 1].item()
    rows, columns = PEERS[f"{case}_LL_Cp_flipped"]
    published = {(int(row), int(column)) for row, column in zip(rows, columns, strict=True)}
    found = {tuple(place) for place in module.flipped.nonzero().tolist()}
    assert found == published | {divmod(kth, logits.shape[1])} and len(found) == len(published) + 1


def test_without_pseudo_labels_EM_PL_is_EM():
    logits, targets, em = reference_batch("case0", "EM", torch.float64)
    targets = replace(targets, pseudo=torch.zeros_like(targets.observed))
    assert build("EM_PL", targets.observed)(logits, targets).item() == em(logits, targets).item()
