"""What smaller vectors cost in recall: float16, int8, bits with rescoring, and fewer dimensions, on Chinese sets.

peg-mini's vectors of 512 numbers, exact search in each representation, by NumPy. Bits are the signs of the numbers; the
nearest rows by Hamming distance are scored again with larger vectors, which have to be read for those rows only. The
truncated ones are the first numbers, normalised again (`PEGEncoder(truncate_dim=…)`). Recall is the share of the ten
nearest by float32; nDCG@10 is that of the sets' judgements. `PEGIndex` keeps float32, float16 or int8
(`storage.py`); bits are measured here only.

    python benchmarks/vector_sizes.py --data ../shared/data/eval
    python benchmarks/vector_sizes.py --data ../shared/data/eval --write     # also writes results/vector_sizes.md
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peg_rag import PEGEncoder
from peg_rag.evaluation import load_beir, score_run

RESULTS = Path(__file__).parent / "results" / "vector_sizes.md"
SETS = ("tourism-kdconv", "encyclopedia-xquad_zh", "science-csl", "law-lawyer_llama", "medical-kuake_qtr")
JUDGED = 300  # queries of a set
K = 10

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (rows, d), (queries, d) → (queries, rows)


def normalize(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def round_to_int8(rows: np.ndarray) -> np.ndarray:
    """What `storage="int8"` keeps, as float32: a scale for each row, 8 bits for each number."""
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    return normalize(np.rint(rows / scales) * scales)


def score_products(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores: np.ndarray = queries @ rows.T
    return scores


def score_bits(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Minus the Hamming distances of the signs."""
    packed_rows = np.packbits(rows > 0, axis=1).view(np.uint64)
    packed_queries = np.packbits(queries > 0, axis=1).view(np.uint64)
    scores = np.empty((len(queries), len(rows)), dtype=np.float32)
    for row, query in enumerate(packed_queries):
        scores[row] = -np.bitwise_count(packed_rows ^ query).sum(axis=1, dtype=np.int32)
    return scores


def find_best(scores: np.ndarray, k: int) -> np.ndarray:
    """(queries, k) rows, best first; equal ones in their order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@dataclass(frozen=True)
class Way:
    """How vectors are kept and searched.

    Attributes:
        dimension: how many of the first numbers.
        searched: bytes of a vector that every query reads.
        kept: bytes of a vector in all.
        bits: whether signs are searched, and `candidates` rows scored again (0: none).
        prepare: makes the vectors that are multiplied.
    """

    name: str
    dimension: int
    searched: int
    kept: int
    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
    bits: bool = False
    candidates: int = 0

    def search(self, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(queries, K) rows."""
        rows = normalize(rows[:, : self.dimension])
        queries = normalize(queries[:, : self.dimension])
        if not self.bits:
            return find_best(score_products(self.prepare(rows), queries), K)
        if not self.candidates:
            return find_best(score_bits(rows, queries), K)
        candidates = np.sort(find_best(score_bits(rows, queries), self.candidates), axis=1)
        exact = self.prepare(rows)
        scores = np.stack([exact[near] @ query for near, query in zip(candidates, queries, strict=True)])
        return np.take_along_axis(candidates, find_best(scores, K), axis=1)


def round_to_float16(rows: np.ndarray) -> np.ndarray:
    return normalize(rows.astype(np.float16).astype(np.float32))


def list_ways(dimension: int) -> list[Way]:
    ways = []
    for d in (dimension, dimension // 2, dimension // 4):
        ways += [
            Way("float32", d, 4 * d, 4 * d),
            Way("float16", d, 2 * d, 2 * d, round_to_float16),
            Way("int8", d, d + 4, d + 4, round_to_int8),
            Way("bits", d, d // 8, d // 8, bits=True),
            Way("bits, 40 rescored with int8", d, d // 8, d // 8 + d + 4, round_to_int8, True, 40),
            Way("bits, 100 rescored with int8", d, d // 8, d // 8 + d + 4, round_to_int8, True, 100),
            Way("bits, 100 rescored with float32", d, d // 8, d // 8 + 4 * d, bits=True, candidates=100),
        ]
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of evaluation sets")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    recalls: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    sizes = []
    with PEGEncoder("peg-mini") as encoder:
        ways = list_ways(encoder.dimension)
        for name in SETS:
            dataset = load_beir(options.data / name)
            ids = list(dataset.corpus)
            sizes.append(f"{name} ({len(ids):,})")
            rows = encoder.encode_documents(list(dataset.corpus.values()))
            judged = sorted(dataset.qrels)[:JUDGED]
            queries = encoder.encode_queries([dataset.queries[query] for query in judged])
            qrels = {query: dataset.qrels[query] for query in judged}
            exact = find_best(score_products(rows, queries), K)
            for way in ways:
                key = f"{way.dimension} {way.name}"
                found = way.search(rows, queries)
                hits = [len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
                run = {
                    query: {ids[row]: 1 / rank for rank, row in enumerate(line, 1)}
                    for query, line in zip(judged, found.tolist(), strict=True)
                }
                recalls.setdefault(key, []).append(float(np.mean(hits)))
                scores.setdefault(key, []).append(float(score_run(run, qrels, ["nDCG@10"])["nDCG@10"].mean()))
    lines = [
        "# The size of vectors",
        "",
        "Made by `benchmarks/vector_sizes.py --write`.",
        "",
        f"Vectors of peg-mini, {JUDGED} queries of each set: {', '.join(sizes)}; means over the sets. Bytes of a "
        "vector: what every query reads, and all that is kept.",
        "",
        "| dimensions | kept as | bytes read | bytes kept | recall@10 | worst set | nDCG@10 | change |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = float(np.mean(scores[f"{ways[0].dimension} float32"]))
    for way in ways:
        key = f"{way.dimension} {way.name}"
        recall, ndcg = float(np.mean(recalls[key])), float(np.mean(scores[key]))
        lines.append(
            f"| {way.dimension} | {way.name} | {way.searched:,} | {way.kept:,} | {100 * recall:.1f} % "
            f"| {100 * min(recalls[key]):.1f} % | {ndcg:.4f} | {100 * (ndcg - base):+.2f} |"
        )
    print("\n".join(lines))
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
