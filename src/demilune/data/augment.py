"""Augmentation of training images, on the device they lie on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from demilune.core.random import Stream


def crop_flip(images: Tensor, rng: Stream, pad: int, flip: bool) -> Tensor:
    """Return each image shifted by up to ``pad`` pixels at random and, with ``flip``, mirrored half the time.

    ``images`` is uint8 [n,C,H,W], and so is the result. An image is padded with ``pad`` zeros (black) on
    every side and a window of its old size is cut out, its corner uniform on {0, …, 2·pad}²; the flip swaps
    left and right. ``rng`` carries the ids of the images, so that an image's draw does not depend on its
    place in the batch. The recipe is He et al. (2016), Sec. 4.2.
    """
    if pad == 0 and not flip:
        return images
    n, channels, height, width = images.shape
    device = images.device
    corner = rng.integers("crop", (n, 2), 0, 2 * pad + 1).to(device)
    rows = corner[:, :1] + torch.arange(height, device=device)
    columns = corner[:, 1:] + torch.arange(width, device=device)
    if flip:
        mirrored = rng.integers("flip", (n, 1), 0, 2).to(device) == 1
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n, device=device).reshape(n, 1, 1, 1)
    channel = torch.arange(channels, device=device).reshape(1, channels, 1, 1)
    padded = functional.pad(images, (pad, pad, pad, pad))
    return padded[image, channel, rows.reshape(n, 1, height, 1), columns.reshape(n, 1, 1, width)]
