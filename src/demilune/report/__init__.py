"""The report: from run folders and evaluations to one self-contained page, its figures and its tables.

Reads only what the earlier stages wrote, and needs no torch: a report can be redrawn anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from demilune.errors import DemiluneError
from demilune.report import html, leaderboard, tables
from demilune.report.leaderboard import robustbench
from demilune.report.panels import Panel, panels
from demilune.report.read import read
from demilune.runs import disk_refusal, read_json, replacing

OWN = r"curves\.md|seeds\.md|figures/[a-z0-9-]+\.(svg|png)|robustbench/[A-Za-z0-9._-]+\.json"
MARKER = "demilune-report.json"  # says that a folder is a report, and which files are its own


def build(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of run folders and evaluation files into the folder ``out``; return its index.html.

    ``out`` must be new, empty or a former report, which is replaced file by file. Besides the page, which
    holds all it shows, come ``table.md``, ``table.csv``, ``table.tex``, ``curves.md``, ``seeds.md``, ``figures/``
    as PNG and SVG, and ``robustbench/``, a description of each evaluation. The same input gives the same bytes.
    """
    former = _former(out)
    read_runs = read(runs)
    shown = html.sections(read_runs)
    trained, curves, together = html.training(read_runs), panels(read_runs), html.repeated(read_runs)
    entries = [entry for run in read_runs for entry in run.entries]
    groups = [section.entries for section in shown]
    files: dict[str, bytes] = {
        "table.md": tables.to_markdown(groups).encode(),
        "table.csv": tables.to_csv(entries).encode(),
        "table.tex": tables.to_latex(groups).encode(),
    }
    plates = [plate for panel in curves for plate in panel.plates]
    others = [*trained, *(plate for section in shown for plate in section.plates), *([together] if together else [])]
    for drawing in [plate.drawing for plate in [*others, *plates] if plate.drawing is not None]:
        files[f"figures/{drawing.name}.svg"] = drawing.svg.encode()
        files[f"figures/{drawing.name}.png"] = drawing.png
    if any(plate.numbers is not None for plate in plates):
        files["curves.md"] = _numbers(curves).encode()
    files |= leaderboard.files(entries)
    if together is not None and together.numbers is not None:
        files["seeds.md"] = together.numbers.to_markdown().encode()
    files["index.html"] = html.page(read_runs, shown, trained, curves, together).encode()
    _write(out, files, former)
    return out / "index.html"


def _numbers(curves: Sequence[Panel]) -> str:
    """Return the small tables of the curves as Markdown."""
    return "\n".join(
        f"**{panel.title}**\n\n{plate.numbers.to_markdown()}"
        for panel in curves
        for plate in panel.plates
        if plate.numbers is not None
    )


def _former(out: Path) -> list[str]:
    """Return the files of the report that stands in ``out``; refuse a folder that holds something else."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise DemiluneError(f"{out} is a file: a report needs a folder; give another name")
    marker = out / MARKER
    if marker.exists():
        files = read_json(marker, "a report's list of files").get("files")
        return [str(name) for name in files] if isinstance(files, list) else []
    try:
        empty = next(out.iterdir(), None) is None
    except OSError as error:
        raise disk_refusal(out, error) from error
    if not empty:
        raise DemiluneError(f"{out} holds something that is no report: give a new folder, so that nothing is lost")
    return []


def _write(out: Path, files: dict[str, bytes], former: Sequence[str]) -> None:
    # the marker first, with the old names too: an interrupted report is known as one, and cleaned by the next
    _mark(out, [*files, *former])
    for name, content in files.items():
        with replacing(out / name) as beside:
            beside.write_bytes(content)
    for name in former:  # what a former report had and this one has not; never anything but what reports are made of
        if name not in files and re.fullmatch(OWN, name):
            (out / name).unlink(missing_ok=True)
    _mark(out, list(files))


def _mark(out: Path, names: Sequence[str]) -> None:
    with replacing(out / MARKER) as beside:
        beside.write_text(json.dumps({"files": sorted(set(names))}, indent=1) + "\n", encoding="utf-8")


__all__ = ["MARKER", "build", "robustbench"]
