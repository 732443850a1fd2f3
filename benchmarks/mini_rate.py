"""Passages a second through `peg-mini`, tokenising included: peg-rag and sentence-transformers, in turns.

The passages are those of the demo, joined and cut anew to about 100 tokens each. On a busy machine the rate per second
of CPU says more than the one per second: it is given for one core, and tokenising uses all of them.

    python benchmarks/mini_rate.py
    python benchmarks/mini_rate.py --write          # also writes benchmarks/results/mini_rate.md
"""

import argparse
import gzip
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from peg_rag import PEGEncoder

RESULTS = Path(__file__).parent / "results" / "mini_rate.md"
HEAD = """# Passages a second through peg-mini

Made by `benchmarks/mini_rate.py --write` on a machine that did other work as well: compare the seconds of CPU.

"""
CHARACTERS = 150  # some 100 tokens


def read_passages(count: int) -> list[str]:
    """Distinct passages of `CHARACTERS`, from all places of the demo's texts."""
    with gzip.open(str(files("peg_rag") / "assets/demo/passages.jsonl.gz"), "rt", encoding="utf-8") as lines:
        text = "".join(json.loads(line)["text"] for line in lines)
    step = max(1, (len(text) - CHARACTERS) // count)
    return [text[start : start + CHARACTERS] for start in range(0, step * count, step)]


def measure(encode: Callable[[list[str]], object], passages: list[str]) -> tuple[float, float]:
    """Seconds, and seconds of CPU of all cores."""
    started = time.perf_counter()
    started_cpu = time.process_time()
    encode(passages)
    return time.perf_counter() - started, time.process_time() - started_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    passages = read_passages(options.passages)
    encoder = PEGEncoder("peg-mini")
    peer = SentenceTransformer(str(encoder.spec.path), device="cpu")
    expected = peer.encode(passages[:100], normalize_embeddings=True)
    cosine = (encoder.encode_documents(passages[:100]) * np.asarray(expected)).sum(axis=1).min()
    systems: dict[str, Callable[[list[str]], object]] = {
        "peg-rag": encoder.encode_documents,
        "sentence-transformers, batch 32 (default)": peer.encode,
        "sentence-transformers, batch 1024": lambda texts: peer.encode(texts, batch_size=1024),
    }
    encoder.stats.tokens = 0
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for turn in range(options.rounds):
        for name in list(systems)[:: -1 if turn % 2 else 1]:
            times[name].append(measure(systems[name], passages))
    tokens = encoder.stats.tokens / options.rounds / len(passages)
    text = make_table(len(passages), tokens, times, float(cosine))
    print(text)
    if options.write:
        RESULTS.write_text(
            "# Passages a second through peg-mini\n\nMade by `benchmarks/mini_rate.py --write`.\n\n" + text
        )


def make_table(count: int, tokens: float, times: dict[str, list[tuple[float, float]]], cosine: float) -> str:
    lines = [
        f"{count:,} passages of {tokens:.0f} tokens, tokenising included; {platform.machine()}, {os.cpu_count()} "
        f"cores. The best of {len(times['peg-rag'])} turns; the vectors of both agree to a cosine of {cosine:.5f}.",
        "",
        "| | passages/s | passages per second of CPU |",
        "|---|---:|---:|",
    ]
    for name, values in times.items():
        fastest = min(seconds for seconds, _ in values)
        least = min(cpu for _, cpu in values)
        lines.append(f"| {name} | {count / fastest:,.0f} | {count / least:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
