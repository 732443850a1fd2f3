r"""What each component of a recipe is worth: one arm for each, on a static model and on a small transformer.

All arms of a model train on the same number of pairs, from the same start. The temperature of each arm is chosen first,
on the validation split and one seed; then two further seeds run at it. Noise: a fifth of the training rows has the
positive of another row of its file; validation rows are neither changed nor cleaned. All is chosen on validation; the
evaluation sets are only scored.

The static model starts from random vectors. The transformer starts from one that was trained on other queries of the
same files, since from nothing it would learn little in the seconds that an arm has: three quarters of the queries are
for that, and the arms have some of the others. An arm of it is short, so that two temperatures can be tried; `longer`
runs those that matter six times as long, at one temperature.

    python train/component_ablation.py --out runs/components --model static
    python train/component_ablation.py --out runs/components --model transformer
    python train/component_ablation.py --out runs/components --model longer

Goes on where it was stopped. Cost on one core: static, 10 to 230 s for a run, two hours in all; transformer, six
minutes for the start and 20 to 60 s for a run, an hour in all; longer, a minute for a run, an hour in all. `--report`
writes the tables alone.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from component_arms import CLEANED_ARMS, NOISE_ARMS, SEEDS, SETUPS, Job, Setup
from component_report import runs_file, write_report
from experiments import Runs, data_folder

from peg_rag.training import train


class Experiment:
    """Trains the arms of one model and keeps what came of them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._runs = Runs(runs_file(setup.name))

    def run_all(self) -> None:
        """Each arm at each temperature with one seed, then at its best one with the others."""
        for noise, arm in self._setup.order:
            if arm in CLEANED_ARMS:
                self._setup.clean("noisy" if noise else "clean")
            trials = {t: self._job(noise, arm, t, SEEDS[0]) for t in self._setup.temperatures}
            validation = {t: self._train_arm(job) for t, job in trials.items()}
            best = max(validation, key=lambda t: validation[t])
            for job in (trials[best], *(self._job(noise, arm, best, seed) for seed in SEEDS[1:])):
                self._train_arm(job)
                self._score_arm(job)
            shutil.rmtree(self._setup.out / "runs", ignore_errors=True)
            write_report()

    def _job(self, noise: float, arm: str, temperature: float, seed: int) -> Job:
        overrides = {**NOISE_ARMS, **self._setup.arms}[arm]
        return Job(noise, arm, overrides, temperature, seed)

    def _train_arm(self, job: Job) -> float:
        """The score of a run on the validation split; it is made unless it is known."""
        row = find_row(self._runs, job, "validation")
        if row is None:
            start = time.process_time()
            result = train(self._setup.build_recipe(job, self._folder(job)), overwrite=True)
            if result.interrupted:
                raise SystemExit(130)  # the arm is made again the next time
            seconds = round(time.process_time() - start, 1)
            row = job.key | {"validation": result.stages[-1].scores["ndcg@10_by_file"], "seconds": seconds}
            self._runs.add(row)
            print(f"{self._setup.name} {job.key}: {row['validation']:.4f}, {seconds:.0f} s", flush=True)
        return float(row["validation"])

    def _score_arm(self, job: Job) -> None:
        """Score a run on the evaluation sets, unless that was done; its model is made again where it is gone."""
        if find_row(self._runs, job, "eval") is not None:
            return
        folder = self._folder(job)
        if not (folder / "model.safetensors").is_file():
            train(self._setup.build_recipe(job, folder), overwrite=True)
        start = time.process_time()
        self._runs.add(job.key | {"eval": self._setup.score_sets(folder)})
        print(f"{job.key}: scored in {time.process_time() - start:.0f} s", flush=True)

    def _folder(self, job: Job) -> Path:
        return self._setup.out / "runs" / f"{job.temperature}-{job.seed}"


def find_row(runs: Runs, job: Job, column: str) -> dict[str, Any] | None:
    """What the log says of a run, in the row that has this column."""
    return next((row for row in runs if column in row and job.key.items() <= row.items()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=list(SETUPS), default="static")
    parser.add_argument("--report", action="store_true", help="write the tables of what has run, and stop")
    arguments = parser.parse_args()
    if not arguments.report:
        setup = SETUPS[arguments.model](arguments.out)
        setup.prepare(data_folder())
        Experiment(setup).run_all()
    write_report()


if __name__ == "__main__":
    main()
