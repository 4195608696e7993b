"""What RAT's presets train with, field by field, and in what a run's experiment differs from that.

Reports read no configuration of ours as code, so the presets' values stand here once more; a test holds them to be the
same. Where the paper leaves a field open, its value is the preset's reading (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from demilune.report import theme

_ATTACK: Mapping[str, Any] = {
    "method.attack.steps": 10,
    "method.attack.step_size": 2 / 255,
    "method.attack.random_start": True,
    "method.attack.noise": 0.0,
    "method.bn": "eval",
}
_TRAINING: Mapping[str, Any] = {
    "ball.norm": "linf",
    "ball.eps": 8 / 255,
    "move.name": "none",
    "average.name": "none",
    "training.parts": 1,
    "training.momentum": 0.9,
    "training.nesterov": False,
    "training.weight_decay": 2e-4,
    "training.normalize": True,
    "training.decay": "all",
    "data.flip": True,
    "data.extra.file": "",
}
_METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "standard": {"method.bn": "eval"},
        "sat": {**_ATTACK, "method.mass": 1.0},
        "trades": {
            **{name: value for name, value in _ATTACK.items() if name != "method.attack.random_start"},
            "method.attack.noise": 0.001,
            "method.beta": 6.0,
        },
        "mart": {**_ATTACK, "method.attack.noise": 0.001, "method.beta": 5.0},
        "avm": {
            **_ATTACK,
            "method.gamma": 2.0,
            "method.samples": 1,
            "method.mass_clean": 1.0,
            "method.mass_vertex": 0.1,
            "method.clamp": True,
        },
        "adt": {
            "method.steps": 7,
            "method.rate": 0.3,
            "method.entropy_weight": 0.01,
            "method.draws": 5,
            "method.zero_grad": False,
            "method.bn": "eval",
        },
        "rat": {
            **_ATTACK,
            "method.samples": 2,
            "method.scale": 2.0,
            "method.scale_from": 0.0,
            "method.scales": "grid",
            "method.mass_high": 1.0,
            "method.mass_low": 0.1,
            "method.region": "triangle",
            "method.fallback": "end",
            "method.count_start": False,
            "method.clamp": "points",
            "method.share_scale": False,
            "method.passes": "one",
        },
    }
)


def preset(data: str, method: str) -> dict[str, Any]:
    """Return the fields of the preset for these data and this method, by name; those of any method where it has none.

    Net, length and learning rate are none of them: they are compared with the paper's own figures.
    """
    found = {**_TRAINING, "data.pad": 0 if data == "imagenette" else 4, **_METHODS.get(method, {})}
    return found | ({"method.scale": 3.0} if (data, method) == ("imagenette", "rat") else {})


def fields(experiment: Mapping[str, Any], data: str) -> list[str]:
    """Return the fields in which an experiment is not the preset, a line each; a field not recorded is not compared."""
    ours = dict(_flat(experiment))
    ratio, eps = ours.pop("method.attack.step_ratio", None), ours.get("ball.eps")
    if _number(ratio) and _number(eps):
        ours["method.attack.step_size"] = ratio * eps
    method = str(ours.get("method.name"))
    theirs = preset(data, method)
    return [
        *([] if method in _METHODS else [f"method: the paper has no {method}"]),
        *(
            f"{name}: the paper's preset has {_word(value, name)}; ours {_word(ours[name], name)}"
            for name, value in theirs.items()
            if name in ours and not _same(ours[name], value)
        ),
    ]


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(ours: Any, theirs: Any) -> bool:
    if _number(ours) and _number(theirs):
        return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-12)
    return bool(ours == theirs)


def _word(value: Any, name: str) -> str:
    if _number(value):
        return theme.budget(value) if name.endswith((".eps", ".step_size")) else f"{value:g}"
    return "none" if value in ("", None) else str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["fields", "preset"]
