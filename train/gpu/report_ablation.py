"""The table and the picture of what `ablation_transformer.py` found, with paired permutation tests.

    python train/gpu/report_ablation.py --runs results

writes `train/results/ablation_transformer.md` and `.png`, and keeps the runs beside them. A comparison takes the mean
over the seeds that both arms have, query by query; each set or source weighs the same, as in the means of the table.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parents[1] / "results"
NEW_SETS = ("law", "medical", "psychology", "tourism")
RESAMPLES = 10_000
Values = NDArray[np.float64]
GROUPS: dict[str, Callable[[str], bool]] = {
    "validation, known": lambda name: name.startswith("known/"),
    "validation, new": lambda name: name.startswith("new/"),
    "six sets, known": lambda name: "/" not in name and name.split("-")[0] not in NEW_SETS,
    "four sets, new": lambda name: name.split("-")[0] in NEW_SETS,
    "ten sets": lambda name: "/" not in name,
}
COMPARED = ("six sets, known", "four sets, new", "ten sets")
HEAD = """# Do progressive weights pay for a transformer?

Made by `train/gpu/ablation_transformer.py` on one H200 in nine minutes, and by `report_ablation.py`. nDCG@10, mean over
three seeds and standard deviation among them. A transformer of 2 layers × 128 that starts as a static model takes 1,000
steps of 256 pairs with five negatives mined by the static model, from eight domains (news, finance, insurance, real
estate, web, general, encyclopedia, science). *Known* are those domains; *new* are law, medicine, psychology, tourism,
film and music, which neither the static model nor the transformer saw. Texts are cut at 96 tokens, queries at 32. The
learning rate and each arm's temperature were chosen on validation (mean of known and new), with other seeds; the
evaluation sets were only scored. Batches are the same for all arms of a seed.
"""


class Table:
    """Runs, and nDCG@10 of every query of each."""

    def __init__(self, folder: Path) -> None:
        self.rows = [json.loads(line) for line in (folder / "ablation.jsonl").read_text(encoding="utf-8").splitlines()]
        with np.load(folder / "ablation.npz") as arrays:
            self._queries = {name.replace("|", "/"): arrays[name].astype(np.float64) for name in arrays}
        layout = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
        names = list(layout)
        self._owner = np.repeat(np.arange(len(names)), [layout[name] for name in names])
        self._names = names
        self._sizes = np.array([layout[name] for name in names], dtype=np.float64)

    def part(self, part: str, arm: str | None = None) -> list[dict[str, Any]]:
        rows = [row for row in self.rows if row["part"] == part and arm in (None, row["arm"])]
        return sorted(rows, key=lambda row: row.get("seed", 0))

    def arms(self, part: str) -> list[str]:
        return list(dict.fromkeys(row["arm"] for row in self.part(part)))

    def weights(self, group: str) -> Values:
        """Of each query, so that the weighted sum is the mean over the sets of the group."""
        members = np.array([GROUPS[group](name) for name in self._names])
        of_set = np.where(members, 1 / self._sizes / members.sum(), 0)
        weights: Values = of_set[self._owner]
        return weights

    def values(self, rows: Sequence[dict[str, Any]], group: str) -> list[float]:
        weights = self.weights(group)
        return [float(weights @ self._queries[row["key"]]) for row in rows]

    def compare(
        self, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], group: str
    ) -> tuple[float, float]:
        """Difference in points and the two-sided p of flipping the signs of single queries."""
        seeds = {row["seed"] for row in before} & {row["seed"] for row in after}
        sides = [
            np.mean([self._queries[row["key"]] for row in rows if row["seed"] in seeds], axis=0)
            for rows in (before, after)
        ]
        differences = (sides[1] - sides[0]) * self.weights(group)
        differences = differences[differences != 0]
        generator = np.random.default_rng(0)
        extreme = 0
        for _ in range(RESAMPLES // 500):
            signs = generator.integers(0, 2, (500, len(differences)), dtype=np.int8) * 2 - 1
            extreme += int((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).sum())
        return 100 * float(differences.sum()), (extreme + 1) / (RESAMPLES + 1)


def mean_and_spread(values: Sequence[float]) -> str:
    spread = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.4f} ± {spread:.4f}"


def arm_lines(table: Table, part: str, base: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the arms of a part, with what each gains over other runs of the same seeds."""
    lines = [
        f"| arm | τ | {' | '.join([*GROUPS, *(f'gain, {group} (p)' for group in COMPARED)])} |",
        "|---|---:|" + "---:|" * (len(GROUPS) + len(COMPARED)),
    ]
    for arm in table.arms(part):
        rows = table.part(part, arm)
        cells = [mean_and_spread(table.values(rows, group)) for group in GROUPS]
        gains = ["–" for _ in COMPARED]
        if rows[0]["key"] != base[0]["key"]:
            pairs = [table.compare(base, rows, group) for group in COMPARED]
            gains = [f"{points:+.2f} ({p:.4f})" for points, p in pairs]
        lines.append(f"| {arm} | {rows[0]['temperature']} | {' | '.join(cells)} | {' | '.join(gains)} |")
    return lines


def choice_lines(table: Table) -> list[str]:
    """Validation by temperature and by learning rate."""
    temperatures = sorted({row["temperature"] for row in table.part("temperature")})
    lines = [f"| arm | {' | '.join(f'τ {t}' for t in temperatures)} |", "|---|" + "---:|" * len(temperatures)]
    for arm in table.arms("temperature"):
        by_temperature = {row["temperature"]: row["validation"] for row in table.part("temperature", arm)}
        lines.append(f"| {arm} | {' | '.join(f'{by_temperature[t]:.4f}' for t in temperatures)} |")
    rates = "; ".join(f"{row['rate']:g}: {row['validation']:.4f}" for row in table.part("rate"))
    return [*lines, "", f"Learning rate at τ 0.05, no weights: {rates}."]


def write_report(table: Table, file: Path) -> None:
    start = [f"{group} {table.values(table.part('start'), group)[0]:.4f}" for group in GROUPS]
    base = table.part("seeds", "none")
    noisy = table.part("noise", "none")
    lines = [HEAD, f"The static model that all start from, reduced to 128 dimensions: {'; '.join(start)}.", ""]
    lines += ["## Clean pairs", "", "Gains are over `none`, in points.", "", *arm_lines(table, "seeds", base), ""]
    lines += ["## A fifth of the positives shuffled", "", "Gains are over `none` on the same pairs.", ""]
    lines += [*arm_lines(table, "noise", noisy), ""]
    lines += ["## Negatives mined anew after a third and two thirds of the run", ""]
    lines += ["Gains are over `none` with the first negatives to the end.", "", *arm_lines(table, "remine", base), ""]
    lines += ["## Choices on validation (one seed)", "", *choice_lines(table), ""]
    file.write_text("\n".join(lines), encoding="utf-8")


def draw(table: Table, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    bars = [(part, arm) for part in ("seeds", "noise", "remine") for arm in table.arms(part)]
    labels = {"seeds": "{}", "noise": "{}, 20 % noise", "remine": "{}, mined anew"}
    for axis, group in zip(axes, ("validation, new", "four sets, new", "ten sets"), strict=True):
        for place, (part, arm) in enumerate(bars):
            values = table.values(table.part(part, arm), group)
            color = {"seeds": "C0", "noise": "C3", "remine": "C2"}[part]
            axis.errorbar(np.mean(values), place, xerr=np.std(values, ddof=1), fmt="o", capsize=3, color=color)
            axis.plot(values, [place] * len(values), "|", color="grey")
        axis.set(title=group, xlabel="nDCG@10", yticks=range(len(bars)))
        axis.set_yticklabels([labels[part].format(arm) for part, arm in bars])
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    table = Table(arguments.runs)
    write_report(table, RESULTS / "ablation_transformer.md")
    draw(table, RESULTS / "ablation_transformer.png")
    shutil.copyfile(arguments.runs / "ablation.jsonl", RESULTS / "ablation_transformer.jsonl")


if __name__ == "__main__":
    main()
