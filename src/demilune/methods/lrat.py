"""LRAT: local reweighting for adversarial training (Gao et al., arXiv 2106.15776). Reconstructed.

Neither the body of the paper nor released code could be had: the structure (groups of an image and its adversarial
variants, weight moved within a group alone, a minimum weight reserved) is the abstract's and a summary's; the closed
form, the vulnerability and the weight function are ours (lrat.md 3). Report results as "LRAT (reconstructed)".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from demilune.attacks import CW, KLPGD, PGD, BatchNormMode, IterativeAttack
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy, kl
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import WHOLE, Batch, Examples, Method, hard
from demilune.methods.gairat import balanced, check_begin, check_counted, check_shift, withstood
from demilune.methods.local import Local, check_measured
from demilune.methods.rat import RAT
from demilune.methods.trades import check_weight


@final
@dataclass(frozen=True, slots=True)
class LRAT(Method):
    """min_θ mean_i { w_0 CE(f(x_i), y_i) + Σ_j w_j CE(f(x~_ij), y_i) }, x~_j the j-th training attack's image.

    Reconstructed (lrat.md 3.1): weights of :class:`Local`; the mean is over images, never over the sum of weights. The
    image and its variants are run forward one after another.

    attack: the inner maximisation; CW takes its steps and sizes too, with κ = 50
    attacks: which attacks are simulated: pgd, cw, or both
    local: how weight is shared within a group
    across: Λ of GAIRAT's weights of the images, counted on the first attack's path, which then multiply the groups'
        losses (global and local reweighting together); null for none
    begin: first epoch (from 0) with groups; SAT with the first attack before
    bn: batch norm during the attack: eval, train_frozen or train
    """

    attack: PGD = PGD()
    attacks: Literal["pgd", "cw", "both"] = "pgd"
    local: Local = Local()
    across: float | None = None
    begin: int = 0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_begin(self.begin)
        check_measured(self.local, self.bn)
        if self.across is not None:
            check_counted(self.attack)
            check_shift("across", self.across)

    def starts(self) -> int:
        """Return the first epoch with groups."""
        return self.begin

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Refuse parts with GAIRAT's weights, which sum to n over the whole batch."""
        return WHOLE if parts > 1 and self.across is not None else None

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return the variants, [m·n,C,H,W]; before ``begin`` the first attack's alone."""
        pgd = self.attack
        cw = CW(pgd.steps, pgd.step_size, pgd.step_ratio)
        simulated: list[IterativeAttack] = [pgd] if self.attacks != "cw" else []
        simulated += [cw] if self.attacks != "pgd" else []
        extra, found = dict[str, Tensor](), list[Tensor]()
        if batch.epoch < self.begin:
            return hard(batch, simulated[0].perturb(model, batch.x, batch.y, ball, rng))
        for number, attack in enumerate(simulated):
            draws = rng.sub("attack", number) if number else rng  # the first starts where SAT's does
            point, kept = withstood(attack.path(model, batch.x, batch.y, ball, draws), batch.y)
            found.append(point)
            if number == 0 and self.across is not None:
                extra["across"] = balanced(kept, pgd.steps, self.across, point.dtype)
        points = torch.cat(found)
        return hard(batch, points, extra | self.local.measure(model, points, batch.y))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the groups' losses, [N]."""
        if made.batch.epoch < self.begin:
            return cross_entropy(model(made.points), made.targets)
        count = len(made.batch.y)
        clean = None if self.local.skips() else cross_entropy(model(made.batch.x), made.targets[:count])
        logits = torch.cat([model(part) for part in made.points.split(count)])
        rows = self.local.grouped(made, clean, cross_entropy(logits, made.targets), logits)
        return made.extra["across"] * rows if "across" in made.extra else rows


@final
@dataclass(frozen=True, slots=True)
class LRATTRADES(Method):
    """min_θ mean { w_0 CE(f(x), y) + w_1 [CE(f(x), y) + β KL(p(x) ‖ p(x'))] }, x' TRADES' adversarial image.

    Reconstructed (lrat.md 3.3); whether the paper contains it was not found.

    attack: the inner maximisation of the KL
    beta: weight β of the KL
    local: how weight is shared within a group
    begin: first epoch (from 0) with groups; TRADES before
    bn: batch norm during the attack: eval, train_frozen or train
    """

    attack: KLPGD = KLPGD()
    beta: float = 6.0
    local: Local = Local()
    begin: int = 0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_weight("beta", self.beta)
        check_begin(self.begin)
        check_measured(self.local, self.bn)

    def starts(self) -> int:
        """Return the first epoch with groups."""
        return self.begin

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'."""
        point = self.attack.perturb(model, batch.x, batch.y, ball, rng)
        return hard(batch, point, {} if batch.epoch < self.begin else self.local.measure(model, point, batch.y))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the groups' losses, [N]."""
        clean, attacked = model(made.batch.x), model(made.points)
        natural = cross_entropy(clean, made.targets)
        pair = natural + self.beta * kl(clean, attacked)
        if made.batch.epoch < self.begin:
            return pair
        return self.local.grouped(made, natural, pair, attacked)


@final
@dataclass(frozen=True, slots=True)
class LRATRAT(Method):
    """LRAT over RAT's examples: a group is the image with its label and RAT's m points with theirs.

        min_θ mean { w_0 CE(f(x), y) + Σ_j w_j [CE(f(x̂_j), ŷ_j) - H(ŷ_j)] }

    Ours (lrat.md 12). Losses count above the labels' entropy, which changes no gradient, since weights carry none.

    rat: what makes the points
    local: how weight is shared within a group
    bn: batch norm during the attack (RAT's own field does not count): eval, train_frozen or train
    """

    rat: RAT = RAT()
    local: Local = Local()
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_measured(self.local, self.bn)
        if self.rat.bn != "eval":
            raise DemiluneError(f"rat.bn = {self.rat.bn}: LRAT over RAT has one attack; set bn of the method instead")

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return RAT's points and labels, [m·n]."""
        made = self.rat.examples(model, batch, ball, rng)
        extra = {"above": made.floor, **self.local.measure(model, made.points, batch.y)}
        return made._replace(floor=torch.zeros_like(made.floor[: len(batch.y)]), extra=extra)

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the groups' losses, [N]."""
        clean = None if self.local.skips() else cross_entropy(model(made.batch.x), made.batch.y)
        logits = self.rat.logits(model, made)
        return self.local.grouped(made, clean, cross_entropy(logits, made.targets) - made.extra["above"], logits)
