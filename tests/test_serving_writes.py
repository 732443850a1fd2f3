"""Uploads and deletions that fail, are killed, or meet others: what answers an error has changed nothing."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock
from serving_fixtures import AUTH, KEY, RunningServer, make_store, running, served_model, threaded

from peg_rag import PEGEncoder, PEGIndex, ledger
from peg_rag.errors import DataError, IndexBusy, InvalidInput, PegRagError
from peg_rag.ingest import model_of, sync
from peg_rag.ledger import LEDGER_FILE
from peg_rag.serving import uploads
from peg_rag.serving.app import create_app
from peg_rag.serving.errors import ApiError
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import UPLOADS, KnowledgeBase, encode_id
from peg_rag.serving.settings import ServerSettings

__all__ = ["served_model"]

UNSTORABLE = {
    "NaN": b'{"text": "a", "price": NaN}',
    "Infinity": b'{"text": "a", "price": -Infinity}',
    "surrogate in text": b'{"text": "\\ud800"}',
    "surrogate in a field": b'{"text": "a", "city": "\\udfff"}',
    "surrogate in a name": b'{"text": "a", "\\ud800": 1}',
    "5,000 digits": b'{"text": "a", "number": ' + b"1" * 5_000 + b"}",
    "deep": b'{"text": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
}


@pytest.fixture(scope="module")
def encoder(served_model: str) -> Iterator[PEGEncoder]:
    with PEGEncoder(served_model) as opened:
        yield opened


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, encoder: PEGEncoder, served_model: str) -> Path:
    """A store of a folder `docs` and two uploads, to be copied."""
    store = make_store(tmp_path_factory.mktemp("template"), served_model)
    with opened(store, encoder) as knowledge:
        add(knowledge, "old.txt", "花呗还款是旧的。")
        add(knowledge, "kept.md", "# 门票\n\n故宫门票六十元。")
    return store


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Path:
    folder = tmp_path / "kb"
    shutil.copytree(template, folder)
    return folder


@contextlib.contextmanager
def opened(store: Path, encoder: PEGEncoder, **options: Any) -> Iterator[KnowledgeBase]:
    with PEGIndex(store, identity=encoder.identity, dimension=encoder.dimension, timeout_s=0.2) as index:
        knowledge = KnowledgeBase(store, index, encoder, **options)
        try:
            yield knowledge
        finally:
            knowledge.close()


def add(knowledge: KnowledgeBase, name: str, text: str | bytes) -> Any:
    return knowledge.add(name, io.BytesIO(text if isinstance(text, bytes) else text.encode()))


def act(knowledge: KnowledgeBase, action: str) -> None:
    if action == "delete":
        knowledge.delete(id_of(knowledge, "old.txt"))
    else:
        add(knowledge, "old.txt" if action == "replace" else "new.txt", "新的内容。")


# What is another text after `act`, None where the document is gone.
ACTS: dict[str, dict[str, str | None]] = {
    "add": {"new.txt": "新的内容。"},
    "replace": {"old.txt": "新的内容。"},
    "delete": {"old.txt": None},
}


def id_of(knowledge: KnowledgeBase, name: str) -> str:
    return next(document.id for document in knowledge.list_documents() if document.name == name)


def state_of(store: Path, index: PEGIndex) -> dict[str, Any]:
    """Everything a write may change: files, ledger, index."""
    folder = store / UPLOADS
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with contextlib.closing(sqlite3.connect(store / LEDGER_FILE)) as ledger:
        tables = {name: sorted(ledger.execute(f"SELECT * FROM {name}")) for name in ("files", "roots", "settings")}
    records = {record.id: (record.text, record.metadata) for record in index.get(where={})}
    return {
        "files": files,
        "folders": sorted(path.name for path in folder.iterdir()),
        "ledger": tables,
        "index": records,
    }


@contextlib.contextmanager
def held_ledger(store: Path) -> Iterator[None]:
    """What `peg-rag index` holds in another process while it runs."""
    with FileLock(store / f".{LEDGER_FILE}.lock"):
        yield


@contextlib.contextmanager
def held_index(store: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(store / "index.sqlite")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def locked_ledger_file(store: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(store / LEDGER_FILE)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


# -- one bad upload ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_row_that_cannot_be_stored_is_refused_and_blocks_no_other_write(
    store: Path, encoder: PEGEncoder, name: str
) -> None:
    with opened(store, encoder) as knowledge:
        before = state_of(store, knowledge.index)
        for target in ("new.jsonl", "old.jsonl"):
            with pytest.raises(DataError) as refused:
                add(knowledge, target, b'{"text": "fine"}\n' + UNSTORABLE[name])
            assert str(store) not in str(refused.value)
            assert state_of(store, knowledge.index) == before
        assert add(knowledge, "next.txt", "好的文件。").passages == 1
    with opened(store, encoder) as knowledge:
        assert add(knowledge, "after.txt", "重启之后。").passages == 1


def test_an_unstorable_file_of_an_earlier_version_blocks_no_write(store: Path, encoder: PEGEncoder) -> None:
    (store / UPLOADS / "poison.jsonl").write_bytes(UNSTORABLE["NaN"])
    with opened(store, encoder) as knowledge:
        assert add(knowledge, "next.txt", "好的文件。").passages == 1
        knowledge.delete(id_of(knowledge, "old.txt"))
        assert {document.name for document in knowledge.list_documents() if document.uploaded} == {
            "next.txt",
            "kept.md",
        }


def test_bad_uploads_are_answered_4xx_without_paths(store: Path, encoder: PEGEncoder) -> None:
    with opened(store, encoder) as knowledge:
        app = create_app(encoder, knowledge, keys=ApiKeys([KEY]))
        with threaded(app, ServerSettings()) as (url, _), httpx.Client(base_url=url, headers=AUTH) as client:
            for content in UNSTORABLE.values():
                answer = client.post("/documents", files={"files": ("bad.jsonl", content)})
                assert answer.status_code == 422, answer.text
                assert "bad.jsonl" in answer.json()["error"]["message"]
                assert str(store.parent) not in answer.text
            assert client.post("/documents", files={"files": ("good.txt", b"good")}).status_code == 200


# -- refused writes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [held_ledger, held_index])
@pytest.mark.parametrize("action", ["add", "replace", "delete"])
def test_a_write_refused_while_another_process_writes_changes_nothing(
    store: Path,
    encoder: PEGEncoder,
    hold: Callable[[Path], AbstractContextManager[None]],
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "LOCK_TIMEOUT_S", 0.1)
    with opened(store, encoder) as knowledge:
        document_id = id_of(knowledge, "old.txt")
        add(knowledge, "first.txt", "第一个。")  # the folder is known to the ledger now
        before = state_of(store, knowledge.index)
        with hold(store), pytest.raises(IndexBusy):
            act(knowledge, action)
        assert state_of(store, knowledge.index) == before
        knowledge.delete(document_id)
        assert add(knowledge, "new.txt", "新的内容。").passages == 1


def test_writes_are_answered_429_while_another_process_holds_the_ledger(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LOCK_TIMEOUT_S", 0.1)
    with opened(store, encoder) as knowledge:
        app = create_app(encoder, knowledge, keys=ApiKeys([KEY]))
        document_id = id_of(knowledge, "old.txt")
        before = state_of(store, knowledge.index)
        with threaded(app, ServerSettings()) as (url, _), httpx.Client(base_url=url, headers=AUTH) as client:
            for hold in (held_ledger, held_index):
                with hold(store):
                    answers = [
                        client.post("/documents", files={"files": ("old.txt", b"new")}),
                        client.delete(f"/documents/{document_id}"),
                    ]
                for answer in answers:
                    assert answer.status_code == 429
                    assert int(answer.headers["retry-after"]) >= 1
                    assert str(store) not in answer.text
        assert state_of(store, knowledge.index)["files"] == before["files"]
        assert state_of(store, knowledge.index)["index"] == before["index"]


def test_a_locked_ledger_is_busy_and_not_damaged(store: Path, encoder: PEGEncoder) -> None:
    with opened(store, encoder) as knowledge:
        add(knowledge, "first.txt", "第一个。")
        before = state_of(store, knowledge.index)
        app = create_app(encoder, knowledge, keys=ApiKeys([KEY]))
        with threaded(app, ServerSettings()) as (url, _), locked_ledger_file(store):
            answer = httpx.post(f"{url}/documents", files={"files": ("old.txt", b"new")}, headers=AUTH, timeout=30)
            assert answer.status_code == 429, answer.text
        assert state_of(store, knowledge.index) == before


class FullDisk:
    """A disk that is full from the n-th flush on."""

    def __init__(self, flushes: int) -> None:
        self.left = flushes
        self.flush = os.fsync

    def fsync(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.flush(descriptor)


@pytest.mark.parametrize("flushes", range(2))
def test_a_full_disk_changes_nothing(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch, flushes: int
) -> None:
    with opened(store, encoder) as knowledge:
        add(knowledge, "first.txt", "第一个。")
        before = state_of(store, knowledge.index)
        app = create_app(encoder, knowledge, keys=ApiKeys([KEY]))
        with threaded(app, ServerSettings()) as (url, _), monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullDisk(flushes).fsync)
            answer = httpx.post(f"{url}/documents", files={"files": ("old.txt", b"new")}, headers=AUTH, timeout=30)
        assert answer.status_code == 507, answer.text
        assert state_of(store, knowledge.index) == before


@pytest.mark.parametrize("action", ["replace", "delete"])
def test_an_index_on_a_full_disk_changes_nothing(store: Path, encoder: PEGEncoder, action: str) -> None:
    with opened(store, encoder) as knowledge:
        add(knowledge, "first.txt", "第一个。")
        document_id = id_of(knowledge, "old.txt")
        before = state_of(store, knowledge.index)
        with knowledge.index._db.writing() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
        limit_pages(knowledge.index, pages)
        if action == "replace":
            with pytest.raises(OSError, match="full") as refused:
                add(knowledge, "old.txt", "\n\n".join(f"第{number}段，花呗还款。" * 40 for number in range(200)))
            assert refused.value.errno == errno.ENOSPC
            assert state_of(store, knowledge.index) == before
        else:
            knowledge.delete(document_id)  # needs no page more
        limit_pages(knowledge.index, 1_000_000)
        assert add(knowledge, "old.txt", "又有地方了。").passages == 1


def limit_pages(index: PEGIndex, pages: int) -> None:
    """SQLite's own way to say that the disk is full."""
    connections = list(index._db._idle)
    assert connections
    for connection in connections:
        connection.execute(f"PRAGMA max_page_count={pages}")


# -- killed at any moment ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs, not even a clean-up."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """End the process in front of its n-th change of a file, the ledger or the index."""
    left = [step]

    def before(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, dying)

    for owner, name in (
        (uploads, "_write_file"), (uploads, "write_atomically"), (uploads, "sync_folder"),
        (uploads, "_remove_folder"), (PEGIndex, "upsert"), (PEGIndex, "delete"), (ledger.Ledger, "put"),
        (ledger.Ledger, "remove"), (Path, "replace"), (Path, "unlink"),
    ):  # fmt: skip
        before(owner, name)
    return left


@pytest.mark.parametrize("action", ["add", "replace", "delete"])
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_document(
    tmp_path: Path, template: Path, encoder: PEGEncoder, action: str
) -> None:
    for step in range(40):
        store = tmp_path / str(step)
        shutil.copytree(template, store)
        with opened(store, encoder) as knowledge, pytest.MonkeyPatch.context() as patch:
            untouched = text_of(knowledge, "kept.md")
            left = kill_at(patch, step)
            with contextlib.suppress(Killed):
                act(knowledge, action)
        with opened(store, encoder) as knowledge:
            now = {name: text_of(knowledge, name) for name in ("old.txt", "new.txt", "kept.md")}
            old = {"old.txt": "花呗还款是旧的。", "new.txt": None, "kept.md": untouched}
            assert now in (old, old | ACTS[action]), step
            in_step(store, knowledge)
            if left[0] >= 0:
                assert now == old | ACTS[action]
                return
    pytest.fail("more steps than were looked at")


def test_the_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    entry = {"size": 3, "mtime_ns": 7, "sha256": "ab", "mark": "3/400/80/", "chunks": 1}
    (tmp_path / ".note.json").write_text(json.dumps({"root": UPLOADS, "name": "a.txt", "entry": entry}))
    note = uploads._Note.read(tmp_path)
    assert note is not None
    assert note.entry == ledger.FileEntry(3, 7, "ab", "3/400/80/", 1)


def text_of(knowledge: KnowledgeBase, name: str) -> str | None:
    """The text of an uploaded document, None where it is not there."""
    records = knowledge.index.get(where={"source": f"{UPLOADS}/{name}"})
    return "".join(record.text for record in records) or None


def in_step(store: Path, knowledge: KnowledgeBase) -> None:
    """Files, ledger and index tell the same of the uploads, and nothing is left over."""
    state = state_of(store, knowledge.index)
    assert not [name for name in state["folders"] if name.startswith(".")]
    names = {source.partition("/")[2] for source, root, *_ in state["ledger"]["files"] if root == UPLOADS}
    indexed = {meta["source"] for _, meta in state["index"].values()}
    assert names == set(state["files"]) == {s.partition("/")[2] for s in indexed if s.startswith(f"{UPLOADS}/")}
    for source, _, size, *_, chunks in state["ledger"]["files"]:
        if source.startswith(f"{UPLOADS}/"):
            assert size == len(state["files"][source.partition("/")[2]])
            assert chunks == sum(meta["source"] == source for _, meta in state["index"].values())


def test_an_unfinished_write_is_committed_and_finished_by_the_next(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store, encoder) as knowledge:
        with monkeypatch.context() as patch:
            patch.setattr(ledger.Ledger, "put", failing)
            assert add(knowledge, "old.txt", "新的内容。").replaced
        assert text_of(knowledge, "old.txt") == "新的内容。"
        assert (store / UPLOADS / "old.txt").read_text() == "新的内容。"
        add(knowledge, "next.txt", "下一个。")
        in_step(store, knowledge)


def test_a_file_with_an_unfinished_write_is_not_changed_again(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store, encoder) as knowledge:
        with monkeypatch.context() as patch:
            patch.setattr(ledger.Ledger, "put", failing)
            add(knowledge, "old.txt", "第二版。")
            with pytest.raises(IndexBusy, match="not finished"):
                add(knowledge, "old.txt", "第三版。")
            with pytest.raises(IndexBusy, match="not finished"):
                knowledge.delete(id_of(knowledge, "old.txt"))
        assert text_of(knowledge, "old.txt") == "第二版。"
        add(knowledge, "old.txt", "第三版。")
        assert text_of(knowledge, "old.txt") == "第三版。"
        in_step(store, knowledge)


def failing(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")


def test_an_error_after_the_commit_does_not_fail_the_write(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PEGIndex.upsert

    def upsert(*args: Any) -> None:
        plain(*args)
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(store, encoder) as knowledge:
        monkeypatch.setattr(PEGIndex, "upsert", upsert)
        assert add(knowledge, "old.txt", "新的内容。").replaced
        assert text_of(knowledge, "old.txt") == "新的内容。"
        in_step(store, knowledge)


def test_the_next_reader_rolls_back_the_ledger_of_a_killed_writer(
    store: Path, encoder: PEGEncoder, served_model: str
) -> None:
    """A journal is left beside it, which nobody who opens it for reading alone may roll back."""
    killed = (
        "import os, sqlite3, sys\n"
        "ledger = sqlite3.connect(sys.argv[1])\n"
        "ledger.execute('PRAGMA cache_size = 1')\n"
        "ledger.execute('DELETE FROM settings')\n"
        "ledger.executemany('INSERT INTO settings VALUES (?, ?)', ((str(n), 'x' * 900) for n in range(2000)))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", killed, store / LEDGER_FILE], check=False)
    assert (store / f"{LEDGER_FILE}-journal").stat().st_size
    assert model_of(store) == served_model
    with opened(store, encoder) as knowledge:
        assert add(knowledge, "old.txt", "新的内容。").replaced
        in_step(store, knowledge)


# -- copied stores, and folders of the same name ----------------------------------------------------------------------


def test_a_copied_store_accepts_writes(store: Path, encoder: PEGEncoder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)  # its ledger names the folder of the store it was copied from
    with opened(store, encoder) as original, opened(copy, encoder) as copied:
        before = state_of(store, original.index)
        assert {d.name for d in copied.list_documents() if d.uploaded} == {"old.txt", "kept.md"}
        assert add(copied, "old.txt", "副本里的。").replaced
        assert add(copied, "new.txt", "只在副本里。").passages == 1
        copied.delete(id_of(copied, "kept.md"))
        in_step(copy, copied)
        assert state_of(store, original.index) == before


def test_a_moved_store_accepts_writes(store: Path, encoder: PEGEncoder, tmp_path: Path) -> None:
    store = store.rename(tmp_path / "moved")
    with opened(store, encoder) as knowledge:
        assert add(knowledge, "old.txt", "搬家以后。").replaced
        knowledge.delete(id_of(knowledge, "kept.md"))
        in_step(store, knowledge)


def test_an_indexed_folder_named_uploads_and_the_uploads_coexist(tmp_path: Path, encoder: PEGEncoder) -> None:
    folder = tmp_path / UPLOADS
    folder.mkdir()
    (folder / "same.txt").write_text("文件夹里的。")
    store = tmp_path / "kb"
    with PEGIndex(store, identity=encoder.identity, dimension=encoder.dimension) as index:
        sync(folder, index, encoder, store)
    with opened(store, encoder) as knowledge:
        theirs = knowledge.list_documents()[0]
        assert not theirs.uploaded
        added = add(knowledge, "same.txt", "上传的。")
        assert (added.replaced, added.document.uploaded) == (False, True)
        assert added.document.id != theirs.id
        assert sorted(record.text for record in knowledge.index.get(where={})) == ["上传的。", "文件夹里的。"]
        with pytest.raises(ApiError) as refused:
            knowledge.delete(theirs.id)
        assert refused.value.status == 409
        (folder / "more.txt").write_text("又一个。")
        report = sync(folder, knowledge.index, encoder, store)
        assert (report.added, report.removed) == ([f"{UPLOADS}/more.txt"], [])
    with opened(store, encoder) as knowledge:  # after a restart as before
        assert {d.name: d.uploaded for d in knowledge.list_documents()} == {
            "uploads/same.txt": False, "uploads/more.txt": False, "same.txt": True,
        }  # fmt: skip
        assert add(knowledge, "same.txt", "再次上传的。").replaced
        knowledge.delete(added.document.id)
        assert not any(d.uploaded for d in knowledge.list_documents())
        assert len(knowledge.index) == 2
    assert sorted(file.name for file in folder.iterdir()) == ["more.txt", "same.txt"]


def test_another_folder_named_uploads_does_not_replace_the_uploads(
    store: Path, encoder: PEGEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere" / UPLOADS
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("别处的。")
    with opened(store, encoder) as knowledge:
        add(knowledge, "new.txt", "新的。")
        with pytest.raises(InvalidInput, match="--name"):
            sync(folder, knowledge.index, encoder, store)
        in_step(store, knowledge)


def test_uploads_are_indexed_again_after_the_index_was_deleted(store: Path, encoder: PEGEncoder) -> None:
    for file in store.glob("index.sqlite*"):
        file.unlink()
    with opened(store, encoder) as knowledge:
        assert text_of(knowledge, "old.txt") == "花呗还款是旧的。"
        in_step(store, knowledge)


def test_a_server_starts_while_another_process_indexes(
    store: Path, encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LOCK_TIMEOUT_S", 0.1)
    with held_ledger(store), opened(store, encoder) as knowledge:
        assert {d.name for d in knowledge.list_documents() if d.uploaded} == {"old.txt", "kept.md"}


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_slow_file_does_not_block_other_writes(store: Path, encoder: PEGEncoder) -> None:
    """Half a million small elements keep an HTML parser busy for many seconds; a deletion does not wait for it."""
    with opened(store, encoder, conversion_timeout_s=120) as knowledge:
        app = create_app(encoder, knowledge, keys=ApiKeys([KEY]))
        with (
            threaded(app, ServerSettings(conversion_threads=2)) as (url, _),
            httpx.Client(base_url=url, headers=AUTH, timeout=120) as client,
        ):
            slow = [threading.Thread(target=send_slow_file, args=(url, number)) for number in range(2)]
            for thread in slow:
                thread.start()
            while "peg_rag_pending_conversions 2.0" not in client.get("/metrics").text:
                pass
            assert client.post("/documents/text", json={"name": "a", "text": "花呗"}).status_code == 200
            assert client.post("/documents", files={"files": ("b.md", b"# b\n\nc")}).status_code == 200
            assert client.delete(f"/documents/{id_of(knowledge, 'old.txt')}").status_code == 200
            assert "peg_rag_pending_conversions 2.0" in client.get("/metrics").text
            knowledge._uploads._readers.close()  # end the reading, which has served its purpose
            for thread in slow:
                thread.join(120)


def send_slow_file(url: str, number: int) -> None:
    content = b"<p>a</p>" * 500_000
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/documents", files={"files": (f"slow{number}.html", content)}, headers=AUTH, timeout=120)


def test_concurrent_writes_are_all_kept(store: Path, encoder: PEGEncoder) -> None:
    """Eight threads add, replace and delete; each knows what must be there of its own files at the end."""
    expected: dict[str, str] = {}
    errors: list[PegRagError] = []

    def work(knowledge: KnowledgeBase, number: int) -> None:
        try:
            for turn in range(6):
                name, text = f"{number}-{turn % 2}.txt", f"第{number}个线程，第{turn}次。"
                add(knowledge, name, text)
                expected[name] = text
                if turn % 3 == 2:
                    knowledge.delete(id_of(knowledge, name))
                    del expected[name]
        except PegRagError as error:
            errors.append(error)

    with opened(store, encoder) as knowledge:
        threads = [threading.Thread(target=work, args=(knowledge, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert {name: text_of(knowledge, name) for name in expected} == expected
        in_step(store, knowledge)
        assert {d.name for d in knowledge.list_documents() if d.uploaded} == {*expected, "old.txt", "kept.md"}


def test_concurrent_uploads_of_one_name_leave_one_of_them(store: Path, encoder: PEGEncoder) -> None:
    with opened(store, encoder) as knowledge:
        texts = [f"版本{number}。\n\n" * 3 for number in range(8)]
        threads = [threading.Thread(target=add, args=(knowledge, "old.txt", text)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (store / UPLOADS / "old.txt").read_text() in texts
        versions = {r.metadata["version"] for r in knowledge.index.get(where={"source": f"{UPLOADS}/old.txt"})}
        assert len(versions) == 1
        in_step(store, knowledge)


# -- at length --------------------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Adds, replaces and deletes files of its own until told to stop, and remembers what was acknowledged."""

    def __init__(self, number: int, known: dict[str, str]) -> None:
        super().__init__()
        self.chance = random.Random(f"{number}-{len(known)}-{time.monotonic_ns()}")
        self.number = number
        self.known = known
        self.url = ""
        # A write without an answer yet: its name and text, None for a deletion.
        self.under_way: tuple[str, str | None] | None = None
        self.acknowledged = 0
        self.stop = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, headers=AUTH, timeout=60) as client, contextlib.suppress(httpx.HTTPError):
            while not self.stop.is_set():
                self.write(client)

    def write(self, client: httpx.Client) -> None:
        name = f"{self.number}-{self.chance.randrange(3)}.{self.chance.choice(['txt', 'md', 'html'])}"
        text = None if name in self.known and self.chance.random() < 0.4 else f"第{self.chance.random()}版，花呗还款。"
        self.under_way = (name, text)
        if text is None:
            answer = client.delete(f"/documents/{encode_id(f'{UPLOADS}/{name}')}")
        else:
            answer = client.post("/documents", files={"files": (name, text)})
        if answer.status_code == 200:
            self.acknowledged += 1
            if text is None:
                del self.known[name]
            else:
                self.known[name] = text
        else:
            assert answer.status_code == 429, answer.text
        self.under_way = None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_acknowledged_writes_survive_24_kills_of_the_server(store: Path, served_model: str) -> None:
    """Four clients write while the server is killed; the next start must have each file as it was last acknowledged."""
    known: list[dict[str, str]] = [{} for _ in range(4)]
    chance = random.Random(0)
    acknowledged = cut_short = 0
    for _ in range(24):
        writers = [Writer(number, files) for number, files in enumerate(known)]
        with running(store) as server:
            check_files(server, store, known, writers)
            for writer in writers:
                writer.url = server.url
                writer.start()
            time.sleep(chance.uniform(0.3, 2.0))
            server.process.kill()
            for writer in writers:
                writer.stop.set()
                writer.join()
        acknowledged += sum(writer.acknowledged for writer in writers)
        cut_short += sum(writer.under_way is not None for writer in writers)
        with running(store) as server:
            check_files(server, store, known, writers)
    print(f"24 kills, {acknowledged} writes acknowledged, {cut_short} cut short")
    assert acknowledged > 100
    assert cut_short > 10


def check_files(server: RunningServer, store: Path, known: list[dict[str, str]], writers: list[Writer]) -> None:
    """Every file is as acknowledged; one whose write was cut short is either as before or as after, and is learnt."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        cards = {c["name"]: c for c in client.get("/documents?limit=1000").json()["documents"] if c["uploaded"]}
        texts = {}
        for name, card in cards.items():
            passages = client.get(f"/documents/{card['id']}/passages").json()["passages"]
            texts[name] = "".join(passage["text"] for passage in passages)
    for files, writer in zip(known, writers, strict=True):
        if writer.under_way is not None:
            name, text = writer.under_way
            assert texts.get(name) in (files.get(name), text)
            if name in texts:
                files[name] = texts[name]
            else:
                files.pop(name, None)
    expected = {name: text for files in known for name, text in files.items()}
    assert {name: text for name, text in texts.items() if name not in ("old.txt", "kept.md")} == expected
    on_disk = {file.name for file in (store / UPLOADS).iterdir()}
    assert on_disk == {*expected, "old.txt", "kept.md"}
    for name, text in expected.items():
        assert (store / UPLOADS / name).read_text() == text


# -- progress ----------------------------------------------------------------------------------------------------------


def read_events(answer: httpx.Response) -> list[tuple[str, Any]]:
    """(event, data) of every server-sent event."""
    from httpx_sse import EventSource

    return [(event.event, event.json()) for event in EventSource(answer).iter_sse()]


def test_an_upload_tells_how_far_it_is(tmp_path: Path, served_model: str) -> None:
    from sample_files import pdf

    pages = pdf([[f"第{number}页的内容。"] for number in range(1, 4)])
    store = make_store(tmp_path, served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        headers = AUTH | {"Accept": "text/event-stream"}
        with client.stream("POST", "/documents", headers=headers, files={"files": ("三页.pdf", pages)}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = read_events(answer)
        steps = [(data["step"], data["done"], data["total"]) for name, data in events if name == "step"]
        assert steps[:4] == [("reading", 0, 0), ("reading", 1, 3), ("reading", 2, 3), ("reading", 3, 3)]
        assert [step for step, _, _ in steps[4:]] == ["indexing", "indexing"]
        assert {data["name"] for name, data in events if name == "step"} == {"三页.pdf"}
        assert events[-1][0] == "done"
        assert events[-1][1]["added"][0]["name"] == "三页.pdf"
        with client.stream("POST", "/documents", headers=headers, files={"files": ("坏.pdf", b"no")}) as answer:
            events = read_events(answer)
        assert events[-1][0] == "error"
        assert events[-1][1]["error"]["code"] == "unreadable_document"


def test_an_upload_whose_client_left_is_not_added(tmp_path: Path, served_model: str) -> None:
    """What is raised at a step, by the thread that reads, leaves nothing behind, and the next file is read."""
    import io

    from sample_files import pdf

    from peg_rag.serving.knowledge import KnowledgeBase

    class LeftError(Exception):
        pass

    def leave_at(step: str, page: int) -> Callable[..., None]:
        def report(*at: Any) -> None:
            if at[:2] == (step, page):
                raise LeftError

        return report

    store = make_store(tmp_path, served_model)
    pages = pdf([[f"第{number}页的内容。"] for number in range(1, 30)])
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity) as index:
        knowledge = KnowledgeBase(store, index, encoder)
        before = index.ids()
        for step, page in (("reading", 0), ("reading", 1), ("reading", 29), ("indexing", 0)):
            with pytest.raises(LeftError):
                knowledge.add("走.pdf", io.BytesIO(pages), leave_at(step, page))
            assert index.ids() == before
            assert not list((store / "uploads").iterdir())
            assert knowledge.add("短.txt", io.BytesIO("下一份。".encode())).passages == 1
            knowledge.delete(knowledge.list_documents()[0].id)
        knowledge.close()


def test_a_client_that_leaves_stops_its_upload(tmp_path: Path, served_model: str) -> None:
    from sample_files import pdf

    store = make_store(tmp_path, served_model)
    pages = pdf([[f"第{number}页的内容。" * 20] for number in range(1, 400)])
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        before = client.get("/documents").json()
        headers = AUTH | {"Accept": "text/event-stream"}
        with client.stream("POST", "/documents", headers=headers, files={"files": ("长.pdf", pages)}) as answer:
            for line in answer.iter_lines():
                if '"done":2' in line:
                    break
        client.post("/documents/text", headers=AUTH, json={"name": "别的", "text": "别的一份。"}).raise_for_status()
        while "peg_rag_pending_conversions 0.0" not in client.get("/metrics").text:
            pass
        names = [document["name"] for document in client.get("/documents").json()["documents"]]
        assert "长.pdf" not in names
        assert len(names) == before["total"] + 1
        assert sorted(file.name for file in (store / "uploads").iterdir()) == ["别的.txt"]
    assert "unexpected error" not in "".join(started.lines)
