"""Exact search by inner product, one query at a time: peg-rag with and without int8 codes, libraries, and stores.

Without an option, the systems take turns at every query on the same vectors in memory; texts, filters and files are
left out. The measure is the time of reading all vectors once: a search that looks at every float cannot be faster. A
system's answers are compared with those of a product in float64.

`--stores` compares stores instead (`peer_stores.py`): each is filled in a process of its own, opened in a fresh one,
and then takes turns with peg-rag and with reading once, query by query, with and without a filter that 1 % passes.
`--hybrid` has them search Chinese evaluation sets by vector and text, with peg-mini's vectors.

    python benchmarks/exact_search.py                         # 100,000 x 512
    python benchmarks/exact_search.py --count 1000000         # 2.6 GB of memory
    python benchmarks/exact_search.py --stores                # some 15 minutes, most of them Qdrant's filling
    python benchmarks/exact_search.py --hybrid ../shared/data/eval
    python benchmarks/exact_search.py --write                 # also writes its section of results/exact_search.md
    pip install usearch lancedb qdrant-client zvec            # what is missing is left out
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from index import Data, write_section
from peer_stores import BATCH, PeerStore, list_stores, list_tokenizers, measure_bytes, open_store

from peg_rag.index.codes import STEPS, Codes
from peg_rag.index.exact import search_matrix

HEAD = """# Exact search

Made by `benchmarks/exact_search.py --write` on a machine that may have done other work as well: compare the ratios.
"""
RESULTS = Path(__file__).parent / "results" / "exact_search.md"
K = 10
ROUNDS = 4  # over the queries
GROUPS = 100  # a filter on one of them passes 1 % of the documents
FILL_TIMEOUT_S = 600
MIN_SECONDS = 5.0  # a slow store is asked only so long, but each query once at least
SETS = ("tourism-kdconv", "encyclopedia-xquad_zh", "science-csl")
JUDGED = 200  # queries of a set

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
    vectors = make_vectors(data)
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


def make_vectors(data: Data) -> np.ndarray:
    """(count, dimension) float32."""
    vectors = np.empty((data.count, data.dimension), dtype=np.float32)
    for start in range(0, data.count, BATCH):
        vectors[start : start + BATCH] = data.vectors(start, min(start + BATCH, data.count))
    return vectors


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


# -- stores -----------------------------------------------------------------------------------------------------------


def compare_stores(count: int, dimension: int, names: Sequence[str], folder: Path | None) -> str:
    """The table of `--stores`."""
    data = Data(count, dimension)
    vectors = make_vectors(data)
    groups = np.arange(count) % GROUPS
    head = [
        f"{count:,} vectors of {dimension} numbers in clusters with a number to filter by and no text, k = {K}, one "
        f"query at a time; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the start. Medians; the ratios are of queries in turns.",
        "",
        "| | fill, s | open + first query, s | bytes a vector | search, ms | × peg-rag | × reading once "
        "| 1 % passes, ms | × peg-rag | right hits |",
        "|---|" + "---:|" * 9,
    ]
    print("\n".join(head), flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        ours = Path(name) / "ours"
        rows = [measure_store("peg-rag", ours, None, data, vectors, groups)]
        print(rows[-1], flush=True)
        reference = open_store("peg-rag", ours, dimension)
        for store in names:
            if store != "peg-rag":
                rows.append(measure_store(store, Path(name) / "theirs", reference, data, vectors, groups))
                print(rows[-1], flush=True)
        reference.close()
    return "\n".join([*head, *rows])


def measure_store(
    name: str, folder: Path, reference: PeerStore | None, data: Data, vectors: np.ndarray, groups: np.ndarray
) -> str:
    """A row of the table: a store filled, opened, and asked in turns with `reference`."""
    folder.mkdir()
    try:
        filling = run_task("fill", name, folder, data)
    except subprocess.TimeoutExpired:
        return f"| {name} | not filled after {FILL_TIMEOUT_S} s |" + " |" * 8
    size = measure_bytes(folder)
    opening = run_task("open", name, folder, data)
    store = open_store(name, folder, data.dimension)
    for query in data.queries[: STEPS + 1] if reference is None else data.queries[:1]:
        store.search(query, K)
    entrants: dict[str, Callable[[np.ndarray, int | None], Any]] = {
        "reading once": lambda query, group: read_once(vectors, query) if group is None else None,
        "store": lambda query, group: store.search(query, K, group),
    }
    if reference is not None:
        entrants["peg-rag"] = lambda query, group: reference.search(query, K, group)
    plain = take_turns(entrants, data.queries, None)
    filtered = take_turns(entrants, data.queries, 7)
    right = 0
    for query in data.queries[:20]:
        right += len(find_by_force(vectors, query) & set(store.search(query, K)))
        rows = np.flatnonzero(groups == 7)
        nearest = rows[list(find_by_force(vectors[rows], query))].tolist()
        right += len(set(nearest) & set(store.search(query, K, 7)))
    store.close()
    if reference is not None:
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
    cells = [
        f"{filling['seconds']:.1f}",
        f"{opening['seconds']:.2f}",
        f"{size / len(vectors):,.0f}",
        f"{1000 * plain['store']:.2f}",
        f"{plain['store'] / plain.get('peg-rag', plain['store']):.1f}",
        f"{plain['store'] / plain['reading once']:.2f}",
        f"{1000 * filtered['store']:.2f}",
        f"{filtered['store'] / filtered.get('peg-rag', filtered['store']):.1f}",
        f"{right / (2 * K * len(data.queries[:20])):.1%}".replace("%", " %"),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def take_turns(
    entrants: dict[str, Callable[[np.ndarray, int | None], Any]], queries: np.ndarray, group: int | None
) -> dict[str, float]:
    """Median seconds of each entrant."""
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    started = time.perf_counter()
    for turn in range(ROUNDS * len(queries)):
        for name, search in entrants.items():
            before = time.perf_counter()
            search(queries[turn % len(queries)], group)
            seconds[name].append(time.perf_counter() - before)
        if turn >= 20 and time.perf_counter() - started > MIN_SECONDS:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def run_task(task: str, name: str, folder: Path, data: Data) -> dict[str, float]:
    """Do a task in a process of its own."""
    options = ["--count", str(data.count), "--dimension", str(data.dimension), "--folder", str(folder)]
    command = [sys.executable, __file__, *options, "--task", task, "--systems", name]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=FILL_TIMEOUT_S)
    outcome: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return outcome


def fill_store(name: str, folder: Path, data: Data) -> dict[str, float]:
    """Fill a store; drawing the vectors is not part of the time."""
    store = open_store(name, folder, data.dimension)
    seconds = 0.0
    for start in range(0, data.count, BATCH):
        vectors = data.vectors(start, min(start + BATCH, data.count))
        groups = np.arange(start, start + len(vectors)) % GROUPS
        before = time.perf_counter()
        store.add(start, vectors, groups, None)
        seconds += time.perf_counter() - before
    before = time.perf_counter()
    store.finish()
    store.close()
    seconds += time.perf_counter() - before
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def open_and_search(name: str, folder: Path, data: Data) -> dict[str, float]:
    """Seconds to open a store and search once, after the imports."""
    with tempfile.TemporaryDirectory() as empty:  # makes an empty one first, so that the libraries are loaded
        open_store(name, Path(empty), data.dimension).close()
    started = time.perf_counter()
    store = open_store(name, folder, data.dimension)
    store.search(data.queries[0], K)
    return {"seconds": time.perf_counter() - started}


# -- hybrid search ----------------------------------------------------------------------------------------------------


def compare_hybrid(data: Path, names: Sequence[str]) -> str:
    """nDCG@10 of each store by vectors alone and with the text, on the sets."""
    from peg_rag import PEGEncoder
    from peg_rag.evaluation import load_beir

    rows: dict[tuple[str, str], list[str]] = {}
    with PEGEncoder("peg-mini") as encoder:
        for number, dataset_name in enumerate(SETS):
            dataset = load_beir(data / dataset_name)
            vectors = encoder.encode_documents(list(dataset.corpus.values()))
            judged = sorted(dataset.qrels)[:JUDGED]
            queries = encoder.encode_queries([dataset.queries[query] for query in judged])
            for name in names:
                if not list_tokenizers(name) and name != "Qdrant, local":
                    continue
                for label, score in score_store(name, dataset, vectors, judged, queries).items():
                    rows.setdefault((name, label), ["–"] * len(SETS))[number] = f"{score:.4f}"
                    print(dataset_name, name, label, f"{score:.4f}", file=sys.stderr, flush=True)
    lines = [
        f"nDCG@10 of the first {JUDGED} queries of each set, vectors of peg-mini, no reranking. Hybrid: vectors "
        "and each store's own full-text search with a Chinese tokenizer, joined as it does by default: reciprocal "
        "ranks, peg-rag by how sure each side is. Qdrant's local mode has no tokenizer for Chinese.",
        "",
        f"| | | {' | '.join(SETS)} |",
        "|---|---|" + "---:|" * len(SETS),
    ]
    return "\n".join(
        [*lines, *(f"| {name} | {label} | {' | '.join(cells)} |" for (name, label), cells in rows.items())]
    )


def score_store(
    name: str, dataset: Any, vectors: np.ndarray, judged: Sequence[str], queries: np.ndarray
) -> dict[str, float]:
    """nDCG@10 by the way of searching."""
    from peg_rag.evaluation import score_run

    ids = list(dataset.corpus)
    texts = list(dataset.corpus.values())
    qrels = {query: dataset.qrels[query] for query in judged}
    tokenizers = list_tokenizers(name)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(name, Path(folder), vectors.shape[1], tokenizers)
        for start in range(0, len(ids), BATCH):
            rows = slice(start, start + BATCH)
            store.add(start, vectors[rows], np.zeros(len(vectors[rows]), dtype=np.int64), texts[rows])
        store.finish()
        ways: dict[str, Callable[[int, str], list[int]]] = {"dense": lambda row, _: store.search(queries[row], K)}
        for tokenizer in tokenizers:
            ways[f"hybrid, {tokenizer}"] = partial(search_text, store, queries, tokenizer)
        for label, search in ways.items():
            runs[label] = {
                query: {ids[number]: 1 / rank for rank, number in enumerate(search(row, dataset.queries[query]), 1)}
                for row, query in enumerate(judged)
            }
        store.close()
    return {label: float(score_run(run, qrels, ["nDCG@10"])["nDCG@10"].mean()) for label, run in runs.items()}


def search_text(store: PeerStore, queries: np.ndarray, tokenizer: str, row: int, text: str) -> list[int]:
    return store.search_hybrid(queries[row], text, K, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--stores", action="store_true", help="compare stores on disk")
    parser.add_argument("--hybrid", type=Path, metavar="DATA", help="the folder of evaluation sets")
    parser.add_argument("--systems", nargs="*", default=list_stores(), help=f"of {', '.join(list_stores())}")
    parser.add_argument("--folder", type=Path, help="where the stores are kept while they are measured")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parser.add_argument("--task", choices=["fill", "open"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = fill_store if options.task == "fill" else open_and_search
        print(json.dumps(task(options.systems[0], options.folder, Data(options.count, options.dimension))))
        return
    title = f"{options.count:,} × {options.dimension}"
    if options.hybrid:
        title = "Hybrid search on Chinese sets"
        text = compare_hybrid(options.hybrid, options.systems)
    elif options.stores:
        title = f"Stores, {title}"
        text = compare_stores(options.count, options.dimension, options.systems, options.folder)
    else:
        text = compare(options.count, options.dimension)
        print(text)
    if options.write:
        write_section(RESULTS, HEAD, title, text)


if __name__ == "__main__":
    main()
