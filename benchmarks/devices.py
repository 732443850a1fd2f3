"""Worker processes of one thread each, beside one process with one thread and one with as many threads.

    python benchmarks/devices.py                          # two workers, a BERT of 6 layers × 512 with random weights
    python benchmarks/devices.py --layers 24 --width 1024 # PEG's shape

The ways take turns on the same texts, so a busy machine slows all of them. On a machine with other work, more processes
get more of the cores, so look at the processor time, too: that of a way beside one thread's says what the pool itself
costs. Cost: a minute or two.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # of each worker; before torch reads it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import psutil
import torch
from embed import build_model, chinese_texts

from peg_rag import PEGEncoder


@dataclass
class Way:
    """A way to embed, and its wall and processor seconds by round."""

    name: str
    encoder: PEGEncoder
    threads: int  # in this process
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def embed(self, texts: list[str]) -> np.ndarray:
        torch.set_num_threads(self.threads)
        processor = self.processor_seconds()
        started_at = time.perf_counter()
        vectors = self.encoder.encode_documents(texts)
        self.wall.append(time.perf_counter() - started_at)
        self.processor.append(self.processor_seconds() - processor)
        return vectors

    def processor_seconds(self) -> float:
        """Of this process and all workers so far."""
        times = [process.cpu_times() for process in (psutil.Process(), *psutil.Process().children())]
        return float(sum(each.user + each.system for each in times))


def measure_overhead(one: PEGEncoder, pool: PEGEncoder, rounds: int = 200) -> float:
    """Milliseconds that a short query takes longer by way of the workers, the median."""

    def measure(encode: Callable[[list[str]], object]) -> float:
        started_at = time.perf_counter()
        encode(["花呗怎么换银行卡"])
        return time.perf_counter() - started_at

    pairs = [(measure(pool.encode_queries), measure(one.encode_queries)) for _ in range(rounds)]
    return median(through - direct for through, direct in pairs) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        build_model(Path(folder), args.layers, args.width)
        one = stack.enter_context(PEGEncoder(folder, device="cpu", dtype=args.dtype))
        pool = stack.enter_context(PEGEncoder(folder, devices=["cpu"] * args.workers, dtype=args.dtype))
        ways = [
            Way("one process, 1 thread", one, 1),
            Way(f"one process, {args.workers} threads", one, args.workers),
            Way(f"{args.workers} workers of 1 thread", pool, 1),
        ]
        difference = take_turns(ways, args.texts, args.rounds)
        print(f"\n{args.texts} texts a round, {args.rounds} rounds, BERT {args.layers} × {args.width}, {one.dtype}\n")
        report(ways)
        print(f"\nLargest difference of a coordinate: {difference:.1e}")
        mini = stack.enter_context(PEGEncoder("peg-mini"))
        mini_pool = stack.enter_context(PEGEncoder("peg-mini", devices=["cpu"] * args.workers))
        print(f"A query of peg-mini takes {measure_overhead(mini, mini_pool):.2f} ms longer by way of the workers")


def take_turns(ways: list[Way], texts: int, rounds: int) -> float:
    """Each way embeds the texts of each round, in another order from round to round; the largest difference."""
    for way in ways:
        way.encoder.encode_documents(chinese_texts(8))
    difference = 0.0
    for turn in range(rounds):
        batch = chinese_texts(texts, seed=turn)
        order = ways[:: 1 if turn % 2 == 0 else -1]
        vectors = [way.embed(batch) for way in order]
        difference = max(difference, *(float(np.abs(each - vectors[0]).max()) for each in vectors[1:]))
    return difference


def report(ways: list[Way]) -> None:
    """The median of the rounds' ratios to the first way, and the least."""
    print("| way | × one thread | worst round | processor time, × one thread |\n|---|---:|---:|---:|")
    first = ways[0]
    for way in ways:
        ratios = [alone / wall for alone, wall in zip(first.wall, way.wall, strict=True)]
        costs = [cost / alone for alone, cost in zip(first.processor, way.processor, strict=True)]
        print(f"| {way.name} | {median(ratios):.2f} | {min(ratios):.2f} | {median(costs):.2f} |")


if __name__ == "__main__":
    main()
