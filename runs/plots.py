"""What shows the progress of a run: curves.png, and the same history for TensorBoard."""

import os
from collections.abc import Callable
from pathlib import Path

from util.errors import describe_error
from util.files import atomic


def draw_figure(path: Path, draw: Callable, *arguments: object) -> None:
    """Write the figure that draw(path, *arguments) makes. A figure that cannot be drawn does not stop the run."""
    os.environ.pop("MPLBACKEND", None)  # a notebook sets one that needs its display
    try:
        with atomic(path) as temporary:
            draw(temporary, *arguments)
    except Exception as error:  # matplotlib, its backends and its fonts each raise their own
        print(f"{path.name} is not drawn ({describe_error(error)}); everything else is written")


def draw_curves(path: Path, history: list[dict], result: dict) -> None:
    """Training loss and validation mAP over the epochs, as PNG."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss")
    if "val_mAP" in result:
        right.plot(epochs, [row["val_mAP"] for row in history], marker="o", markersize=3, label="validation")
    right.axvline(result["best_epoch"], color="0.7", linestyle=":", label=f"chosen epoch {result['best_epoch']}")
    if "test_mAP" in result:
        right.axhline(result["test_mAP"], color="C1", label=f"test {result['test_mAP']:.2f}")
    right.set(xlabel="epoch", ylabel="mAP, %")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{result['dataset']}, {result['loss']}, {result['model']}, seed {result['seed']}", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


class Events:
    """The history for TensorBoard; a resumed run writes it anew."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard, which no other run needs

        self.writer, self.written = SummaryWriter(str(folder), purge_step=1), 0

    def write(self, history: list[dict]) -> None:
        """Write the epochs that are not there yet."""
        for row in history[self.written :]:
            for name in ("train_loss", "val_mAP"):
                if row.get(name) is not None:
                    self.writer.add_scalar(name, row[name], row["epoch"])
        self.written = len(history)
        self.writer.flush()
