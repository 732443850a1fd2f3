"""Do progressive weights pay for a transformer? Dozens of runs of a minute's work on one accelerator, by the clock.

A transformer of 2 layers × 128 on top of a static model of one half of the domains (`pack_halves.py`), reduced to 128
dimensions; 1,000 steps of 256 pairs with five mined negatives each. First the learning rate, then the temperature of
each arm, on validation and one seed; then each arm at its temperature with three other seeds, arms with a fifth of the
positives shuffled, and negatives mined anew during the run. The evaluation sets are scored after each run, only to
report. Runs are made in that order until the seconds are used up.

    python ablation_transformer.py --data half-b.npz --out results --seconds 360

Writes `ablation.jsonl` after each run, and nDCG@10 of each query to `ablation.npz`, for paired tests; a run that is in
there is not made again. A rehearsal on a CPU: `--seconds 90 --steps 6 --queries 16 --pairs 300 --few`.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from residual import (
    Batches,
    Lab,
    Pack,
    Plan,
    ResidualEncoder,
    Shape,
    Source,
    Task,
    load_pack,
    main_directions,
    prepare_device,
    synchronize,
)

SHAPE = Shape(layers=2, width=128, heads=4, inner=512, positions=96)
WIDTHS = (32, 64, 96)
QUERY_WIDTH = 32
NEGATIVES = 5
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
TEMPERATURES = (0.03, 0.05, 0.1)
SEEDS = (1, 2, 3)
MORE_SEEDS = (4, 5)
NOISE = 0.2
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "static": {"strategy": "static"},
    "linear": {"strategy": "linear"},
    "curricular": {"strategy": "curricular"},
    "trust": {"trust": True},
    "trust + linear": {"trust": True, "strategy": "linear"},
}
NOISY_ARMS = ("none", "static", "trust", "trust + linear")


@dataclass(frozen=True)
class Job:
    """A run: its part of the experiment, its arm, and what it does."""

    part: str
    arm: str
    plan: Plan

    @property
    def key(self) -> str:
        plan = self.plan
        return f"{self.part}/{self.arm}/{plan.rate:g}/{plan.temperature:g}/{plan.seed}"


class Results:
    """Finished runs; written after each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = folder / "ablation.jsonl"
        self._arrays_file = folder / "ablation.npz"
        self.rows: list[dict[str, Any]] = []
        self._arrays: dict[str, NDArray[Any]] = {}
        if self._lines.is_file() and self._arrays_file.is_file():
            self.rows = [json.loads(line) for line in self._lines.read_text(encoding="utf-8").splitlines()]
            with np.load(self._arrays_file) as arrays:
                self._arrays = dict(arrays)

    def has(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def add(self, row: dict[str, Any], queries: NDArray[Any]) -> None:
        self._arrays[row["key"].replace("/", "|")] = queries.astype(np.float16)
        np.savez(self._arrays_file, allow_pickle=False, **self._arrays)
        self.rows.append(row)
        with self._lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def part(self, part: str, arm: str | None = None) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["part"] == part and arm in (None, row["arm"])]

    def best(self, part: str, arm: str | None = None) -> dict[str, Any]:
        return max(self.part(part, arm), key=lambda row: row["validation"])

    def best_arm(self) -> str:
        """By validation, over the seeds that every arm has."""
        means = {arm: np.mean([row["validation"] for row in self.part("seeds", arm)]) for arm in ARMS}
        return max(means, key=lambda arm: means[arm])


def plan_jobs(results: Results, steps: int) -> Iterator[Job]:
    """All runs, in order of what they are worth; later ones are chosen by the results of earlier ones."""
    for rate in RATES:
        yield Job("rate", "none", Plan(steps, rate, seed=9))
    rate = results.best("rate")["rate"]
    for temperature in TEMPERATURES:
        for arm, options in ARMS.items():
            yield Job("temperature", arm, Plan(steps, rate, temperature=temperature, **options))

    def job(part: str, arm: str, seed: int, **changes: Any) -> Job:
        temperature = results.best("temperature", arm)["temperature"]
        return Job(part, arm, Plan(steps, rate, seed, temperature=temperature, **ARMS[arm], **changes))

    for seed in SEEDS:
        for arm in ARMS:
            yield job("seeds", arm, seed)
    best = results.best_arm()
    for seed in SEEDS:
        for arm in dict.fromkeys([*NOISY_ARMS, best]):
            yield job("noise", arm, seed, noise=NOISE)
    for seed in SEEDS:
        for arm in dict.fromkeys(["none", best]):
            yield job("remine", arm, seed, remine=(1 / 3, 2 / 3))
    for seed in MORE_SEEDS:
        for arm in ARMS:
            yield job("seeds", arm, seed)
    for seed in SEEDS:
        for arm in ARMS:
            if arm not in (*NOISY_ARMS, best):
                yield job("noise", arm, seed, noise=NOISE)


def score_all(lab: Lab) -> tuple[dict[str, Any], NDArray[Any]]:
    """Means by source and set, and every query's value in that order."""
    scores = {
        task.name: lab.score(task, query_limit=QUERY_WIDTH, limit=WIDTHS[-1]).ndcg
        for task in (*lab.pack.validation, *lab.pack.evaluation)
    }
    means = {name: round(float(values.mean()), 5) for name, values in scores.items()}
    summary = {
        kind: np.mean([value for name, value in means.items() if name.startswith(f"{kind}/")])
        for kind in ("known", "new")
    }
    summary["validation"] = (summary["known"] + summary["new"]) / 2
    rounded = {name: round(float(value), 5) for name, value in summary.items()}
    return {**rounded, "scores": means}, np.concatenate(list(scores.values()))


def cut_pack(pack: Pack, pairs: int, few: bool) -> Pack:
    """The first pairs of each source, for a rehearsal; `few` leaves one evaluation set and three validation sources."""
    keep = [torch.arange(s.start, min(s.end, s.start + pairs), device=pack.queries.device) for s in pack.sources]
    ends = np.cumsum([len(rows) for rows in keep]).tolist()
    sources = [
        Source(s.name, end - len(rows), end, s.width) for s, rows, end in zip(pack.sources, keep, ends, strict=True)
    ]
    rows = torch.cat(keep)
    validation, evaluation = pack.validation, pack.evaluation
    if few:
        validation = [cut_task(task) for task in pack.validation[:: max(1, len(pack.validation) // 3)]]
        evaluation = [cut_task(pack.evaluation[-1])]
    return dataclasses.replace(
        pack,
        sources=sources,
        queries=pack.queries[rows],
        positives=pack.positives[rows],
        validation=validation,
        evaluation=evaluation,
    )


def cut_task(task: Task, queries: int = 30, documents: int = 300) -> Task:
    """The first queries and documents."""
    answers = task.answers[(task.answers[:, 0] < queries) & (task.answers[:, 1] < documents)]
    return dataclasses.replace(task, queries=task.queries[:queries], corpus=task.corpus[:documents], answers=answers)


def build_lab(arguments: argparse.Namespace, device: torch.device) -> Lab:
    pack = load_pack(arguments.data, device, widths=WIDTHS)
    if arguments.pairs:
        pack = cut_pack(pack, arguments.pairs, arguments.few)
    torch.manual_seed(0)
    directions = main_directions(pack, SHAPE.width)
    table = pack.table @ directions  # (tokens + 1, width)
    start = torch.eye(SHAPE.width, device=device)  # the table is in these directions already
    model = ResidualEncoder(table, start, SHAPE, train_table=True).to(device)
    batches = Batches(dict.fromkeys(WIDTHS, arguments.queries), NEGATIVES, QUERY_WIDTH)
    return Lab(pack, model, batches, most_steps=arguments.steps, graphs=arguments.graphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=0, help="of a source at most; 0: all")
    parser.add_argument("--few", action="store_true", help="score few queries only, for a rehearsal")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    device = prepare_device()
    results = Results(arguments.out)
    lab = build_lab(arguments, device)
    layout = {task.name: len(task.queries) for task in (*lab.pack.validation, *lab.pack.evaluation)}
    (arguments.out / "layout.json").write_text(json.dumps(layout), encoding="utf-8")
    if not results.has("start"):
        summary, queries = score_all(lab)
        results.add({"key": "start", "part": "start", "arm": "static model", **summary}, queries)
        print(f"start: known {summary['known']:.4f} new {summary['new']:.4f}", flush=True)
    longest = 0.0
    for job in plan_jobs(results, arguments.steps):
        if results.has(job.key):
            continue
        begin = time.monotonic()
        if begin + longest > deadline:
            print(f"out of time before {job.key}", flush=True)
            break
        lab.train(job.plan)
        synchronize(device)
        trained = time.monotonic() - begin
        summary, queries = score_all(lab)
        longest = max(longest, time.monotonic() - begin) if results.part("rate") else 0.0
        tail = lab.losses[job.plan.steps * 9 // 10 : job.plan.steps].mean().item()
        row = {"key": job.key, "part": job.part, "arm": job.arm, **dataclasses.asdict(job.plan), **summary}
        results.add(row | {"loss": round(tail, 4), "seconds": round(trained, 2)}, queries)
        print(
            f"{job.key}: known {summary['known']:.4f} new {summary['new']:.4f} loss {tail:.3f}"
            f" {trained:.1f} s, {time.monotonic() - begin:.1f} with scores",
            flush=True,
        )


if __name__ == "__main__":
    main()
