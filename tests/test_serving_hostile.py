"""Clients that mean harm: slow, large, malformed, forged. All get a 4xx in OpenAI's form, nothing is written."""

import contextlib
import io
import json
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from serving_fixtures import AUTH, KEY, RunningServer, make_store, running, served_model, server, store, threaded

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.errors import DataError
from peg_rag.serving.app import create_app
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import UPLOADS, KnowledgeBase
from peg_rag.serving.settings import ServerSettings

__all__ = ["served_model", "server", "store"]
QUICK = ServerSettings(
    header_timeout_s=0.6,
    body_timeout_s=0.8,
    write_timeout_s=0.5,
    keep_alive_s=1,
    max_connections=8,
    max_body_bytes=1 << 16,
)
MODEL = "tiny-static"


@pytest.fixture(scope="module")
def quick(served_model: str) -> Iterator[tuple[str, uvicorn.Server]]:
    """(host, port) and server of an application with short time limits and few connections."""
    with (
        PEGEncoder(served_model) as encoder,
        threaded(create_app(encoder, settings=QUICK), QUICK) as (url, running_server),
    ):
        yield url, running_server


@pytest.fixture(scope="module")
def small_server(served_model: str) -> Iterator[tuple[str, uvicorn.Server]]:
    """An application with few connections, and time enough that none is closed for being slow."""
    settings = ServerSettings(max_connections=QUICK.max_connections)
    with PEGEncoder(served_model) as encoder, threaded(create_app(encoder, settings=settings), settings) as running:
        yield running


@pytest.fixture
def small(small_server: tuple[str, uvicorn.Server]) -> str:
    """Its address, once the connections of the test before are gone."""
    url, running_server = small_server
    give_up = time.monotonic() + 10
    while running_server.server_state.connections and time.monotonic() < give_up:
        time.sleep(0.01)
    return url


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, served_model: str
) -> Iterator[tuple[httpx.Client, Path, RunningServer]]:
    """A writable server in a process of its own, whose memory is watched: (client, store, process)."""
    store = make_store(tmp_path_factory.mktemp("guarded"), served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as client:
        yield client, store, started


def assert_refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    while True:
        try:
            part = connection.recv(65_536)
        except ConnectionResetError:
            return data
        if not part:
            return data
        data += part


# -- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: "])
def test_unfinished_headers_time_out(quick: tuple[str, uvicorn.Server], sent: bytes) -> None:
    with connect(quick[0]) as connection:
        connection.sendall(sent)
        data = read_all(connection)
    assert data.startswith(b"HTTP/1.1 408")


def test_trickling_headers_do_not_extend_the_timeout(quick: tuple[str, uvicorn.Server]) -> None:
    sent = 0
    with connect(quick[0]) as connection, contextlib.suppress(OSError):  # reset or broken pipe, as the timing has it
        while sent < 200:
            connection.sendall(f"X-{sent}: a\r\n".encode() if sent else b"GET / HTTP/1.1\r\nHost: a\r\n")
            sent += 1
            time.sleep(0.05)
    assert sent < 200


@pytest.mark.parametrize("pace_s", [0.1, 10])
def test_a_body_that_trickles_or_stalls_times_out(quick: tuple[str, uvicorn.Server], pace_s: float) -> None:
    with connect(quick[0]) as connection:
        head = (
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        )
        connection.sendall(head + b'{"input": "')
        connection.settimeout(pace_s)
        data = b""
        for _ in range(300):  # more dribbles than the limit allows, fewer than the length that was announced
            try:
                part = connection.recv(65_536)
                data += part
                if not part:
                    break
            except TimeoutError:
                connection.sendall(b"a")
    assert data.startswith(b"HTTP/1.1 408")


def test_the_rest_of_a_refused_body_is_not_awaited_for_long(quick: tuple[str, uvicorn.Server]) -> None:
    with connect(quick[0]) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        data = read_all(connection)
    assert data.startswith(b"HTTP/1.1 413")


def test_an_idle_connection_is_closed(quick: tuple[str, uvicorn.Server]) -> None:
    with connect(quick[0]) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        data = read_all(connection)
    assert data.startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_its_responses_is_disconnected(quick: tuple[str, uvicorn.Server]) -> None:
    url, running_server = quick
    body = json.dumps({"model": MODEL, "input": ["a"] * 2000}).encode()
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            for _ in range(8):  # some 20 MB of answers, far more than the kernel buffers
                connection.sendall(request % len(body) + body)
        except OSError:
            pass
        give_up = time.monotonic() + 60
        while running_server.server_state.connections and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not running_server.server_state.connections


def test_a_connection_over_the_limit_is_told_to_retry_later(small: str) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    held = [connect(small) for _ in range(QUICK.max_connections)]
    for connection in held:
        connection.sendall(head)  # at work: the body is awaited
    time.sleep(0.2)
    with connect(small) as late:
        data = read_all(late)
    for connection in held:
        connection.close()
    assert data.startswith(b"HTTP/1.1 429")
    assert b"Retry-After: 1" in data


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: "], ids=["silent", "half a header"])
def test_silent_connections_lock_nobody_out(small: str, sent: bytes) -> None:
    """More of them than there are places: the oldest go, told why, and those who ask are answered."""
    held = [connect(small) for _ in range(3 * QUICK.max_connections)]
    for connection in held:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
    with connect(small) as asking:
        asking.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert asking.recv(4096).startswith(b"HTTP/1.1 200")
    assert held[0].recv(4096).startswith(b"HTTP/1.1 429")
    for connection in held:
        connection.close()


def test_silent_connections_are_closed_before_idle_ones(small: str) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    idle = connect(small)
    idle.sendall(request)
    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
    silent = [connect(small) for _ in range(QUICK.max_connections)]
    assert silent[0].recv(4096).startswith(b"HTTP/1.1 429")
    idle.sendall(request)
    assert idle.recv(4096).startswith(b"HTTP/1.1 200")
    for connection in (idle, *silent):
        connection.close()


def test_an_idle_connection_is_closed_for_a_new_one(small: str) -> None:
    """An answered request buys no place: whoever has been idle longest goes, and whoever works stays."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    held = [connect(small) for _ in range(QUICK.max_connections)]
    for connection in held:
        connection.sendall(request)
        assert connection.recv(4096).startswith(b"HTTP/1.1 ")
        time.sleep(0.02)
    with connect(small) as late:
        late.sendall(request)
        assert late.recv(4096).startswith(b"HTTP/1.1 200")
        held[1].sendall(request)
        assert held[1].recv(4096).startswith(b"HTTP/1.1 200")
        assert held[0].recv(4096) == b""
    for connection in held:
        connection.close()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/documents"])
def test_a_client_that_disconnects_is_not_a_server_error(
    guarded: tuple[httpx.Client, Path, RunningServer], path: str
) -> None:
    client, store, process = guarded
    kind = "multipart/form-data; boundary=x" if path == "/documents" else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\n"
    before = client.get("/metrics").text.count('status="400"')
    with connect(process.url) as connection:
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n--x\r\n".encode())
        time.sleep(0.1)
    give_up = time.monotonic() + 60
    while client.get("/metrics").text.count('status="400"') == before and time.monotonic() < give_up:
        time.sleep(0.05)
    metrics = client.get("/metrics").text
    assert f'{{method="POST",route="{path}",status="400"}}' in metrics
    assert 'status="5' not in metrics
    assert not list((store / UPLOADS).glob("*"))


# -- large ------------------------------------------------------------------------------------------------------------


def megabytes(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"a" * (1 << 20)


def post_raw(url: str, path: str, head: str, chunks: Iterable[bytes]) -> bytes:
    """Send a body whatever the server says; what it answered."""
    with connect(url) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        try:
            for chunk in chunks:
                connection.sendall(chunk)
        except OSError:
            pass
        connection.settimeout(20)
        return connection.recv(65_536)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/documents"])
def test_a_body_of_100_mb_is_refused_and_not_kept_in_memory(
    guarded: tuple[httpx.Client, Path, RunningServer], path: str
) -> None:
    client, store, process = guarded
    client.post("/search", json={"query": "花呗"})
    before = process.memory_bytes
    multipart = f"Authorization: Bearer {KEY}\r\nContent-Type: multipart/form-data; boundary=x"
    kind = multipart if path == "/documents" else "Content-Type: application/json"
    opening = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
    told = post_raw(process.url, path, f"{kind}\r\nContent-Length: {100 << 20}", [opening, *megabytes(99)])
    pieces = (b"%x\r\n%b\r\n" % (len(part), part) for part in (opening, *megabytes(100)))
    untold = post_raw(process.url, path, f"{kind}\r\nTransfer-Encoding: chunked", pieces)
    assert told.startswith(b"HTTP/1.1 413")
    assert untold.startswith(b"HTTP/1.1 413")
    assert process.memory_bytes < before + (60 << 20)
    assert not list((store / UPLOADS).glob("*"))


def test_a_wrong_content_length_is_refused(quick: tuple[str, uvicorn.Server]) -> None:
    short = post_raw(
        quick[0], "/v1/embeddings", "Content-Type: application/json\r\nContent-Length: 2", [b"{}" + b"x" * 999]
    )
    assert short.startswith(b"HTTP/1.1 400")
    both = "Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked"
    assert post_raw(quick[0], "/v1/embeddings", both, [b"{}"]).startswith(b"HTTP/1.1 4")
    assert post_raw(quick[0], "/v1/embeddings", "Content-Length: -1", []).startswith(b"HTTP/1.1 400")


def test_a_body_with_two_lengths_closes_the_connection(quick: tuple[str, uvicorn.Server]) -> None:
    """Whoever stands between might take the rest for another request (RFC 9112, 6.1)."""
    with connect(quick[0]) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        data = read_all(connection)
    assert data.startswith(b"HTTP/1.1 400")
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in data.lower()


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    ],
    ids=["nonsense", "no host", "two hosts", "header name", "length", "endless header", "TLS"],
)
def test_malformed_http_gets_the_error_format_of_the_api(quick: tuple[str, uvicorn.Server], request_: bytes) -> None:
    with connect(quick[0]) as connection:
        connection.sendall(request_)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/json" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_malformed_chunk_gets_the_error_format_of_the_api(quick: tuple[str, uvicorn.Server]) -> None:
    with connect(quick[0]) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{"
        )
        time.sleep(0.1)
        connection.sendall(b"}\r\nnot a length\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_request"


def test_endless_headers_are_refused(quick: tuple[str, uvicorn.Server]) -> None:
    with connect(quick[0]) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20))
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")


@pytest.mark.parametrize(
    "texts", [["a"] * 2049, ["a" * 100_001], ["a" * 90_000] * 12], ids=["items", "characters", "total"]
)
def test_too_many_or_too_long_texts_are_refused(
    guarded: tuple[httpx.Client, Path, RunningServer], texts: list[str]
) -> None:
    assert_refused(guarded[0].post("/v1/embeddings", json={"model": MODEL, "input": texts}), 413)


# -- malformed --------------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/search", "/ask", "/documents/text"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"{}",
        b"\xff\xfe\x00",
        b'{"query": "\xc3\x28"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"where":' * 50_000 + b"1" + b"}" * 50_000,
        b"1" * 5_000,
        b"1e999999",
        b'{"input": "a", "input": 1, "query": 1, "question": 1, "name": 1}',
        b"\x00" * 100,
    ],
    ids=str,
)
def test_malformed_json_is_refused(guarded: tuple[httpx.Client, Path, RunningServer], path: str, body: bytes) -> None:
    assert_refused(guarded[0].post(path, content=body, headers={**JSON, **AUTH}), 400)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", '{"model": "tiny-static", "input": "\\ud800"}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": []}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": [["a"]]}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": [1, 2]}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": ["a", 1]}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": "a", "dimensions": 0}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": "a", "dimensions": 1e400}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": "a", "dimensions": true}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": " ", "input_type": "query"}'),
        ("/v1/embeddings", '{"model": "tiny-static", "input": "a", "unknown": 1}'),
        ("/v1/rerank", '{"query": "\\udfff", "documents": ["a"]}'),
        ("/v1/rerank", '{"query": "a", "documents": ["\\ud800"]}'),
        ("/v1/rerank", '{"query": "a", "documents": [{"text": "\\ud800"}]}'),
        ("/v1/rerank", '{"query": "a", "documents": [["a"]]}'),
        ("/v1/rerank", '{"query": "a", "documents": {"a": "b"}}'),
        ("/v1/rerank", '{"query": "a", "documents": ["a"], "top_n": NaN}'),
        ("/search", '{"query": "\\udfff"}'),
        ("/search", '{"query": "   "}'),
        ("/search", '{"query": "\\u001c"}'),
        ("/search", '{"query": "a", "k": 0}'),
        ("/search", '{"query": "a", "k": NaN}'),
        ("/search", '{"query": "a", "mode": "sql"}'),
        ("/search", '{"query": "a", "where": {"a": NaN}}'),
        ("/search", '{"query": "a", "where": {"a": "\\ud800"}}'),
        ("/search", '{"query": "a", "where": {"\\ud800": 1}}'),
        ("/search", '{"query": "a", "where": {"a": {"$regex": "("}}}'),
        ("/search", '{"query": "a", "where": {"a": {"$gt": {}}}}'),
        ("/search", '{"query": "a", "where": ' + '{"$not": ' * 200 + '{"a": 1}' + "}" * 200 + "}"),
        ("/search", '{"query": "a", "where": {"a": {"$in": [' + "1," * 9000 + "1]}}}"),
        ("/ask", '{"question": "a", "threshold": NaN}'),
        ("/ask", '{"question": "a", "threshold": 2}'),
        ("/ask", '{"question": "a", "threshold": -Infinity}'),
        ("/documents/text", '{"name": "", "text": "a"}'),
        ("/documents/text", '{"name": "a", "text": "\\ud800"}'),
    ],
)
def test_values_out_of_range_are_refused(
    guarded: tuple[httpx.Client, Path, RunningServer], path: str, body: str
) -> None:
    assert_refused(guarded[0].post(path, content=body, headers={**JSON, **AUTH}), 400)


@pytest.mark.parametrize(
    "where",
    [
        {"a": "\0"},
        {"a": 10**30},
        {"a": -(10**30)},
        {"a": 1e308},
        {"": ""},
        {'"': 1},
        {"a'b--": "' OR 1=1"},
        {"$and": [{"a": 1}] * 300},
    ],
    ids=str,
)
def test_unusual_filters_are_accepted(guarded: tuple[httpx.Client, Path, RunningServer], where: dict[str, Any]) -> None:
    assert guarded[0].post("/search", json={"query": "花呗", "where": where}).json()["hits"] == []


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_refused(guarded: tuple[httpx.Client, Path, RunningServer], kind: str | None) -> None:
    headers = {**AUTH, **({"Content-Type": kind} if kind else {})}
    assert_refused(guarded[0].post("/search", content=b'{"query": "a"}', headers=headers), 400)
    assert_refused(guarded[0].post("/documents", content=b'{"query": "a"}', headers=headers), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x--\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nnot a file\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="other"; filename="a.txt"\r\n\r\na\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nnever ended',
        b"--x\r\n" + b"A: b\r\n" * 100_000,
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\na\r\n' * 17 + b"--x--\r\n",
    ],
    ids=range(9),
)
def test_malformed_uploads_are_refused(guarded: tuple[httpx.Client, Path, RunningServer], body: bytes) -> None:
    client, store, _ = guarded
    headers = {**AUTH, "Content-Type": "multipart/form-data; boundary=x"}
    assert_refused(client.post("/documents", content=body, headers=headers), 400, 413)
    assert not list((store / UPLOADS).glob("*"))


@pytest.mark.parametrize("path", ["/documents/%00", "/documents/!!", "/documents/aaa", "/documents/" + "a" * 5000])
def test_invalid_document_ids_are_not_found(guarded: tuple[httpx.Client, Path, RunningServer], path: str) -> None:
    assert_refused(guarded[0].get(path), 404, 400)
    assert_refused(guarded[0].delete(path, headers=AUTH), 404, 400)


@pytest.mark.parametrize("path", ["/passages/%00", "/passages/%ED%A0%80", "/passages/../../etc/passwd", "/passages/"])
def test_invalid_passage_ids_are_not_found(guarded: tuple[httpx.Client, Path, RunningServer], path: str) -> None:
    assert_refused(guarded[0].get(path), 404, 400)


# -- forged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../../../tmp/pwned.txt", "..%2f..%2fpwned.txt", "/etc/cron.d/pwned.txt", "..\\..\\pwned.txt",
     "....//pwned.txt", "pwned.txt\x00.pdf", "~/.ssh/pwned.txt", ".pwned.txt", "C:\\pwned.txt", "a/../../pwned.txt",
     "\u202etxt.pwned.txt"],
)  # fmt: skip
def test_no_file_name_escapes_the_upload_folder(guarded: tuple[httpx.Client, Path, RunningServer], name: str) -> None:
    client, store, _ = guarded
    outside = sorted(path for path in store.parent.rglob("*") if UPLOADS not in path.parts)
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/documents", {"files": {"files": (name, b"pwned")}}),
        ("/documents/text", {"json": {"name": name, "text": "pwned"}}),
    ]
    for path, body in requests:
        answer = client.post(path, headers=AUTH, **body)
        if answer.status_code != 200:
            assert_refused(answer, 400, 415, 422)
            continue
        card = answer.json()["added"][0] if "added" in answer.json() else answer.json()
        files = list((store / UPLOADS).rglob("*"))
        assert [file.name for file in files] == [card["name"]]
        assert files[0].parent == store / UPLOADS
        assert client.delete(f"/documents/{card['id']}", headers=AUTH).status_code == 200
    assert sorted(path for path in store.parent.rglob("*") if UPLOADS not in path.parts) == outside


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc", "/docs/assets/../../api.py", "//etc/passwd",
     "/assets/../../secret.txt", "/assets/%2e%2e/%2e%2e/secret.txt", "/assets/..%2findex.html", "/index.html"],
)  # fmt: skip
def test_no_path_escapes_the_page_folder(served_model: str, tmp_path: Path, path: str) -> None:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<h1>page</h1>")
    (tmp_path / "secret.txt").write_text("secret")
    settings = ServerSettings()
    with PEGEncoder(served_model) as encoder, threaded(create_app(encoder, page=page), settings) as (url, _):
        with connect(url) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            assert read_all(connection).startswith(b"HTTP/1.1 404")
        shown = httpx.get(url)
        assert shown.text == "<h1>page</h1>"
        policy = shown.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


def test_a_script_in_a_document_is_text(guarded: tuple[httpx.Client, Path, RunningServer]) -> None:
    client, _, _ = guarded
    script = "<script>alert(1)</script><img src=x onerror=alert(2)>脚本注入"
    card = client.post("/documents/text", json={"name": "<b>x</b>.md", "text": f"# {script}\n\n{script}"}, headers=AUTH)
    answers = [
        client.post("/search", json={"query": "脚本注入", "mode": "lexical"}),
        client.post("/ask", json={"question": "脚本注入", "threshold": 0}),
        client.get("/documents"),
        client.get(f"/documents/{card.json()['id']}/passages"),
    ]
    for answer in answers:
        assert answer.headers["content-type"].split(";")[0] in ("application/json", "text/event-stream")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert script in answers[0].json()["hits"][0]["text"]
    client.delete(f"/documents/{card.json()['id']}", headers=AUTH)


def test_an_unknown_host_name_is_refused(guarded: tuple[httpx.Client, Path, RunningServer]) -> None:
    """A page elsewhere that points its own name at 127.0.0.1 (DNS rebinding) sends that name."""
    client, _, _ = guarded
    for name in ("evil.example", "127.0.0.1.evil.example", ""):
        answer = client.get("/documents", headers={"Host": name})
        assert_refused(answer, 400)
    assert client.get("/documents", headers={"Host": "localhost"}).status_code == 200


def test_health_checks_are_answered_under_any_host_name(served_model: str) -> None:
    with PEGEncoder(served_model) as encoder:
        app = create_app(encoder, hosts=["rag.example.org"])
        with threaded(app, ServerSettings()) as (url, _):
            for path in ("/health", "/health/live", "/health/ready"):
                assert httpx.get(f"{url}{path}").json() == {"status": "ok"}
            for path in ("/", "/info", "/metrics", "/docs", "/healthy"):
                assert httpx.get(f"{url}{path}").status_code == 400
            assert httpx.get(f"{url}/info", headers={"Host": "rag.example.org"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rag.example.org", 200),
        ("RAG.example.org:8000", 200),
        ("a.example.net", 200),
        ("[::1]:8000", 200),
        ("example.net", 400),
        ("evil.org", 400),
        ("rag.example.org.evil.org", 400),
        ("rag.example.org@evil.org", 400),
        ("rag.example.org:port", 400),
        ("[::1", 400),
        ("a b", 400),
    ],
)
def test_allowed_host_names(served_model: str, host: str, status: int) -> None:
    with PEGEncoder(served_model) as encoder:
        app = create_app(encoder, hosts=["rag.example.org", "*.example.net", "[::1]"])
        with threaded(app, ServerSettings()) as (url, _):
            answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
    if status == 200:
        assert answer.status_code == 200
    else:
        assert_refused(answer, 400)


WRITES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/documents", {"files": {"files": ("a.txt", b"a")}}),
    ("POST", "/documents/text", {"json": {"name": "a", "text": "a"}}),
    ("DELETE", "/documents/ZG9jcy_oirHlkZcubWQ", {}),
    ("POST", "/feedback", {"json": {"question": "花呗如何还款", "vote": "up"}}),
]


READING_POSTS = {"/ask", "/search", "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"}


def list_operations(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path template) of every route in the schema of an application."""
    return {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}


async def request_without_key(app: FastAPI, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path.replace("{", "").replace("}", ""), json={})


async def test_every_route_of_a_private_server_requires_a_key(store: Path, served_model: str) -> None:
    """The routes come from the schema, so a new one that forgets `require_read_access` fails here."""
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        settings = ServerSettings(private=True)
        app = create_app(encoder, KnowledgeBase(store, index, encoder), keys=ApiKeys([KEY]), settings=settings)
        operations = list_operations(app)
        assert len(operations) > 15
        for method, path in sorted(operations - {("GET", "/health/live"), ("GET", "/health/ready")}):
            answer = await request_without_key(app, method, path)
            assert answer.status_code == 401, (method, path)


async def test_every_route_that_writes_requires_a_key(store: Path, served_model: str) -> None:
    """Whatever is not a GET writes, unless it is named in `READING_POSTS`."""
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder), keys=ApiKeys([KEY]))
        writes = {(m, path) for m, path in list_operations(app) if m != "GET" and path not in READING_POSTS}
        assert len(writes) == len(WRITES)  # each has its line there, and is tried with wrong keys below
        for method, path in sorted(writes):
            answer = await request_without_key(app, method, path)
            assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize(
    "key", [None, "", "wrong", KEY[:-1], KEY + "x", f"{KEY},{KEY}", "\xff"], ids=["none", "empty", *"abcde"]
)
def test_without_a_key_nothing_is_written(
    guarded: tuple[httpx.Client, Path, RunningServer], method: str, path: str, body: dict[str, Any], key: str | None
) -> None:
    client, _, _ = guarded
    before = client.get("/documents").json()
    headers = {} if key is None else {b"Authorization": f"Bearer {key}".strip().encode("latin-1")}
    answer = client.request(method, path, headers=headers, **body)
    assert_refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert_refused(client.request(method, path, headers={"Authorization": f"Basic {KEY}"}, **body), 401)
    assert client.get("/documents").json() == before


def test_a_server_without_keys_opens_its_store_read_only(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    with running(store, keys="") as started, httpx.Client(base_url=started.url, timeout=60) as client:
        for method, path, body in WRITES:
            assert_refused(client.request(method, path, headers=AUTH, **body), 403)
        assert client.get("/info").json()["writable"] is False
        assert len(client.post("/search", json={"query": "花呗"}).json()["hits"]) == 4
    assert not (store / UPLOADS).exists()


def test_a_private_server_requires_a_key_for_reading(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", path, {}) for path in ("/documents", "/info", "/metrics", "/v1/models", "/passages/a")
    ]
    asked += [("POST", "/search", {"json": {"query": "a"}}), ("POST", "/ask", {"json": {"question": "a"}})]
    asked += [("POST", "/v1/embeddings", {"json": {"model": MODEL, "input": "a"}})]
    with running(store, "--private") as started, httpx.Client(base_url=started.url, timeout=60) as client:
        for method, path, body in asked:
            assert_refused(client.request(method, path, **body), 401)
            assert client.request(method, path, headers=AUTH, **body).status_code in (200, 404)
        assert client.get("/health/ready").status_code == 200


# -- converters that misbehave ----------------------------------------------------------------------------------------


def test_reading_a_slow_file_times_out(tmp_path: Path, served_model: str) -> None:
    """Half a million small elements keep an HTML parser busy for many seconds."""
    store = make_store(tmp_path, served_model)
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity) as index:
        knowledge = KnowledgeBase(store, index, encoder, conversion_timeout_s=1.5)
        with pytest.raises(DataError, match=r"^slow\.html could not be read within"):
            knowledge.add("slow.html", io.BytesIO(b"<p>a</p>" * 500_000))
        assert knowledge.add("quick.md", io.BytesIO(b"<!-- a -->text")).passages == 1
    assert [file.name for file in (store / UPLOADS).iterdir()] == ["quick.md"]


def test_leftovers_of_a_crash_are_removed(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    (store / UPLOADS).mkdir()
    (store / UPLOADS / ".upload-0123.pdf").write_bytes(b"half")
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity) as index:
        KnowledgeBase(store, index, encoder)
        create_app(encoder, KnowledgeBase(store, index, encoder), keys=ApiKeys([KEY]))
    assert not list((store / UPLOADS).iterdir())


# -- at length --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_bad_requests(guarded: tuple[httpx.Client, Path, RunningServer]) -> None:
    """Schemathesis makes requests that break the OpenAPI schema, and some that keep it: no 5xx, no crash, no leak."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable
    from schemathesis.generation import GenerationMode

    client, _, process = guarded
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    counts: dict[int, int] = {}
    results: Any = schema.get_all_operations()
    operations = [result.ok() for result in results]

    def attack(operation: Any, mode: GenerationMode, examples: int) -> None:
        @given(case=operation.as_strategy(generation_mode=mode), key=st.sampled_from([AUTH, {}]))
        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def send(case: Any, key: dict[str, str]) -> None:
            answer = case.call(base_url=process.url, headers=key, timeout=30)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            if answer.status_code >= 400 and case.method != "HEAD":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        send()

    def attack_all(examples: int) -> None:
        for operation in operations:
            for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):
                with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that takes nothing
                    attack(operation, mode, examples if mode is GenerationMode.NEGATIVE else examples // 5)

    for route, body in (  # what a route loads for its first valid request is no leak
        ("/ask", {"question": "花呗可以更换银行卡吗"}),
        ("/search", {"query": "花呗"}),
        ("/v1/rerank", {"query": "花呗", "documents": ["花呗可以更换银行卡", "故宫"]}),
        ("/v1/chat/completions", {"model": "peg-rag", "messages": [{"role": "user", "content": "花呗能换银行卡吗"}]}),
    ):
        print(route, client.post(route, json=body, headers=AUTH).status_code)
    attack_all(30)
    before, files = process.memory_bytes, psutil.Process(process.process.pid).num_fds()
    while sum(count for status, count in counts.items() if status >= 400) < 10_000:
        attack_all(100)
        print(dict(sorted(counts.items())), f"{process.memory_bytes / before:.3f} of the memory before")
    assert client.get("/health/ready").status_code == 200
    assert client.post("/search", json={"query": "花呗"}).json()["hits"]
    assert process.memory_bytes < 1.1 * before
    assert psutil.Process(process.process.pid).num_fds() <= files + 8
    assert "traceback" not in "".join(process.lines)
