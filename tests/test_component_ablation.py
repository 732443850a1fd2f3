"""The experiment with an arm for each training component: its pairs, recipes and tables."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPO / "train")
    return importlib.import_module


def test_a_fifth_of_the_training_rows_has_the_positive_of_another(load: Any) -> None:
    pairs = load("component_pairs")
    rows = [{"query": f"问题{i}", "positive": f"答案{i}"} for i in range(500)]
    validation = pairs.hold_out(rows, 0.15)
    noisy = pairs.swap_positives(rows, ~validation)
    changed = np.array([one != other for one, other in zip(rows, noisy, strict=True)])
    assert changed.sum() == int(0.2 * (~validation).sum())
    assert not (changed & validation).any()
    assert [row["query"] for row in noisy] == [row["query"] for row in rows]
    assert sorted(row["positive"] for row in noisy) == sorted(row["positive"] for row in rows)


def test_cleaned_pairs_keep_their_validation_rows(load: Any) -> None:
    pairs = load("component_pairs")
    rows = [{"query": f"问题{i}", "positive": f"答案{i}"} for i in range(6)]
    cleaned = [{**rows[i], "weight": 0.5} for i in (0, 2, 3)]
    kept = pairs.put_back(cleaned, [rows[3], rows[4]])
    assert [row["query"] for row in kept] == ["问题0", "问题2", "问题3", "问题4"]
    assert [row["weight"] for row in kept] == [0.5, 0.5, 1.0, 1.0]


def test_every_arm_is_a_valid_recipe_and_has_its_place(load: Any, tmp_path: Path) -> None:
    arms = load("component_arms")
    for setup in (kind(tmp_path) for kind in arms.SETUPS.values()):
        assert len(set(setup.order)) == len(setup.order)
        assert {arm for _, arm in setup.order} >= {"plain", *setup.arms}
        places = {arm: place for place, arm in enumerate(setup.order)}
        for noise, arm in setup.order:
            assert places[noise, "plain"] <= places[noise, arm]  # what an arm is compared with comes first
            overrides = {**arms.NOISE_ARMS, **setup.arms}[arm]
            job = arms.Job(noise, arm, overrides, setup.temperatures[0], seed=1)
            (stage,) = setup.build_recipe(job, tmp_path / "run").stages
            assert (stage.steps, stage.batch.queries) == (setup.steps, setup.batch)
            source = stage.data.sources[0]
            folder = {0.0: "clean", 0.2: "noisy"}[noise] + ("-cleaned" if arm.startswith("cleaned") else "")
            assert Path(source.path).parent == setup.out / folder


def test_gains_are_over_plain_with_the_same_seeds(load: Any, tmp_path: Path) -> None:
    report, experiments = load("component_report"), load("experiments")
    scores = {  # by arm and temperature: validation and evaluation by seed; the best of seed 0 is what counts
        ("plain", 0.08): ([0.70, 0.71, 0.72], [0.50, 0.50, 0.50]),
        ("plain", 0.04): ([0.69], []),
        ("mixing", 0.08): ([0.69], []),
        ("mixing", 0.04): ([0.71, 0.73], [0.50, 0.51]),
    }
    rows = []
    for (arm, temperature), (validation, evaluation) in scores.items():
        key = {"noise": 0.0, "arm": arm, "temperature": temperature}
        rows += [{**key, "seed": seed, "validation": score, "seconds": 5} for seed, score in enumerate(validation)]
        rows += [{**key, "seed": seed, "eval": {"a": score, "b": score}} for seed, score in enumerate(evaluation)]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    lines = list(report.describe_arms(experiments.Runs(file), ["plain", "mixing", "queue"]))
    assert lines[2:] == [
        "| plain | 0.08 | 3 | 0.7100 | – | 0.5000 | – | 5 |",
        "| mixing | 0.04 | 2 | 0.7200 | +1.50 ± 0.71 | 0.5050 | +0.50 ± 0.71 | 5 |",
    ]
