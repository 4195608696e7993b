"""The model card of a run: what was trained, against what it was attacked, what was left, and whether to believe it.

A pure function of a run folder's files, in Markdown with the metadata that the Hugging Face hub reads. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from demilune.errors import DemiluneError
from demilune.report import tables, theme, verdicts
from demilune.report.files import setting
from demilune.report.read import Entry, Run, read
from demilune.results import Evaluation, Row
from demilune.runs import RunFolder

DATASETS: Mapping[str, str] = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}
"""Data sets that the hub has, as it calls them."""


def of_checkpoint(folder: Path, checkpoint: str) -> list[Entry]:
    """Return a run's evaluations of one checkpoint, "best (step 340)", the fullest first.

    Raises DemiluneError where there is none: a card without results would say nothing of robustness.
    """
    (run,) = read([folder])
    found = [entry for entry in run.entries if entry.evaluation.checkpoint == checkpoint]
    if not found:
        others = ", ".join(dict.fromkeys(entry.evaluation.checkpoint for entry in run.entries))
        told = f"only of {others}" if others else "none"
        raise DemiluneError(
            f"{folder} has no evaluation of its checkpoint {checkpoint} ({told}): a card needs results, run "
            f"demilune doctor {folder} first"
        )
    return sorted(found, key=lambda entry: (-_n(entry), -len(entry.evaluation.rows), entry.path.name))


def card(folder: Path, checkpoint: str, repository: str, licence: str, files: Mapping[str, str]) -> str:
    """Return the model card of a run's checkpoint, "best (step 340)".

    ``repository`` is OWNER/NAME, ``licence`` the hub's word for the weights' licence, ``files`` the sha256 of what lies
    beside the card by name. The same files give the same card. Raises DemiluneError where the folder is no run, or has
    no evaluation of that checkpoint.
    """
    if not RunFolder(folder).experiment.exists():
        raise DemiluneError(f"{folder} is no run folder (no experiment.json): a card is of a run trained here")
    (run,) = read([folder])
    entries = of_checkpoint(folder, checkpoint)
    main = _main(entries)
    parts = [
        f"# {_md(run.label)}",
        _summary(main, entries),
        "## Verdict",
        "\n".join(f"- {_setting(entry.evaluation)}: {verdict(entry)}" for entry in entries),
        "Whether to believe a robust accuracy is decided by eleven checks; *not examined* says that what was run could "
        "not settle it.",
        "## Threat model",
        *_threat(entries),
        "## Results",
        *(part for entry in entries for part in _results(entry)),
        "## Training",
        _training(run, main.evaluation),
        "## Use",
        _use(repository, main.evaluation, files),
        "## Limits",
        _limits(run, main.evaluation),
        "## Provenance",
        _provenance(run, entries, files),
    ]  # fmt: skip
    return f"---\n{_metadata(run, entries, licence)}---\n\n" + "\n\n".join(parts) + "\n"


def _n(entry: Entry) -> int:
    return entry.evaluation.rows[0].n


def _main(entries: Sequence[Entry]) -> Entry:
    """Return the evaluation that the card's first lines are about: of test images, then what settles most."""
    return min(
        entries,
        key=lambda entry: (entry.evaluation.split != "test", entry.verdict.kind == "not examined", -_n(entry)),
    )


def _worst(found: Evaluation) -> Row:
    return found.row("worst") or found.rows[-1]


def _rate(row: Row) -> str:
    return f"{theme.percent(row.accuracy, 2)} ± {theme.percent(row.error, 2)} %"


def _setting(found: Evaluation) -> str:
    return f"{_md(found.data)}, {found.rows[0].n:,} {found.split} images, {theme.ball(found.norm, found.eps)}"


def verdict(entry: Entry) -> str:
    """Return the verdict as a sentence, its kind in bold."""
    rest = verdicts.rest(entry.verdict)
    return f"**{entry.verdict.kind}**{' ' if rest.startswith(' ') else ''}{_md(rest)}"


def _lower(entry: Entry, entries: Sequence[Entry]) -> str:
    """Return the sentence on the evaluation in the same setting that leaves least, where that is less than this one."""
    others = [one.evaluation for one in entries if setting(one.evaluation) == setting(entry.evaluation)]
    least = min(others, key=lambda one: _worst(one).accuracy)
    if _worst(least).accuracy >= _worst(entry.evaluation).accuracy:
        return ""
    return f"Another evaluation below leaves less, {_rate(_worst(least))} of {least.rows[0].n:,} {least.split} images. "


def _summary(entry: Entry, entries: Sequence[Entry]) -> str:
    found = entry.evaluation
    return (
        f"An image classifier trained with {_md(found.method)} by demilune. On {found.rows[0].n:,} {found.split} "
        f"images of {_md(found.data)} it is right on {_rate(found.rows[0])}, and on at "
        f"most {_rate(_worst(found))} under the attacks of this evaluation in the {theme.ball(found.norm, found.eps)}. "
        f"{_lower(entry, entries)}"
        f"Verdict: **{verdicts.short(entry.verdict)}**."
    )


def _threat(entries: Sequence[Entry]) -> list[str]:
    balls = dict.fromkeys(theme.ball(one.evaluation.norm, one.evaluation.eps) for one in entries)
    randomised = any(entry.evaluation.randomised for entry in entries)
    lines = [
        f"- The attacker may change an image within the {' or the '.join(balls)}, and stays in [0,1].",
        "- It knows the network, its weights and the true label (white-box); black-box attacks were run where the "
        "tables name them.",
        "- An image counts as robust only if no attack of the table broke it; the verdict on an image is a float32 "
        "pass on an image that was checked to lie in the ball.",
        "- Not covered: other norms and larger budgets, rotations and other changes that are not small, poisoned "
        "training images, attacks that were not run.",
    ]
    if randomised:
        lines.append("- The network answers at random; attacks follow the mean of several passes.")
    return ["\n".join(lines)]


def _results(entry: Entry) -> list[str]:
    found = entry.evaluation
    rows = [row for row in found.rows if row.role == "attack"]
    head = "| attack | accuracy, % | ± SE | n | passes per image |\n| --- | ---: | ---: | ---: | ---: |"
    lines = [
        f"| {_md(row.title)}{' (upper bound)' if row.name == 'worst' else ''} | {theme.percent(row.accuracy, 2)} | "
        f"{theme.percent(row.error, 2)} | {row.n:,} | {row.forwards:.0f} + {row.gradients:.0f} |"
        for row in rows
    ]
    warned = [f"{check.level}: {_md(check.text)}" for check in found.checks if check.level != "pass"]
    failed = [f"{one.name} {_md(one.title)}: {_md(one.text)}" for one in found.findings if one.outcome == "fail"]
    said = [tables.bound([entry]), *(_md(line) for line in tables.remarks([entry])), *warned]
    said += [f"check failed, {line}" for line in failed]
    return [f"### {_setting(found)}", "\n".join([head, *lines]), "\n".join(f"- {line}" for line in said)]


def _training(run: Run, found: Evaluation) -> str:
    experiment = run.experiment or {}
    lines = [
        f"- method: {_md(found.method)}",
        f"- network: `{_code(found.architecture)}`, {found.parameters:,} weights",
    ]
    ball = experiment.get("ball")
    if isinstance(ball, Mapping) and isinstance(ball.get("eps"), int | float):
        lines.append(f"- trained against the {theme.ball(str(ball.get('norm')), float(ball['eps']))}")
    lines.append(f"- checkpoint: {_md(found.checkpoint)}")
    if run.metrics:
        lines.append(f"- epochs: {run.metrics[-1]['epoch']}")
    lines.append(f"- seed: {experiment.get('seed', 'not recorded')}")
    lines.append("- one run of one seed: another seed's accuracy differs, by more than the errors above may show")
    lines.append("- everything else: `experiment.json`, the whole run as one value")
    return "\n".join(lines)


def _use(repository: str, found: Evaluation, files: Mapping[str, str]) -> str:
    name = next((name for name in files if name.endswith(".safetensors")), "best.safetensors")
    last = " --checkpoint last" if name == "last.safetensors" else ""
    return (
        "```\npip install 'demilune[hub]'\n"
        f"demilune hub pull {repository} --home model\n"
        f"demilune evaluate model{last}\n"
        f"demilune export model{last} model.onnx --to onnx\n```\n\n"
        "The network takes images [N,C,H,W] in [0,1], not normalised: that lies inside. It answers logits of "
        f"{len(found.classes)} classes: {_few(found.classes)}."
    )


def _few(classes: Sequence[str]) -> str:
    shown = ", ".join(_md(name) for name in classes[:20])
    return shown + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")


def _limits(run: Run, found: Evaluation) -> str:
    official = "" if found.data_official else " These are not the official files of the data set."
    data = (run.experiment or {}).get("data")
    extra = data.get("extra") if isinstance(data, Mapping) else None
    more = isinstance(extra, Mapping) and bool(extra.get("file"))
    name = _md(found.data)
    trained = f"Trained on {name} and on additional images, examined" if more else "Trained and examined"
    return (
        f"{trained} on {name} alone; nothing is known of other images.{official} Robust accuracy "
        "is an upper bound: a stronger attack may break more. A classifier that withstands these attacks is not "
        "thereby safe to rely on where errors do harm."
    )


def _provenance(run: Run, entries: Sequence[Entry], files: Mapping[str, str]) -> str:
    environment = run.environment or {}
    given = environment.get("versions")
    versions = [f"{k} {v}" for k, v in given.items()] if isinstance(given, Mapping) else []
    git = environment.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    commands = [environment.get("command"), *(entry.evaluation.command for entry in entries)]
    lines = [f"- {_md(', '.join(versions)) or 'versions not recorded'}"]
    lines += [f"- commit {_md(str(commit))}{', with changes' if git.get('changed') else ''}"] if git and commit else []
    lines += [f"- `{_code(str(command))}`" for command in dict.fromkeys(commands) if command]
    lines += [f"- `{_code(name)}` sha256 {digest}" for name, digest in sorted(files.items())]
    return "\n".join(lines)


def _metadata(run: Run, entries: Sequence[Entry], licence: str) -> str:
    """Return the card's metadata, as the hub's model-index has results: rates in percent."""
    data = entries[0].evaluation.data
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {
                "name": entry.evaluation.data,
                "type": DATASETS.get(entry.evaluation.data, entry.evaluation.data),
                "split": entry.evaluation.split,
            },
            "metrics": [
                {
                    "type": "accuracy",
                    "value": round(100.0 * row.accuracy, 2),
                    "name": _metric(entry.evaluation, row),
                }
                for row in entry.evaluation.rows
                if row.role == "attack"
            ],
        }
        for entry in entries
    ]
    found: dict[str, Any] = {
        "license": licence,
        "library_name": "demilune",
        "pipeline_tag": "image-classification",
        "tags": ["demilune", "adversarial-training", "robustness", "image-classification", "pytorch"],
        **({"datasets": [DATASETS[data]]} if data in DATASETS else {}),
        "model-index": [{"name": run.label, "results": results}],
    }
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)


def _metric(found: Evaluation, row: Row) -> str:
    if row.name == "clean":
        return f"accuracy on {row.n} clean images"
    bound = ", upper bound" if row.name == "worst" else ""
    return f"accuracy under {row.title} on {row.n} images ({theme.ball(found.norm, found.eps)}{bound})"


def _md(text: str) -> str:
    """Return text on one line that Markdown and HTML take as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#$~])", r"\\\1", text)


def _code(text: str) -> str:
    """Return text for a span of code, which a backtick would end."""
    return " ".join(text.split()).replace("`", "'")


__all__ = ["card", "of_checkpoint"]
