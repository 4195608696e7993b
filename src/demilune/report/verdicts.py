"""How verdicts are worded and marked: by word, by sign and by colour, of which any one alone will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from demilune.report.read import Entry
from demilune.results import Verdict

MARKS: Mapping[str, str] = MappingProxyType(
    {
        "believable": "✓", "overestimated": "▲", "masked": "✗", "not examined": "?",
        "pass": "✓", "inconclusive": "~", "fail": "✗",
    }
)  # fmt: skip
"""The sign of each kind of verdict, and of each outcome of a check."""


def short(found: Verdict) -> str:
    """Return the verdict for a table's cell; the strongest attacks leave no "at least"."""
    if found.kind != "overestimated":
        return found.kind
    return f"overestimated by {'≥' if 'at least' in found.text else '≈'} {100 * found.points:.0f} points"


def rest(found: Verdict) -> str:
    """Return the sentence without the kind that it begins with."""
    return found.text.removeprefix(found.kind) if found.text.startswith(found.kind) else f": {found.text}"


def told(entries: Sequence[Entry]) -> str:
    """Return the verdicts of several evaluations in one sentence, those of the same kind together."""
    alike: dict[str, list[str]] = {}
    for entry in entries:
        alike.setdefault(short(entry.verdict), []).append(entry.label)
    return "Verdicts: " + "; ".join(f"{said}: {', '.join(labels)}" for said, labels in alike.items()) + "."


def examined(entry: Entry) -> bool:
    """Say whether attacks were run for more checks than a plain evaluation answers (G1, G6)."""
    return any(one.outcome != "not examined" and one.name not in ("G1", "G6") for one in entry.evaluation.findings)
