"""Losses, by hand at p = 1/2, against the published code's values, and at the edges."""

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losses
from cli import UserError
from config import Config

REFERENCE = np.load(Path(__file__).parent / "reference/losses.npz")
CASES = sorted({name.split("_")[0] for name in REFERENCE.files})
CONFIG = replace(Config(), beta_neg=0.0)  # as the published code
NLL = -log(0.5 + 1e-5)  # at p = 1/2, which is H(1/2) too


def build(name: str, observed: torch.Tensor, **values) -> losses.Loss:
    return losses.build(name, replace(CONFIG, **values), observed)


def reference_batch(case: str, name: str, dtype: torch.dtype):
    """logits, targets and the loss module of one reference case."""
    arrays = {key: torch.from_numpy(REFERENCE[f"{case}_{key}"]) for key in ("logits", "observed", "true", "pseudo")}
    observed, true, pseudo = (arrays[key].to(torch.int8) for key in ("observed", "true", "pseudo"))
    module = build(name, observed)
    if name == "EM_APL":  # the reference stores a soft negative as minus its target
        stored = torch.from_numpy(REFERENCE[f"{case}_observed_soft"])
        is_soft = (stored < 0) & (stored > -1)
        module.soft = torch.where(is_soft, -stored, -torch.ones_like(stored))
        observed = torch.where(is_soft, 0, stored).to(torch.int8)
    logits = arrays["logits"].to(dtype).requires_grad_()
    return logits, losses.Targets(observed, true, pseudo, torch.arange(len(observed))), module


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_published_ones(case, name, dtype, tolerance):
    logits, targets, module = reference_batch(case, name, dtype)
    loss = module(logits, targets)
    loss.backward()
    for ours, theirs in ((loss, REFERENCE[f"{case}_{name}_loss"]), (logits.grad, REFERENCE[f"{case}_{name}_grad"])):
        assert np.abs(ours.detach().numpy() - theirs).max() <= tolerance * np.abs(theirs).max()


# observed +1, unknown, pseudo +1, pseudo -1, observed -1; true labels 1, 1, 1, 0, 0; all at p = 1/2
BY_HAND = {
    "bce": [NLL, NLL, NLL, NLL, NLL],
    "an": [NLL, NLL, NLL, NLL, NLL],
    "iun": [NLL, 0, 0, NLL, NLL],
    "EM": [NLL, -0.2 * NLL, -0.2 * NLL, -0.2 * NLL, NLL],
    "EM_PL": [NLL, -0.2 * NLL, 0.7 * NLL, 0.3 * NLL, NLL],
    "EM_PL_ASL": [NLL / 4, -NLL / 16, NLL / 4, NLL / 16, NLL / 16],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_each_kind_of_label_costs_what_the_formula_says_at_one_half(name):
    observed = torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8)
    pseudo = torch.tensor([[-1, 0, 1, -1, 1]], dtype=torch.int8)  # contradicts both observed labels, and must lose
    true = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.int8)
    module = build(name, observed, beta_neg=0.3)
    per_label = module.per_label(
        torch.zeros(1, 5, dtype=torch.float64),
        **{
            key: value
            for key, value in (("observed", observed), ("pseudo", pseudo), ("true", true))
            if key in module.inputs
        },
    )
    assert per_label[0].tolist() == pytest.approx(BY_HAND[name], abs=1e-12)


def test_smoothing_gives_a_share_to_the_opposite_label():
    logit, observed = torch.tensor([[2.0, 2.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int8)
    pseudo = torch.tensor([[1, -1]], dtype=torch.int8)
    p = torch.sigmoid(logit[0, 0]).item()
    nll_pos, nll_neg = -log(p + 1e-5), -log(1 - p + 1e-5)
    got = build("EM_PL", observed, beta_neg=0.2).per_label(logit, observed=observed, pseudo=pseudo)[0].tolist()
    assert got == pytest.approx([0.7 * (0.9 * nll_pos + 0.1 * nll_neg), 0.2 * (0.1 * nll_pos + 0.9 * nll_neg)])


def test_without_pseudo_labels_EM_PL_is_EM():
    logits, targets, em = reference_batch("case0", "EM", torch.float64)
    targets = replace(targets, pseudo=torch.zeros_like(targets.observed))
    assert build("EM_PL", targets.observed)(logits, targets).item() == em(logits, targets).item()


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_extreme_logits_give_finite_losses_and_gradients(name, dtype, data):
    rows = data.draw(st.lists(st.floats(-80, 80), min_size=6, max_size=6))
    logits = torch.tensor(rows).reshape(2, 3).to(dtype).requires_grad_()
    draw = lambda low: torch.tensor(data.draw(st.lists(st.integers(low, 1), min_size=6, max_size=6))).reshape(2, 3)  # noqa: E731
    observed, pseudo, true = draw(-1).to(torch.int8), draw(-1).to(torch.int8), draw(0).to(torch.int8)
    loss = build(name, observed, beta_neg=0.2)(logits, losses.Targets(observed, true, pseudo, torch.arange(2)))
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


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
    assert not module.wants_predictions(first - 1) and module.wants_predictions(first)
    for turn in range(3):
        module.end_epoch(first + turn, torch.from_numpy(file["probs"][turn]))
        ours = torch.where(module.soft >= 0, -module.soft, observed)
        assert (ours.numpy() == file[f"observed_after_{turn + 1}"]).all()


def test_apl_labels_nothing_before_the_warm_up_and_keeps_its_labels_in_its_state():
    observed = torch.zeros(40, 2, dtype=torch.int8)
    module = build("EM_APL", observed, epochs=3, warmup_epochs=2, neg_proportion=0.5)
    module.end_epoch(1)
    assert (module.soft == -1).all()
    probs = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    module.end_epoch(2, probs)
    assert (module.soft >= 0).sum(dim=0).tolist() == [20, 20]
    assert probs[module.soft[:, 0] >= 0, 0].max() < probs[module.soft[:, 0] < 0, 0].min()
    other = build("EM_APL", observed, epochs=3, warmup_epochs=2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.soft, module.soft)


def test_apl_takes_all_that_are_left_where_fewer_are_left_than_asked_for():
    chosen = losses.entropy.lowest_become_soft(
        torch.tensor([[0.3], [0.1], [0.2]]), torch.tensor([[True], [False], [True]]), torch.tensor([3])
    )
    assert chosen[:, 0].tolist() == [True, False, True]


def test_a_loss_reads_the_coefficients_that_its_signature_names():
    assert losses.coefficients("EM") == ("alpha", "eps")
    assert losses.inputs("EM_PL") == ("observed", "pseudo")
    assert losses.inputs("EM_APL") == ("observed", "index")
    assert all(hasattr(Config, name) for loss in losses.LOSSES for name in losses.coefficients(loss))


def test_an_unknown_loss_is_told_with_the_list_of_known_ones():
    with pytest.raises(UserError, match="EM_PL"):
        losses.build("em_pl", CONFIG, torch.zeros(1, 1))
