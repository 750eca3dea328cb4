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
from util.files import check_outputs, digest, writable_folder, write_text
from util.settings import ends, flag

RATES = (0.1, 10.0)  # the learning rates that are searched, as multiples of the default
RANDOM = 8  # trials before the sampler models the results
SHOWN = ["method", "default", "tuned", "n", "trials", "chosen settings", "default validation", "tuned validation"]


@dataclass(frozen=True)
class Task:
    """A method with its settings before the search, the options of this command, and the study of its trials."""

    config: Config
    options: argparse.Namespace
    study: optuna.Study

    def with_values(self, values: dict[str, object]) -> Config:
        own = {name: value for name, value in values.items() if name not in COMMON}
        common = {name: value for name, value in values.items() if name in COMMON}
        config = replace(self.config, **common, hparams=self.config.hparams | own)
        return configuration.linear_phase(config) if config.mode == "linear" else config

    def suggest(self, trial: optuna.Trial) -> Config:
        """The configuration of a trial. Settings that would have no effect are not suggested."""
        rate = "linear_lr" if self.config.mode == "linear" else "lr"
        default = getattr(self.config, rate)
        values = {rate: trial.suggest_float(rate, *(default * factor for factor in RATES), log=True)}
        space = {name: metadata["setting"] for name, metadata in COMMON.items()} | self.config.method.all_settings()
        for name, setting in space.items():
            if not setting.search or name in configuration.ignored_settings(self.with_values(values)):
                continue
            if isinstance(setting.search, tuple):
                values[name] = trial.suggest_categorical(name, setting.search)
            else:
                kind, (low, high) = type(setting.default), ends(setting.search)
                suggest = trial.suggest_int if kind is int else trial.suggest_float
                values[name] = suggest(name, kind(low), kind(high), log=low > 0)
        return self.with_values(values)

    def finished(self) -> list[FrozenTrial]:
        """The trials that count: the default, then the first ones that ended."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        ended.sort(key=lambda trial: ("default" not in trial.user_attrs, trial.datetime_complete))
        return ended[: self.options.trials]

    def defaults(self) -> set[TrialState]:
        """The states of the trials with the default settings: one, but for interrupted ones."""
        return {trial.state for trial in self.study.get_trials(deepcopy=False) if "default" in trial.user_attrs}


@dataclass(frozen=True)
class Watch:
    """The storage of a trial: it keeps no weights, and reports the best validation mAP after each epoch."""

    trial: optuna.Trial
    before: int  # epochs of the trial's earlier draws
    prune: bool

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
    prepared = driver.prepare_training(config, session, splits)
    training = prepared.training
    with session.stop.deferred():
        training.fit(prepared.images["validation"], selection.score, storage, session.stop, config.checkpoint_minutes)
    return training.best["val_mAP"]


def search(task: Task, session: driver.Session) -> None:
    """Run trials until the method's budget is used up and the default has a score."""
    options, ended = task.options, []
    with quiet():
        splits, selection = driver.load_data(task.config, session)
    if selection.labels is None or splits.scored() is None:
        raise UserError(f"{task.config.dataset_name} lacks validation images or labelled test images; both are needed")

    def score(trial: optuna.Trial, config: Config, prune: bool) -> float:
        """The mean validation mAP over the draws."""
        configuration.check(config)
        scores = []
        for draw in range(options.draws):
            storage = Watch(trial, draw * config.epochs, prune)
            scores.append(validate(replace(config, draw=task.config.draw + draw), session, storage))
        return statistics.mean(scores)

    def objective(trial: optuna.Trial) -> float:
        trial.study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, multivariate=False, seed=trial.number)
        if "default" in trial.user_attrs:
            return score(trial, task.config, prune=False)
        config = task.suggest(trial)
        try:
            return score(trial, config, options.prune)
        except UserError as error:  # a rate at which the loss diverges, say
            raise optuna.TrialPruned from error

    while (done := len(task.finished())) < options.trials or TrialState.COMPLETE not in task.defaults():
        if done >= options.trials or not task.defaults() - {TrialState.FAIL}:
            task.study.enqueue_trial({}, user_attrs={"default": True})
        with quiet():
            keep = [lambda study, trial: ended.append(trial)]
            task.study.optimize(objective, n_trials=1, gc_after_trial=False, callbacks=keep)
        trial = ended[-1]
        value = f"val mAP {trial.value:.2f}" if trial.state is TrialState.COMPLETE else "pruned"
        print(f"{task.config.loss} trial {done + 1}/{options.trials}: {value} {described(trial.params) or 'default'}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def described(values: dict[str, object]) -> str:
    """Settings as options of the command line."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
    return " ".join(f"{flag(name)} {value}" for name, value in shown.items())


def confirm(task: Task, session: driver.Session) -> dict[str, object]:
    """Run and test the default and the chosen setting on seeds and draws that no trial has used; a row of the table."""
    config, options, trials = task.config, task.options, task.finished()
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    chosen = max(complete, key=lambda trial: (trial.value, -trial.number)).params
    pruned = len(trials) - len(complete)
    row = {
        "method": config.loss,
        "n": options.runs,
        "trials": f"{options.trials} x {options.draws} draws" + (f", {pruned} pruned" if pruned else ""),
        "chosen settings": described(chosen) or "default",
    }
    first = 1 + max(config.draw + options.draws - 1, config.seed)
    for name, tested in (("default", config), ("tuned", task.with_values(chosen))):
        results = []
        for k in random.sample(range(first, first + options.runs), options.runs):  # each process in a different order
            with quiet():
                run = replace(tested, seed=k, draw=k, resume=not config.overwrite)
                results.append(driver.train_and_test(run, session, wait=True))
        row[name] = tables.spread([result["test_mAP"] for result in results])
        row[f"{name} validation"] = tables.spread([result["val_mAP"] for result in results])
    return row


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[Config]]:
    """The options of this command, and the settings of each method."""
    about = "Further options are main.py's, such as -d photos, --mode linear or -g cpu: see python main.py --help."
    parser = OneLineParser(__doc__, epilog=about)
    add = parser.add_argument
    add("-l", "--loss", nargs="+", required=True, metavar="METHOD", help="methods, or: all")
    add("--trials", type=int, default=16, help="settings tried for each method (default: 16)")
    add("--draws", type=int, default=1, help="draws of the known labels in a trial (default: 1)")
    add("--runs", type=int, default=3, help="further seeds and draws that are tested (default: 3)")
    add("--prune", action="store_true", help="end trials below the median early; they count as trials")
    add("--study", metavar="FILE", help="file of the trials (default: RESULTS/tune_DATASET.journal)")
    add("--csv", metavar="FILE", help="write the table here, too")
    options, rest = parser.parse_known_args(argv)
    if min(options.trials, options.draws, options.runs) < 1:
        raise UserError("--trials, --draws and --runs must be at least 1")
    names = [name for name, method in LOSSES.items() if method.loss] if options.loss == ["all"] else options.loss
    if untrained := [name for name in names if name in LOSSES and LOSSES[name].loss is None]:
        raise UserError(f"{untrained[0]} trains nothing, so there is nothing to search")
    check_outputs({"--csv": options.csv}, overwrite=False, ours=(b"method,",))
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
    frames = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.trials_dataframe(("number", "value", "state", "params"))
        frames.append(trials.assign(method=name.split()[0], study=name))
    return pd.concat(frames)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Search and confirm by the command line `argv`; returns the table."""
    argv = sys.argv[1:] if argv is None else argv
    options, configs = parse(argv)
    session = driver.Session(devices.pick_device(configs[0].gpu), memory={})
    datasets.prepare(configs[0].folder)
    results = writable_folder(Path(configs[0].results_dir), "--results-dir")
    journal = Path(options.study or results / f"tune_{configs[0].dataset_name}.journal")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a warning shows the traceback of a failed trial
    storage = JournalStorage(JournalFileBackend(str(journal)))
    configs = [driver.prepare_process(config, session.device) for config in configs]
    tasks = [Task(config, options, open_study(config, storage, options.draws)) for config in configs]
    command, more = [sys.executable, __file__, *argv], int(os.environ.get("JOBS", "1")) - 1
    others = [subprocess.Popen(command, env=os.environ | {"JOBS": "1"}, stdout=subprocess.DEVNULL) for _ in range(more)]
    rows = []
    with session.stop:
        for task in tasks:
            try:
                search(task, session)
            except UserError as error:  # of "all" some methods may lack what they read
                if options.loss != ["all"]:
                    raise
                print(f"{task.config.loss} is left out: {error}")
                continue
            rows.append(confirm(task, session))
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
