"""Weights that move for a moment: which tensors do, and how they come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from demilune.core.random import Stream
from demilune.errors import DemiluneError


def movable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return P(w), the tensors a weight perturbation moves: named ``…weight``, of two dimensions or more.

    Convolutions and linear layers; never biases, batch-norm parameters or buffers (released AWP and RWP code).
    """
    return {name: p for name, p in model.named_parameters() if "weight" in name and p.dim() >= 2}


def convolutions(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all convolutions, by name; one that several share stands once."""
    theirs = {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in theirs}


def gaussian(weights: Mapping[str, Tensor], sigma: float, rng: Stream) -> dict[str, Tensor]:
    """Draw N(0, σ²) for every element of every tensor, at the address of its name: one draw for the whole batch."""
    shared = rng.images(None)
    return {name: sigma * shared.normal(name, w.shape, dtype=w.dtype) for name, w in weights.items()}


@contextmanager
def penultimate(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, of each forward pass inside, what the last linear layer was given, [N,D].

    Raises DemiluneError where it is not such a layer that gives the logits [N,K].
    """
    seen: list[Tensor] = []
    calls: list[tuple[Tensor, Tensor]] = []

    def ended(module: nn.Module, given: object, logits: Tensor) -> None:
        features, out = calls[-1] if calls else (logits, None)
        calls.clear()
        if out is None or features.dim() != 2 or out.shape != logits.shape:
            raise DemiluneError(
                "the network's logits do not come from a linear layer of features [N,D], which this method reads: use "
                "another method, or end the network in one"
            )
        seen.append(features)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, given, out: calls.append((given[0], out))) for layer in layers]
    hooks.append(model.register_forward_hook(ended))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def moved(model: nn.Module, offset: Mapping[str, Tensor]) -> Iterator[None]:
    """Add an offset to the weights, and put their own bits back on leaving (w + v - v is not w in floating point).

    What autocast keeps of the weights in low precision, until its outermost context ends, is forgotten both times.
    """
    weights = dict(model.named_parameters())
    saved = {name: weights[name].detach().clone() for name in offset}
    try:
        with torch.no_grad():
            for name, by in offset.items():
                weights[name].add_(by)
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for name, bits in saved.items():
                weights[name].copy_(bits)
        torch.clear_autocast_cache()


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
