"""Losses: what every method must satisfy, by hand at p = 1/2, and their state."""

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
from training import (
    TRAINED,
    build,
    early,
    one_step,
    per_label,
    pseudo_labels_of,
    random_batch,
    tiny_training,
    values_of,
)

import losses
from config import COMMON, parse
from datasets import DATASETS
from losses import LOSSES, Loss, Targets, zhou2022
from util import distributed
from util.settings import ends


def labels_of_rule(name: str) -> np.ndarray:
    similarity = 0.1 * np.random.RandomState(0).rand(20, 5).astype(np.float32)
    return pseudo_labels_of(name, similarity, values_of(name, **early(name)))


NLL, NLL_7, LOG_2 = -log(0.5 + 1e-5), -log(0.5 + 1e-7), log(2)  # nll(p), nll(1-p) and H(p) at p = 1/2, by eps
K_FIRST = 1 / (1 + exp(2))  # GR's K before the first epoch, when V is 1
GR = K_FIRST * (1 - 0.5**0.01) / 0.01 + (1 - K_FIRST) / 2
LOWERED = log(1 + exp(1)) / (1 + exp(-1)) ** 2  # an observed positive whose logit is lowered by 1
# the loss per label at p = 1/2, calculated by hand, at default settings and before the first epoch, of five labels that
# are observed as +1, 0, 0, 0, -1; their true labels are 1, 1, 1, 0, 0, the pseudo-labels of the unknown ones 0, +1, -1
AT_HALF = {
    **dict.fromkeys(("bce", "bce_ls", "an", "an_ls"), (NLL, NLL, NLL, NLL, NLL)),
    "iun": (NLL, 0, 0, NLL, NLL),
    **dict.fromkeys(("iu", "epr"), (NLL, 0, 0, 0, NLL)),
    "wan": (NLL, NLL / 4, NLL / 4, NLL / 4, NLL),
    "pr": (4, 0, 0, 0, 0),
    "role": (2 * NLL, NLL, NLL, NLL, 2 * NLL),  # with estimates of 1/2
    "asl": (LOG_2 / 2, *4 * [-(0.45**4) * log(0.55)]),
    "hill": (LOWERED, 1 / 4, 1 / 4, 1 / 4, 1 / 4),
    "splc": (LOWERED, LOG_2 / 4, LOG_2 / 4, LOG_2 / 4, LOG_2 / 4),
    **dict.fromkeys(("LL_R", "LL_Ct", "LL_Cp"), (LOG_2, LOG_2, LOG_2, LOG_2, LOG_2)),
    **dict.fromkeys(("EM", "EM_APL"), (NLL, -0.2 * NLL, -0.2 * NLL, -0.2 * NLL, NLL)),
    "gr": (NLL_7, GR, GR, GR, NLL_7),
    "EM_PL": (NLL, -0.2 * NLL, 0.7 * NLL, 0.2 * NLL, NLL),
    "EM_PL_ASL": (NLL / 4, -NLL / 16, NLL / 4, NLL / 16, NLL / 16),
    "gpr": (NLL_7, GR, 0.4 * NLL_7, NLL_7, NLL_7),
    "CTL": (NLL, NLL / 4, NLL, NLL / 4, NLL / 4),  # q = 0 or 1; w = 1 / (5 - 1)
}
SOFT = [name for name in LOSSES if labels_of_rule(name).dtype != np.int8]  # methods whose pseudo-labels are soft


def readable(name: str, targets: Targets) -> Targets:
    """The targets with pseudo-labels of the kind that the method reads."""
    return replace(targets, pseudo=targets.pseudo.clamp(min=0).float()) if name in SOFT else targets


# What every method must satisfy


@pytest.mark.parametrize("name", LOSSES)
def test_a_record_is_complete_and_its_values_lie_in_their_intervals(name):
    method = losses.find(name)  # verifies it
    assert method.summary and method.equation and method.paper and "\n" not in method.summary
    assert method.published.keys() <= DATASETS.keys()
    for setting, about in method.all_settings().items():
        assert about.help and about.by_dataset.keys() <= DATASETS.keys()
        assert not about.needs or about.needs in method.all_settings()
        searched = ends(about.search) if isinstance(about.search, str) else about.search
        for value in (about.default, *about.by_dataset.values(), *searched):
            about.check(setting, value)
    for setting, values in method.recipe.items():
        for value in values.values():
            COMMON[setting]["setting"].check(setting, value)
    for dataset in DATASETS:
        assert parse(["-d", dataset, "-l", name]).loss == name  # its settings go together


@pytest.mark.parametrize("name", AT_HALF)
def test_each_kind_of_label_costs_at_one_half_what_was_calculated_by_hand(name):
    observed = torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8)
    pseudo = torch.tensor([[-1, 0, 1, -1, 1]], dtype=torch.int8)  # contradicts both observed labels, and must lose
    true = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.int8)
    module = build(name, observed)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    targets = readable(name, Targets(observed, true, pseudo, torch.arange(1)))
    found = per_label(module, torch.zeros(1, 5, dtype=torch.float64), targets)
    assert found[0].tolist() == pytest.approx(AT_HALF[name], abs=1e-12)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_extreme_logits_give_finite_losses_and_gradients(name, data):
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    rows = data.draw(st.lists(st.floats(-80, 80), min_size=6, max_size=6))
    logits = torch.tensor(rows).reshape(2, 3).to(dtype).requires_grad_()
    draw = lambda low: torch.tensor(data.draw(st.lists(st.integers(low, 1), min_size=6, max_size=6))).reshape(2, 3)  # noqa: E731
    observed, pseudo, true = draw(-1).to(torch.int8), draw(-1).to(torch.int8), draw(0).to(torch.int8)
    module = losses.build(name, values_of(name, **early(name)), observed)
    module.start_epoch(2)
    targets = readable(name, Targets(observed, true, pseudo, torch.arange(2)))
    assert per_label(module, logits.detach().float(), targets).shape == logits.shape
    loss = module(logits, targets)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


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
    assert torch.equal(found[targets.pseudo == 0], silent[targets.pseudo == 0])  # whatever the others are
    made = set(labels_of_rule(name).ravel().tolist())
    assert made > {0}
    for opinion in made - {0}:
        here = (targets.pseudo == opinion) & (targets.observed == 0)
        assert here.any() and (found[here] != silent[here]).all()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        *(
            (f"-d coco -l {name}", dict(batch_size=16))
            for name in ("bce", "an", "an_ls", "role", "EM", "EM_APL", "gpr")
        ),
        ("-d pascal -l an", dict(batch_size=8)),
        ("-d pascal -l LL_R", dict(batch_size=16, optimizer="sgd", lr=5e-3, weight_decay=1e-3, delta=0.2)),
        ("-d pascal -l LL_Ct", dict(batch_size=16, optimizer="adam", lr=1e-5, weight_decay=0.0, delta=0.2)),
        ("-d cub -l LL_Cp", dict(batch_size=16, optimizer="adam", lr=1e-5, weight_decay=0.0, delta=0.1)),
        ("-d cub -l asl", dict(lr=1e-5)),
        ("-d digits -l LL_Cp", dict(batch_size=8, lr=3e-3)),
        ("-d coco -l gpr", dict(epochs=8, negative_fraction=0.0, eta=0.3)),
        ("-d nuswide -l gpr", dict(epochs=10, batch_size=16)),
        ("-d cub -l gpr", dict(epochs=10, batch_size=8, lr=1e-5, head_rate=10.0)),
    ],
)
def test_the_recipe_is_the_one_of_the_quoted_numbers(arguments, expected):
    config = parse(arguments.split())
    assert {name: (vars(config) | config.hparams)[name] for name in expected} == expected


# By hand


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
    """Two images of four labels at p = 1/2: two positives each, and 1.5 are expected."""
    logits, observed = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.int8)
    found = {name: build(name, observed) for name in ("epr", "role", "gpr")}
    nn.init.zeros_(found["role"].estimates)
    assert found["epr"].regulariser(logits).item() == pytest.approx(0.5**2 / 16)
    assert found["role"].regulariser(logits, torch.arange(2)).item() == pytest.approx(0.5**2 / 16)
    assert found["gpr"].regulariser(logits).item() == pytest.approx(0.05 * 0.5**2 / 16)


def test_a_calibrated_score_is_the_target_of_an_unknown_label():
    logit, observed = torch.tensor([[2.0, 2.0, 2.0]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.int8)
    pseudo = torch.tensor([[0.35, 0.5, 0.05]])
    p = torch.sigmoid(logit[0, 0]).item()
    nll_pos, nll_neg = -log(p + 1e-5), -log(1 - p + 1e-5)
    got = build("CTL", observed, scale=2.0).per_label(logit, observed, pseudo)[0]
    assert got[0].item() == pytest.approx(0.7 * nll_pos + 0.3 * nll_neg / 2, abs=1e-6)
    assert got[2].item() == pytest.approx(0.1 * nll_pos + 0.9 * nll_neg / 2, abs=1e-6)


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


def test_apl_takes_all_that_are_left_if_fewer_are_left_than_asked_for():
    chosen = zhou2022.lowest_become_soft(
        torch.tensor([[0.3], [0.1], [0.2]]), torch.tensor([[True], [False], [True]]), torch.tensor([3])
    )
    assert chosen[:, 0].tolist() == [True, False, True]


# The memory of the others


@pytest.mark.parametrize("name", ["LL_R", "LL_Ct", "LL_Cp"])
def test_large_losses_are_taken_for_positives_from_the_second_epoch_on(name):
    """A batch of 2 x 3 labels; k = 1, then 2 of 6 (of LL_Cp 1 in each step, beside what it has flipped)."""
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
    assert taken_for_positives() == [[0, 2], [1, 0]]


def test_permanent_correction_keeps_what_it_flipped_when_the_loss_has_become_small():
    observed, index = torch.zeros(3, 4, dtype=torch.int8), torch.tensor([2, 0])
    module = build("LL_Cp", observed, delta=12.5)  # k = 1 of 8
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


def test_the_estimates_of_role_start_sure_if_a_label_is_observed_and_follow_the_seed():
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
    assert "--temperature must lie in [1e-6, inf), not 1e-09" in fails(parse, ["-l", "gpr", "-t", "1e-9"])
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
