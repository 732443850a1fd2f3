"""What a query costs by default, and what reranking adds to it: hybrid search with `peg-mini`, set by set.

For each Chinese evaluation set, an index in memory, and the same queries one by one through `Retriever`: hybrid alone
(`rerank="none"`) and as it is by default. Processor milliseconds a query, encoding included, and nDCG@10 of those
queries; the sets as a whole are scored by `train/score_table.py`. Nothing is chosen on them.

    OMP_NUM_THREADS=1 python benchmarks/search.py                 # 200 queries of each set; ten minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/search.py --queries 50 --out benchmarks/results/search.md
"""

import argparse
import os
from pathlib import Path
from time import process_time

import numpy as np

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.evaluation import RetrievalDataset, load_beir, score_run
from peg_rag.evaluation.metrics import Run
from peg_rag.retriever import RerankChoice

REPO = Path(__file__).resolve().parent.parent
NOT_CHINESE = ("english-xquad", "crosslingual-xquad_zh_en")
CHOICES: tuple[RerankChoice, ...] = ("none", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")))
    parser.add_argument("--queries", type=int, default=200, help="of each set, the first ones")
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    folders = [path for path in sorted((options.data / "eval").iterdir()) if path.is_dir()]
    rows = []
    with PEGEncoder("peg-mini") as encoder:
        for folder in folders:
            if folder.name not in NOT_CHINESE:
                rows.append(measure(load_beir(folder), encoder, options.queries))
                print(rows[-1], flush=True)
    text = report(rows, options.queries)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def measure(dataset: RetrievalDataset, encoder: PEGEncoder, count: int) -> list[str]:
    """A row of the table."""
    names = list(dataset.qrels)[:count]
    texts = list(dataset.corpus.values())
    with PEGIndex(identity=encoder.identity) as index:
        index.upsert(list(dataset.corpus), texts, encoder.encode_documents(texts))
        cells = [dataset.name, f"{len(texts):,}", f"{np.mean([len(text) for text in texts]):.0f}"]
        for choice in CHOICES:
            retriever = Retriever(index, encoder, choice, k=10, mode="hybrid")
            retriever.retrieve(dataset.queries[names[0]])  # what is loaded once
            run: Run = {}
            started = process_time()
            for name in names:
                run[name] = {hit.id: hit.score for hit in retriever.retrieve(dataset.queries[name])}
            spent_ms = 1_000 * (process_time() - started) / len(names)
            values = score_run(run, {name: dataset.qrels[name] for name in names}, ["nDCG@10"])["nDCG@10"]
            cells += [f"{np.mean(values):.3f}", f"{spent_ms:.1f}"]
    return cells


def report(rows: list[list[str]], count: int) -> str:
    lines = [
        "# A search by default",
        "",
        f"Made by `benchmarks/search.py --queries {count}`: `peg-mini`, the first {count} queries of each set one by",
        "one, ten hits; processor time of one core, with encoding, search and reranking.",
        "",
        "| set | passages | characters | hybrid alone | ms | default: reranked | ms |",
        "|---|" + "---:|" * 6,
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
