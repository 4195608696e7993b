"""Weights that move for a moment: which tensors do, and how they come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def movable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return P(w), the tensors a weight perturbation moves: named ``…weight``, of two dimensions or more.

    Convolutions and linear layers; never biases, batch-norm parameters or buffers (released AWP and RWP code).
    """
    return {name: p for name, p in model.named_parameters() if "weight" in name and p.dim() >= 2}


@contextmanager
def moved(model: nn.Module, offset: Mapping[str, Tensor]) -> Iterator[None]:
    """Add an offset to the weights, and put their own bits back on leaving (w + v - v is not w in floating point)."""
    weights = dict(model.named_parameters())
    saved = {name: weights[name].detach().clone() for name in offset}
    try:
        with torch.no_grad():
            for name, by in offset.items():
                weights[name].add_(by)
        yield
    finally:
        with torch.no_grad():
            for name, bits in saved.items():
                weights[name].copy_(bits)


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Let training-mode batch norm use the batch's statistics without moving the running ones."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
