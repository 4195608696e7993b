"""Suites name cells that exist, keys tell trainings apart and nothing else, costs add up, departures are all told."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from demilune import papers
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate.suite import Setting
from demilune.evaluate.suite import suite as entries_of
from demilune.experiment import Experiment, build, name_of, plain
from demilune.methods import RAT
from demilune.pages import plane as draw
from demilune.presets import PRESETS
from demilune.suites import SUITES, Choice, cells, holding, named, settled
from demilune.suites.base import changed, identity, over, trained_key
from demilune.suites.cost import measuring_passes, passes_per_step, training_passes
from demilune.suites.plane import plane
from demilune.suites.probe import margins, region, rise, spearman
from demilune.suites.record import Shelf, rows_asked
from demilune.suites.results import placed
from demilune.suites.sheet import departures, points, sheet
from demilune.suites.worth import ordered

RUNNABLE = [
    (name, data, schedule, norm)
    for name, suite in SUITES.items()
    for data in (*suite.data, "digits")
    for schedule in (("usual", "quick") if data == "digits" else ("paper", "s15"))
    for norm in suite.norms
    if (name, data) != ("rwp/rst", "digits")
]


@pytest.mark.parametrize(("name", "data", "schedule", "norm"), RUNNABLE)
def test_every_suite_has_its_cells_on_all_its_data_in_both_lengths(
    name: str, data: str, schedule: str, norm: str
) -> None:
    suite = named(name)
    found = cells(suite, Choice(data=data, schedule=schedule, norm="l2" if norm == "l2" else "linf", seeds=2))
    lines = [line for line in suite.lines if not line.only or data in line.only]
    assert len(found) == 2 * len(lines) * len(suite.asks)
    assert {cell.seed for cell in found} == {0, 1}
    assert {name_of(cell.experiment.data) for cell in found} == {data}
    assert {cell.experiment.ball.norm for cell in found} == {norm}
    networks = {(cell.line.label, cell.seed): cell.trained for cell in found}
    assert len(set(networks.values())) == len(networks), "two lines would be one network"
    assert all(cell.reference is None for cell in found) == (data == "digits")
    for cell in found:
        json.dumps(identity(cell.experiment))
        assert training_passes(cell.experiment) > 0
        assert measuring_passes(cell) >= 0
        if cell.ask.kind == "evaluation":
            assert rows_asked(cell), "its attacks are known"


def test_suites_cover_the_paper_s_tables_and_figures() -> None:
    assert {f"rat/table{k}" for k in range(1, 5)} | {f"rat/fig{k}" for k in range(1, 9)} <= set(SUITES)
    assert {"rat/time", "rat/aa", "rat/near", "rat/ls", "rat/a1", "rat/a8", "rat/a9", "rat/diag"} <= set(SUITES)
    for suite in SUITES.values():
        labels = [line.label for line in suite.lines]
        assert len(set(labels)) == len(labels)
        for claim in suite.claims:
            assert {claim.more, claim.less} <= {*labels, ""}, claim
            assert claim.more or claim.less
        if suite.table:
            for data in suite.data:
                part = papers.part(suite.paper, suite.table, data, "linf", [line.theirs for line in suite.lines])
                if part is None:
                    continue
                for line in suite.lines:
                    values = papers.values(part, line.theirs)
                    assert set(values) <= {*suite.columns, "pgd40x5"}, (suite.name, line.label)


def test_published_lines_are_found_by_their_fields() -> None:
    part = papers.part("rat", 1, "cifar10")
    assert part is not None
    assert papers.values(part, {"method": "rat"})["pgd10"] == 70.57
    assert papers.values(part, {"method": "nobody"}) == {}
    grid = papers.part("rat", 4, "cifar10")
    assert grid is not None
    assert papers.values(grid, {"mass_high": 1.0, "mass_low": 0.3}) == {"clean": 92.59, "pgd10": 64.87, "cw10": 61.53}
    corrupted = papers.part("rat", 2, "cifar100")
    assert corrupted is not None
    assert papers.values(corrupted, {"method": "sat"})["corruption.mean"] == 52.87
    logs = papers.part("rwp", "AWP logs", "svhn", "l2")
    assert logs is not None
    assert papers.values(logs, {"method": "sat", "move": "awp", "checkpoint": "last"})["pgd20"] == 67.98
    assert "not figures of this paper" in papers.told("rwp", "AWP logs", logs)
    for paper in ("rat", "rwp", "lrat", "taylor"):
        for table in papers.published(paper)["tables"]:
            assert "page" in table
            for one in table["parts"]:
                assert all(len(row["values"]) == len(one["columns"]) for row in one["rows"])


def test_a_key_is_of_the_training_and_of_nothing_else() -> None:
    run = PRESETS["s30-cifar10-rat"].experiment
    same = [
        {"name": "other"}, {"runtime.device": "cpu", "runtime.threads": 2, "runtime.precision": "bf16"},
        {"data.root": "somewhere", "data.unverified": True}, {"training.checkpoint_every": 5.0},
    ]  # fmt: skip
    for fields in same:
        assert trained_key(changed(run, fields)) == trained_key(run), fields
    other = [
        {"seed": 1}, {"method.mass_low": 0.3}, {"training.epochs": 29}, {"model.width": 8}, {"data.limit": 1000},
        {"ball.eps": 0.03}, {"move.name": "rwp"}, {"training.weight_decay": 2e-4}, {"schedule.rate": 0.1},
    ]  # fmt: skip
    keys = {trained_key(changed(run, fields)) for fields in other}
    assert len(keys) == len(other)
    assert trained_key(run) not in keys


def test_a_key_does_not_depend_on_fields_that_are_at_their_defaults() -> None:
    run = PRESETS["s30-cifar10-rat"].experiment
    told = identity(run)
    assert "samples" not in told["method"], "a later field with the old behaviour as its default must change no key"
    assert told["method"] == {"name": "rat"}
    assert told["seed"] == 0
    assert trained_key(build(Experiment, json.loads(json.dumps(plain(run))))) == trained_key(run)


def test_the_same_network_has_one_key_in_all_suites() -> None:
    choice = Choice(data="digits", schedule="quick")
    keys = [
        next(cell.trained for cell in cells(named(name), choice) if cell.line.label == label)
        for name, label in (
            ("rat/table1", "RAT"),
            ("rat/table4", "β 1 to 0.1"),
            ("rat/fig4", "RAT"),
            ("rwp/rat", "RAT"),
        )
    ]
    assert len(set(keys)) == 1


def test_what_begins_at_an_epoch_begins_at_the_same_share_of_a_shorter_run() -> None:
    run = PRESETS["lrat-cifar10-gairat"].experiment
    assert (run.method.begin, run.training.epochs) == (30, 100)  # type: ignore[attr-defined]
    assert over(run, {"training": {"epochs": 10}}).method.begin == 3  # type: ignore[attr-defined]
    moved = PRESETS["rwp-cifar10-trades-awp"].experiment
    assert over(moved, {"training": {"epochs": 1}}).move.warmup == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(data="mnist"), "unknown data of rat/table1 'mnist'"),
        (Choice(schedule="s3"), "unknown schedule 's3'"),
        (Choice(data="digits", schedule="paper"), "no paper has them"),
        (Choice(schedule="quick"), "is for the digits"),
        (Choice(norm="l2"), "unknown norm of rat/table1 'l2'"),
        (Choice(seeds=0), "--seeds 0"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice: Choice, words: str) -> None:
    with pytest.raises(DemiluneError, match=words):
        settled(named("rat/table1"), choice)


def test_an_unknown_suite_and_net_are_refused() -> None:
    with pytest.raises(DemiluneError, match="did you mean 'rat/table1'"):
        named("rat/tabel1")
    with pytest.raises(DemiluneError, match="unknown net 'resnet19'"):
        cells(named("rat/table1"), Choice(net="resnet19"))


# (method, move, cost at K = 10) as docs/methods.md has them, which count backward passes
COSTS = [
    ("standard", 3), ("sat", 23), ("trades", 27), ("mart", 26), ("avm", 23), ("adt", 73), ("gairat", 23), ("lrat", 26),
    ("lrat_trades", 27), ("lrat_rat", 29), ("taylor_code", 27), ("taylor_exact", 27), ("rat", 26), ("sat-awp", 26),
    ("trades-awp", 33), ("sat-rwp", 53), ("rat-rwp", 86), ("trades-rwp", 87),
]  # fmt: skip


@pytest.mark.parametrize(("row", "cost"), COSTS)
def test_costs_are_those_of_the_documentation(row: str, cost: int) -> None:
    assert passes_per_step(PRESETS[f"s30-cifar10-{row}"].experiment) == cost


def test_costs_grow_with_steps_images_and_length() -> None:
    run = PRESETS["s30-cifar10-sat"].experiment
    assert passes_per_step(changed(run, {"method.attack.steps": 20})) == 43
    assert passes_per_step(changed(PRESETS["s30-cifar10-lrat"].experiment, {"method.attacks": "both"})) == 49
    longer = training_passes(replace(run, training=replace(run.training, epochs=60)))
    assert longer == pytest.approx(2 * training_passes(run))
    table = cells(named("rat/table1"), Choice(data="cifar10", schedule="s30"))
    fewer = cells(named("rat/table1"), Choice(data="cifar10", schedule="s30", limit=100))
    assert measuring_passes(fewer[0]) < measuring_passes(table[0]) / 5


def test_departures_from_the_paper_are_all_told() -> None:
    (cell, *_) = cells(named("rat/table1"), Choice())
    assert departures(cell.experiment, cell.reference) == ()
    short = cells(named("rat/table1"), Choice(schedule="s30"))[0]
    told = departures(short.experiment, short.reference)
    assert told is not None
    text = "; ".join(told)
    assert "net: preact_resnet18 width 64, not wide_resnet depth 34 factor 10" in text
    assert "30 epochs" in text and "80,000 steps" in text
    assert "training.weight_decay: 0.0005, not 0.0002" in text
    limited = departures(changed(cell.experiment, {"data.limit": 100}), cell.reference)
    assert limited == ("data.limit: 100, not 0",)
    moved = departures(changed(cell.experiment, {"method.mass_low": 0.2}), cell.reference)
    assert moved == ("method.mass_low: 0.2, not 0.1",)
    assert departures(cell.experiment, None) is None
    unseen = changed(cell.experiment, {"seed": 4, "runtime.device": "cpu", "data.unverified": True})
    assert departures(unseen, cell.reference) == (), "the data's own record says whether they are official"


def test_worth_puts_rat_first_the_papers_lengths_first_and_first_seeds_before_later_ones() -> None:
    found = ordered(Choice(data="cifar10"), "")
    assert (found[0].suite, found[0].line.headline, found[0].seed) == ("rat/table1", True, 0)
    papers_ = [cell.suite.partition("/")[0] for cell in found]
    assert papers_ == sorted(papers_, key=["rat", "rwp", "lrat", "taylor"].index)
    rat = [cell for cell in found if cell.suite.startswith("rat/")]
    lengths = [cell.experiment.training.steps or cell.experiment.training.epochs for cell in rat]
    assert lengths == sorted(lengths, reverse=True)
    long = [cell for cell in rat if cell.experiment.training.steps]
    seeds = [cell.seed for cell in long]
    assert seeds == sorted(seeds)
    heads = [bool(cell.line.headline and cell.line.theirs) for cell in long if cell.seed == 0]
    assert heads == sorted(heads, reverse=True)
    with pytest.raises(DemiluneError, match="unknown suite 'rat/tabel'"):
        ordered(Choice(), "rat/tabel")


def test_a_suite_s_lines_are_known_again_in_another_setting() -> None:
    fields = {"model.width": 8, "training.epochs": 3, "data.limit": 15_000}
    here = changed(PRESETS["s30-cifar10-sat"].experiment, fields)
    found = {cell.trained: cell.line.label for cell in placed(named("rat/table1"), here)}
    assert found[trained_key(here)] == "SAT"
    other = changed(
        PRESETS["s30-cifar10-rat"].experiment, {"model.width": 8, "training.epochs": 3, "data.limit": 15_000}
    )
    assert found[trained_key(other)] == "RAT"
    assert trained_key(changed(other, {"method.mass_low": 0.3})) not in found
    assert placed(named("rat/table3"), PRESETS["mnist-sat"].experiment) == ()


def deciding() -> tuple[torch.nn.Module, Split]:
    """Return a network and forty images that it is right on and that are fooled after a step or two."""
    model = tiny(classes=4).eval()
    images = Stream.of(0, "plane-test").uniform("x", (40, 1, 8, 8)).mul(255).round().to(torch.uint8)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(dim=1)
    return model, Split(images, labels, torch.arange(40))


def test_the_plane_holds_its_three_points_and_its_samples_lie_in_the_region() -> None:
    model, split = deciding()
    ball, method = Ball("linf", 0.2), RAT()
    found = plane(model, split, ball, Stream.of(0), method, side=9)
    names = ["0", "1", "2", "3"]
    assert found["taken"]["x"] == found["label"]
    assert found["taken"]["x_f"] != found["label"]
    assert found["points"]["x"] == [0.0, 0.0]
    assert found["points"]["x_e"][1] == pytest.approx(0.0, abs=1e-6)
    assert found["points"]["x_e"][0] > 0
    for point in ("x_f", "x_e"):  # √d ε is a corner of the ball
        assert math.hypot(*found["points"][point]) <= 1.0 + 1e-4
    assert len(found["a"]) == len(found["b"]) == len(found["loss"]) == 9
    # at s = 2 a sample lies up to twice as far as the segment from x_f to x_e
    far = max(math.hypot(*found["points"][point]) for point in ("x_f", "x_e"))
    assert all(math.hypot(*sample) <= 2.0 * far + 1e-3 for sample in found["samples"])
    steps = [(1.0 - mass) / 0.045 for mass in found["mass"]]  # β(s) on the grid of s
    assert all(abs(step - round(step)) < 0.01 and 0 <= round(step) <= 20 for step in steps)
    assert plane(model, split, ball, Stream.of(0), method, side=9) == found, "the same bits"
    again = plane(model, split, ball, Stream.of(0), method, image=found["id"], side=9)
    assert again["id"] == found["id"]
    with pytest.raises(DemiluneError, match="99 is no test image's id; the nearest are 35, 36, 37, 38, 39"):
        plane(model, split, ball, Stream.of(0), method, image=99)
    with pytest.raises(DemiluneError, match="no image spans a plane"):
        plane(model, split, Ball("linf", 1e-6), Stream.of(0), method)
    drawing = draw("RAT", json.loads(json.dumps(found | {"names": names})), "plane-0")
    assert drawing.png.startswith(b"\x89PNG")
    assert f"x is taken for {names[found['label']]}" in drawing.alt


def test_of_several_networks_the_part_is_taken_that_has_a_suite_s_lines() -> None:
    for name, data, title in (("rwp/rst", "cifar10", "WRN-28-10"), ("rwp/trades", "cifar100", "WRN-34-10")):
        part = papers.part("rwp", "AutoAttack", data, "linf", [line.theirs for line in named(name).lines])
        assert part is not None and part["model_title"] == title


def test_points_of_claims_are_those_of_the_published_figures() -> None:
    suite = named("rat/table1")

    def told(data: str) -> dict[str, float | None]:
        found = cells(suite, Choice(data=data))
        part = papers.part("rat", 1, data)
        return {one.text: points(one, suite, part, found) for one in suite.claims}

    assert told("cifar10")["RAT gains PGD-10 accuracy over SAT"] == pytest.approx(22.83)
    assert told("cifar10")["RAT gains clean accuracy over SAT"] == pytest.approx(6.25)
    assert told("cifar10")["RAT is the most robust under PGD-10"] == pytest.approx(70.57 - 62.19)
    assert told("imagenette")["RAT gains clean accuracy over SAT"] == pytest.approx(86.19 - 83.52)
    assert told("cifar10")["our question: RAT is above SAT under AutoAttack"] is None


def test_claims_against_all_others_are_about_all_lines_of_the_suite() -> None:
    suite, choice = named("rat/table2"), Choice(data="cifar10", schedule="paper")
    found = tuple(cell for cell in cells(suite, choice) if cell.line.label in ("RAT", "SAT"))
    (claim,) = sheet(suite, choice, found, Shelf({})).claims
    assert set(claim.lines) == {"RAT", "SAT", "AVM", "TRADES", "ADT", "ST"}


def test_figures_of_others_stand_there_for_orientation_and_are_never_compared() -> None:
    for name in ("rwp/at", "rwp/trades", "rwp/rst", "lrat/attacks", "taylor/table"):
        suite, choice = named(name), settled(named(name), Choice(schedule="paper"))
        assert not papers.table(suite.paper, suite.table).get("comparable", True), name
        made = sheet(suite, choice, cells(suite, choice), Shelf({}))
        assert all(one.points is None for one in made.claims)
        for line in made.lines:
            assert line.departures and "the figures beside are another source's, for orientation" in line.departures


def test_words_name_the_suites_that_begin_with_them_before_those_that_hold_them() -> None:
    assert all(name.startswith("rat/") for name in holding("rat/"))
    assert holding("stationary") == ["rwp/stationary"]
    with pytest.raises(DemiluneError, match="unknown suite 'nothing'"):
        holding("nothing")


def test_ranks_agree_as_spearman_has_it() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 2.0, 2.0]])
    found = spearman(values)
    assert found[0].tolist() == pytest.approx([1.0, 1.0, -1.0, 4.0 / math.sqrt(20.0)])
    assert spearman(values[:, :1]).isnan().all()


def test_margins_are_of_the_image_whatever_its_place_and_agree_with_the_verdicts() -> None:
    model, split = deciding()
    ball = Ball("linf", 0.1)
    found = margins(model, split, ball, Stream.of(0), ("pgd2", "cw2", "apgd_t"))
    assert found is not None and found["attacks"] == ["pgd2", "cw2", "apgd_t"]
    assert found["images"] == found["right"] == len(split)
    entries = entries_of(("pgd2", "apgd_t"), Setting(0.25, "linf", 4))
    x, draws = split.pixels(slice(None)), Stream.of(0).images(split.ids)
    for entry, values in zip(entries, (found["margins"][0], found["margins"][2]), strict=True):
        assert entry.of is not None
        broken = model(entry.of(model, x, split.labels, ball, draws)).argmax(dim=1) != split.labels
        assert int(broken.sum()) > 0
        assert all(value > 0 for value, gone in zip(values, broken.tolist(), strict=True) if gone)
    assert found["standing"] == sum(max(line) <= 0 for line in zip(*found["margins"], strict=True))
    assert margins(model, split, ball, Stream.of(0), ("pgd2",), lambda: True) is None


def test_the_region_counts_and_the_loss_rises_with_gamma() -> None:
    model, split = deciding()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = region(model, split, Ball("linf", 0.2), Stream.of(0))
    assert sum(found["tau"]) == found["found"] > 0 and len(found["tau"]) == 9
    assert all(-1.0 <= value <= 1.0 for value in found["cosine"])
    assert region(model, split, Ball("linf", 1e-6), Stream.of(0))["apart"] == [None, None, None]
    up = rise(model, split, Ball("linf", 0.05), Stream.of(0))
    assert up["loss"] < up["moved"][0] < up["moved"][-1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_where_data_lie_is_asked_of_all_alike_and_the_embedded_ones_lie_nowhere() -> None:
    fields = {"data": {"root": "somewhere", "unverified": True}}
    digits, cifar = PRESETS["digits-sat"].experiment, PRESETS["cifar10-sat"].experiment
    assert over(digits, fields) == digits
    assert over(cifar, fields).data == replace(cifar.data, root="somewhere", unverified=True)  # type: ignore[call-arg]
    with pytest.raises(DemiluneError, match=r"unknown field 'data\.limit'"):
        over(digits, {"data": {"limit": 5}})
