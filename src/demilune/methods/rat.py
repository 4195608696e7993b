"""RAT: regional adversarial training (Song et al., arXiv 2109.00678v2). No released code was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, BatchNormMode
from demilune.core.geometry import Ball, per_image
from demilune.core.losses import cross_entropy
from demilune.core.notes import Note, mean
from demilune.core.random import Stream
from demilune.core.regions import triangle
from demilune.core.targets import distance_aware, entropy, smooth
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import Batch, Examples, Method
from demilune.methods.sat import check_mass


@final
@dataclass(frozen=True, slots=True)
class RAT(Method):
    """Train on points of the triangle that the image, the first and the last adversarial point span.

        x_e = x'_K,   x_f = x'_τ,   τ = min{t ∈ 1..K : argmax f(x'_t) ≠ y}               (Definition 1)
        x̄ = λ x_f + (1 - λ) x_e,   x̂ = x + s (x̄ - x),   λ ~ U(0,1),   s ~ U{0, 0.1, …, S}     (ARS, Eq. 5)
        β(s) = β_max - s (β_max - β_min)/S,   ŷ = β y + (1 - y)(1 - β)/(C - 1)               (DLS, Eq. 6-7)
        L = 1/(nm) Σ_i Σ_j CE(f(x̂_ij), ŷ_ij)                                              (Eq. 3)

    The region is read off the path that SAT's attack takes anyway: no gradient and no forward pass is added. Points
    with s > 1 leave the ball, as the paper has it; all are clamped to [0,1]. What the paper leaves open is resolved
    as rat.md 6 says (A1 to A20), each alternative a field.

    attack: the inner maximisation
    samples: points per image, m
    scale: largest scale S; 2 for CIFAR, 3 for ImageNette
    scale_from: smallest scale
    scales: grid draws s from {scale_from, …, S} in steps of 0.1, continuous from U[scale_from, S]  (A5)
    mass_high: true-class mass β_max of the label at s = 0
    mass_low: true-class mass β_min of the label at s = S; with both masses 1 labels are hard (ARS alone)
    region: triangle, or segment for λ ≡ 0, the region without x_f
    fallback: x_f where no iterate fools the network: end is x_e, start is x'_1, loudest is the x'_t, t < K, of
        largest cross-entropy  (A1)
    count_start: whether the random start x'_0 can be x_f  (A2)
    clamp: points are clamped to [0,1], or none is, or far clamps x + S (x̄ - x) first and interpolates  (A3)
    share_scale: whether the m points of an image share s  (A4)
    passes: one trains on one batch of m·n, many on m batches of n (batch norm then sees n at a time)  (A8)
    bn: batch norm during the attack: eval, train_frozen or train  (A9)
    """

    attack: PGD = PGD()
    samples: int = 2
    scale: float = 2.0
    scale_from: float = 0.0
    scales: Literal["grid", "continuous"] = "grid"
    mass_high: float = 1.0
    mass_low: float = 0.1
    region: Literal["triangle", "segment"] = "triangle"
    fallback: Literal["end", "start", "loudest"] = "end"
    count_start: bool = False
    clamp: Literal["points", "none", "far"] = "points"
    share_scale: bool = False
    passes: Literal["one", "many"] = "one"
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_mass("mass_high", self.mass_high)
        check_mass("mass_low", self.mass_low)
        if self.samples < 1:
            raise DemiluneError(f"samples = {self.samples}: it must be 1 or more")
        if not 0.0 <= self.scale_from <= self.scale <= 1e3 or self.scale == 0.0:
            raise DemiluneError(
                f"scale_from = {self.scale_from:g}, scale = {self.scale:g}: they must satisfy "
                "0 <= scale_from <= scale <= 1000 with scale > 0"
            )
        if self.scales == "grid" and any(abs(s * 10 - round(s * 10)) > 1e-9 for s in (self.scale, self.scale_from)):
            raise DemiluneError(
                f"scale_from = {self.scale_from:g}, scale = {self.scale:g}: the grid has steps of 0.1; give multiples "
                "of 0.1 or set scales to continuous"
            )
        if self.attack.steps < 1:
            raise DemiluneError("attack.steps = 0: RAT reads its region off the attack's path and needs 1 step or more")

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return m points per image, [m·n,C,H,W], with distance-aware labels; notes: what the path was like."""
        x, y, count = batch.x, batch.y, self.samples
        path = self.ends(model, batch, ball, rng)
        draws = rng.sub("rat")  # an address of its own: sampling shifts nothing of the attack
        position = draws.uniform("position", (len(x), count), dtype=x.dtype).T
        scale = self.draw_scale(draws, len(x), x.dtype).T.expand(count, -1)
        points = self.points(x, path.first, path.end, position, scale).flatten(0, 1)
        mass = distance_aware(scale.flatten(), self.scale, self.mass_high, self.mass_low)
        targets = smooth(y.repeat(count), mass, batch.classes)
        notes = {
            "found": mean(path.found.to(x.dtype)),
            "tau": Note((path.tau * path.found).sum().to(x.dtype), path.found.sum().to(x.dtype)),
            "first_to_end": mean(ball.distance(path.first, path.end) / max(ball.eps, 1e-12)),
            "cosine": mean(torch.cosine_similarity((path.first - x).flatten(1), (path.end - x).flatten(1), dim=1)),
            "scale": mean(scale),
            "mass": mean(mass),
        }
        return Examples(batch, points, targets, entropy(targets), {}, notes)

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the cross-entropy against the distance-aware labels, [m·n]."""
        return cross_entropy(self.logits(model, made), made.targets)

    def logits(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the predictions on the points, [m·n,C], in one pass or in many."""
        if self.passes == "one":
            logits: Tensor = model(made.points)
            return logits
        return torch.cat([model(part) for part in made.points.chunk(self.samples)])

    def ends(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Ends:
        """Walk the attack's path; x'_K is never run forward: were it the first success, x_f = x_e all the same."""
        x, y = batch.x, batch.y
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        tau = torch.full((len(x),), self.attack.steps, device=x.device)
        first = spare = end = x
        loudest = torch.full((len(x),), float("-inf"), device=x.device)
        for t, (end, logits) in enumerate(self.attack.path(model, x, y, ball, rng)):
            if logits is None or (t == 0 and not self.count_start):
                continue
            new = (logits.argmax(dim=1) != y) & ~found
            first = torch.where(per_image(new, x), end, first)
            tau = torch.where(new, t, tau)
            found = found | new
            if self.fallback == "start" and t == 1:
                spare = end
            if self.fallback == "loudest" and t >= 1:
                loss = cross_entropy(logits, y).to(loudest.dtype)
                spare = torch.where(per_image(loss > loudest, x), end, spare)
                loudest = torch.maximum(loss, loudest)
        if self.fallback == "end" or self.attack.steps == 1:  # one step: x'_1 is x_e, and no other iterate counts
            spare = end
        return Ends(torch.where(per_image(found, x), first, spare), end, found, tau)

    def draw_scale(self, rng: Stream, images: int, dtype: torch.dtype) -> Tensor:
        """Draw s, [n,m] (or [n,1] when shared)."""
        shape = (images, 1 if self.share_scale else self.samples)
        if self.scales == "continuous":
            return rng.uniform("scale", shape, self.scale_from, self.scale, dtype=dtype)
        low, high = round(self.scale_from * 10), round(self.scale * 10)
        return rng.integers("scale", shape, low, high + 1).to(dtype) / 10

    def points(self, x: Tensor, first: Tensor, end: Tensor, position: Tensor, scale: Tensor) -> Tensor:
        """Return x̂ [m,n,C,H,W] for λ = ``position`` [m,n] and s = ``scale`` [m,n]."""
        position = torch.zeros_like(position) if self.region == "segment" else position
        shape = (*scale.shape, *[1] * (x.dim() - 1))
        if self.clamp == "far":
            far = triangle(x, first, end, position.reshape(shape), torch.full(shape, self.scale).to(x)).clamp(0.0, 1.0)
            return torch.lerp(x.expand_as(far), far, (scale / self.scale).reshape(shape).expand_as(far)).clamp(0.0, 1.0)
        made = triangle(x, first, end, position.reshape(shape), scale.reshape(shape))
        return made if self.clamp == "none" else made.clamp(0.0, 1.0)


class Ends(NamedTuple):
    """What the path of an attack left: x_f and x_e [n,C,H,W], whether an iterate fooled the network, and τ [n]."""

    first: Tensor
    end: Tensor
    found: Tensor
    tau: Tensor
