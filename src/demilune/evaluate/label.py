"""Pseudo-labels for images that have none: the first step of robust self-training (Carmon et al. 2019, RST)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from demilune.checkpoint import load_run
from demilune.data.extra import unlabelled
from demilune.errors import DemiluneError
from demilune.evaluate.subject import check_data, rebuild
from demilune.evaluate.table import save_npz
from demilune.experiment import Experiment, build
from demilune.options import overlaid


class Labelled(NamedTuple):
    """How many images were labelled, and how many of each class."""

    images: int
    counts: dict[str, int]


def label(
    file: Path,
    images: Path,
    out: Path,
    settings: Mapping[str, Any],
    batch: int,
    watch: Callable[[int, int], None],
) -> Labelled:
    """Write an .npz of ``images`` with the classes that a checkpoint's network gives them, for ``data.extra.file``.

    Its arrays are ``image`` as given, ``label`` int64 [N] and ``confidence`` float32 [N], the probability of the label.
    The network is run in float32 on the images as they are; ``settings`` are plain fields laid over the run's own
    (data, runtime). Raise :class:`DemiluneError` for files that are missing, damaged or do not fit, for a network whose
    logits are no numbers, and where ``out`` is there already or cannot be written.
    """
    check_new(out)
    checkpoint = load_run(file)
    experiment = build(Experiment, overlaid(checkpoint.about["experiment"], settings))
    device = experiment.runtime.start()
    dataset = experiment.data.load()
    check_data(file, checkpoint, dataset)
    given, split = unlabelled(images, dataset)
    model = experiment.runtime.place(rebuild(file, checkpoint, experiment).eval(), device)
    labels, confidence = [], []
    for rows in torch.arange(len(split)).split(batch):
        part = split.take(rows).centred(*dataset.shape[1:]).to(device)
        with torch.no_grad():
            top = model(experiment.runtime.layout(part.pixels(slice(None)))).softmax(dim=1).max(dim=1)
        labels.append(top.indices.cpu())
        confidence.append(top.values.cpu())
        watch(int(rows[-1]) + 1, len(split))
    if not all(part.isfinite().all() for part in confidence):
        raise DemiluneError(f"{file} gives logits that are no numbers: nothing was labelled; name another checkpoint")
    found = torch.cat(labels).numpy()
    check_new(out)  # another process may have been faster
    save_npz(out, {"image": given, "label": found, "confidence": torch.cat(confidence).numpy()})
    counts = np.bincount(found, minlength=len(dataset.classes))
    return Labelled(len(found), {name: int(n) for name, n in zip(dataset.classes, counts, strict=True)})


def check_new(out: Path) -> None:
    """Refuse a file that is there, or that could not be written after all the work."""
    if os.path.lexists(out):
        raise DemiluneError(f"{out} is there already: name a new file, so that nothing is lost")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except (OSError, ValueError) as error:
        raise DemiluneError(f"{out} cannot be written ({error}): name a file in a folder of your own") from None
