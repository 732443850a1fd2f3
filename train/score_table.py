"""Scores of the bundled model on every evaluation set, beside BM25: the table of its model card.

    python train/score_table.py --data ../shared/data --card peg_rag/assets/peg-mini/README.md

prints the tables and, with `--card`, puts them into the card. The evaluation sets are only ever scored, never trained
on or chosen on. Cost: a few minutes on two cores, most of it jieba's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peg_rag import PEGEncoder
from peg_rag.evaluation import BM25s, Dense, Evaluation, Indexed, RerankedHybrid, System, evaluate_all, load_beir

NOT_CHINESE = ("english-xquad", "crosslingual-xquad_zh_en")
BEGIN, END = "<!-- scores: made by train/score_table.py -->", "<!-- end of scores -->"


def table(results: Sequence[Evaluation], metric: str) -> str:
    """Markdown: a row for each set, a column for each system, and the mean over the Chinese sets."""
    systems = list(dict.fromkeys(result.system for result in results))
    sets = list(dict.fromkeys(result.dataset for result in results))
    value = {(result.dataset, result.system): result.mean(metric) for result in results}
    chinese = [name for name in sets if name not in NOT_CHINESE]
    rows = [
        [name, *(f"{value[name, system]:.3f}" for system in systems)]
        for name in sorted(sets, key=NOT_CHINESE.__contains__)
    ]
    means = [f"**{np.mean([value[name, system] for name in chinese]):.3f}**" for system in systems]
    rows.insert(len(chinese), [f"**mean of the {len(chinese)} Chinese sets**", *means])
    head = [f"| {metric} | {' | '.join(systems)} |", "|---|" + "---:|" * len(systems)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def put_between_marks(card: Path, text: str) -> None:
    before, after = card.read_text(encoding="utf-8").split(BEGIN)
    card.write_text(f"{before}{BEGIN}\n{text}\n{END}{after.split(END)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="peg-mini", help="a bundled name or a folder")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FOLDER", help="a further model, alone")
    parser.add_argument("--card", type=Path, help="a model card with the two marks; the table is put between them")
    arguments = parser.parse_args()
    sets = [load_beir(folder) for folder in sorted((arguments.data / "eval").iterdir()) if folder.is_dir()]
    further = [Dense(PEGEncoder(folder), name) for name, _, folder in (also.partition("=") for also in arguments.also)]
    with PEGEncoder(arguments.model) as encoder:
        name = Path(arguments.model).name
        fused = Indexed("hybrid", encoder, "hybrid")
        systems: list[System] = [Dense(encoder, name), *further, BM25s(), Indexed("lexical", name="bm25"), fused]
        if name == "peg-mini":  # the reranker was trained for it
            systems.append(RerankedHybrid(encoder))
        results = []
        for result in evaluate_all(systems, sets):
            print(
                f"{result.dataset:26} {result.system:12} nDCG@10 {result.mean():.3f}  {result.seconds:5.0f} s",
                flush=True,
            )
            results.append(result)
    print(text := "\n\n".join(table(results, metric) for metric in ("nDCG@10", "Recall@100")))
    if arguments.card:
        put_between_marks(arguments.card, text)


if __name__ == "__main__":
    main()
