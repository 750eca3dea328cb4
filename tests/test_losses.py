"""Losses: what every method must satisfy, by hand at p = 1/2, against the published code's values, and the contract."""

from dataclasses import replace
from math import exp, log
from pathlib import Path
from threading import Barrier, Thread, get_ident

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training import BATCH, TRAINED, MemoryStorage, StopAfter, early, fit, pseudo_labels_of, tiny_training, values_of

import engine
import losses
from config import COMMON, parse
from datasets import DATASETS
from losses import LOSSES, Loss, Method, Targets, zhou2022
from losses.base import target_names
from pseudo_labels import THRESHOLD_RULE
from util import distributed
from util.errors import Interrupted, UserError
from util.settings import Setting

REFERENCE = np.load(Path(__file__).parent / "reference/losses.npz")
PEERS = np.load(Path(__file__).parent / "reference/peer_losses.npz")
CASES = sorted({name.split("_")[0] for name in REFERENCE.files})
WITH_REFERENCE = [name for name in LOSSES if f"{CASES[0]}_{name}_loss" in REFERENCE.files]
NLL = -log(0.5 + 1e-5)  # at p = 1/2, which is H(1/2) too
NLL_7 = -log(0.5 + 1e-7)
EPS = losses.find("an").settings["eps"]


def build(name: str, observed: torch.Tensor, **changes) -> Loss:
    """The loss of a method at its defaults; negative pseudo-labels weigh nothing, as in the published code."""
    published = {"beta_neg": 0.0} if "beta_neg" in losses.find(name).settings else {}
    return losses.build(name, values_of(name, **published | changes), observed)


def per_label(module: Loss, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    return module.per_label(logits, *(getattr(targets, name) for name in target_names(module.per_label)))


def random_batch(num_images: int = 12, num_labels: int = 5) -> tuple[torch.Tensor, Targets]:
    """Logits, and labels of all kinds that do not contradict each other."""
    random = np.random.RandomState(0)
    shape = (num_images, num_labels)
    logits, true = torch.from_numpy(random.randn(*shape)), torch.from_numpy(random.randint(0, 2, shape))
    observed = torch.where(torch.from_numpy(random.rand(*shape)) < 0.3, 2 * true - 1, 0)
    pseudo = torch.from_numpy(random.randint(-1, 2, shape))
    labels = (part.to(torch.int8) for part in (observed, true, pseudo))
    return logits, Targets(*labels, torch.arange(num_images))


def labels_of_rule(name: str) -> np.ndarray:
    similarity = 0.1 * np.random.RandomState(0).rand(20, 5).astype(np.float32)
    return pseudo_labels_of(name, similarity, values_of(name, **early(name)))


SOFT = [name for name in LOSSES if labels_of_rule(name).dtype != np.int8]  # methods whose pseudo-labels are soft


def readable(name: str, targets: Targets) -> Targets:
    """The targets with pseudo-labels of the kind that the method reads."""
    return replace(targets, pseudo=targets.pseudo.clamp(min=0).float()) if name in SOFT else targets


# What every method must satisfy


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_gives_each_label_a_finite_loss(name):
    logits, targets = random_batch()
    found = per_label(build(name, targets.observed), logits, readable(name, targets))
    assert found.shape == logits.shape and torch.isfinite(found).all()


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_extreme_logits_give_finite_losses_and_gradients(name, data):
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    rows = data.draw(st.lists(st.floats(-80, 80), min_size=6, max_size=6))
    logits = torch.tensor(rows).reshape(2, 3).to(dtype).requires_grad_()
    draw = lambda low: torch.tensor(data.draw(st.lists(st.integers(low, 1), min_size=6, max_size=6))).reshape(2, 3)  # noqa: E731
    observed, pseudo, true = draw(-1).to(torch.int8), draw(-1).to(torch.int8), draw(0).to(torch.int8)
    module = losses.build(name, values_of(name, **early(name)), observed)
    module.start_epoch(2)
    loss = module(logits, readable(name, Targets(observed, true, pseudo, torch.arange(2))))
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def one_step(training: engine.Training) -> torch.Tensor:
    """Train on one batch; the rows of its images."""
    index = torch.arange(BATCH)
    training.step(next(training.data.images.stream([index], training.device)), index, index < 0, BATCH)
    return index


@pytest.mark.parametrize("name", TRAINED)
def test_one_step_of_training_moves_every_weight(name):
    training = tiny_training(name)
    before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
    one_step(training)
    assert before and not [name for name, now in training.model.named_parameters() if torch.equal(now, before[name])]


@pytest.mark.parametrize("name", [name for name in LOSSES if "pseudo" in LOSSES[name].reads() and name not in SOFT])
def test_a_pseudo_label_of_0_is_no_opinion(name):
    logits, targets = random_batch()
    module = losses.build(name, values_of(name, **early(name)), targets.observed)
    found = per_label(module, logits, targets)
    silent = per_label(module, logits, replace(targets, pseudo=torch.zeros_like(targets.pseudo)))
    assert torch.equal(found[targets.pseudo == 0], silent[targets.pseudo == 0])  # whatever it says of other labels
    made = set(labels_of_rule(name).ravel().tolist())
    assert made > {0}
    for opinion in made - {0}:
        here = (targets.pseudo == opinion) & (targets.observed == 0)
        assert here.any() and (found[here] != silent[here]).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_record_is_complete_and_agrees_with_its_functions(name):
    method = losses.find(name)  # verifies it
    assert method.summary and method.equation and method.paper
    assert "\n" not in method.summary
    assert method.published.keys() <= DATASETS.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_every_value_of_a_record_lies_in_its_interval(name):
    method = losses.find(name)
    for setting, about in method.all_settings().items():
        assert about.help and about.by_dataset.keys() <= DATASETS.keys()
        assert not about.needs or about.needs in method.all_settings()
        for value in (about.default, *about.by_dataset.values()):
            about.check(setting, value)
    for setting, values in method.recipe.items():
        for value in values.values():
            COMMON[setting]["setting"].check(setting, value)


@pytest.mark.parametrize("name", LOSSES)
def test_a_methods_settings_go_together_on_every_known_data_set(name):
    for dataset in DATASETS:
        assert parse(["-d", dataset, "-l", name]).loss == name


# By hand


K_HALF = 1 / (1 + exp(2))  # of gr, before its first epoch; V = 1
UNKNOWN = K_HALF * (1 - 0.5**0.01) / 0.01 + (1 - K_HALF) / 2
SIGMOID_1, SOFTPLUS_1 = 1 / (1 + exp(-1)), log(1 + exp(1))  # a margin of 1 lowers the logit 0 of a positive to -1

# observed +1, unknown, pseudo +1, pseudo -1, observed -1; true labels 1, 1, 1, 0, 0; all at p = 1/2, before any epoch
BY_HAND = {
    "bce": [NLL, NLL, NLL, NLL, NLL],
    "bce_ls": [NLL, NLL, NLL, NLL, NLL],
    "iun": [NLL, 0, 0, NLL, NLL],
    "an": [NLL, NLL, NLL, NLL, NLL],
    "an_ls": [NLL, NLL, NLL, NLL, NLL],
    "wan": [NLL, NLL / 4, NLL / 4, NLL / 4, NLL],
    "iu": [NLL, 0, 0, 0, NLL],
    "pr": [4, 0, 0, 0, 0],
    "epr": [NLL, 0, 0, 0, NLL],
    "role": [2 * NLL, NLL, NLL, NLL, 2 * NLL],  # its estimates at 1/2 too
    "asl": [log(2) / 2, *4 * [-(0.45**4) * log(0.55)]],
    "hill": [SIGMOID_1**2 * SOFTPLUS_1, *4 * [1 / 4]],
    "splc": [SIGMOID_1**2 * SOFTPLUS_1, *4 * [log(2) / 4]],
    "LL_R": 5 * [log(2)],
    "LL_Ct": 5 * [log(2)],
    "LL_Cp": 5 * [log(2)],
    "EM": [NLL, -0.2 * NLL, -0.2 * NLL, -0.2 * NLL, NLL],
    "EM_APL": [NLL, -0.2 * NLL, -0.2 * NLL, -0.2 * NLL, NLL],  # before the first soft negative
    "gr": [NLL_7, UNKNOWN, UNKNOWN, UNKNOWN, NLL_7],
    "EM_PL": [NLL, -0.2 * NLL, 0.7 * NLL, 0.3 * NLL, NLL],
    "EM_PL_ASL": [NLL / 4, -NLL / 16, NLL / 4, NLL / 16, NLL / 16],
    "gpr": [NLL_7, UNKNOWN, 0.4 * NLL_7, NLL_7, NLL_7],
    "CTL": [NLL, NLL / 4, NLL, NLL / 4, NLL / 4],  # its pseudo-labels are 0 or 1 here; w = 1 / (5 - 1)
}


def test_every_method_is_calculated_by_hand():
    assert set(BY_HAND) == set(TRAINED)


@pytest.mark.parametrize("name", BY_HAND)
def test_each_kind_of_label_costs_what_the_formula_says_at_one_half(name):
    observed = torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8)
    pseudo = torch.tensor([[-1, 0, 1, -1, 1]], dtype=torch.int8)  # contradicts both observed labels, and must lose
    true = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.int8)
    module = build(name, observed, **({"beta_neg": 0.3} if name == "EM_PL" else {}))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    targets = readable(name, Targets(observed, true, pseudo, torch.arange(1)))
    found = per_label(module, torch.zeros(1, 5, dtype=torch.float64), targets)
    assert found[0].tolist() == pytest.approx(BY_HAND[name], abs=1e-12)


def test_smoothing_gives_a_share_to_the_opposite_label():
    logit, observed = torch.tensor([[2.0, 2.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int8)
    labels = torch.tensor([[1, -1]], dtype=torch.int8)
    p = torch.sigmoid(logit[0, 0]).item()
    nll_pos, nll_neg = -log(p + 1e-5), -log(1 - p + 1e-5)
    positive, negative = 0.9 * nll_pos + 0.1 * nll_neg, 0.1 * nll_pos + 0.9 * nll_neg
    got = build("EM_PL", observed, beta_neg=0.2).per_label(logit, observed, labels)[0].tolist()
    assert got == pytest.approx([0.7 * positive, 0.2 * negative])
    for name in ("bce_ls", "an_ls"):
        assert build(name, observed).per_label(logit, labels)[0].tolist() == pytest.approx([positive, negative])


def test_the_regulariser_is_the_squared_excess_of_expected_positives():
    """Two images of four labels at p = 1/2: two positives each, where 1.5 are expected."""
    logits, observed = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.int8)
    found = {name: build(name, observed) for name in ("epr", "role", "gpr")}
    nn.init.zeros_(found["role"].estimates)
    assert found["epr"].regulariser(logits).item() == pytest.approx(0.5**2 / 16)
    assert found["role"].regulariser(logits, torch.arange(2)).item() == pytest.approx(0.5**2 / 16)
    assert found["gpr"].regulariser(logits).item() == pytest.approx(0.05 * 0.5**2 / 16)


def test_a_calibrated_score_is_the_target_of_an_unknown_label():
    logit, observed = torch.tensor([[2.0, 2.0, 2.0]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.int8)
    pseudo = torch.tensor([[0.49, 0.5, 0.01]])
    p = torch.sigmoid(logit[0, 0]).item()
    nll_pos, nll_neg = -log(p + 1e-5), -log(1 - p + 1e-5)
    got = build("CTL", observed, gamma=0.5).per_label(logit, observed, pseudo)[0]
    assert got[0].item() == pytest.approx(0.7 * nll_pos + 0.3 * nll_neg / 2, abs=1e-6)
    assert got[2].item() == pytest.approx(0.1 * nll_pos + 0.9 * nll_neg / 2, abs=1e-6)


# Against the published code


def reference_batch(case: str, name: str, dtype: torch.dtype):
    """logits, targets and the loss module of one reference case."""
    arrays = {key: torch.from_numpy(REFERENCE[f"{case}_{key}"]) for key in ("logits", "observed", "true", "pseudo")}
    observed, true, pseudo = (arrays[key].to(torch.int8) for key in ("observed", "true", "pseudo"))
    module = build(name, observed)
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


def test_the_reference_holds_the_methods_of_the_published_code():
    published = {"bce", "bce_ls", "iun", "an", "an_ls", "wan", "iu", "pr", "epr", "role"}
    assert {*published, "EM", "EM_APL", "EM_PL", "EM_PL_ASL"} == set(WITH_REFERENCE)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", WITH_REFERENCE)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_published_ones(case, name, dtype, tolerance):
    logits, targets, module = reference_batch(case, name, dtype)
    loss = module(logits, targets)
    loss.backward()
    for ours, theirs in ((loss, REFERENCE[f"{case}_{name}_loss"]), (logits.grad, REFERENCE[f"{case}_{name}_grad"])):
        assert np.abs(ours.detach().numpy() - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
def test_the_estimates_of_role_have_the_published_gradient(case):
    """The reference has that on the probabilities g; on the logits it is g (1 - g) times as large."""
    logits, targets, module = reference_batch(case, "role", torch.float64)
    module(logits, targets).backward()
    g = REFERENCE[f"{case}_estimated"]
    theirs = REFERENCE[f"{case}_role_grad_estimated"] * g * (1 - g)
    assert np.abs(module.estimates.grad.numpy() - theirs).max() <= 1e-9 * np.abs(theirs).max()


def large_losses(share: float):
    """At a clean rate of 1 - share."""
    return lambda module: module.share.fill_(share)


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


def test_every_peer_of_the_reference_is_compared():
    keys = {name.removeprefix("case0_").removesuffix("_loss") for name in PEERS.files if name.endswith("_loss")}
    assert keys >= PEER_STATES.keys() and {name.removeprefix("case1_") for name in keys} >= PEER_STATES.keys()
    assert len(keys) == 2 * len(PEER_STATES)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("key", PEER_STATES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_a_peer_are_the_published_ones(case, key, dtype, tolerance):
    tolerance = max(tolerance, 1e-7) if key in ("LL_Ct", "LL_Cp") else tolerance  # their targets are float32 there
    logits, targets, module = peer_batch(case, key, dtype)
    loss = module(logits, targets)
    loss.backward()
    for ours, theirs in ((loss, PEERS[f"{case}_{key}_loss"]), (logits.grad, PEERS[f"{case}_{key}_grad"])):
        assert np.abs(ours.detach().numpy() - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("when", ["early", "late"])
def test_the_schedules_of_gr_pass_through_the_published_values(case, when):
    _, _, module = peer_batch(case, f"gr_{when}")
    found = [getattr(module, name).item() for name in ("slope", "offset", "mu", "sigma")]
    assert found == pytest.approx(PEERS[f"{case}_schedule_{when}_w_b_mu_sigma"].tolist(), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_permanent_correction_flips_what_the_published_code_flips(case):
    logits, targets, module = peer_batch(case, "LL_Cp")
    module(logits, targets)
    rows, columns = PEERS[f"{case}_LL_Cp_flipped"]
    assert module.flipped.nonzero().tolist() == sorted([row, column] for row, column in zip(rows, columns, strict=True))


def test_without_pseudo_labels_EM_PL_is_EM():
    logits, targets, em = reference_batch("case0", "EM", torch.float64)
    targets = replace(targets, pseudo=torch.zeros_like(targets.observed))
    assert build("EM_PL", targets.observed)(logits, targets).item() == em(logits, targets).item()


# EM_APL's memory


def refuse() -> torch.Tensor:
    pytest.fail("a pass over the training images that nothing is made of")


def test_apl_makes_the_soft_negatives_of_the_published_three_rounds():
    file = np.load(Path(__file__).parent / "reference/apl.npz")
    observed, first = torch.from_numpy(file["observed_initial"]), int(file["warmup_epoch"])
    module = build(
        "EM_APL",
        observed,
        epochs=int(file["num_epochs"]),
        warmup_epochs=first,
        neg_proportion=float(file["neg_proportion"]),
    ).double()  # as the file
    module.end_epoch(first - 1, refuse)
    for turn in range(3):
        module.end_epoch(first + turn, lambda turn=turn: torch.from_numpy(file["probs"][turn]))
        ours = torch.where(module.soft >= 0, -module.soft, observed)
        assert (ours.numpy() == file[f"observed_after_{turn + 1}"]).all()


def test_apl_labels_nothing_before_the_warm_up_and_keeps_its_labels_in_its_state():
    observed = torch.zeros(40, 2, dtype=torch.int8)
    module = build("EM_APL", observed, epochs=3, warmup_epochs=2, neg_proportion=0.5)
    module.end_epoch(1, refuse)
    assert (module.soft == -1).all()
    probs = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    module.end_epoch(2, lambda: probs)
    assert (module.soft >= 0).sum(dim=0).tolist() == [20, 20]
    assert probs[module.soft[:, 0] >= 0, 0].max() < probs[module.soft[:, 0] < 0, 0].min()
    module.end_epoch(3, refuse)  # the last: no step would read them
    other = build("EM_APL", observed, epochs=3, warmup_epochs=2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.soft, module.soft)


def test_apl_takes_all_that_are_left_where_fewer_are_left_than_asked_for():
    chosen = zhou2022.lowest_become_soft(
        torch.tensor([[0.3], [0.1], [0.2]]), torch.tensor([[True], [False], [True]]), torch.tensor([3])
    )
    assert chosen[:, 0].tolist() == [True, False, True]


# The memory of the others


@pytest.mark.parametrize("name", ["LL_R", "LL_Ct", "LL_Cp"])
def test_large_losses_are_taken_for_positives_from_the_second_epoch_on(name):
    """A batch of 2 x 3 labels; k = 1, then 2 of 6 (of LL_Cp always 1)."""
    observed = torch.tensor([[1, 0, 0], [0, 0, -1]], dtype=torch.int8)
    logits = torch.tensor([[9.0, -1.0, 3.0], [2.0, 1.0, 8.0]], dtype=torch.float64)
    module, targets = build(name, observed, delta=16.0), Targets(observed, index=torch.arange(2))
    usual = torch.nn.functional.softplus(torch.where(observed == 1, -logits, logits))

    def taken_for_positives() -> list[list[int]]:
        found = per_label(module, logits, targets)
        return (found != usual).nonzero().tolist()

    module.start_epoch(1)
    assert taken_for_positives() == []
    module.start_epoch(2)
    assert taken_for_positives() == [[0, 2]]  # neither the observed positive nor the observed negative
    module.start_epoch(3)
    assert taken_for_positives() == ([[0, 2]] if name == "LL_Cp" else [[0, 2], [1, 0]])


def test_permanent_correction_keeps_what_it_flipped_where_the_loss_has_become_small():
    observed, index = torch.zeros(3, 4, dtype=torch.int8), torch.tensor([2, 0])
    module = build("LL_Cp", observed, delta=25.0)  # k = 2 of 8; the largest alone lies above the second
    module.start_epoch(2)
    logits = torch.tensor([[5.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    per_label(module, logits, Targets(observed[index], index=index))
    assert module.flipped.nonzero().tolist() == [[2, 0]]
    module.start_epoch(1)  # nothing is flipped in it
    found = per_label(module, -logits, Targets(observed[index], index=index))
    assert found[0, 0].item() == pytest.approx(log(1 + exp(5)))
    other = build("LL_Cp", observed)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.flipped, module.flipped)


def test_splc_corrects_no_observed_negative():
    observed = torch.tensor([[0, -1, 0]], dtype=torch.int8)
    module, logits = build("splc", observed), torch.tensor([[2.0, 2.0, 0.3]], dtype=torch.float64)
    module.start_epoch(2)
    p, softplus = torch.sigmoid(logits[0]), torch.nn.functional.softplus(logits[0])
    expected = [(1 - p[0]) ** 2 * (softplus[0] - 2), p[1] ** 2 * softplus[1], p[2] ** 2 * softplus[2]]
    assert module.per_label(logits, observed)[0].tolist() == pytest.approx([value.item() for value in expected])


def test_the_estimates_of_role_start_sure_where_a_label_is_observed_and_follow_the_seed():
    observed = torch.from_numpy(np.random.RandomState(0).randint(-1, 2, (200, 30))).to(torch.int8)
    first, same, other = (torch.sigmoid(build("role", observed, seed=seed).estimates.detach()) for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)
    for label, estimate in ((1, 0.995), (-1, 0.005)):
        assert torch.allclose(first[observed == label], torch.tensor(estimate))
    unknown = first[observed == 0]
    assert 0.4 <= unknown.min() < 0.41 and 0.59 < unknown.max() <= 0.6 and abs(unknown.mean() - 0.5) < 0.01


def test_a_coefficient_out_of_range_is_one_line(fails):
    line = fails(parse, ["-l", "gpr", "--min-weight", "0.8"])
    assert "--min-weight 0.8 must not be above --max-weight 0.7" in line
    assert "--tau must lie in (0, 1), not 1.5" in fails(parse, ["-l", "splc", "--tau", "1.5"])
    assert "--delta must lie in [0, 100], not -1.0" in fails(parse, ["-l", "LL_R", "--delta", "-1"])


# Several processes


def in_parts(monkeypatch, name: str, sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, list[Loss]]:
    """Loss and gradient of the random batch, divided among two threads that stand for processes, and their modules."""
    logits, targets = random_batch()
    parts, barrier, held = torch.arange(len(logits)).split(sizes), Barrier(2), {}

    def gather(rows: torch.Tensor) -> torch.Tensor:
        held[get_ident()] = rows.detach()
        barrier.wait()
        found = torch.cat([held[thread.ident] for thread in threads])
        barrier.wait()
        return found

    found: list = [None, None]

    def process(place: int) -> None:
        part = parts[place]
        module, mine = started(name, targets), logits[part].clone().requires_grad_()
        labels = readable(name, targets)
        labels = Targets(labels.observed[part], labels.true[part], labels.pseudo[part], labels.index[part])
        loss = module(mine, labels) * (len(part) / len(logits))
        loss.backward()
        found[place] = loss.detach(), mine.grad, module

    monkeypatch.setattr(distributed, "gather", gather)
    threads = [Thread(target=process, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    losses_of, gradients, modules = zip(*found, strict=True)
    return sum(losses_of), torch.cat(gradients), list(modules)


def started(name: str, targets: Targets) -> Loss:
    module = losses.build(name, values_of(name, **early(name)), targets.observed)
    module.start_epoch(2)
    return module


@pytest.mark.parametrize("sizes", [(7, 5), (12, 0)])
@pytest.mark.parametrize("name", TRAINED)
def test_two_parts_of_a_batch_cost_together_what_the_batch_costs(monkeypatch, name, sizes):
    logits, targets = random_batch()
    logits.requires_grad_()
    alone = started(name, targets)
    loss = alone(logits, readable(name, targets))
    loss.backward()
    parts_loss, gradient, modules = in_parts(monkeypatch, name, sizes)
    assert parts_loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.allclose(gradient, logits.grad, rtol=1e-9, atol=1e-12)
    for module in modules:
        for buffer, same in zip(module.buffers(), alone.buffers(), strict=True):
            assert torch.equal(buffer, same)


# The record and its functions


def test_a_loss_reads_the_settings_and_targets_that_its_signature_names():
    assert losses.base.keywords(LOSSES["EM"].loss) == ("alpha", "eps")
    assert LOSSES["EM_PL"].reads() == ("observed", "pseudo")
    assert LOSSES["EM_APL"].reads() == ("observed", "index")
    assert set(losses.base.keywords(LOSSES["EM_APL"].loss)) == {*LOSSES["EM_APL"].settings, "epochs"}


def test_an_unknown_loss_is_told_with_the_list_of_known_ones():
    with pytest.raises(UserError, match="EM_PL"):
        losses.build("em_pl", {}, torch.zeros(1, 1))


def plain(logits, observed, *, eps):
    return logits.square() + eps


def reads_width(logits, observed, *, eps, width):
    return logits


def reads_labels(logits, labels, *, eps):
    return logits


def reads_pseudo(logits, pseudo, *, eps):
    return logits


def check_width(*, width):
    pass


class ReadsLabels(Loss):
    def __init__(self, observed, *, eps):
        super().__init__()

    def per_label(self, logits, labels):
        return logits


class ReadsWidth(Loss):
    def __init__(self, observed, *, width):
        super().__init__()

    def per_label(self, logits, observed):
        return logits


def record(loss, **more) -> Method:
    return Method(**dict(summary="mine", loss=loss, equation="", paper="", settings=dict(eps=EPS)) | more)


@pytest.mark.parametrize(
    "method, says",
    [
        (record(reads_width), "reads_width of mine reads the setting 'width', which its record does not declare"),
        (record(ReadsWidth), "ReadsWidth of mine reads the setting 'width', which its record does not declare"),
        (record(plain, regulariser=reads_width), "reads_width of mine reads the setting 'width'"),
        (record(plain, check=check_width), "check_width of mine reads the setting 'width'"),
        (record(reads_labels), "the loss of mine reads 'labels'; it may read observed, true, pseudo, index"),
        (record(ReadsLabels), "the loss of mine reads 'labels'"),
        (record(plain, regulariser=reads_labels), "the loss of mine reads 'labels'"),
        (record(reads_pseudo), "reads pseudo-labels, but its record names no rule"),
        (record(plain, settings=dict(eps=EPS, lr=Setting(1.0, "mine"))), "'lr', which is a common setting"),
    ],
)
def test_a_record_that_contradicts_its_functions_is_one_line(monkeypatch, fails, method, says):
    monkeypatch.setitem(LOSSES, "mine", method)
    assert says in fails(parse, ["-l", "an"])


def test_a_new_method_is_on_the_command_line_and_in_the_identity(monkeypatch, capsys):
    width = Setting(3.0, "width of mine", "[1, inf)", coco=2.0)
    monkeypatch.setitem(LOSSES, "mine", record(reads_width, settings=dict(eps=EPS, width=width)))
    choice = Setting("EM_PL", "method", flags=("-l",), choices=tuple(LOSSES))
    monkeypatch.setitem(COMMON, "loss", dict(COMMON["loss"]) | {"setting": choice})
    assert parse(["-l", "mine", "--width", "5"]).hparams == {"eps": 1e-5, "width": 5.0}
    assert parse(["-l", "mine", "-d", "coco"]).hparams["width"] == 2.0
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "width of mine (default 3.0; coco: 2.0; in [1, inf); read by mine)" in " ".join(
        capsys.readouterr().out.split()
    )


# The contract between a loss and the training


class Table(Loss):
    """Learns an estimate of each label, and counts the steps that it is told of."""

    rate = 10.0

    def __init__(self, observed, *, eps):
        super().__init__()
        self.estimate = nn.Parameter(torch.zeros(observed.shape))
        self.register_buffer("told", torch.zeros(100, dtype=torch.int64))

    def start_step(self, step):
        self.told[step] += 1

    def per_label(self, logits, observed, index):
        return (logits - self.estimate[index]).square() + (self.estimate[index] - observed).square()


def spread(logits: torch.Tensor, observed: torch.Tensor, *, weight: float) -> torch.Tensor:
    return weight * (logits.mean() - observed.float().mean()).square()


@pytest.fixture
def table(monkeypatch) -> str:
    monkeypatch.setitem(LOSSES, "table", record(Table))
    return "table"


def test_parameters_of_a_loss_are_trained_at_a_rate_of_their_own(table):
    training = tiny_training(table)
    (backbone, own) = training.step.optimizer.param_groups
    assert own["params"] == [training.loss_function.estimate]
    assert own["lr"] == pytest.approx(10 * backbone["lr"])
    seen = one_step(training)
    estimate = training.loss_function.estimate.detach()
    assert estimate[seen].abs().flatten().tolist() == pytest.approx([own["lr"]] * estimate[seen].numel(), rel=1e-3)
    assert (estimate[seen[-1] + 1 :] == 0).all()


def test_parameters_of_a_loss_are_in_the_checkpoint_with_their_momentum(table):
    training, storage = tiny_training(table, epochs=1), MemoryStorage()
    fit(training, storage)
    other = tiny_training(table, epochs=1)
    other.load_state_dict(storage.load())
    estimates = [one.loss_function.estimate for one in (training, other)]
    momenta = [one.step.optimizer.state[one.loss_function.estimate]["exp_avg"] for one in (training, other)]
    for one, same in (estimates, momenta):
        assert torch.equal(one, same) and (one != 0).all()


@pytest.mark.parametrize("batch", [3, 9])  # in training, in validation
def test_a_loss_is_told_of_every_step_once_also_where_the_run_stops_between(table, batch):
    storage = MemoryStorage()
    with pytest.raises(Interrupted):
        fit(tiny_training(table, epochs=2), storage, StopAfter(batch))
    training = tiny_training(table, epochs=2)
    training.load_state_dict(storage.load())
    assert training.loss_function.told.sum() == min(batch, 5)
    fit(training)
    assert training.loss_function.told.tolist() == [1] * 10 + [0] * 90  # five steps in each of two epochs


def test_a_regulariser_is_added_to_the_mean(monkeypatch):
    own = dict(eps=EPS, weight=Setting(3.0, "of the regulariser", "[0, inf)"))
    monkeypatch.setitem(LOSSES, "mine", record(plain, regulariser=spread, settings=own))
    logits, targets = random_batch()
    loss = losses.build("mine", values_of("mine"), targets.observed)(logits, targets)
    mean = (logits.square() + EPS.default).mean()
    assert loss.item() == pytest.approx((mean + spread(logits, targets.observed, weight=3.0)).item())
    assert loss.item() != pytest.approx(mean.item())


def test_soft_pseudo_labels_reach_the_loss_as_they_are(monkeypatch):
    seen = []

    def cross_entropy(logits, pseudo, *, eps):
        seen.append(pseudo)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, pseudo, reduction="none")

    monkeypatch.setitem(LOSSES, "mine", record(cross_entropy, pseudo_labels=THRESHOLD_RULE))
    training = tiny_training("mine", epochs=1)
    soft = torch.rand(training.data.observed.shape, generator=torch.Generator().manual_seed(0))
    training.data = training.step.data = replace(training.data, pseudo=soft)
    index = torch.tensor([3, 30])
    assert torch.equal(training.data.targets(index).pseudo, soft[index])
    training.train_epoch()
    assert {labels.dtype for labels in seen} == {torch.float32}
    assert torch.equal(torch.cat(seen).sort(dim=0).values, soft.sort(dim=0).values)


def test_the_head_learns_at_its_own_rate():
    slow, fast = tiny_training("an"), tiny_training("an", head_rate=5.0)
    assert [group["lr"] for group in slow.step.optimizer.param_groups] == [0.01]
    backbone, head = fast.step.optimizer.param_groups
    assert [backbone["lr"], head["lr"]] == pytest.approx([0.01, 0.05])
    assert set(head["params"]) == set(fast.model.head_parameters())
    assert {*backbone["params"], *head["params"]} == set(fast.model.parameters())
    before = fast.model.network[4].weight.detach().clone()
    one_step(fast)
    assert (fast.model.network[4].weight - before).abs().max().item() == pytest.approx(0.05, rel=1e-3)
