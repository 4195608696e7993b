"""Export to files that run alone, networks of timm and torchvision by name, runs on the hub, and their model card."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from conftest import files, refused, tiny
from demilune.__main__ import main
from demilune.card import card, of_checkpoint, verdict
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.export import FORMS, export
from demilune.foreign import Declaration, Declared, load_declared, published, quiet
from demilune.hub import ORIGIN, dressed, fetch, parsed, places
from demilune.results import Verdict
from demilune.runs import read_json

SHAPE = (3, 8, 8)
NORMALISED = Declaration("here:net", 4, 3, low=0.0, high=255.0, mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))
ENDINGS = {form: endings[0] for form, endings in FORMS.items()}


def lacking(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return True
    return False


ONNX = pytest.mark.skipif(
    any(map(lacking, ("onnx", "onnxscript", "onnxruntime"))), reason="needs onnx, onnxscript and onnxruntime"
)
EACH = [pytest.param("onnx", marks=ONNX), "torch-export", "torchscript"]


def images(n: int, seed: int = 5) -> Tensor:
    return Stream.of(seed, "interop").uniform("x", (n, *SHAPE))


def answers(file: Path, form: str, x: Tensor) -> Tensor:
    """Run a file as one does who has never heard of demilune."""
    with quiet(), torch.no_grad():
        if form == "onnx":
            session = importlib.import_module("onnxruntime").InferenceSession(str(file))
            (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            return torch.from_numpy(logits)
        return torch.export.load(str(file)).module()(x) if form == "torch-export" else torch.jit.load(str(file))(x)


def told(file: Path, form: str) -> Any:
    if form == "onnx":
        (entry,) = importlib.import_module("onnx").load(str(file)).metadata_props
        assert entry.key == "demilune"
        return json.loads(entry.value)
    extra = {"demilune.json": ""}
    with quiet():
        if form == "torch-export":
            torch.export.load(str(file), extra_files=extra)
        else:
            torch.jit.load(str(file), _extra_files=extra)
    return json.loads(extra["demilune.json"])


# Export


@pytest.mark.parametrize("form", EACH)
def test_a_file_answers_as_the_network_does_to_pixels_whatever_their_number(form: str, tmp_path: Path) -> None:
    net = Declared(tiny(4, 3), NORMALISED).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    file = tmp_path / f"net{ENDINGS[form]}"
    done = export(net, SHAPE, file, form, {"classes": ["a", "b"]})
    assert done.path == file
    assert done.size == file.stat().st_size
    assert done.difference is not None
    assert done.difference < 1e-4
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    for n in (1, 3, 11):
        x = images(n)
        with torch.no_grad():
            wanted = net(x)
        torch.testing.assert_close(answers(file, form, x), wanted, rtol=1e-4, atol=1e-5)
    assert told(file, form) == {"classes": ["a", "b"]}
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("form", EACH[1:])
def test_a_file_that_is_there_is_written_over_only_when_asked(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"net{ENDINGS[form]}"
    file.write_bytes(b"mine")
    with pytest.raises(DemiluneError, match=r"is there already.*--overwrite"):
        export(tiny(4, 3), SHAPE, file, form, {})
    assert file.read_bytes() == b"mine"
    export(tiny(4, 3), SHAPE, file, form, {}, overwrite=True)
    assert answers(file, form, images(2)).shape == (2, 4)


class Branching(nn.Module):
    """What it does depends on the images' values, which a trace of one batch does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of one kind, or of another where an image is bright."""
        sums = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([sums, -sums], dim=1) if float(sums.max()) > 99.0 else torch.cat([-sums, sums], dim=1)


class Chancy(nn.Module):
    """Answers at random."""

    def forward(self, x: Tensor) -> Tensor:
        """Return noise."""
        return torch.randn(len(x), 2) + x.flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("form", ["torch-export", "torchscript"])
def test_what_a_form_cannot_express_is_refused_and_nothing_changes(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"net{ENDINGS[form]}"
    file.write_bytes(b"mine")
    net = Branching()
    sizes = [
        float(Stream.of(0, "export").uniform(f"images{n}", (n, *SHAPE)).flatten(1).sum(1).max()) for n in (1, 2, 7)
    ]
    assert min(sizes) < 99.0 < max(sizes)  # or the trace would be right by chance
    with pytest.raises(DemiluneError, match=r"was not written: .*try another of onnx, torch-export, torchscript"):
        export(net, SHAPE, file, form, {}, overwrite=True)
    assert files(tmp_path) == {file: b"mine"}


def test_a_network_that_answers_at_random_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemiluneError, match="answers differently each time"):
        export(Chancy(), SHAPE, tmp_path / "net.pt2", "torch-export", {})
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("net.onnx", "torchscript", r"is onnx's\): name it net.ts"),
        ("net.bin", "onnx", "name it net.onnx"),
        ("net.onnx", "tflite", "possible are onnx, torch-export, torchscript"),
        ("folder.pt2", "torch-export", "is a folder"),
    ],
)
def test_a_name_that_does_not_fit_the_form_is_refused(name: str, form: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(DemiluneError, match=words):
        export(tiny(4, 3), SHAPE, tmp_path / name, form, {})


def test_without_onnx_the_extra_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DemiluneError, match=r"onnx is not installed: pip install 'demilune\[onnx\]'"):
        export(tiny(4, 3), SHAPE, tmp_path / "net.onnx", "onnx", {})


@ONNX
def test_without_onnxruntime_a_file_is_written_and_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = export(tiny(4, 3), SHAPE, tmp_path / "net.onnx", "onnx", {})
    assert done.difference is None
    assert "not checked: onnxruntime" in done.note
    assert done.path.exists()


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sat"
    small = ["--training.epochs", "2", "--model.width", "4", "--method.attack.steps", "1"]
    assert main(["train", "digits-sat", *small, "--name", "first <b>", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--limit", "60", "--attacks", "fgsm,pgd10"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "sat"))


def test_a_run_is_exported_by_one_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "net.pt2", "--to", "torch-export"]) == 0
    assert "net.pt2 (torch-export" in capsys.readouterr().out
    about = told(Path("net.pt2"), "torch-export")
    assert (about["name"], about["shape"], len(about["classes"])) == ("first <b>", [1, 8, 8], 10)
    refused(["export", str(run), "net.pt2", "--to", "torch-export"], capsys, "net.pt2", "--overwrite")
    refused(["export", str(run), "net.pt2"], capsys, "--to is missing", "onnx")
    refused(["export", str(run)], capsys, "FILE")
    refused(["export", "nowhere", "net.ts", "--to", "torchscript"], capsys, "nowhere does not exist")
    # The file, as a stranger's, is judged as the run was.
    judged = ["--data", "digits", "--ball.eps", "0.15", "--limit", "60", "--attacks", "fgsm,pgd10"]
    assert main(["evaluate", "net.pt2", "--trust", *judged, "--home", "back"]) == 0
    (own,), (back,) = Path("sat/evaluations").glob("*.json"), Path("back/evaluations").glob("*.json")
    assert [row["right"] for row in read_json(back, "")["rows"]] == [row["right"] for row in read_json(own, "")["rows"]]


# The model card


def label(run: Path) -> str:
    (file,) = (run / "evaluations").glob("*.json")
    return str(read_json(file, "")["checkpoint"])


def split(text: str) -> tuple[dict[str, Any], str]:
    empty, head, body = text.split("---\n", 2)
    assert not empty
    return yaml.safe_load(head), body


def test_a_card_says_the_threat_model_the_results_and_the_verdict(run: Path) -> None:
    (file,) = (run / "evaluations").glob("*.json")
    evaluation = read_json(file, "")
    text = card(run, label(run), "alice/first", "mit", {"best.safetensors": "ab" * 32})
    head, body = split(text)
    assert (head["license"], head["library_name"]) == ("mit", "demilune")
    (model,) = head["model-index"]
    assert model["name"] == "first <b>"
    metrics = model["results"][0]["metrics"]
    rows = [row for row in evaluation["rows"] if row["role"] == "attack"]
    assert [metric["value"] for metric in metrics] == [round(100 * row["right"] / row["n"], 2) for row in rows]
    assert "L∞ ball, ε = 0.15" in metrics[1]["name"]
    assert "upper bound" in metrics[-1]["name"]
    assert "# first &lt;b&gt;\n" in body
    for title in ("Verdict", "Threat model", "Results", "Training", "Use", "Limits", "Provenance"):
        assert f"\n## {title}\n" in body
    assert f"**{evaluation['verdict']['kind']}**" in body
    for row in rows:
        rate = 100 * row["right"] / row["n"]
        assert f"| {rate:.2f} |" in next(line for line in body.splitlines() if line.startswith(f"| {row['title']}"))
    assert "60 test images" in body
    assert "hub pull alice/first" in body
    assert "ab" * 32 in body
    assert text == card(run, label(run), "alice/first", "mit", {"best.safetensors": "ab" * 32})


def test_a_card_tells_the_worst_case_of_the_fullest_test_evaluation_first(run: Path) -> None:
    checkpoint = label(run)
    assert main(["evaluate", str(run), "--limit", "40", "--split", "validation", "--attacks", "fgsm"]) == 0
    assert main(["evaluate", str(run), "--limit", "20", "--attacks", "fgsm", "--ball.eps", "0.05"]) == 0
    head, body = split(card(run, checkpoint, "alice/first", "mit", {}))
    assert "On 60 test images" in body
    assert len(head["model-index"][0]["results"]) == 3
    assert "within the L∞ ball, ε = 0.15 or the L∞ ball, ε = 0.05" in body
    assert "40 validation images" in body


def test_a_card_names_the_lowest_other_evaluation_in_the_same_ball(run: Path) -> None:
    (file,) = (run / "evaluations").glob("*.json")
    checkpoint = label(run)
    _, body = split(card(run, checkpoint, "alice/first", "mit", {}))
    assert "under the attacks of this evaluation in the L∞ ball" in body
    assert "Another evaluation" not in body and "all attacks that were run" not in body
    value = read_json(file, "")
    fewer = [row | {"n": 20, "right": 1 if row["name"] == "worst" else min(row["right"], 20)} for row in value["rows"]]
    fewer = [row | {"right_after": None} for row in fewer]
    lower = file.with_name("best_lower_n20.json")
    lower.write_text(json.dumps(value | {"rows": fewer}))
    _, body = split(card(run, checkpoint, "alice/first", "mit", {}))
    assert "On 60 test images" in body
    assert "Another evaluation below leaves less, 5.00 ± 4.87 % of 20 test images." in body
    lower.write_text(json.dumps(value | {"rows": fewer, "eps": 2 * value["eps"]}))
    assert "Another evaluation" not in card(run, checkpoint, "alice/first", "mit", {}), "another ball refutes nothing"


def test_a_card_says_the_verdict_in_words_and_the_images_that_were_added(run: Path) -> None:
    (file,) = (run / "evaluations").glob("*.json")
    value = read_json(file, "")
    told: dict[str, Any] = {
        "kind": "overestimated", "text": "overestimated by at least 8 points under PGD-10", "reported": "PGD-10",
        "strongest": "x", "points": 0.08, "error": 0.01,
    }  # fmt: skip
    (entry,) = of_checkpoint(run, value["checkpoint"])
    shown = verdict(replace(entry, evaluation=replace(entry.evaluation, verdict=Verdict(**told))))
    assert shown == "**overestimated** by at least 8 points under PGD-10"
    other = Verdict(**(told | {"text": "no beginning"}))
    own = verdict(replace(entry, evaluation=replace(entry.evaluation, verdict=other)))
    assert own == "**overestimated**: no beginning"
    text = card(run, label(run), "alice/first", "mit", {})
    assert verdict(entry) in text
    assert "Trained and examined on digits alone" in text
    experiment = read_json(run / "experiment.json", "")
    experiment["data"]["extra"] = {"file": "more.npz", "share": 0.5}
    (run / "experiment.json").write_text(json.dumps(experiment))
    text = card(run, label(run), "alice/first", "mit", {})
    assert "Trained on digits and on additional images, examined on digits alone" in text


def test_a_card_is_made_of_evaluations_of_that_very_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DemiluneError, match=r"no evaluation of its checkpoint best \(step 99\) \(only of best .*doctor"
    ):
        card(run, "best (step 99)", "alice/first", "mit", {})
    shutil.rmtree(run / "evaluations")
    with pytest.raises(DemiluneError, match=r"\(none\): a card needs results"):
        card(run, "best (step 99)", "alice/first", "mit", {})
    with pytest.raises(DemiluneError, match="no run folder"):
        card(tmp_path, "best (step 99)", "alice/first", "mit", {})


def test_a_card_needs_no_torch() -> None:
    code = "import sys, demilune.card; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The hub


class GatedRepoError(Exception):
    """By these names the hub's client tells what is wrong."""


class RevisionNotFoundError(Exception):
    """No such branch."""


class RepositoryNotFoundError(Exception):
    """No such repository."""


class LocalTokenNotFoundError(OSError):
    """Nobody is logged in."""


class Hub:
    """A hub of one folder, with the calls of huggingface_hub's that are made, and what was asked of it."""

    commit = "0123456789abcdef" * 2 + "01234567"

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.fails = folder, list[tuple[Any, ...]](), None
        self.private = False

    def model_info(self, repo_id: str, *, revision: str | None = None) -> SimpleNamespace:
        self.asked.append(("info", repo_id, revision))
        if self.fails is not None:
            raise self.fails
        names = [path.relative_to(self.folder).as_posix() for path in sorted(files(self.folder))]
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha=self.commit, siblings=siblings, private=self.private)

    def snapshot_download(self, repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        self.asked.append(("download", repo_id, revision, tuple(sorted(allow_patterns))))
        return str(self.folder)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.asked.append(("create", repo_id, private, exist_ok))
        if self.fails is not None:
            raise self.fails

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]
    ) -> SimpleNamespace:
        self.asked.append(("upload", repo_id))
        for name in delete_patterns:
            (self.folder / name).unlink()
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return SimpleNamespace(oid=self.commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "remote").mkdir()
    found = Hub(tmp_path / "remote")
    client = ModuleType("huggingface_hub")
    client.HfApi = lambda: found  # type: ignore[attr-defined]
    client.snapshot_download = found.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return found


PUSH = ["hub", "push", "sat", "alice/first", "--licence", "mit"]


def test_the_calls_are_those_that_the_hubs_client_has() -> None:
    client = pytest.importorskip("huggingface_hub")
    for ours, theirs in (
        (Hub.model_info, client.HfApi.model_info),
        (Hub.create_repo, client.HfApi.create_repo),
        (Hub.upload_folder, client.HfApi.upload_folder),
        (Hub.snapshot_download, client.snapshot_download),
    ):
        assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


def test_a_run_goes_to_the_hub_and_comes_back_the_same(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PUSH) == 0
    assert f"uploaded: alice/first@{hub.commit}" in capsys.readouterr().out
    assert ("create", "alice/first", False, True) in hub.asked
    names = {path.relative_to(hub.folder).as_posix() for path in files(hub.folder)}
    (evaluation,) = (run / "evaluations").glob("*.json")
    kept = {"experiment.json", "environment.json", "metrics.jsonl", "best.safetensors"}
    assert names == {*kept, f"evaluations/{evaluation.name}", "README.md"}
    assert (hub.folder / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
    # Whatever else lies there, programs and pickles, is not even asked for.
    (hub.folder / "evil.pkl").write_bytes(pickle.dumps(print))
    (hub.folder / "model.json").write_text("{}")
    same = ["--limit", "60", "--attacks", "fgsm,pgd10"]
    assert main(["evaluate", "hf:alice/first", *same]) == 0
    folder = Path("first-01234567")
    assert ("download", "alice/first", hub.commit, tuple(sorted(names - {"README.md"}))) in hub.asked
    assert {p.relative_to(folder).as_posix() for p in files(folder) if p.suffix != ".npz"} == names - {"README.md"} | {
        ORIGIN
    }
    rows = [read_json(each / "evaluations" / evaluation.name, "")["rows"] for each in (run, folder)]
    assert rows[0] == rows[1]
    assert read_json(folder / ORIGIN, "")["commit"] == hub.commit


def test_what_is_there_already_is_not_fetched_again(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dressed(run, "alice/first", "mit", "best", hub.folder)
    assert main(["hub", "pull", "alice/first@main", "--home", "mine"]) == 0
    assert main(["hub", "pull", "hf:alice/first", "--home", "mine"]) == 0
    assert capsys.readouterr().out == "fetched: mine\nfetched: mine\n"
    assert [kind for kind, *_ in hub.asked] == ["info", "download", "info"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch(f"alice/first@{hub.commit}", Path("mine")) == Path("mine")
    refused(["hub", "pull", "alice/first"], capsys, "pip install 'demilune[hub]'")
    monkeypatch.undo()


def test_pushing_again_leaves_nothing_of_an_earlier_run(run: Path, hub: Hub) -> None:
    assert main(PUSH) == 0
    (hub.folder / "last.safetensors").write_bytes(b"old")
    (hub.folder / "evaluations" / "best_old.json").write_text("{}")
    (hub.folder / ".gitattributes").write_text("")
    assert main(PUSH) == 0
    names = [path.name for path in files(hub.folder)]
    assert "last.safetensors" not in names
    assert "best_old.json" not in names
    assert ".gitattributes" in names


def test_a_dry_run_only_writes_a_folder_and_says_what_tells_of_this_machine(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    told = read_json(run / "environment.json", "")
    (run / "environment.json").write_text(json.dumps(told | {"command": "demilune train --out /home/alice/runs/sat"}))
    assert main([*PUSH, "--dry-run", "dry"]) == 0
    out = capsys.readouterr().out
    assert "look: README.md names /home/alice/runs/sat" in out
    assert "look: environment.json names /home/alice/runs/sat" in out
    assert out.endswith("nothing was uploaded\n")
    assert not hub.asked
    assert "license: mit" in Path("dry/README.md").read_text(encoding="utf-8")
    refused([*PUSH, "--dry-run", "dry"], capsys, "dry is there, and not empty")


def test_places_are_told_from_fractions_and_addresses(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('"8/255 https://x.org/a/b uoft-cs/cifar10 </b> and/or 1/2/3"')
    assert places(tmp_path) == []
    (tmp_path / "b.json").write_text('"--out=~/runs/x", "C:\\\\Users\\\\bob"')
    assert places(tmp_path) == ["b.json names ~/runs/x, C:\\\\Users\\\\bob"]


def test_what_cannot_be_given_is_refused_before_the_hub_is_asked(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(PUSH[:-2], capsys, "--licence is missing", "mit")
    refused([*PUSH[:-1], "My Own"], capsys, "'My Own'", "lower case")
    refused([*PUSH[:3], "first", "--licence", "mit"], capsys, "'first' is no repository", "OWNER/NAME")
    refused([*PUSH[:3], "alice/first@v1", "--licence", "mit"], capsys, "names a revision")
    refused([*PUSH[:2], "nowhere", *PUSH[3:]], capsys, "nowhere", "does not exist")
    refused([*PUSH, "--checkpoint", "last"], capsys, "no evaluation of its checkpoint last", "demilune doctor")
    (run / "best.safetensors").write_bytes(pickle.dumps([1, 2, 3]))
    refused(PUSH, capsys, "is a pickle")
    assert not hub.asked


def test_a_repository_of_something_else_is_left_alone(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (hub.folder / "config.json").write_text("{}")
    refused(PUSH, capsys, "holds something that is no run (config.json", "nothing was uploaded")
    (hub.folder / "config.json").unlink()
    refused([*PUSH, "--private"], capsys, "everybody sees it", "nothing was uploaded")
    assert "upload" not in [kind for kind, *_ in hub.asked]
    hub.private = True
    assert main([*PUSH, "--private"]) == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("403"), "ask for access"),
        (RevisionNotFoundError("404"), "no such revision"),
        (RepositoryNotFoundError("401"), "no such repository"),
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (ConnectionError("name not known\nmore"), "the hub did not answer (ConnectionError: name not known)"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(
    error: Exception, words: str, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = error
    before = files(Path())
    refused(["evaluate", "hf:alice/first@v2"], capsys, "alice/first@v2 was not fetched", words)
    refused(PUSH, capsys, "alice/first was not uploaded", words)
    assert files(Path()) == before


@pytest.mark.parametrize("name", ["", "first", "a/b/c", "a/b@", "a/../b", "a/b@x/../y", "-a/b", "a b/c"])
def test_names_that_are_none_of_the_hubs_are_refused(name: str) -> None:
    with pytest.raises(DemiluneError, match="is no repository of the hub"):
        parsed(name)


def test_damaged_or_strange_repositories_are_refused_and_leave_nothing(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["hub", "pull", "alice/first"], capsys, "is no run of demilune's", "--weights")
    dressed(run, "alice/first", "mit", "best", hub.folder)
    whole = {path.relative_to(hub.folder): content for path, content in files(hub.folder).items()}
    (evaluation,) = [name for name in whole if name.parent.name == "evaluations"]
    experiment = json.loads(whole[Path("experiment.json")])
    other = json.dumps(experiment | {"seed": 99}).encode()
    for name, content, words in (
        (Path("best.safetensors"), pickle.dumps(print), "is a pickle"),
        (Path("best.safetensors"), whole[Path("best.safetensors")][:-9], "truncated"),
        (Path("experiment.json"), other, "of another run"),
        (evaluation, b'{"rows": 3}', "no evaluation"),
        (Path("metrics.jsonl"), b"{", "broken at line 1"),
    ):
        (hub.folder / name).write_bytes(content)
        refused(["hub", "pull", "alice/first"], capsys, "alice/first@01234567 is damaged", words, "nothing was written")
        (hub.folder / name).write_bytes(whole[name])
    assert sorted(path.name for path in Path().iterdir()) == ["remote", "sat"]
    refused(["hub", "pull", "alice/first", "--home", "sat"], capsys, "sat is there, and not alice/first@01234567")
    assert main(["hub", "pull", "alice/first"]) == 0


# timm and torchvision


class Net(nn.Module):
    """A small network, as a library would make it."""

    def __init__(self, classes: int, channels: int, fill: float = 1.0) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        nn.init.constant_(self.fc.weight, fill)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.fc(x.mean(dim=(2, 3)))


CONFIGS = {
    "net": SimpleNamespace(tag="a1", num_classes=10, input_size=(1, 8, 8), mean=(0.25,), std=(0.5,), has_weights=True),
    "net.a1": None,
    "bare": SimpleNamespace(tag="", num_classes=10, input_size=(1, 8, 8), mean=(0.5,), std=(0.5,), has_weights=False),
    "wide": SimpleNamespace(
        tag="300ep", num_classes=1000, input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, has_weights=True
    ),
}
CONFIGS["net.a1"] = CONFIGS["net"]


class Kinds:
    """Weights of a network, as torchvision lists them."""

    V1 = SimpleNamespace(
        name="V1",
        meta={"categories": list("0123456789")},
        transforms=lambda: SimpleNamespace(mean=[0.5] * 3, std=[0.25] * 3),
    )
    DEFAULT = V1

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter([self.V1])

    def __getitem__(self, name: str) -> SimpleNamespace:
        return {"V1": self.V1}[name]


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put stand-ins in the place of timm and torchvision; returns what they were asked to make."""
    asked = list[tuple[Any, ...]]()
    timm, torchvision = ModuleType("timm"), ModuleType("torchvision")

    def config(spec: str) -> SimpleNamespace | None:
        name, _, tag = spec.partition(".")
        if tag and spec not in CONFIGS:
            raise RuntimeError(f"Invalid pretrained tag ({tag}) for {name}.")
        return CONFIGS.get(spec)

    def create(spec: str, pretrained: bool, num_classes: int, in_chans: int = 3) -> nn.Module:
        asked.append((spec, pretrained, num_classes, in_chans))
        if spec == "bare":
            raise ValueError("it cannot\nbe")
        return Net(num_classes, in_chans, 2.0 if pretrained else 1.0)

    def get(name: str, weights: str | None, num_classes: int = 10) -> nn.Module:
        asked.append((name, weights, num_classes))
        return Net(num_classes, 3, 1.0 if weights is None else 2.0)

    attributes: Mapping[ModuleType, Mapping[str, Any]] = {
        timm: {
            "list_models": lambda: ["net", "bare", "wide"],
            "list_pretrained": lambda pattern: ["net.a1"],
            "get_pretrained_cfg": config,
            "create_model": create,
        },
        torchvision: {
            "models": SimpleNamespace(
                list_models=lambda module: ["resnet18"], get_model_weights=lambda name: Kinds(), get_model=get
            )
        },
    }
    for module, values in attributes.items():
        for name, value in values.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


JUDGED = ["--data", "digits", "--limit", "20", "--attacks", "fgsm"]


def test_a_network_of_timm_is_named_and_filled_with_a_file(
    vision: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(Net(10, 1, 3.0).state_dict(), "w.safetensors")
    assert main(["evaluate", "timm:net", "--weights", "w.safetensors", "--home", "mine", *JUDGED]) == 0
    model = read_json(Path("mine/model.json"), "")["model"]
    assert (model["model"], model["pretrained"], model["mean"]) == ("timm:net", False, [])
    assert vision[-1] == ("net", False, 10, 1)
    declared = Declaration("timm:net", 10, 1, weights="w.safetensors")
    assert load_declared(declared).net.fc.weight.tolist()[0] == [3.0]


def test_published_weights_come_with_the_normalisation_they_were_trained_for(
    vision: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "timm:net", "--pretrained", "--home", "mine", *JUDGED]) == 0
    model = read_json(Path("mine/model.json"), "")["model"]
    assert model["model"] == "timm:net.a1"  # the weights' own name, though none was given
    assert (model["pretrained"], model["mean"], model["std"]) == (True, [0.25], [0.5])
    assert main(["evaluate", "timm:net", "--pretrained", "--home", "mine", *JUDGED]) == 0
    assert main(["evaluate", "mine", "--limit", "20", "--attacks", "fgsm"]) == 0
    assert vision[-1] == ("net.a1", True, 10, 1)
    # What is declared otherwise is kept.
    assert main(["evaluate", "timm:net", "--pretrained", "--bounds", "-1,1", "--home", "other", *JUDGED]) == 0
    assert read_json(Path("other/model.json"), "")["model"]["mean"] == []
    x = Stream.of(0).uniform("x", (3, 1, 8, 8))
    net = load_declared(Declaration("timm:net.a1", 10, 1, mean=(0.25,), std=(0.5,), pretrained=True))
    torch.testing.assert_close(net(x), net.net((x - 0.25) / 0.5))
    assert "as timm publishes them" in net.notes[0]
    refused(["evaluate", "timm:net", *JUDGED], capsys, "timm:net is declared with no weights", "--pretrained")
    more = ["--weights", "w.safetensors", "--pretrained"]
    refused(["evaluate", "timm:net", *more, *JUDGED], capsys, "both published weights and a file")
    refused(["evaluate", "here:net", "--pretrained", *JUDGED], capsys, "timm:NAME or torchvision:NAME", "'here:net'")
    refused(
        ["evaluate", "timm:wide", "--pretrained", *JUDGED], capsys, "timm:wide.300ep", "1000 classes", "not 1 and 10"
    )
    refused(["evaluate", "torchvision:resnet18", "--pretrained", *JUDGED], capsys, "3 channels", "not 1 and 10")


def test_networks_of_torchvision(vision: list[tuple[Any, ...]], tmp_path: Path) -> None:
    says = published("torchvision:resnet18", 10, 3)
    assert (says.model, says.mean, says.std) == ("torchvision:resnet18.V1", (0.5,) * 3, (0.25,) * 3)
    load_declared(Declaration(says.model, 10, 3, mean=says.mean, std=says.std, pretrained=True))
    assert vision[-1] == ("resnet18", "V1", 10)
    save_file(Net(4, 3).state_dict(), tmp_path / "w.safetensors")
    load_declared(Declaration("torchvision:resnet18", 4, 3, weights=str(tmp_path / "w.safetensors")))
    assert vision[-1] == ("resnet18", None, 4)
    with pytest.raises(DemiluneError, match="take 3 channels, the images have 1"):
        load_declared(Declaration("torchvision:resnet18", 4, 1, weights=str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:nett", "timm has no network 'nett': did you mean net"),
        ("timm:net.b2", "unknown weights of timm's net 'b2': .*possible are a1"),
        ("timm:bare", "timm publishes no weights of bare: .*--weights FILE"),
        ("torchvision:resnet1", "torchvision has no network 'resnet1': did you mean resnet18"),
        ("torchvision:resnet18.V2", "unknown weights of torchvision's resnet18 'V2': .*possible are V1"),
    ],
)
def test_names_that_a_library_does_not_have_are_refused(spec: str, words: str, vision: list[tuple[Any, ...]]) -> None:
    channels = 1 if spec.startswith("timm") else 3
    with pytest.raises(DemiluneError, match=words):
        published(spec, 10, channels)
    with pytest.raises(DemiluneError, match=words):
        load_declared(Declaration(spec, 10, channels, pretrained=True))


def test_a_library_that_fails_to_make_a_network_is_told_in_a_line(vision: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DemiluneError, match=r"timm could not make bare \(ValueError: it cannot\): name another"):
        load_declared(Declaration("timm:bare", 10, 3, weights="w.pt"))


def test_libraries_that_are_missing_or_of_another_torch_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", "w.pt", *JUDGED]
    (tmp_path / "w.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for spec in ("timm:resnet18", "torchvision:resnet18"):  # timm needs torchvision too
        refused(["evaluate", spec, *weights], capsys, "torchvision is not installed", "pip install 'demilune[vision]'")
    monkeypatch.delitem(sys.modules, "torchvision")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    plain = torch.__version__.partition("+")[0]
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        said = ("operator torchvision::nms", f"is not for torch {torch.__version__}", f"torch=={plain} torchvision")
        refused(["evaluate", spec, *weights], capsys, *said)


@pytest.mark.skipif(lacking("timm"), reason="timm, or a torchvision of this torch that it needs, is not installed")
def test_a_network_that_timm_really_makes(tmp_path: Path) -> None:
    timm = importlib.import_module("timm")
    says = published("timm:resnet18", 1000, 3)
    assert says.model.startswith("timm:resnet18.")
    assert says.mean == pytest.approx((0.485, 0.456, 0.406))
    net = timm.create_model("resnet10t", num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    made = load_declared(Declaration("timm:resnet10t", 7, 3, weights=str(tmp_path / "w.pt")))
    x = Stream.of(0).uniform("x", (2, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(made(x), net(x))
