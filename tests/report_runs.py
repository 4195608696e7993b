"""Run folders, evaluations and curves for the report's tests: written by hand, with numbers that are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demilune.surveys import Curvature, Direction, Landscape

TITLES = {
    "clean": "Clean",
    "fgsm": "FGSM",
    "pgd10": "PGD-10",
    "cw10": "CW-10",
    "multi9x30": "Multi-targeted 9x30",
    "worst": "Worst case",
}
SAT = {"clean": 0.90, "fgsm": 0.62, "pgd10": 0.55, "cw10": 0.54, "multi9x30": 0.53, "worst": 0.53}
RAT = {"clean": 0.94, "fgsm": 0.75, "pgd10": 0.70, "cw10": 0.62, "multi9x30": 0.55, "worst": 0.55}
STANDARD = {"clean": 0.97, "fgsm": 0.15, "pgd10": 0.0, "cw10": 0.0, "multi9x30": 0.0, "worst": 0.0}
SUMS = {
    "autoattack.apgd_ce": "APGD-CE", "autoattack.apgd_t": "APGD-CE + APGD-T",
    "autoattack.fab_t": "APGD-CE + APGD-T + FAB-T", "autoattack": "AutoAttack",
}  # fmt: skip
WHOLE = SAT | dict.fromkeys(SUMS, 0.53) | {"worst": 0.53}
ASIDE = {"pgd10@scale=10": ("part", 0.55, 200), "unbounded": ("probe", 0.0, 50), "pgd10@eps=0.2": ("probe", 0.1, 200)}


def evaluation(name: str, method: str, rates: Mapping[str, float], n: int = 200, **change: Any) -> dict[str, Any]:
    """Return an evaluation as it was written before there were verdicts, roles and notes."""
    titles = TITLES | SUMS
    rows = [
        {
            "name": row, "title": titles.get(row, row), "attack": f"{row}()", "n": n,
            "right": round(rate * n), "right_after": min(n, round(rate * n) + (row != "clean")),
            "forwards": 1.5, "gradients": 10.0,
        }
        for row, rate in rates.items()
    ]  # fmt: skip
    value = {
        "subject": name, "checkpoint": "best", "architecture": "small, width 16", "parameters": 12345,
        "method": method, "data": "digits", "split": "test", "classes": [str(k) for k in range(10)],
        "data_sha256": {"test_images": "ab" * 32}, "data_official": True, "norm": "linf", "eps": 0.1,
        "randomised": False, "search_precision": "float32", "rows": rows,
        "checks": [
            {"name": "nested", "level": "pass", "text": "the worst case is at most each of its parts"},
            {"name": "pgd below fgsm", "level": "warning", "text": "FGSM is stronger on 2 images"},
        ],
        "seed": 0, "seconds": 12.5, "environment": {"python": "3.12"}, "command": f"demilune evaluate {name}",
    }  # fmt: skip
    return value | change


def doctored(name: str, method: str, aside: Mapping[str, tuple[str, float, int]], **change: Any) -> dict[str, Any]:
    """Return an evaluation with AutoAttack's sums, and besides rows of other roles: (role, accuracy, n)."""
    value = evaluation(name, method, WHOLE, **change)
    for row, (role, rate, n) in aside.items():
        whole = {"name": row, "title": row.upper(), "attack": "one()", "n": n, "right": round(rate * n)}
        value["rows"].append(whole | {"right_after": None, "forwards": 1.0, "gradients": 1.0, "role": role, "note": ""})
    value["rows"].append(value["rows"].pop([row["name"] for row in value["rows"]].index("worst")))
    return value


def per_image(value: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    n = value["rows"][0]["n"]
    order = np.random.default_rng(seed).permutation(n)
    arrays: dict[str, np.ndarray] = {"ids": np.arange(n), "labels": np.arange(n) % 10}
    for row in value["rows"]:
        if row["n"] != n:
            arrays[f"place.{row['name']}"] = np.arange(row["n"]) * (n // row["n"])
            arrays[f"right.{row['name']}"] = np.arange(row["n"]) < row["right"]
            continue
        for reading, count in (("right", row["right"]), ("after", row["right_after"])):
            if count is not None:
                arrays[f"{reading}.{row['name']}"] = np.isin(np.arange(n), order[:count])
    return arrays


def example_images(shape: tuple[int, int, int], eps: float, rows: tuple[str, ...], classes: int = 10) -> dict[str, Any]:
    rng, count = np.random.default_rng(1), 4
    clean = rng.uniform(0.2, 0.8, (count, *shape)).astype(np.float32)
    arrays = {
        "ids": np.arange(count), "labels": np.arange(count), "clean": clean,
        "clean_probabilities": np.eye(classes, dtype=np.float32)[:count] * 0.9,
    }  # fmt: skip
    for row in rows:
        moved = clean + eps * np.sign(rng.standard_normal(clean.shape))
        arrays[f"image.{row}"] = moved.astype(np.float32)
        arrays[f"probabilities.{row}"] = np.eye(classes, dtype=np.float32)[(np.arange(count) + 1) % classes] * 0.6
    return arrays


def write_evaluation(path: Path, value: Mapping[str, Any], seed: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    np.savez(path.with_name(f"{path.stem}.images.npz"), **per_image(value, seed))
    shown = example_images(shape, value["eps"], ("pgd10", "multi9x30"), len(value["classes"]))
    np.savez(path.with_name(f"{path.stem}.gallery.npz"), **shown)
    return path


def write_run(folder: Path, name: str, method: str, rates: Mapping[str, float] | None, **change: Any) -> Path:
    folder.mkdir(parents=True)
    eps = change.get("eps", 0.1)
    model = change.pop("model", {"name": "small", "width": 16})
    experiment = {
        "name": name, "data": {"name": change.get("data", "digits")}, "model": model,
        "method": {"name": method, "attack": {"name": "pgd", "steps": 10, "step_ratio": 0.25}},
        "ball": {"norm": "linf", "eps": eps}, "training": {"epochs": 4, "batch": 128}, "seed": 0,
    }  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(experiment))
    (folder / "environment.json").write_text(json.dumps({"command": f"demilune train {name}"}))
    notes = {"found": 0.6, "tau": 3.1, "first_to_end": 0.4} if method == "rat" else {}
    metrics = [
        {
            "epoch": k, "step": 8 * k, "rate": 0.1 / k, "loss": 2.0 / k, "excess": 0.5 / k,
            "notes": notes | ({"tau": None} if notes and k == 2 else {}), "clean": 0.8 + 0.02 * k,
            "robust": 0.4 + 0.02 * k, "validation_n": 200, "best": k in (1, 3),
            "alarm": "sudden fall" if k == 4 else None,
        }
        for k in range(1, 5)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    times = [{"epoch": k, "seconds": 3.0, "images_per_second": 400.0} for k in range(1, 5)]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    if rates is not None:
        seed, shape = change.pop("draw", 0), change.pop("shape", (1, 8, 8))
        value = evaluation(name, method, rates, **change)
        write_evaluation(folder / "evaluations" / "best.json", value, seed, shape)
    return folder


def paper_run(folder: Path, **change: Any) -> Path:
    setting: dict[str, Any] = {"data": "cifar10", "eps": 8 / 255, "shape": (3, 32, 32), "n": 1000}
    return write_run(folder, "rat on cifar", "rat", RAT, **(setting | change))


def survey_file(*surveys: Direction | Landscape | Curvature, **change: Any) -> dict[str, Any]:
    about = {
        "subject": "rat", "checkpoint": "best", "data": "digits", "data_sha256": {"test_images": "ab" * 32},
        "data_official": True, "split": "test", "seed": 0, "seconds": 1.0, "environment": {},
        "command": "demilune curves rat --only surveys",
    }  # fmt: skip
    return {"surveys": [one.to_json() for one in surveys]} | about | change


def survey_values() -> tuple[Direction, Landscape, Landscape, Curvature]:
    places, n = (-1.0, 0.0, 1.0), 20
    way = Direction(
        (0.0, 1.0, 2.0), (0.1, 1.0, 2.0), (0.1,) * 3, (0.5,), ((0.1,), (0.9,), (1.8,)), (20, 8, 1), (0.9, 0.4, 0.1),
        (0.1, 0.5, 0.6), n, 25, "RAT()", "linf", 0.1,
    )  # fmt: skip
    grid, right = tuple(tuple(a * a + b for b in places) for a in places), ((20, 10, 0),) * 3
    plane = Landscape("input", ("to the attack", "random"), places, places, grid, right, n, "clean", 0.0, "linf", 0.1)
    line = Landscape(
        "weights", ("random", "none"), places, (0.0,), ((1.0,), (0.5,), (1.0,)), ((1,), (9,), (2,)), n, "clean", 0.0,
        "linf", 0.1,
    )  # fmt: skip
    bend = Curvature("weights", "clean", (12.5,), 1000, n, 9, 1e-4, 1e-3, 1e-6, "linf", 0.1)
    return way, plane, line, bend


def curve_files() -> dict[str, dict[str, Any]]:
    """Return what a run's folder of curves holds, by name."""

    def rows(prefix: str, keys: tuple[object, ...]) -> dict[str, float]:
        return {"clean": 0.9} | {f"{prefix}.{key}": 0.9 - 0.05 * i for i, key in enumerate(keys)} | {"worst": 0.5}

    def measured(rates: Mapping[str, float], kind: str, **change: Any) -> dict[str, Any]:
        return evaluation("rat", "rat", rates, **change) | {"command": f"demilune curves rat --only {kind}"}

    way, plane, line, bend = survey_values()
    noted = measured(rows("corruption", ("snow.1", "fog.2")), "corruptions")
    noted["rows"][1]["note"] = "missing: frost (needs photographs: --frost DIR)"
    return {
        "best_iterations": measured(rows("iterations", (1, 2, "1_any")), "iterations"),
        "best_budgets": measured(rows("budget.pgd10", (1, 8, 16)), "budgets"),
        "best_corruptions": noted,
        "best_gaps_n200": measured({"clean": 0.9, "pgd10": 0.5, "worst": 0.5}, "gaps"),
        "best_train_gaps_n400": measured({"clean": 1.0, "pgd10": 0.8, "worst": 0.8}, "gaps", split="train", n=400),
        "best_direction_n25": survey_file(way),
        "best_landscape": survey_file(plane, line),
        "best_curvature": survey_file(bend),
        "best_crosscheck": {"kind": "agreement", "rows": []},
    }


def write_curves(run: Path, curves: Mapping[str, Mapping[str, Any]]) -> Path:
    (run / "curves").mkdir()
    for name, value in curves.items():
        (run / "curves" / f"{name}.json").write_text(json.dumps(value))
    return run
