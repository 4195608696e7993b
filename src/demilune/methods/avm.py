"""AVM: adversarial vertex mixup (Lee, Lee, Yoon, CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.core.regions import segment
from demilune.core.targets import entropy, smooth
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import Batch, Examples, Method
from demilune.methods.sat import check_mass


@final
@dataclass(frozen=True, slots=True)
class AVM(Method):
    """Mix each image with its adversarial vertex, and their labels with the same weight.

        v = clamp(x + γ (x_e - x), 0, 1),   w ~ U(0,1),   x̃ = w x + (1 - w) v,
        ỹ = w φ(y, λ1) + (1 - w) φ(y, λ2),   φ(y, λ) = λ y + (1 - y)(1 - λ)/(C - 1),   L = mean CE(f(x̃), ỹ)

    Source: released code; baselines.md 3. One w per image and sample. Batch norm in the attack is the running
    one by default, as for every method of the comparison table; the released code's is ``train_frozen``.

    attack: the inner maximisation, whose last iterate is x_e
    gamma: extrapolation γ of the perturbation to the vertex
    mass_clean: true-class mass λ1 of the label at the clean image
    mass_vertex: true-class mass λ2 of the label at the vertex
    samples: mixed images per image; the paper's is 1
    clamp: whether the vertex is clamped to [0,1] before mixing
    bn: batch norm during the attack: eval, train_frozen or train
    """

    attack: PGD = PGD()
    gamma: float = 2.0
    mass_clean: float = 1.0
    mass_vertex: float = 0.1
    samples: int = 1
    clamp: bool = True
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_mass("mass_clean", self.mass_clean)
        check_mass("mass_vertex", self.mass_vertex)
        if not 0.0 <= self.gamma <= 1e3:
            raise DemiluneError(f"gamma = {self.gamma:g}: the perturbation is extrapolated by a factor from 0 to 1000")
        if self.samples < 1:
            raise DemiluneError(f"samples = {self.samples}: it must be 1 or more")

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return ``samples`` mixed images per image, [M·N,C,H,W], with mixed labels."""
        x, count = batch.x, self.samples
        end = self.attack.perturb(model, x, batch.y, ball, rng)
        vertex = torch.lerp(x, end, self.gamma)
        if self.clamp:
            vertex = vertex.clamp(0.0, 1.0)
        weight = rng.sub("avm").uniform("weight", (len(x), count), dtype=x.dtype).T
        points = segment(vertex, x, weight.reshape(count, -1, *[1] * (x.dim() - 1))).flatten(0, 1)
        if self.clamp:
            points = points.clamp(0.0, 1.0)  # a convex combination may leave the box by one rounding
        mass = (weight * self.mass_clean + (1.0 - weight) * self.mass_vertex).flatten()
        targets = smooth(batch.y.repeat(count), mass, batch.classes)
        return Examples(batch, points, targets, entropy(targets), {}, {})

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the cross-entropy against the mixed labels, [M·N]."""
        return cross_entropy(model(made.points), made.targets)
