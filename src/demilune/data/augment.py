"""Augmentation of training images, on the device they lie on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from demilune.core.random import Stream


def crop_flip(images: Tensor, rng: Stream, pad: int, flip: bool, size: Sequence[int] | None = None) -> Tensor:
    """Return a random window of each image and, with ``flip``, mirror it half the time.

    ``images`` is uint8 [n,C,H,W], the result uint8 [n,C,h,w] with (h, w) = ``size`` (None: H and W). An image is
    padded with ``pad`` zeros (black) on every side and a window is cut out, its corner uniform on
    {0, …, H + 2·pad - h} × {0, …, W + 2·pad - w}; the flip swaps left and right. Where h = H, that is a shift by
    up to ``pad`` pixels: the recipe of He et al. (2016), Sec. 4.2. ``rng`` carries the ids of the images, so that
    an image's draw does not depend on its place in the batch.
    """
    n, channels, *whole = images.shape
    height, width = window = list(whole if size is None else size)
    if pad == 0 and not flip and window == whole:
        return images
    device = images.device
    # Both corners of one address: in each of them the row's is the first number and the column's the second.
    down, right = (
        rng.integers("crop", (n, 2), 0, side + 2 * pad - kept + 1).to(device)
        for side, kept in zip(whole, window, strict=True)
    )
    rows = down[:, :1] + torch.arange(height, device=device)
    columns = right[:, 1:] + torch.arange(width, device=device)
    if flip:
        mirrored = rng.integers("flip", (n, 1), 0, 2).to(device) == 1
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n, device=device).reshape(n, 1, 1, 1)
    channel = torch.arange(channels, device=device).reshape(1, channels, 1, 1)
    padded = functional.pad(images, (pad, pad, pad, pad))
    return padded[image, channel, rows.reshape(n, 1, height, 1), columns.reshape(n, 1, 1, width)]
