"""From a run folder to the records of a ledger, and from a cell to the records that answer it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, final

from demilune.errors import DemiluneError
from demilune.evaluate.curves import IMAGES as CURVE_IMAGES
from demilune.evaluate.suite import Setting, suite
from demilune.experiment import Experiment, build, completed, name_of, plain, stored
from demilune.ledger import REMEDY, Arrays, Record, bits_of, key_of, read, short, without_paths
from demilune.report import files
from demilune.results import Evaluation, Row
from demilune.runs import RunFolder, read_json
from demilune.suites.base import TEST_IMAGES, Cell, identity, slug, trained_key
from demilune.suites.probe import IMAGES as PROBE_IMAGES
from demilune.surveys import Direction, Landscape, Survey

STEP_RATIO = 0.25
"""The usual step size of the attacks, as a ratio of ε."""


class Made(NamedTuple):
    """A record, and how its file begins."""

    record: Record
    stem: str


def finished(folder: RunFolder) -> bool:
    """Say whether a run came to its end, or was ended by the alarm."""
    if not folder.experiment.exists():
        return False
    lines = folder.read_metrics()
    training = read_json(folder.experiment, "an experiment").get("training", {})
    if not lines:
        return False
    last = lines[-1]
    if training.get("stop_on_alarm") and last.get("alarm"):
        return True
    steps = training.get("steps")
    return bool(last["step"] >= steps if steps else last["epoch"] >= training.get("epochs", 0))


def records_of(path: Path) -> list[Made]:
    """Return a record for everything that a finished run's folder holds.

    Raises DemiluneError for what is no finished run, and for files that are broken or do not belong together.
    """
    folder = RunFolder(path)
    if not folder.experiment.exists():
        raise DemiluneError(f"{path} holds no run (no experiment.json): name a folder that demilune train wrote")
    if not finished(folder):
        raise DemiluneError(
            f"{path} is not finished: go on with `demilune train --resume --out {path}`, then record it"
        )
    experiment = stored(folder.experiment, completed(read_json(folder.experiment, "the experiment of a run")))
    made = [_trained(folder, experiment)]
    for room in ("evaluations", "curves"):
        made += [one for file in folder.evaluations(room) if (one := _measured(folder, experiment, file)) is not None]
    made += [_looked(folder, experiment, file, kind) for kind in LOOKS for file in looked_at(folder, kind)]
    return [one for one in made if one is not None]


LOOKS: tuple[Literal["plane", "probe"], ...] = ("plane", "probe")


def looked_at(folder: RunFolder, kind: str, what: str = "*") -> list[Path]:
    """Return the files of the planes or probes of a network."""
    return sorted(folder.path.glob(f"{kind}-{what}.json"))


def _looked(folder: RunFolder, experiment: Experiment, file: Path, kind: Literal["plane", "probe"]) -> Made:
    """Return the record of a plane or a probe."""
    value, what = read_json(file, f"a {kind}"), file.stem.partition("-")[2]
    about = value.pop("environment", None)
    data = {
        "name": value.pop("data"), "official": value.pop("data_official") is True, "sha256": value.pop("data_sha256"),
    }  # fmt: skip
    checkpoint = value.pop("checkpoint")
    measured = {"environment": hardware(about)}
    return _made(experiment, kind, what, checkpoint, data, _training(folder), measured, commit(about), value)


def pace_record(cell: Cell, found: Mapping[str, Any], about: Mapping[str, Any]) -> Made:
    """Return the record of how long a training step takes; it is of no data, and of this machine."""
    data = {"name": name_of(cell.experiment.data), "official": True, "sha256": {}}
    kept = {**found, "split": f"{about.get('processor')}, {about.get('device')}"}
    return _made(cell.experiment, "pace", "", "", data, {}, {"environment": hardware(about)}, commit(about), kept)


def plain_experiment(experiment: Experiment) -> dict[str, Any]:
    """Return the whole training as plain values, without where its data lie."""
    tree: dict[str, Any] = plain(experiment)
    if "root" in tree["data"]:
        tree["data"]["root"] = ""
    cleaned: dict[str, Any] = without_paths(tree)
    return cleaned


def hardware(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an environment says of hardware and versions, and nothing of where it stands."""
    kept = ("processor", "device", "cores", "python", "versions")
    return {name: about[name] for name in kept if about and about.get(name) is not None}


def commit(about: Mapping[str, Any] | None) -> str:
    """Return the commit of an environment, with a plus where the tree was changed."""
    git = (about or {}).get("git")
    return f"{git['commit']}{'+' if git.get('changed') else ''}" if isinstance(git, dict) and git.get("commit") else ""


def _training(folder: RunFolder) -> dict[str, Any]:
    """Return what there is to say of a run's training, beside its experiment."""
    about = read_json(folder.environment, "a run's environment") if folder.environment.exists() else None
    timing = folder.read_timing()
    lines = folder.read_metrics()
    return {
        "seconds": round(sum(line["seconds"] for line in timing), 1),
        "epochs": lines[-1]["epoch"],
        "steps": lines[-1]["step"],
        "environment": hardware(about),
        "commit": commit(about),
    }


def _trained(folder: RunFolder, experiment: Experiment) -> Made | None:
    """Return the record of the training itself; None where no evaluation says which data it saw."""
    told = next((found for file in _evaluations(folder) if (found := _data(file)) is not None), None)
    told = told or _data_of_checkpoint(folder)
    if told is None:
        return None
    trained, lines = _training(folder), folder.read_metrics()
    steps = [line["seconds"] for line in folder.read_timing()]
    about = read_json(folder.environment, "a run's environment") if folder.environment.exists() else None
    found = {"epochs": short(lines), "seconds_per_epoch": round(median(steps), 2) if steps else None}
    return _made(experiment, "training", "", "", told, trained, {}, commit(about), found)


def _evaluations(folder: RunFolder) -> list[Path]:
    return [*folder.evaluations(), *folder.evaluations("curves")]


def _data(file: Path) -> dict[str, Any] | None:
    value = read_json(file, "an evaluation")
    if not isinstance(value.get("data_sha256"), dict):
        return None
    return {
        "name": value["data"], "official": value.get("data_official") is True, "sha256": dict(value["data_sha256"]),
    }  # fmt: skip


def _data_of_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    from demilune.checkpoint import load_run

    file = folder.checkpoint("last")
    if not file.exists():
        return None
    about = load_run(file).about["data"]
    return {"name": about["name"], "official": about["official"], "sha256": dict(about["sha256"])}


def _measured(folder: RunFolder, experiment: Experiment, file: Path) -> Made | None:
    value, told = read_json(file, "an evaluation"), _data(file)
    if told is None:  # a cross-check
        return None
    if "surveys" in value:
        seen = files.measured(file)
        if seen is None:
            return None
        about = value.get("environment")
        found = {
            "surveys": short(value["surveys"]), "split": value["split"], "seed": value.get("seed", 0),
            "images": max(images_of_survey(one) for one in seen.surveys), "seconds": value.get("seconds"),
        }  # fmt: skip
        measured = {"seconds": round(float(value.get("seconds") or 0.0), 1), "environment": hardware(about)}
        what = what_survey(seen.surveys[0])
        return _made(
            experiment, "survey", what, seen.checkpoint, told, _training(folder), measured, commit(about), found
        )
    evaluation = files.evaluation(file, value)
    images = files.arrays(file.with_name(f"{file.stem}.images.npz"))
    files.agree(file, evaluation, images, None)
    evaluation = files.judged(file, evaluation, images)
    gone = [row.name for row in evaluation.rows if row.role != "probe" and f"right.{row.name}" not in (images or {})]
    if gone and files.kind_of(evaluation, file) == "":
        raise DemiluneError(
            f"{file.with_name(f'{file.stem}.images.npz')} is gone or lacks {gone[0]!r}: which images are right is part "
            "of a cell; evaluate the checkpoint again"
        )
    return recorded(folder, file, experiment, evaluation, images)


def recorded(folder: RunFolder, file: Path, experiment: Experiment, found: Evaluation, images: Arrays | None) -> Made:
    """Return the record of an evaluation, or of a curve that is one."""
    what = files.kind_of(found, file)
    what = f"{what}-{found.split}" if what and found.split != "test" else what
    told = {"name": found.data, "official": found.data_official, "sha256": dict(found.data_sha256)}
    kept = {k: v for k, v in found.to_json().items() if k not in ("rows", "environment", "command")}
    measured = {
        "seconds": round(found.seconds, 1),
        "environment": hardware(found.environment),
        "step_ratio": step_ratio(found),
    }
    return _made(
        experiment, "curve" if what else "evaluation", what, found.checkpoint, told, _training(folder), measured,
        commit(found.environment), kept, found, images,
    )  # fmt: skip


def step_ratio(found: Evaluation) -> float:
    """Return the attacks' step size as a ratio of ε, as an evaluation's rows describe it."""
    ratios = [float(hit[1]) for row in found.rows if (hit := re.search(r"step_ratio=([\d.]+)", row.attack))]
    return ratios[0] if ratios else STEP_RATIO


def _made(
    experiment: Experiment,
    kind: Any,
    what: str,
    checkpoint: str,
    data: Mapping[str, Any],
    trained: Mapping[str, Any],
    measured: Mapping[str, Any],
    revision: str,
    found: Mapping[str, Any],
    evaluation: Evaluation | None = None,
    images: Arrays | None = None,
) -> Made:
    rows = evaluation.rows if evaluation is not None else ()
    record = Record(
        key=key_of(identity(experiment), data, asked_of(kind, what, checkpoint, rows, found, measured)),
        label=experiment.name,
        kind=kind,
        what=what,
        checkpoint=checkpoint,
        experiment=plain_experiment(experiment),
        data=data,
        trained=trained,
        measured=measured,
        commit=revision,
        found=without_paths(found),
        rows=rows,
        bits=bits_of(rows, images) if evaluation is not None and kind == "evaluation" else {},
    )
    of = "-".join(part for part in (what or kind, f"n{record.n}" if record.n else "") if part)
    return Made(record, f"{slug(experiment)}-{of}")


def asked_of(
    kind: str,
    what: str,
    checkpoint: str,
    rows: Sequence[Row],
    found: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was asked of a network, as a cell's key has it; what is at its default is left out.

    So a setting that is new here changes no key of what was measured without it.
    """
    asked = {
        "kind": kind, "what": what, "checkpoint": checkpoint.split(" ")[0],
        "rows": [[row.name, row.n] for row in rows], "split": found.get("split"), "seed": found.get("seed"),
        "ball": [found.get("norm"), found.get("eps")], "images": found.get("images"),
    }  # fmt: skip
    if (ratio := measured.get("step_ratio", STEP_RATIO)) != STEP_RATIO:
        asked["step_ratio"] = ratio
    if (precision := found.get("search_precision", "float32")) != "float32":
        asked["search_precision"] = precision
    sources = sorted(row.attack for row in rows if row.name == "transfer")
    return asked | ({"sources": sources} if sources else {})


def key_held(record: Record) -> str | None:
    """Return the key of what a record holds; None where this version cannot build its training."""
    try:
        experiment = build(Experiment, completed(record.experiment))
    except DemiluneError:
        return None
    asked = asked_of(record.kind, record.what, record.checkpoint, record.rows, record.found, record.measured)
    return key_of(identity(experiment), record.data, asked)


def held(folder: Path) -> dict[Path, Record]:
    """Return a ledger's records by their files; refuses one whose key is not that of what it holds."""
    found = read(folder)
    for path, record in found.items():
        key = key_held(record)
        if key not in (None, record.key):
            raise DemiluneError(
                f"{path}: its key is {record.key}, and what it says of training and attacks has {key}: it was "
                f"changed since it was written; {REMEDY.replace('FILE', str(path))}"
            )
    return found


def what_survey(found: Survey) -> str:
    """Return by which kind of `demilune curves` a survey was measured."""
    if isinstance(found, Direction):
        return "direction"
    kind = "landscape" if isinstance(found, Landscape) else "curvature"
    return f"{kind}-weights" if found.space == "weights" else kind


def images_of_survey(found: Survey) -> int:
    """Return how many images a survey looked at."""
    return found.images if isinstance(found, Direction) else found.n


# --- from a cell to its records --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Shelf:
    """A ledger's records by what was trained; those that this version cannot build are left out."""

    by: Mapping[str, list[Record]]

    @classmethod
    def holding(cls, records: Sequence[Record]) -> Shelf:
        """Return the shelf of these records."""
        by: dict[str, list[Record]] = {}
        for record in records:
            key = key_of_training(record)
            if key is not None:
                by.setdefault(key, []).append(record)
        return cls(by)

    @classmethod
    def of_folder(cls, folder: Path) -> Shelf:
        """Return a ledger's records, none where there is no such folder; refuses a damaged one."""
        return cls.holding(list(held(folder).values()))

    def of(self, cell: Cell) -> list[Record]:
        """Return the records of a cell's network."""
        return list(self.by.get(cell.trained, []))

    def records(self, cell: Cell) -> list[Record]:
        """Return all that is known of a cell's network at the checkpoint it asks, the usual draws and step size."""
        return [one for one in self.of(cell) if usual(one, cell)]

    def answers(self, cell: Cell) -> list[Record]:
        """Return the records that together answer a cell, empty where it is missing."""
        return answers(cell, self.of(cell))


def key_of_training(record: Record) -> str | None:
    """Return the key of a record's training in this version; None where this version cannot build it."""
    try:
        return trained_key(build(Experiment, completed(record.experiment)))
    except DemiluneError:
        return None


def answers(cell: Cell, records: Sequence[Record]) -> list[Record]:
    """Return which of the records of a cell's network answer what it asks; empty where none does.

    An evaluation may hold more attacks, and more images, than were asked: draws are addressed by image, so that
    neither changes a verdict. The gaps need both a test and a training side.
    """
    ask = cell.ask
    if ask.kind in ("training", "pace"):
        return [one for one in records if one.kind == ask.kind][:1]
    here = [one for one in records if usual(one, cell)]
    if ask.kind in ("plane", "probe"):
        wanted = images_asked(cell) if ask.kind == "probe" else 0
        return [one for one in here if (one.kind, one.what) == (ask.kind, ask.names[0]) and one.n >= wanted][:1]
    if ask.kind == "curve":
        kind, wanted = ask.names[0], images_asked(cell)
        sides = ("gaps", "gaps-train") if kind == "gaps" else (kind,)
        picked = [_largest([one for one in here if one.what == side and one.n >= wanted]) for side in sides]
        return [one for one in picked if one is not None] if None not in picked else []
    needed = rows_asked(cell)
    enough = [
        one
        for one in here
        if one.kind == "evaluation"
        and one.found["split"] == "test"
        and all((row := one.row(name)) is not None and row.n >= n for name, n in needed.items())
    ]
    best = _largest(enough)
    return [best] if best is not None else []


def usual(record: Record, cell: Cell) -> bool:
    """Say whether a record is of a cell's checkpoint and ball, with the seed and the step size that all have."""
    if record.kind in ("training", "pace"):
        return True
    ball, found = cell.experiment.ball, record.found
    same = "eps" not in found or (found["norm"] == ball.norm and abs(float(found["eps"]) - ball.eps) < 1e-9)
    drawn = found.get("seed", 0) == 0 and record.measured.get("step_ratio", STEP_RATIO) == STEP_RATIO
    return bool(same and drawn and record.checkpoint.split(" ")[0] == cell.checkpoint)


def _largest(records: Sequence[Record]) -> Record | None:
    """Return the record of most images, the one with official data before others."""
    return max(records, key=lambda one: (one.data["official"], one.n), default=None)


def images_asked(cell: Cell) -> int:
    """Return how many images a cell wants at least."""
    data = cell.experiment.data
    total = getattr(data, "test", None) if type(data).__name__ == "Digits" else None
    total = total or TEST_IMAGES[name_of(data)]
    usual = {"curve": CURVE_IMAGES, "probe": PROBE_IMAGES}.get(cell.ask.kind, {}).get((*cell.ask.names, "")[0], 0)
    # a survey of the right images, or one that leaves some out, may report fewer; what was looked at counts
    return min(cell.ask.limit or usual or total, total)


def rows_asked(cell: Cell) -> dict[str, int]:
    """Return the rows an evaluation must have, and of how many images each."""
    entries = suite(cell.ask.names, Setting(0.25, cell.experiment.ball.norm, classes_of(cell)))
    total = images_asked(cell)
    return {row: min(one.most or total, total) for one in entries for row in one.titles}


def classes_of(cell: Cell) -> int:
    """Return the number of classes of a cell's data."""
    return 100 if name_of(cell.experiment.data) == "cifar100" else 10


__all__ = ["Made", "Shelf", "answers", "finished", "records_of", "rows_asked"]
