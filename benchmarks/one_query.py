"""One query at a time through PEG's shape: median and p99 beside LangChain's HuggingFaceEmbeddings, in one run.

    python benchmarks/one_query.py                 # BERT-large, 60 queries
    python benchmarks/one_query.py --queries 200 --layers 12 --width 768

Random weights; queries are 8 to 20 characters, all different, and the systems take turns query by query, so a busy
machine slows all of them: compare the ratios.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from concurrent_queries import make_queries
from embed import build_model


def open_systems(folder: str) -> dict[str, Any]:
    """Functions of one query, by name."""
    from langchain_huggingface import HuggingFaceEmbeddings

    from peg_rag import PEGEmbeddings

    def open_peer(dtype: str) -> Any:
        options = {"device": "cpu", "model_kwargs": {"dtype": dtype}}
        return HuggingFaceEmbeddings(model_name=folder, model_kwargs=options).embed_query

    return {
        "HuggingFaceEmbeddings, defaults": HuggingFaceEmbeddings(
            model_name=folder, model_kwargs={"device": "cpu"}
        ).embed_query,
        "HuggingFaceEmbeddings, bfloat16": open_peer("bfloat16"),
        "peg-rag, float32": PEGEmbeddings(model=folder, device="cpu", dtype="float32").embed_query,
        "peg-rag, bfloat16": PEGEmbeddings(model=folder, device="cpu", dtype="bfloat16").embed_query,
        "peg-rag, int8": PEGEmbeddings(model=folder, device="cpu", dtype="int8").embed_query,
    }


def take_turns(systems: dict[str, Any], queries: list[str]) -> dict[str, list[float]]:
    """Milliseconds of every query, by system; the order is reversed from one query to the next."""
    milliseconds: dict[str, list[float]] = {name: [] for name in systems}
    for embed_query in systems.values():
        embed_query("第一个问题")
    for turn, query in enumerate(queries):
        for name in list(systems)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            systems[name](query)
            milliseconds[name].append(1e3 * (time.perf_counter() - started))
    return milliseconds


def print_table(milliseconds: dict[str, list[float]]) -> None:
    """Times beside those of the first system."""
    print("| system | median ms | p99 ms | median × the peer's defaults | p99 × |")
    print("|---|---:|---:|---:|---:|")
    first = next(iter(milliseconds.values()))
    for name, times in milliseconds.items():
        median_ratio = np.median(times) / np.median(first)
        tail_ratio = np.percentile(times, 99) / np.percentile(first, 99)
        print(
            f"| {name} | {np.median(times):.1f} | {np.percentile(times, 99):.1f} "
            f"| {median_ratio:.2f} | {tail_ratio:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), args.layers, args.width)
        milliseconds = take_turns(open_systems(folder), make_queries(args.queries, 1))
    print(f"\nBERT, {args.layers} layers × {args.width}, {args.queries} queries\n")
    print_table(milliseconds)


if __name__ == "__main__":
    main()
