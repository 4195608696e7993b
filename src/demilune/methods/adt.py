"""ADT_EXP: adversarial distributional training, explicit version (Deng et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import BatchNormMode
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import WHOLE, Batch, Examples, Method, hard
from demilune.methods.trades import check_weight

SMALL = 1e-8
"""Adam's epsilon and the guard inside the logarithms, as in the released code: it damps gradients of that size."""


@final
@dataclass(frozen=True, slots=True)
class ADT(Method):
    """Train on a draw from the worst *distribution* of perturbations of each image.

        δ = ε tanh(μ + σ r),  r ~ N(0, I),  σ = softplus(v);   h = r²/2 + log σ + log(1 - tanh²(μ + σ r))
        μ, v descend  -mean CE(f(clamp(x + δ)), y) - λ mean h  by Adam, betas (0, 0); then min_θ mean CE at one draw

    Source: released code; baselines.md 4. The mean of h is over images and pixels. Gradients of the draws of a step add
    up, and in the released code are never zeroed between steps, so that step t descends the sum of all gradients so
    far: that is the default here, because it made the published numbers. linf only.

    steps: inner steps
    draws: Monte Carlo samples of a step
    rate: inner step size
    entropy_weight: weight λ of the entropy
    zero_grad: zero the gradients between inner steps (the textbook form) instead of letting them add up (as released)
    bn: batch norm during the attack: eval (the released code's), train_frozen or train
    """

    steps: int = 7
    draws: int = 5
    rate: float = 0.3
    entropy_weight: float = 0.01
    zero_grad: bool = False
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_weight("entropy_weight", self.entropy_weight)
        if self.steps < 0 or self.draws < 1 or not 0.0 < self.rate < float("inf"):
            raise DemiluneError(
                f"steps = {self.steps}, draws = {self.draws}, rate = {self.rate:g}: they must be at least 0, at least "
                "1 and positive"
            )

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Refuse l2, and parts: the inner objective is a mean over the whole batch, and Adam is no sign of it."""
        if norm != "linf":
            return "its perturbation ε tanh u is linf; use ball.norm linf"
        return WHOLE if parts > 1 else None

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return one draw from the distribution found."""
        if ball.norm != "linf":
            raise DemiluneError(f"adt with ball.norm {ball.norm}: {self.objection(ball.norm, 1)}")
        x, y, draws = batch.x, batch.y, rng.sub("adt")
        mean, spread = torch.zeros_like(x), torch.zeros_like(x)
        sums = [torch.zeros_like(x), torch.zeros_like(x)]
        for step in range(self.steps):
            if self.zero_grad:
                sums = [torch.zeros_like(x), torch.zeros_like(x)]
            for number in range(self.draws):
                noise = draws.sub(step).normal(number, x.shape, dtype=x.dtype)
                with torch.enable_grad():
                    leaves = (mean.detach().requires_grad_(), spread.detach().requires_grad_())
                    loss = self.inner(model, x, y, ball, noise, leaves[0], leaves[1])
                    gradients = torch.autograd.grad(loss, leaves)
                sums = [s + g for s, g in zip(sums, gradients, strict=True)]
            mean, spread = (p - self.rate * s / (s.abs() + SMALL) for p, s in zip((mean, spread), sums, strict=True))
        noise = draws.normal("last", x.shape, dtype=x.dtype)
        points = (x + ball.eps * torch.tanh(mean + F.softplus(spread) * noise)).clamp(0.0, 1.0)
        return hard(batch, points)

    def inner(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, noise: Tensor, mean: Tensor, spread: Tensor
    ) -> Tensor:
        """Return the inner objective to minimise, a scalar; r = ``noise``, μ = ``mean``, v = ``spread``."""
        sigma = F.softplus(spread)
        squashed = torch.tanh(mean + sigma * noise)
        logits = model((x + ball.eps * squashed).clamp(0.0, 1.0))
        h = noise**2 / 2 + torch.log(sigma + SMALL) + torch.log(1.0 - squashed**2 + SMALL)
        return -cross_entropy(logits, y).mean() - self.entropy_weight * h.mean()

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the cross-entropy at the draw, [N]."""
        return cross_entropy(model(made.points), made.targets)
