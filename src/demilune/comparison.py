"""``demilune compare``: which of several evaluated networks is better, by the images on which they disagree.

Reads evaluations and their per-image results alone, and needs no torch. What it finds of a pair is what the report says
of it too (:mod:`demilune.report.compare`).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from demilune.diagnosis import AUTOATTACK
from demilune.errors import DemiluneError, unknown
from demilune.paired import LEVEL
from demilune.report import theme, verdicts
from demilune.report.compare import Pair, alike, compared, corrected, probability, rank, tested
from demilune.report.curves import Numbers
from demilune.report.files import Setting, setting
from demilune.report.read import Entry, Run, read
from demilune.runs import environment, read_json, replacing

ENDINGS = (".json", ".csv", ".md")
"""What the name of a written comparison may end in."""

FIELDS = (
    "first", "second", "row", "n", "first_accuracy", "second_accuracy", "difference", "standard_error", "first_only",
    "second_only", "p", "p_corrected", "note", "first_verdict", "second_verdict", "first_file", "second_file",
)  # fmt: skip
"""What is written of a pair: accuracies, difference and its error in [0,1]; first_only and second_only are images.
p_corrected is empty where ``note`` says that the two were not attacked alike: that tests nothing."""

HEADING = "**Compared: "


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Pairs of evaluations of one setting in one row, first - second, with p corrected over all of them (Holm).

    ``title`` is what the row is called; ``notes`` say what must stand beside the numbers.
    """

    setting: Setting
    row: str
    title: str
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def caption(self) -> str:
        """What is compared, in a line."""
        return f"{self.title} (row {self.row}), {_told(self.setting, False)}"

    def numbers(self) -> Numbers:
        """Return the table, as it is printed and written as Markdown."""
        lines = []
        for pair in self.pairs:
            found = pair.difference
            names = [
                f"{one.label} {theme.percent(rate)}"
                for one, rate in zip((pair.first, pair.second), pair.accuracies, strict=True)
            ]
            if found is None:
                lines.append((pair.first.label, pair.second.label, *[theme.NONE] * 5))
                continue
            gap = f"{theme.signed(found.value)} ± {theme.percent(found.error)}"
            told = (f"{pair.wins} : {pair.losses}", f"{found.n:,}", probability(pair.p), probability(pair.corrected))
            lines.append((*names, gap, *told))
        heads = ("first, %", "second, %", "difference", "only : only", "n", "p", "p, Holm")
        count = sum(tested(pair) for pair in self.pairs)
        note = (
            "Accuracy on the images that both attacked; difference: first minus second, in points ± McNemar's paired "
            "standard error; only : only, images right in the first only and in the second only; p: McNemar's exact "
            f"test, and the same corrected for {count} pair{'s' * (count != 1)} (Holm). Neither "
            "covers the chance of another training seed."
        )
        return Numbers(heads, tuple(lines), note)

    def readings(self) -> list[str]:
        """Say in words what the numbers mean, and what must stand beside them."""
        clear = [pair.reading for pair in self.pairs if pair.clear]
        rest = sum(tested(pair) and not pair.clear for pair in self.pairs)
        apart = [pair for pair in self.pairs if pair.difference is not None and pair.note]
        fair = " attacked alike" if apart else ""
        said = [f"More than chance at {100 * LEVEL:g} %: {'; '.join(clear)}."] if clear else []
        if rest:
            where = (
                f" in {'the other' if clear else 'any of'} {rest} pairs{fair}"
                if rest > 1
                else f" in the {'other ' if clear else ''}pair{fair}" * bool(clear or fair)
            )
            said.append(f"No difference at {100 * LEVEL:g} %{where}: n is too small to tell, or there is none.")
        if apart:
            named = "; ".join(f"{pair.first.label} and {pair.second.label}" for pair in apart)
            said.append(f"Not attacked alike, so that none is called better: {named}.")
        return [*said, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not known is null."""
        data, split, norm, eps, sums = self.setting
        return {
            "row": self.row,
            "title": self.title,
            "data": data,
            "data_sha256": dict(sums),
            "split": split,
            "norm": norm,
            "eps": eps,
            "level": LEVEL,
            "pairs": [_plain(pair) for pair in self.pairs],
            "notes": list(self.notes),
            "command": environment()["command"],
        }

    def to_csv(self) -> str:
        """Return a line per pair, in full precision; what is not known is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_plain(pair) for pair in self.pairs)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the table, and what it means below."""
        said = "\n".join(f"- {line}" for line in self.readings())
        return f"{HEADING}{self.caption}**\n\n{self.numbers().to_markdown()}\n{said}\n"


def _plain(pair: Pair) -> dict[str, Any]:
    found = pair.difference
    names = {"first": pair.first.label, "second": pair.second.label, "row": pair.row}
    told = {"note": pair.note}
    for place, entry in (("first", pair.first), ("second", pair.second)):
        told |= {f"{place}_verdict": verdicts.short(entry.verdict), f"{place}_file": str(entry.path)}
    if found is None:
        return dict.fromkeys(FIELDS) | names | {"n": 0} | told
    one, other = pair.accuracies
    return {
        **names,
        "n": found.n,
        "first_accuracy": one,
        "second_accuracy": other,
        "difference": found.value,
        "standard_error": found.error,
        "first_only": pair.wins,
        "second_only": pair.losses,
        "p": pair.p,
        "p_corrected": pair.corrected if tested(pair) else None,
        **told,
    }


def compare(paths: Sequence[Path], row: str = "", baseline: Path | None = None) -> Comparison:
    """Compare run folders or evaluation files: every pair, the better first, or each against ``baseline``.

    A run is represented by one evaluation: of its best checkpoint where there is one, on the most images, with the most
    attacks. ``row`` names the attack; without it that is the worst case where all ran the same attacks, AutoAttack (or
    its first half) where all ran that, else the attack that leaves least of those that all ran.
    Raises DemiluneError where there are fewer than two, where they share no data, split and ball, no row, or no image.
    """
    base = None if baseline is None else baseline.resolve()
    given = (
        [*paths] if base is None or base in [path.resolve() for path in paths] else [*paths, *filter(None, [baseline])]
    )
    runs = read(given)
    if len(runs) < 2:
        raise DemiluneError("a comparison needs two runs or more: name them, as demilune compare runs/sat runs/rat")
    known = [_known(run) for run in runs]
    where = _shared_setting(runs, known)
    known = [[entry for entry in entries if setting(entry.evaluation) == where] for entries in known]
    row, chosen = _chosen(runs, known, row)
    if base is None:
        chosen.sort(key=lambda entry: -_accuracy(entry, row))
        both = list(itertools.combinations(chosen, 2))
    else:
        (of,) = [entry for run, entry in zip(runs, chosen, strict=True) if run.path.resolve() == base]
        both = [(entry, of) for entry in chosen if entry is not of]
    pairs = corrected([compared(first, second, row) for first, second in both])
    if not any(pair.difference for pair in pairs):
        raise DemiluneError(f"{_list(runs)} share no image: evaluate them on the same ones (the same --limit)")
    title = next(one.title for one in chosen[0].evaluation.rows if one.name == row)
    return Comparison(where, row, title, tuple(pairs), tuple(_notes(chosen, pairs)))


def _known(run: Run) -> list[Entry]:
    """Return a run's evaluations whose images are known, what best represents it first."""
    found = [entry for entry in run.entries if entry.images is not None and "ids" in entry.images]
    if not run.entries:
        raise DemiluneError(f"{run.path} was not evaluated: demilune evaluate {run.path} does that")
    if not found:
        beside = run.entries[0].path.with_suffix(".images.npz")
        raise DemiluneError(
            f"{run.label} has no per-image results ({beside}): put that file back, or evaluate it again"
        )
    return sorted(found, key=rank)


def _shared_setting(runs: Sequence[Run], known: Sequence[Sequence[Entry]]) -> Setting:
    """Return the setting that all have an evaluation in, that of the first run's fullest where there are several."""
    settings = [[setting(entry.evaluation) for entry in entries] for entries in known]
    for one in settings[0]:
        if all(one in others for others in settings):
            return one
    labels: dict[str, list[str]] = {}
    sums = len({one[:4] for own in settings for one in own}) == 1
    for run, own in zip(runs, settings, strict=True):
        for one in dict.fromkeys(own):
            labels.setdefault(_told(one, sums), []).append(run.label)
    said = "; ".join(f"{', '.join(names)}: {text}" for text, names in labels.items())
    raise DemiluneError(
        f"only results of the same images in the same ball can be compared, and there is none of all ({said}): "
        "evaluate them alike"
    )


def _told(one: Setting, sums: bool) -> str:
    """Return a setting in words, with its sums where nothing else tells it apart."""
    data, split, norm, eps, files = one
    told = ", ".join(f"{name} {value[:12]}" for name, value in files) if sums else ""
    return f"{data} ({split}), {theme.ball(norm, eps)}{f', sha256 {told}' if told else ''}"


def _chosen(runs: Sequence[Run], known: Sequence[Sequence[Entry]], row: str) -> tuple[str, list[Entry]]:
    """Return the row to compare, and the evaluation of each run that it is taken from."""
    if row:
        lacking = [run.label for run, entries in zip(runs, known, strict=True) if not _having(entries, row)]
        if len(lacking) == len(runs):
            raise unknown("row", row, _shared(known))
        if lacking:
            raise DemiluneError(
                f"{', '.join(lacking)} has no row {row!r}: all have {', '.join(_shared(known))}; choose one of "
                "these, or evaluate the others with that too"
            )
        return row, [_having(entries, row)[0] for entries in known]
    for entry in known[0]:
        same = [[one for one in entries if alike(one, entry)] for entries in known]
        if all(same):
            return "worst", [entries[0] for entries in same]
    shared = _shared(known)
    strongest = [name for name in AUTOATTACK if name in shared] or [
        name for name in shared if name not in ("clean", "worst")
    ]
    if not strongest:
        raise DemiluneError(f"{_list(runs)} ran no attack that all ran: evaluate them alike, or --row clean")
    if strongest[0] not in AUTOATTACK:
        strongest.sort(key=lambda name: sum(_accuracy(_having(entries, name)[0], name) for entries in known))
    return strongest[0], [_having(entries, strongest[0])[0] for entries in known]


def _having(entries: Sequence[Entry], row: str) -> list[Entry]:
    """Return the evaluations with per-image results of a row, in order."""
    return [one for one in entries if one.evaluation.row(row) and one.images and f"right.{row}" in one.images]


def _shared(known: Sequence[Sequence[Entry]]) -> list[str]:
    """Return the rows that every run has, in the order of the first run's; no probes, which are of another ball."""
    names = dict.fromkeys(row.name for entry in known[0] for row in entry.evaluation.rows if row.role != "probe")
    return [name for name in names if all(_having(entries, name) for entries in known)]


def _accuracy(entry: Entry, row: str) -> float:
    found = entry.evaluation.row(row)
    return 0.0 if found is None else found.accuracy


def _notes(chosen: Sequence[Entry], pairs: Sequence[Pair]) -> Iterator[str]:
    yield verdicts.told(chosen)
    for pair in pairs:
        if pair.difference is None:
            yield f"{pair.first.label} and {pair.second.label} share no image."
    yield from dict.fromkeys(pair.note for pair in pairs if pair.note)
    if any(not entry.evaluation.data_official for entry in chosen):
        yield "The data are not the official files."


def _list(runs: Sequence[Run]) -> str:
    return ", ".join(run.label for run in runs)


def write(found: Comparison, path: Path) -> None:
    """Write a comparison as JSON, CSV or Markdown, as the name ends; refuses to write over anything but another."""
    made = {".json": _json, ".csv": Comparison.to_csv, ".md": Comparison.to_markdown}
    check(path)
    with replacing(path) as beside:
        beside.write_text(made[path.suffix](found), encoding="utf-8")


def check(path: Path) -> None:
    """Refuse a file that a comparison cannot be written to, before any work."""
    if path.suffix not in ENDINGS:
        raise DemiluneError(f"--out {path}: its name must end in {', '.join(ENDINGS)}, which says what is written")
    if not path.exists():
        return
    if not path.is_file() or not _former(path):
        raise DemiluneError(f"{path} is there, and no comparison: name a new file, so that nothing is lost")


def _former(path: Path) -> bool:
    if path.suffix == ".json":
        try:
            return {"pairs", "row", "level"} <= read_json(path, "a comparison").keys()
        except DemiluneError:
            return False
    with path.open("rb") as file:
        return file.readline().startswith({".csv": ",".join(FIELDS), ".md": HEADING}[path.suffix].encode())


def _json(found: Comparison) -> str:
    return json.dumps(found.to_json(), indent=2) + "\n"


__all__ = ["Comparison", "check", "compare", "write"]
