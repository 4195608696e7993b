"""Training steps per second: SAT and RAT, ours with levers off and on, and the loop of the released scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks import ours
from benchmarks.reference import Loop
from benchmarks.rounds import Contestant, Found, Say, figure, ratio, rows, timed
from benchmarks.setting import Setting

MAKERS: dict[str, Callable[[Setting], Callable[[], None]]] = {
    "SAT, reference": lambda setting: Loop(setting, "sat", "backward"),
    "SAT, reference with autograd.grad": lambda setting: Loop(setting, "sat", "grad"),
    "SAT, demilune, levers off": lambda setting: ours.Trainer(setting, "off", "sat"),
    "SAT, demilune, levers on": lambda setting: ours.Trainer(setting, "on", "sat"),
    "RAT, reference": lambda setting: Loop(setting, "rat", "backward"),
    "RAT, demilune, levers off": lambda setting: ours.Trainer(setting, "off", "rat"),
    "RAT, demilune, levers on": lambda setting: ours.Trainer(setting, "on", "rat"),
}
"""Who takes steps: from a setting to one step's call."""

OURS = tuple(name for name in MAKERS if "demilune" in name)


def measured(names: Sequence[str], setting: Setting, say: Say) -> dict[str, list[float]]:
    """Return the seconds of one step of each in every round."""
    contestants = [Contestant(name, MAKERS[name](setting)) for name in names]
    return timed(contestants, setting.rounds, setting.place, say, least=setting.least).seconds


def run(setting: Setting, say: Say) -> Found:
    """Measure all of them."""
    seconds = measured(list(MAKERS), setting, say)
    figures = []
    for name in ("SAT", "RAT"):
        for arm in ("on", "off"):
            key = f"step.{name.lower()}" + ("" if arm == "on" else ".off")
            values = ratio(seconds[f"{name}, reference"], seconds[f"{name}, demilune, levers {arm}"])
            figures.append(
                figure(key, f"{name} step, levers {arm}, against the reference loop", values, "×", setting.device)
            )
    values = ratio(seconds["SAT, reference with autograd.grad"], seconds["SAT, demilune, levers on"])
    text = "SAT step, levers on, against the reference loop with autograd.grad"
    figures.append(figure("step.sat.grad", text, values, "×", setting.device))
    notes = (
        f"a step is a batch of {setting.batch}: loaded, cropped and flipped, PGD-10, the outer pass, SGD",
        f"the reference loop's images are made by {setting.workers} worker processes beside the {setting.threads} "
        "threads that are counted",
    )
    return Found(tuple(rows(seconds, 1, "steps/s")), tuple(figures), notes)


def rat(setting: Setting, say: Say, already: Mapping[str, Sequence[float]] | None = None) -> Found:
    """Return what a RAT step is of a SAT step, from the seconds of rounds ``already`` measured or measured now."""
    seconds = already or measured(OURS, setting, say)
    seconds = {name: seconds[name] for name in OURS}
    figures, counts = [], dict[str, dict[str, int]]()
    notes = ["from the rounds of `step`, in the same run"] if already else []
    arms: tuple[ours.Arm, ...] = ("off", "on")
    for arm in arms:
        values = ratio(seconds[f"RAT, demilune, levers {arm}"], seconds[f"SAT, demilune, levers {arm}"])
        figures.append(figure(f"rat.{arm}", f"RAT(m=2) step / SAT step, levers {arm}", values, "×", setting.device))
    for arm in arms:
        counted = {name: ours.gradients(setting, arm, name) for name in ("sat", "rat")}
        counts[arm] = {name: inner for name, (inner, _) in counted.items()}
        equal = "equal" if counts[arm]["sat"] == counts[arm]["rat"] else "NOT EQUAL"
        notes.append(
            f"levers {arm}: gradients in each image by the attack: SAT {counted['sat'][0]}, RAT {counted['rat'][0]} "
            f"({equal}); images in the outer pass for each: SAT {counted['sat'][1]}, RAT {counted['rat'][1]}"
        )
    return Found(tuple(rows(seconds, 1, "steps/s")), tuple(figures), tuple(notes), {"gradients": counts})
