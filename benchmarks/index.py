"""The index against LangChain's FAISS, Chroma and InMemoryVectorStore: adding, searching, filtering, deleting, opening.

Vectors and Chinese-like texts are made from a seed; every system gets the same ones, already embedded. Each system is
measured in a process of its own, one after the other, and opened again in a fresh process after the imports. The right
answer of a search is that of brute force over all vectors. `FAISS (all)` is LangChain's FAISS asked to fetch every
document before it filters, which is what a right answer takes there.

    python benchmarks/index.py                      # 100,000 x 384, all systems
    python benchmarks/index.py --count 20000        # quicker
    python benchmarks/index.py --million            # 1,000,000 x 384 in PEGIndex: memory, time, recall
    python benchmarks/index.py --write              # also writes benchmarks/results/index.md
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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from langchain_core.embeddings import Embeddings

from peg_rag.index import PEGIndex

HEAD = """# The index

Made by `benchmarks/index.py --write` on a machine that did other work as well: compare the ratios, not the times.
"""
RESULTS = Path(__file__).parent / "results" / "index.md"
SOURCES = 100  # a filter on one of them passes 1 % of the documents
SLICE = 5_000  # documents per call: Chroma refuses more than 5,461
BULK = 100_000  # documents per call when there is a million of them
K = 10
COUNT = 100_000
DIMENSION = 384


class Data:
    """Documents of Zipf-distributed characters and clustered unit vectors, the same for every process."""

    def __init__(self, count: int, dimension: int, characters: int = 200) -> None:
        self.count, self.dimension, self.characters = count, dimension, characters
        rng = np.random.default_rng(7)
        self.centers = rng.standard_normal((max(count // 200, 1), dimension)).astype(np.float32)
        self.queries = self._draw_vectors(rng, 50)

    def _draw_vectors(self, rng: np.random.Generator, count: int) -> np.ndarray:
        clusters = rng.integers(0, len(self.centers), count)
        vectors = self.centers[clusters] + rng.standard_normal((count, self.dimension)).astype(np.float32)
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def vectors(self, start: int, stop: int) -> np.ndarray:
        return self._draw_vectors(np.random.default_rng((1, start)), stop - start)

    def texts(self, start: int, stop: int) -> list[str]:
        rng = np.random.default_rng((2, start))
        ranks = np.minimum(rng.zipf(1.1, (stop - start, self.characters)), 4_000) + 0x4E00
        return [line.astype("<u4").tobytes().decode("utf-32-le") for line in ranks]

    def slices(self) -> Iterator[tuple[list[str], list[str], np.ndarray, list[dict[str, Any]]]]:
        for start in range(0, self.count, SLICE):
            stop = min(start + SLICE, self.count)
            ids = [f"doc-{i}" for i in range(start, stop)]
            metadatas = [{"source": f"file{i % SOURCES}.txt", "page": i % 7} for i in range(start, stop)]
            yield ids, self.texts(start, stop), self.vectors(start, stop), metadatas

    def all_vectors(self) -> np.ndarray:
        return np.concatenate([vectors for _, _, vectors, _ in self.slices()])

    def right_answers(self, source: str | None) -> list[list[str]]:
        rows = np.arange(self.count)
        if source is not None:
            rows = rows[rows % SOURCES == int(source[4:-4])]
        scores = self.queries @ self.all_vectors()[rows].T
        return [[f"doc-{rows[i]}" for i in np.argsort(-line)[:K]] for line in scores]


class Store(Protocol):
    """What is measured of each system."""

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None: ...
    def finish(self) -> None: ...
    def search(self, vector: np.ndarray, source: str | None) -> list[str]: ...
    def delete(self, ids: list[str]) -> None: ...


class Given(Embeddings):
    """An embeddings object that answers with vectors computed before, so that only the store is measured."""

    def __init__(self) -> None:
        self.vectors: list[list[float]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.vectors

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


class Peg:
    def __init__(self, path: Path, kind: Any = None) -> None:
        self.index = PEGIndex(path, kind=kind)

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None:
        self.index.upsert(ids, texts, vectors, metadatas)

    def finish(self) -> None:
        self.index.persist()

    def search(self, vector: np.ndarray, source: str | None) -> list[str]:
        where = None if source is None else {"source": source}
        return [hit.id for hit in self.index.search(vector, k=K, where=where)]

    def delete(self, ids: list[str]) -> None:
        self.index.delete(ids)


class LangChainFaiss:
    """In memory; saved to a folder with pickle. `fetch_k` documents are fetched before the filter."""

    def __init__(self, path: Path, fetch_k: int = 20) -> None:
        import faiss
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS
        from langchain_community.vectorstores.utils import DistanceStrategy

        self.path, self.fetch_k = path, fetch_k
        ip = DistanceStrategy.MAX_INNER_PRODUCT
        if path.exists():
            self.store = FAISS.load_local(
                str(path), Given(), allow_dangerous_deserialization=True, distance_strategy=ip
            )
        else:
            empty = faiss.IndexFlatIP(DIMENSION)
            self.store = FAISS(Given(), empty, InMemoryDocstore(), {}, distance_strategy=ip)

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None:
        self.store.add_embeddings(zip(texts, vectors, strict=True), metadatas, ids)

    def finish(self) -> None:
        self.store.save_local(str(self.path))

    def search(self, vector: np.ndarray, source: str | None) -> list[str]:
        where = None if source is None else {"source": source}
        hits = self.store.similarity_search_with_score_by_vector(vector, K, where, self.fetch_k)  # type: ignore[arg-type]
        return [str(document.id) for document, _ in hits]

    def delete(self, ids: list[str]) -> None:
        self.store.delete(ids)


class LangChainChroma:
    def __init__(self, path: Path) -> None:
        from langchain_chroma import Chroma

        self.given = Given()
        cosine = {"hnsw:space": "cosine"}
        self.store = Chroma("documents", self.given, persist_directory=str(path), collection_metadata=cosine)

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None:
        self.given.vectors = vectors.tolist()
        self.store.add_texts(texts, metadatas, ids)

    def finish(self) -> None: ...

    def search(self, vector: np.ndarray, source: str | None) -> list[str]:
        where = None if source is None else {"source": source}
        return [str(document.id) for document in self.store.similarity_search_by_vector(vector.tolist(), K, where)]

    def delete(self, ids: list[str]) -> None:
        self.store.delete(ids)


class LangChainInMemory:
    """Saved to one JSON file."""

    def __init__(self, path: Path) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore

        self.path, self.given = path, Given()
        self.store = (
            InMemoryVectorStore.load(str(path), self.given) if path.exists() else InMemoryVectorStore(self.given)
        )

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None:
        self.given.vectors = vectors.tolist()
        self.store.add_texts(texts, metadatas, ids=ids)

    def finish(self) -> None:
        self.store.dump(str(self.path))

    def search(self, vector: np.ndarray, source: str | None) -> list[str]:
        passes = None if source is None else lambda document: document.metadata["source"] == source
        hits = self.store.similarity_search_with_score_by_vector(vector.tolist(), K, passes)
        return [str(document.id) for document, _ in hits]

    def delete(self, ids: list[str]) -> None:
        self.store.delete(ids)


class RawFaiss:
    """Only the vectors, in `IndexFlatIP`: no texts, no metadata, nothing on disk."""

    def __init__(self, path: Path) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(DIMENSION)

    def add(self, ids: list[str], texts: list[str], vectors: np.ndarray, metadatas: list[dict[str, Any]]) -> None:
        self.index.add(vectors)

    def finish(self) -> None: ...

    def search(self, vector: np.ndarray, source: str | None) -> list[str]:
        return [f"doc-{i}" for i in self.index.search(vector[None], K)[1][0]]

    def delete(self, ids: list[str]) -> None: ...


SYSTEMS: dict[str, Callable[[Path], Store]] = {
    "PEGIndex": Peg,
    "FAISS IndexFlatIP alone": RawFaiss,
    "LangChain FAISS": LangChainFaiss,
    "LangChain FAISS (all)": lambda path: LangChainFaiss(path, fetch_k=COUNT),
    "LangChain Chroma": LangChainChroma,
    "LangChain InMemoryVectorStore": LangChainInMemory,
}
NOT_MEASURED = {  # the same as another row, or not there at all
    "LangChain FAISS (all)": ("add", "search", "delete", "open"),
    "FAISS IndexFlatIP alone": ("add", "filtered", "repeated", "delete", "open"),
}


# -- measuring, in processes of their own -----------------------------------------------------------------------------


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run_queries(
    store: Store, queries: np.ndarray, sources: Sequence[str | None], budget_s: float
) -> tuple[list[float], list[Any]]:
    """Seconds and answers, query by query, until the budget is spent."""
    seconds, results = [], []
    for query, source in zip(queries, sources, strict=True):
        start = time.perf_counter()
        results.append(store.search(query, source))
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > budget_s:
            break
    return seconds, results


def recall(results: list[list[str]], expected: list[list[str]]) -> float:
    """Share of the true k nearest that were found."""
    pairs = list(zip(results, expected, strict=False))
    return statistics.fmean(len(set(a) & set(b)) / len(b) for a, b in pairs)


def measure(name: str, path: Path, data: Data) -> dict[str, float]:
    store = SYSTEMS[name](path)
    adding = sum(seconds_of(partial(store.add, *part)) for part in data.slices())
    result = {"add": adding + seconds_of(store.finish)}
    store.search(data.queries[0], None)
    seconds, results = run_queries(store, data.queries, [None] * len(data.queries), 30)
    result["search"] = statistics.median(seconds)
    result["search right"] = recall(results, data.right_answers(None))
    if "filtered" not in NOT_MEASURED.get(name, ()):
        different = [f"file{i % SOURCES}.txt" for i in range(len(data.queries))]
        seconds, results = run_queries(store, data.queries, different, 30)
        result["filtered"] = statistics.median(seconds)
        seconds, results = run_queries(store, data.queries, ["file3.txt"] * len(data.queries), 30)
        expected = data.right_answers("file3.txt")
        result["repeated"] = statistics.median(seconds[1:] or seconds)
        result["filtered right"] = recall(results, expected)
    if "delete" not in NOT_MEASURED.get(name, ()):
        result["delete"] = seconds_of(lambda: store.delete([f"doc-{i}" for i in range(0, data.count, 100)]))
    return result


def open_again(name: str, path: Path, data: Data) -> dict[str, float]:
    """Open and answer one query; the imports are done before the clock starts."""
    warm = SYSTEMS[name](path.with_name("other"))  # imports, and nothing that is there
    del warm
    start = time.perf_counter()
    SYSTEMS[name](path).search(data.queries[0], None)
    return {"open": time.perf_counter() - start}


def in_process(task: str, name: str, path: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--task", task, "--system", name, "--path", str(path)]
    command += ["--count", str(options.count), "--dimension", str(options.dimension)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return answer


def compare(options: argparse.Namespace) -> str:
    rows: dict[str, dict[str, float]] = {}
    for name in SYSTEMS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kb"
            rows[name] = in_process("measure", name, path, options)
            if "open" not in NOT_MEASURED.get(name, ()):
                rows[name] |= in_process("open", name, path, options)
            for column in NOT_MEASURED.get(name, ()):
                rows[name].pop(column, None)
        print(name, {key: round(value, 4) for key, value in rows[name].items()}, file=sys.stderr, flush=True)
    return table(rows, options)


def table(rows: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    columns = {
        "add": "add, s",
        "search": "search, ms",
        "filtered": "filtered, ms",
        "repeated": "same filter again, ms",
        "filtered right": "filtered: right",
        "delete": "delete 1 %, s",
        "open": "open + first query, s",
    }
    lines = [
        f"{options.count:,} documents of 200 characters, {options.dimension} dimensions, k = {K}, one query at a time; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores. Medians.",
        "",
        "| | " + " | ".join(columns.values()) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in rows.items():
        cells = [_format_cell(column, row.get(column)) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *ratios(rows)])


def _format_cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    if column == "filtered right":
        return f"{100 * value:.0f} %"
    return f"{1000 * value:.1f}" if column in ("search", "filtered", "repeated") else f"{value:.2f}"


def ratios(rows: dict[str, dict[str, float]]) -> list[str]:
    peg, chroma = rows["PEGIndex"], rows["LangChain Chroma"]
    everything, alone = rows["LangChain FAISS (all)"], rows["FAISS IndexFlatIP alone"]
    return [
        f"* add: {chroma['add'] / peg['add']:.1f} times as fast as Chroma",
        f"* search: {alone['search'] / peg['search']:.2f} times as fast as FAISS's flat index alone",
        f"* filtered search (1 % passes): {everything['filtered'] / peg['filtered']:.1f} times as fast as LangChain "
        f"FAISS fetching everything, {everything['repeated'] / peg['repeated']:.0f} times for a filter used before",
        f"* open + first query: {chroma['open'] / peg['open']:.1f} times as fast as Chroma",
    ]


# -- a million --------------------------------------------------------------------------------------------------------


def million(options: argparse.Namespace) -> str:
    """Fill an index with a million documents, then open it in a fresh process and search."""
    lines = []
    for kind in options.kinds.split(","):
        if options.folder:
            Path(options.folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "kb"
            filling = in_process("fill", kind, path, options)
            search = in_process("ask", kind, path, options)
            lines.append(
                f"| {kind} | {filling['seconds']:.0f} | {filling['peak']:.2f} | {search['open']:.2f} "
                f"| {search['median']:.1f} | {search['slowest']:.1f} | {search['peak']:.2f} "
                f"| {100 * search['right']:.1f} % |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    head = (
        f"{options.count:,} documents, {options.dimension} dimensions, clustered vectors; recall@10 by brute force.\n\n"
        "| kind | fill, s | peak GiB | open + first query, s | search, ms (median) | slowest | peak GiB | recall@10 |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    return "\n".join([head, *lines])


def fill(kind: str, path: Path, data: Data) -> dict[str, float]:
    store = Peg(path, kind)
    start = time.perf_counter()
    parts: list[Any] = []
    for part in data.slices():
        parts.append(part)
        if len(parts) * SLICE == BULK:
            ids, texts, vectors, metadatas = zip(*parts, strict=True)
            store.add([*chain(*ids)], [*chain(*texts)], np.concatenate(vectors), [*chain(*metadatas)])
            parts = []
    for part in parts:
        store.add(*part)
    store.finish()
    return {"seconds": time.perf_counter() - start, "peak": peak_gib()}


def ask(kind: str, path: Path, data: Data) -> dict[str, float]:
    started = time.perf_counter()
    store = Peg(path)
    store.search(data.queries[0], None)
    open_s = time.perf_counter() - started
    seconds, results = run_queries(store, data.queries, [None] * len(data.queries), 60)
    peak = peak_gib()
    best = [(np.empty(0), np.empty(0, dtype=np.int64))] * len(data.queries)
    for start in range(0, data.count, SLICE):
        scores = data.queries @ data.vectors(start, min(start + SLICE, data.count)).T
        for i, line in enumerate(scores):
            values = np.concatenate([best[i][0], line])
            ids = np.concatenate([best[i][1], np.arange(start, start + len(line))])
            top = np.argsort(-values)[:K]
            best[i] = values[top], ids[top]
    expected = [[f"doc-{i}" for i in ids] for _, ids in best]
    return {
        "open": open_s, "median": 1000 * statistics.median(seconds), "slowest": 1000 * max(seconds), "peak": peak,
        "right": recall(results, expected),
    }  # fmt: skip


def peak_gib() -> float:
    """The most memory this process has had resident, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# -- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    global COUNT, DIMENSION
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--kinds", default="hnsw,ivfpq", help="for --million")
    parser.add_argument("--folder", help="where --million keeps its files while it runs")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.count = options.count or (1_000_000 if options.million else 100_000)
    COUNT, DIMENSION = options.count, options.dimension
    if options.task:
        task = {"measure": measure, "open": open_again, "fill": fill, "ask": ask}[options.task]
        characters = 20 if options.task in ("fill", "ask") else 200
        print(json.dumps(task(options.system, options.path, Data(COUNT, DIMENSION, characters))))
        return
    section, text = ("A million", million(options)) if options.million else ("Beside other stores", compare(options))
    print(text)
    if options.write:
        write_section(RESULTS, HEAD, section, text)


def write_section(file: Path, head: str, title: str, text: str) -> None:
    """Replace one section of a results file, keeping the others; a new file begins with `head`."""
    file.parent.mkdir(exist_ok=True)
    text_before = file.read_text() if file.exists() else head
    head, *sections = text_before.split("\n## ")
    bodies = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip("\n") for part in sections}
    bodies[title] = text
    file.write_text(head.rstrip("\n") + "\n" + "".join(f"\n## {name}\n\n{body}\n" for name, body in bodies.items()))


if __name__ == "__main__":
    main()
