"""Train the digits' teacher, a small open_clip model, as CLIP is trained: images against captions.

    python models/train_digits_teacher.py [--save-path models/digits_clip.safetensors] [--epochs 6]

A scene has a caption for each of its digits, and they share the target, so that the teacher, like CLIP, gives
probability to each digit that is present. About a minute on two cores.
"""

import sys
from itertools import islice
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in the place of this folder, whose names are other modules

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from datasets.digits import PROMPT, TEACHER, TEACHER_WEIGHTS, WORDS, pools, scenes
from datasets.images import to_input
from models.clip import config_name, create_clip, normalisation
from util.errors import OneLineParser, run_script
from util.files import atomic

NUM_SCENES, BATCH, RATE, SEED = 6_000, 50, 2e-3, 7
TEMPERATURE = 0.02  # of the softmax that it is trained with


def train(epochs: int, num_scenes: int = NUM_SCENES) -> nn.Module:
    """An open_clip model on the CPU, trained on scenes of the teacher's digits."""
    from open_clip import get_tokenizer

    torch.manual_seed(SEED)
    random = np.random.RandomState(SEED)
    model = create_clip(TEACHER, None)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalisation(TEACHER, "none"))
    tokens = get_tokenizer(config_name(TEACHER))([PROMPT.replace("{}", word) for word in WORDS])
    pixels, labels = map(np.stack, zip(*islice(scenes(pools()["teacher"], SEED), num_scenes), strict=True))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels / labels.sum(axis=1, keepdims=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    batches = num_scenes // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * batches)
    orders = (random.permutation(num_scenes)[: batches * BATCH] for _ in range(epochs))
    rows_of_batches = (rows for order in orders for rows in np.split(order, batches))
    for rows in (bar := tqdm(rows_of_batches, "training the teacher", epochs * batches, unit="batch", disable=None)):
        seen = F.normalize(model.encode_image(to_input(images[rows], mean, std)), dim=1)
        read = F.normalize(model.encode_text(tokens), dim=1)
        # images against captions; a batch holds each of the ten many times, so there is no loss the other way
        loss = F.cross_entropy(seen @ read.T / TEMPERATURE, targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--save-path", default=TEACHER_WEIGHTS, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    model = train(options.epochs)
    with atomic(options.save_path) as temporary:
        save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, temporary)
    print(f"written to {options.save_path}")


if __name__ == "__main__":
    run_script(main)
