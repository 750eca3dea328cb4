"""tune.py: the same budget for every method, trials that never read the test set, and a search that continues."""

import optuna
import pandas as pd
import pytest

import main as driver
import tune
from util.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tune")


def arguments(folder, *more: str) -> list[str]:
    folders = ["-g", "cpu", "--data-root", f"{folder}/data", "--results-dir", f"{folder}/results"]
    return ["-d", "photos", *folders, "--linear-epochs", "2", "--runs", "2", *more]


def test_the_default_is_the_first_trial_and_only_default_and_chosen_setting_are_tested(folder, monkeypatch):
    tested = []
    finish = driver.finish
    monkeypatch.setattr(driver, "finish", lambda config, *rest: tested.append(config) or finish(config, *rest))
    table = tune.main(arguments(folder, "-l", "EM_PL", "an", "--trials", "3"))
    assert table["method"].tolist() == ["EM_PL", "an"] and (table["n"] == 2).all()
    assert {(config.seed, config.draw) for config in tested} == {(1, 1), (2, 2)}  # no trial has used them
    trials = pd.read_csv(folder / "results/tune_photos.csv")
    assert (trials.groupby("method").size() == 3).all()
    first = trials[(trials.method == "EM_PL") & (trials.number == 0)]
    assert first.filter(like="params_").isna().all(axis=None)
    assert {"params_linear_lr", "params_threshold", "params_teacher_views"} <= set(trials.columns)


def test_the_same_command_continues_and_a_larger_budget_adds_trials(folder, monkeypatch):
    count = []
    validate = tune.validate
    monkeypatch.setattr(tune, "validate", lambda *rest: count.append(1) or validate(*rest))
    for trials, total in (("2", 2), ("2", 2), ("3", 3)):
        table = tune.main(arguments(folder, "-l", "wan", "--trials", trials))
        assert len(count) == total and table["trials"].tolist() == [f"{trials} x 1 draws"]


def test_a_search_repeats_by_a_single_process_also_if_it_was_interrupted(folder):
    found = []
    for name, budgets in (("whole", "3"), ("parts", "123")):
        for budget in budgets:
            study = f"{folder}/{name}.journal"
            tune.main(arguments(folder, "-l", "hill", "--trials", budget, "--runs", "1", "--study", study))
        found.append(pd.read_csv(folder / f"{name}.csv").drop(columns="study"))
    pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt, UserError]
)  # the first leaves the trial running, the second failed
def test_a_default_trial_that_did_not_end_is_run_again(folder, monkeypatch, fault):
    command = arguments(folder, "-l", "iun", "--trials", "2", "--runs", "1", "--study", f"{folder}/{fault.__name__}")

    def dying(*given):
        raise fault

    with monkeypatch.context() as patch, pytest.raises(fault):
        patch.setattr(tune, "validate", dying)
        tune.main(command)
    tune.main(command)
    trials = pd.read_csv(folder / f"{fault.__name__}.csv")
    is_default = trials.filter(like="params_").isna().all(axis=1) & (trials.state == "COMPLETE")
    assert is_default.sum() == 1


def test_trials_below_the_median_are_pruned_and_count(folder):
    tune.main(arguments(folder, "-l", "an", "--trials", "1", "--runs", "1"))
    table = tune.main(arguments(folder, "-l", "EM", "--trials", "9", "--prune", "--draws", "2"))
    assert table["trials"][0].startswith("9 x 2 draws")
    trials = pd.read_csv(folder / "results/tune_photos.csv")
    assert {"an", "EM"} <= set(trials.method)  # trials of earlier commands stay
    trials = trials[trials.method == "EM"].reset_index()
    assert len(trials) == 9 and set(trials.state) <= {"COMPLETE", "PRUNED"} and trials.state[0] == "COMPLETE"


def test_of_all_methods_those_that_lack_what_they_read_are_left_out(folder, monkeypatch, capsys):
    monkeypatch.setattr(tune, "LOSSES", {name: tune.LOSSES[name] for name in ("zero_shot", "an", "gpr")})
    table = tune.main(arguments(folder, "-l", "all", "--trials", "1", "--runs", "1"))
    assert table["method"].tolist() == ["an"] and "gpr is left out: " in capsys.readouterr().out


def test_settings_without_effect_are_not_suggested(folder):
    config = tune.configuration.parse(["-d", "photos", "-l", "CTL", "-g", "cpu", "--data-root", f"{folder}/data"])
    task = tune.Task(config, None, optuna.create_study())
    fixed = {"linear_lr": 1e-3, "teacher_views": "tiles", "calibrate": "matrix"}
    trial = optuna.trial.FixedTrial(fixed | {name: s.default for name, s in config.method.settings.items()})
    suggested = task.suggest(trial)
    assert (suggested.lr, suggested.calibrate) == (1e-3, "matrix") and "temperature" not in trial.params


def test_mistakes_are_reported(folder):
    with pytest.raises(UserError, match="must be at least 1"):
        tune.main(arguments(folder, "-l", "an", "--trials", "0"))
    with pytest.raises(SystemExit):
        tune.main(arguments(folder, "-l", "nothing"))
