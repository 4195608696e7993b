"""An evaluation as RobustBench describes its models (model_info/<dataset>/<threat model>/<Model>.json)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from demilune.report import theme
from demilune.report.read import Entry
from demilune.results import Row


def files(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Return a file for each entry, named by what it is called and by its evaluation's file."""
    found: dict[str, bytes] = {}
    for entry in entries:
        label = entry.label.removesuffix(f" ({entry.path.stem})").removesuffix(f" ({entry.evaluation.checkpoint})")
        stem = "robustbench/" + "_".join(
            re.sub(r"[^A-Za-z0-9.-]+", "-", part).rstrip("-") for part in (label, entry.path.stem)
        )
        while any(name.lower() == f"{stem}.json".lower() for name in found):  # not every disk tells cases apart
            stem += "_"
        found[f"{stem}.json"] = (json.dumps(robustbench(entry), indent=2, ensure_ascii=False) + "\n").encode()
    return found


def robustbench(entry: Entry) -> dict[str, Any]:
    """Return an entry under RobustBench's keys: rates in percent as text; what is not known is left empty, or null.

    ``reported`` is the PGD that the verdict is about. ``external``, a lower accuracy by other attacks, is there only
    where AutoAttack left more standing than ours did, as in RobustBench's own files.
    """
    found, verdict = entry.evaluation, entry.verdict
    pgd = next((row for row in found.rows if row.title == verdict.reported), None)
    whole, worst = found.row("autoattack"), found.row("worst")
    lower = whole is not None and worst is not None and whole.n == worst.n and worst.right < whole.right
    return {
        "link": "",
        "name": "",
        "authors": "",
        # whatever was trained here says so in its method; of other models nothing is known
        "additional_data": None if found.method in ("foreign", "unknown") else "extra images" in found.method,
        "number_forward_passes": None if found.randomised else 1,
        "dataset": found.data,
        "venue": "",
        "architecture": found.architecture,
        "eps": theme.budget(found.eps) if found.norm == "linf" else f"{found.eps:g}",
        "clean_acc": _percent(found.row("clean")),
        "reported": _percent(pgd),
        "autoattack_acc": _percent(whole),
        **({"external": _percent(worst)} if lower else {}),
        "footnote": _footnote(entry, [row for row in (pgd, whole) if row is not None]),
        "unreliable": _unreliable(entry),
    }


def _percent(row: Row | None) -> str:
    return "" if row is None else theme.percent(row.accuracy, 2)


def _footnote(entry: Entry, rows: list[Row]) -> str:
    found = entry.evaluation
    n = found.rows[0].n
    fewer = [f", {row.title} on {row.n:,}" for row in rows if row.n != n]
    where = f"{n:,} {found.split} images{''.join(fewer)}, {theme.ball(found.norm, found.eps)}"
    return f"demilune: {entry.verdict.text}. n: {where}."


def _unreliable(entry: Entry) -> bool | None:
    """Say whether AutoAttack's figure misleads: gradients are masked, or adaptive attacks break clearly more (G10)."""
    failed = {one.name for one in entry.evaluation.findings if one.outcome == "fail"}
    if entry.verdict.kind == "masked" or "G10" in failed:
        return True
    return False if entry.verdict.kind == "believable" else None
