"""Exact search by inner product, one query at a time: peg-rag with and without int8 codes, libraries, and stores.

Without an option, the systems take turns at every query on the same vectors in memory; texts, filters and files are
left out. The measure is the time of reading all vectors once: a search that looks at every float cannot be faster. A
system's answers are compared with those of a product in float64.

`--stores` compares stores instead (`peer_stores.py`), one after the other: each is filled in a process of its own,
opened in a fresh one, and in a third takes turns with peg-rag and with reading once, query by query, with and without a
filter that 1 % passes. Then it is deleted. With `--folder` the rows measured so far stay there, and the same command
goes on where it was stopped.
`--hybrid` has them search Chinese evaluation sets by vector and text, with peg-mini's vectors.

    python benchmarks/exact_search.py                         # 100,000 x 512
    python benchmarks/exact_search.py --count 1000000         # 2.6 GB of memory
    python benchmarks/exact_search.py --stores                # some 15 minutes, most of them Qdrant's filling
    python benchmarks/exact_search.py --stores --count 1000000 --folder DIR --limit 900    # 10 GB of disk, 8 of memory
    python benchmarks/exact_search.py --hybrid ../shared/data/eval
    python benchmarks/exact_search.py --write                 # also writes its section of results/exact_search.md
    pip install usearch lancedb qdrant-client zvec            # what is missing is left out
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
GROUP = 7
MIN_SECONDS = 5.0  # a slow store is asked only so long, but each query once at least,
MAX_SECONDS = 150.0  # or as many as this leaves time for
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


@dataclass
class Turns:
    """Seconds of every turn by entrant, and the store's answers to the first round of queries."""

    seconds: dict[str, list[float]]
    answers: list[list[int]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def count_right(self, expected: np.ndarray) -> int:
        """How many of the expected (queries, K) documents are among the answers."""
        return sum(len(set(answer) & set(row)) for answer, row in zip(self.answers, expected.tolist(), strict=False))


def compare_stores(data: Data, names: Sequence[str], folder: Path, limit_s: float) -> str:
    """Measure the stores that `folder` has no row of, one after the other, and return the table of all rows.

    A store has the machine's memory and disk to itself, but for peg-rag's index, which all take turns with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = f"{data.count}x{data.dimension}"
    results = folder / f"stores-{shape}.jsonl"
    truth = folder / f"truth-{shape}.npz"
    if not truth.exists():
        save_right_answers(truth, data)
    ours = folder / f"ours-{shape}"
    order = ["peg-rag", *(name for name in names if name != "peg-rag")]
    for name in order:
        rows = read_rows(results)
        if name in rows and (name != "peg-rag" or ours.exists()):
            continue
        store_folder = ours if name == "peg-rag" else folder / "theirs"
        shutil.rmtree(store_folder, ignore_errors=True)
        store_folder.mkdir()
        try:
            row = measure_store(name, store_folder, ours, truth, data, limit_s)
        except subprocess.CalledProcessError as error:
            if name == "peg-rag":
                raise
            print(f"{name} is left out: its process ended with {error.returncode}", file=sys.stderr, flush=True)
            continue
        finally:
            if name != "peg-rag":
                shutil.rmtree(store_folder)
        with results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(format_row(row), file=sys.stderr, flush=True)
    rows = read_rows(results)
    return make_store_table(data, [rows[name] for name in order if name in rows])


def read_rows(results: Path) -> dict[str, dict[str, Any]]:
    """The rows measured so far, by the name of the store."""
    if not results.exists():
        return {}
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def save_right_answers(file: Path, data: Data) -> None:
    """The (queries, K) nearest documents of all, and of one group, by products in float64; a block in memory."""
    queries = data.queries.astype(np.float64)
    best: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for start in range(0, data.count, BATCH):
        vectors = data.vectors(start, min(start + BATCH, data.count)).astype(np.float64)
        numbers = np.arange(start, start + len(vectors))
        scores = queries @ vectors.T  # (queries, block)
        for label, members in [("all", numbers >= 0), ("group", numbers % GROUPS == GROUP)]:
            block_numbers = np.broadcast_to(numbers[members], (len(queries), members.sum()))
            best[label] = keep_best(best.get(label), scores[:, members], block_numbers)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as stream:
        np.savez(stream, all=best["all"][1], group=best["group"][1])
    Path(stream.name).replace(file)


def keep_best(
    best: tuple[np.ndarray, np.ndarray] | None, scores: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The K highest scores of each row, and their numbers, of the best so far and of a further block."""
    if best is not None:
        scores = np.concatenate([best[0], scores], axis=1)
        numbers = np.concatenate([best[1], numbers], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def measure_store(name: str, folder: Path, ours: Path, truth: Path, data: Data, limit_s: float) -> dict[str, Any]:
    """A row of the table: a store filled, opened, and asked in turns with peg-rag, each in a process of its own."""
    row: dict[str, Any] = {"name": name}
    try:
        filling = run_task("fill", name, folder, data, limit_s)
        row |= {"fill_s": filling["seconds"], "fill_peak_mib": filling["peak_mib"]}
        row["bytes"] = measure_bytes(folder) / data.count
        row["open_s"] = run_task("open", name, folder, data, limit_s)["seconds"]
        row |= run_task("ask", name, folder, data, limit_s, "--ours", str(ours), "--truth", str(truth))
    except subprocess.TimeoutExpired:
        row["limit_s"] = limit_s
    return row


def ask_in_turns(name: str, folder: Path, data: Data, ours: Path, truth: Path) -> dict[str, float]:
    """Medians and ratios of a store, peg-rag and one reading of the vectors, query by query."""
    load = os.getloadavg()[0]
    vectors = make_vectors(data)
    store = open_store(name, folder, data.dimension)
    reference = store if name == "peg-rag" else open_store("peg-rag", ours, data.dimension)
    for query in data.queries[: STEPS + 1]:
        reference.search(query, K)
        reference.search(query, K, GROUP)
    store.search(data.queries[0], K)
    entrants: dict[str, Callable[[np.ndarray, int | None], Any]] = {
        "reading once": lambda query, group: read_once(vectors, query) if group is None else None,
        "store": lambda query, group: store.search(query, K, group),
    }
    if reference is not store:
        entrants["peg-rag"] = lambda query, group: reference.search(query, K, group)
    plain = take_turns(entrants, data.queries, None)
    filtered = take_turns(entrants, data.queries, GROUP)
    ours_name = "store" if reference is store else "peg-rag"
    expected = np.load(truth)
    right = plain.count_right(expected["all"]) + filtered.count_right(expected["group"])
    store.close()
    if reference is not store:
        reference.close()
    return {
        "search_s": plain.median("store"),
        "ours_s": plain.median(ours_name),
        "reading_s": plain.median("reading once"),
        "filtered_s": filtered.median("store"),
        "ours_filtered_s": filtered.median(ours_name),
        "right": right / (K * (len(plain.answers) + len(filtered.answers))),
        "turns": len(plain.seconds["store"]),
        "load": load,
        "ask_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def take_turns(
    entrants: dict[str, Callable[[np.ndarray, int | None], Any]], queries: np.ndarray, group: int | None
) -> Turns:
    turns = Turns({name: [] for name in entrants}, [])
    started = time.perf_counter()
    for turn in range(ROUNDS * len(queries)):
        for name, search in entrants.items():
            before = time.perf_counter()
            answer = search(queries[turn % len(queries)], group)
            turns.seconds[name].append(time.perf_counter() - before)
            if name == "store" and turn < len(queries):
                turns.answers.append(answer)
        elapsed = time.perf_counter() - started
        if elapsed > MAX_SECONDS or (elapsed > MIN_SECONDS and turn + 1 >= len(queries)):
            break
    return turns


def make_store_table(data: Data, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{data.count:,} vectors of {data.dimension} numbers in clusters with a number to filter by and no text, "
        f"k = {K}, one query at a time; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        "each store alone with peg-rag's index, opened anew. Medians; the ratios are of queries in turns, the load "
        "that at their start.",
        "",
        "| | fill, s | open + first query, s | bytes a vector | search, ms | × peg-rag | × reading once "
        "| 1 % passes, ms | × peg-rag | right hits | load |",
        "|---|" + "---:|" * 10,
    ]
    return "\n".join([*lines, *map(format_row, rows)])


def format_row(row: dict[str, Any]) -> str:
    if "fill_s" not in row:
        return f"| {row['name']} | not filled after {row['limit_s']:.0f} s |" + " |" * 9
    cells = [f"{row['fill_s']:.1f}"]
    if "open_s" in row:
        cells += [f"{row['open_s']:.2f}"]
    cells += [f"{row['bytes']:,.0f}"]
    if "search_s" not in row:
        return f"| {row['name']} | {' | '.join(cells)} | not measured within {row['limit_s']:.0f} s |" + " |" * 6
    cells += [
        f"{1000 * row['search_s']:.2f}",
        f"{row['search_s'] / row['ours_s']:.1f}",
        f"{row['search_s'] / row['reading_s']:.2f}",
        f"{1000 * row['filtered_s']:.2f}",
        f"{row['filtered_s'] / row['ours_filtered_s']:.1f}",
        f"{row['right']:.1%}".replace("%", " %"),
        f"{row['load']:.1f}",
    ]
    return f"| {row['name']} | {' | '.join(cells)} |"


def run_task(task: str, name: str, folder: Path, data: Data, limit_s: float, *more: str) -> dict[str, float]:
    """Do a task in a process of its own, whose memory is free again when it ends."""
    options = ["--count", str(data.count), "--dimension", str(data.dimension), "--folder", str(folder), *more]
    command = [sys.executable, __file__, *options, "--task", task, "--systems", name]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=limit_s)
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
    parser.add_argument("--folder", type=Path, help="where the stores are while they are measured, and their rows stay")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="to fill a store, and to ask it")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parser.add_argument("--task", choices=["fill", "open", "ask"], help=argparse.SUPPRESS)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--truth", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = Data(options.count, options.dimension)
    if options.task:
        tasks = {"fill": fill_store, "open": open_and_search}
        if options.task == "ask":
            tasks["ask"] = partial(ask_in_turns, ours=options.ours, truth=options.truth)
        print(json.dumps(tasks[options.task](options.systems[0], options.folder, data)))
        return
    title = f"{options.count:,} × {options.dimension}"
    if options.hybrid:
        title = "Hybrid search on Chinese sets"
        text = compare_hybrid(options.hybrid, options.systems)
    elif options.stores:
        title = f"Stores, {title}"
        with tempfile.TemporaryDirectory() as name:
            text = compare_stores(data, options.systems, options.folder or Path(name), options.limit)
        print(text)
    else:
        text = compare(options.count, options.dimension)
        print(text)
    if options.write:
        write_section(RESULTS, HEAD, title, text)


if __name__ == "__main__":
    main()
