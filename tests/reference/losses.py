"""The outer losses, written from the equations of the specification sheets, straightforwardly and unoptimised.

Nothing here imports the library. Every function takes a network, the images, the adversarial images and whatever was
drawn, and returns the loss that a research script would call ``backward`` on, a scalar. Loops over images and classes
are on purpose. Section numbers are those of the sheet named.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kl_of(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) per image from two sets of logits, [B]."""
    rows = []
    for a, b in zip(F.softmax(p, dim=1), F.softmax(q, dim=1), strict=True):
        rows.append(sum(a[c] * (torch.log(a[c]) - torch.log(b[c])) for c in range(len(a))))
    return torch.stack(rows)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against distributions, mean over the rows."""
    return torch.stack(
        [-(t * torch.log(p)).sum() for t, p in zip(target, F.softmax(logits, dim=1), strict=True)]
    ).mean()


def smoothed(y: Tensor, mass: Tensor, classes: int) -> Tensor:
    """φ(y, λ) = λ y + (1 - y)(1 - λ)/(C - 1), one row an image."""
    labels = torch.empty(len(y), classes, dtype=mass.dtype)
    for i, (label, true) in enumerate(zip(y.tolist(), mass.tolist(), strict=True)):
        for c in range(classes):
            labels[i, c] = true if c == label else (1 - true) / (classes - 1)
    return labels


# baselines.md 0 to 5


def standard(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """baselines.md 0."""
    return F.cross_entropy(model(x), y)


def sat(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    """baselines.md 1; ADT's outer loss is the same (4, step 4)."""
    return F.cross_entropy(model(x_adv), y)


def trades(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """baselines.md 2, with PyTorch's KLDivLoss as the released code has it; the image's pass first."""
    clean = model(x)
    loss_natural = F.cross_entropy(clean, y)
    divergence = nn.KLDivLoss(reduction="sum")(F.log_softmax(model(x_adv), dim=1), F.softmax(clean, dim=1))
    return loss_natural + beta * (1.0 / len(x)) * divergence


def mart(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, weight: float, guard: float = 1e-4) -> Tensor:
    """baselines.md, MART; the guard is added to 1 inside the second logarithm, as in common code."""
    p, q = F.softmax(model(x), dim=1), F.softmax(model(x_adv), dim=1)
    total = 0.0
    for i, label in enumerate(y.tolist()):
        wrong = torch.stack([q[i, k] for k in range(q.shape[1]) if k != label]).max()
        divergence = (p[i] * (p[i].log() - q[i].log())).sum()
        total = total - torch.log(q[i, label]) - torch.log(1 + guard - wrong)
        total = total + weight * divergence * (1 - p[i, label])
    return total / len(x)


def avm(
    model: nn.Module,
    x: Tensor,
    x_end: Tensor,
    y: Tensor,
    weight: Tensor,
    classes: int,
    gamma: float = 2.0,
    clean: float = 1.0,
    vertex: float = 0.1,
) -> Tensor:
    """baselines.md 3 for given mixing weights w [B]."""
    far = torch.clamp(x + gamma * (x_end - x), 0, 1)
    w = weight.reshape(-1, 1, 1, 1)
    mixed = w * x + (1 - w) * far
    one, other = (smoothed(y, torch.full((len(y),), m, dtype=x.dtype), classes) for m in (clean, vertex))
    target = weight[:, None] * one + (1 - weight[:, None]) * other
    return soft_cross_entropy(model(mixed), target)


# rat.md 3


def rat(
    model: nn.Module,
    x: Tensor,
    path: Sequence[Tensor],
    y: Tensor,
    position: Tensor,
    scale: Tensor,
    classes: int,
    largest: float = 2.0,
    high: float = 1.0,
    low: float = 0.1,
) -> Tensor:
    """rat.md 3 and 4, from the attack's path x'_0 … x'_K and draws λ, s [m,n]; predictions along it in eval mode."""
    points, targets = rat_samples(model, x, path, y, position, scale, classes, largest, high, low)
    return soft_cross_entropy(model(points), targets)


def rat_samples(
    model: nn.Module,
    x: Tensor,
    path: Sequence[Tensor],
    y: Tensor,
    position: Tensor,
    scale: Tensor,
    classes: int,
    largest: float,
    high: float,
    low: float,
) -> tuple[Tensor, Tensor]:
    """The sampler ARS and the labels DLS: [m·n] points, all images of the first sample before those of the second."""
    judge = copy.deepcopy(model).eval()
    first = path[-1].clone()
    for i in range(len(x)):
        for t in range(1, len(path)):
            with torch.no_grad():
                predicted = int(judge(path[t][i : i + 1]).argmax())
            if predicted != int(y[i]):
                first[i] = path[t][i]
                break
    points, targets = [], []
    for j in range(scale.shape[0]):
        for i in range(len(x)):
            where, s = position[j, i], scale[j, i]
            on_segment = where * first[i] + (1 - where) * path[-1][i]
            points.append(torch.clamp(x[i] + s * (on_segment - x[i]), 0, 1))
            beta = high - s * (high - low) / largest
            targets.append(smoothed(y[i : i + 1], beta.reshape(1), classes)[0])
    return torch.stack(points), torch.stack(targets)


# lrat.md 4.2: GAIRAT, there called IRAT


def gairat_weights(model: nn.Module, path: Sequence[Tensor], y: Tensor, shift: float) -> Tensor:
    """w_i from the iterates x'_0 … x'_K of which the last is not counted; predictions in eval mode."""
    judge, steps = copy.deepcopy(model).eval(), len(path) - 1
    weights = []
    for i in range(len(y)):
        withstood = 0
        for point in path[:-1]:
            with torch.no_grad():
                withstood += int(judge(point[i : i + 1]).argmax()) == int(y[i])
        weights.append((1 + math.tanh(shift + 5 * (1 - withstood / math.floor(steps / 2)))) / 2)
    total = sum(weights)
    return torch.tensor([w * len(y) / total for w in weights], dtype=path[0].dtype)


def gairat(model: nn.Module, path: Sequence[Tensor], y: Tensor, shift: float) -> Tensor:
    """mean_i w_i l(f(x'_K), y)."""
    return (gairat_weights(model, path, y, shift) * F.cross_entropy(model(path[-1]), y, reduction="none")).mean()


# lrat.md 3


def margin_of(p: Tensor, y: Tensor) -> list[float]:
    """V = max_{k≠y} p~_k - p~_y per image (3.2); of logits it is the logit margin."""
    return [
        max(row[k] for k in range(len(row)) if k != t) - row[t] for row, t in zip(p.tolist(), y.tolist(), strict=True)
    ]


def by_tanh(v: float, shift: float = 0.0, slope: float = 5.0) -> float:
    """g(V) = (1 + tanh(lam + s V))/2 (3.2)."""
    return (1 + math.tanh(shift + slope * v)) / 2


def by_sigmoid(v: float, shift: float = 0.0, slope: float = 5.0) -> float:
    """The alternative switch "sigmoid" of 3.2."""
    return 1 / (1 + math.exp(-(shift + slope * v)))


def by_step(v: float) -> float:
    """The hard step of 3.2: 1 iff misclassified."""
    return float(v > 0)


def always_one(v: float) -> float:
    """No reweighting (3.2)."""
    return 1.0


def lrat_weights(
    model: nn.Module,
    variants: Sequence[Tensor],
    y: Tensor,
    g: Callable[[float], float] = by_tanh,
    mass: float = 1.0,
    least: float = 0.0,
    mean: bool = False,
    measure: str = "probability",
    mode: str = "train",
) -> tuple[Tensor, list[Tensor]]:
    """w_0 [B] and w_j [B] as constants; C = ``mass``, w_min = ``least``, ``mean`` the reduction over the variants.

    The copy that is asked keeps the network's running statistics out of it: only its mode matters.
    """
    judge = copy.deepcopy(model)
    judge.train(mode == "train")
    of_variant = []
    for variant in variants:
        with torch.no_grad():
            logits = judge(variant)
        v = margin_of(logits if measure == "logit" else F.softmax(logits, dim=1), y)
        of_variant.append([g(value) for value in v])
    share = 1 / len(variants) if mean else 1.0
    natural = [max(mass - share * sum(w[i] for w in of_variant), least) for i in range(len(y))]
    dtype = variants[0].dtype
    return torch.tensor(natural, dtype=dtype), [share * torch.tensor(w, dtype=dtype) for w in of_variant]


def lrat(
    model: nn.Module,
    x: Tensor,
    variants: Sequence[Tensor],
    y: Tensor,
    natural: Tensor,
    weights: Sequence[Tensor],
    labels: Sequence[Tensor] | None = None,
    globally: Tensor | None = None,
) -> Tensor:
    """3.1: (1/B) Σ_i { w_0 l(f(x), y) + Σ_j w_j l(f(x~_j), y) }; natural pass first, one pass a variant (6, step 4).

    ``labels``: soft labels of the variants (12, over RAT's samples); ``globally``: IRAT's weights multiplied onto the
    group's loss (4.3 b).
    """
    group = natural * F.cross_entropy(model(x), y, reduction="none")
    for j, (variant, weight) in enumerate(zip(variants, weights, strict=True)):
        logits = model(variant)
        if labels is None:
            loss = F.cross_entropy(logits, y, reduction="none")
        else:
            loss = -(labels[j] * torch.log(F.softmax(logits, dim=1))).sum(dim=1)
        group = group + weight * loss
    if globally is not None:
        group = globally * group
    return group.sum() / len(x)


def lrat_trades(
    model: nn.Module,
    x: Tensor,
    variants: Sequence[Tensor],
    y: Tensor,
    natural: Tensor,
    weights: Sequence[Tensor],
    beta: float,
) -> Tensor:
    """3.3: (1/B) Σ_i { w_0 l(f(x), y) + Σ_j w_j [ l(f(x), y) + β KL(p(x) ‖ p(x~_j)) ] }."""
    clean = model(x)
    loss = F.cross_entropy(clean, y, reduction="none")
    group = natural * loss
    for variant, weight in zip(variants, weights, strict=True):
        group = group + weight * (loss + beta * kl_of(clean, model(variant)))
    return group.sum() / len(x)


# taylor.md 3


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer, by type (7, point 7)."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def soft_label_matrix(a: Tensor, cc: float) -> Tensor:
    """Q(a) of 3.3, [C,C], with the guards of 7, point 6."""
    classes, dtype = len(a), a.dtype
    a = a.tolist()
    lifted = [value - min(a) for value in a]
    whole = sum(lifted)
    q = [value / whole if whole >= 1e-12 else 0.0 for value in lifted]
    rows = []
    for k in range(classes):
        rest = sum(q[j] for j in range(classes) if j != k)
        row = []
        for j in range(classes):
            if j == k:
                row.append(1 - cc)
            elif rest < 1e-12:
                row.append(cc / (classes - 1))
            else:
                row.append(cc * q[j] / rest)
        rows.append(row)
    return torch.tensor(rows, dtype=dtype)


def row_sums(model: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """r of 3.2: the gradient of the mean cross-entropy at the last layer's weight, summed over features, [C]."""
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), last_linear(model).weight, retain_graph=True)
    return gradient.sum(dim=1)


def taylor_labels(
    r: Tensor, r_adv: Tensor, y: Tensor, cc: float, symmetric: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y1 … y4 of 3.3; the released code puts y3 = y4, ``symmetric`` is what symmetry asks for (8, conflict 1)."""
    t1, t1_adv, t2, t2_adv = r.abs(), r_adv.abs(), r * r, r_adv * r_adv
    one, two = soft_label_matrix(t1 - t1_adv, cc)[y], soft_label_matrix(t1_adv - t1, cc)[y]
    four = soft_label_matrix(t2_adv - t2, cc)[y]
    three = soft_label_matrix(t2 - t2_adv, cc)[y] if symmetric else four
    return one, two, three, four


def kl_to(target: Tensor, logits: Tensor) -> Tensor:
    """KL(q ‖ p) of taylor.md 2: mean over the rows, 0 log 0 = 0."""
    return nn.KLDivLoss(reduction="sum")(F.log_softmax(logits, dim=1), target) / len(target)


def taylor_code(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    beta: float = 6.0,
    alpha: float = 0.2,
    cc: float = 0.8,
    second: float = 0.5,
    symmetric: bool = False,
) -> Tensor:
    """3.2 to 3.4 with two passes, x then x'; F2's coefficient is ``second`` times alpha (ResNet-18: 0.2)."""
    clean, attacked = model(x), model(x_adv)
    r, r_adv = row_sums(model, clean, y), row_sums(model, attacked, y)
    one, two, three, four = taylor_labels(r, r_adv, y, cc, symmetric)
    zeroth = kl_of(clean, attacked).mean()
    f1 = 0.5 * (kl_to(one, attacked) + kl_to(two, clean))
    f2 = 0.5 * (kl_to(three, attacked) + kl_to(four, clean))
    return (1 - alpha) * F.cross_entropy(clean, y) + beta * zeroth + alpha * f1 + second * alpha * f2


def taylor_exact(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float = 6.0, first: float = 0.1, second: float = 0.1
) -> Tensor:
    """4: CE + β Z + k1 ‖G - G'‖_F + k2 ‖G∘G - G'∘G'‖_1, the last layer's gradients G by double backward."""
    weight = last_linear(model).weight
    clean, attacked = model(x), model(x_adv)
    loss = F.cross_entropy(clean, y)
    (g,) = torch.autograd.grad(loss, weight, create_graph=True)
    (g_adv,) = torch.autograd.grad(F.cross_entropy(attacked, y), weight, create_graph=True)
    frobenius = torch.sqrt(((g - g_adv) ** 2).sum())
    absolute = (g * g - g_adv * g_adv).abs().sum()
    return loss + beta * kl_of(clean, attacked).mean() + first * frobenius + second * absolute


def taylor_code_released(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    beta: float = 6.0,
    alpha: float = 0.2,
    cc: float = 0.8,
    second: float = 0.5,
) -> Tensor:
    """The same in the eight passes of the released TRADES script: x, x', x', x, x', x, x', x (7, point 2)."""
    natural = model(x)
    loss_natural = F.cross_entropy(natural, y)
    r = row_sums(model, natural, y)
    r_adv = row_sums(model, model(x_adv), y)
    one, two, three, four = taylor_labels(r, r_adv, y, cc)
    criterion = nn.KLDivLoss(reduction="sum")
    attacked = F.log_softmax(model(x_adv), dim=1)
    zeroth = criterion(attacked, F.softmax(model(x), dim=1)) / len(x)
    f1 = criterion(F.log_softmax(model(x_adv), dim=1), one) / len(x)
    f1 = f1 + criterion(F.log_softmax(model(x), dim=1), two) / len(x)
    f2 = criterion(F.log_softmax(model(x_adv), dim=1), three) / len(x)
    f2 = f2 + criterion(F.log_softmax(model(x), dim=1), four) / len(x)
    return (1 - alpha) * loss_natural + beta * zeroth + alpha * 0.5 * f1 + second * alpha * 0.5 * f2
