"""The natural corruptions against their definition, written again in NumPy, SciPy and Pillow, an image at a time."""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from demilune.core.random import Stream
from demilune.data.cifar_c import UPSTREAM100
from demilune.data.corruption import blur, digital, filters, weather
from demilune.data.corruption.frost import NAMES, Frost, find_frost
from demilune.data.corruptions import PAPER, SEVERITIES, TYPES, available, corrupt
from demilune.errors import DemiluneError

Array = np.ndarray[Any, Any]

EXACT = ("brightness", "contrast", "pixelate", "jpeg_compression", "defocus_blur", "zoom_blur")
RANDOM = tuple(name for name in TYPES if name not in EXACT)


def _images(count: int, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Return images with soft and flat parts, edges and noise, and black, white and grey ones among them."""
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (count, channels, 5, 5)).astype(np.uint8)
    grown = [
        [np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in each] for each in coarse
    ]
    images = np.stack(grown).astype(np.int64)
    images[1::4] += rng.randint(-20, 21, images[1::4].shape)
    images[2::4, :, side // 3 :, : side // 2] = rng.randint(0, 256, (len(images[2::4]), channels, 1, 1))
    images[3::16] = rng.randint(0, 256, (len(images[3::16]), channels, 1, 1))
    images[:3] = np.array([0, 255, 128])[: len(images[:3]), None, None, None]
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


def _photographs() -> list[Array]:
    rng = np.random.RandomState(7)
    sizes = ((215, 300), (200, 210), (200, 210), (230, 190), (250, 250))
    return [np.kron(rng.randint(0, 256, (h // 5, w // 5, 3)), np.ones((5, 5, 1))).astype(np.uint8) for h, w in sizes]


FROST = Frost(tuple(torch.from_numpy(photo[2::5, 2::5].transpose(2, 0, 1).copy()) for photo in _photographs()))


def _corrupt(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    return corrupt(images, name, severity, Stream.of(seed).images(torch.arange(len(images))), FROST)


# The definition, for one image uint8 [H,W,C]: what make_cifar_c.py does with its libraries, and where it draws.


@dataclass(frozen=True)
class Drawn:
    """Draws of NumPy's own generator, or with a stream those of one image's address."""

    numpy: np.random.RandomState
    stream: Stream | None = None

    def uniform(self, purpose: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Array:
        if self.stream is None:
            return self.numpy.uniform(low, high, shape)
        return self.stream.uniform(purpose, (1, *shape), low, high, torch.float64)[0].numpy()

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Array:
        if self.stream is None:
            return self.numpy.normal(size=shape)
        return self.stream.normal(purpose, (1, *shape), torch.float64)[0].numpy()

    def integers(self, purpose: str, shape: tuple[int, ...], low: int, high: int) -> Array:
        if self.stream is None:
            return self.numpy.randint(low, high, shape)
        return self.stream.integers(purpose, (1, *shape), low, high)[0].numpy()

    def poisson(self, purpose: str, rate: Array) -> Array:
        if self.stream is None:
            return self.numpy.poisson(rate)
        share = (self.integers(purpose, rate.shape, 0, 1 << 31) + 0.5) / 2**31
        return stats.poisson.ppf(share, rate)


Definition = Callable[[Array, int, Drawn], Array]


def _apply(make: Definition, images: torch.Tensor, severity: int, drawn: Callable[[int], Drawn]) -> Array:
    """Return what a definition makes of images, uint8 [N,C,H,W]; channels come first where it draws per value."""
    made = [
        make(image, severity, drawn(place))
        for place, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy())
    ]
    return np.stack([np.uint8(image) for image in made]).transpose(0, 3, 1, 2)


def _gaussian_noise(x: Array, s: int, drawn: Drawn) -> Array:
    c = [0.04, 0.06, 0.08, 0.09, 0.10][s - 1]
    noise = drawn.normal("noise", x.transpose(2, 0, 1).shape).transpose(1, 2, 0)
    return np.clip(x / 255.0 + c * noise, 0, 1) * 255


def _shot_noise(x: Array, s: int, drawn: Drawn) -> Array:
    c = [500, 250, 100, 75, 50][s - 1]
    count = drawn.poisson("events", (x / 255.0 * c).transpose(2, 0, 1)).transpose(1, 2, 0)
    return np.clip(count / c, 0, 1) * 255


def _impulse_noise(x: Array, s: int, drawn: Drawn) -> Array:
    c = [0.01, 0.02, 0.03, 0.05, 0.07][s - 1]
    struck = drawn.uniform("struck", x.transpose(2, 0, 1).shape).transpose(1, 2, 0)
    return np.where(struck < c, np.where(struck < c / 2, 255, 0), x)


def _defocus_blur(x: Array, s: int, drawn: Drawn) -> Array:
    radius, alias = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)][s - 1]
    along, across = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
    disk = (along**2 + across**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    bell = (bell / bell.sum()).astype(np.float32)
    for axis in (1, 0):
        disk = ndimage.correlate1d(disk, bell, axis, mode="mirror")
    blurred = [ndimage.correlate(x[:, :, c] / 255.0, disk.astype(np.float64), mode="mirror") for c in range(x.shape[2])]
    return np.clip(np.stack(blurred, -1), 0, 1) * 255


def _smooth(x: Array, sigma: float) -> Array:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _glass_blur(x: Array, s: int, drawn: Drawn) -> Array:
    sigma, delta, times = [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)][s - 1]
    x = np.uint8(_smooth(x / 255.0, sigma) * 255)
    for i in range(times):
        up, left = (
            drawn.integers(f"{way} {i}", x.shape[:2], 0, 2) for way in ("up", "left")
        )  # randint(-1, 1) is -1, 0
        for h in range(x.shape[0] - delta, delta, -1):
            for w in range(x.shape[1] - delta, delta, -1):
                h2, w2 = h - up[h, w], w - left[h, w]
                x[h, w], x[h2, w2] = x[h2, w2], x[h, w]  # both are views: no swap
    return np.clip(_smooth(x / 255.0, sigma), 0, 1) * 255


def _magick(x: Array, radius: int, sigma: float, degrees: float) -> Array:
    """Return [H,W,C] as ImageMagick's MotionBlurImage would, pixel by pixel of the kernel."""
    taps = np.arange(2 * radius + 1)
    kernel = np.exp(-(taps**2) / (2.0 * sigma * sigma)) / (math.sqrt(2 * math.pi) * sigma)
    kernel /= kernel.sum()
    row, column = np.mgrid[: x.shape[0], : x.shape[1]]
    total = np.zeros(x.shape)
    for i in taps:
        right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        beyond = (np.clip(row + down, 0, x.shape[0] - 1), np.clip(column + right, 0, x.shape[1] - 1))
        total += kernel[i] * x[beyond]
    return np.floor(total + 0.5)


def _motion_blur(x: Array, s: int, drawn: Drawn) -> Array:
    radius, sigma = [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)][s - 1]
    return _magick(x, radius, sigma, float(drawn.uniform("angle", (), -45, 45)))


def _clipped_zoom(x: Array, factor: float) -> Array:
    h = x.shape[0]
    kept = math.ceil(h / factor)
    top = (h - kept) // 2
    x = ndimage.zoom(x[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
    trim = (x.shape[0] - h) // 2
    return x[trim : trim + h, trim : trim + h]


def _zoom_blur(x: Array, s: int, drawn: Drawn) -> Array:
    factors = np.arange(1, [1.06, 1.11, 1.16, 1.21, 1.26][s - 1], 0.01)
    x = (x / 255.0).astype(np.float32)
    out = np.zeros_like(x)
    for factor in factors:
        out += _clipped_zoom(x, factor)
    return np.clip((x + out) / (len(factors) + 1), 0, 1) * 255


def _snow(x: Array, s: int, drawn: Drawn) -> Array:
    mean, sd, zoom, threshold, radius, sigma, blend = [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ][s - 1]
    x = np.array(x, np.float32) / 255.0
    layer = mean + sd * drawn.normal("flakes", (1, *x.shape[:2]))[0]
    layer = _clipped_zoom(layer[..., None], zoom)
    layer[layer < threshold] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    layer = _magick(layer, radius, sigma, float(drawn.uniform("angle", (), -135, -45))) / 255.0
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None] if x.shape[2] == 3 else x
    x = blend * x + (1 - blend) * np.maximum(x, grey * 1.5 + 0.5)
    return np.clip(x + layer + np.rot90(layer, k=2), 0, 1) * 255


def _frost(x: Array, s: int, drawn: Drawn) -> Array:
    a, b = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][s - 1]
    photo = FROST.photos[int(drawn.integers("photo", (), 0, 5))].numpy().transpose(1, 2, 0)
    top, left = (int(u * (side - 32)) for u, side in zip(drawn.uniform("corner", (2,)), photo.shape[:2], strict=True))
    return np.clip(a * x + b * photo[top : top + 32, left : left + 32], 0, 255)


def _plasma(side: int, decay: float, drawn: Drawn) -> Array:
    """Return the landscape, point by point: the middle of four neighbours, on a torus."""
    field = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half, count = step // 2, side // step

        def middle(name: str, top: int, left: int, near: list[tuple[int, int]], step=step, count=count, wibble=wibble):
            noise = wibble * drawn.uniform(f"{name} {step}", (count, count), -wibble, wibble)
            for i in range(count):
                for j in range(count):
                    h, w = top + i * step, left + j * step
                    mean = sum(field[(h + down) % side, (w + right) % side] for down, right in near) / 4
                    field[h, w] = mean + noise[i, j]

        beside = [(-half, 0), (half, 0), (0, -half), (0, half)]
        middle("square", half, half, [(-half, -half), (-half, half), (half, -half), (half, half)])
        middle("across", 0, half, beside)
        middle("along", half, 0, beside)
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def _fog(x: Array, s: int, drawn: Drawn) -> Array:
    c, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][s - 1]
    x = x / 255.0
    most = x.max()
    x = x + c * _plasma(32, decay, drawn)[..., None]
    return np.clip(x * most / (most + c), 0, 1) * 255


def _brightness(x: Array, s: int, drawn: Drawn) -> Array:
    color = pytest.importorskip("skimage.color")
    x = color.rgb2hsv(x / 255.0)
    x[:, :, 2] = np.clip(x[:, :, 2] + [0.05, 0.1, 0.15, 0.2, 0.3][s - 1], 0, 1)
    return np.clip(color.hsv2rgb(x), 0, 1) * 255


def _contrast(x: Array, s: int, drawn: Drawn) -> Array:
    x = x / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * [0.75, 0.5, 0.4, 0.3, 0.15][s - 1] + means, 0, 1) * 255


def _warped(x: Array, shift: Array) -> Array:
    """Return [H,W,C] as OpenCV warps it: places in 1/32 pixel, counted in 1/1024, and sums of four in float32."""
    points = np.array([[26, 26], [26, 6], [6, 6]], float)
    m = np.linalg.solve(np.c_[points + shift, np.ones(3)], points).T  # from results to their sources, columns first
    row, column = np.mgrid[:32, :32]
    fine = [np.rint(m[i, 0] * column * 1024) + np.rint((m[i, 1] * row + m[i, 2]) * 1024) for i in (1, 0)]
    (h, low), (w, right) = (np.divmod((each.astype(int) + 16) >> 5, 32) for each in fine)
    low, right = (each.astype(np.float32)[..., None] / np.float32(32) for each in (low, right))
    wide = np.pad(x, ((31, 31), (31, 31), (0, 0)), "reflect")
    a, b, c, d = (wide[31 + h + i, 31 + w + j] for i in (0, 1) for j in (0, 1))
    return a * ((1 - low) * (1 - right)) + b * ((1 - low) * right) + c * (low * (1 - right)) + d * (low * right)


def _elastic_transform(x: Array, s: int, drawn: Drawn) -> Array:
    alpha, sigma, affine = [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)][
        s - 1
    ]
    x = np.array(x, np.float32) / np.float32(255)
    x = _warped(x, drawn.uniform("affine", (3, 2), -affine, affine))
    row, column = np.mgrid[:32, :32]
    right, down = (
        ndimage.gaussian_filter(drawn.uniform(way, (32, 32), -1, 1), sigma, mode="reflect", truncate=3) * alpha
        for way in ("right", "down")
    )
    moved = [row + down.astype(np.float32), column + right.astype(np.float32)]
    x = np.stack([ndimage.map_coordinates(x[..., c], moved, order=1, mode="reflect") for c in range(3)], -1)
    return np.clip(x, 0, 1) * 255


def _pixelate(x: Array, s: int, drawn: Drawn) -> Array:
    small = [30, 28, 27, 24, 20][s - 1]
    box = Image.Resampling.BOX
    return np.asarray(Image.fromarray(x).resize((small, small), box).resize((32, 32), box))


def _jpeg_compression(x: Array, s: int, drawn: Drawn) -> Array:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=[80, 65, 58, 50, 40][s - 1])
    return np.asarray(Image.open(file))


DEFINITIONS: dict[str, Definition] = {name: globals()[f"_{name}"] for name in TYPES}


def test_the_types_are_those_of_the_papers_in_the_order_of_the_original() -> None:
    noises, blurs, weathers = TYPES[:3], TYPES[3:7], TYPES[7:11]
    assert [name.endswith("_noise") for name in TYPES] == [True] * 3 + [False] * 12
    assert all(name.endswith("_blur") for name in blurs) and weathers == ("snow", "frost", "fog", "brightness")
    assert TYPES[11:] == ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
    assert TYPES[3:] == PAPER and len(PAPER) == 12 and not set(noises) & set(PAPER)


# Types that draw nothing


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["brightness", "contrast", "pixelate", "jpeg_compression"])
def test_exact_types_are_their_definition(name: str, severity: int) -> None:
    images = _images(48)
    made = _corrupt(images, name, severity).numpy()
    assert np.array_equal(made, _apply(DEFINITIONS[name], images, severity, lambda _: Drawn(np.random.RandomState(0))))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur"])
def test_blurs_are_their_definition_but_for_a_level_in_a_thousandth_of_the_values(name: str, severity: int) -> None:
    images = _images(48)
    made = _corrupt(images, name, severity).numpy()
    expected = _apply(DEFINITIONS[name], images, severity, lambda _: Drawn(np.random.RandomState(0)))
    off = np.abs(made.astype(int) - expected)
    assert off.max() <= 1 and (off > 0).mean() <= 0.001


def test_brightness_is_the_round_trip_of_the_standard_library() -> None:
    images = _images(5)
    made = _corrupt(images, "brightness", 3)
    for before, after in zip(
        images.permute(0, 2, 3, 1).reshape(-1, 3), made.permute(0, 2, 3, 1).reshape(-1, 3), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before.numpy() / 255))
        exact = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1.0)))
        assert np.abs(after.numpy() - exact).max() < 1 + 1e-9  # cut off, not rounded


def test_values_are_cut_off_and_not_rounded() -> None:
    assert filters.levels(torch.tensor([-1.0, 0.0, 0.5, 254.9 / 255, 1.0, 7.0])).tolist() == [0, 0, 127, 254, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert filters.levels(filters.units(every)).equal(every)  # and no level is lost on the way
    assert filters.levels(filters.units(every).float()).equal(every)


def test_zoom_takes_as_many_factors_as_the_original_script(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    monkeypatch.setattr(blur, "zoomed", lambda x, factor: (counts.append(factor), x)[1])
    for severity, (count, last) in enumerate(((7, 1.06), (12, 1.11), (16, 1.15), (21, 1.2), (26, 1.25)), 1):
        counts.clear()
        _corrupt(_images(1), "zoom_blur", severity)
        assert len(counts) == count and counts[0] == 1 and counts[-1] == pytest.approx(last)


# Types that draw


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_random_types_are_their_definition_with_the_same_draws(name: str, severity: int) -> None:
    images = _images(8)
    root = Stream.of(0, name, severity)
    made = _corrupt(images, name, severity).numpy()
    drawn = [Drawn(np.random.RandomState(0), root.images(torch.tensor([place]))) for place in range(8)]
    expected = _apply(DEFINITIONS[name], images, severity, drawn.__getitem__)
    off = np.abs(made.astype(int) - expected)
    assert off.max() <= 1 and (off > 0).mean() <= 0.001


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", RANDOM)
def test_random_types_have_the_statistics_of_the_definition_with_numpys_draws(name: str, severity: int) -> None:
    images = _images(160, seed=1)
    before = images.numpy().astype(float)
    rng = np.random.RandomState(5)
    found = []
    for after in (
        _corrupt(images, name, severity).numpy(),
        _apply(DEFINITIONS[name], images, severity, lambda _: Drawn(rng)),
    ):
        values = after.reshape(160, -1).astype(float)
        change = np.abs(values - before.reshape(160, -1)).mean(1)
        found.append(np.stack([change, values.mean(1), values.std(1)]))
    apart = found[0] - found[1]  # of each image: mean absolute change, mean, standard deviation
    error = apart.std(1) / math.sqrt(160)
    assert (np.abs(apart.mean(1)) <= 3.5 * error + 0.01).all(), (apart.mean(1), error)
    assert (error < 2).all()  # in levels: the comparison says something


def test_shot_noise_has_the_probabilities_of_poisson() -> None:
    level, events = 40, 50
    images = torch.full((200, 3, 32, 32), level, dtype=torch.uint8)
    made = _corrupt(images, "shot_noise", 5).flatten()
    value = np.uint8(np.minimum(np.arange(events + 1) / events, 1) * 255)
    chance = stats.poisson.pmf(np.arange(events + 1), level / 255 * events)
    kept = chance * len(made) > 20
    seen = np.array([(made == int(each)).sum() for each in value[kept]])
    wanted = chance[kept] * len(made)
    assert ((seen - wanted) ** 2 / wanted).sum() < stats.chi2.ppf(0.999, kept.sum())
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 32, 32)
    made = _corrupt(ends, "shot_noise", 1)
    assert (made[0] == 0).all() and made[1].max() == 255 and made[1].float().mean() < 254


def test_impulse_noise_strikes_single_values_white_or_black() -> None:
    images = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        made = _corrupt(images, "impulse_noise", severity)
        assert set(made.unique().tolist()) == {0, 100, 255}
        for end in (0, 255):
            assert (made == end).double().mean() == pytest.approx(
                share / 2, abs=4 * math.sqrt(share / 2 / made.numel())
            )


def test_motion_blur_draws_from_one_side_along_its_angle() -> None:
    point = torch.zeros(3, 1, 9, 9, dtype=torch.uint8)
    point[:, :, 4, 4] = 255
    made = filters.streaked(point, 2, 3.0, torch.tensor([0.0, 90.0, -45.0], dtype=torch.float64))[:, 0]
    assert [tuple(place) for place in made[0].nonzero().tolist()] == [(4, 0), (4, 1), (4, 2), (4, 3), (4, 4)]
    assert [tuple(place) for place in made[1].nonzero().tolist()] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(row + column == 8 and row >= 4 for row, column in made[2].nonzero().tolist())
    assert made[0, 4].tolist()[:5] == sorted(made[0, 4].tolist()[:5])  # half a bell: strongest where it is


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
def test_gaussian_is_that_of_scipy_to_the_last_bit(border: filters.Border) -> None:
    x = np.random.RandomState(0).rand(3, 32, 11)
    for sigma, truncate in ((0.05, 4.0), (0.25, 4.0), (0.4, 4.0), (6.4, 3.0), (1.92, 3.0), (0.96, 3.0)):
        made = filters.gaussian(torch.from_numpy(x), sigma, truncate, border).numpy()
        assert np.array_equal(made, ndimage.gaussian_filter(x, (0, sigma, sigma), mode=border, truncate=truncate))


def test_displacement_is_that_of_scipy() -> None:
    rng = np.random.RandomState(0)
    x, right, down = rng.rand(2, 3, 16, 12).astype(np.float32), *rng.normal(0, 9, (2, 2, 16, 12)).astype(np.float32)
    made = digital.displaced(*map(torch.from_numpy, (x, right, down))).numpy()
    row, column = np.mgrid[:16, :12]
    for i in range(2):
        for c in range(3):
            place = [row + down[i], column + right[i]]
            assert np.allclose(made[i, c], ndimage.map_coordinates(x[i, c], place, order=1, mode="reflect"), atol=1e-6)


def test_the_affine_map_is_that_of_opencv_to_the_last_bit() -> None:
    cv2 = pytest.importorskip("cv2")
    x = filters.units(_images(20)).float()
    shift = np.random.RandomState(0).uniform(-2.56, 2.56, (20, 3, 2)).astype(np.float32)
    made = digital.warped(x, torch.from_numpy(shift)).permute(0, 2, 3, 1).numpy()
    points = np.array([[26, 26], [26, 6], [6, 6]], np.float32)
    for image, moved, found in zip(x.permute(0, 2, 3, 1).numpy(), shift, made, strict=True):
        matrix, border = cv2.getAffineTransform(points, points + moved), cv2.BORDER_REFLECT_101
        warped = cv2.warpAffine(np.ascontiguousarray(image), matrix, (32, 32), borderMode=border)
        assert np.array_equal(found, warped) and np.allclose(found, _warped(image, moved), atol=1e-6)


def test_landscapes_fill_their_range_and_become_rougher() -> None:
    rng = Stream.of(0).images(torch.arange(50))
    rough = []
    for decay in (3.0, 2.0, 1.75):
        field = weather.plasma(50, 32, decay, rng)
        assert (field.amin(dim=(1, 2)) == 0).all() and (field.amax(dim=(1, 2)) == 1).all()
        rough.append((field - field.roll(1, 2)).abs().mean())
    assert rough == sorted(rough)


# What holds for all


@pytest.mark.parametrize("name", TYPES)
def test_draws_are_of_the_image_the_type_the_severity_and_the_seed_alone(name: str) -> None:
    images = _images(140)  # more than are made at a time
    kept = images.clone()
    ids = torch.randperm(1 << 20, generator=torch.Generator().manual_seed(0))[:140]
    rng = Stream.of(3, "corrupt").images(ids)
    whole = corrupt(images, name, 4, rng, FROST)
    assert images.equal(kept)  # what was given stays as it was
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    for rows in (torch.tensor([139]), torch.tensor([5, 130, 2]), torch.arange(131)):
        assert corrupt(images[rows], name, 4, rng.take(rows), FROST).equal(whole[rows])
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert corrupt(strided[:9], name, 4, rng.take(torch.arange(9)), FROST).equal(whole[:9])
    assert corrupt(images[:0], name, 4, rng.take(torch.arange(0)), FROST).shape == (0, 3, 32, 32)
    same = images[4:5].expand(2, -1, -1, -1)  # one image under two ids, and under two seeds
    twice = corrupt(same, name, 4, rng.take(torch.arange(2)), FROST)
    other = corrupt(same, name, 4, Stream.of(4, "corrupt").images(ids[:2]), FROST)
    assert twice[0].equal(twice[1]) == other.equal(twice) == (name not in RANDOM)


NOT_ORDERED = {
    "glass_blur": "severities 2 and 3, and 4 and 5, move pixels alike, and the wider blur hides more of it",
    "motion_blur": "severities 3 and 4 differ in the radius alone, and the bell has ended before",
    "frost": "the image fades faster than the ice grows",
    "elastic_transform": "most of the change is the affine map's, which becomes smaller",
    "pixelate": "of a soft image, 28 pixels in 32 change a little more than 27",
}


@pytest.mark.parametrize("name", TYPES)
def test_change_grows_with_severity_where_the_constants_are_ordered(name: str) -> None:
    images = _images(64, seed=2)[3:]
    change = [(_corrupt(images, name, each).int() - images).abs().double().mean().item() for each in SEVERITIES]
    assert min(change) > 0.5
    if name == "elastic_transform":
        assert change == sorted(change, reverse=True), change
    elif name in NOT_ORDERED:
        assert min(change[1:]) > change[0], change
    else:
        assert change == sorted(change), change


def test_two_severities_of_motion_blur_are_one() -> None:
    images = _images(20)
    angle = torch.linspace(-45, 45, 20, dtype=torch.float64)
    assert filters.streaked(images, 6, 2.0, angle).equal(filters.streaked(images, 8, 2.0, angle))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 24, 36), (1, 8, 8), (3, 38, 36)])
def test_other_images_keep_their_shape(name: str, channels: int, height: int, width: int) -> None:
    images = _images(6, channels, 40)[:, :, :height, :width]
    made = _corrupt(images, name, 5)
    assert made.shape == images.shape and made.dtype == torch.uint8
    assert not made[3:].equal(images[3:])


def test_grey_images_are_the_channel_of_colourless_ones() -> None:
    images = _images(12, 1)
    colour = images.expand(-1, 3, -1, -1)
    for name in (
        "brightness",
        "contrast",
        "defocus_blur",
        "zoom_blur",
        "glass_blur",
        "motion_blur",
        "fog",
        "snow",
        "pixelate",
    ):
        made, wanted = _corrupt(images, name, 3).int(), _corrupt(colour, name, 3).int()
        assert (made - wanted).abs().max() <= 1, name


def test_what_cannot_be_is_refused() -> None:
    images, rng = _images(2), Stream.of(0).images(torch.arange(2))
    with pytest.raises(DemiluneError, match="unknown corruption 'fgo': did you mean 'fog'"):
        corrupt(images, "fgo", 1, rng)
    for severity in (0, 6, -1):
        with pytest.raises(DemiluneError, match=f"fog: severity = {severity} is not possible: it is from 1 to 5"):
            corrupt(images, "fog", severity, rng)
    for wrong in (images.float(), images[0], images[:, :2]):
        with pytest.raises(ValueError, match="instead of uint8"):
            corrupt(wrong, "fog", 1, rng)
    for stream in (Stream.of(0), rng.take(torch.arange(1))):
        with pytest.raises(ValueError, match="2 images need the stream of their ids"):
            corrupt(images, "fog", 1, stream)


# Photographs of frost


def _write(folder: Path, end: str = ".png", shrunk: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, photo in zip(NAMES, _photographs(), strict=True):
        pixels = photo[2::5, 2::5] if shrunk else photo
        Image.fromarray(pixels).save(folder / f"{name}{'_fifth' if shrunk else ''}{end}")
    return folder


def test_photographs_are_read_as_published_or_shrunk(tmp_path: Path) -> None:
    for folder in (_write(tmp_path / "whole"), _write(tmp_path / "fifth", shrunk=True)):
        found = find_frost(str(folder))
        assert found is not None and all(a.equal(b) for a, b in zip(found.photos, FROST.photos, strict=True))
    _write(tmp_path / "jpeg", ".jpg")
    soft = Frost.read(tmp_path / "jpeg")
    assert [photo.shape for photo in soft.photos] == [photo.shape for photo in FROST.photos]
    assert available(soft) == TYPES


def test_without_photographs_frost_is_missing_and_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demilune.data.corruption.frost.PACKAGE", "no_such_package")
    assert find_frost() is None
    assert available(None) == tuple(name for name in TYPES if name != "frost")
    with pytest.raises(
        DemiluneError, match=r"frost: it is made with photographs, .*pip install .*imagecorruptions.*folder"
    ):
        corrupt(_images(1), "frost", 1, Stream.of(0).images(torch.arange(1)), find_frost())
    with pytest.raises(DemiluneError, match="there is no folder"):
        find_frost(str(tmp_path / "nowhere"))
    _write(tmp_path)
    (tmp_path / "frost4.png").unlink()
    with pytest.raises(DemiluneError, match=r"lacks the photographs frost4 \(.png or .jpg\): get them with"):
        find_frost(str(tmp_path))
    (tmp_path / "frost4.jpg").write_bytes(b"no image")
    with pytest.raises(DemiluneError, match=r"frost4.jpg cannot be read as an image .*replace it") as caught:
        find_frost(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DemiluneError, match="images of 40 by 40 pixels are too large: of frost2 no more than 40 by 42"):
        corrupt(_images(1, side=40), "frost", 1, Stream.of(0).images(torch.arange(1)), FROST)


def test_photographs_of_a_package_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "icy_package"
    _write(package / "frost", ".jpg")
    (package / "__init__.py").write_text("raise ImportError('no OpenCV')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("demilune.data.corruption.frost.PACKAGE", "icy_package")
    assert find_frost() is not None and "icy_package" not in sys.modules
    shutil.rmtree(package / "frost")
    assert find_frost() is None


def test_the_installed_package_has_the_photographs() -> None:
    found = find_frost()
    if found is None:
        pytest.skip("needs the package imagecorruptions")
    sizes = [tuple(photo.shape[1:]) for photo in found.photos]
    assert sizes == [(120, 180), (63, 112), (63, 112), (70, 105), (99, 132)]


DATA = Path(os.environ.get("DEMILUNE_TEST_DATA", ""), "cifar-100-python")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs $DEMILUNE_TEST_DATA, a folder with the real files in it")
@pytest.mark.parametrize("name", [name for name in EXACT if name != "jpeg_compression"])
def test_the_published_files_are_made_anew_to_the_last_bit(name: str) -> None:
    from demilune.data import CIFAR100

    test = CIFAR100(root=str(DATA.parent), unverified=True).load().test
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (50_000, 32, 32, 3)})
    found = hashlib.md5(file.getvalue())
    for severity in SEVERITIES:
        made = corrupt(test.images, name, severity, Stream.of(0).images(test.ids))
        found.update(made.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    assert found.hexdigest() == UPSTREAM100.md5[1 + TYPES.index(name)]
