"""NATTACK: a distribution of adversarial images, learnt from the scores of its samples alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from demilune.attacks.base import Attack, Model, breach, quick
from demilune.core.geometry import Ball
from demilune.core.losses import others
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types

NattackLoss = Literal["margin", "official_scalar"]

SIDE = 32
"""Side of the field μ that stands for an image larger than it."""


@final
@dataclass(frozen=True, slots=True)
class NATTACK(Attack):
    """Evolution strategies on the mean μ of a Gaussian in arctanh space, by queries alone (linf; attacks.md 5).

    With w = arctanh((1 - 1e-6)(2x - 1)) and ε_k ~ N(0, I), k = 1 … b, T times
        x_k = Π(½(tanh(w + up(μ + σ ε_k)) + 1)),   J_k = -½ clip(log p_y(x_k) - max_{c≠y} log p_c(x_k), 0, 1000),
        A_k = (J_k - mean J) / (std J + 1e-7),     μ ← μ + η/(bσ) · Σ_k A_k ε_k,
    from μ = 0.001 · N(0, I). An image is done with when that of μ is misclassified, which is looked at before steps
    0, ``every``, 2 ``every`` …; the last look, after step T, is the judge's at what is returned. The noise ε_k is
    shared by all images, μ's beginning is each image's own. up enlarges μ [C,32,32] bilinearly where images are
    larger. Cost per image: at most T · b + ⌈T / every⌉ forward passes (60,020); the looks are in
    float32 also where the samples are asked about in low precision.

    Source: Li et al. 2019; T and b as in the RAT paper, σ and η as in RLFAT's released script. Projected around x
    itself, not around ½(tanh w + 1), which is within 5e-7 of it; the released code's last look is before step T - 10.

    loss: margin, as the paper has it; official_scalar repeats a slip of the released NumPy code, whose ``max(1)[0]``
        takes the first sample's max_{c≠y} log p_c for the whole population
    steps: number of updates, T
    population: samples per update, b
    rate: learning rate η
    sigma: standard deviation σ of the samples in arctanh space
    every: steps from one look at μ's own image to the next
    chunk: most images in one forward pass; it bounds memory and changes no draw
    """

    loss: NattackLoss = "margin"
    steps: int = 200
    population: int = 300
    rate: float = 0.008
    sigma: float = 0.1
    every: int = 10
    chunk: int = 1024

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 0:
            raise DemiluneError(f"steps = {self.steps}: it must be 0 or more")
        if self.population < 2:
            raise DemiluneError(f"population = {self.population}: scores are compared, it must be 2 or more")
        for name, number in (("every", self.every), ("chunk", self.chunk)):
            if number < 1:
                raise DemiluneError(f"{name} = {number}: it must be 1 or more")
        for name, size in (("rate", self.rate), ("sigma", self.sigma)):
            if not 0.0 < size < float("inf"):
                raise DemiluneError(f"{name} = {size:g}: it must be a positive number")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return the image of μ: the first one seen to be misclassified, else that of the last step."""
        if ball.norm != "linf":
            raise DemiluneError(
                f"nattack was given an {ball.norm} ball: only linf is possible, as samples are clipped pixel by pixel; "
                "for l2 use pgd, cw or odi"
            )
        w = torch.atanh((1 - 1e-6) * (2 * x.to(torch.promote_types(x.dtype, torch.float32)) - 1))
        large = x.dim() == 4 and max(x.shape[2:]) > SIDE
        shape = (x.shape[1], SIDE, SIDE) if large else tuple(x.shape[1:])
        mu = 0.001 * rng.sub("mean").normal("gaussian", (len(x), *shape), dtype=w.dtype)
        found, rows = x, torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for step in range(self.steps):
                if step % self.every == 0:
                    point = imaged(mu, w[rows], x[rows], ball)
                    logits = torch.cat([model(part) for part in point.split(self.chunk)])
                    found = found.index_copy(0, rows, point)
                    kept = (breach(logits, y[rows]) <= 0).nonzero().squeeze(1)
                    rows, mu = rows[kept], mu[kept]
                    if len(rows) == 0:
                        return found
                noise = rng.images(None).sub("step", step).normal("noise", (self.population, *shape), dtype=w.dtype)
                true, other = self._query(model, mu, noise, w[rows], x[rows], y[rows], ball)
                gain = advantages(true, other, self.loss).to(w.dtype) @ noise.flatten(1)
                mu = mu + self.rate / (self.population * self.sigma) * gain.reshape(mu.shape)
            return found.index_copy(0, rows, imaged(mu, w[rows], x[rows], ball))

    def _query(
        self, model: Model, mu: Tensor, noise: Tensor, w: Tensor, x: Tensor, y: Tensor, ball: Ball
    ) -> tuple[Tensor, Tensor]:
        """Return log p_y and max_{c≠y} log p_c of every image's samples, float64 [N,b], a chunk at a time."""
        asked, true, other = quick(model), list[Tensor](), list[Tensor]()
        for pairs in torch.arange(len(x) * self.population, device=x.device).split(self.chunk):
            image, sample = pairs // self.population, pairs % self.population
            points = imaged(mu[image] + self.sigma * noise[sample], w[image], x[image], ball)
            logs = F.log_softmax(asked(points).double(), dim=1)
            true.append(logs.gather(1, y[image, None]).squeeze(1))
            other.append(others(logs, y[image]))
        return torch.cat(true).reshape(len(x), -1), torch.cat(other).reshape(len(x), -1)


def imaged(field: Tensor, w: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """Return Π(½(tanh(w + up(field)) + 1)): up is bilinear where the field [N,C,32,32] is smaller than the image."""
    if field.shape != w.shape:
        field = F.interpolate(field, size=w.shape[2:], mode="bilinear", align_corners=False)
    return ball.project(((torch.tanh(w + field) + 1) / 2).to(x.dtype), x)


def advantages(true: Tensor, other: Tensor, loss: NattackLoss) -> Tensor:
    """Return A [N,b] from log p_y and max_{c≠y} log p_c, [N,b]; float64, in which equal scores give exactly zero.

    NaN probabilities are, as the judge has it, wrong: they score highest.
    """
    against = other if loss == "margin" else other[:, :1]
    score = -0.5 * (true - against).nan_to_num(nan=0.0).clamp(0.0, 1000.0)
    spread = score.std(dim=1, correction=0, keepdim=True)
    return (score - score.mean(dim=1, keepdim=True)) / (spread + 1e-7)
