"""The ledger: what was ever measured, one small JSON file per finished cell, to be kept under version control.

A cell is one trained network and one thing asked of it: an evaluation, a curve, a survey of the loss, the epochs of
its training, the pace of its steps. A record holds what was found with n, the images that were right as packed bits,
the verdict, hardware, time and commit; no path and no name of a machine. Needs no torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from demilune.diagnosis import anew
from demilune.errors import DemiluneError, check_types, unknown
from demilune.results import Evaluation, Row
from demilune.runs import read_json, replacing
from demilune.surveys import Survey, survey

FORMAT = 1

Kind: TypeAlias = Literal["evaluation", "curve", "survey", "training", "pace", "plane", "probe"]
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

REMEDY = "put the file back (git checkout -- FILE), or delete it and record the run anew with demilune ledger add RUN"

_ROW = ("name", "title", "attack", "n", "right", "right_after", "forwards", "gradients", "role", "note")


@final
@dataclass(frozen=True, slots=True)
class Record:
    """What was found of one cell.

    key: 16 hexadecimal digits of what was trained, on which data, and what was asked
    label: what the run is called
    kind: evaluation, curve, survey, training, pace, plane or probe
    what: which curve, survey or probe, which image of a plane; empty for the other kinds
    checkpoint: which of the run's, with its step
    experiment: the whole training as plain values, without paths
    data: name, official, and sha256 of the arrays
    trained: seconds and epochs of the training, and the hardware it ran on
    measured: seconds of the measurement, and the hardware it ran on
    commit: of the code, with ``+`` where it was changed; empty where it was not run from a checkout
    found: an evaluation without its rows, surveys, epochs, or seconds, by kind
    rows: the evaluation's rows
    bits: per row which images were right, packed; ``place.<row>`` which images those are, where fewer than all
    """

    key: str
    label: str
    kind: Kind
    what: str
    checkpoint: str
    experiment: Mapping[str, Any]
    data: Mapping[str, Any]
    trained: Mapping[str, Any]
    measured: Mapping[str, Any]
    commit: str
    found: Mapping[str, Any]
    rows: tuple[Row, ...] = ()
    bits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[0-9a-f]{16}", self.key):
            raise DemiluneError(f"key = {self.key!r}: 16 hexadecimal digits were expected")
        for name, kind in (("name", str), ("official", bool), ("sha256", dict)):
            if not isinstance(self.data.get(name), kind):
                raise DemiluneError(f"data.{name} = {self.data.get(name)!r}: a {kind.__name__} was expected")

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation, as a report draws it; None for other kinds.

        Where the right images are known it is judged anew: the verdict stored is that of the rules of its day.
        """
        if self.kind not in ("evaluation", "curve"):
            return None
        about = {"environment": dict(self.measured.get("environment", {})), "command": ""}
        rows = [{name: getattr(row, name) for name in _ROW} for row in self.rows]
        found = Evaluation.from_json({**self.found, **about, "rows": rows})
        return anew(found, images_of(self)) if self.bits else found

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """The surveys of the loss, none for other kinds."""
        return tuple(survey(one) for one in self.found["surveys"]) if self.kind == "survey" else ()

    @property
    def n(self) -> int:
        """How many images were looked at, 0 where none."""
        return self.rows[0].n if self.rows else int(self.found.get("images", 0))

    def row(self, name: str) -> Row | None:
        """Return the row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def right(self, name: str) -> npt.NDArray[np.bool_] | None:
        """Return which of all n images were right after an attack, None where it was not recorded of all of them."""
        row = self.row(name)
        if row is None or row.n != self.n or name not in self.bits:
            return None
        return unpacked(self.bits[name], row.n)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the checksum last."""
        value = {
            "format": FORMAT,
            **{one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("rows", "bits")},
            "rows": [[getattr(row, name) for name in _ROW] for row in self.rows],
            "bits": dict(self.bits),
        }
        return value | {"sha256": checksum(value)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Return the record written by :meth:`to_json`; refuses what is none, or was changed since."""
        given = dict(value)
        if given.pop("format", None) != FORMAT:
            raise DemiluneError(f"it is no cell of a ledger (format {value.get('format')!r}, {FORMAT} was expected)")
        if given.pop("sha256", None) != checksum({k: v for k, v in value.items() if k != "sha256"}):
            raise DemiluneError("it was changed since it was written (its checksum is another)")
        try:
            rows = tuple(Row(**dict(zip(_ROW, row, strict=True))) for row in given.pop("rows"))
            found = cls(rows=rows, **given)
            for row in rows:
                check_types(row)
            agreeing(found)
            found.evaluation  # noqa: B018 (what cannot be drawn is refused here)
            found.surveys  # noqa: B018
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise DemiluneError(f"it is a broken cell of a ledger ({error})") from None
        return found


def agreeing(record: Record) -> None:
    """Refuse counts that cannot be, and packed images that are not those that were counted."""
    for row in record.rows:
        after = row.right if row.right_after is None else row.right_after
        if not (0 < row.n <= record.n and 0 <= row.right <= row.n and 0 <= after <= row.n):
            raise DemiluneError(f"row {row.name!r} counts {row.right} right (after: {after}) of {row.n} images")
    known = {row.name: row for row in record.rows}
    for name, text in record.bits.items():
        if name == "ids":
            continue
        of, place = known.get(name.removeprefix("place.")), name.startswith("place.")
        if of is None:
            raise DemiluneError(f"it has images of {name!r}, and no such row")
        count = int(unpacked(text, record.n if place else of.n).sum())
        if count != (of.n if place else of.right):
            raise DemiluneError(f"row {of.name!r} counts {of.right} right of {of.n}, its images say otherwise")


def checksum(value: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def packed(right: npt.NDArray[np.bool_]) -> str:
    """Return bools as base64 of their bits, eight to a byte, the first the highest."""
    return base64.b64encode(np.packbits(np.asarray(right, dtype=bool)).tobytes()).decode("ascii")


def unpacked(text: str, n: int) -> npt.NDArray[np.bool_]:
    """Return the ``n`` bools of :func:`packed`; refuses another number of them."""
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise DemiluneError(f"bits that are no base64 ({error})") from None
    if len(bits) != -(-n // 8):
        raise DemiluneError(f"bits of {8 * len(bits)} images, and there are {n}")
    return np.unpackbits(bits)[:n].astype(bool)


def bits_of(rows: Sequence[Row], images: Arrays | None) -> dict[str, str]:
    """Return the packed bits of an evaluation's rows, with the places of those that had fewer images."""
    found, n = dict[str, str](), rows[0].n
    for row in rows:
        right = None if images is None else images.get(f"right.{row.name}")
        if images is None or right is None or row.role == "probe":
            continue
        found[row.name] = packed(right)
        if row.n != n:
            place = np.zeros(n, dtype=bool)
            place[images[f"place.{row.name}"]] = True
            found[f"place.{row.name}"] = packed(place)
    if found and images is not None and "ids" in images:
        found["ids"] = hashlib.sha256(np.ascontiguousarray(images["ids"], dtype=np.int64).tobytes()).hexdigest()
    return found


def images_of(record: Record) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that :func:`bits_of` packed, named as an evaluation's per-image results are."""
    found: dict[str, npt.NDArray[Any]] = {}
    for row in record.rows:
        if row.name not in record.bits:
            continue
        found[f"right.{row.name}"] = unpacked(record.bits[row.name], row.n)
        if row.n != record.n:
            found[f"place.{row.name}"] = np.flatnonzero(unpacked(record.bits[f"place.{row.name}"], record.n))
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[Path, Record]:
    """Return a ledger's records by their files; refuses a damaged or foreign one, naming it and the remedy."""
    if folder.exists() and not folder.is_dir():
        raise DemiluneError(f"{folder} is a file: a ledger is a folder, as --ledger experiments")
    return {path: read_one(path) for path in sorted(folder.glob("*.json"))}


def read_one(path: Path) -> Record:
    """Return the record that a file holds."""
    try:
        return Record.from_json(read_json(path, "a cell of a ledger"))
    except DemiluneError as error:
        told = str(error).removeprefix(f"{path} ")
        raise DemiluneError(f"{path}: {told}; {REMEDY.replace('FILE', str(path))}") from None


def write(folder: Path, record: Record, stem: str, replaced: bool = False) -> tuple[Path, bool]:
    """Write a record into a ledger; return its file, and whether that is new.

    A record of the same key with the same numbers is left as it stands; one with others is refused unless ``replaced``.
    """
    there = _there(folder, record)
    if there is not None and not replaced:
        fits(folder, [record])
        return there, False
    path = there or folder / f"{stem}-{record.key}.json"
    with replacing(path) as beside:
        beside.write_text(written(record), encoding="utf-8")
    return path, True


def fits(folder: Path, records: Sequence[Record], replaced: bool = False) -> None:
    """Refuse records that hold other numbers for the same cell than a ledger, unless ``replaced``, or each other."""
    seen = dict[str, Record]()
    for record in records:
        first = seen.setdefault(record.key, record)
        if not _same(first, record):
            raise DemiluneError(
                f"two of the runs hold other numbers for the same cell, {record.label} "
                f"({disagreement(first, record)}): nothing was written; look which is right, and name that alone"
            )
        path = _there(folder, record)
        if path is not None and not replaced and not _same(before := read_one(path), record):
            raise DemiluneError(
                f"{path} holds other numbers for the same cell ({disagreement(before, record)}): look which is right; "
                "--replace puts the new ones in its place"
            )


def _there(folder: Path, record: Record) -> Path | None:
    """Return the file of the cell of a record, None where there is none."""
    return next(iter(sorted(folder.glob(f"*-{record.key}.json"))), None)


def _same(before: Record, after: Record) -> bool:
    """Say whether two records of one cell hold the same numbers; how long a step takes is never the same."""
    return (before.rows, _numbers(before)) == (after.rows, _numbers(after)) or after.kind == "pace"


def _numbers(record: Record) -> str:
    """Return what two records of one cell must share: what was found, without the time it took."""
    found = {k: v for k, v in record.found.items() if k not in ("seconds", "timing", "subject", "checks", "findings")}
    return json.dumps({k: v for k, v in found.items() if k != "verdict"}, sort_keys=True)


def disagreement(before: Record, after: Record) -> str:
    """Name the first number in which two records differ."""
    for row in before.rows:
        other = after.row(row.name)
        if other is None or (row.right, row.n) != (other.right, other.n):
            told = "absent" if other is None else f"{other.right} of {other.n}"
            return f"{row.title} {row.right} of {row.n} there, {told} here"
    return "they differ in what they hold"


def written(record: Record) -> str:
    """Return a record's text: a line for each field and row, so that a change shows as one."""
    lines = []
    for name, value in record.to_json().items():
        if name == "rows" or (name == "found" and isinstance(value.get("epochs"), list)):
            lines.append(f" {json.dumps(name)}: {_listed(value)}")
        elif name == "bits":
            inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(name)}: {{{inner and chr(10) + '  ' + inner}}}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ",\n  ".join(f"{json.dumps(k)}: {_listed(v)}" for k, v in value.items())
        return "{\n  " + inner + "}"
    if isinstance(value, list | tuple) and value:
        return "[\n  " + ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def key_of(trained: Mapping[str, Any], data: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return a cell's key: of the training's identity, the data's fingerprints, and what was asked."""
    whole = json.dumps([trained, data["sha256"], asked], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/,;:'\"()]+/)+")


def without_paths(value: Any) -> Any:
    """Return plain values whose texts name files without their folders: a ledger is for others to read."""
    if isinstance(value, str):
        return _PATH.sub("", value)
    if isinstance(value, Mapping):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    return value


def short(value: Any) -> Any:
    """Return plain values with floats of six digits: a ledger is small."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else value
    if isinstance(value, Mapping):
        return {k: short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [short(one) for one in value]
    return value


def matching(records: Mapping[Path, Record], words: Sequence[str]) -> dict[Path, Record]:
    """Return the records whose line in a listing holds all of these words."""
    found = {path: one for path, one in records.items() if all(word.lower() in line(one).lower() for word in words)}
    if records and not found:
        raise unknown("cell", " ".join(words), dict.fromkeys(one.label for one in records.values()))
    return found


def line(record: Record) -> str:
    """Return one line about a record."""
    model = record.experiment.get("model", {})
    net = " ".join(
        [str(model.get("name")), *(f"{k} {v}" for k, v in model.items() if k in ("depth", "factor", "width"))]
    )
    training = record.experiment.get("training", {})
    length = f"{training.get('steps')} steps" if training.get("steps") else f"{training.get('epochs')} epochs"
    numbers = [f"{row.title} {100 * row.accuracy:.1f}" for row in record.rows if row.role == "attack"][:6]
    told = ", ".join(numbers) if record.kind == "evaluation" else record.what
    of = f"n {record.n}" if record.n else ""
    parts = [record.data["name"], net, length, record.label, record.checkpoint.split(" ")[0], record.kind, told, of]
    return "  ".join(str(part) for part in parts if part)


def cells_in(records: Mapping[Path, Record]) -> str:
    """Return how many cells there are, by kind."""
    kinds = [one.kind for one in records.values()]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(kinds)} cells: {told}"


__all__ = ["Record", "bits_of", "images_of", "key_of", "packed", "read", "read_one", "unpacked", "write"]
