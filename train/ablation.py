r"""Does progressive learning pay? Batch size, hard negatives, strategies and query weights, one after the other.

Every arm sees the same number of pairs with the same model. The learning rate of each batch size is chosen first, on
the validation split and one seed; then each arm runs with three seeds, those with negatives at the batch size that was
best without. All is chosen on validation; the evaluation sets are scored once for each finished run.

    cd $PEG_DATA/pairs; for f in medicine* insurance* finance-fin* finance-disc* finance-atec* law-statutes* \
        tourism* web* science* film* music* realestate* encyclopedia-cmrc* general-sim* general-tri* news-xwlb*; do
      peg-rag mine $f -o ~/runs/mined/$f --negatives 8 --model peg-mini
    done
    PEG_MINED=~/runs/mined python train/ablation.py --out runs/ablation

Goes on where it was stopped. Cost: about half a minute of one core for an arm without negatives, a minute with five.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from experiments import RESULTS, Runs, StaticModel, Words, chinese_sets, data_folder, scores

from peg_rag.training import Recipe, train

RECIPE = Path(__file__).parent / "recipes" / "ablation.yaml"
PAIRS = 122_880  # that each arm sees
BATCHES = (64, 512, 4_096)
RATES = (0.003, 0.01, 0.03)
SEEDS = (0, 1, 2)
NEGATIVES: dict[str, dict[str, Any]] = {
    "five negatives": {},
    "+ static": {"strategy": "static"},
    "+ linear": {"strategy": "linear"},
    "+ cosine": {"strategy": "cosine"},
    "+ curricular": {"strategy": "curricular"},
}


def run(name: str, overrides: list[str], seed: int, out: Path) -> tuple[Path, dict[str, Any]]:
    """Train one arm → its folder, and its validation score and seconds."""
    folder = out / f"{name.replace(' ', '_').replace('+', 'plus')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = Recipe.load(RECIPE, [*overrides, f"seed={seed}", f"output_dir={folder}"])
    start = time.perf_counter()
    result = train(recipe, show_progress=True)
    seconds = time.perf_counter() - start
    return folder, {"seconds": round(seconds, 1), "validation": result.stages[-1].scores["ndcg@10_by_file"]}


def batch_overrides(queries: int, rate: float) -> list[str]:
    size = [f"stages.0.batch.queries={queries}", f"stages.0.steps={PAIRS // queries}"]
    return [*size, f"stages.0.optimizer.learning_rate={rate}"]


def best_rate(runs: Runs, queries: int) -> float:
    candidates = [row for row in runs if row["kind"] == "rate" and row["queries"] == queries]
    return float(max(candidates, key=lambda row: row["validation"])["rate"])


def best_batch(runs: Runs) -> int:
    candidates = [row for row in runs if row["kind"] == "rate"]
    return int(max(candidates, key=lambda row: row["validation"])["queries"])


def search_rates(runs: Runs, out: Path, extra: list[str]) -> None:
    for queries in BATCHES:
        for rate in RATES:
            key = {"kind": "rate", "queries": queries, "rate": rate}
            if not runs.has(key):
                _, result = run("rate", [*batch_overrides(queries, rate), *extra], 0, out)
                runs.add(key | result)


def arms(runs: Runs) -> dict[str, list[str]]:
    """Name → what the arm changes in the recipe."""
    plain = {f"batch {queries:,}": batch_overrides(queries, best_rate(runs, queries)) for queries in BATCHES}
    best = best_batch(runs)
    common = [*batch_overrides(best, best_rate(runs, best)), "stages.0.batch.negatives=5"]
    return plain | {
        name: [*common, *(f"stages.0.loss.progressive.{key}={value}" for key, value in options.items())]
        for name, options in NEGATIVES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="extra", action="append", default=[], help="key=value of the recipe")
    arguments = parser.parse_args()
    runs, data = Runs(RESULTS / "ablation.jsonl"), data_folder()
    search_rates(runs, arguments.out, arguments.extra)
    sets, words = chinese_sets(data), None
    for seed in SEEDS:
        for name, overrides in arms(runs).items():
            key = {"kind": "arm", "arm": name, "seed": seed}
            if runs.has(key):
                continue
            folder, result = run(name, [*overrides, *arguments.extra], seed, arguments.out)
            words = words or Words(folder / "tokenizer.json")
            runs.add(key | result | {"eval": scores(StaticModel.load(folder, words), sets)})
            report(runs)


def report(runs: Runs) -> None:
    """The table, and a picture of it."""
    rows = [row for row in runs if row["kind"] == "arm"]
    names = list(dict.fromkeys(row["arm"] for row in rows))
    summary = {name: summarise([row for row in rows if row["arm"] == name]) for name in names}
    lines = [
        "# Does progressive learning pay?",
        "",
        f"Made by `train/ablation.py`; {PAIRS:,} pairs seen by each arm.",
        "",
    ]
    lines += [
        "| arm | seeds | validation nDCG@10 | evaluation nDCG@10 (ten sets) | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (n, validation, evaluation, seconds) in summary.items():
        lines.append(f"| {name} | {n} | {spread(validation)} | {spread(evaluation)} | {np.mean(seconds):.0f} |")
    rates = [f"{queries:,}: {best_rate(runs, queries)}" for queries in BATCHES]
    lines += ["", f"Arms with negatives: batches of {best_batch(runs):,}."]
    lines += ["", f"Learning rate chosen for each batch size on validation, out of {RATES}: {'; '.join(rates)}."]
    (RESULTS / "ablation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(summary, RESULTS / "ablation.png")


Summary = tuple[int, list[float], list[float], list[float]]


def summarise(rows: list[dict[str, Any]]) -> Summary:
    """Seeds, and of each its validation score, its mean over the evaluation sets, and its seconds."""
    evaluation = [float(np.mean(list(row["eval"].values()))) for row in rows]
    return len(rows), [row["validation"] for row in rows], evaluation, [row["seconds"] for row in rows]


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"


def draw(summary: dict[str, Summary], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    places = np.arange(len(summary))
    columns = {
        "validation split": [validation for _, validation, _, _ in summary.values()],
        "ten evaluation sets": [evaluation for _, _, evaluation, _ in summary.values()],
    }
    for axis, (title, values) in zip(axes, columns.items(), strict=True):
        means, spreads = [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
        axis.errorbar(means, places, xerr=spreads, fmt="o", capsize=3)
        for place, seed_values in zip(places, values, strict=True):
            axis.plot(seed_values, [place] * len(seed_values), "|", color="grey")
        axis.set(title=title, xlabel="nDCG@10 (mean ± deviation over seeds)", yticks=places, yticklabels=list(summary))
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
