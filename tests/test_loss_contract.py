"""The contract of a method: its record, its functions, and what the training promises to a loss."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training import MemoryStorage, StopAfter, fit, one_step, random_batch, tiny_training, values_of

import losses
from config import COMMON, parse
from losses import LOSSES, Loss, Method
from losses.terms import EPS
from pseudo_labels.rules import THRESHOLD_RULE
from util.errors import Interrupted, UserError
from util.settings import Setting, keywords


def test_a_loss_reads_the_settings_and_targets_that_its_signature_names():
    assert keywords(LOSSES["EM"].loss) == ("alpha", "eps")
    assert LOSSES["EM_PL"].reads() == ("observed", "pseudo")
    assert LOSSES["EM_APL"].reads() == ("observed", "index")
    stateful = LOSSES["EM_APL"].loss
    assert {*keywords(stateful), *keywords(stateful.per_label)} == {*LOSSES["EM_APL"].settings, "epochs"}
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


class ReadsWidth(Loss):
    def __init__(self, observed, *, width):
        super().__init__()

    def per_label(self, logits, observed):
        return logits


def record(loss, **more) -> Method:
    return Method(**dict(summary="mine", loss=loss, equation="", paper="", settings=dict(eps=EPS)) | more)


@pytest.mark.parametrize(
    "method, message",
    [
        (record(reads_width), "mine reads the setting 'width' in reads_width; it may read eps, epochs, seed"),
        (record(ReadsWidth), "mine reads the setting 'width' in ReadsWidth"),
        (record(plain, regulariser=reads_width), "mine reads the setting 'width' in reads_width"),
        (record(plain, check=check_width), "mine reads the setting 'width' in check_width"),
        (record(reads_labels), "mine reads 'labels'; it may read observed, true, pseudo, index"),
        (record(reads_pseudo), "mine reads pseudo-labels, but its record names no rule"),
        (record(plain, settings=dict(eps=EPS, lr=Setting(1.0, "mine"))), "'lr', which is a common setting"),
    ],
)
def test_a_record_that_contradicts_its_functions_is_one_line(monkeypatch, fails, method, message):
    monkeypatch.setitem(LOSSES, "mine", method)
    assert message in fails(parse, ["-l", "an"])


def test_a_new_method_is_on_the_command_line_and_in_the_identity(monkeypatch, capsys):
    width = Setting(3.0, "width of mine", "[1, inf)", coco=2.0)
    monkeypatch.setitem(LOSSES, "mine", record(reads_width, settings=dict(eps=EPS, width=width)))
    choice = Setting("EM_PL", "method", flags=("-l",), choices=tuple(LOSSES))
    monkeypatch.setitem(COMMON, "loss", dict(COMMON["loss"]) | {"setting": choice})
    assert parse(["-l", "mine", "--width", "5"]).hparams == {"eps": 1e-5, "width": 5.0}
    assert parse(["-l", "mine", "-d", "coco"]).hparams["width"] == 2.0
    with pytest.raises(SystemExit):
        parse(["-l", "mine", "--help"])
    assert "width of mine (default 3.0; coco: 2.0; in [1, inf)" in " ".join(capsys.readouterr().out.split())


# The contract between a loss and the training


class Table(Loss):
    """Learns an estimate of each label, and counts the calls of each step."""

    rate = 10.0

    def __init__(self, observed, *, eps):
        super().__init__()
        self.estimate = nn.Parameter(torch.zeros(observed.shape))
        self.register_buffer("calls", torch.zeros(100, dtype=torch.int64))

    def start_step(self, step):
        self.calls[step] += 1

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
    (backbone, own) = training.optimizer.param_groups
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
    momenta = [one.optimizer.state[one.loss_function.estimate]["exp_avg"] for one in (training, other)]
    for one, same in (estimates, momenta):
        assert torch.equal(one, same) and (one != 0).all()


@pytest.mark.parametrize("batch", [3, 9])  # in training, in validation
def test_start_step_is_called_once_a_step_even_if_the_run_stops_in_between(table, batch):
    storage = MemoryStorage()
    with pytest.raises(Interrupted):
        fit(tiny_training(table, epochs=2), storage, StopAfter(batch))
    training = tiny_training(table, epochs=2)
    training.load_state_dict(storage.load())
    assert training.loss_function.calls.sum() == min(batch, 5)
    fit(training)
    assert training.loss_function.calls.tolist() == [1] * 10 + [0] * 90  # five steps in each of two epochs


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
    training.data = replace(training.data, pseudo=soft)
    index = torch.tensor([3, 30])
    assert torch.equal(training.data.targets(index).pseudo, soft[index])
    training.train_epoch()
    assert {labels.dtype for labels in seen} == {torch.float32}
    assert torch.equal(torch.cat(seen).sort(dim=0).values, soft.sort(dim=0).values)


def test_the_head_learns_at_its_own_rate():
    slow, fast = tiny_training("an"), tiny_training("an", head_rate=5.0)
    assert [group["lr"] for group in slow.optimizer.param_groups] == [0.01]
    backbone, head = fast.optimizer.param_groups
    assert [backbone["lr"], head["lr"]] == pytest.approx([0.01, 0.05])
    assert set(head["params"]) == set(fast.model.head_parameters())
    assert {*backbone["params"], *head["params"]} == set(fast.model.parameters())
    before = fast.model.network[4].weight.detach().clone()
    one_step(fast)
    assert (fast.model.network[4].weight - before).abs().max().item() == pytest.approx(0.05, rel=1e-3)
