"""PGD-10 images per second: ours against other packages, on the same images from the same start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import ours, peers
from benchmarks.rounds import Contestant, Figure, Found, Say, fastest, figure, ratio, rows, timed
from benchmarks.setting import BALL, Setting

CALLED = {"off": "demilune, levers off", "float32": "demilune, float32 levers", "on": "demilune, levers on"}


def run(setting: Setting, say: Say) -> Found:
    """Measure; the first round's images, which is not counted, say whether all did the same work."""
    x, y = ours.images(setting, setting.batch)
    libraries, missing = peers.present()
    arms = ours.arms(setting)
    contestants = [Contestant(CALLED[arm], ours.pgd(setting, arm, x, y)) for arm in arms]
    for name, library in libraries.items():
        contestants.append(Contestant(name, peers.pgd(name, library, ours.network(setting), x, y)))
    found = timed(contestants, setting.rounds, setting.place, say, least=setting.least)
    passes = {name: counted(setting, name, library) for name, library in libraries.items()}
    same = agreement(setting, found.first, CALLED[arms[0]], x, y)

    seconds, figures = found.seconds, list[Figure]()
    if libraries:
        best = fastest(seconds, list(libraries))
        for arm in arms:
            # Where no lever changes the precision, the float32 levers are all there are.
            keys = {"off": ["pgd.off"], "float32": ["pgd.float32"], "on": ["pgd"]}[arm]
            keys += ["pgd.float32"] if arm == "on" and ours.runtime(setting, "on").precision == "float32" else []
            for key in keys:
                values = ratio(seconds[best], seconds[CALLED[arm]])
                text = f"PGD-10, {CALLED[arm]} against {best}, the fastest peer"
                text += " (float32 alone)" if key == "pgd.float32" else ""
                figures.append(figure(key, text, values, "×", setting.device))
        for name in libraries:
            if name != best:
                values = ratio(seconds[name], seconds[CALLED["on"]])
                figures.append(
                    figure(f"pgd.{name}", f"PGD-10, {CALLED['on']} against {name}", values, "×", setting.device)
                )
    notes = [f"{name} is missing: {why}" for name, why in missing.items()]
    notes += [f"{name}: {f:g} forward and {g:g} backward passes per image" for name, (f, g) in passes.items()]
    notes += [
        f"{name}: {100 * told['apart']:.3g} % of pixels differ from {CALLED[arms[0]]}'s by more than 1e-6, "
        f"largest difference {told['largest'] * 255:.3g}/255; mean cross-entropy reached {told['loss']:.4f}"
        for name, told in same.items()
    ]
    told = {name: "{:g} forward, {:g} backward".format(*each) for name, each in passes.items()}
    details = {"agreement": same, "passes": told, "missing": missing, "repeats": found.repeats}
    return Found(tuple(rows(seconds, setting.batch, "images/s", told)), tuple(figures), tuple(notes), details)


def counted(setting: Setting, name: str, library: Any) -> tuple[float, float]:
    """Return a package's forward and backward passes per image, counted on two images."""
    x, y = ours.images(setting, 2)
    model = ours.counting(ours.network(setting))
    peers.pgd(name, library, model, x, y)()
    return model.forwards / 2, model.gradients / 2


def agreement(setting: Setting, made: dict[str, Tensor], of: str, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Return how far everybody's adversarial images are from one contestant's, and the loss they reach, in float32."""
    model, found = ours.network(setting), dict[str, dict[str, float]]()
    for name, points in made.items():
        points = points.detach().float().contiguous()
        apart = (points - made[of].detach().float()).abs()
        with torch.no_grad():
            loss = torch.cat([
                F.cross_entropy(model(part), label, reduction="none")
                for part, label in zip(points.split(64), y.split(64), strict=True)
            ]).mean()  # fmt: skip
        found[name] = {
            "largest": float(apart.max()),
            "apart": float((apart > 1e-6).float().mean()),
            "loss": float(loss),
            "outside": float(((points - x).abs().amax() - BALL.eps).clamp_min(0.0)),
        }
    return found
