"""What the server's tests share: a model, a store with documents, the application in process, and a real server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.ingest import sync

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from peg_rag.serving.settings import ServerSettings

KEY = "a-key-for-the-tests-only"
AUTH = {"Authorization": f"Bearer {KEY}"}
DOCUMENTS = {
    "花呗.md": "# 绑定银行卡\n\n打开支付宝，点击“我的”，选择“银行卡”，即可为花呗绑定银行卡。更换需要先解绑旧卡。\n\n"
    "# 还款\n\n花呗每月九日还款，逾期会产生利息，每日利率为万分之五。\n",
    "故宫.txt": "故宫博物院的门票旺季六十元，淡季四十元。周一闭馆。观众需要提前七天在网上预约。\n",
    "script.txt": "<script>alert('花呗')</script> 是一段脚本，应当作为文字显示。\n",
}


def make_store(folder: Path, model: str | Path) -> Path:
    """A store of `DOCUMENTS`, synced as `peg-rag index` does it."""
    documents = folder / "docs"
    documents.mkdir()
    for name, text in DOCUMENTS.items():
        (documents / name).write_text(text, encoding="utf-8")
    store = folder / "kb"
    with PEGEncoder(model) as encoder, PEGIndex(store, identity=encoder.identity) as index:
        report = sync(documents, index, encoder, store, model=str(model))
    assert not report.failed, report.failed
    return store


@contextmanager
def running(*arguments: str | Path, keys: str = KEY, **variables: str) -> Iterator["RunningServer"]:
    """`peg-rag serve` in a process of its own, on a free port of 127.0.0.1, with these environment variables."""
    command = [
        sys.executable,
        "-c",
        "from peg_rag.cli import main; main()",
        "serve",
        "--port",
        "0",
        *map(str, arguments),
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    own = {"PEG_RAG_API_KEYS": keys, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    environment = {**inherited, **own, **variables}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    server = RunningServer(process)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


class RunningServer:
    """A server's process, its address and its log lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            found = re.search(r"running on (http://[\d.]+:\d+)", line)
            if found:
                self.url = found[1]
            self.lines.append(line)

    def wait_until_ready(self, timeout_s: float = 60) -> None:
        give_up = time.monotonic() + timeout_s
        while not self.url:
            if self.process.poll() is not None or time.monotonic() > give_up:
                pytest.fail("the server did not start:\n" + "".join(self.lines))
            time.sleep(0.05)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def memory_bytes(self) -> int:
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss

    def entries(self) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def stop(self, timeout_s: float = 40) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("served") / "tiny-static"))


def static_model(folder: Path, dimension: int = 64) -> Path:
    """A small random static model in sentence-transformers' layout."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers

    characters = sorted(set("".join(DOCUMENTS.values())) | set(map(chr, range(0x4E00, 0x5600))))
    words = [("<unk>", -12.0), ("花呗", -6.0), ("银行卡", -6.5), ("门票", -6.2), ("还款", -5.0)]
    vocabulary = [*words, *((c, -9.0) for c in characters)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    (folder / "0_StaticEmbedding").mkdir(parents=True)
    tokenizer.save(str(folder / "0_StaticEmbedding" / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(vocabulary), dimension)).astype(np.float32)
    save_file({"embedding.weight": table}, folder / "0_StaticEmbedding" / "model.safetensors")
    kind = "sentence_transformers.models.StaticEmbedding"
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": kind}])
    )
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, served_model: str) -> Path:
    """A store nobody writes to."""
    return make_store(tmp_path_factory.mktemp("store"), served_model)


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[RunningServer]:
    """A real server over the store, with a key."""
    with running(store) as started:
        yield started


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


@contextmanager
def threaded(app: "FastAPI", settings: "ServerSettings") -> Iterator[tuple[str, "uvicorn.Server"]]:
    """The application behind the real protocol, in a thread: (address, server)."""
    from peg_rag.serving.launch import create_server

    server = create_server(app, settings, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 60
    while not server.started and time.monotonic() < give_up:
        time.sleep(0.01)
    assert server.started
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}", server
    finally:
        server.should_exit = True
        thread.join(20)
