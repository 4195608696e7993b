"""What a survey of a network's loss found, as frozen values of plain numbers: written as JSON, read without torch.

An evaluation counts who is still right; a survey says what the loss is like around images or weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, quantiles, stdev
from typing import Any, Literal, TypeAlias, TypeVar, final

from demilune.errors import DemiluneError, check_types, unknown
from demilune.results import standard_error

Numbers: TypeAlias = tuple[float, ...]
Space: TypeAlias = Literal["weights", "input"]


@final
@dataclass(frozen=True, slots=True)
class Direction:
    """The loss on the way from images in one random direction of RAT's region each: RAT's Fig. 2 (rat.md E8).

        x̂(s) = clamp(x + s (x̄ - x), 0, 1),   x̄ = λ x_f + (1 - λ) x_e,   λ ~ U(0,1), one per image

    s = 0 is the image, s = 1 lies between its first and its last adversarial point, s > 1 is beyond the ball. Only
    images that are right at s = 0 are walked, as in the figure: ``n`` of the ``images`` that were looked at. All else
    has one value per s of ``scales``:

    loss, spread: mean and standard deviation over images of the cross-entropy against the true class, in nats
    levels, quantiles: quantiles [S][Q] of that cross-entropy over images, at the levels [Q]
    right: how many images are classified correctly
    mass: mean probability of the true class, to lie beside RAT's labels β(s)
    other: mean probability of the likeliest other class
    method: the value whose attack and region the direction is drawn from
    """

    scales: Numbers
    loss: Numbers
    spread: Numbers
    levels: Numbers
    quantiles: tuple[Numbers, ...]
    right: tuple[int, ...]
    mass: Numbers
    other: Numbers
    n: int
    images: int
    method: str
    norm: str
    eps: float

    def __post_init__(self) -> None:
        check_types(self)
        _check_counts(self.n, self.images)
        count = len(self.scales)
        _check_axis("scales", self.scales)
        for name in ("loss", "spread", "mass", "other"):
            _check(name, getattr(self, name), (count,))
        _check("levels", self.levels, (len(self.levels),))
        _check("quantiles", self.quantiles, (count, len(self.levels)))
        _check("eps", self.eps, ())
        _check("right", self.right, (count,), self.n)

    @property
    def accuracy(self) -> Numbers:
        """Share of all images looked at that are right both at s = 0 and at each s: the strict reading."""
        return tuple(right / self.images for right in self.right)

    @property
    def fooled(self) -> Numbers:
        """Share of the images walked that are misclassified at each s: the success of going that far."""
        return tuple(1.0 - right / self.n for right in self.right)

    @property
    def errors(self) -> Numbers:
        """Binomial standard errors of ``fooled``."""
        return tuple(standard_error(rate, self.n) for rate in self.fooled)

    @property
    def falls(self) -> int:
        """At how many steps from one s to the next the mean loss falls; none, if it rises with s as claimed (T11)."""
        return sum(after < before for before, after in pairwise(self.loss))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "direction", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Direction:
        """Return the survey written by :meth:`to_json`; refuses what is none."""
        return _read(cls, "direction", value)


@final
@dataclass(frozen=True, slots=True)
class Landscape:
    """The mean loss over a plane of two directions, from the weights or from the images.

    ``a`` [A] and ``b`` [B] are the places along the two directions, in the units that ``axes`` name; a single place
    leaves a curve. ``loss`` [A][B] is the mean cross-entropy against the true class, in nats; ``right`` [A][B] how many
    of the ``n`` images are classified correctly there, whatever they were elsewhere. ``examples`` is the attack that
    made the images, or "clean". ``cosine`` is the mean of |cos| between the directions, 0 where they are orthogonal.
    """

    space: Space
    axes: tuple[str, str]
    a: Numbers
    b: Numbers
    loss: tuple[Numbers, ...]
    right: tuple[tuple[int, ...], ...]
    n: int
    examples: str
    cosine: float
    norm: str
    eps: float

    def __post_init__(self) -> None:
        check_types(self)
        _check_counts(self.n, self.n)
        if len(self.axes) != 2 or not all(isinstance(title, str) for title in self.axes):
            raise DemiluneError(f"axes = {self.axes!r}: the titles of two directions were expected")
        _check_axis("a", self.a)
        _check_axis("b", self.b)
        shape = (len(self.a), len(self.b))
        _check("loss", self.loss, shape)
        _check("right", self.right, shape, self.n)
        _check("cosine", self.cosine, ())
        _check("eps", self.eps, ())

    @property
    def accuracy(self) -> tuple[Numbers, ...]:
        """Share of images classified correctly, [A][B] in [0,1]."""
        return tuple(tuple(right / self.n for right in line) for line in self.right)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "landscape", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Landscape:
        """Return the survey written by :meth:`to_json`; refuses what is none."""
        return _read(cls, "landscape", value)


@final
@dataclass(frozen=True, slots=True)
class Curvature:
    """The largest eigenvalue of the Hessian of the cross-entropy, in the weights or in the input.

    ``largest`` has one value for the weights (of the mean loss over ``n`` images) and one per image for the input (of
    its own loss, per squared pixel unit of [0,1]). ``size`` is the number of weights, or of an image's numbers.
    ``residual`` is the greatest ‖Hv - θv‖/max(|θ|, ``floor``) of the unit vectors v and values θ found, after at most
    ``iterations`` products with H; ``tolerance`` is what was asked for. Each θ = v·Hv is a lower bound in any case.
    """

    space: Space
    examples: str
    largest: Numbers
    size: int
    n: int
    iterations: int
    residual: float
    tolerance: float
    floor: float
    norm: str
    eps: float

    def __post_init__(self) -> None:
        check_types(self)
        _check_counts(self.n, self.n)
        _check("largest", self.largest, (1 if self.space == "weights" else self.n,))
        for name in ("residual", "tolerance", "floor", "eps"):
            _check(name, getattr(self, name), ())

    @property
    def converged(self) -> bool:
        """Whether every residual is within the tolerance."""
        return self.residual <= self.tolerance

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return fmean(self.largest)

    @property
    def spread(self) -> float:
        """Standard deviation of the values over images; 0 for a single one."""
        return stdev(self.largest) if len(self.largest) > 1 else 0.0

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the values."""
        if len(self.largest) == 1:
            return (self.largest[0], self.largest[0], self.largest[0])
        low, middle, high = quantiles(self.largest, n=4, method="inclusive")
        return (low, middle, high)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "curvature", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curvature:
        """Return the survey written by :meth:`to_json`; refuses what is none."""
        return _read(cls, "curvature", value)


Survey: TypeAlias = Direction | Landscape | Curvature

KINDS = ("direction", "landscape", "curvature")


def survey(value: Mapping[str, Any]) -> Survey:
    """Return a survey of any kind from what its ``to_json`` wrote."""
    kind = value.get("kind")
    if kind == "direction":
        return Direction.from_json(value)
    if kind == "landscape":
        return Landscape.from_json(value)
    if kind == "curvature":
        return Curvature.from_json(value)
    raise unknown("kind of survey", str(kind), KINDS)


Kind = TypeVar("Kind", Direction, Landscape, Curvature)


def _read(cls: type[Kind], kind: str, value: Mapping[str, Any]) -> Kind:
    if value.get("kind") != kind:
        raise DemiluneError(f"this is no {kind} of demilune's (kind {value.get('kind')!r}): survey the model again")
    fields = {name: _tuples(given) for name, given in value.items() if name != "kind"}
    try:
        return cls(**fields)
    except TypeError as error:
        raise DemiluneError(f"this is no {kind} of demilune's ({error}): survey the model again") from None
    except DemiluneError as error:
        raise DemiluneError(f"this is a broken {kind} ({error}): survey the model again") from None


def _tuples(value: Any) -> Any:
    """Return lists as tuples, however deep: JSON has no others."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def _check_counts(n: int, images: int) -> None:
    if not 1 <= n <= images:
        raise DemiluneError(f"n = {n} of {images} images: a survey needs one image or more")


def _check_axis(name: str, places: Numbers) -> None:
    _check(name, places, (max(1, len(places)),))
    if not all(before < after for before, after in pairwise(places)):
        told = ", ".join(f"{place:g}" for place in places)
        raise DemiluneError(f"{name} = {told}: each must be above the one before")


def _check(name: str, values: Any, shape: tuple[int, ...], most: int | None = None) -> None:
    """Refuse what is no array of finite numbers of that shape, or (``most``) of counts from 0 to ``most``."""
    if shape:
        if not isinstance(values, tuple) or len(values) != shape[0]:
            found = f"{len(values)} values" if isinstance(values, tuple) else repr(values)
            raise DemiluneError(f"{name} has {found} where {shape[0]} belong")
        for one in values:
            _check(name, one, shape[1:], most)
        return
    kind = float | int if most is None else int
    low, high = (-1e300, 1e300) if most is None else (0, most)  # false for NaN, infinity and what no float holds
    if not isinstance(values, kind) or isinstance(values, bool) or not low <= values <= high:
        wanted = "a finite number" if most is None else f"a count from 0 to {most}"
        raise DemiluneError(f"{name} holds {values!r} where {wanted} belongs")


__all__ = ["KINDS", "Curvature", "Direction", "Landscape", "Numbers", "Space", "Survey", "survey"]
