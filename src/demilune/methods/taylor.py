"""Taylor-code: randomized adversarial training via Taylor expansion (Jin et al., CVPR 2023, 2303.10653) as released.

The released code does not differentiate a Taylor series; this is what it does, and what produced the published numbers,
as far as anybody can tell: the body of the paper could not be read. A literal reading is ``taylor_exact.py``, and
"Taylor-MC" is TRADES with the move ``gaussian``: three names, never one for two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from demilune.attacks import KLPGD, BatchNormMode
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy, kl, widened
from demilune.core.random import Stream
from demilune.core.targets import entropy
from demilune.core.weights import convolutions, gaussian, moved, penultimate
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import WHOLE, Batch, Examples, Method, hard
from demilune.methods.sat import check_mass
from demilune.methods.trades import check_weight, regularised

TINY = 1e-12
"""Below this a soft label's shares are all alike (the released code divides by zero)."""


@final
@dataclass(frozen=True, slots=True)
class TaylorCode(Method):
    """TRADES with soft labels made of the differences of last-layer gradients on clean and adversarial images.

        r_c = (1/B) Σ_i (p_ic - 1[y_i = c]) Σ_d h_id  (h the input of the last linear layer), r' the same at x'
        T1 = |r|,  T2 = r²;    y1 = Q(T1 - T1')[y],  y2 = Q(T1' - T1)[y],  y3 = y4 = Q(T2' - T2)[y]
        L = (1 - α) CE(f(x), y) + β KL(p ‖ p') + α ½ [KL(y1 ‖ p') + KL(y2 ‖ p)] + s α ½ [KL(y3 ‖ p') + KL(y4 ‖ p)]

    Row k of Q(a) has 1 - m on class k and m spread over the others in proportion to a - min a. The attack is TRADES' on
    a network whose convolutions carry noise; the loss is taken without it.

    Source: released code (trades_first_second.py, train_first_second.py; taylor.md 3). With the move ``awp`` (γ 0.005,
    warm-up 9) and noise 0 it is the released AWP-TRADES variant; a move ascends the TRADES loss alone. The statistics
    r carry no gradient and are the batch's: all images of a class share a soft label. α = 0 leaves TRADES, s = 0 the
    first order.

    attack: the inner maximisation of the KL
    beta: weight β of the KL
    alpha: weight α of the soft-label terms
    second: weight s of the second-order term relative to α: 0.5 (released for WRN) or 0.2 (for ResNet-18)
    wrong_mass: label mass m off the true class; null for the released 0.8, or 0.98 from 100 classes on
    second_sym: whether y3 is Q(T2 - T2')[y], as symmetry asks; the released code has y3 = y4
    noise: standard deviation of the weight noise in the attack, absolute; 0 for none (released AWP variant)
    noise_names: noise on the weights of all convolutions (conv2d), or on parameters named so (conv, the released
        code, which misses PreActResNet's shortcuts)
    replay: run the eight forward passes of the released TRADES script, which only moves batch norm's statistics
    bn: batch norm during the attack: eval (the released code's), train_frozen or train
    """

    attack: KLPGD = KLPGD()
    beta: float = 6.0
    alpha: float = 0.2
    second: float = 0.5
    wrong_mass: float | None = None
    second_sym: bool = False
    noise: float = 1e-4
    noise_names: Literal["conv2d", "conv"] = "conv2d"
    replay: bool = False
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 <= self.noise <= 1.0:
            raise DemiluneError(f"noise = {self.noise:g}: the standard deviation of the noise must be from 0 to 1")
        for name in ("beta", "second"):
            check_weight(name, getattr(self, name))
        if self.wrong_mass is not None:
            check_mass("wrong_mass", self.wrong_mass)
        if not 0.0 <= self.alpha <= 1.0:
            raise DemiluneError(f"alpha = {self.alpha:g}: the share of the soft-label terms must be from 0 to 1")

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Refuse parts: the soft labels are made of the whole batch's gradients."""
        return WHOLE if parts > 1 else None

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x', found on the noisy network; labels are not looked at."""
        noise: dict[str, Tensor] = {}
        if self.noise > 0.0:
            chosen = convolutions(model)
            if self.noise_names == "conv":
                named = {name: p for name, p in model.named_parameters() if "conv" in name}
                if chosen and not named:
                    raise DemiluneError("noise_names = conv: no weight of the network is named so; use conv2d")
                chosen = named
            noise = gaussian(chosen, self.noise, rng.sub("taylor"))
        with moved(model, noise):
            return hard(batch, self.attack.perturb(model, batch.x, batch.y, ball, rng))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the loss, [N]."""
        if self.alpha == 0.0 and not self.replay:
            return regularised(model, made, self.beta)
        x, y = made.batch.x, made.batch.y
        with penultimate(model) as features:
            clean, attacked = model(x), model(made.points)
        if self.replay:
            with torch.no_grad():
                for images in (made.points, x) * 3:
                    model(images)
        loss = (1.0 - self.alpha) * cross_entropy(clean, made.targets) + self.beta * kl(clean, attacked)
        if self.alpha == 0.0:
            return loss
        r, r_attacked = (pull(z, h, y) for z, h in zip((clean, attacked), features, strict=True))
        gap1, gap2 = r.abs() - r_attacked.abs(), r.square() - r_attacked.square()
        mass = (0.98 if made.batch.classes >= 100 else 0.8) if self.wrong_mass is None else self.wrong_mass
        y1, y2, y4 = (soft_labels(gap, y, mass) for gap in (gap1, -gap1, -gap2))
        y3 = soft_labels(gap2, y, mass) if self.second_sym else y4
        first = 0.5 * (divergence(y1, attacked) + divergence(y2, clean))
        second = 0.5 * (divergence(y3, attacked) + divergence(y4, clean))
        return loss + self.alpha * (first + self.second * second)

    def climbed(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the TRADES loss, [N]."""
        return regularised(model, made, self.beta)


def pull(logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
    """Return r [C], the row sums of the mean cross-entropy's gradient in the last layer's weight; no graph."""
    with torch.no_grad():
        p = widened(logits).softmax(dim=1)
        off = p.scatter_add(1, y[:, None], p.new_full((len(y), 1), -1.0))
        r: Tensor = (off * widened(features).sum(dim=1, keepdim=True)).mean(dim=0)
        return r


def soft_labels(values: Tensor, y: Tensor, wrong_mass: float) -> Tensor:
    """Return Q(a)[y], [N,C], for a = ``values`` [C]: 1 - m on class y, m on the others in proportion to a - min a."""
    height = values - values.min()
    total = height.sum()
    height = height / torch.where(total < TINY, torch.ones_like(total), total)
    rest = height.repeat(len(y), 1).scatter_(1, y[:, None], 0.0)
    whole = rest.sum(dim=1, keepdim=True)
    share = torch.where(whole < TINY, torch.full_like(rest, 1.0 / (len(values) - 1)), rest / whole.clamp_min(TINY))
    return (wrong_mass * share).scatter_(1, y[:, None], 1.0 - wrong_mass)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(q ‖ p) of soft labels q = ``target`` from the predictions p, [N]."""
    return cross_entropy(logits, target) - entropy(target)
