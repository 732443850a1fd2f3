"""Same data, same wall-clock, same architecture: our recipe and sentence-transformers' best for the same task.

Both train a new static model (same words, same first weights, same training rows with five mined negatives) for the
same number of seconds on one core. Theirs: `MultipleNegativesRankingLoss` (its cached form refuses static models, for
which it would save nothing), no duplicates in a batch, batches of one data set, with hard negatives. Ours:
`recipes/ablation.yaml` with five negatives. Each side's batch size and learning rate are chosen on the validation split
with the first seed: all of them in a third of the time, the best three in the whole. Then the other seed is run. We
read and tokenise everything before the first step and they each batch as it comes, so our preparation, from an empty
cache, is taken off our seconds.

    PEG_MINED=runs/mined python train/against_sentence_transformers.py --out runs/against   # see ablation.py for mining

Goes on where it was stopped. Cost: about fifty minutes of one core at the default of 120 s a run.
"""

import argparse
import itertools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import RESULTS, Runs, StaticModel, Words, chinese_sets, data_folder, scores
from safetensors.torch import save_file

from peg_rag.evaluation import RetrievalDataset, evaluate
from peg_rag.training import Recipe, train
from peg_rag.training.data.pairs import load_pairs, pair_texts
from peg_rag.training.model.encoder import build_encoder
from peg_rag.training.recipe import expand_path
from peg_rag.training.run.validation import retrieval_validation, split_rows

RECIPE = Path(__file__).parent / "recipes" / "ablation.yaml"
NEGATIVES, SCALE = 5, 25.0  # the temperature of the recipe is 1/25
BATCHES, RATES = (512, 2_048), (0.003, 0.01, 0.03, 0.1)
SEEDS = (0, 1)
FINALISTS = 3
SIDES = ("sentence-transformers", "peg-rag")
PROBE_STEPS = (2, 8)


@dataclass(frozen=True)
class Task:
    """What both sides are given: rows by file, and the validation set. `preparation_s`: of ours, before any step."""

    recipe: Recipe
    preparation_s: float
    rows: dict[str, list[dict[str, Any]]]
    validation: RetrievalDataset
    words: Words

    @classmethod
    def of(cls, recipe: Recipe) -> "Task":
        torch.manual_seed(0)
        cache = empty_folder(expand_path(recipe.cache_dir))
        encoder = build_encoder(recipe.model, recipe.stages[0].data.sources, cache)
        start = time.perf_counter()
        files = load_pairs(recipe.stages[0].data.sources, encoder.tokenizer, cache)
        split = split_rows(files, recipe.validation)
        preparation_s = time.perf_counter() - start
        rows = {file.name: pair_texts(file, indices) for file, indices in zip(files, split.training, strict=True)}
        validation = retrieval_validation(files, split, recipe.validation.distractors)
        assert validation is not None
        folder = Path(recipe.output_dir) / "words"
        encoder.save(folder)
        return cls(
            recipe, preparation_s, rows, validation, Words(folder / "tokenizer.json", recipe.model.max_length or 512)
        )

    def score(self, folder: Path) -> float:
        """nDCG@10 on the validation split, the mean of the files' means."""
        result = evaluate(StaticModel.load(folder, self.words), self.validation)
        files = np.array([int(query.split("/")[0]) for query in result.query_ids])
        values = result.values["nDCG@10"]
        return float(np.mean([values[files == number].mean() for number in np.unique(files)]))


def train_ours(task: Task, out: Path, queries: int, rate: float, steps: int, seed: int) -> float:
    """Train → seconds of the training loop."""
    overrides = {
        "output_dir": str(out),
        "seed": seed,
        "stages.0.steps": steps,
        "stages.0.batch": json.dumps({"queries": queries, "negatives": NEGATIVES}),
        "stages.0.optimizer.learning_rate": rate,
    }
    tree = task.recipe.model_dump(mode="json")
    recipe = Recipe.parse(tree, [f"{key}={value}" for key, value in overrides.items()])
    train(recipe, show_progress=True)
    history = json.loads((out / "stages" / "1-arm" / "history.json").read_text(encoding="utf-8"))["log_history"]
    return float(next(entry["train_runtime"] for entry in history if "train_runtime" in entry))


def train_theirs(task: Task, out: Path, queries: int, rate: float, steps: int, seed: int) -> float:
    """The same by their trainer."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(seed)
    encoder = build_encoder(task.recipe.model, [], out)
    weight = encoder.body.get_parameter("weight").detach()
    body = StaticEmbedding(encoder.tokenizer, embedding_weights=weight.numpy())
    model = SentenceTransformer(modules=[body], device="cpu")
    columns = {name: Dataset.from_list(their_rows(rows)) for name, rows in task.rows.items() if len(rows) >= 16}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=queries,
        learning_rate=rate,
        warmup_steps=0,
        max_grad_norm=0.0,
        lr_scheduler_type="linear",
        batch_sampler="no_duplicates",
        multi_dataset_batch_sampler="proportional",
        seed=seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=SCALE)
    result = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=columns, loss=loss).train()
    save_file({"embedding.weight": body.embedding.weight.detach().contiguous()}, out / "model.safetensors")
    return float(result.metrics["train_runtime"])


def their_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A column for each negative; a row that has fewer repeats its own, one without borrows an answer."""
    filled_rows = []
    for i, row in enumerate(rows):
        negatives = row["negatives"] or [rows[i - 1]["positive"]]
        repeated = itertools.islice(itertools.cycle(negatives), NEGATIVES)
        columns = {f"negative_{n}": text for n, text in enumerate(repeated)}
        filled_rows.append({"anchor": row["query"], "positive": row["positive"], **columns})
    return filled_rows


TRAINERS = {"sentence-transformers": train_theirs, "peg-rag": train_ours}


def train_for(side: str, task: Task, out: Path, queries: int, rate: float, seed: int, seconds: float) -> dict[str, Any]:
    """Train for so many seconds: two probes tell how many steps fit, so that the learning rate falls to 0 in time."""
    run = TRAINERS[side]
    short_s, long_s = (run(task, empty_folder(out / "probe"), queries, rate, steps, seed) for steps in PROBE_STEPS)
    step_s = (long_s - short_s) / (PROBE_STEPS[1] - PROBE_STEPS[0])
    start_s = max(short_s - PROBE_STEPS[0] * step_s, 0.0)
    steps = max(int((seconds - start_s) / step_s), 2)
    loop_s = run(task, empty_folder(out / side), queries, rate, steps, seed)
    result = {"steps": steps, "pairs": steps * queries, "seconds": round(loop_s, 1)}
    return result | {"validation": task.score(out / side)}


def empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--set", dest="extra", action="append", default=[], help="key=value of the recipe")
    arguments = parser.parse_args()
    data = data_folder()
    folders = [f"output_dir={arguments.out}", f"cache_dir={arguments.out / 'cache'}"]
    task = Task.of(Recipe.load(RECIPE, [*arguments.extra, *folders]))
    print(f"our preparation takes {task.preparation_s:.0f} s")
    runs, sets = Runs(RESULTS / "against_sentence_transformers.jsonl"), chinese_sets(data)
    for side, queries, rate in itertools.product(SIDES, BATCHES, RATES):
        key = {"kind": "search", "side": side, "queries": queries, "rate": rate}
        if not runs.has(key):
            runs.add(key | train_for(side, task, arguments.out, queries, rate, 0, arguments.seconds / 3))
    for side in SIDES:
        searched = [row for row in runs if row["kind"] == "search" and row["side"] == side]
        finalists = sorted(searched, key=validation, reverse=True)[:FINALISTS]
        finals = [
            in_full(runs, task, arguments, sets, side, row["queries"], row["rate"], SEEDS[0]) for row in finalists
        ]
        best = max(finals, key=validation)
        for seed in SEEDS[1:]:
            in_full(runs, task, arguments, sets, side, best["queries"], best["rate"], seed)
    write_table(runs)


def in_full(
    runs: Runs,
    task: Task,
    arguments: argparse.Namespace,
    sets: list[RetrievalDataset],
    side: str,
    queries: int,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """A run of the whole time, unless it was made before."""
    key = {"kind": "run", "side": side, "seed": seed, "queries": queries, "rate": rate}
    if not runs.has(key):
        before = {"preparation": task.preparation_s if side == "peg-rag" else 0.0}
        seconds = arguments.seconds - before["preparation"]
        result = train_for(side, task, arguments.out, queries, rate, seed, seconds)
        runs.add(key | before | result | {"eval": scores(StaticModel.load(arguments.out / side, task.words), sets)})
    return next(row for row in runs if key.items() <= row.items())


def validation(row: dict[str, Any]) -> float:
    return float(row["validation"])


def write_table(runs: Runs) -> None:
    lines = [
        "# The same seconds",
        "",
        "Made by `train/against_sentence_transformers.py`; mean ± deviation over seeds.",
        "",
    ]
    lines += ["| | batch | learning rate | pairs seen | seconds before | of steps | validation | ten evaluation sets |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    for side in SIDES:
        everything = [row for row in runs if row["kind"] == "run" and row["side"] == side]
        best = max((row for row in everything if row["seed"] == SEEDS[0]), key=validation)
        rows = [row for row in everything if all(row[key] == best[key] for key in ("queries", "rate"))]
        means = [np.mean(list(row["eval"].values())) for row in rows]
        cells = [side, f"{rows[0]['queries']:,}", rows[0]["rate"], f"{np.mean([r['pairs'] for r in rows]):,.0f}"]
        cells += [f"{np.mean([r[key] for r in rows]):.0f}" for key in ("preparation", "seconds")]
        cells += [
            f"{np.mean(v):.4f} ± {np.std(v, ddof=1) if len(v) > 1 else 0:.4f}"
            for v in ([r["validation"] for r in rows], means)
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "against_sentence_transformers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
