"""Losses that treat unknown labels as unknown, by maximising their entropy.

EM and EM_APL: Zhou et al., "Acknowledging the Unknown", ECCV 2022. EM_PL: Xing et al. (VLPL), 2024.
"""

import torch
from torch import Tensor

from losses.base import Loss
from losses.terms import entropy, nlls

CHUNK = 1 << 24  # entries sorted at a time: a sort takes four times the memory of what it sorts


def em(logits: Tensor, observed: Tensor, *, alpha: float, eps: float) -> Tensor:
    """Entropy maximisation (Zhou et al. 2022, section 3.1).

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    unknown = -alpha * entropy(logits, nll_pos, nll_neg)
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, unknown))  # differs: -1 is refused


def em_pl(
    logits: Tensor,
    observed: Tensor,
    pseudo: Tensor,
    *,
    alpha: float,
    beta_pos: float,
    beta_neg: float,
    smoothing: float,
    eps: float,
) -> Tensor:
    """VLPL's objective (Xing et al. 2024, section 3): EM, with smoothed terms where the teacher has an opinion.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    pseudo    (B, L) in {-1, 0, +1}; 0 = the teacher abstains; read only where observed is 0
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    pseudo_pos = beta_pos * ((1 - smoothing) * nll_pos + smoothing * nll_neg)
    pseudo_neg = beta_neg * (smoothing * nll_pos + (1 - smoothing) * nll_neg)  # differs: absent
    unknown = -alpha * entropy(logits, nll_pos, nll_neg)
    guessed = torch.where(pseudo == 1, pseudo_pos, torch.where(pseudo == -1, pseudo_neg, unknown))
    return torch.where(observed == 1, nll_pos, torch.where(observed == -1, nll_neg, guessed))


def em_pl_asl(
    logits: Tensor,
    observed: Tensor,
    pseudo: Tensor,
    *,
    gamma_pos: float,
    gamma_unknown: float,
    gamma_neg: float,
    eps: float,
) -> Tensor:
    """EM_PL with asymmetric focus instead of weights; in VLPL's published code, not in the paper.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    pseudo    (B, L) in {-1, 0, +1}; 0 = the teacher abstains; read only where observed is 0
    returns   (B, L), not reduced
    """
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    nll_pos, nll_neg = nlls(logits, eps)
    label = torch.where(observed == 0, pseudo, observed)
    unknown = -(q**gamma_unknown) * entropy(logits, nll_pos, nll_neg)
    return torch.where(label == 1, q**gamma_pos * nll_pos, torch.where(label == -1, p**gamma_neg * nll_neg, unknown))


def em_apl(logits: Tensor, observed: Tensor, soft: Tensor, *, alpha: float, beta: float, eps: float) -> Tensor:
    """EM with asymmetric pseudo-labels (Zhou et al. 2022, section 3.2): soft negatives keep the target they had.

    logits    (B, L) float
    observed  (B, L) in {-1, 0, +1}; 0 = unknown
    soft      (B, L) target probability of a soft negative in [0, 1]; -1 = none; read only where observed is 0
    returns   (B, L), not reduced
    """
    nll_pos, nll_neg = nlls(logits, eps)
    soft_neg = beta * (soft * nll_pos + (1 - soft) * nll_neg)
    return torch.where((observed == 0) & (soft >= 0), soft_neg, em(logits, observed, alpha=alpha, eps=eps))


def lowest_become_soft(probs: Tensor, unlabelled: Tensor, counts: Tensor) -> Tensor:
    """(N, L) bool: for each class l, the counts[l] unlabelled images with the lowest p (all that are left, if fewer).

    probs       (N, L) float
    unlabelled  (N, L) bool
    counts      (L,) int
    """
    chosen = torch.zeros_like(unlabelled)
    ranks = torch.arange(len(probs), device=probs.device)[:, None]
    for columns in torch.arange(probs.shape[1]).split(max(1, CHUNK // len(probs))):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        candidates = probs[:, part].masked_fill(~unlabelled[:, part], float("inf"))
        order = candidates.T.contiguous().argsort(dim=1, stable=True).T  # of contiguous rows: half the time on a CPU
        chosen[:, part].scatter_(0, order, ranks < counts[part])
    return chosen & unlabelled


class AsymmetricPseudoLabels(Loss):
    """EM_APL: after epoch w and each later one, the least probable unlabelled images of each class turn into soft
    negatives, the same number each time, so that by the last epoch a fixed share is labelled.

    State: `soft` (N, L) float in {-1} or [0, 1], as in `em_apl`.
    """

    inputs = ("observed", "index")

    def __init__(
        self,
        observed: Tensor,
        *,
        alpha: float,
        beta: float,
        eps: float,
        warmup_epochs: int,
        epochs: int,
        neg_proportion: float,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.eps, self.warmup_epochs = alpha, beta, eps, warmup_epochs
        unknown = (observed == 0).sum(dim=0)
        counts = [int(neg_proportion * n / (epochs - warmup_epochs)) for n in unknown.tolist()]  # Python's rounding
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.register_buffer("unknown", observed == 0, persistent=False)
        self.register_buffer("soft", torch.full(observed.shape, -1.0))

    def per_label(self, logits: Tensor, observed: Tensor, index: Tensor) -> Tensor:
        soft = self.soft[index].to(logits.dtype)
        return em_apl(logits, observed, soft, alpha=self.alpha, beta=self.beta, eps=self.eps)

    def wants_predictions(self, epoch: int) -> bool:
        return epoch >= self.warmup_epochs

    def end_epoch(self, epoch: int, probs: Tensor | None = None) -> None:
        if not self.wants_predictions(epoch):
            return
        chosen = lowest_become_soft(probs, self.unknown & (self.soft < 0), self.counts)
        torch.where(chosen, probs.to(self.soft.dtype), self.soft, out=self.soft)
