"""Load on `peg-rag serve`: many clients for a minute, then more than the server takes on.

Starts the server in a process of its own on 127.0.0.1 over a store of the demo corpus (or a copy of the one given), and
lets clients, each on a connection of its own, send what people send: searches, questions, single and batched
embeddings, uploads and deletions. Prints requests per second, latencies, statuses and, after a warm-up, the server's
memory; exits with 1 if anything answered 5xx, if memory grew by more than it may, if a tenth of the writes or more
were answered 429, or if any other 429 came before the limit. The clients run on the same machine and take their share
of its cores, so the rates are a lower bound.

    python benchmarks/load.py                       # 64 clients, 60 s, peg-mini
    python benchmarks/load.py --clients 16 --seconds 10 --store kb
    python benchmarks/load.py --only writes --clients 4 --seconds 600 --plot memory.png    # does memory level off?
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

QUESTIONS = [
    "花呗怎么绑定银行卡？",
    "逾期还款会有什么后果",
    "故宫门票多少钱",
    "如何申请医保报销",
    "合同违约金怎么计算",
    "感冒发烧应该吃什么药",
    "住房公积金提取条件",
    "北京到上海的高铁要多久",
]
KEY = "a-key-for-the-benchmark-alone"
WRITES = ("upload", "upload html", "delete")
AUTH = {"Authorization": f"Bearer {KEY}"}
SAMPLES = 120  # of the memory
MAX_REFUSED = 0.1  # of the writes, with 429
MAX_GROWTH = 1.1  # of the memory, last quarter of the time over the first
PASSAGES = ["、".join(QUESTIONS[i:] + QUESTIONS[:i]) for i in range(len(QUESTIONS))]


@dataclass
class Tally:
    """What came back, by kind of request."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # answered 429
    without_retry_after: int = 0

    def add(self, kind: str, response: httpx.Response, seconds: float) -> None:
        self.statuses[response.status_code] += 1
        self.seconds.setdefault(kind, []).append(seconds)
        self.refused[kind] += response.status_code == 429
        self.without_retry_after += response.status_code == 429 and "retry-after" not in response.headers

    @property
    def refused_writes(self) -> float:
        """The share of writes that were answered 429."""
        writes = sum(len(self.seconds.get(kind, ())) for kind in WRITES)
        return sum(self.refused[kind] for kind in WRITES) / max(1, writes)

    @property
    def refused_reads(self) -> int:
        return sum(count for kind, count in self.refused.items() if kind not in WRITES)


Requests = Iterator[tuple[str, str, str, dict[str, Any]]]


def requests_of(client_number: int, model: str, only: str) -> Requests:
    """An endless mixture: (kind, method, path, arguments). Texts differ, so that nothing is cached."""
    reads = reads_of(client_number, model)
    writes = writes_of(client_number)
    while True:
        if only != "writes":
            yield from itertools.islice(reads, 4)
        if only != "reads":
            yield next(writes)


def reads_of(client_number: int, model: str) -> Requests:
    chance = random.Random(client_number)
    for number in itertools.count():
        question = f"{chance.choice(QUESTIONS)}（{client_number}-{number}）"
        yield "search", "POST", "/search", {"json": {"query": question, "k": 10}}
        yield "ask", "POST", "/ask", {"json": {"question": question}}
        body: dict[str, Any] = {"model": model, "input": question, "input_type": "query"}
        yield "embed 1", "POST", "/v1/embeddings", {"json": body}
        batch = [f"{chance.choice(PASSAGES)}{number}" for _ in range(32)]
        body = {"model": model, "input": batch, "encoding_format": "base64"}
        yield "embed 32", "POST", "/v1/embeddings", {"json": body}


def writes_of(client_number: int) -> Requests:
    """Files added, replaced and deleted, so that the store stays as large as it was: three names for each client."""
    chance = random.Random(-client_number)
    for number in itertools.count():
        text = "\n\n".join(f"{chance.choice(PASSAGES)}（{client_number}-{number}-{part}）" for part in range(20))
        for name, content in (("a.txt", text), ("b.md", f"# {client_number}\n\n{text}")):
            yield "upload", "POST", "/documents", upload_of(f"{client_number}-{name}", content)
        paragraphs = text.replace("\n\n", "</p><p>")
        yield "upload html", "POST", "/documents", upload_of(f"{client_number}-c.html", f"<p>{paragraphs}</p>")
        yield "delete", "DELETE", f"/documents/{document_id(f'uploads/{client_number}-a.txt')}", {"headers": AUTH}


def upload_of(name: str, content: str) -> dict[str, Any]:
    return {"files": {"files": (name, content.encode())}, "headers": AUTH}


def document_id(source: str) -> str:
    return base64.urlsafe_b64encode(source.encode()).decode().rstrip("=")


async def one_client(client: httpx.AsyncClient, number: int, until: float, tally: Tally, model: str, only: str) -> None:
    for kind, method, path, arguments in requests_of(number, model, only):
        if time.monotonic() > until:
            return
        start = time.perf_counter()
        response = await client.request(method, path, **arguments)
        tally.add(kind, response, time.perf_counter() - start)


async def load(
    url: str, clients: int, seconds: float, process: psutil.Process, model: str, only: str
) -> tuple[Tally, list[int]]:
    """The answers to that many clients, a connection each, and the server's resident memory as time went by."""
    tally = Tally()
    memory: list[int] = []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def sample() -> None:
        while time.monotonic() < until:
            memory.append(process.memory_info().rss)
            await asyncio.sleep(seconds / SAMPLES)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        until = time.monotonic() + seconds
        await asyncio.gather(sample(), *(one_client(client, n, until, tally, model, only) for n in range(clients)))
    return tally, memory


async def flood(url: str, clients: int, model: str) -> Tally:
    """That many requests at the same moment, more than the server takes on."""
    tally = Tally()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            start = time.perf_counter()
            body = {"model": model, "input": [f"{text}{number}" for text in PASSAGES * 8]}
            tally.add("flood", await client.post("/v1/embeddings", json=body), time.perf_counter() - start)

        await asyncio.gather(*map(one, range(clients)))
    return tally


@contextmanager
def server(store: Path, model: str, max_in_flight: int) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a server over the store."""
    command = [sys.executable, "-c", "from peg_rag.cli import main; main()", "serve", str(store), "--port", "0"]
    command += ["--model", model, "--max-in-flight", str(max_in_flight)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "PEG_RAG_API_KEYS": KEY}
        )
        try:
            yield wait_for_address(process, log), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def wait_for_address(process: "subprocess.Popen[bytes]", log: IO[str]) -> str:
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up:
        log.seek(0)
        match = re.search(r"running on (http://[\d.]+:\d+)", log.read())
        if match:
            return match[1]
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def demo_store(folder: Path, model: str) -> Path:
    """The demo corpus as a store."""
    import gzip

    from peg_rag import PEGEncoder, PEGIndex
    from peg_rag.ingest import sync

    archive = Path(__file__).resolve().parent.parent / "peg_rag" / "assets" / "demo" / "passages.jsonl.gz"
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "passages.jsonl").write_bytes(gzip.decompress(archive.read_bytes()))
    with PEGEncoder(model) as encoder, PEGIndex(folder / "kb", identity=encoder.identity) as index:
        sync(corpus, index, encoder, folder / "kb", model=model)
        print(f"store: {len(index):,} passages, {encoder.identity}")
    return folder / "kb"


def report(tally: Tally, seconds: float, clients: int) -> None:
    everything = [value for values in tally.seconds.values() for value in values]
    print(f"\n{clients} clients, {seconds:.0f} s: {len(everything) / seconds:,.0f} requests/s; ", end="")
    print("statuses " + json.dumps(dict(sorted(tally.statuses.items()))))
    print("\n| request | count | p50 ms | p90 ms | p99 ms | max ms |\n|---|---:|---:|---:|---:|---:|")
    for kind, values in [*sorted(tally.seconds.items()), ("all", everything)]:
        cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
        row = [1000 * value for value in (cuts[49], cuts[89], cuts[98], max(values))]
        print(f"| {kind} | {len(values):,} | " + " | ".join(f"{value:,.0f}" for value in row) + " |")


def plot(memory: list[int], seconds: float, title: str, file: Path) -> None:
    """The server's memory as time went by."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    minutes = [seconds / 60 * number / len(memory) for number in range(len(memory))]
    axes.plot(minutes, [value / 2**20 for value in memory])
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", title=title, ylim=(0, 1.15 * max(memory) / 2**20))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def growth(memory: list[int]) -> float:
    """The last quarter's mean memory over the first quarter's."""
    quarter = max(1, len(memory) // 4)
    return statistics.fmean(memory[-quarter:]) / statistics.fmean(memory[:quarter])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=30, help="seconds of the same load before, not counted")
    parser.add_argument("--model", default="peg-mini")
    parser.add_argument("--store", type=Path, help="default: the demo corpus, indexed for the run")
    parser.add_argument("--max-in-flight", type=int, default=256)
    parser.add_argument("--only", choices=["reads", "writes", "everything"], default="everything")
    parser.add_argument("--plot", type=Path, help="a picture of the server's memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "kb"
        if args.store:
            shutil.copytree(args.store, store)  # the clients write to it
        else:
            demo_store(Path(folder), args.model)
        with server(store, args.model, args.max_in_flight) as (url, process):
            model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
            # Caches fill and threads start before anything is counted.
            asyncio.run(load(url, args.clients, args.warm_up, process, model, args.only))
            tally, memory = asyncio.run(load(url, args.clients, args.seconds, process, model, args.only))
            flood_tally = asyncio.run(flood(url, 2 * args.max_in_flight, model))
            calm = httpx.get(f"{url}/health/ready").status_code
    report(tally, args.seconds, args.clients)
    if args.plot:
        plot(memory, args.seconds, f"peg-rag serve, {args.clients} clients, {args.only}", args.plot)
    ratio = growth(memory)
    print(f"\nmemory: {min(memory) / 2**20:,.0f} to {max(memory) / 2**20:,.0f} MiB, last quarter / first {ratio:.3f}")
    print(f"writes answered 429: {tally.refused_writes:.1%}")
    print(f"{2 * args.max_in_flight} requests at once, {args.max_in_flight} taken on: {dict(flood_tally.statuses)}")
    bad = [status for status in tally.statuses | flood_tally.statuses if status >= 500]
    early = tally.refused_reads and args.clients <= args.max_in_flight
    failed = bad or early or ratio > MAX_GROWTH or tally.refused_writes >= MAX_REFUSED
    if failed or not flood_tally.statuses[429] or flood_tally.without_retry_after or calm != 200:
        raise SystemExit(f"failed: 5xx {bad}, early 429s {early}, growth {ratio:.3f}, then health {calm}")


if __name__ == "__main__":
    main()
