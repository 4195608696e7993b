"""Pseudo-labels for images that have none: the first step of robust self-training (Carmon et al. 2019, RST)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from demilune.checkpoint import load_run
from demilune.data.extra import unlabelled
from demilune.errors import DemiluneError
from demilune.evaluate.assess import check_data, rebuild
from demilune.evaluate.table import save_npz
from demilune.experiment import Experiment, build


class Labelled(NamedTuple):
    """How many images were labelled, and how many of each class."""

    images: int
    counts: dict[str, int]


def label(file: Path, images: Path, out: Path, batch: int, watch: Callable[[int, int], None]) -> Labelled:
    """Write an .npz of ``images`` with the classes that a checkpoint's network gives them, for ``data.extra.file``.

    Its arrays are ``image`` as given, ``label`` int64 [N] and ``confidence`` float32 [N], the probability of the label.
    The network is run in float32 on the images as they are. Raise :class:`DemiluneError` for files that are missing,
    damaged or do not fit, and where ``out`` is there already.
    """
    if out.exists():
        raise DemiluneError(f"{out} is there already: name a new file, so that nothing is lost")
    checkpoint = load_run(file)
    experiment = build(Experiment, checkpoint.about["experiment"])
    dataset = experiment.data.load()
    check_data(file, checkpoint, dataset)
    given, split = unlabelled(images, dataset)
    device = experiment.runtime.start()
    model = experiment.runtime.place(rebuild(file, checkpoint, experiment).eval(), device)
    labels, confidence = [], []
    for rows in torch.arange(len(split)).split(batch):
        part = split.take(rows).centred(*dataset.shape[1:]).to(device)
        with torch.no_grad():
            top = model(experiment.runtime.layout(part.pixels(slice(None)))).softmax(dim=1).max(dim=1)
        labels.append(top.indices.cpu())
        confidence.append(top.values.cpu())
        watch(int(rows[-1]) + 1, len(split))
    found = torch.cat(labels).numpy()
    save_npz(out, {"image": given, "label": found, "confidence": torch.cat(confidence).numpy()})
    counts = np.bincount(found, minlength=len(dataset.classes))
    return Labelled(len(found), {name: int(n) for name, n in zip(dataset.classes, counts, strict=True)})
