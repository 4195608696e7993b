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


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return (max_{i≠y} z_i - z_y) / (z_π1 - z_π3 + 1e-12), [N]: the difference of logits ratio, of 3 classes or more.

    π sorts an image's logits by falling value. Neither shifting nor scaling the logits changes it. Source: Croce &
    Hein 2020, there with the opposite sign of the margin; attacks.md 6.1.
    """
    top = widened(logits).topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
    """Return (z_t - z_y) / (z_π1 - (z_π3 + z_π4)/2 + 1e-12) for the class t = ``wrong`` [N], [N]; of 4 classes or more.

    π sorts an image's logits by falling value. Source: Croce & Hein 2020; attacks.md 6.1.
    """
    top = widened(logits).topk(4, dim=1).values
    return targeted_margin(logits, y, wrong) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
