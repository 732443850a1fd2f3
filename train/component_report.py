"""The tables of the components' comparison: a line for each arm, its gains over plain with the same seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from component_arms import NOISE_ARMS, SEEDS, SETUPS
from component_pairs import NOISE
from experiments import RESULTS, Runs

from peg_rag.files import write_atomically


def runs_file(model: str) -> Path:
    return RESULTS / ("components.jsonl" if model == "static" else f"components_{model}.jsonl")


@dataclass(frozen=True)
class Outcome:
    """The runs of an arm at its temperature: by seed the validation score, the evaluation sets' mean and seconds."""

    temperature: float
    validation: dict[int, float]
    evaluation: dict[int, float]
    seconds: float

    @classmethod
    def of(cls, runs: Runs, noise: float, arm: str) -> "Outcome | None":
        """What has run so far; None where nothing has."""
        rows = [row for row in runs if row["noise"] == noise and row["arm"] == arm]
        trained = [row for row in rows if "validation" in row]
        first = [row for row in trained if row["seed"] == SEEDS[0]]
        if not first:
            return None
        best = max(first, key=lambda row: row["validation"])["temperature"]
        chosen = [row for row in trained if row["temperature"] == best]
        scored = [row for row in rows if row["temperature"] == best and "eval" in row]
        return cls(
            best,
            {row["seed"]: row["validation"] for row in chosen},
            {row["seed"]: float(np.mean(list(row["eval"].values()))) for row in scored},
            float(np.mean([row["seconds"] for row in chosen])),
        )


def write_report() -> None:
    """The tables of what has run so far."""
    lines = [
        "# What each component is worth",
        "",
        "Made by `train/component_ablation.py`. nDCG@10: validation is the mean over 24 files, evaluation over ten "
        "sets. The temperature of each arm was chosen on validation with seed 0. Gains, in points, are over plain with "
        "the same seeds: their mean and, after ±, their deviation over the seeds. Seconds are of the processor, for "
        "one run without the evaluation sets. The words, and the guide, are those of the bundled model, which was "
        "trained on these files.",
    ]
    for name, setup in SETUPS.items():
        runs = Runs(runs_file(name))
        lines += ["", f"## {setup.title}", "", setup.description, ""]
        lines += describe_arms(runs, ["plain", "guide", "trust", *setup.arms])
    lines += [
        "",
        "## Noise",
        "",
        "Pairs as they are, and with a fifth of the training rows' positives wrong. Of plain the scores, of the others "
        "the gains over plain on the same pairs: validation / evaluation.",
        "",
        *describe_noise(),
    ]
    write_atomically(RESULTS / "components.md", ("\n".join(lines) + "\n").encode())


def describe_arms(runs: Runs, arms: Sequence[str]) -> Iterator[str]:
    """A line for each arm that has run on pairs as they are."""
    plain = Outcome.of(runs, 0.0, "plain")
    if plain is None:
        yield "Nothing has run on pairs as they are."
        return
    yield "| arm | τ | seeds | validation | gain | evaluation | gain | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for arm in arms:
        outcome = Outcome.of(runs, 0.0, arm)
        if outcome is None:
            continue
        cells = [arm, f"{outcome.temperature:g}", str(len(outcome.validation))]
        for own, others in ((outcome.validation, plain.validation), (outcome.evaluation, plain.evaluation)):
            cells += [format_mean(own), "–" if arm == "plain" else format_gains(own, others)]
        yield "| " + " | ".join([*cells, f"{outcome.seconds:.0f}"]) + " |"


def describe_noise() -> Iterator[str]:
    """A line for each arm, a column for each model and share of wrong positives."""
    columns = [(name, noise) for name in SETUPS for noise in (0.0, NOISE)]
    heads = [f"{SETUPS[name].title.lower()}, {noise:.0%} wrong" for name, noise in columns]
    yield "| arm | " + " | ".join(heads) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    logs = {name: Runs(runs_file(name)) for name in SETUPS}
    for arm in NOISE_ARMS:
        cells = [arm]
        for name, noise in columns:
            outcome = Outcome.of(logs[name], noise, arm)
            plain = Outcome.of(logs[name], noise, "plain")
            cells.append("" if outcome is None or plain is None else describe_cell(arm, outcome, plain))
        yield "| " + " | ".join(cells) + " |"


def describe_cell(arm: str, outcome: Outcome, plain: Outcome) -> str:
    if arm == "plain":
        parts = [format_mean(outcome.validation), format_mean(outcome.evaluation)]
    else:
        parts = [
            format_gains(outcome.validation, plain.validation),
            format_gains(outcome.evaluation, plain.evaluation),
        ]
    return " / ".join(parts)


def format_mean(scores: dict[int, float]) -> str:
    return f"{np.mean(list(scores.values())):.4f}" if scores else ""


def format_gains(scores: dict[int, float], plain: dict[int, float]) -> str:
    """Mean and deviation, in points, over the seeds that both have."""
    gains = [100 * (scores[seed] - plain[seed]) for seed in sorted(scores.keys() & plain.keys())]
    if not gains:
        return ""
    deviation = f" ± {np.std(gains, ddof=1):.2f}" if len(gains) > 1 else ""
    return f"{np.mean(gains):+.2f}{deviation}"
