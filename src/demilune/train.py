"""The training step, and the loop in the order of events."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from demilune.attacks import frozen, seeded, survivors
from demilune.checkpoint import FORMAT, Checkpoint, fill, load_run, save
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.weights import moved
from demilune.data import Dataset, Split
from demilune.data.augment import crop_flip
from demilune.data.order import order
from demilune.errors import DemiluneError
from demilune.experiment import Experiment, completed, difference, plain
from demilune.methods import Batch, Examples, Method, Note, Standard
from demilune.models import create
from demilune.moves import NOTHING, NoMove, Offset, WeightMove
from demilune.runs import RunFolder, alone, environment, read_json, replacing, write_json
from demilune.runtime import eager, enough_memory, hardware, hazard, peak_memory
from demilune.track import Tracker, sending

LATE = 10_000
"""An epoch by which every method and move has begun."""

CHUNK = 500
"""Images per forward pass where nothing is learned (validation, batch-norm estimation)."""


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    batch: Batch,
    ball: Ball,
    rng: Stream,
    parts: int = 1,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    move: WeightMove = NoMove(),
) -> dict[str, Note]:
    """Take one step of adversarial training; the whole of it.

    The gradient is that of the mean loss over all rows at the weights plus the offset of ``move``, accumulated over
    ``parts`` portions of the batch. Returns
    what the method notes, and ``loss`` and ``excess`` (the loss above its label's entropy), as sums and weights
    on the device.
    """
    if parts > 1 and not isinstance(move, NoMove):
        raise DemiluneError(
            f"parts = {parts} with a weight move: its offset is the whole batch's; use parts 1, or no move"
        )
    if not len(batch.x) or batch.y.dtype != torch.int64 or batch.y.shape != batch.x.shape[:1] or batch.classes < 2:
        raise DemiluneError(
            f"a step was given {len(batch.x)} images, labels {batch.y.dtype} {list(batch.y.shape)} and {batch.classes} "
            "classes: it needs 1 image or more, an int64 label each, and 2 classes or more"
        )
    optimizer.zero_grad(set_to_none=True)
    notes: dict[str, Note] = {}
    portions = zip(batch.x.chunk(parts), batch.y.chunk(parts), batch.ids.chunk(parts), strict=True)
    for number, (x, y, ids) in enumerate(portions):
        here = rng.images(ids)
        with seeded(rng.sub("part", number), x.device), autocast():
            with frozen(model, method.bn):
                made = method.examples(model, batch._replace(x=x, y=y, ids=ids), ball, here)
            offset = offset_of(move, method, model, made, rng)
        with moved(model, offset.by):
            with seeded(rng.sub("outer", number), x.device), autocast():
                losses = method.objective(model, made)
            (losses.mean() * (len(x) / len(batch.x))).backward()
        decay_there(model, optimizer, offset.by)
        losses, rows = losses.detach(), torch.ones_like(losses, requires_grad=False).sum()
        mine = {"loss": Note(losses.sum(), rows), "excess": Note((losses - made.floor).sum(), rows)}
        notes = added(notes, {**mine, **made.notes, **offset.notes})
    optimizer.step()
    return notes


def offset_of(move: WeightMove, method: Method, model: nn.Module, made: Examples, rng: Stream) -> Offset:
    """Return where the outer gradient is taken, relative to the weights."""
    if made.batch.epoch < move.starts():
        return NOTHING
    return move.offset(model, lambda: method.climbed(model, made), rng.sub("move"))


def decay_there(model: nn.Module, optimizer: torch.optim.Optimizer, offset: Mapping[str, Tensor]) -> None:
    """Let weight decay act at w + offset, as the released code of AWP and RWP does.

    Decay that is decoupled from the gradient, as AdamW's, has no gradient to be added to: it stays where it is.
    """
    if not offset:
        return
    coupled = [group for group in optimizer.param_groups if not group.get("decoupled_weight_decay", False)]
    rates = {id(p): group.get("weight_decay", 0.0) for group in coupled for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name in offset and parameter.grad is not None:
            parameter.grad.add_(offset[name], alpha=rates.get(id(parameter), 0.0))


def added(one: Mapping[str, Note], other: Mapping[str, Note]) -> dict[str, Note]:
    """Return the notes of both together."""
    summed = {k: Note(one[k].total + n.total, one[k].weight + n.weight) if k in one else n for k, n in other.items()}
    return {**one, **summed}


class Progress(NamedTuple):
    """What the loop tells whoever watches it.

    ``kind``: start (``data``: the estimate), step, epoch (``data``: the metrics and the timing line), saved, or end.
    ``seconds`` is what the latest step took.
    """

    kind: str
    step: int
    steps: int
    seconds: float
    data: Mapping[str, Any]


class Estimate(NamedTuple):
    """What a run will take: seconds for all that is left of it, and bytes at the peak."""

    seconds: float
    bytes: int


class State(NamedTuple):
    """All that a run changes."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.SGD


def fit(
    experiment: Experiment,
    dataset: Dataset,
    folder: RunFolder,
    resume: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
    stopping: Callable[[], bool] = lambda: False,
    track: Tracker | None = None,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Train, or go on training, in a run folder; return whether the run came to its end.

    ``stopping`` is asked after every step; when it says so, a checkpoint is written and False returned. A run that was
    stopped or killed at any moment and resumed ends with the same bits, metrics file included, as one that was not
    (same machine, versions and number of threads). ``track`` gets a track.Event per epoch and one at the end.
    Raises DemiluneError when the folder holds another experiment, a run and ``resume`` is False, or data differ; when
    another process is training in it; and when memory does not suffice. ``reasons`` say, into the folder, why
    the runtime's fields were chosen as they are.
    """
    check_lengths(experiment, dataset)
    device = experiment.runtime.start()
    told = sending(track, experiment.name, plain(experiment), folder, watch)
    with alone(folder.path), told as watch, enough_memory():
        return _fit(experiment, dataset.to(device), folder, resume, watch, stopping, device, reasons)


def check_lengths(experiment: Experiment, dataset: Dataset) -> None:
    """Refuse a move or method that would never begin, and batches for which there are too few training images."""
    training = experiment.training
    steps, per_epoch = training.lengths(len(dataset.train), dataset.extra_share)
    experiment.check_starts(math.ceil(steps / per_epoch))
    labelled = training.batch - dataset.extras(training.batch)
    if dataset.extra is not None and labelled > len(dataset.train):
        raise DemiluneError(
            f"training.batch = {training.batch}: {labelled} of each batch are training images, and there are "
            f"{len(dataset.train)}; give a smaller batch"
        )


def check_portions(experiment: Experiment, dataset: Dataset, root: Stream) -> None:
    """Refuse portions of one image where batch norm would see one value of a channel, which has no deviation."""
    training = experiment.training
    extra = dataset.extras(training.batch)
    whole = torch.arange(min(training.batch - extra, len(dataset.train)) + extra)
    if min(len(part) for part in whole.chunk(training.parts)) > 1:
        return
    x = dataset.train.pixels(slice(0, 1))
    net = create(experiment.model, len(x[0]), len(dataset.classes), *scaling(experiment, dataset), root.sub("model"))
    try:
        with torch.no_grad():
            net.to(x.device).train()(x)
    except ValueError:
        raise DemiluneError(
            f"training.batch = {training.batch}, training.parts = {training.parts}: a portion of one of the "
            f"{len(dataset.train)} training images is too small for this network's batch norm; give a batch of other "
            "size, or fewer parts"
        ) from None


def _fit(
    experiment: Experiment,
    dataset: Dataset,
    folder: RunFolder,
    resume: bool,
    watch: Callable[[Progress], None],
    stopping: Callable[[], bool],
    device: torch.device,
    reasons: Mapping[str, str],
) -> bool:
    runtime, training, ball = experiment.runtime, experiment.training, experiment.ball
    about = describe(experiment, dataset)
    steps, per_epoch = training.lengths(len(dataset.train), dataset.extra_share)
    labelled = training.batch - dataset.extras(training.batch)
    root = Stream.of(experiment.seed, device=device)
    check_portions(experiment, dataset, root)
    earlier = claim(folder, experiment, about, resume, reasons)

    watched = watched_images(dataset, training.monitor)
    state = start(experiment, dataset, root, device)
    done, best, tally, top = 0, -1.0, dict[str, Note](), 0.0
    if earlier is not None:
        about["experiment"] = earlier.about["experiment"]  # a run keeps its own words, those of an older version too
        restore(state, earlier, folder.checkpoint("last"))
        done, best, top = (earlier.about[k] for k in ("step", "best", "robust"))
        if not 0 <= done <= steps:
            raise DemiluneError(
                f"{folder.checkpoint('last')} is at step {done} of {steps}: put the run's own file back"
            )
        tally = {k: Note(*v.to(device)) for k, v in earlier.part("tally").items()}
        _truncate(folder, earlier.about["metrics"])
        if done == steps or earlier.about["stopped"]:
            watch(Progress("end", done, steps, 0.0, {}))
            return True
        record_resume(folder, device)
    else:
        folder.metrics.touch()

    def keep(name: str, stopped: bool = False) -> None:
        learned = tensors(state)
        check_weights(learned, done, folder)
        notes = {f"tally.{k}": torch.stack(note) for k, note in tally.items()}
        progress = {"step": done, "best": best, "robust": top, "stopped": stopped, "checkpoint": name}
        size = {"metrics": folder.metrics.stat().st_size}
        save(folder.checkpoint(name), Checkpoint({**about, **progress, **size}, {**learned, **notes}))

    if earlier is None:
        keep("last")  # from here on whatever happens can be resumed
    watch(Progress("start", done, steps, 0.0, estimate(experiment, dataset, state, root, steps - done)._asdict()))
    clock = saved = begun = time.monotonic()
    shuffled, batches, seen = -1, torch.empty(0), 0
    while done < steps:
        epoch, number = divmod(done, per_epoch)
        # 1. the batch: addressed by epoch, augmented on the device
        if epoch != shuffled:
            shuffled, batches = epoch, order(root.sub("order"), epoch, len(dataset.train), labelled)
        here = root.sub("train", epoch, number)
        batch = draw(dataset, batches[number], epoch, here, training.batch - labelled)
        # 2. the rate, the step, the average
        for group in state.optimizer.param_groups:
            group["lr"] = experiment.schedule.at(done, steps)
        state.model.train()
        notes = step(
            state.model,
            state.optimizer,
            experiment.method,
            batch._replace(x=runtime.layout(batch.x)),
            ball,
            here.sub("method"),
            training.parts,
            functools.partial(runtime.autocast, device),
            experiment.move,
        )
        follow(state, experiment.average.pull(done, steps, per_epoch))
        tally = added(tally, notes)
        done, seen = done + 1, seen + len(batch.x)
        took, clock = time.monotonic() - clock, time.monotonic()
        watch(Progress("step", done, steps, took, {}))
        # 3. at the end of an epoch: validate, write
        if done % per_epoch == 0 or done == steps:
            check_finite(tally, epoch, folder)
            line = {"epoch": epoch + 1, "step": done, "rate": experiment.schedule.at(done - 1, steps)} | averages(tally)
            line |= {"clean": None, "robust": None, "validation_n": 0, "alarm": None}
            better = done == steps and best < 0
            due = (epoch + 1) % training.validate_every == 0 or done == steps
            if due and state.average is not None and experiment.average.reestimates():
                reestimate(state.average, dataset, root.sub("reestimate", epoch), training.batch)
            if due and len(dataset.validation):
                line |= validate(experiment, chosen(state), dataset.validation, root.sub("validation"))
                line["alarm"] = overfitting(experiment, chance(dataset.validation), top, line["robust"])
                top, merit = max(top, line["robust"]), line[measure(experiment.method)]
                better, best = merit > best, max(best, merit)
            if watched:
                line |= monitor(experiment, chosen(state) if due else None, watched, root.sub("monitor"))
            line["best"] = better
            _append(folder.metrics, line)
            tally = {}
            over = line["alarm"] is not None and training.stop_on_alarm
            if better:
                keep("best")
            keep("last", stopped=over)
            clock = saved = time.monotonic()
            seconds, begun = clock - begun, clock
            timing = {"epoch": epoch + 1, "seconds": seconds, "images_per_second": seen / seconds}
            _append(folder.timing, timing)
            seen = 0
            watch(Progress("epoch", done, steps, took, line | timing))
            if over:
                break
        # 4. between: a checkpoint now and then, and a way out
        elif time.monotonic() - saved > training.checkpoint_every:
            check_finite(tally, epoch, folder)
            keep("last")
            saved = clock = time.monotonic()
            watch(Progress("saved", done, steps, took, {}))
        if done < steps and stopping():
            check_finite(tally, epoch, folder)
            keep("last")
            return False
    watch(Progress("end", done, steps, 0.0, {}))
    return True


def describe(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    """Return what every checkpoint says of itself: enough to build the model without the run folder."""
    mean, std = scaling(experiment, dataset)
    return {
        "format": FORMAT,
        "experiment": plain(experiment),
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "shape": list(dataset.shape),
            "mean": list(mean),
            "std": list(std),
            "sha256": dict(dataset.sha256),
            "official": dataset.official,
        }
        | ({"extra_sha256": dataset.extra_sha256} if dataset.extra is not None else {}),
    }


def claim(
    folder: RunFolder,
    experiment: Experiment,
    about: Mapping[str, Any],
    resume: bool,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> Checkpoint | None:
    """Take a folder for a run: return the checkpoint to go on from, or None for a fresh start.

    Refuses a folder that holds something else, another experiment or other data; nothing in it is touched then.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        raise DemiluneError(f"{path} is a file: name a folder for the run")
    present = folder.experiment.exists()
    ours = ".experiment.json."  # the first file of a run, half-written when a kill came
    if path.is_dir() and not present and any(not file.name.startswith(ours) for file in path.iterdir()):
        raise DemiluneError(f"{path} is not empty and holds no run: name a new folder, nothing was written")
    if present and not resume:
        raise DemiluneError(f"{path} already holds a run: add --resume to go on with it, or name another folder")
    if present:
        old = read_json(folder.experiment, "an experiment")
        changed = difference(completed(old), about["experiment"])
        if changed:
            raise DemiluneError(
                f"{path} holds another experiment: {changed}; resume it as it was (leave out the preset and its "
                "settings), or name another folder"
            )
        for name in (".*.safetensors.*", ".*.json.*", ".*.jsonl.*", ".tmp*"):  # left half-written by a kill
            for stale in path.glob(name):
                stale.unlink()
        if folder.checkpoint("last").exists():
            earlier = load_run(folder.checkpoint("last"))
            other = difference(earlier.about["data"], about["data"], "data")
            changed = difference(completed(earlier.about["experiment"]), about["experiment"])
            if changed or other:
                raise DemiluneError(
                    f"{folder.checkpoint('last')} is of another run: {changed or other}; put its own data and files "
                    "back, or name another folder"
                )
            return earlier
    write_json(folder.experiment, about["experiment"])  # first: it is what makes the folder a run's
    here = environment() | {"device": hardware(experiment.runtime.start())}
    write_json(folder.environment, here | ({"runtime": dict(reasons)} if reasons else {}))
    return None


def record_resume(folder: RunFolder, device: torch.device) -> None:
    """Add to environment.json where and with what the run goes on: other versions or threads may change its bits."""
    first = read_json(folder.environment, "an environment") if folder.environment.exists() else {}
    here = environment() | {"device": hardware(device)}
    write_json(folder.environment, {**first, "resumed": [*first.get("resumed", []), here]})


def start(experiment: Experiment, dataset: Dataset, root: Stream, device: torch.device) -> State:
    """Return fresh weights, their copy where one follows them, and SGD."""
    channels = dataset.shape[0]
    net = create(experiment.model, channels, len(dataset.classes), *scaling(experiment, dataset), root.sub("model"))
    danger = hazard(net, device) if experiment.runtime.channels_last else None
    if danger:
        raise DemiluneError(f"runtime.channels_last: {danger}; train with --runtime.channels_last false")
    model = experiment.runtime.compiled(experiment.runtime.place(net, device))
    training = experiment.training
    kernels = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": kernels, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": training.weight_decay if training.decay == "all" else 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=training.momentum, nesterov=training.nesterov)
    followed = experiment.average.pull(0, 1, 1) is not None
    return State(model, copy.deepcopy(model) if followed else None, optimizer)


def scaling(experiment: Experiment, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of the network's first layer, per channel of pixels in [0,1]."""
    channels = dataset.shape[0]
    return (dataset.mean, dataset.std) if experiment.training.normalize else ((0.0,) * channels, (1.0,) * channels)


def tensors(state: State) -> dict[str, Tensor]:
    """Return all that a run has learned, under the names a checkpoint gives it."""
    found = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    if state.average is not None:
        found |= {f"average.{name}": t for name, t in state.average.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        buffer = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[f"momentum.{name}"] = buffer
    return found


def restore(state: State, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's tensors back."""
    fill(state.model, checkpoint.part("model"), path, "this experiment's model")
    if state.average is not None:
        fill(state.average, checkpoint.part("average"), path, "this experiment's model")
    momentum = checkpoint.part("momentum")
    if any(tally.shape != (2,) for tally in checkpoint.part("tally").values()):
        raise DemiluneError(f"{path} has a damaged tally: put the run's own file back, or train again")
    for name, parameter in state.model.named_parameters():
        if name in momentum:
            if momentum[name].shape != parameter.shape:
                raise DemiluneError(
                    f"{path} has a damaged momentum.{name}: put the run's own file back, or train again"
                )
            # The buffer takes the layout of the weights, as SGD itself gives it.
            state.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum[name])


def draw(dataset: Dataset, index: Tensor, epoch: int, rng: Stream, extra: int = 0) -> Batch:
    """Return an augmented batch of the training images at ``index`` and of so many ``extra`` ones.

    Those are drawn with replacement and mixed in (released RST code). Their ids are places in the batch: the address
    has the step already, and an image drawn twice is perturbed twice.
    """
    split = dataset.train.take(index)
    if extra and dataset.extra is not None:
        more = dataset.extra.take(rng.integers("extra", (extra,), 0, len(dataset.extra)))
        ids = dataset.extra.ids[:1] + torch.arange(extra, device=index.device)
        mixed = rng.permutation("mixed", len(index) + extra)
        pairs = ((split.images, more.images), (split.labels, more.labels), (split.ids, ids))
        split = Split(*(torch.cat(pair)[mixed] for pair in pairs))
    images = crop_flip(split.images, rng.sub("augment").images(split.ids), dataset.pad, dataset.flip, dataset.shape[1:])
    pixels = Split(images, split.labels, split.ids).pixels(slice(None))
    return Batch(pixels, split.labels, len(dataset.classes), split.ids, epoch)


def chosen(state: State) -> nn.Module:
    """Return the weights that count: the average where there is one."""
    return state.model if state.average is None else state.average


def follow(state: State, pull: float | None) -> None:
    """Move the average towards the weights."""
    if state.average is None or not pull:
        return
    with torch.no_grad():
        ours, theirs = state.average.state_dict(), state.model.state_dict()
        for name, tensor in ours.items():
            if pull == 1.0 or not tensor.is_floating_point():
                tensor.copy_(theirs[name])
            else:
                tensor.lerp_(theirs[name], pull)


def reestimate(model: nn.Module, dataset: Dataset, rng: Stream, batch: int) -> None:
    """Estimate a model's batch-norm statistics anew: the plain mean over one epoch of augmented clean images."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the cumulative mean
    model.train()
    with torch.no_grad(), eager():
        extra = dataset.extras(batch)
        for number, index in enumerate(order(rng, 0, len(dataset.train), batch - extra)):
            with seeded(rng.sub(number), index.device):
                model(draw(dataset, index, 0, rng.sub(number), extra).x)
    model.eval()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def validate(experiment: Experiment, model: nn.Module, split: Split, rng: Stream) -> dict[str, Any]:
    """Return clean and robust accuracy on held-out training images, under the same draws at every epoch."""
    runtime = experiment.runtime
    was = model.training
    model.eval()
    clean = robust = 0
    with frozen(model, "eval"), eager():
        for rows in torch.arange(len(split), device=split.ids.device).split(CHUNK):
            x, y = runtime.layout(split.pixels(rows)), split.labels[rows]
            search = runtime.search(model, x.device)
            attack, here = experiment.training.validation, rng.images(split.ids[rows])
            verdict = survivors(model, x, y, attack, experiment.ball, here, search)
            clean, robust = clean + int(verdict.clean.sum()), robust + int(verdict.robust.sum())
    model.train(was)
    return {"clean": clean / len(split), "robust": robust / len(split), "validation_n": len(split)}


def watched_images(dataset: Dataset, count: int) -> dict[str, Split]:
    """Return up to ``count`` training and as many test images, the same for every run; nothing for 0.

    They are those that an evaluation with this limit takes, so that it can be laid beside the last epoch.
    """
    count = min(count, len(dataset.train), len(dataset.test))
    if count == 0:
        return {}
    return {"train": dataset.sample("train", count), "test": dataset.sample("test", count)}


def monitor(
    experiment: Experiment, model: nn.Module | None, watched: Mapping[str, Split], rng: Stream
) -> dict[str, Any]:
    """Return clean and robust accuracy on the watched images; None for each where there is no model to judge."""
    found: dict[str, Any] = {}
    for name, split in watched.items():
        judged = {} if model is None else validate(experiment, model, split, rng.sub(name))
        found |= {f"{name}_{kind}": judged.get(kind) for kind in ("clean", "robust")}
    return found | {"monitor_n": 0 if model is None else len(watched["test"])}


def measure(method: Method) -> str:
    """Return what the best checkpoint is chosen by: robust accuracy, or clean where robustness is not trained for."""
    return "clean" if isinstance(method, Standard) else "robust"


def chance(split: Split) -> float:
    """Return the accuracy of a network that calls everything the commonest class."""
    return float(split.labels.bincount().max()) / len(split)


def overfitting(experiment: Experiment, base: float, best: float, now: float) -> str | None:
    """Return the alarm of catastrophic overfitting: robust accuracy far below the best so far, or less than half of it.

    Only what lies above ``base``, :func:`chance`, counts: a network that has learned nothing yet calls everything one
    class, and no attack changes that.

    A one-step attack can be fooled within a few hundred steps, after which the network has no robustness at all
    (Wong, Rice, Kolter 2020). Standard training, which has none to lose, raises no alarm.
    """
    won, kept = best - base, max(now - base, 0.0)
    fallen = won - kept > experiment.training.alarm or (won >= 0.1 and kept < won / 2)
    fallen = fallen or (won > 0.05 and now < base / 4)  # below what no learning at all gives
    if measure(experiment.method) == "clean" or not fallen:
        return None
    return (
        f"robust validation accuracy fell from {best:.1%} to {now:.1%}: catastrophic overfitting; use the best "
        "checkpoint, or train again with more attack steps or a smaller step size"
    )


def check_finite(tally: Mapping[str, Note], epoch: int, folder: RunFolder) -> None:
    """Refuse to go on, and to save, once the loss is no number."""
    loss = float(tally["loss"].total) if "loss" in tally else 0.0
    if not math.isfinite(loss):
        raise diverged(f"the loss is {loss} in epoch {epoch + 1}", folder)


def diverged(told: str, folder: RunFolder) -> DemiluneError:
    """Return the refusal to go on with what is no number."""
    return DemiluneError(
        f"{told}: training has diverged; lower schedule.rate. The last good checkpoint is {folder.checkpoint('last')}"
    )


def check_weights(learned: Mapping[str, Tensor], done: int, folder: RunFolder) -> None:
    """Refuse to save weights, or batch-norm statistics, that are no numbers: a loss is of the step before."""
    broken = [name for name, t in learned.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise diverged(f"{broken[0]} is no number after step {done}", folder)


def averages(tally: Mapping[str, Note]) -> dict[str, Any]:
    """Return an epoch's means: loss, excess and the method's own notes (None where nothing was counted)."""
    means = {k: float(n.total) / float(n.weight) if float(n.weight) else None for k, n in sorted(tally.items())}
    return {"loss": means.pop("loss"), "excess": means.pop("excess"), "notes": means}


def estimate(experiment: Experiment, dataset: Dataset, state: State, root: Stream, left: int) -> Estimate:
    """Take a few steps and a portion of a validation on a copy, and foresee the rest; the run is not touched.

    Where the method or the weight move begins later, steps of before and of after are timed.
    """
    device = next(state.model.parameters()).device
    training, method = experiment.training, experiment.method
    model = copy.deepcopy(state.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=training.momentum)
    extra = dataset.extras(training.batch)
    index = torch.arange(min(training.batch - extra, len(dataset.train)), device=dataset.train.ids.device)
    batch = draw(dataset, index, 0, root.sub("estimate"), extra)
    batch = batch._replace(x=experiment.runtime.layout(batch.x))
    autocast = functools.partial(experiment.runtime.autocast, device)
    move = experiment.move
    steps, per_epoch = training.lengths(len(dataset.train), dataset.extra_share)

    def timed(epoch: int) -> float:
        seconds = 0.0
        for _ in range(2):  # the first also pays for warming up
            begun = time.perf_counter()
            here = batch._replace(epoch=epoch)
            step(model, optimizer, method, here, experiment.ball, root.sub("estimate"), training.parts, autocast, move)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - begun
            if seconds > 20.0:
                break
        return seconds

    before = max(0, min(left, max(method.starts(), move.starts()) * per_epoch - (steps - left)))
    total = (timed(0) * before if before else 0.0) + timed(LATE) * (left - before)
    judged = [dataset.validation, *watched_images(dataset, training.monitor).values()]
    sample = max(judged, key=len)
    sample = sample.take(torch.arange(min(training.batch, len(sample)), device=index.device))
    if len(sample):
        begun = time.perf_counter()
        validate(experiment, model, sample, root)
        validations = max(1, left // (per_epoch * training.validate_every))
        total += (time.perf_counter() - begun) * sum(map(len, judged)) / len(sample) * validations
    return Estimate(total, peak_memory(device))


def _append(path: Path, line: Mapping[str, Any]) -> None:
    written = path.read_bytes() if path.exists() else b""
    with replacing(path) as beside:
        beside.write_bytes(written + json.dumps(line).encode() + b"\n")


def _truncate(folder: RunFolder, size: int) -> None:
    """Forget metrics written after the checkpoint that is resumed: the same lines will be written again."""
    written = folder.metrics.read_bytes() if folder.metrics.exists() else b""
    if len(written) < size:
        raise DemiluneError(
            f"{folder.metrics} is shorter than its checkpoint says ({len(written)} of {size} bytes): put the file "
            "back, or train in another folder"
        )
    if size and written[size - 1 : size] != b"\n":
        raise DemiluneError(f"{folder.metrics} was edited: put the file back, or train in another folder")
    if len(written) > size:
        with replacing(folder.metrics) as beside:
            beside.write_bytes(written[:size])
