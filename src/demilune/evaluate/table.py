"""An evaluation: who is still right after each attack, image by image, and the table that follows from it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import PGD, Model, correct, frozen, judged, seeded
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate.counted import Counted
from demilune.evaluate.suite import Entry
from demilune.results import Check, Row
from demilune.runs import replacing

EOT = 20
"""Passes averaged when a model is found randomised (expectation over transformation)."""

SAVE_EVERY = 20.0
"""Seconds of work that an interruption may lose, besides the batch at work."""

STRONGEST = "the model is random: this is its strongest attack, not what any of them broke, which grows by chance"
"""The note of a random model's worst case."""

GALLERY = 2000
"""Passes per image above which an attack is not run once more for example images."""


class Findings(NamedTuple):
    """What an evaluation found: rows and checks, and per image ``right.<row>`` and ``after.<row>``, bool [n]."""

    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    randomised: bool
    images: Mapping[str, NDArray[Any]]
    gallery: Mapping[str, NDArray[Any]]


class Progress(NamedTuple):
    """What an evaluation tells whoever watches: the entry at work, images done with it, and of how many.

    ``right`` are standing so far. ``within``: the share of the batch at work of ``batch`` images, by its passes, of
    the most they can be.
    """

    title: str
    done: int
    total: int
    right: int
    within: float
    batch: int = 0


def evaluate(
    model: nn.Module,
    split: Split,
    ball: Ball,
    entries: Sequence[Entry],
    rng: Stream,
    search: Callable[[Model], Model] = lambda model: model,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    partial: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    examples: int = 6,
    alone: bool = True,
    randomised: bool | None = None,
) -> Findings:
    """Attack every image with every entry.

    ``search`` gives the model in the precision to search in, itself or a :class:`~demilune.attacks.Search`; verdicts
    are the model's own, in float32. With ``partial`` the per-image results so far are kept in that file, and an
    interrupted evaluation of the same ``identity`` (what tells the model from others) goes on where it stopped. Draws
    are addressed by image, so neither ``batch`` nor an interruption changes one. Images that need no attack (wrong
    when clean, or broken by the entry that this one comes ``after``) are left out before batches are made. ``watch``
    may raise to stop.
    ``alone``: a model's answer to an image depends on nothing else; where it does, rows may contradict each other.
    ``randomised``: it answers by chance, None where nobody asked.
    Raises DemiluneError where ε = 0 does not give exactly the clean accuracy, a result contradicts itself, a label is
    none of the classes, or there is no ``identity`` for a ``partial``.
    """
    if partial is not None and identity is None:
        raise DemiluneError(
            "evaluate() was given partial without identity: say what tells this model from others (a checksum of its "
            "weights), so that it goes on with none but its own results"
        )
    with contextlib.ExitStack() as held:
        still: list[Model] = [model, *(beside.model for one in entries for beside in one.beside)]
        for held_still in still:
            held.enter_context(frozen(held_still, "eval"))
        with seeded(rng.sub("classes"), split.ids.device), torch.no_grad():
            check_labels(split.labels, model(layout(split.pixels(_range(split, 0, 1)))).shape[-1])
        if randomised is None:
            with seeded(rng.sub("randomised"), split.ids.device):
                randomised = is_randomised(model, layout(split.pixels(_range(split, 0, 64))))
        state = Progress("clean", 0, len(split), 0, 0.0)

        def tick(forwards: int) -> None:
            within = min(1.0, (forwards - begun) / max(1.0, most)) if most else 0.0
            watch(state._replace(within=within))

        begun, most = 0, 0
        counted = Counted(model, tick)
        seek = search(averaged(counted, EOT) if randomised else counted)
        tried = 0
        if not randomised:
            tried = self_check(model, layout(split.pixels(_range(split, 0, batch))), split, ball, rng)
        book = Book.open(partial, entries, split, ball, {"seed": list(rng.key), **(identity or {})})
        saved = time.monotonic()
        try:
            for one in (None, *entries):
                title = "clean" if one is None else list(one.titles.values())[-1]
                needed, done = book.needed(one), 0
                for rows in needed.split(batch):
                    done += len(rows)
                    if book.has(one, rows):
                        continue
                    begun, before, beside = counted.forwards, counted.gradients, _spent(one)
                    most = len(rows) * (one.cost[0] * (EOT if randomised else 1) if one else 1)
                    state = Progress(title, done - len(rows), len(needed), book.count(one), 0.0, len(rows))
                    part = split.take(rows.to(split.ids.device))
                    x, draws = layout(part.pixels(slice(None))), rng.images(part.ids)
                    with seeded(draws.sub(next(iter(one.titles)) if one else "clean"), x.device):
                        if one is None:
                            after: Mapping[str, Tensor] = {"clean": correct(model, x, part.labels)}
                            spent = (len(x), 0)
                        else:
                            after = one.run(model, seek, x, part.labels, ball, draws)
                            more = [now - then for now, then in zip(_spent(one), beside, strict=True)]
                            spent = (counted.forwards - begun + more[0], counted.gradients - before + more[1])
                    book.note(one, rows, after, spent)
                    watch(Progress(title, done, len(needed), book.count(one), 0.0))
                    if partial is not None and time.monotonic() - saved > SAVE_EVERY:
                        book.save(partial)
                        saved = time.monotonic()
        finally:  # also when somebody wishes to stop
            if partial is not None:
                book.save(partial)
        table = book.table(entries, randomised)
        images = book.images(entries, split, randomised)
        state, most = Progress("example images", 0, 1, 0, 0.0), 0
        with seeded(rng.sub("gallery"), split.ids.device):
            gallery = pick_examples(model, seek, split, ball, entries, rng, images["right.clean"], layout, examples)
    return Findings(table, checks(table, images, tried, alone), randomised, images, gallery)


def _spent(one: Entry | None) -> tuple[int, int]:
    """Return the passes so far through models beside the one examined."""
    beside = () if one is None else one.beside
    return sum(model.forwards for model in beside), sum(model.gradients for model in beside)


class Book:
    """The per-image results so far: for each row int8 [n], -1 where not yet known."""

    def __init__(self, key: str, entries: Sequence[Entry], n: int) -> None:
        self.key, self.n = key, n
        self.titles = {name: title for one in entries for name, title in one.titles.items()}
        self.known = {name: np.full(n, -1, np.int8) for name in ("clean", *self.titles)}
        self.cost = {name: np.zeros(2) for name in self.known}
        self.roles = {name: one.role for one in entries for name in one.titles}
        self.after = {name: one.after for one in entries for name in one.titles}
        # Some of the images, the same for every model; fewer are part of more.
        order = Stream.of(0, "subset", "row").permutation("images", n).numpy()
        self.place = {name: np.sort(order[: one.most or n]) for one in entries for name in one.titles}
        self.place["clean"] = np.arange(n)
        # What a row's results depend on besides the book's key; results so made hold in any suite.
        self.made = {"clean": "clean"}
        for one in entries:
            own = [one.name, one.described(), one.most, one.identity, self.made.get(one.after, "")]
            self.made |= dict.fromkeys(one.titles, json.dumps(own))

    @classmethod
    def open(
        cls, path: Path | None, entries: Sequence[Entry], split: Split, ball: Ball, identity: Mapping[str, Any]
    ) -> Book:
        """Return the book, with what an interrupted evaluation of the very same things left in it.

        Its suite may have been another: of that, the rows count that were made as they are made here.
        """
        what = {
            **identity,
            "ball": [ball.norm, ball.eps],
            "ids": hashlib.sha256(split.ids.cpu().numpy().tobytes()).hexdigest(),
        }
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        book = cls(key, entries, len(split))
        if path is not None and path.exists():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as old:
                    if str(old["key"]) == key:
                        for name in book.known:
                            if f"known.{name}" in old and str(old[f"made.{name}"]) == book.made[name]:
                                known, cost = old[f"known.{name}"], old[f"cost.{name}"]
                                if (known.shape, known.dtype, cost.shape) == ((book.n,), np.int8, (2,)):
                                    book.known[name], book.cost[name] = known, cost
            except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
                pass  # a broken leftover is worth nothing; the work is done again
        return book

    def save(self, path: Path) -> None:
        """Write the book atomically."""
        arrays = {"key": np.array(self.key)} | {f"known.{k}": v for k, v in self.known.items()}
        arrays |= {f"cost.{k}": v for k, v in self.cost.items()}
        save_npz(path, arrays | {f"made.{k}": np.array(v) for k, v in self.made.items()})

    def needed(self, one: Entry | None) -> Tensor:
        """Return the places, int64, of the images an entry has to attack, and note the others it judges as broken.

        Which they are depends only on the rows before, so that batches are cut alike whenever the work goes on.
        """
        if one is None:
            return torch.arange(self.n)
        place = self.place[next(iter(one.titles))]
        standing = np.full(self.n, True) if one.everywhere else self.known["clean"] == 1
        if one.after:
            standing = standing & (self.known[one.after] == 1)
        for name in one.titles:
            self.known[name][place[~standing[place]]] = 0
        return torch.from_numpy(place[standing[place]])

    def has(self, one: Entry | None, rows: Tensor) -> bool:
        """Say whether these images are done."""
        names = ["clean"] if one is None else list(one.titles)
        return all(bool((self.known[name][rows.numpy()] >= 0).all()) for name in names)

    def note(self, one: Entry | None, rows: Tensor, after: Mapping[str, Tensor], cost: tuple[int, int]) -> None:
        """Record verdicts; an entry's cost is that of all its rows together."""
        for name, verdict in after.items():
            self.known[name][rows.numpy()] = verdict.cpu().numpy()
            self.cost[name] += cost

    def count(self, one: Entry | None) -> int:
        """Return how many images survive so far."""
        return int(self.strict("clean" if one is None else list(one.titles)[-1]).sum())

    def strict(self, name: str) -> NDArray[np.bool_]:
        """Return which of a row's images are right both clean and after the attack."""
        place = self.place[name]
        return np.asarray((self.known[name][place] == 1) & (self.known["clean"][place] == 1), np.bool_)

    def worst(self, randomised: bool) -> NDArray[np.bool_]:
        """Return which images no attack in the ball broke.

        Of a random model: which the strongest attack of them all left, since by a union over single draws images fall
        by chance, the more the more attacks there are.
        """
        standing = self.known["clean"] == 1
        if randomised:
            full = [name for name, role in self.roles.items() if role != "probe" and len(self.place[name]) == self.n]
            return min((self.strict(name) for name in full), key=lambda right: int(right.sum()), default=standing)
        for name, role in self.roles.items():
            if role != "probe":
                standing = standing & (self.known[name] != 0)
        return np.asarray(standing, np.bool_)

    def table(self, entries: Sequence[Entry], randomised: bool = False) -> tuple[Row, ...]:
        """Return the rows: clean, one per reading, and the worst case per image (see :meth:`worst`)."""
        rows = [self._row("clean", "Clean", "none", None)]
        for one in entries:
            rows += [self._row(name, title, one.described(), one) for name, title in one.titles.items()]
        whole = sum((self.cost[next(iter(one.titles))] for one in entries if one.role != "probe"), np.zeros(2))
        right, cost = int(self.worst(randomised).sum()), _each(whole, self.n)
        notes = [STRONGEST] if randomised else []
        notes += [skipped] if (skipped := self.skipped(entries)) else []
        worst = Row("worst", "Worst case", "all of the above", self.n, right, None, *cost, note="; ".join(notes))
        return (*rows, worst)

    def skipped(self, entries: Sequence[Entry]) -> str:
        """Say which attacks were run on some of the images, and so lower the worst case on these alone."""
        known = [one for one in entries if one.role != "probe" and not set(one.titles) & set(self.after.values())]
        fewer = {list(one.titles.values())[-1]: len(self.place[next(iter(one.titles))]) for one in known}
        told = ", ".join(f"{title} on {n}" for title, n in fewer.items() if n < self.n)
        if not told:
            return ""
        some = f"not all attacks were run on all {self.n} images ({told})"
        return f"{some}: an image counts as standing where an attack was not run on it"

    def spent(self, name: str) -> NDArray[np.float64]:
        """Return the passes that a row's figure took: its own attack's, and those of the attacks it comes after."""
        before = self.after.get(name)
        return np.asarray(self.cost[name] + (self.spent(before) if before else 0.0), np.float64)

    def _row(self, name: str, title: str, attack: str, one: Entry | None) -> Row:
        place, n = self.place[name], len(self.place[name])
        after = int((self.known[name][place] == 1).sum()) if one is None or one.everywhere else None
        cost = _each(self.spent(name), n)
        role, note = "attack" if one is None else one.role, "" if one is None else one.note
        return Row(name, title, attack, n, int(self.strict(name).sum()), after, *cost, role=role, note=note)

    def images(self, entries: Sequence[Entry], split: Split, randomised: bool = False) -> dict[str, NDArray[Any]]:
        """Return the per-image arrays that are saved."""
        found: dict[str, NDArray[Any]] = {"ids": split.ids.cpu().numpy(), "labels": split.labels.cpu().numpy()}
        found |= {f"right.{name}": self.strict(name) for name in self.known}
        found |= {f"place.{name}": place for name, place in self.place.items() if len(place) < self.n}
        for one in entries:
            if one.everywhere:
                found |= {f"after.{name}": self.known[name][self.place[name]] == 1 for name in one.titles}
        return found | {"right.worst": self.worst(randomised)}


def _each(cost: NDArray[np.float64], n: int) -> tuple[float, float]:
    forwards, gradients = cost / n
    return float(forwards), float(gradients)


def checks(
    table: Sequence[Row], images: Mapping[str, NDArray[Any]], tried: int, alone: bool = True
) -> tuple[Check, ...]:
    """Return the checks of evaluation.md 1; raises DemiluneError where a result contradicts itself.

    ``tried``: on how many images ε = 0 gave the clean predictions, 0 for a random model, which was not asked.
    """
    rows, randomised = {row.name: row for row in table}, not tried
    found = []
    if randomised:
        text = f"the model answers differently on the same images: it was attacked with {EOT} averaged passes"
        found.append(Check("randomised", "warning", text))
    else:
        text = f"an attack of radius 0 gave exactly the clean predictions, on the first {tried} images"
        found.append(Check("eps = 0", "pass", text))
    for name in rows:
        if name.startswith("pgd") and name.endswith("_any") and alone and not randomised:
            base = name.removesuffix("_any").split("x")[0]
            last = images[f"right.{base}"]
            if (images[f"right.{name}"] & ~last).any():
                raise DemiluneError(f"{name} leaves images standing that {base} broke: a fault of the evaluation")
    if alone and not randomised:
        found.append(
            Check("nesting", "pass", "every iterate ≤ last iterate ≤ clean; worst case ≤ every attack, per image")
        )
    same = [row for row in table if "@" not in row.name and row.n == rows["clean"].n]  # the same ball and images
    one, many = (next((row for row in same if row.name.startswith(start)), None) for start in ("fgsm", "pgd"))
    if one is not None and many is not None:
        fine = one.right >= many.right
        text = f"FGSM {one.accuracy:.2%}, {many.title} {many.accuracy:.2%}: iterating should not be weaker"
        found.append(Check("FGSM ≥ PGD", "pass" if fine else "warning", text))
    forms = (r"multi\d+x\d+", r"cw\d+")
    aimed, cw = (next((row for row in same if re.fullmatch(form, row.name)), None) for form in forms)
    if aimed is not None and cw is not None:
        fine = aimed.right <= cw.right
        text = (
            f"multi-targeted {aimed.accuracy:.2%}, {cw.title} {cw.accuracy:.2%}: several targets should not be weaker"
        )
        found.append(Check("multi-targeted ≤ CW", "pass" if fine else "warning", text))
    curve = [row for row in table if re.fullmatch(r"budget\.pgd10\.\d+", row.name)]
    if curve:
        rises = [(less, more) for less, more in itertools.pairwise(curve) if more.right > less.right]
        told = "; ".join(f"{less.title} {less.accuracy:.2%}, {more.title} {more.accuracy:.2%}" for less, more in rises)
        text = f"more may break less, as steps are few and of one size: {told}" if rises else "no accuracy rises with ε"
        found.append(Check("accuracy falls with ε", "warning" if rises else "pass", text))
    return tuple(found)


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels outside the classes."""
    strange = ((y < 0) | (y >= classes)).nonzero().flatten().tolist()
    if strange:
        raise DemiluneError(
            f"image {strange[0]} has the label {int(y[strange[0]])}, and the {classes} classes are 0 to {classes - 1}: "
            "name the right data, or declare the number of classes"
        )


def is_randomised(model: Model, x: Tensor, passes: int = 5) -> bool:
    """Say whether a model answers differently on the same images.

    AutoAttack's test, image by image: another class in one of five passes, or normalised logits off by 1e-4.
    """
    with torch.no_grad():
        logits = torch.stack([model(x).float() for _ in range(passes)])
    called = logits.argmax(dim=2)
    apart = F.normalize(logits, dim=2).nan_to_num(nan=2.0)
    return bool((called != called[0]).any()) or bool(((apart - apart[0]).norm(dim=2) > 1e-4).any())


def averaged(model: Model, passes: int) -> Model:
    """Return the model whose log-probabilities are the mean over several passes."""

    def forward(x: Tensor) -> Tensor:
        return torch.stack([F.log_softmax(model(x).float(), dim=1) for _ in range(passes)]).mean(dim=0)

    return forward


def self_check(model: Model, x: Tensor, split: Split, ball: Ball, rng: Stream) -> int:
    """Refuse to go on where an attack of radius 0 does not give exactly the clean predictions; return on how many."""
    y, nothing = split.labels[: len(x)], Ball(ball.norm, 0.0)
    attack = PGD(steps=2, step_ratio=0.25)
    after = judged(model, x, attack(model, x, y, nothing, rng.images(split.ids[: len(x)])), y, nothing)
    if not torch.equal(after, correct(model, x, y)):
        raise DemiluneError(
            "an attack of radius 0 changed predictions: the model depends on more than its image (a training mode, "
            "statistics of the batch, or preprocessing outside [0,1]); nothing was evaluated"
        )
    return len(x)


def pick_examples(
    model: nn.Module,
    search: Model,
    split: Split,
    ball: Ball,
    entries: Sequence[Entry],
    rng: Stream,
    right: NDArray[np.bool_],
    layout: Callable[[Tensor], Tensor],
    count: int,
) -> dict[str, NDArray[Any]]:
    """Attack a few images once more, for people to look at: the first ones right when clean, of different classes."""
    labels = split.labels.cpu().numpy()
    firsts = {int(label): i for i, label in reversed(list(enumerate(labels))) if right[i]}
    index = torch.tensor(sorted(firsts.values())[:count], dtype=torch.int64, device=split.ids.device)
    if len(index) == 0:
        return {}
    x, y, ids = layout(split.pixels(index)), split.labels[index], split.ids[index]

    def confidence(images: Tensor) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(F.softmax(model(images).float(), dim=1).cpu().numpy())

    found = {"ids": ids.cpu().numpy(), "labels": y.cpu().numpy(), "clean": x.contiguous().cpu().numpy()}
    found["clean_probabilities"] = confidence(x)
    for one in entries:
        name = list(one.titles)[-1]
        if one.of is None or one.role != "attack" or sum(one.cost) > GALLERY:
            continue
        attacked = one.of(search, x, y, ball, rng.images(ids))
        found[f"image.{name}"] = attacked.contiguous().cpu().numpy()
        found[f"probabilities.{name}"] = confidence(attacked)
    return found


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays atomically."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _range(split: Split, start: int, stop: int) -> Tensor:
    return torch.arange(start, min(stop, len(split)), device=split.ids.device)
