"""CTL, calibrated teacher labels: this project's own method.

The known labels calibrate the teacher (pseudo_labels/calibration.py), and its calibrated score is the soft target of an
unknown label. What was tried, and what it was worth, is in docs/ctl.md.
"""

import torch

from losses.base import Method
from losses.terms import EPS, nlls
from pseudo_labels.rules import SOFT_RULE
from util.settings import Setting


def ctl(logits, observed, pseudo, *, scale, negative_weight, eps):
    """Cross-entropy with soft targets whose negative side weighs w = negative_weight / (L - 1), as in WAN.

    pseudo  (B, L) float in [0, 1], the calibrated score q
    """
    nll_pos, nll_neg = nlls(logits, eps)
    presence = (scale * pseudo.to(logits.dtype)).clamp(max=1)
    target = torch.where(observed == 0, presence, (observed == 1).to(logits.dtype))
    weight = negative_weight / max(1, logits.shape[1] - 1)
    return target * nll_pos + weight * (1 - target) * nll_neg


CTL = Method(
    summary="this project's own: soft targets from a teacher that the known labels calibrate",
    loss=ctl,
    equation="t nll(p) + w (1-t) nll(1-p); t = 1 or 0 if observed, else min(1, scale q), q the calibrated score; "
    "w = negative_weight / (L-1)",
    paper="this project, docs/ctl.md",
    pseudo_labels=SOFT_RULE,
    settings=dict(
        scale=Setting(3.0, "factor from q to the probability that a label is present", "(0, inf)", "[0.5, 5]"),
        negative_weight=Setting(1.0, "weight of the negative side, in units of 1 / (L - 1)", "[0, inf)", "[0.2, 20]"),
        eps=EPS,
    ),
    recipe=dict(calibrate={"*": "matrix"}, teacher_views={"*": "tiles"}),
)
