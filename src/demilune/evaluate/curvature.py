"""The largest eigenvalue of the Hessian of the loss, in the weights or in the input, by Lanczos' iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from demilune.attacks import PGD, Attack, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.surveys import Curvature, Space

FLOOR = 1e-6
"""Residuals are relative to the eigenvalue, but to no less than this: where an image's loss is flat to float32, its
Hessian is rounding, and no residual would be small beside it."""


class Leading(NamedTuple):
    """The largest eigenvalues θ float64 [N], their residuals relative to max(|θ|, FLOOR) [N], and products taken."""

    value: Tensor
    residual: Tensor
    iterations: int


def weight_curvature(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    attack: Attack | None = PGD(),
    steps: int = 50,
    tolerance: float = 1e-3,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Curvature:
    """Return the largest eigenvalue of ∇²_w of the mean cross-entropy over the images (taylor.md 11).

    All parameters count, batch norm's too; its statistics are the running ones. The images are the attack's points,
    made once and held fixed, or clean ones where ``attack`` is None. Up to ``steps`` vectors as long as the weights
    are kept. Nothing of the network changes, and no weight gradient is left. ``watch`` is told how many images are
    done, of no more than how many.
    Raises DemiluneError where second derivatives are no numbers.
    """
    total = len(split) * (steps + 1)
    done = 0
    with frozen(model, "eval"), seeded(rng.sub("curvature"), split.ids.device):
        # Leaves of their own, on the same memory: the network's parameters need no gradient and are given none.
        leaves = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}
        sizes = [weight.numel() for weight in leaves.values()]
        examples = []
        for rows in torch.arange(len(split)).split(batch):
            examples.append(_examples(model, split, rows, ball, rng, attack, layout))
            done += len(rows)
            watch(done, total)

        def product(vectors: Tensor) -> Tensor:
            nonlocal done
            image = torch.zeros_like(vectors)
            along = [one.view_as(w) for one, w in zip(vectors[0].split(sizes), leaves.values(), strict=True)]
            for x, y in examples:
                with torch.enable_grad():
                    loss = cross_entropy(functional_call(model, leaves, (x,)), y).sum() / len(split)
                image[0] += torch.cat([one.flatten() for one in hessian_product(loss, list(leaves.values()), along)])
                done += len(x)
                watch(done, total)
            return image

        shared = rng.sub("curvature").images(None)
        start = torch.cat([shared.normal(name, (w.numel(),), dtype=w.dtype) for name, w in leaves.items()])[None]
        found = lanczos(product, start, steps, tolerance)
        watch(total, total)
    return _curvature("weights", attack, found, start.shape[1], len(split), tolerance, ball)


def input_curvature(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    attack: Attack | None = None,
    steps: int = 50,
    tolerance: float = 1e-3,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Curvature:
    """Return the largest eigenvalue of ∇²_x of each image's cross-entropy, at the image or at the attack's point.

    The box [0,1] is not minded. The network is in eval mode, and nothing of it changes. ``watch`` is told how many
    images are done, of how many.
    Raises DemiluneError where second derivatives are no numbers.
    """
    parts: list[Leading] = []
    size = 0
    with frozen(model, "eval"), seeded(rng.sub("curvature"), split.ids.device):
        for rows in torch.arange(len(split)).split(batch):
            x, y = _examples(model, split, rows, ball, rng, attack, layout)
            draws = rng.sub("curvature").images(split.ids[rows.to(split.ids.device)])
            size = x[0].numel()

            def product(vectors: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    loss = cross_entropy(model(leaf), y).sum()  # no image's loss depends on another image
                return hessian_product(loss, [leaf], [vectors.view(x.shape)])[0].flatten(1)

            parts.append(lanczos(product, draws.normal("start", (len(x), size), dtype=x.dtype), steps, tolerance))
            watch(int(rows[-1]) + 1, len(split))
    value, residual = torch.cat([part.value for part in parts]), torch.cat([part.residual for part in parts])
    found = Leading(value, residual, max(part.iterations for part in parts))
    return _curvature("input", attack, found, size, len(split), tolerance, ball)


def hessian_product(loss: Tensor, leaves: list[Tensor], along: list[Tensor]) -> list[Tensor]:
    """Return H v, with H the Hessian of a scalar loss in the leaves and v = ``along``: ∇(∇loss · v) (Pearlmutter 1994).

    The loss's graph is spent. ReLU's second derivative is 0, and a leaf the loss does not depend on gets 0.
    """
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        slope = torch.stack([(one * v).sum() for one, v in zip(slopes, along, strict=True)]).sum()
        return list(torch.autograd.grad(slope, leaves, materialize_grads=True))


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float) -> Leading:
    """Return the largest eigenvalue of each of N symmetric operators H, applied by ``product`` to rows, [N,D] to [N,D].

        β_k q_{k+1} = H q_k - α_k q_k - β_{k-1} q_{k-1},   T = tridiag(α, β),   T s = θ s with θ largest
        v = Σ_k s_k q_k:   ‖H v - θ v‖ = β_k |s_k|                                           (Lanczos 1950)

    The largest in value, not in size as power iteration has it, and in far fewer products. Every new vector is made
    orthogonal to all before it, without which rounding would have found the same eigenvalue again. Each row keeps
    what it had when its residual first was within the tolerance, so that no row's result depends on the others'.
    """
    if steps < 1 or not tolerance > 0.0:
        raise DemiluneError(f"steps = {steps}, tolerance = {tolerance:g}: they must be at least 1 and above 0")
    basis = [start / _dot(start, start).sqrt().to(start.dtype)[:, None]]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = residual = torch.full((len(start),), float("inf"), dtype=torch.float64)
    for _ in range(steps):
        image = product(basis[-1])
        diagonal.append(_dot(image, basis[-1]).cpu())
        for one in basis * 2:  # twice: once leaves what rounding put back
            image = image - _dot(image, one).to(image.dtype)[:, None] * one
        length = _dot(image, image).sqrt()
        if not bool(diagonal[-1].isfinite().all() and length.isfinite().all()):
            raise DemiluneError("the network's second derivatives are no numbers: it has no curvature to tell")
        theta, tail = _largest(diagonal, beside)
        rest = length.cpu() * tail.abs() / theta.abs().clamp_min(FLOOR)
        going = residual > tolerance
        value, residual = torch.where(going, theta, value), torch.where(going, rest, residual)
        going = residual > tolerance
        if not bool(going.any()):
            break
        beside.append(length.cpu())
        # A row that is done goes on with nothing: what is left of it may be rounding, which must not be scaled up.
        follows = torch.where(going.to(length.device), length, float("inf"))
        basis.append(image / follows.to(image.dtype)[:, None])
    return Leading(value, residual, len(diagonal))


def _largest(diagonal: list[Tensor], beside: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return θ [N] and the last component of its unit eigenvector [N], of the tridiagonal matrices."""
    matrix = torch.diag_embed(torch.stack(diagonal, dim=1))
    if beside:
        off = torch.stack(beside, dim=1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values[:, -1], vectors[:, -1, -1]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the product of each two rows, float64 [N]: float32 sums are off over millions of elements."""
    return (one * other).sum(dim=1, dtype=torch.float64)


def _examples(
    model: nn.Module,
    split: Split,
    rows: Tensor,
    ball: Ball,
    rng: Stream,
    attack: Attack | None,
    layout: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    part = split.take(rows.to(split.ids.device))
    x, y = layout(part.pixels(slice(None))), part.labels
    return (x if attack is None else attack(model, x, y, ball, rng.images(part.ids))), y


def _curvature(
    space: Space, attack: Attack | None, found: Leading, size: int, n: int, tolerance: float, ball: Ball
) -> Curvature:
    return Curvature(
        space=space,
        examples="clean" if attack is None else repr(attack),
        largest=tuple(found.value.tolist()),
        size=size,
        n=n,
        iterations=found.iterations,
        residual=float(found.residual.max()),
        tolerance=tolerance,
        floor=FLOOR,
        norm=ball.norm,
        eps=ball.eps,
    )


__all__ = ["FLOOR", "Leading", "hessian_product", "input_curvature", "lanczos", "weight_curvature"]
