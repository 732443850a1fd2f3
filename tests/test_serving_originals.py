"""`GET /documents/{id}/original`: the file as it was indexed, and nothing else."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sample_files import pdf
from serving_fixtures import AUTH, DOCUMENTS, KEY, make_store, running, served_model

from peg_rag.errors import DamagedIndex, IndexBusy
from peg_rag.ingest import LEDGER_FILE
from peg_rag.serving.knowledge import encode_id
from peg_rag.serving.originals import OriginalFiles

__all__ = ["served_model"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, served_model: str) -> Iterator[tuple[httpx.Client, Path, Path]]:
    """A writable server: (client, store, folder of the documents)."""
    folder = tmp_path_factory.mktemp("originals")
    store = make_store(folder, served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        yield client, store, folder / "docs"


def original(client: httpx.Client, source: str, **headers: str) -> httpx.Response:
    return client.get(f"/documents/{encode_id(source)}/original", headers=headers)


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text[:300]
    assert answer.json()["error"]["code"] == code


def test_a_file_of_an_indexed_folder_is_sent_whole_and_in_ranges(served: tuple[httpx.Client, Path, Path]) -> None:
    client, _, _ = served
    answer = original(client, "docs/花呗.md")
    assert answer.status_code == 200
    assert answer.content == DOCUMENTS["花呗.md"].encode()
    assert answer.headers["content-type"].startswith("text/markdown")
    part = original(client, "docs/花呗.md", Range="bytes=2-5")
    assert part.status_code == 206
    assert part.content == answer.content[2:6]


def test_no_browser_opens_or_runs_it(served: tuple[httpx.Client, Path, Path]) -> None:
    client, _, _ = served
    upload = client.post(
        "/documents", headers=AUTH, files={"files": ("页.html", b"<p>\xe4\xb8\x80</p><script>1</script>")}
    )
    [added] = upload.json()["added"]
    answer = client.get(f"/documents/{added['id']}/original")
    assert answer.content == b"<p>\xe4\xb8\x80</p><script>1</script>"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert "no-store" in answer.headers["cache-control"]
    client.delete(f"/documents/{added['id']}", headers=AUTH)
    assert_error(client.get(f"/documents/{added['id']}/original"), 404, "not_found")


def test_an_upload_is_sent_and_goes_with_its_document(served: tuple[httpx.Client, Path, Path]) -> None:
    client, store, _ = served
    data = pdf([["员工差旅报销制度。"]])
    [added] = client.post("/documents", headers=AUTH, files={"files": ("制度.pdf", data)}).json()["added"]
    answer = client.get(f"/documents/{added['id']}/original")
    assert (answer.content, answer.headers["content-type"]) == (data, "application/pdf")
    client.delete(f"/documents/{added['id']}", headers=AUTH)
    assert_error(client.get(f"/documents/{added['id']}/original"), 404, "not_found")
    assert not (store / "uploads" / "制度.pdf").exists()


def test_a_file_that_changed_or_went_is_said_so(served: tuple[httpx.Client, Path, Path]) -> None:
    client, _, documents = served
    file = documents / "故宫.txt"
    before = file.read_bytes()
    state = file.stat()
    try:
        os.utime(file, ns=(1, 1))  # touched, not changed
        assert original(client, "docs/故宫.txt").content == before
        file.write_bytes(before + b"x")
        assert_error(original(client, "docs/故宫.txt"), 409, "original_changed")
        file.write_bytes(bytes(reversed(before)))  # of the same length
        assert_error(original(client, "docs/故宫.txt"), 409, "original_changed")
        file.unlink()
        assert_error(original(client, "docs/故宫.txt"), 404, "original_missing")
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(state.st_mtime_ns, state.st_mtime_ns))
    assert original(client, "docs/故宫.txt").content == before


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_leads_nowhere(served: tuple[httpx.Client, Path, Path], tmp_path: Path, target: str) -> None:
    client, _, documents = served
    content = (documents / "花呗.md").read_bytes()
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "花呗.md").write_bytes(content)  # even of the same content
    linked = documents / "花呗.md" if target == "file" else documents
    kept = linked.with_name("kept-aside")
    linked.rename(kept)
    try:
        linked.symlink_to(secret / "花呗.md" if target == "file" else secret)
        answer = original(client, "docs/花呗.md")
        if target == "file":
            assert_error(answer, 404, "original_missing")
        else:  # the owner moved the folder and left a link: what the ledger names lies in it
            assert answer.content == content
    finally:
        linked.unlink()
        kept.rename(linked)


@pytest.mark.parametrize(
    "source", ["docs/../../../etc/passwd", "/etc/passwd", "docs/./花呗.md", "docs//花呗.md", "../kb/sources.db", "docs"]
)
def test_what_the_ledger_does_not_list_is_not_there(served: tuple[httpx.Client, Path, Path], source: str) -> None:
    client, _, _ = served
    assert_error(original(client, source), 404, "not_found")


def test_a_private_server_wants_its_key(served: tuple[httpx.Client, Path, Path], tmp_path: Path) -> None:
    _, store, _ = served
    copied = shutil.copytree(store, tmp_path / "kb")
    with running(copied, "--private") as started, httpx.Client(base_url=started.url, timeout=60) as client:
        assert original(client, "docs/花呗.md").status_code == 401
        assert original(client, "docs/花呗.md", Authorization=f"Bearer {KEY}").status_code == 200


def test_an_upload_in_a_copied_store_is_its_own(served: tuple[httpx.Client, Path, Path], tmp_path: Path) -> None:
    """The ledger of a copy names the first store's folder."""
    client, store, _ = served
    [added] = client.post("/documents", headers=AUTH, files={"files": ("抄.txt", "抄写。".encode())}).json()["added"]
    copied = shutil.copytree(store, tmp_path / "kb", copy_function=shutil.copy)  # without times
    client.delete(f"/documents/{added['id']}", headers=AUTH)
    with running(copied) as started, httpx.Client(base_url=started.url, timeout=60) as other:
        assert other.get(f"/documents/{added['id']}/original").content == "抄写。".encode()


def test_a_changed_time_costs_one_reading(
    served: tuple[httpx.Client, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store, documents = served
    file = documents / "script.txt"
    os.utime(file, ns=(7, 7))
    readings: list[Any] = []
    opened = Path.open

    def open_noted(path: Path, *args: Any, **options: Any) -> Any:
        readings.append(path)
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_noted)
    originals = OriginalFiles(store)
    for _ in range(3):
        assert originals.find("docs/script.txt").path == file
    assert readings == [file]


def test_a_store_without_a_ledger_has_no_files(tmp_path: Path) -> None:
    from peg_rag.serving.errors import ApiError

    assert not (tmp_path / LEDGER_FILE).exists()
    with pytest.raises(ApiError) as caught:
        OriginalFiles(tmp_path).find("a.txt")
    assert caught.value.code == "original_missing"


@pytest.fixture
def copied_store(served: Any, tmp_path: Path) -> Path:
    _, store, _ = served
    return Path(shutil.copytree(store, tmp_path / "kb"))


def test_the_ledger_of_a_killed_writer_is_rolled_back_and_read(copied_store: Path) -> None:
    """Who reads alone may not roll back its journal, and would say for ever that another process writes."""
    killed = (
        "import os, sqlite3, sys\n"
        "ledger = sqlite3.connect(sys.argv[1])\n"
        "ledger.execute('PRAGMA cache_size = 1')\n"
        "ledger.execute('DELETE FROM files')\n"
        "ledger.executemany('INSERT INTO settings VALUES (?, ?)', ((str(n), 'x' * 900) for n in range(2000)))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", killed, copied_store / LEDGER_FILE], check=False)
    assert (copied_store / f"{LEDGER_FILE}-journal").stat().st_size
    assert OriginalFiles(copied_store).find("docs/花呗.md").name == "花呗.md"


def test_a_damaged_ledger_is_named(copied_store: Path) -> None:
    (copied_store / LEDGER_FILE).write_bytes(b"not a ledger" * 100)
    with pytest.raises(DamagedIndex, match=LEDGER_FILE):
        OriginalFiles(copied_store).find("docs/花呗.md")


def test_a_ledger_that_is_locked_is_busy_and_not_damaged(copied_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect: Any = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **options, timeout=0.05))
    with closing(connect(copied_store / LEDGER_FILE, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(IndexBusy):
            OriginalFiles(copied_store).find("docs/花呗.md")
