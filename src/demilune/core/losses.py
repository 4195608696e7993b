"""Losses per sample: logits [N,C] and a target to [N]; the caller reduces. Half precision is widened first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def widened(logits: Tensor) -> Tensor:
    """Return logits in at least float32: label-smoothed models have gaps that bfloat16 rounds away."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -Σ_c t_c log softmax(z)_c, [N]; the target is a class index int64 [N] or a distribution [N,C]."""
    logits = widened(logits)
    if target.dtype == torch.int64:
        return F.cross_entropy(logits, target, reduction="none")
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p‖q) = Σ_c p_c (log p_c - log q_c) of the distributions of two sets of logits, [N]."""
    log_p, log_q = F.log_softmax(widened(p), dim=1), F.log_softmax(widened(q), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def others(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest logit of a class other than y, [N]: max_{i≠y} z_i."""
    masked = logits.scatter(1, y[:, None], float("-inf"))
    return masked.amax(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return max_{i≠y} z_i - z_y, [N]: positive where the image is misclassified."""
    logits = widened(logits)
    return others(logits, y) - logits.gather(1, y[:, None]).squeeze(1)


def targeted_margin(logits: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
    """Return z_t - z_y for the class t = ``wrong`` [N] an attack aims at, [N]."""
    logits = widened(logits)
    return (logits.gather(1, wrong[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
