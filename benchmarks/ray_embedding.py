"""A corpus embedded on Ray: two workers of one thread beside one, and a million short texts through peg-mini.

The first embeds a corpus with a BERT of random weights, so that computing dominates, by one worker and by two in turns.
Starting Ray and loading the model come once for each run; the rate that a long corpus sees is that from the first
finished block on, and both are printed. The second (`--million`) embeds short texts with `peg-rag embed` in one process
and notes its memory and its rate as it goes.

    python benchmarks/ray_embedding.py
    python benchmarks/ray_embedding.py --write                # also writes benchmarks/results/ray_embedding.md
    python benchmarks/ray_embedding.py --million --write      # its section, and a picture
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of each worker; before torch reads it
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15, other work would be measured

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from embed import build_model, chinese_texts
from index import write_section

from peg_rag.ray_embedding import EncoderSettings, embed_corpus

RESULTS = Path(__file__).parent / "results" / "ray_embedding.md"
PICTURE = RESULTS.with_name("embed_million.png")
HEAD = "# Embedding a corpus\n\nMade by `benchmarks/ray_embedding.py --write`.\n"
SAMPLE_S = 0.5


def sum_processor_seconds() -> float:
    """Of all processes below this one, which are Ray's."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure_run(files: list[Path], out: Path, model: str, workers: int, block_rows: int) -> tuple[float, float, float]:
    """Texts a second of the whole run and from the first finished block on; and texts per second of processor time."""
    moments: list[tuple[float, int, float]] = []
    started = time.perf_counter()
    report = embed_corpus(
        files,
        out,
        settings=EncoderSettings(model),
        workers=workers,
        block_rows=block_rows,
        on_progress=lambda done, total: moments.append((time.perf_counter(), done, sum_processor_seconds())),
    )
    seconds = time.perf_counter() - started
    first, last = next(moment for moment in moments if moment[1]), moments[-1]
    texts = last[1] - first[1]
    return report.texts / seconds, texts / (last[0] - first[0]), texts / (last[2] - first[2])


def compare_workers(options: argparse.Namespace) -> str:
    whole: list[float] = []
    steady: list[float] = []
    processor: list[float] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        build_model(folder / "model", options.layers, options.width)
        corpus = folder / "corpus.parquet"
        pq.write_table(pa.table({"text": chinese_texts(options.texts)}), corpus)
        for turn in range(options.rounds):
            rates = {}
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                out = folder / f"out-{turn}-{workers}"
                rates[workers] = measure_run([corpus], out, str(folder / "model"), workers, options.block_rows)
            whole.append(rates[2][0] / rates[1][0])
            steady.append(rates[2][1] / rates[1][1])
            processor.append(rates[1][2] / rates[2][2])
            print({workers: [round(rate, 2) for rate in each] for workers, each in rates.items()}, flush=True)
    return "\n".join(
        [
            f"{options.texts:,} texts of a median of 64 characters in blocks of {options.block_rows}, BERT "
            f"{options.layers} × {options.width}, one thread a worker; {platform.machine()}, {os.cpu_count()} cores, "
            f"load {load:.1f} before. {options.rounds} turns.",
            "",
            "| two workers against one | median | least | most |",
            "|---|---:|---:|---:|",
            f"| from the first finished block on | {median(steady):.2f} | {min(steady):.2f} | {max(steady):.2f} |",
            f"| with starting Ray and loading the model | {median(whole):.2f} | {min(whole):.2f} | {max(whole):.2f} |",
            f"| processor time of a text, two workers over one | {median(processor):.2f} | {min(processor):.2f} "
            f"| {max(processor):.2f} |",
        ]
    )


# -- a million texts --------------------------------------------------------------------------------------------------


def make_short_texts(count: int) -> list[str]:
    """Distinct texts of 10 to 40 characters, cut from those of the demo."""
    from mini_rate import read_passages

    joined = "".join(read_passages(5_000))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(joined) - 40, size=count)
    lengths = rng.integers(10, 41, size=count)
    return [
        f"{number} {joined[start : start + length]}"
        for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True))
    ]


def measure_bytes(folder: Path) -> int:
    """Of all files of a folder; one that is renamed meanwhile is left out."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:
            continue
    return sum(sizes)


def watch_embedding(count: int, folder: Path) -> list[tuple[float, float, float]]:
    """Seconds, MiB resident and MiB written, every `SAMPLE_S`, of a `peg-rag embed` of so many texts."""
    corpus = folder / "corpus.parquet"
    pq.write_table(pa.table({"text": make_short_texts(count)}), corpus)
    out = folder / "vectors.parquet"
    command = [sys.executable, "-m", "peg_rag.cli", "embed", str(corpus), "-o", str(out), "--model", "peg-mini"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    corpus_mib = corpus.stat().st_size / 2**20
    started = time.perf_counter()
    samples: list[tuple[float, float, float]] = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            resident = watched.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            break
        written = measure_bytes(folder) / 2**20 - corpus_mib
        samples.append((time.perf_counter() - started, resident, written))
        time.sleep(SAMPLE_S)
    if process.wait():
        raise SystemExit("peg-rag embed failed")
    assert pq.read_metadata(out).num_rows == count
    return samples


def report_million(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        samples = np.array(watch_embedding(options.million_texts, Path(name)))  # (samples, 3)
    seconds, resident, written = samples.T
    total = seconds[-1]
    is_writing = written > 0  # the first seconds are Python's and the model's start
    start = seconds[is_writing][0]
    lines = [
        f"{options.million_texts:,} texts of 10 to 40 characters through peg-mini by `peg-rag embed`, one thread; "
        f"{platform.machine()}, {os.cpu_count()} cores that other work kept busy (load {os.getloadavg()[0]:.0f}): "
        f"{total:.0f} s, {options.million_texts / total:,.0f} texts/s.",
        "",
        "| part of the run | resident, MiB (median) | most, MiB | written, MiB/s |",
        "|---|---:|---:|---:|",
    ]
    for part in range(1, 10, 2):
        edges = [start + (total - start) * tenth / 10 for tenth in (part, part + 1)]
        chosen = (seconds >= edges[0]) & (seconds < edges[1])
        rate = (written[chosen][-1] - written[chosen][0]) / (seconds[chosen][-1] - seconds[chosen][0])
        lines.append(
            f"| {10 * part} to {10 * part + 10} % | {np.median(resident[chosen]):.0f} | {resident[chosen].max():.0f} "
            f"| {rate:.1f} |"
        )
    if options.write:
        draw(samples)
        lines += ["", f"![memory and bytes written over time]({PICTURE.name})"]
    return "\n".join(lines)


def draw(samples: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, left = plt.subplots(figsize=(7, 3.2))
    left.plot(samples[:, 0], samples[:, 1], color="tab:blue")
    left.set(xlabel="seconds", ylabel="resident, MiB", ylim=(0, None))
    left.yaxis.label.set_color("tab:blue")
    right = left.twinx()
    right.plot(samples[:, 0], samples[:, 2], color="tab:orange")
    right.set(ylabel="written, MiB", ylim=(0, None))
    right.yaxis.label.set_color("tab:orange")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=768)
    parser.add_argument("--block-rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--million-texts", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where files are kept while it runs")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    options = parser.parse_args()
    if options.million:
        title, text = "A million short texts", report_million(options)
    else:
        title, text = "Ray, two workers", compare_workers(options)
    print(text)
    if options.write:
        write_section(RESULTS, HEAD, title, text)


if __name__ == "__main__":
    main()
