"""Search the settings of several methods with one budget, then test the default and the chosen setting.

    python tune.py -d photos -l CTL EM_PL an --trials 16       # and further options of main.py
    JOBS=2 python tune.py -d photos -l CTL EM_PL an            # by two processes

A trial trains with one setting and scores the validation images; it never reads the test set. The first trial of a
method has its default settings. Then the default and the chosen setting are run on further seeds and draws of the known
labels, and only these runs are tested. The trials of all methods are in one file. Several processes and machines may
share it: start the same command again. It continues what was interrupted.
"""

from util.errors import UserError, run_script  # before PyTorch: from here on Ctrl-C is one line

# isort: split
import argparse
import contextlib
import io
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

import config as configuration
import datasets
import main as driver
from config import COMMON, Config
from losses import LOSSES
from reporting import tables
from runs import run_folder
from util import devices
from util.errors import OneLineParser
from util.files import digest, writable_folder, write_text
from util.settings import Setting, ends, flag

RATES = (0.1, 10.0)  # the learning rates that are searched, as multiples of the default
RANDOM = 8  # trials before the sampler models the results
SHOWN = ["method", "default", "tuned", "n", "trials", "chosen settings", "default validation", "tuned validation"]


@dataclass(frozen=True)
class Task:
    """A method, the settings of its runs before the search, and the study of its trials."""

    config: Config
    study: optuna.Study

    @property
    def rate(self) -> str:
        return "linear_lr" if self.config.mode == "linear" else "lr"

    def space(self) -> dict[str, Setting]:
        """The settings to search, beside the learning rate."""
        common = {name: metadata["setting"] for name, metadata in COMMON.items()}
        return {
            name: setting for name, setting in (common | self.config.method.all_settings()).items() if setting.search
        }

    def with_values(self, values: dict[str, object]) -> Config:
        common = {name: value for name, value in values.items() if name in COMMON}
        config = replace(
            self.config, **common, hparams=self.config.hparams | {k: values[k] for k in values.keys() - common}
        )
        return configuration.linear_phase(config) if config.mode == "linear" else config

    def suggest(self, trial: optuna.Trial) -> Config:
        """The configuration of a trial. Settings that would have no effect are not suggested."""
        default = getattr(self.config, self.rate)
        values = {self.rate: trial.suggest_float(self.rate, *(default * factor for factor in RATES), log=True)}
        for name, setting in self.space().items():
            if name in configuration.ignored_settings(self.with_values(values)):
                continue
            if isinstance(setting.search, tuple):
                values[name] = trial.suggest_categorical(name, setting.search)
                continue
            low, high = ends(setting.search)
            kind = trial.suggest_int if isinstance(setting.default, int) else trial.suggest_float
            values[name] = kind(name, type(setting.default)(low), type(setting.default)(high), log=low > 0)
        return self.with_values(values)

    def finished(self, budget: int) -> list[FrozenTrial]:
        """The trials that count: the first ones that ended."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(ended, key=lambda trial: trial.datetime_complete)[:budget]

    def chosen(self, budget: int) -> FrozenTrial:
        ended = [trial for trial in self.finished(budget) if trial.state is TrialState.COMPLETE]
        return max(ended, key=lambda trial: (trial.value, -trial.number))


class Watch:
    """The storage of a trial: it keeps no weights, and reports the best validation mAP after each epoch."""

    def __init__(self, trial: optuna.Trial, before: int, prune: bool) -> None:
        self.trial, self.before, self.prune = trial, before, prune

    def save(self, state: dict) -> None:
        epoch = len(state["history"])
        if self.prune and epoch:
            self.trial.report(state["best"]["val_mAP"], self.before + epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def save_best(self, weights: dict) -> None:
        """Only the score of the best epoch is of interest."""


def validate(config: Config, session: driver.Session, storage: Watch) -> float:
    """Train, and return the best validation mAP. The test set is not scored."""
    splits, selection = driver.load_data(config, session)
    if selection.labels is None:
        raise UserError(f"{config.dataset_name} has no validation images to choose settings by")
    prepared = driver.prepare_training(config, session, splits)
    training = prepared.training
    with session.stop.deferred():
        training.fit(prepared.images["validation"], selection.score, storage, session.stop, config.checkpoint_minutes)
    return training.best["val_mAP"]


def search(task: Task, options: argparse.Namespace, session: driver.Session) -> None:
    """Run trials until the method's budget is used up."""
    if not task.study.get_trials(deepcopy=False):
        task.study.enqueue_trial({}, user_attrs={"default": True})

    def objective(trial: optuna.Trial) -> float:
        trial.study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, multivariate=False, seed=trial.number)
        is_default = "default" in trial.user_attrs
        config, scores = task.config if is_default else task.suggest(trial), []
        try:
            configuration.check(config)
            for draw in range(options.draws):
                storage = Watch(trial, draw * config.epochs, options.prune and not is_default)
                scores.append(validate(replace(config, draw=task.config.draw + draw), session, storage))
        except UserError as error:  # a rate at which the loss diverges, say
            if is_default:
                raise
            raise optuna.TrialPruned from error
        return statistics.mean(scores)

    while (done := len(task.finished(options.trials))) < options.trials:
        with quiet():
            task.study.optimize(objective, n_trials=1, gc_after_trial=False)
        trial = task.finished(done + 1)[-1]
        value = f"val mAP {trial.value:.2f}" if trial.state is TrialState.COMPLETE else "pruned"
        print(f"{task.config.loss} trial {done + 1}/{options.trials}: {value} {described(trial.params) or 'default'}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def described(values: dict[str, object]) -> str:
    """Settings as options of the command line."""
    return " ".join(
        f"{flag(name)} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in values.items()
    )


def confirmations(task: Task, options: argparse.Namespace) -> dict[str, list[Config]]:
    """The runs that are tested, of the default and of the chosen setting: seeds and draws that no trial has used."""
    chosen = {"default": task.config, "tuned": task.with_values(task.chosen(options.trials).params)}
    first = 1 + max(task.config.draw + options.draws - 1, task.config.seed)
    return {
        name: [replace(config, seed=k, draw=k, resume=not config.overwrite) for k in range(first, first + options.runs)]
        for name, config in chosen.items()
    }


def confirm(task: Task, options: argparse.Namespace, session: driver.Session) -> dict[str, object]:
    """Run and test the default and the chosen setting; a row of the table."""
    test, validation = {}, {}
    for name, configs in confirmations(task, options).items():
        test[name], validation[f"{name} validation"] = {}, {}
        for config in random.sample(configs, len(configs)):  # processes that share the work begin at different runs
            with quiet():
                result = driver.train_and_test(config, session, wait=True)
            if "test_mAP" not in result:
                raise UserError(f"{config.dataset_name} has no labelled test images to confirm settings on")
            test[name][config.seed] = result["test_mAP"]
            validation[f"{name} validation"][config.seed] = result["val_mAP"]
    pruned = sum(trial.state is TrialState.PRUNED for trial in task.finished(options.trials))
    trials = f"{options.trials} x {options.draws} draws" + (f", {pruned} pruned" if pruned else "")
    return {
        "method": task.config.loss, **{name: tables.spread(values) for name, values in (test | validation).items()},
        "n": options.runs, "trials": trials,
        "chosen settings": described(task.chosen(options.trials).params) or "default",
    }  # fmt: skip


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[Config]]:
    """The options of this command, and the settings of each method."""
    about = "Further options are main.py's, such as -d photos, --mode linear or -g cpu: see python main.py --help."
    parser = OneLineParser(__doc__, epilog=about)
    parser.add_argument("-l", "--loss", nargs="+", required=True, metavar="METHOD", help="methods, or: all")
    parser.add_argument("--trials", type=int, default=16, help="settings tried for each method (default: 16)")
    parser.add_argument("--draws", type=int, default=1, help="draws of the known labels in a trial (default: 1)")
    parser.add_argument("--runs", type=int, default=3, help="further seeds and draws that are tested (default: 3)")
    parser.add_argument("--prune", action="store_true", help="end trials below the median early; they count as trials")
    parser.add_argument("--study", metavar="FILE", help="file of the trials (default: RESULTS/tune_DATASET.journal)")
    parser.add_argument("--csv", metavar="FILE", help="write the table here, too")
    options, rest = parser.parse_known_args(argv)
    if min(options.trials, options.draws, options.runs) < 1:
        raise UserError("--trials, --draws and --runs must be at least 1")
    names = [name for name, method in LOSSES.items() if method.loss] if options.loss == ["all"] else options.loss
    return options, [configuration.parse([*rest, "-l", name]) for name in names]


def open_study(config: Config, storage: JournalStorage, draws: int) -> optuna.Study:
    """The study of a method's trials, which other processes may share; made if it is not there."""
    return optuna.create_study(
        storage=storage,
        study_name=f"{config.loss} {digest(run_folder.identity(config), draws)}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )


def trials_of(storage: JournalStorage) -> pd.DataFrame:
    """The trials of all studies in the file, also those of earlier commands."""
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    frames = [study.trials_dataframe(("number", "value", "state", "params")) for study in studies]
    return pd.concat(
        frame.assign(method=study.study_name.split()[0], study=study.study_name)
        for study, frame in zip(studies, frames, strict=True)
    )


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Search and confirm by the command line `argv`; returns the table."""
    argv = sys.argv[1:] if argv is None else argv
    options, configs = parse(argv)
    datasets.prepare(configs[0].folder)
    results = writable_folder(Path(configs[0].results_dir), "--results-dir")
    journal = Path(options.study or results / f"tune_{configs[0].dataset_name}.journal")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    session = driver.Session(devices.pick_device(configs[0].gpu), memory={})
    configs = [driver.prepare_process(config, session.device) for config in configs]
    tasks = [Task(config, open_study(config, storage, options.draws)) for config in configs]
    command, more = [sys.executable, __file__, *argv], int(os.environ.get("JOBS", "1")) - 1
    others = [subprocess.Popen(command, env=os.environ | {"JOBS": "1"}, stdout=subprocess.DEVNULL) for _ in range(more)]
    rows = []
    with session.stop:
        for task in tasks:
            try:
                search(task, options, session)
            except UserError as error:  # of "all" some methods may lack what they read
                if options.loss != ["all"]:
                    raise
                print(f"{task.config.loss} is left out: {error}")
                continue
            rows.append(confirm(task, options, session))
    for process in others:
        process.wait()
    table = pd.DataFrame(rows, columns=SHOWN)
    write_text(journal.with_suffix(".csv"), trials_of(storage).to_csv(index=False))
    if options.csv:
        write_text(Path(options.csv), table.to_csv(index=False))
    print(table.iloc[:, :6].to_markdown(index=False))
    print(f"test mAP, mean ± deviation over {options.runs} seeds and draws; settings chosen by validation mAP")
    print(f"trials: {journal.with_suffix('.csv')}")
    return table


if __name__ == "__main__":
    run_script(main)
