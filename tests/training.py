"""Methods with settings that make them act early, and their training in memory: for the tests of every method."""

import io
import signal

import numpy as np
import torch
from torch import nn

import engine
import losses
from datasets.images import Images
from datasets.protocol import observe
from losses import Loss, Targets
from models import Backbone
from pseudo_labels import rules
from util.settings import flag
from util.signals import Stop

TRAINED = [name for name, method in losses.LOSSES.items() if method.loss]  # all but the teacher alone
STATEFUL = [name for name, method in losses.LOSSES.items() if isinstance(method.loss, type)]  # that remember something
# every option of training at once
ALL_WAYS = dict(optimizer="sgd", weight_decay=1e-2, schedule="onecycle", head_rate=3.0, ema=0.9)
NUM_IMAGES, BATCH, SIZE, LABELS = 36, 8, 16, 3  # four full batches and a half one


def early(name: str) -> dict[str, object]:
    """The settings, other than their defaults, with which a method does within two epochs all that it ever does."""
    settings = losses.find(name).all_settings()
    changes = {setting: 1 for setting in settings if setting.endswith("_epochs")}
    changes |= {setting: 20.0 for setting in settings if setting == "delta"}
    return changes | {setting: 0.4 for setting in settings if setting == "negative_fraction"}


def early_arguments(name: str) -> list[str]:
    """The method, with these settings, on the command line."""
    return ["-l", name, *(part for setting, value in early(name).items() for part in (flag(setting), str(value)))]


def values_of(name: str, **changes: object) -> dict[str, object]:
    """A method's settings at their defaults, and the facts of a run of ten epochs, of seed 0."""
    defaults = {setting: about.default for setting, about in losses.find(name).all_settings().items()}
    return defaults | {"epochs": 10, "seed": 0} | changes


def pseudo_labels_of(name: str, similarity: np.ndarray, values: dict[str, object]) -> np.ndarray:
    """What the method's rule makes of similarities, of an image and of two tiles that say the same, if nothing is
    observed; all 0 for a method without a teacher, which does not read them."""
    if (rule := losses.find(name).pseudo_labels) is None:
        return np.zeros(similarity.shape, dtype=np.int8)
    views = [similarity, np.stack([similarity, similarity], axis=1)] if rule.of_tiles else [similarity]
    return rules.make(rule, values, views, np.zeros(similarity.shape, dtype=np.int8))[0]


def random_batch(num_images: int = 12, num_labels: int = 5) -> tuple[torch.Tensor, Targets]:
    """Logits, and labels of all kinds that do not contradict each other."""
    random = np.random.RandomState(0)
    shape = (num_images, num_labels)
    logits, true = torch.from_numpy(random.randn(*shape)), torch.from_numpy(random.randint(0, 2, shape))
    observed = torch.where(torch.from_numpy(random.rand(*shape)) < 0.3, 2 * true - 1, 0)
    pseudo = torch.from_numpy(random.randint(-1, 2, shape))
    labels = (part.to(torch.int8) for part in (observed, true, pseudo))
    return logits, Targets(*labels, torch.arange(num_images))


def tiny_training(
    loss: str, device: str = "cpu", *, epochs: int = 3, norm: type[nn.Module] | None = None, **options: object
) -> engine.Training:
    """The training of a network of two layers on random images with random labels."""
    torch.manual_seed(0)
    random, on = np.random.RandomState(0), torch.device(device)
    norms = [norm(8)] if norm else []
    pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, LABELS)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), *norms, *pooled)
    model = Backbone(network, heads=(str(len(network) - 1),)).to(on, memory_format=torch.channels_last)
    true, values = random.randint(0, 2, (NUM_IMAGES, LABELS)), values_of(loss, epochs=epochs, **early(loss))
    pseudo = pseudo_labels_of(loss, 0.1 * random.rand(NUM_IMAGES, LABELS).astype(np.float32), values)
    labels = (observe(true), true.astype(np.int8), pseudo)
    observed, true, pseudo = (torch.from_numpy(part).to(on) for part in labels)
    pixels = torch.from_numpy(random.randint(0, 256, (NUM_IMAGES, SIZE, SIZE, 3)).astype(np.uint8)).to(on)
    data = engine.TrainingSet(Images([""] * NUM_IMAGES, SIZE, pixels, 1), observed, true, pseudo)
    how = dict(epochs=epochs, lr=1e-2, batch_size=BATCH, flip=0.5, eval_batch_size=5) | options
    return engine.Training(model, losses.build(loss, values, observed), data, **how)


def one_step(training: engine.Training) -> torch.Tensor:
    """Train on one batch; the rows of its images."""
    index = torch.arange(BATCH)
    training.step(next(training.data.images.stream([index], training.device)), index, index < 0, BATCH)
    return index


class MemoryStorage:
    """Keeps the last state that a training saved, as a checkpoint holds it."""

    def save(self, state: dict) -> None:
        self.file = io.BytesIO()
        torch.save(state, self.file)

    def save_best(self, weights: dict) -> None:
        pass

    def load(self) -> dict:
        self.file.seek(0)
        return torch.load(self.file, weights_only=True)


class StopAfter(Stop):
    """As if SIGTERM came in the batch of that number, of training, validation or labelling."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def asked_anywhere(self, or_else: bool = False) -> bool:
        self.left -= 1
        self.asked = self.asked or (signal.SIGTERM if self.left == 0 else None)
        return super().asked_anywhere(or_else)


def fit(
    training: engine.Training, storage: MemoryStorage | None = None, stop: Stop | None = None
) -> tuple[list[float], torch.Tensor]:
    """Train to the end: the loss of each epoch, and what the weights come to say of the training images."""
    seen = []
    score = lambda probs: seen.append(probs) or 0.0  # noqa: E731
    training.fit(training.data.images, score, storage or MemoryStorage(), stop or Stop(), checkpoint_minutes=10.0)
    return [row["train_loss"] for row in training.history], torch.from_numpy(seen[-1])


def build(name: str, observed: torch.Tensor, **changes) -> Loss:
    """The loss of a method at its defaults."""
    return losses.build(name, values_of(name, **changes), observed)


def per_label(module: Loss, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    return module.per_label(logits, *(getattr(targets, name) for name in module.reads["per_label"]))
