"""Methods, moves, averages and extra data together: trained, resumed, and refused where it makes no sense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import refused
from contract.tables import METHOD_TABLE, MOVE_TABLE
from demilune.__main__ import main
from demilune.attacks import PGD
from demilune.checkpoint import load_run, save
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Dataset, Digits, Extra
from demilune.data.extra import FIRST_ID
from demilune.errors import DemiluneError
from demilune.evaluate.subject import rebuild
from demilune.experiment import Experiment, Training, build, plain
from demilune.methods import (
    ADT,
    GAIRAT,
    LRATRAT,
    LRATTRADES,
    SAT,
    TRADES,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from demilune.models import Small
from demilune.moves import AWP, RWP, Gaussian, WeightMove
from demilune.runs import RunFolder, read_json
from demilune.runtime import Runtime
from demilune.schedules import EMA, NoAverage
from demilune.train import draw, fit

RUN = Experiment(
    name="tiny",
    data=Digits(validation=20),
    model=Small(4),
    method=SAT(),
    ball=Ball("linf", 0.15),
    average=EMA(0.9),
    training=Training(steps=3, batch=32, validation=PGD(steps=1, step_ratio=1.0), validate_every=9),
    runtime=Runtime(threads=1),
)
TINY = ["--training.steps", "4", "--training.batch", "32", "--model.width", "4", "--runtime.threads", "1"]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return RUN.data.load()


@pytest.mark.parametrize("method", METHOD_TABLE.values(), ids=METHOD_TABLE)
@pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
def test_every_method_with_every_move_resumes_to_the_same_bits(
    method: Method, move: WeightMove, digits: Dataset, tmp_path: Path
) -> None:
    run, whole, torn = replace(RUN, method=method, move=move), RunFolder(tmp_path / "w"), RunFolder(tmp_path / "t")
    assert build(Experiment, plain(run)) == run
    assert fit(run, digits, whole)
    steps = iter([False, True])
    assert not fit(run, digits, torn, stopping=lambda: next(steps))
    assert fit(run, digits, torn, resume=True)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (torn.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "trades", "--move", "rwp", "--method.beta", "6"], ("trades", "rwp", "none")),
        (["--method", "rat", "--move", "rwp", "--average", "ema"], ("rat", "rwp", "ema")),
        (["--method", "lrat_rat", "--method.rat.samples", "3", "--move", "awp"], ("lrat_rat", "awp", "none")),
        (["--method", "taylor_code", "--method.noise", "0", "--move", "awp"], ("taylor_code", "awp", "none")),
        (["--method", "lrat", "--method.attacks", "both", "--ball.norm", "l2"], ("lrat", "none", "none")),
    ],
)  # fmt: skip
def test_compositions_train_from_the_command_line(
    options: list[str], expected: tuple[str, str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["train", "digits-sat", *options, *TINY, "--out", str(out)]) == 0
    run = yaml.safe_load((out / "experiment.json").read_text())
    assert (run["method"]["name"], run["move"]["name"], run["average"]["name"]) == expected
    assert main(["evaluate", str(out), "--attacks", "fgsm,cw2", "--limit", "20"]) == 0
    (found,) = [read_json(file, "an evaluation") for file in (out / "evaluations").glob("*.json")]
    told = {"lrat": "lrat (reconstructed)", "lrat_rat": "lrat_rat (ours)"}.get(expected[0], expected[0])
    assert found["method"] == " + ".join([told, *(name for name in expected[1:] if name != "none")])
    assert found["subject"] == "-".join(["digits", *(name for name in expected if name != "none")])
    report = tmp_path / "report"
    assert main(["report", str(out), "--out", str(report)]) == 0
    for file in ("table.md", "table.tex", "index.html"):
        assert ("not as published" in (report / file).read_text()) == ("(" in told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "sat", "--method.beta", "6"], ["unrecognized arguments: --method.beta"]),
        (["--method", "trades", "--method.betta", "6"], ["did you mean --method.beta?"]),
        (["--method", "adt", "--ball.norm", "l2"], ["adt with ball.norm l2", "use ball.norm linf"]),
        (["--move", "rwp", "--training.parts", "2"], ["training.parts = 2 with the move rwp", "use one part"]),
        (["--method", "taylor_code", "--training.parts", "2"], ["taylor_code", "use training.parts 1"]),
        (["--move", "awp", "--move.warmup", "40"], ["move.warmup of awp = 40", "never begin"]),
        (["--method", "gairat", "--method.begin", "41"], ["method.begin of gairat = 41", "never begin"]),
        (["--move", "awp", "--move.gamma", "1"], ["gamma = 1", "from 0 to below 1"]),
        (["--move", "awp", "--move.gamma", "-0.1"], ["gamma = -0.1", "from 0 to below 1"]),
        (["--move", "rwp", "--move.c_min", "nan"], ["c_min = nan"]),
        (["--move", "rwp", "--move.low", "2"], ["low = 2, c_min = 1.7", "low must be smaller"]),
        (["--move", "rwp", "--move.steps", "0"], ["steps = 0"]),
        (["--move", "gaussian", "--move.sigma", "2"], ["sigma = 2", "from 0 to 1"]),
        (["--method", "taylor_code", "--method.alpha", "1.5"], ["alpha = 1.5", "from 0 to 1"]),
        (["--method", "taylor_code", "--method.wrong_mass", "2"], ["wrong_mass = 2"]),
        (["--method", "lrat", "--method.local.mass", "-1"], ["local.mass = -1"]),
        (["--method", "lrat", "--method.local.measured", "eval", "--method.bn", "train"], ["local.measured = eval"]),
        (["--method", "lrat_rat", "--method.rat.bn", "train"], ["rat.bn = train", "set bn of the method"]),
        (["--method", "gairat", "--training.parts", "4"], ["gairat", "use training.parts 1"]),
        (["--method", "lrat", "--method.across", "-1", "--training.parts", "4"], ["lrat", "whole batch's"]),
        (["--move", "rwp", "--move.c_min", "0"], ["move.c_min = 0", "never move"]),
        (["--data.extra.share", "0.3"], ["data.extra.share = 0.3", "--data.extra.file"]),
        (["--method", "irat"], ["unknown method 'irat': it is gairat here"]),
        (["--method", "rst"], ["unknown method 'rst'", "--data.extra.file"]),
        (["--method", "rwp"], ["--move rwp"]),
        (["--method", "gairat", "--method.share", "2"], ["share = 2"]),
        (["--method", "gairat", "--method.shift", "nan"], ["shift = nan", "from -1000 to 1000"]),
        (["--method", "lrat", "--method.local.shift", "inf"], ["local.shift = inf"]),
        (["--method", "lrat", "--method.across", "nan"], ["across = nan"]),
        (["--method", "lrat", "--method.local.mass", "1e300"], ["local.mass = 1e+300", "at most 1e6"]),
        (["--method", "taylor_code", "--method.noise", "1e300"], ["noise = 1e+300", "from 0 to 1"]),
        (["--training.steps", "2", "--method", "lrat", "--method.begin", "99"], ["method.begin of lrat = 99"]),
        (["--training.steps", "2", "--move", "gaussian", "--move.warmup", "9"], ["move.warmup of gaussian = 9"]),
        (["--data.extra.file", "nowhere.npz"], ["nowhere.npz", "RST", "--data.extra.file"]),
        (["--data.extra.share", "1"], ["extra.share = 1"]),
        (["--data.extra.file", "x.npz", "--data.extra.share", "0.001"], ["data.extra.share = 0.001", "no image"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["train", "digits-sat", *options, "--out", str(tmp_path / "x")], capsys, *words)
    assert not (tmp_path / "x").exists()


def test_rst_without_its_images_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    argv = ["train", "digits-trades", "--data.extra.file", "ti_500K_pseudo_labeled.npz", "--out", str(tmp_path / "x")]
    refused(argv, capsys, "ti_500K_pseudo_labeled.npz is missing", "pseudo-labels")


def pseudo(tmp_path: Path, count: int = 40) -> Path:
    """Return a file of extra images that are told apart by their brightness."""
    images = np.full((count, 8, 8, 1), 255, np.uint8)
    np.savez(tmp_path / "extra.npz", image=images, label=np.arange(count) % 10)
    return tmp_path / "extra.npz"


def test_half_of_each_batch_is_pseudo_labelled_and_an_epoch_is_as_released(tmp_path: Path) -> None:
    source = replace(RUN.data, pad=0, extra=Extra(str(pseudo(tmp_path))))
    mixed = source.mixed()
    training = Training(epochs=1, batch=64)
    steps, per_epoch = training.lengths(len(mixed.train), mixed.extra_share)
    assert steps == per_epoch == -(-len(mixed.train) // 64)
    assert Training(epochs=200, batch=256).lengths(50_000, 0.5) == (200 * 196, 196)  # the released epoch
    assert Training(epochs=2, batch=256).lengths(50_000) == (390, 195)
    batch = draw(mixed, torch.arange(32), 0, Stream.of(0, "step"), 32)
    extra = batch.ids >= FIRST_ID
    assert int(extra.sum()) == 32
    assert torch.equal(extra, (batch.x == 1.0).flatten(1).all(dim=1))
    assert len(batch.ids.unique()) == 64
    assert not torch.equal(extra, extra.sort().values)  # mixed, so that parts of a batch hold both
    other = draw(mixed, torch.arange(32), 0, Stream.of(0, "another"), 32)
    assert not torch.equal(other.y[other.ids >= FIRST_ID], batch.y[extra])


def test_rst_trains_resumes_and_is_evaluated_without_its_images(tmp_path: Path) -> None:
    run = replace(RUN, data=replace(RUN.data, extra=Extra(str(pseudo(tmp_path)), 0.25)), method=TRADES())
    whole, torn = RunFolder(tmp_path / "w"), RunFolder(tmp_path / "t")
    assert fit(run, run.data.mixed(), whole)
    steps = iter([False, True])
    assert not fit(run, run.data.mixed(), torn, stopping=lambda: next(steps))
    assert fit(run, run.data.mixed(), torn, resume=True)
    assert (torn.path / "last.safetensors").read_bytes() == (whole.path / "last.safetensors").read_bytes()
    plain_run = replace(run, data=RUN.data)
    assert fit(plain_run, plain_run.data.mixed(), RunFolder(tmp_path / "p"))
    assert (tmp_path / "p" / "metrics.jsonl").read_bytes() != (tmp_path / "w" / "metrics.jsonl").read_bytes()
    (tmp_path / "extra.npz").unlink()
    assert main(["evaluate", str(whole.path), "--attacks", "fgsm", "--limit", "20"]) == 0


def test_other_extra_images_are_other_data(tmp_path: Path) -> None:
    run = replace(RUN, data=replace(RUN.data, extra=Extra(str(pseudo(tmp_path)))), method=TRADES())
    folder, steps = RunFolder(tmp_path / "t"), iter([False, True])
    assert not fit(run, run.data.mixed(), folder, stopping=lambda: next(steps))
    pseudo(tmp_path, 41)
    with pytest.raises(DemiluneError, match="extra_sha256"):
        fit(run, run.data.mixed(), folder, resume=True)


SENSELESS = {
    "adt in l2": lambda: replace(RUN, method=ADT(), ball=Ball("l2", 1.0)),
    "taylor in parts": lambda: replace(RUN, method=TaylorCode(), training=replace(RUN.training, parts=2)),
    "a shift that is a word": lambda: GAIRAT(shift="x"),
    "an attack that is none": lambda: LRATTRADES(attack="x"),
    "no group": lambda: LRATRAT(local=None),
    "a size that is a word": lambda: Gaussian(sigma="x"),
    "a number no float holds": lambda: Gaussian(sigma=10**400),
    "a weight that is a word": lambda: TaylorExact(first="x"),
    "a move in parts": lambda: replace(RUN, move=AWP(), training=replace(RUN.training, parts=2)),
}


@pytest.mark.parametrize("make", SENSELESS.values(), ids=SENSELESS)
def test_the_library_refuses_the_same(make: object) -> None:
    assert callable(make)
    with pytest.raises(DemiluneError):
        make()


def test_a_trained_network_labels_images_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images, out = tmp_path / "run", tmp_path / "pool.npz", tmp_path / "labelled.npz"
    standard = replace(RUN, method=Standard(), training=replace(RUN.training, steps=150), average=NoAverage())
    dataset = RUN.data.load()
    assert fit(standard, dataset, RunFolder(run))
    np.savez(images, data=dataset.test.images.permute(0, 2, 3, 1).numpy())
    assert main(["label", str(run), "--images", str(images), "--out", str(out), "--batch", "64"]) == 0
    printed = capsys.readouterr().out
    assert "500 images labelled" in printed
    with np.load(out) as held:
        labels, confidence = held["label"], held["confidence"]
    model, batch = load_run(run / "best.safetensors"), dataset.test.pixels(slice(None))
    net = rebuild(run / "best.safetensors", model, standard).eval()
    with torch.no_grad():
        top = net(batch).softmax(dim=1).max(dim=1)
    assert np.array_equal(labels, top.indices.numpy())
    assert np.allclose(confidence, top.values.numpy(), atol=1e-6)
    assert len(set(labels.tolist())) > 2
    mixed = replace(RUN.data, extra=Extra(str(out))).mixed()
    assert mixed.extra is not None
    assert torch.equal(mixed.extra.images, dataset.test.images)
    before = out.read_bytes()
    refused(["label", str(run), "--images", str(images), "--out", str(out)], capsys, "is there already")
    assert out.read_bytes() == before
    np.savez(images, image=np.zeros((3, 4, 4, 1), np.uint8))
    argv = ["label", str(run), "--images", str(images), "--out", str(tmp_path / "new.npz")]
    refused(argv, capsys, "digits needs uint8 [N, 8, 8, 1]")
    refused(["label", str(run), "--out", "x.npz"], capsys, "--images is missing")
    refused(["label", str(images), "--images", str(images), "--out", "x.npz"], capsys, "is an .npz of arrays")
    argv = ["label", str(run), "--images", str(images), "--out", "/proc/none/x.npz"]
    refused(argv, capsys, "/proc/none/x.npz cannot be written")  # before the work, not after it
    (tmp_path / "link.npz").symlink_to("nowhere")
    refused([*argv[:-1], str(tmp_path / "link.npz")], capsys, "is there already")
    refused([*argv[:-1], "x.npz", "--runtime.device", "cuda:99"], capsys, "cuda")
    broken = load_run(run / "best.safetensors")
    huge = {name: tensor * 1e38 if tensor.dim() > 1 else tensor for name, tensor in broken.tensors.items()}
    save(tmp_path / "huge.safetensors", replace(broken, tensors=huge))
    np.savez(images, image=dataset.test.images.numpy())
    argv = ["label", str(tmp_path / "huge.safetensors"), "--images", str(images), "--out", str(tmp_path / "new.npz")]
    refused(argv, capsys, "logits that are no numbers")
    assert not (tmp_path / "new.npz").exists()
    refused(["label", str(run), "--images", str(tmp_path / "no.npz"), "--out", "x.npz"], capsys, "is missing")


def test_rst_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = ["train", "digits-trades", "--data.extra.file", str(pseudo(tmp_path)), *TINY, "--out", str(out)]
    assert main(argv) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "digits-trades-extra: digits" in printed
    assert "0.5 of each batch from 40 extra images" in printed


def test_a_network_may_see_pixels_as_they_are(tmp_path: Path) -> None:
    for name, mean in (("yes", RUN.data.load().mean), ("no", (0.0,))):
        run = replace(RUN, training=replace(RUN.training, normalize=name == "yes"))
        assert fit(run, RUN.data.load(), RunFolder(tmp_path / name))
        held = load_run(tmp_path / name / "last.safetensors")
        assert held.about["data"]["mean"] == list(mean)
        net = rebuild(tmp_path / name / "last.safetensors", held, run)
        assert torch.allclose(net.mean.flatten(), torch.tensor(mean))
    assert main(["evaluate", str(tmp_path / "no"), "--attacks", "fgsm", "--limit", "20"]) == 0


def test_a_run_logs_what_rwp_selects(digits: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert fit(replace(RUN, move=RWP(c_min=100.0, steps=2)), digits, folder)
    assert folder.read_metrics()[-1]["notes"] == {"selected": 1.0, "selected_last": 1.0}
    folder = RunFolder(tmp_path / "none")
    assert fit(replace(RUN, move=RWP(c_min=1e-9, steps=2)), digits, folder)
    assert folder.read_metrics()[-1]["notes"]["selected"] == 0.0


def test_a_batch_needs_its_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "digits-trades", "--data.extra.file", str(pseudo(tmp_path)), "--training.batch", "5000"]
    refused([*argv, "--out", str(tmp_path / "x")], capsys, "training.batch = 5000", "give a smaller batch")
    assert not (tmp_path / "x" / "experiment.json").exists()


def test_names_with_brackets_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[lr=0.1]"
    assert main(["train", "digits-sat", "--name", "[/x]", *TINY, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "[/x]: digits" in printed
    assert f"demilune evaluate {out}" in printed
