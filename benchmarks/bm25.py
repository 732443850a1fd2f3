"""BM25 on held-out training pairs: terms, their weights, k1 and b of PEGIndex, beside jieba's words in bm25s.

Queries are rows of `pairs` in the validation split, a source's positives are the corpus; the evaluation sets are not
touched. The defaults of `peg_rag.index.lexical` were chosen here.

    python benchmarks/bm25.py                     # PEG_DATA names the data folder, else ../shared/data
    python benchmarks/bm25.py --queries 40        # quicker
    python benchmarks/bm25.py --write             # also writes benchmarks/results/bm25.md

Cost: about ten minutes on two cores.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fusion import TRAINED, UNTRAINED, held_out, ndcg

from peg_rag import PEGIndex
from peg_rag.index import lexical, tokenizers

RESULTS = Path(__file__).parent / "results" / "bm25.md"
Ranking = Mapping[str, float]


@contextmanager
def parameters(k1: float, b: float, single: float) -> Iterator[None]:
    """PEGIndex with other parameters. single: how much one character counts, pairs and words counting 1."""

    def weights(terms: Sequence[str]) -> dict[str, float]:
        counts = Counter(terms)
        return {t: n * (single if len(t) == 1 and tokenizers._IS_RUN(t) else 1) for t, n in counts.items()}

    bm25_score = partial(lexical.bm25, k1=k1, b=b)
    with patch("peg_rag.index.ranking.bm25", bm25_score), patch("peg_rag.index.lexical.term_weights", weights):
        yield


def bm25s_jieba(texts: list[str], queries: list[str]) -> list[Ranking]:
    """bm25s with its defaults over jieba's words."""
    import bm25s
    import jieba

    jieba.setLogLevel("WARNING")
    model = bm25s.BM25()
    model.index([jieba.lcut(text) for text in texts], show_progress=False)
    query_words = [jieba.lcut(query) for query in queries]
    numbers, scores = model.retrieve(query_words, k=min(10, len(texts)), show_progress=False)
    return [
        dict(zip(map(str, row), line, strict=True)) for row, line in zip(numbers.tolist(), scores.tolist(), strict=True)
    ]


def of_index(index: PEGIndex, queries: list[str]) -> list[Ranking]:
    return [{hit.id: hit.score for hit in hits} for hits in index.search_batch(texts=queries, k=10)]


VARIANTS = {
    "k1 1.2, b 0.75, characters 1 (default)": (1.2, 0.75, 1.0),
    "characters 0 (pairs alone)": (1.2, 0.75, 0.0),
    "characters 0.5": (1.2, 0.75, 0.5),
    "characters 1.5": (1.2, 0.75, 1.5),
    "k1 0.9, b 0.4": (0.9, 0.4, 1.0),
    "k1 0.9, b 0.75": (0.9, 0.75, 1.0),
    "k1 1.2, b 0.4": (1.2, 0.4, 1.0),
    "k1 1.5, b 0.75": (1.5, 0.75, 1.0),
}


def scores_of(texts: list[str], relevant: Mapping[str, frozenset[str]]) -> dict[str, float]:
    queries = list(relevant)

    def mean(rankings: Sequence[Ranking]) -> float:
        return float(np.mean([ndcg(ranking, relevant[q]) for q, ranking in zip(queries, rankings, strict=True)]))

    results = {"jieba + bm25s": mean(bm25s_jieba(texts, queries))}
    ids, nothing = [str(i) for i in range(len(texts))], np.ones((len(texts), 1))
    with PEGIndex() as index:
        index.upsert(ids, texts, nothing)
        for name, (k1, b, single) in VARIANTS.items():
            with parameters(k1, b, single):
                results[name] = mean(of_index(index, queries))
    with PEGIndex(tokenizer="jieba") as index:
        index.upsert(ids, texts, nothing)
        results["tokenizer='jieba'"] = mean(of_index(index, queries))
    return results


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row for each variant, a column for each source and the mean. scores: source → variant → nDCG@10."""
    lines = [f"| nDCG@10 | mean | {' | '.join(scores)} |", "|---|" + "---:|" * (len(scores) + 1)]
    for variant in next(iter(scores.values())):
        values = [source[variant] for source in scores.values()]
        lines.append(
            f"| {variant} | **{np.mean(values):.3f}** | " + " | ".join(f"{value:.3f}" for value in values) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", here)))
    parser.add_argument("--queries", type=int, default=120, help="from each source, at most")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    options = parser.parse_args()
    scores: dict[str, dict[str, float]] = {}
    for name in [*TRAINED, *UNTRAINED]:
        texts, relevant = held_out(
            options.data / "pairs" / f"{name}.jsonl.zst", options.queries, trained=name in TRAINED
        )
        scores[name] = scores_of(texts, relevant)
        print(f"{name:28}", {variant: round(score, 3) for variant, score in scores[name].items()}, flush=True)
    print(text := table(scores))
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(f"# BM25\n\nMade by `benchmarks/bm25.py --write`.\n\n{text}\n")


if __name__ == "__main__":
    main()
