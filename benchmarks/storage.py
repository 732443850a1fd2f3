"""What `float16` and `int8` save, and what they cost: the demo corpus kept in each way.

5,539 Chinese passages with the vectors of peg-mini; the queries are the titles of its 996 papers, each answered by its
abstract (the model has seen these texts: what is compared is the ways of keeping, not the model). Needs no data and no
network; half a minute.

    python benchmarks/storage.py
    python benchmarks/storage.py --write        # also writes benchmarks/results/storage.md
"""

import argparse
import gzip
import json
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.index.encodings import STORAGES, Storage

RESULTS = Path(__file__).parent / "results" / "storage.md"
K = 10


@dataclass(frozen=True)
class Corpus:
    """Passages with their vectors, and queries (q, dimension) with the ids of what answers them."""

    ids: list[str]
    texts: list[str]
    vectors: np.ndarray
    queries: np.ndarray
    answers: list[str]


@dataclass(frozen=True)
class Outcome:
    """Bytes on disk, ids found for each query, and the largest error of a cosine."""

    sqlite: int
    vector_file: int
    rankings: list[list[str]]
    scores: np.ndarray


def load(encoder: PEGEncoder) -> Corpus:
    with gzip.open(str(files("peg_rag") / "assets/demo/passages.jsonl.gz"), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    papers = [row for row in rows if row["id"].startswith("paper-")]
    texts = [row["text"] for row in rows]
    return Corpus(
        [row["id"] for row in rows],
        texts,
        encoder.encode_documents(texts),
        encoder.encode_queries([paper["title"] for paper in papers]),
        [paper["id"] for paper in papers],
    )


def measure(corpus: Corpus, storage: Storage, path: Path) -> Outcome:
    with PEGIndex(path, storage=storage) as index:
        index.upsert(corpus.ids, corpus.texts, corpus.vectors)
        index.persist()
        hits = index.search_batch(corpus.queries, k=K)
        rankings = [[hit.id for hit in row] for row in hits]
        scores = np.array([[hit.score for hit in row] for row in hits])  # (queries, K)
    sizes = {file.name.split("-")[0]: file.stat().st_size for file in path.iterdir()}
    return Outcome(sizes["index.sqlite"], sizes["vectors"], rankings, scores)


def format_row(corpus: Corpus, storage: str, outcome: Outcome, exact: Outcome) -> str:
    count = len(corpus.ids)
    overlap = np.mean([len(set(a) & set(b)) / K for a, b in zip(outcome.rankings, exact.rankings, strict=True)])
    ranks = [
        ranking.index(answer) if answer in ranking else None
        for ranking, answer in zip(outcome.rankings, corpus.answers, strict=True)
    ]
    ndcg = np.mean([0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])
    error = abs(outcome.scores - exact.scores).max()
    return (
        f"| {storage} | {outcome.sqlite / count:,.0f} | {outcome.vector_file / count:,.0f} | {error:.5f} "
        f"| {100 * overlap:.1f} % | {ndcg:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    corpus = load(PEGEncoder("peg-mini"))
    dimension, characters = corpus.vectors.shape[1], np.mean([len(text) for text in corpus.texts])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {storage: measure(corpus, storage, Path(folder, storage)) for storage in STORAGES}
    lines = [
        "# Ways to keep vectors",
        "",
        "Made by `benchmarks/storage.py --write`.",
        "",
        f"{len(corpus.ids):,} passages of {characters:.0f} characters on average, {dimension} dimensions; "
        f"{len(corpus.answers)} titles as queries, exact search.",
        "",
        "| storage | SQLite, bytes a passage | vector file | largest error of a score | same ten nearest | nDCG@10 |",
        "|---|---:|---:|---:|---:|---:|",
        *(format_row(corpus, storage, outcome, outcomes["float32"]) for storage, outcome in outcomes.items()),
    ]
    print("\n".join(lines))
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
