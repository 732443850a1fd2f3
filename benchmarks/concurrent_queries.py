"""64 concurrent queries through the async methods, beside the same queries one after another.

    python benchmarks/concurrent_queries.py                           # a BERT-base shape with random weights, peg-mini
    python benchmarks/concurrent_queries.py --layers 24 --width 1024  # PEG's shape

The ways take turns, round by round, so a busy machine slows all of them: compare the ratios. `threads` is what an async
method without shared batches does, a thread for each query; `one list` is one call with all queries, which no queue
can beat. Queries are 8 to 20 characters, all different. Cost: a minute or two.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import numpy as np
from embed import build_model

from peg_rag import PEGEncoder

Way = Callable[[PEGEncoder, list[str]], Awaitable[object]]


async def ask_in_turn(encoder: PEGEncoder, queries: list[str]) -> None:
    for query in queries:
        encoder.encode_queries([query])


async def ask_in_threads(encoder: PEGEncoder, queries: list[str]) -> None:
    await asyncio.gather(*(asyncio.to_thread(encoder.encode_queries, [query]) for query in queries))


async def ask_together(encoder: PEGEncoder, queries: list[str]) -> None:
    await asyncio.gather(*(encoder.aencode_queries([query]) for query in queries))


async def ask_in_one_list(encoder: PEGEncoder, queries: list[str]) -> None:
    encoder.encode_queries(queries)


WAYS: dict[str, Way] = {
    "sequential": ask_in_turn,
    "threads": ask_in_threads,
    "aencode_queries": ask_together,
    "one list": ask_in_one_list,
}


def make_queries(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(map(chr, 0x4E00 + rng.integers(0, 20_000, n))) for n in rng.integers(8, 21, count)]


async def measure(encoder: PEGEncoder, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by way; the order is reversed from one round to the next."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS.values():
        await way(encoder, make_queries(4, 0))
    for turn in range(rounds):
        queries = make_queries(count, turn + 1)
        names = list(WAYS)[:: 1 if turn % 2 == 0 else -1]
        for name in names:
            started_at = time.perf_counter()
            await WAYS[name](encoder, queries)
            seconds[name].append(time.perf_counter() - started_at)
    return seconds


async def largest_difference(encoder: PEGEncoder, count: int) -> float:
    """Between a coordinate of the vectors from shared batches and of those computed one by one."""
    queries = make_queries(count, 0)
    together = np.concatenate(await asyncio.gather(*(encoder.aencode_queries([query]) for query in queries)))
    alone = np.concatenate([encoder.encode_queries([query]) for query in queries])
    return float(np.abs(together - alone).max())


def print_table(title: str, encoder: PEGEncoder, count: int, rounds: int) -> float:
    """Returns how many times as fast as one after another the shared batches were, the median of the rounds."""
    seconds = asyncio.run(measure(encoder, count, rounds))
    print(f"\n## {title}\n\n{encoder.backend_name}, {encoder.dtype}; {count} queries, median of {rounds} rounds\n")
    print("| way | queries/s | × sequential | worst round |\n|---|---:|---:|---:|")
    ratios = {}
    for way, way_seconds in seconds.items():
        ratios[way] = [alone / shared for alone, shared in zip(seconds["sequential"], way_seconds, strict=True)]
        rate = count / median(way_seconds)
        print(f"| {way} | {rate:,.0f} | {median(ratios[way]):.2f} | {min(ratios[way]):.2f} |")
    difference = asyncio.run(largest_difference(encoder, count))
    print(f"\nLargest difference of a coordinate to the vector computed alone: {difference:.1e}")
    return median(ratios["aencode_queries"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), args.layers, args.width)
        with PEGEncoder(folder, dtype=args.dtype) as encoder:
            ratio = print_table(f"BERT, {args.layers} layers × {args.width}", encoder, args.queries, args.rounds)
    with PEGEncoder("peg-mini") as encoder:
        print_table("peg-mini", encoder, args.queries, args.rounds)
    print(f"\naencode_queries of the transformer: {ratio:.2f} times the sequential rate")


if __name__ == "__main__":
    main()
