"""Train and evaluate a multi-label classifier from one known positive label an image.

    python main.py -d pascal -l EM_PL

Data set -> backbone -> pseudo-labels -> loss -> train and validate -> test once. `--help` lists every option.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import config as settings
import datasets
import engine
import losses
import metrics
import models
import processes
import pseudo_labels
import runs
from cli import UserError, run_script
from datasets.images import open_images, where_kept
from models import teacher
from preproc import make_digits
from storage import digest, writable_folder


def main(argv: list[str] | None = None) -> dict:
    """Run one training from the command line `argv` (None: the process's own).

    returns  the result, as in test.json: best_epoch, val_mAP and test_mAP in percent, folder, ...
    Raises UserError for a user's mistake, Interrupted for SIGINT and SIGTERM.
    """
    # Settings
    config = settings.parse(argv)
    device = engine.pick_device(config.gpu)
    processes.join(device)
    if config.batch_size % processes.count():
        raise UserError(
            f"--batch-size {config.batch_size} cannot be shared out evenly over {processes.count()} processes; start "
            "a number of them that divides it (torchrun --nproc-per-node), or change it"
        )
    if config.deterministic:
        engine.be_deterministic()
    config = replace(config, precision=engine.pick_precision(config.precision, device))
    workers = config.workers or engine.default_workers()
    print(settings.show(config))
    if config.dataset == "digits":
        make_digits.ensure(Path(config.data_root) / "digits")
    if result := runs.finished(config):
        print(f"finished: test mAP {result['test_mAP']:.2f} in {result['folder']} (--overwrite runs it again)")
        processes.leave()
        return result

    with runs.Stop() as stop:
        # Data
        splits = datasets.load(config)
        names = splits.classes.names
        counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.named().items())
        print(f"{config.dataset}: {counts} images, {len(names)} labels")
        cache = datasets.cache_folder(config)
        writable_folder(Path(config.results_dir), "--results-dir")  # now, not after the teacher's pass

        # Pseudo-labels, once per image, before training
        pseudo = None
        if "pseudo" in losses.inputs(config.loss):
            if config.similarity:
                similarity = pseudo_labels.load_similarity(config.similarity, splits.train.names, names)
            else:
                similarity = teacher.similarities(config, splits.train, splits.classes, cache, device, workers)
            pseudo = pseudo_labels.assign(
                similarity,
                temperature=config.temperature,
                threshold=config.threshold,
                negative_fraction=config.partial,
            )
            quality = pseudo_labels.describe(
                pseudo, similarity, splits.train.observed, splits.train.true, temperature=config.temperature
            )
            print(pseudo_labels.table(quality))
            del similarity

        # Images
        where = where_kept(config.cache, list(splits.named().values()), config.image_size, cache, device)
        train, val, test = (
            open_images(split, config.image_size, where, cache, device, workers) for split in splits.named().values()
        )

        # Backbone and loss
        num_steps = -(-len(train) // config.batch_size)
        smallest_batch = len(train) - (num_steps - 1) * config.batch_size
        if device.type == "cpu":  # on GPUs batch norm sees the whole batch
            smallest_batch = max(1, smallest_batch // processes.count())
        torch.manual_seed(config.seed)
        model = models.build(config, len(names), smallest_batch).to(device, memory_format=torch.channels_last)
        loss_function = losses.build(config.loss, config, torch.from_numpy(splits.train.observed)).to(device)
        data = engine.TrainingSet(
            train,
            torch.from_numpy(splits.train.observed).to(device),
            torch.from_numpy(splits.train.true).to(device),
            None if pseudo is None else torch.from_numpy(pseudo).to(device),
        )
        step = engine.TrainingStep(
            model,
            loss_function,
            data,
            lr=config.lr,
            batch_size=config.batch_size,
            precision=config.precision,
            cuda_graph=config.cuda_graph,
        )
        predicting = dict(
            num_labels=len(names), batch_size=config.eval_batch_size, precision=config.precision, device=device
        )

        data_key = digest([split.key() for split in splits.named().values()], np.zeros(0) if pseudo is None else pseudo)
        with runs.open_run(config, data_key, device) as run, stop.deferred():
            # Where to begin
            first_epoch, first_step, best = 1, 0, {"epoch": 0, "val_mAP": -1.0}
            step_losses = torch.zeros(num_steps, device=device)
            if run.checkpoint:
                state = run.checkpoint
                with runs.fitting(run.folder / "last.pt"):
                    model.load_state_dict(state["model"])
                    step.optimizer.load_state_dict(state["optimizer"])
                    loss_function.load_state_dict(state["loss"])
                    engine.set_random_state(state["random"], device)
                    first_epoch, first_step, best = state["epoch"], state["step"], state["best"]
                    if processes.is_first():  # the parts of the processes add up
                        step_losses[:first_step] = state["step_losses"].to(device)
                if not processes.agree(first_epoch, first_step):
                    raise UserError(f"{run.folder}/last.pt is not yet the same on all nodes; wait a minute, and again")
                if first_step == 0 and best["epoch"] == first_epoch - 1:
                    run.save_best(state["model"])  # the process may have died before it came to this
                print(f"resuming in epoch {first_epoch} after {first_step} of {num_steps} batches: {run.folder}")
            else:
                print(f"run: {run.folder}")
            engine.seed_others(config.seed, first_epoch, first_step)

            def save(epoch: int, steps: int) -> None:
                """Checkpoint after `steps` steps of `epoch`."""
                whole_losses = processes.add_up(step_losses[:steps].clone())
                engine.check_finite(whole_losses, epoch)
                run.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": step.optimizer.state_dict(),
                        "loss": loss_function.state_dict(),
                        "random": engine.random_state(device),
                        "epoch": epoch,
                        "step": steps,
                        "step_losses": whole_losses,
                        "best": best,
                    }
                )

            def between_batches(epoch: int, steps: int) -> None:
                """Save if it is time to; save and stop if any process was asked to."""
                nonlocal saved
                if stop.asked_anywhere(or_else=time.monotonic() - saved > 60 * config.checkpoint_minutes):
                    save(epoch, steps)
                    saved = time.monotonic()
                    stop.raise_if_asked()

            # Train and validate
            saved = time.monotonic()
            for epoch in range(first_epoch, config.epochs + 1):
                began = time.monotonic()
                loss_function.start_epoch(epoch)
                train_loss = engine.train_one_epoch(
                    step,
                    seed=config.seed,
                    epoch=epoch,
                    flip=config.flip,
                    losses=step_losses,
                    start=first_step,
                    after_step=partial(between_batches, epoch),
                )
                first_step = 0
                then = partial(between_batches, epoch, num_steps)
                probs = engine.predict(model, val, name="validation", after_batch=then, **predicting).cpu().numpy()
                val_map = metrics.mean_average_precision(probs, splits.val.true)
                own_probs = None
                if loss_function.wants_predictions(epoch):  # differs: published from randomly flipped images
                    own_probs = engine.predict(model, train, name="labelling", after_batch=then, **predicting)
                loss_function.end_epoch(epoch, own_probs)

                if val_map > best["val_mAP"]:
                    best = {"epoch": epoch, "val_mAP": val_map}
                seconds = time.monotonic() - began
                run.history.append({"epoch": epoch, "train_loss": train_loss, "val_mAP": val_map, "seconds": seconds})
                save(epoch + 1, 0)
                saved = time.monotonic()
                if best["epoch"] == epoch:
                    run.save_best(model.state_dict())
                mark = " (best)" if best["epoch"] == epoch else ""
                line = f"epoch {epoch}/{config.epochs}  loss {train_loss:.4f}  val mAP {val_map:.2f}{mark}"
                print(f"{line}  {seconds:.1f} s")
                stop.raise_if_asked_anywhere()

            # Test, once, from the best validation epoch (differs: published after every epoch)
            if processes.is_first():
                with runs.fitting(run.folder / "best.pt"):
                    model.load_state_dict(run.load_best())
            processes.copy_from_first(model.state_dict().values())
            then = stop.raise_if_asked_anywhere  # all is saved
            probs = engine.predict(model, test, name="test", after_batch=then, **predicting).cpu().numpy()
            scores = metrics.evaluate(probs, splits.test.true)
            result = {
                "dataset": config.dataset,
                "loss": config.loss,
                "model": config.model,
                "seed": config.seed,
                "best_epoch": best["epoch"],
                "chosen_by": f"validation mAP on {config.val_labels} labels",
                "val_mAP": best["val_mAP"],
                **{f"test_{name}": value for name, value in scores.items()},
                **{f"{name}_images": len(split) for name, split in splits.named().items()},
                "folder": str(run.folder),
            }
            per_class = [
                {"class": name, "test_positives": int(positives), "test_AP": 100 * float(precision)}
                for name, positives, precision in zip(
                    names, splits.test.true.sum(axis=0), metrics.average_precision(probs, splits.test.true), strict=True
                )
            ]
            run.finish(result, {"images": splits.test.names, "probs": probs, "labels": splits.test.true}, per_class)

    empty = result["test_classes_without_positives"]
    print(
        f"best epoch {best['epoch']} (val mAP {best['val_mAP']:.2f}): test mAP {result['test_mAP']:.2f}"
        + (f", {empty} classes without test positives counting 0" if empty else "")
        + f"\nresults: {run.folder}"
    )
    processes.leave()
    return result


if __name__ == "__main__":
    run_script(main)
