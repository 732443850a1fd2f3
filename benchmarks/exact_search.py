"""Exact search by inner product, one query at a time: peg-rag with and without int8 codes, NumPy, FAISS and usearch.

The systems take turns at every query on the same vectors in memory; texts, filters and files are left out. The measure
is the time of reading all vectors once, since a search that looks at every float cannot be faster. A system's answers
are compared with those of a product in float64.

    python benchmarks/exact_search.py                         # 100,000 x 512
    python benchmarks/exact_search.py --count 1000000         # 2.6 GB of memory
    python benchmarks/exact_search.py --write                 # also writes its section of results/exact_search.md
    pip install usearch                                       # one of the systems; left out where it is missing
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from index import Data, write_section

from peg_rag.index.codes import STEPS, Codes
from peg_rag.index.exact import search_matrix

HEAD = """# Exact search

Made by `benchmarks/exact_search.py --write` on a machine that may have done other work as well: compare the ratios.
"""
RESULTS = Path(__file__).parent / "results" / "exact_search.md"
K = 10
ROUNDS = 4  # over the queries

Search = Callable[[np.ndarray], np.ndarray]


def read_once(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Reads every vector once: a matrix-vector product, on all cores, is the fastest way found to do that."""
    products: np.ndarray = vectors @ query
    return products


def make_systems(vectors: np.ndarray) -> dict[str, Search]:
    """What is compared: each takes a (dimension,) query and returns the (K,) rows it finds."""

    def search_numpy(query: np.ndarray) -> np.ndarray:
        scores = vectors @ query
        rows = np.argpartition(scores, -K)[-K:]
        best: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")]
        return best

    codes = Codes()
    for _ in range(STEPS + 1):
        codes.estimate(vectors, vectors[0])
    systems: dict[str, Search] = {
        "peg-rag": lambda query: search_matrix(vectors, query[None], K, None, codes)[0].rows,
        "peg-rag, without codes": lambda query: search_matrix(vectors, query[None], K, None)[0].rows,
        "NumPy": search_numpy,
    }
    return systems | make_faiss(vectors) | make_usearch(vectors)


def make_faiss(vectors: np.ndarray) -> dict[str, Search]:
    """The search of `IndexFlatIP`, without a copy of the vectors; and codes of 8 bits alone, which are not exact."""
    import faiss

    quantizer = faiss.IndexScalarQuantizer(
        vectors.shape[1], faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT
    )
    quantizer.train(vectors[:100_000])
    quantizer.add(vectors)
    return {
        "FAISS, flat": lambda query: faiss.knn(query[None], vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1][0],
        "FAISS, 8 bits (approximate)": lambda query: quantizer.search(query[None], K)[1][0],
    }


def make_usearch(vectors: np.ndarray) -> dict[str, Search]:
    try:
        from usearch.index import MetricKind, search
    except ImportError:
        return {}
    threads = os.cpu_count() or 1
    return {
        "usearch, exact": lambda query: search(vectors, query, K, MetricKind.IP, exact=True, threads=threads).keys,
    }


def compare(count: int, dimension: int) -> str:
    data = Data(count, dimension)
    vectors = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, 5_000):
        vectors[start : start + 5_000] = data.vectors(start, min(start + 5_000, count))
    systems = make_systems(vectors)
    entrants: dict[str, Search] = {"reading once": partial(read_once, vectors)} | systems
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    right = dict.fromkeys(systems, 0)
    for turn in range(ROUNDS * len(data.queries)):
        query = data.queries[turn % len(data.queries)]
        answers = {}
        for name, search in entrants.items():
            started = time.perf_counter()
            answers[name] = search(query)
            seconds[name].append(time.perf_counter() - started)
        if turn < len(data.queries):
            expected = find_by_force(vectors, query)
            for name in systems:
                right[name] += len(expected & set(answers[name].tolist()))
    return make_table(vectors, seconds, {name: hits / (K * len(data.queries)) for name, hits in right.items()})


def find_by_force(vectors: np.ndarray, query: np.ndarray) -> set[int]:
    """The K nearest rows by products in float64."""
    best = np.empty(0)
    rows = np.empty(0, dtype=np.int64)
    for start in range(0, len(vectors), 50_000):
        scores = vectors[start : start + 50_000].astype(np.float64) @ query.astype(np.float64)
        best = np.concatenate([best, scores])
        rows = np.concatenate([rows, np.arange(start, start + len(scores))])
        order = np.argsort(-best, kind="stable")[:K]
        best = best[order]
        rows = rows[order]
    return set(rows.tolist())


def make_table(vectors: np.ndarray, seconds: dict[str, list[float]], right: dict[str, float]) -> str:
    count, dimension = vectors.shape
    reading = seconds["reading once"]
    lines = [
        f"{count:,} vectors of {dimension} numbers in clusters, k = {K}, one query at a time; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores. {len(seconds['NumPy'])} turns.",
        "",
        "| | median, ms | × reading once | fastest, ms | × reading once | right hits |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, values in seconds.items():
        share = f"{100 * right[name]:.1f} %" if name in right else "–"
        cells = [f"{1000 * f(values):.2f} | {f(values) / f(reading):.2f}" for f in (statistics.median, min)]
        lines.append(f"| {name} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    options = parser.parse_args()
    text = compare(options.count, options.dimension)
    print(text)
    if options.write:
        write_section(RESULTS, HEAD, f"{options.count:,} × {options.dimension}", text)


if __name__ == "__main__":
    main()
