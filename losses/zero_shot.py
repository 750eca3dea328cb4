"""Zero-shot classification: the teacher alone, without any label."""

from losses.base import Method
from pseudo_labels.rules import SOFT_RULE

ZERO_SHOT = Method(
    summary="no training: the teacher scores the test images",
    loss=None,
    equation="p = softmax(similarity / temperature)",
    paper="Radford et al. 2021, arXiv 2103.00020",
    pseudo_labels=SOFT_RULE,
)
