"""The reference recipe, to be compared with: how the published code goes about an epoch, written from its description.

The teacher runs beside every batch of every phase; everything is float32 (with PyTorch's own TF32 policy); Pillow
decodes every file in every epoch, in as many worker processes as there are cores, 8 at most; evaluation takes batches
of 8 too; predictions are collected as Python floats and scored in Python loops.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.common import synchronize
from datasets import MultiLabelDataset
from losses import Loss, Targets
from models.backbone import IMAGENET_MEAN, IMAGENET_STD
from models.teachers.clip import Scorer
from util.devices import default_workers

PARTS = ("data", "teacher", "student", "metrics")
TEMPERATURE, THRESHOLD = 0.01, 0.3


class Files(Dataset):
    """An item is one image file: (3, S, S) float normalised, (L,) observed, (L,) true."""

    def __init__(self, split: MultiLabelDataset, size: int, flip: float) -> None:
        self.paths, self.observed, self.true = split.paths(), split.observed, split.true
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(flip),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        with Image.open(self.paths[row]) as image:
            pixels = self.transform(image.convert("RGB"))
        return pixels, torch.from_numpy(self.observed[row]), torch.from_numpy(self.true[row])


class Recipe:
    """One epoch of a phase at a time; `seconds` adds up its parts."""

    def __init__(
        self,
        student: nn.Module,
        teacher: Scorer,
        loss: Loss,
        *,
        lr: float,
        device: torch.device,
    ) -> None:
        self.student, self.teacher, self.loss, self.device = student, teacher, loss, device
        self.optimizer = torch.optim.Adam(student.parameters(), lr=lr)
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def loader(self, split: MultiLabelDataset, size: int, flip: float, batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(Files(split, size, flip), batch_size, shuffle=shuffle, num_workers=default_workers())

    def _lap(self, part: str, since: float) -> float:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - since
        return now

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> Tensor:
        """(B, L) in {0, +1}, from the student's images resized to the teacher's size."""
        small = F.interpolate(images, size=self.teacher.size, mode="bilinear", antialias=True)
        features = F.normalize(self.teacher.network.encode_image(small), dim=1)
        similarity = features @ self.teacher.text_features.T
        return (torch.softmax(similarity / TEMPERATURE, dim=1) > THRESHOLD).to(torch.int8)

    def phase(self, loader: DataLoader, train: bool) -> float:
        """One pass; its mAP in percent (of training too, as published)."""
        self.student.train(train)
        probs, labels = [], []
        now = time.perf_counter()
        for images, observed, true in loader:
            images, observed, true = (part.to(self.device) for part in (images, observed, true))
            now = self._lap("data", now)
            pseudo = self.pseudo_labels(images)
            now = self._lap("teacher", now)
            with torch.set_grad_enabled(train):
                logits = self.student(images)
                loss = self.loss(logits, Targets(observed, true, pseudo))
            if train:
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            now = self._lap("student", now)
            probs += torch.sigmoid(logits.detach()).cpu().tolist()
            labels += true.tolist()
            now = self._lap("metrics", now)
        result = mean_average_precision(probs, labels)
        self._lap("metrics", now)
        return result


def mean_average_precision(probs: list[list[float]], labels: list[list[int]]) -> float:
    """mAP in percent over lists, by Python loops: the precision at each positive, from the top of the ranking down."""
    total = 0.0
    for label in range(len(probs[0])):
        ranking = sorted(((row[label], true[label]) for row, true in zip(probs, labels, strict=True)), reverse=True)
        hits, precisions = 0, []
        for rank, (_, positive) in enumerate(ranking, start=1):
            if positive:
                hits += 1
                precisions.append(hits / rank)
        total += float(np.mean(precisions)) if precisions else 0.0
    return 100 * total / len(probs[0])
