"""A folder indexed straight into a store on a server: the same chunks as in a folder's, and nothing embedded twice."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHARACTERS, LetterEncoder
from sample_files import static_model
from store_fixtures import milvus, postgres  # noqa: F401

from peg_rag import PEGIndex, ingest
from peg_rag.cli.app import run
from peg_rag.cli.knowledge import locate_ledger
from peg_rag.errors import InvalidInput
from peg_rag.ingest import SyncReport, sync
from peg_rag.stores import Store, open_store
from peg_rag.stores.milvus import MilvusStore
from peg_rag.stores.postgres import PostgresStore

_numbers = itertools.count()


class CountingEncoder(LetterEncoder):
    """Remembers the documents it has embedded; dies before it embeds more than `limit` of them."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.limit = limit

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        if len(self.texts) + len(texts) > self.limit:
            raise KeyboardInterrupt
        self.texts += texts
        return super().encode_documents(texts)


@pytest.fixture(params=["postgres", "milvus"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a new store may be made on a server."""
    place: str = request.getfixturevalue(request.param).url(f"ingest_{next(_numbers)}")
    return place


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url, identity=LetterEncoder.identity, dimension=LetterEncoder.dimension) as opened:
        yield opened


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"number {number} of twelve files. 第{number}条。", encoding="utf-8")
    return folder


@pytest.fixture
def run_sync(docs: Path, store: Store, tmp_path: Path) -> Callable[..., SyncReport]:
    def run_once(encoder: CountingEncoder, ledger: str = "ledger") -> SyncReport:
        return sync(docs, store, encoder, tmp_path / ledger, is_shared=True)

    return run_once


def read_contents(store: Store) -> dict[str, tuple[str, dict[str, Any]]]:
    return {record.id: (record.text, dict(record.metadata)) for record in store.get(where={})}


def index_afresh(docs: Path, folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    with PEGIndex(folder) as index:
        sync(docs, index, LetterEncoder(), folder)
        return read_contents(index)


def test_a_server_follows_the_folder(
    docs: Path, store: Store, run_sync: Callable[..., SyncReport], tmp_path: Path
) -> None:
    assert len(run_sync(CountingEncoder()).added) == 12
    (docs / "00.txt").unlink()
    (docs / "01.txt").write_text("changed.", encoding="utf-8")
    (docs / "new.txt").write_text("new.", encoding="utf-8")
    encoder = CountingEncoder()
    report = run_sync(encoder)
    assert (report.added, report.changed, report.removed) == (["docs/new.txt"], ["docs/01.txt"], ["docs/00.txt"])
    assert sorted(encoder.texts) == ["changed.", "new."]
    assert read_contents(store) == index_afresh(docs, tmp_path / "kb")
    assert run_sync(CountingEncoder(limit=0)).chunks == 0


def test_a_run_that_died_embeds_only_what_the_server_lacks(
    docs: Path, store: Store, run_sync: Callable[..., SyncReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_GROUP_CHUNKS", 2)
    first = CountingEncoder(limit=7)
    with pytest.raises(KeyboardInterrupt):
        run_sync(first)
    second = CountingEncoder()
    run_sync(second)
    assert len(first.texts) == len(set(first.texts)) == 6
    assert not set(first.texts) & set(second.texts)
    assert read_contents(store) == index_afresh(docs, tmp_path / "kb")


def test_a_new_ledger_reuses_the_vectors_and_drops_old_chunks(
    docs: Path, store: Store, run_sync: Callable[..., SyncReport], tmp_path: Path
) -> None:
    run_sync(CountingEncoder())
    vectors = {name: row for batch in store.export() for name, row in zip(batch.ids, batch.vectors, strict=True)}
    (docs / "03.txt").write_text("rewritten.", encoding="utf-8")
    encoder = CountingEncoder()
    report = run_sync(encoder, "another")
    assert encoder.texts == ["rewritten."]
    assert (report.chunks, report.reused) == (1, 11)
    assert read_contents(store) == index_afresh(docs, tmp_path / "kb")
    for batch in store.export():
        for name, row in zip(batch.ids, batch.vectors, strict=True):
            assert name not in vectors or np.array_equal(vectors[name], row)


def test_chunks_that_others_deleted_come_back(
    docs: Path, store: Store, run_sync: Callable[..., SyncReport], tmp_path: Path
) -> None:
    run_sync(CountingEncoder())
    store.upsert([f"other {n}" for n in range(20)], ["other"] * 20, LetterEncoder().encode_documents(["other"] * 20))
    store.delete(where={"source": "docs/04.txt"})
    assert len(run_sync(CountingEncoder()).changed) == 1
    store.delete([f"other {n}" for n in range(20)])
    assert read_contents(store) == index_afresh(docs, tmp_path / "kb")


def test_a_file_that_another_machine_replaced_comes_back(tmp_path: Path) -> None:
    with PEGIndex(identity=LetterEncoder.identity) as index:
        for machine in ("one", "two"):
            folder = tmp_path / machine / "docs"
            folder.mkdir(parents=True)
            (folder / "a.txt").write_text(f"of machine {machine}", encoding="utf-8")
            sync(folder, index, LetterEncoder(), tmp_path / f"ledger {machine}", is_shared=True)
        report = sync(tmp_path / "one" / "docs", index, LetterEncoder(), tmp_path / "ledger one", is_shared=True)
        assert report.changed == ["docs/a.txt"]
        assert [record.text for record in index.get(where={})] == ["of machine one"]


def test_documents_of_others_stay_though_they_name_a_file_as_their_source(docs: Path, tmp_path: Path) -> None:
    with PEGIndex(identity=LetterEncoder.identity) as index:
        index.upsert(["x"], ["of others"], LetterEncoder().encode_documents(["x"]), [{"source": "docs/00.txt"}])
        for _ in range(2):
            (docs / "00.txt").write_text("changed.", encoding="utf-8")
            sync(docs, index, LetterEncoder(), tmp_path / "ledger", is_shared=True)
        assert len(index) == 13
        (docs / "00.txt").unlink()
        sync(docs, index, LetterEncoder(), tmp_path / "ledger", is_shared=True)
        assert len(index) == 12
        assert index.get(["x"])


def test_a_ledger_is_of_one_store(docs: Path, tmp_path: Path) -> None:
    """Else a file that is deleted leaves the store of the next run, and stays in the others for ever."""
    ledger = tmp_path / "ledger"
    with PEGIndex() as index:
        sync(docs, index, LetterEncoder(), ledger, is_shared=True, location="milvus://a/?collection=x")
        with pytest.raises(InvalidInput, match=r"collection=x.*--ledger"):
            sync(docs, index, LetterEncoder(), ledger, is_shared=True, location="milvus://a/?collection=y")
        sync(docs, index, LetterEncoder(), ledger, is_shared=True, location="milvus://a/?collection=x")


def test_vectors_of_another_model_are_not_reused(docs: Path, tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:  # of no named model
        sync(docs, index, CountingEncoder(), tmp_path / "kb")
        encoder = CountingEncoder()
        sync(docs, index, encoder, tmp_path / "another ledger", is_shared=True)
    assert len(encoder.texts) == 12


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("models") / "small", CHARACTERS))


def test_the_command_fills_a_server_that_search_then_reads(
    docs: Path,
    url: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (docs / "报销.md").write_text("# 报销\n\n报销需要发票和审批单。\n", encoding="utf-8")
    assert run(["index", str(docs), "--store", url, "--model", model]) == 0
    assert "13" in capsys.readouterr().out
    assert locate_ledger(url).is_dir()
    assert run(["search", url, "报销需要什么", "--model", model]) == 0
    assert "docs/报销.md" in capsys.readouterr().out
    (docs / "报销.md").unlink()
    assert run(["index", str(docs), "--store", url]) == 0  # the ledger knows the model
    for kind in (PostgresStore, MilvusStore):
        monkeypatch.delattr(kind, "persist")
    assert run(["index", str(docs), "--store", url]) == 0  # nothing changed, so nothing is rearranged
    with open_store(url) as store:
        assert store.count({"source": "docs/报销.md"}) == 0
        assert len(store) == 12


def test_a_ledger_of_ones_own_is_for_servers(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", str(docs), "--store", str(tmp_path / "kb"), "--model", "peg-mini"]
    assert run([*arguments, "--ledger", str(tmp_path / "ledger")]) == 2
    assert "--ledger is for a store on a server" in capsys.readouterr().err
    assert not (tmp_path / "kb").exists()


def test_the_ledger_of_a_folder_is_not_for_servers(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb"):
        pass
    with pytest.raises(InvalidInput, match="holds a store of its own"):
        locate_ledger("postgresql://db/rag", tmp_path / "kb")


def test_a_ledger_is_the_collection_s_whoever_asks() -> None:
    base = "postgresql://db:5432/rag?collection=a"
    assert locate_ledger(base) == locate_ledger(base.replace("//", "//me:secret@"))
    others = [base.replace("=a", "=b"), base.replace("5432", "5433"), base.replace("/rag", "/x"), base + "&host=/tmp"]
    assert len({locate_ledger(url) for url in [base, *others]}) == 5
    with pytest.raises(InvalidInput, match="malformed"):
        locate_ledger("postgresql://db:port/rag")


@pytest.mark.slow
def test_a_killed_command_goes_on_and_embeds_nothing_twice(docs: Path, url: str, tmp_path: Path) -> None:
    for number in range(12, 300):
        (docs / f"{number:03}.txt").write_text(f"number {number}. " * 3, encoding="utf-8")
    if url.startswith("milvus"):  # Milvus Lite stays open in a process that has opened it: a file of the test's own
        url = f"milvus://{tmp_path}/milvus.db?collection=kb"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    # The collection is there first: Milvus Lite does not recover from a kill while it makes the files of one.
    seed = (
        "import sys; from conftest import LetterEncoder; from peg_rag.stores import open_store\n"
        "with open_store(sys.argv[1], identity=LetterEncoder.identity) as store:\n"
        "    store.upsert(['seed'], ['seed'], LetterEncoder().encode_documents(['seed'])); store.delete(['seed'])"
    )
    subprocess.run([sys.executable, "-c", seed, url], env=environment, check=True)
    log = tmp_path / "embedded.txt"
    code = (
        "import sys, time; import peg_rag.ingest as i; i._GROUP_CHUNKS = 20\n"
        "from pathlib import Path; from conftest import LetterEncoder; from peg_rag.stores import open_store\n"
        "class Encoder(LetterEncoder):\n"
        "    def encode_documents(self, texts, show_progress=False):\n"
        "        time.sleep(0.05)\n"
        "        with open(sys.argv[4], 'a') as log: log.writelines(t.replace(chr(10), ' ') + chr(10) for t in texts)\n"
        "        return super().encode_documents(texts)\n"
        "with open_store(sys.argv[2], identity=Encoder.identity) as store:\n"
        "    i.sync(sys.argv[1], store, Encoder(), sys.argv[3], is_shared=True)"
    )
    command = [sys.executable, "-c", code, str(docs), url, str(tmp_path / "ledger"), str(log)]
    killed = 0
    for wait_s in (0.2, 0.4, 0.6):
        before = len(log.read_text().splitlines()) if log.exists() else 0
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) > before:
                time.sleep(wait_s)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        killed += process.wait(timeout=60) == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True)
    texts = log.read_text().splitlines()
    assert killed >= 1
    assert len(set(texts)) == 300
    assert len(texts) - len(set(texts)) <= 20 * killed  # a group that was embedded and had not reached the server
    with open_store(url) as store:
        assert read_contents(store) == index_afresh(docs, tmp_path / "kb")
