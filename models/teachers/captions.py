"""The features of the classes: of captions read by CLIP's text tower, or from a file."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.errors import UserError
from util.files import read_array, reading


def templates(prompts: tuple[str, ...]) -> list[str]:
    """The prompts, with `imagenet` replaced by the templates that CLIP's authors wrote for ImageNet."""
    if "imagenet" not in prompts:
        return list(prompts)
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    named = {"imagenet": [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]}
    return [template for prompt in prompts for template in named.get(prompt, [prompt])]


def read_text_features(path: str, shape: tuple[int, int]) -> Tensor:
    """(L, D) float32 from an .npy file; raises UserError for any other."""
    features = read_array(path)
    if features.shape == shape and features.dtype.kind == "f":
        rows = torch.from_numpy(features.astype(np.float32))
        norms = rows.norm(dim=1)
        if (norms.isfinite() & (norms > 0)).all():
            return rows
    raise UserError(
        f"--text-features {path} is {features.dtype} {features.shape}, expected finite floats {shape}: a row for each "
        "label, none of them 0 alone, of the teacher's width"
    )


@torch.inference_mode()
def encode_captions(clip: nn.Module, name: str, captions: list[list[str]], classes: list[str]) -> Tensor:
    """(L, D) text features; of several captions of a class the mean of the normalised ones."""
    from open_clip import get_tokenizer

    hint = (
        "it needs internet once and `pip install transformers`; or give the classes' features by --text-features FILE"
    )
    with reading(f"the tokenizer of {name}", "installed", hint):  # of models such as SigLIP
        tokenizer = get_tokenizer(name)
    check_length(tokenizer, captions, classes)
    features = [clip.encode_text(tokenizer(texts)) for texts in captions]
    return features[0] if len(features) == 1 else torch.stack([F.normalize(part, dim=1) for part in features]).mean(0)


def check_length(tokenizer: Callable, captions: list[list[str]], classes: list[str]) -> None:
    """Print a line if captions are cut to the text tower's context; UserError if two classes are then the same."""
    read = torch.stack([tokenizer(texts) for texts in captions], dim=1)  # (L, prompts, tokens)
    enough = read.shape[2] + max(len(text.encode()) for texts in captions for text in texts)
    whole = torch.stack([tokenizer(texts, context_length=enough) for texts in captions], dim=1)
    lengths = (whole != whole[..., -1:]).sum(dim=2).amax(dim=1)  # without padding
    if longer := (lengths > read.shape[2]).nonzero().flatten().tolist():
        print(
            f"note: the teacher reads the first {read.shape[2]} tokens of a caption; {len(longer)} of {len(classes)} "
            f"classes have longer ones, the first {classes[longer[0]]} ({lengths[longer[0]]} tokens)"
        )
    for label in longer:
        if len(same := (read == read[label]).flatten(1).all(dim=1).nonzero().flatten().tolist()) > 1:
            raise UserError(
                f"the captions of {classes[same[0]]} and {classes[same[1]]} are the same in the first {read.shape[2]} "
                "tokens, and the teacher reads no more; shorten the names of the classes or --prompt"
            )
