"""Augmentation and batching alone: ours, for whole batches on the device, and a ``DataLoader`` image by image."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import ours
from benchmarks.reference import loader
from benchmarks.rounds import Contestant, Found, Say, fastest, figure, ratio, rows, timed
from benchmarks.setting import Setting


def run(setting: Setting, say: Say) -> Found:
    """Measure one epoch of each."""
    data = ours.dataset(setting, ours.loaded(setting))
    contestants = [Contestant("demilune", ours.epoch(setting, "on", data))]
    for workers in dict.fromkeys((0, setting.workers)):
        name = f"DataLoader, {workers} worker{'' if workers == 1 else 's'}"
        contestants.append(Contestant(name, _epoch(setting, workers)))
    found = timed(contestants, setting.rounds, setting.place, say, least=setting.least)
    counts = set(found.first.values())
    if len(counts) != 1:
        raise AssertionError(f"an epoch has {counts} images: the contestants do not do the same work")
    seconds, count = found.seconds, counts.pop()
    others = [name for name in seconds if name != "demilune"]
    best = fastest(seconds, others)
    figures = [
        figure(
            "data" if name == best else f"data.{name}", f"augmented images per second, demilune against {name}",
            ratio(seconds[name], seconds["demilune"]), "×", setting.device,
        )
        for name in others
    ]  # fmt: skip
    notes = (
        f"an epoch of {count} images: shuffled, padded by 4, cropped, flipped, in [0,1]; batches of {setting.batch}",
    )
    return Found(tuple(rows(seconds, count, "images/s")), tuple(figures), notes)


def _epoch(setting: Setting, workers: int) -> Callable[[], int]:
    batches, device = loader(setting, workers), setting.place
    return lambda: sum(len(x.to(device)) for x, _ in batches)
