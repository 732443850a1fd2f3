"""PostgreSQL and Milvus Lite beside the embedded index: the same hits, filling, and a server that is killed.

Quality: hybrid, dense and lexical nDCG@10 with peg-mini on three Chinese evaluation sets, by every store; the servers'
hybrid should be within half a point of the embedded index. Filling: passages of some 200 characters made of the sets'
text, with random vectors of 256 numbers; then queries, one at a time, the stores in turns. Crash: PostgreSQL is killed
with SIGKILL while it is filled and started again, and every acknowledged document is asked for. Milvus Lite lives in
the process that writes, so that process is killed and another goes on.

    python benchmarks/stores.py --data ../shared/data/eval
    python benchmarks/stores.py --data ../shared/data/eval --write      # also writes benchmarks/results/stores.md
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from postgres_server import NO_SERVER, PostgresServer, find_binaries

from peg_rag import PEGEncoder
from peg_rag.errors import StoreError
from peg_rag.evaluation import load_beir, score_run
from peg_rag.evaluation.datasets import RetrievalDataset
from peg_rag.stores import Store, open_store

RESULTS = Path(__file__).parent / "results" / "stores.md"
SETS = ("tourism-kdconv", "encyclopedia-xquad_zh", "science-csl")
JUDGED = 200  # queries of a set; Milvus Lite takes a second for some
STORES = ("PEGIndex", "PostgreSQL + pgvector", "Milvus Lite")
MODES = ("hybrid", "dense", "lexical")
BATCH = 1000
DIMENSION = 256
QUERIES = 30


@contextmanager
def run_servers(folder: Path, names: list[str]) -> Iterator[dict[str, str]]:
    """The location of a new store of each of these kinds, with `{}` for its name."""
    locations = {
        "PEGIndex": f"{folder}/kb-{{}}",
        "Milvus Lite": f"milvus://{folder}/milvus.db?collection={{}}",
    }
    if "PostgreSQL + pgvector" not in names:
        yield {name: locations[name] for name in names}
        return
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit(NO_SERVER)
    server = PostgresServer(binaries, folder, sync=True)
    server.start()
    try:
        locations["PostgreSQL + pgvector"] = server.url("{}")
        yield {name: locations[name] for name in names}
    finally:
        server.stop()


def fill(store: Store, ids: list[str], texts: list[str], vectors: np.ndarray) -> None:
    for start in range(0, len(ids), BATCH):
        rows = slice(start, start + BATCH)
        store.upsert(ids[rows], texts[rows], vectors[rows], [{"n": row % 100} for row in range(len(ids))[rows]])


def measure_quality(store: Store, dataset: RetrievalDataset, encoder: PEGEncoder) -> dict[str, float]:
    """nDCG@10 by mode."""
    texts = list(dataset.corpus.values())
    fill(store, list(dataset.corpus), texts, encoder.encode_documents(texts))
    store.persist()
    names = sorted(dataset.qrels)[:JUDGED]
    queries = [dataset.queries[name] for name in names]
    vectors = encoder.encode_queries(queries)
    qrels = {name: dataset.qrels[name] for name in names}
    scores = {}
    for mode in MODES:
        hits = store.search_batch(vectors, queries, k=10, mode=mode)  # type: ignore[arg-type]
        run = {name: {hit.id: hit.score for hit in found} for name, found in zip(names, hits, strict=True)}
        scores[mode] = float(score_run(run, qrels, ["nDCG@10"])["nDCG@10"].mean())
    return scores


def read_passages(data: Path, count: int) -> list[str]:
    """Passages of 200 characters, cut from the texts of the sets as often as it takes."""
    texts: list[str] = []
    for name in SETS:
        with gzip.open(data / name / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    joined = "".join(texts)
    starts = np.random.default_rng(0).integers(0, len(joined) - 200, size=count)
    return [joined[start : start + 200] for start in starts.tolist()]


def measure_speed(stores: dict[str, Store], texts: list[str]) -> list[str]:
    """A row for each store: seconds to fill it, and medians of queries for which the stores take turns."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(len(texts), DIMENSION)).astype(np.float32)
    cells = {name: measure_filling(store, texts, vectors) for name, store in stores.items()}
    for mode, where in [("dense", None), ("lexical", None), ("hybrid", None), ("hybrid", {"n": 7})]:
        seconds: dict[str, list[float]] = {name: [] for name in stores}
        for query in range(-1, QUERIES):  # the first is not counted: it opens files and fills caches
            for name, store in stores.items():
                started = time.perf_counter()
                store.search(vectors[query], texts[query][:20], mode=mode, where=where)  # type: ignore[arg-type]
                if query >= 0:
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            cells[name].append(f"{1000 * median:.1f} ({median / next(iter(medians.values())):.1f})")
    return [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]


def measure_filling(store: Store, texts: list[str], vectors: np.ndarray) -> list[str]:
    started = time.perf_counter()
    fill(store, [str(row) for row in range(len(texts))], texts, vectors)
    filled = time.perf_counter() - started
    started = time.perf_counter()
    store.persist()
    persisted = time.perf_counter() - started
    assert len(store) == len(texts)
    return [f"{filled:.0f}", f"{persisted:.0f}"]


def measure_crash(folder: Path, texts: list[str], kills: int = 5) -> str:
    """Kill PostgreSQL `kills` times while it is filled, and count what it lost."""
    binaries = find_binaries()
    assert binaries is not None
    server = PostgresServer(binaries, folder, sync=True)
    server.start()
    acknowledged: list[str] = []
    try:
        with open_store(server.url("crash"), timeout_s=30) as store:
            vectors = np.random.default_rng(2).normal(size=(len(texts), DIMENSION)).astype(np.float32)
            steps = range(0, len(texts), BATCH)
            deaths = set(np.linspace(0, len(steps) - 1, kills + 2).astype(int)[1:-1].tolist())
            for step, start in enumerate(steps):
                ids = [str(row) for row in range(start, min(start + BATCH, len(texts)))]
                rows = slice(start, start + BATCH)
                for _ in range(10):
                    try:
                        store.upsert(ids, texts[rows], vectors[rows])
                        break
                    except StoreError:
                        time.sleep(0.5)
                acknowledged += ids
                if step in deaths:
                    server.kill()
                    server.start()
            lost = set(acknowledged) - set(store.ids())
    finally:
        server.stop()
    return f"{len(acknowledged):,} acknowledged in {len(steps)} writes, {kills} kills, {len(lost)} lost"


def write_passages(url: str, data: Path, count: int, first: int) -> None:
    """Fill a store from some passage on, and print how many it has after every write that returned."""
    texts = read_passages(data, count)
    vectors = np.random.default_rng(2).normal(size=(count, DIMENSION)).astype(np.float32)
    with open_store(url, timeout_s=60) as store:
        for start in range(first, count, BATCH):
            rows = slice(start, start + BATCH)
            store.upsert([str(row) for row in range(count)[rows]], texts[rows], vectors[rows])
            print(start + len(texts[rows]), flush=True)


def measure_writer_crash(url: str, data: Path, count: int, kills: int = 5) -> str:
    """Kill the process that writes `kills` times, somewhere in its next write, and count what the store lost."""
    rng = np.random.default_rng(3)
    marks = np.linspace(0, count, kills + 2).astype(int)[1:-1].tolist()
    done = 0
    for mark in [*marks, count]:
        arguments = ["--data", str(data), "--count", str(count), "--write-to", url, "--first", str(done)]
        writer = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        before = time.perf_counter()
        for line in writer.stdout:
            done = int(line)
            seconds, before = time.perf_counter() - before, time.perf_counter()
            if done >= mark and mark < count:
                time.sleep(seconds * rng.random())
                writer.kill()
        if writer.wait() and mark == count:
            raise SystemExit("the last writer failed")
    texts = read_passages(data, count)
    with open_store(url, read_only=True, timeout_s=60) as store:
        lost = 0
        for start in range(0, done, BATCH):
            stored = {record.id: record.text for record in store.get([str(row) for row in range(start, start + BATCH)])}
            lost += sum(stored.get(str(row)) != texts[row] for row in range(start, min(start + BATCH, done)))
        extra = len(store) - done
    return f"{done:,} acknowledged, {kills} kills, {lost} lost, {extra} too many"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of evaluation sets")
    parser.add_argument("--count", type=int, default=100_000, help="passages to fill")
    parser.add_argument("--skip", nargs="*", default=[], choices=["quality", "speed", "crash"])
    parser.add_argument("--stores", nargs="*", default=[], choices=STORES, help="default: all")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--write-to", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_to:
        write_passages(options.write_to, options.data, options.count, options.first)
        return
    lines = ["# Stores", "", f"`python benchmarks/stores.py`, {time.strftime('%Y-%m-%d', time.gmtime())}."]

    def report(*new: str) -> None:
        lines.extend(new)
        print("\n".join(new), flush=True)
        if options.write:
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="peg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "crash").mkdir()
        (folder / "servers").mkdir()
        for path in folder.iterdir():
            path.chmod(0o755)
        with run_servers(folder / "servers", options.stores or list(STORES)) as locations:
            if "quality" not in options.skip:
                report("", "nDCG@10 with peg-mini, without reranking:", "", "| set | store | hybrid | dense | BM25 |")
                report("|---|---|---:|---:|---:|")
                with PEGEncoder("peg-mini") as encoder:
                    for number, dataset_name in enumerate(SETS):
                        dataset = load_beir(options.data / dataset_name)
                        for store_name, location in locations.items():
                            with open_store(location.format(f"q{number}"), identity=encoder.identity) as store:
                                scores = measure_quality(store, dataset, encoder)
                            cells = " | ".join(f"{scores[mode]:.4f}" for mode in MODES)
                            report(f"| {dataset_name} ({len(dataset.corpus):,}) | {store_name} | {cells} |")
            if "speed" not in options.skip:
                texts = read_passages(options.data, options.count)
                report(
                    "",
                    f"{options.count:,} passages of 200 characters, {DIMENSION} dimensions; medians of {QUERIES} "
                    "queries in turns, and how many times the first store's that is:",
                    "",
                )
                report("| store | fill, s | persist, s | dense, ms | BM25, ms | hybrid, ms | hybrid, 1 % passes, ms |")
                report("|---|---:|---:|---:|---:|---:|---:|")
                with ExitStack() as stack:
                    stores = {
                        store_name: stack.enter_context(open_store(location.format("speed"), timeout_s=60))
                        for store_name, location in locations.items()
                    }
                    report(*measure_speed(stores, texts))
        if "crash" not in options.skip:
            if "PostgreSQL + pgvector" in (options.stores or ["PostgreSQL + pgvector"]):
                outcome = measure_crash(folder / "crash", read_passages(options.data, options.count))
                report("", f"PostgreSQL killed while it is filled: {outcome}.")
            if "Milvus Lite" in (options.stores or ["Milvus Lite"]):
                url = f"milvus://{folder}/crash/milvus.db?collection=crash"
                outcome = measure_writer_crash(url, options.data, options.count)
                report("", f"Milvus Lite, the process that writes killed while it is filled: {outcome}.")


if __name__ == "__main__":
    main()
