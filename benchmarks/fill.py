"""Filling `PEGIndex`: passages a second, processor time by step, bytes; in turns with another version of the package.

Passages of 200 characters with vectors of 384 numbers, as in `index.py`, go in 5,000 at a time, then `persist()`.
Tokenising is part of it, embedding is not. Each fill is a process of its own. The steps are measured inside of the
package, where SQLite's floor (writing rows, the log and the file) can be told from what Python and NumPy do.

    git worktree add /tmp/first 42f270d
    python benchmarks/fill.py --against /tmp/first
    python benchmarks/fill.py --against /tmp/first --write        # also writes benchmarks/results/fill.md
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "fill.md"
STEPS = {
    "validate": "checking and normalising",
    "build_postings": "tokenising, counting, sorting terms",
    "_insert_rows": "SQLite: rows of documents",
    "write_postings": "SQLite: rows of postings",
    "COMMIT": "SQLite: log, sync, checkpoint",
    "compact": "vector files",
}


def time_calls(owner: Any, name: str, totals: dict[str, float], label: str = "") -> None:
    """Add the processor time of every call of a function to `totals`."""
    original: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return original(*arguments, **options)
        finally:
            totals[label or name] = totals.get(label or name, 0.0) + time.thread_time() - started

    setattr(owner, name, timed)


def fill(count: int, dimension: int, folder: Path, with_steps: bool) -> dict[str, Any]:
    """Fill an index with the package that is imported."""
    from index import Data

    from peg_rag.index import PEGIndex

    steps: dict[str, float] = {}
    if with_steps:
        from peg_rag.index import compaction, forks, tables, validation

        owners = {"validate": validation.DocumentBatch, "compact": compaction.Compactor}
        for name in STEPS:
            if name != "COMMIT":
                time_calls(owners.get(name, tables), name, steps)
        execute = forks.Connection.execute
        commits: dict[str, float] = {}
        time_calls(forks.Connection, "execute", commits)
        timed = forks.Connection.execute

        def pick(connection: Any, sql: str, *arguments: Any) -> Any:
            return (timed if sql == "COMMIT" else execute)(connection, sql, *arguments)

        forks.Connection.execute = pick  # type: ignore[method-assign]
    parts = list(Data(count, dimension).slices())
    with PEGIndex(folder / "kb") as index:
        started = time.perf_counter()
        before = os.times()
        for part in parts:
            index.upsert(*part)
        index.persist()
        after = os.times()
        seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in (folder / "kb").iterdir())
    if with_steps:
        steps["COMMIT"] = commits["execute"]
    cpu = after.user + after.system - before.user - before.system
    return {"seconds": seconds, "cpu": cpu, "bytes": size, "steps": steps}


def run_fill(package: Path, options: argparse.Namespace, *, with_steps: bool = False) -> dict[str, Any]:
    """Fill an index in a process of its own, with the package in a folder."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [sys.executable, __file__, "--task", folder, "--count", str(options.count)]
        command += ["--dimension", str(options.dimension), *(["--steps"] if with_steps else [])]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    outcome: dict[str, Any] = json.loads(output.splitlines()[-1])
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the indexes are kept while they are measured")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(fill(options.count, options.dimension, options.task, options.steps)))
        return
    packages = {"now": Path(__file__).parent.parent} | (
        {options.against.name: options.against} if options.against else {}
    )
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in packages}
    for turn in range(options.rounds):
        for name, package in list(packages.items())[:: -1 if turn % 2 else 1]:
            rounds[name].append(run_fill(package, options))
            print(
                name, {key: rounds[name][-1][key] for key in ("seconds", "cpu", "bytes")}, file=sys.stderr, flush=True
            )
    steps = run_fill(packages["now"], options, with_steps=True)
    text = make_tables(options, rounds, steps)
    print(text)
    if options.write:
        RESULTS.write_text(f"# Filling an index\n\nMade by `benchmarks/fill.py --write`.\n\n{text}\n", encoding="utf-8")


def make_tables(options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]], steps: dict[str, Any]) -> str:
    lines = [
        f"{options.count:,} passages of 200 characters, {options.dimension} dimensions; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores that other work kept busy (load "
        f"{os.getloadavg()[0]:.0f}). {options.rounds} turns.",
        "",
        "| version | passages/s, fastest | passages/s, median | µs of processor time a passage | bytes a passage |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, outcomes in rounds.items():
        seconds = [outcome["seconds"] for outcome in outcomes]
        cpu = min(outcome["cpu"] for outcome in outcomes)
        lines.append(
            f"| {name} | {options.count / min(seconds):,.0f} | {options.count / statistics.median(seconds):,.0f} "
            f"| {1e6 * cpu / options.count:.1f} | {outcomes[0]['bytes'] / options.count:,.0f} |"
        )
    lines += ["", "Processor time now, by step:", "", "| step | µs a passage |", "|---|---:|"]
    for name, label in STEPS.items():
        lines.append(f"| {label} | {1e6 * steps['steps'].get(name, 0.0) / options.count:.1f} |")
    lines.append(f"| all, with what lies between | {1e6 * steps['cpu'] / options.count:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
