"""The order of an epoch and the augmentation of a batch."""

from __future__ import annotations

import pytest
import torch

from demilune.core.random import Stream
from demilune.data import augment, order
from demilune.errors import DemiluneError


def _images(n: int = 12, side: int = 8) -> torch.Tensor:
    return torch.arange(1, n * 3 * side * side + 1).reshape(n, 3, side, side).remainder(255).to(torch.uint8) + 1


def _stream(ids: torch.Tensor) -> Stream:
    return Stream.of(0, "augment").images(ids)


def test_no_augmentation_is_the_identity() -> None:
    images = _images()
    assert torch.equal(augment(images, _stream(torch.arange(12)), pad=0, flip=False), images)


def test_augmentation_repeats_and_invents_no_levels() -> None:
    images, ids = _images(), torch.arange(12)
    made = augment(images, _stream(ids), pad=2, flip=True)
    assert made.dtype == torch.uint8 and made.shape == images.shape
    assert torch.equal(made, augment(images, _stream(ids), pad=2, flip=True))
    assert not torch.equal(made, augment(images, Stream.of(1).images(ids), pad=2, flip=True))
    assert set(made.unique().tolist()) <= set(images.unique().tolist()) | {0}


def test_an_image_is_augmented_alike_wherever_it_stands() -> None:
    images, ids = _images(), torch.arange(100, 112)
    whole = augment(images, _stream(ids), pad=2, flip=True)
    rows = torch.tensor([7, 0, 11, 3])
    assert torch.equal(augment(images[rows], _stream(ids[rows]), pad=2, flip=True), whole[rows])


def test_every_shift_and_both_directions_occur() -> None:
    n, pad = 2000, 1
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    made = augment(image.expand(n, 1, 4, 4), _stream(torch.arange(n)), pad=pad, flip=True)
    padded = torch.nn.functional.pad(image, (pad,) * 4)[0, 0]
    windows = [padded[r : r + 4, c : c + 4] for r in range(3) for c in range(3)]
    windows += [window.flip(1) for window in windows]
    hits = torch.stack([(made[:, 0] == window).flatten(1).all(1) for window in windows])
    assert (hits.sum(0) == 1).all()  # each image is exactly one of the 18 possible
    assert (hits.sum(1) - n / 18).abs().max() < 5 * (n / 18) ** 0.5


def test_flip_alone_only_mirrors() -> None:
    images = _images(200, 4)
    made = augment(images, _stream(torch.arange(200)), pad=0, flip=True)
    mirrored = (made == images.flip(3)).flatten(1).all(1)
    assert ((made == images).flatten(1).all(1) ^ mirrored).all()
    assert 60 < int(mirrored.sum()) < 140


def test_augmentation_leaves_its_input_alone() -> None:
    images = _images()
    augment(images, _stream(torch.arange(12)), pad=2, flip=True)
    assert torch.equal(images, _images())


@pytest.mark.parametrize(("size", "batch", "shape"), [(10, 3, (3, 3)), (9, 3, (3, 3)), (2, 5, (1, 2)), (1, 1, (1, 1))])
def test_an_epoch_visits_images_once_in_whole_batches(size: int, batch: int, shape: tuple[int, int]) -> None:
    rows = order(Stream.of(0), epoch=4, size=size, batch=batch)
    assert rows.dtype == torch.int64 and tuple(rows.shape) == shape
    seen = rows.flatten().tolist()
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(size))


def test_an_order_is_addressed_by_stream_and_epoch() -> None:
    first = order(Stream.of(0), 1, 100, 10)
    assert torch.equal(first, order(Stream.of(0), 1, 100, 10))
    assert torch.equal(first.flatten(), order(Stream.of(0), 1, 100, 25).flatten())
    assert not torch.equal(first, order(Stream.of(0), 2, 100, 10))
    assert not torch.equal(first, order(Stream.of(1), 1, 100, 10))


@pytest.mark.parametrize(("size", "batch"), [(0, 3), (3, 0), (3, -1)])
def test_an_impossible_order_is_refused(size: int, batch: int) -> None:
    with pytest.raises(DemiluneError, match="at least 1"):
        order(Stream.of(0), 0, size, batch)
