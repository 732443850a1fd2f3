r"""What each component of a recipe is worth: one arm for each, on a small static model, on clean and on noisy pairs.

Every arm trains the same model on the same number of pairs. The temperature of each arm is chosen first, on the
validation split and one seed; then two further seeds run at it. Noise: a fifth of the training rows has the positive
of another row of its file; validation rows are never touched. All is chosen on validation; the evaluation sets are
scored once for each finished run.

    python train/component_ablation.py --out runs/components

Goes on where it was stopped. Cost: about a minute of one core for an arm and seed.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments import RESULTS, Runs, StaticModel, Words, chinese_sets, data_folder, scores

from peg_rag.evaluation import RetrievalDataset
from peg_rag.files import write_atomically
from peg_rag.training import CleaningOptions, Recipe, clean_pairs, train
from peg_rag.training.data.files import read_rows
from peg_rag.training.data.sampler import in_validation
from peg_rag.training.data.texts import text_key

SOURCES: tuple[str, ...] = (
    "medicine*",
    "insurance*",
    "finance-fin*",
    "law-statutes*",
    "tourism*",
    "web*",
    "science*",
    "film*",
    "music*",
)
SOURCES += ("realestate*", "encyclopedia-cmrc*", "general-sim*", "general-tri*", "news-xwlb*")
ROWS = 20_000  # of each file, at most
NOISE = 0.2
VALIDATION_SHARE = 0.05
BATCH, STEPS, RATE = 512, 240, 0.01
TEMPERATURES = (0.04, 0.08)
SEEDS = (0, 1, 2)

CLEAN_ARMS: dict[str, list[str]] = {
    "plain": [],
    "queue of 4,096": ["loss.candidates=[{kind: queue, size: 4096}]"],
    "momentum, 4,096 documents": ["loss.candidates=[{kind: momentum, documents: 4096}]"],
    "momentum, 1,024 queries, too": ["loss.candidates=[{kind: momentum, documents: 4096, queries: 1024}]"],
    "512 shared documents": ["data.transforms=[{kind: shared_documents, documents: 512}]"],
    "neighbours": ["data.order={kind: neighbours}"],
    "clusters": ["data.order={kind: clusters}"],
    "neighbours, 3 rounds": ["data.order={kind: neighbours}", "rounds=3"],
    "mixing": ["loss.candidates=[{kind: mixing}]"],
    "guide": ["loss.masks=[{kind: guide, model: peg-mini}]"],
    "guide, all comparisons": [
        "loss.masks=[{kind: guide, model: peg-mini, compare: [query_document, document_document, query_query]}]"
    ],
    "mined": ["data.mining={negatives: 5}", "batch.negatives=5"],
    "mined, 3 rounds": ["data.mining={negatives: 5}", "batch.negatives=5", "rounds=3"],
    "mined, 3 rounds, guide": [
        "data.mining={negatives: 5}",
        "batch.negatives=5",
        "rounds=3",
        "loss.masks=[{kind: guide, model: peg-mini}]",
    ],
    "trust": ["loss.trust={}"],
}
NOISY_ARMS: dict[str, list[str]] = {
    "plain": [],
    "margin mask": ["loss.false_negative_margin=0.0"],
    "guide": ["loss.masks=[{kind: guide, model: peg-mini}]"],
    "static": ["loss.progressive={strategy: static}"],
    "trust": ["loss.trust={}"],
    "trust, static": ["loss.trust={}", "loss.progressive={strategy: static}"],
    "cleaned": [],
    "cleaned, trust column": [],
}
FOLDERS = {"cleaned": "cleaned", "cleaned, trust column": "cleaned"}


def prepare_pairs(out: Path, data: Path) -> None:
    """The files of pairs: as they are, with wrong positives, and those cleaned again."""
    for file in sorted({file for pattern in SOURCES for file in (data / "pairs").glob(f"{pattern}.jsonl*")}):
        name = f"{file.name.split('.')[0]}.jsonl"
        if (out / "cleaned" / name).is_file():
            continue
        rows = [row for _, row in read_rows(file) if not isinstance(row, str)][:ROWS]
        pairs = [{"query": row["query"], "positive": row["positive"]} for row in rows if row.get("positive")]
        write_rows(out / "clean" / name, pairs)
        write_rows(out / "noisy" / name, swap_positives(pairs))
        options = CleaningOptions(similarity=None, trust=True)
        clean_pairs(out / "noisy" / name, out / "cleaned" / name, options=options)
        shutil.rmtree(out / "cleaned" / f"{name}.cleaning", ignore_errors=True)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def swap_positives(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A fifth of the rows that are trained on gets the positive of another of them."""
    keys = np.array([text_key(row["query"]) for row in rows], dtype=np.int64)
    training_rows = np.flatnonzero(~in_validation(keys, VALIDATION_SHARE))
    noisy_rows = np.random.default_rng(0).permutation(training_rows)[: int(NOISE * len(training_rows))]
    noisy = [dict(row) for row in rows]
    for row, other in zip(noisy_rows.tolist(), np.roll(noisy_rows, 1).tolist(), strict=True):
        noisy[row]["positive"] = rows[other]["positive"]
    return noisy


def build_recipe(pairs: Path, arm: str, overrides: Sequence[str], temperature: float, seed: int, out: Path) -> Recipe:
    """The recipe of one run."""
    columns = {"weight": "weight"} if arm == "cleaned, trust column" else {}
    tree = {
        "output_dir": str(out),
        "cache_dir": str(out.parent / "cache"),
        "seed": seed,
        "device": "cpu",
        "model": {"max_length": 128, "static": {"dimension": 128, "tokenizer": "peg-mini"}},
        "stages": [
            {
                "name": "arm",
                "steps": STEPS,
                "batch": {"queries": BATCH},
                "data": {"sources": [{"path": f"{pairs}/*.jsonl", "exclude": ["*.removed.jsonl"], "columns": columns}]},
                "loss": {"temperature": temperature, "symmetric": True},
                "optimizer": {"learning_rate": RATE, "max_grad_norm": None},
            }
        ],
        "validation": {"share": VALIDATION_SHARE, "queries_per_source": 300, "distractors": 20_000},
    }
    return Recipe.parse(tree, [f"stages.0.{override}" for override in overrides])


class Experiment:
    """Trains arms and keeps what came of them."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._runs = Runs(RESULTS / "components.jsonl")
        self._sets: list[RetrievalDataset] | None = None
        self._words: Words | None = None

    def run(self, noise: float, arm: str, overrides: Sequence[str], temperature: float, seed: int) -> float:
        """One run, or what is known of it: its score on the validation split."""
        key = {"noise": noise, "arm": arm, "temperature": temperature, "seed": seed}
        if not self._runs.has(key):
            folder = self._out / "run"
            shutil.rmtree(folder, ignore_errors=True)
            pairs = self._out / FOLDERS.get(arm, "noisy" if noise else "clean")
            start = time.process_time()
            result = train(build_recipe(pairs, arm, overrides, temperature, seed, folder), show_progress=True)
            seconds = round(time.process_time() - start, 1)
            validation = result.stages[-1].scores["ndcg@10_by_file"]
            self._runs.add(key | {"validation": validation, "seconds": seconds, "eval": self._score_sets(folder)})
        return next(float(row["validation"]) for row in self._runs if key.items() <= row.items())

    def _score_sets(self, folder: Path) -> dict[str, float]:
        if self._sets is None or self._words is None:
            self._sets = chinese_sets(data_folder())
            self._words = Words(folder / "tokenizer.json")
        return scores(StaticModel.load(folder, self._words), self._sets)

    def write_report(self) -> None:
        """The table of what has run so far."""
        lines = [
            "# What each component is worth",
            "",
            "Made by `train/component_ablation.py`: a static model of 128 dimensions; each arm sees "
            f"{BATCH * STEPS:,} pairs in batches of {BATCH}. Its temperature, out of {TEMPERATURES}, was chosen on "
            "validation with seed 0. ± is the deviation over seeds; seconds are of the processor. Where the pairs were "
            "cleaned the validation rows were cleaned, too: their score does not compare.",
        ]
        for noise, arms in ((0.0, CLEAN_ARMS), (NOISE, NOISY_ARMS)):
            lines += ["", "## Pairs as they are" if not noise else "## A fifth of the positives wrong", ""]
            lines += ["| arm | τ | seeds | validation nDCG@10 | ten evaluation sets | seconds |"]
            lines += ["|---|---:|---:|---:|---:|---:|"]
            lines += [line for arm in arms if (line := self._describe_arm(noise, arm))]
        write_atomically(RESULTS / "components.md", ("\n".join(lines) + "\n").encode())

    def _describe_arm(self, noise: float, arm: str) -> str:
        rows = [row for row in self._runs if row["noise"] == noise and row["arm"] == arm]
        if not rows:
            return ""
        best = max((row for row in rows if row["seed"] == 0), key=lambda row: row["validation"])["temperature"]
        rows = [row for row in rows if row["temperature"] == best]
        validation = format_spread([row["validation"] for row in rows])
        if arm in FOLDERS:
            validation = "–"  # its validation rows were cleaned, too
        evaluation = format_spread([float(np.mean(list(row["eval"].values()))) for row in rows])
        seconds = np.mean([row["seconds"] for row in rows])
        return f"| {arm} | {best} | {len(rows)} | {validation} | {evaluation} | {seconds:.0f} |"


def format_spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_pairs(arguments.out, data_folder())
    experiment = Experiment(arguments.out)
    arms = [
        (noise, arm, overrides)
        for noise, arms in ((NOISE, NOISY_ARMS), (0.0, CLEAN_ARMS))
        for arm, overrides in arms.items()
    ]
    best = {}
    for noise, arm, overrides in arms:
        by_temperature = {t: experiment.run(noise, arm, overrides, t, SEEDS[0]) for t in TEMPERATURES}
        best[noise, arm] = max(by_temperature, key=lambda t: by_temperature[t])
        experiment.write_report()
    for seed in SEEDS[1:]:
        for noise, arm, overrides in arms:
            experiment.run(noise, arm, overrides, best[noise, arm], seed)
            experiment.write_report()


if __name__ == "__main__":
    main()
