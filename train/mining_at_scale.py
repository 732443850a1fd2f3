r"""Hard negatives for 100,000 queries among ten million passages, on one core and in less than 8 GiB.

The vectors are synthetic: passages around 20,000 topics, each query near one passage, 256 dimensions, float16 shards
of 500,000. What is measured is the search of `peg-rag mine --approximate`: seconds of the processor and the largest
resident memory, over all processes where some were killed, and recall against exact search for some queries. Started
again, it goes on where it stopped.

    python train/mining_at_scale.py --out runs/mining --passages 10000000 --queries 100000
"""

import argparse
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from experiments import RESULTS

from peg_rag.files import open_atomically, write_atomically
from peg_rag.index.exact import Neighbours, update_neighbours
from peg_rag.training.mining.approximate import search_approximately
from peg_rag.training.mining.search import Floats, Ranking

DIMENSION = 256
TOPICS = 20_000
SHARD_ROWS = 500_000
K = 100
CHECKED = 200  # queries that are searched exactly as well
PASSAGE_NOISE, QUERY_NOISE = 0.8, 0.6  # beside a topic, or a passage, of length 1
SAVED_EVERY_S = 5.0  # what a process has used so far; a killed one cannot say it at its end


def make_shards(folder: Path, passages: int, queries: int) -> tuple[list[Floats], list[Floats], "np.ndarray"]:
    """Shards of queries and of passages, mapped from disk, and the passage that each query was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [min(SHARD_ROWS, passages - start) for start in range(0, passages, SHARD_ROWS)]
    topics = unit_rows(np.random.default_rng(0).normal(size=(TOPICS, DIMENSION)).astype(np.float32))
    asked = np.sort(np.random.default_rng(1).choice(passages, size=queries, replace=False))
    for number, size in enumerate(sizes):
        file = folder / f"passages-{number}.npy"
        questions = folder / f"queries-{number}.npy"
        if questions.is_file():
            continue
        generator = np.random.default_rng([2, number])
        shard = topics[generator.integers(TOPICS, size=size)]
        shard += unit_noise(generator, shard.shape, PASSAGE_NOISE)
        save_array(file, unit_rows(shard).astype(np.float16))
        start = number * SHARD_ROWS
        rows = asked[(asked >= start) & (asked < start + size)] - start
        vectors = unit_rows(shard[rows])
        vectors += unit_noise(generator, vectors.shape, QUERY_NOISE)
        save_array(questions, unit_rows(vectors))
        print(f"made shard {number + 1} of {len(sizes)}", flush=True)
    parts = [np.load(folder / f"queries-{number}.npy", mmap_mode="r") for number in range(len(sizes))]
    return parts, [np.load(folder / f"passages-{number}.npy", mmap_mode="r") for number in range(len(sizes))], asked


def unit_noise(generator: np.random.Generator, shape: tuple[int, ...], length: float) -> Floats:
    """Noise whose rows are about so long."""
    noise: Floats = generator.standard_normal(shape, dtype=np.float32)
    return noise * np.float32(length / DIMENSION**0.5)


def unit_rows(vectors: Floats) -> Floats:
    """The rows at length 1."""
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def save_array(file: Path, array: "np.ndarray") -> None:
    with open_atomically(file) as stream:
        np.save(stream, array)


def search_exactly(queries: Floats, shards: list[Floats]) -> Neighbours:
    """The K best passages of some queries, shard by shard."""
    best = Neighbours(
        np.full((len(queries), K), -1, dtype=np.int32), np.full((len(queries), K), -np.inf, dtype=np.float32)
    )
    start = 0
    for shard in shards:
        for row in range(0, len(shard), 50_000):
            block = np.asarray(shard[row : row + 50_000], dtype=np.float32)
            update_neighbours(best, queries, block, first=start + row)
        start += len(shard)
    return best


def measure_recall(ranking: Ranking, queries: list[Floats], shards: list[Floats]) -> dict[int, float]:
    """The share of the exact best so many that the ranking has among its best K."""
    every = np.concatenate(queries)
    rows = np.random.default_rng(3).choice(len(every), size=min(CHECKED, len(every)), replace=False)
    exact = search_exactly(every[rows], shards)
    hits = dict.fromkeys((1, 10, K), 0)
    for place, row in enumerate(rows.tolist()):
        for depth in hits:
            hits[depth] += len(set(exact.indices[place, :depth].tolist()) & set(ranking.rows[row].tolist()))
    return {depth: count / (depth * len(rows)) for depth, count in hits.items()}


@contextmanager
def usage_written(folder: Path) -> Iterator[None]:
    """Write down what this process uses while it searches, every few seconds and at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{int(time.time())}-{os.getpid()}.json"
    started = time.monotonic()
    processor_started = time.process_time()
    stopped = threading.Event()

    def write_usage() -> None:
        usage = {
            "seconds": time.monotonic() - started,
            "processor_seconds": time.process_time() - processor_started,
            "resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        write_atomically(file, json.dumps(usage).encode())

    def keep_writing() -> None:
        while not stopped.wait(SAVED_EVERY_S):
            write_usage()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        yield
    finally:
        stopped.set()
        writer.join()
        write_usage()


def read_usage(folder: Path) -> dict[str, float]:
    """Seconds of all processes together, and the most memory that one of them had."""
    processes = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return {
        "processes": len(processes),
        "seconds": round(sum(usage["seconds"] for usage in processes)),
        "processor_seconds": round(sum(usage["processor_seconds"] for usage in processes)),
        "resident_gib": round(max(usage["resident_gib"] for usage in processes), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    arguments = parser.parse_args()
    queries, shards, asked = make_shards(arguments.out / "vectors", arguments.passages, arguments.queries)
    with usage_written(arguments.out / "usage"):
        ranking = search_approximately(
            arguments.out / "work", queries, shards, arguments.passages, K, show_progress=True
        )
    own = float((ranking.rows == asked[:, None]).any(1).mean())
    recall = measure_recall(ranking, queries, shards)
    result = {
        "passages": arguments.passages,
        "queries": arguments.queries,
        **read_usage(arguments.out / "usage"),
        "own_passage_among_the_best": round(own, 4),
        "recall": {str(depth): round(share, 4) for depth, share in recall.items()},
    }
    print(json.dumps(result), flush=True)
    name = "mining_at_scale.json" if arguments.passages >= 10_000_000 else "mining_at_scale_small.json"
    target = RESULTS if arguments.passages >= 10_000_000 else arguments.out
    write_atomically(target / name, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
