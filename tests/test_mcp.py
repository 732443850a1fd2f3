"""`peg-rag mcp`, driven by the SDK's own client: over stdio, over streamable HTTP, and in process for the details."""

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import LetterEncoder
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.answer import NOT_FOUND
from peg_rag.chunking import Chunking, split
from peg_rag.cli.app import run
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.ingest import file_of, sync
from peg_rag.mcp_server import KnowledgeReader, Links, create_http_app, create_server, join_passages, listen, title_of
from peg_rag.readers import Section

KEY = "a-key-for-the-tests-only"
COMMAND = ["-c", "from peg_rag.cli import main; main()", "mcp"]
DOCUMENTS = {
    "花呗.md": "# 绑定银行卡\n\n打开支付宝，点击“我的”，选择“银行卡”，即可为花呗绑定银行卡。更换需要先解绑旧卡。\n\n"
    "# 还款\n\n花呗每月九日还款，逾期会产生利息，每日利率为万分之五。\n",
    "故宫.txt": "故宫博物院的门票旺季六十元，淡季四十元。周一闭馆。观众需要提前七天在网上预约。\n",
    "员工手册.md": "".join(
        f"第{n}条的内容是：编号为{n}的员工在{n}号工位办公，分机号是{8000 + n}。\n\n" for n in range(1, 401)
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcp")
    documents = folder / "文档"
    documents.mkdir()
    for name, text in DOCUMENTS.items():
        (documents / name).write_text(text, encoding="utf-8")
    assert run(["index", str(documents), "--store", str(folder / "kb"), "--model", "peg-mini"]) == 0
    return folder / "kb"


@pytest.fixture
def reader(store: Path) -> Iterator[KnowledgeReader]:
    with (
        PEGEncoder("peg-mini") as encoder,
        PEGIndex(store, identity=encoder.identity, read_only=True) as index,
    ):
        yield KnowledgeReader(index, encoder, Links(store))


def over_stdio(store: Path, *arguments: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable, args=[*COMMAND, str(store), *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@contextmanager
def over_http(store: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """The address of a `peg-rag mcp --http` in a process of its own; it ends well when told to."""
    command = [sys.executable, *COMMAND, str(store), "--http", "--port", "0", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (address := re.search(r"http://\S+/mcp", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield address[0]
        finally:
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout == ""


async def call(client: Client, tool: str, **arguments: str) -> dict[str, Any]:
    """A tool's result, which stands in one text as JSON and as structured content."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    (content,) = result.content
    assert content.type == "text"
    structured: dict[str, Any] = json.loads(content.text)
    assert structured == result.structured_content
    return structured


async def refusal(client: Client, tool: str, **arguments: str) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content is None
    (content,) = result.content
    assert content.type == "text"
    return content.text


async def check_tools(client: Client) -> None:
    """What every client can rely on, whatever lies between it and the server."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "fetch", "ask"}
    for name, argument in (("search", "query"), ("fetch", "id"), ("ask", "question")):
        assert list(tools[name].input_schema["properties"]) == tools[name].input_schema["required"] == [argument]
        assert tools[name].input_schema["properties"][argument]["type"] == "string"
        assert tools[name].output_schema
        annotations = tools[name].annotations
        assert annotations is not None
        assert annotations.read_only_hint is True
        assert annotations.destructive_hint is False
        assert annotations.open_world_hint is False

    (best, *_) = (await call(client, "search", query="花呗怎么绑定银行卡"))["results"]
    assert set(best) == {"id", "title", "url"}
    assert best["title"] == "文档/花呗.md · 绑定银行卡"
    document = await call(client, "fetch", id=best["id"])
    assert set(document) == {"id", "title", "text", "url", "metadata"}
    assert {name: document[name] for name in best} == best
    assert document["text"].startswith("绑定银行卡\n打开支付宝")
    assert document["text"].endswith("还款\n花呗每月九日还款，逾期会产生利息，每日利率为万分之五。")
    assert document["metadata"]["source"] == "文档/花呗.md"

    answer = await call(client, "ask", question="故宫周几闭馆？")
    assert answer["found"]
    assert "周一闭馆。" in [sentence["text"] for sentence in answer["sentences"]]
    assert answer["sources"][0]["title"] == "文档/故宫.txt"
    assert answer["sources"][0]["number"] == answer["sentences"][0]["citation"] == 1

    assert "InvalidInput: there is no passage 'nothing'" in await refusal(client, "fetch", id="nothing")
    assert "query" in await refusal(client, "search", query=" \n")
    assert "query" in await refusal(client, "search", query="花" * 10_001)
    assert "question" in await refusal(client, "ask", query="花呗")
    results = await asyncio.gather(*(call(client, "search", query=f"花呗{n}") for n in range(8)))
    assert all(result["results"] for result in results)


def contents(folder: Path) -> dict[str, str]:
    """Digests of the store's files, but for SQLite's own of who is reading; nothing waits to be written."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert not any(content for name, content in files.items() if name.endswith("-wal"))
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if not name.endswith(("-wal", "-shm"))
    }


# -- the two ways in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_stdio(store: Path, mode: str) -> None:
    before = contents(store)
    async with Client(over_stdio(store), mode=mode) as client:
        await check_tools(client)
        (best, *_) = (await call(client, "search", query="花呗还款"))["results"]
        assert best["url"] == (store.parent / "文档" / "花呗.md").as_uri()
    assert contents(store) == before


async def test_over_streamable_http(store: Path) -> None:
    before = contents(store)
    with over_http(store) as url:
        for mode in ("auto", "legacy"):
            async with Client(url, mode=mode) as client:
                await check_tools(client)
                (best, *_) = (await call(client, "search", query="花呗还款"))["results"]
                assert best["url"] == f"peg-rag:passage/{best['id']}"  # no paths for other machines
        await check_doors(url)
    assert contents(store) == before


async def check_doors(url: str) -> None:
    """Requests that a web page of somebody else, or a careless client, might send."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    accept = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(headers=accept) as http:
        assert (await http.post(url, json=message, headers={"Host": "evil.example.org"})).status_code == 421
        assert (await http.post(url, json=message, headers={"Origin": "http://evil.example.org"})).status_code == 403
        assert (await http.post(url, content=b" " * 5_000_000)).status_code == 413
        assert (await http.post(url, content=b"{", headers={"Content-Type": "application/json"})).status_code == 400
        assert (await http.post(url.removesuffix("/mcp"), json=message)).status_code == 404


async def test_a_private_server_wants_a_key(store: Path) -> None:
    with over_http(store, "--private", PEG_RAG_API_KEYS=KEY) as url:
        async with httpx2.AsyncClient() as http:
            for headers in ({}, {"Authorization": "Bearer another-key-for-tests"}, {"Authorization": f"Basic {KEY}"}):
                response = await http.post(url, json={}, headers=headers)
                assert response.status_code == 401
                assert "Authorization: Bearer KEY" in response.json()["error"]
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            assert (await call(client, "search", query="花呗"))["results"]


def test_stdout_is_the_protocols_alone_and_the_end_of_stdin_ends_it(store: Path) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {}}}
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": about}),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        "this is no JSON",
        json.dumps(message | {"params": {"name": "ask", "arguments": {"question": "故宫周几闭馆？"}}}),
    ]
    command = [sys.executable, *COMMAND, str(store)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n".join(lines) + "\n")
    process.stdin.flush()
    replies = [json.loads(process.stdout.readline())]
    while replies[-1].get("id") != 1:
        replies.append(json.loads(process.stdout.readline()))
    assert replies[0]["result"]["serverInfo"]["name"] == "peg-rag"
    assert replies[-1]["result"]["structuredContent"]["found"]
    rest, _ = process.communicate(timeout=60)
    assert rest == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/no/such/store"], 2, "peg-rag index"),
        (["STORE", "--mode", "sideways"], 2, "hybrid, dense, lexical"),
        (["STORE", "--base-url", "docs.example.org"], 2, "https://docs.example.org/"),
        (["STORE", "--http", "--private"], 2, "PEG_RAG_API_KEYS"),
        (["STORE", "--http", "--port", "TAKEN"], 1, "--port"),
        (["STORE", "--http", "--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1"),
    ],
)
def test_mistakes_are_one_message(
    store: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("PEG_RAG_API_KEYS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"STORE": str(store), "TAKEN": str(taken.getsockname()[1])}
        assert run(["mcp", *(names.get(argument, argument) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


# -- the tools ---------------------------------------------------------------------------------------------------------


async def test_what_the_documents_do_not_say_is_not_found(reader: KnowledgeReader) -> None:
    async with Client(create_server(reader)) as client:
        answer = await call(client, "ask", question="量子计算机的价格是多少？")
    assert not answer["found"]
    assert answer["answer"] == NOT_FOUND
    assert answer["sentences"] == answer["sources"] == []


async def test_an_unexpected_error_keeps_its_secrets(letters: LetterEncoder, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(LetterEncoder):
        def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
            raise RuntimeError("a secret path")

    with PEGIndex(None, dimension=letters.dimension) as index:
        async with Client(create_server(KnowledgeReader(index, Broken()))) as client:
            said = await refusal(client, "search", query="花呗")
    assert said == "Error executing tool search"
    assert "a secret path" in caplog.text


async def test_a_long_document_is_read_on_by_ids(reader: KnowledgeReader) -> None:
    async with Client(create_server(reader)) as client:
        results = (await call(client, "search", query="第200条 编号为200的员工 分机号8200"))["results"]
        start = next(result["id"] for result in results if "员工手册" in result["title"])
        document = await call(client, "fetch", id=start)
        assert document["metadata"]["passage"] in document["text"]
        texts = [document["text"]]
        for direction in ("previous", "next"):
            around = document
            while direction in around["metadata"]:
                around = await call(client, "fetch", id=around["metadata"][direction])
                texts.append(around["text"])
    assert len(texts) > 2
    assert all(len(text) < 10_000 for text in texts)
    for n in range(1, 401):
        assert any(f"编号为{n}的员工在{n}号工位办公，分机号是{8000 + n}。" in text for text in texts)


def test_documents_that_come_while_it_runs_are_found(tmp_path: Path) -> None:
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "a.txt").write_text("花呗每月九日还款。", encoding="utf-8")
    with PEGEncoder("peg-mini") as encoder, PEGIndex(tmp_path / "kb", identity=encoder.identity) as index:
        sync(documents, index, encoder, tmp_path / "kb", model="peg-mini")
        with PEGIndex(tmp_path / "kb", identity=encoder.identity, read_only=True) as opened:
            reader = KnowledgeReader(opened, encoder)
            first = reader.search("花呗还款").results[0]
            (documents / "a.txt").write_text("花呗每月十日还款。", encoding="utf-8")
            sync(documents, index, encoder, tmp_path / "kb", model="peg-mini")
            with pytest.raises(InvalidInput, match="search again"):
                reader.fetch(first.id)
            assert reader.fetch(reader.search("花呗还款").results[0].id).text == "花呗每月十日还款。"


def test_passages_of_other_stores_stand_alone(letters: LetterEncoder) -> None:
    with PEGIndex(None, dimension=letters.dimension) as index:
        index.upsert(
            ["a", "b"],
            ["花呗还款\n每月九日", "银行卡"],
            letters.encode_documents(["花呗还款", "银行卡"]),
            metadatas=[{"url": "https://example.org/花呗", "chunk": "one"}, {"source": 7}],
        )
        reader = KnowledgeReader(index, letters, mode="dense")
        document = reader.fetch("a")
        other = reader.fetch("b")
    assert (document.title, document.url) == ("花呗还款", "https://example.org/花呗")
    assert document.text == document.metadata["passage"] == "花呗还款\n每月九日"
    assert (other.title, other.url, other.text) == ("7", "peg-rag:passage/b", "银行卡")


# -- titles, links, texts ----------------------------------------------------------------------------------------------


def passage(text: str = "花呗", **metadata: Any) -> Hit:
    return Hit("a b", text, 1.0, metadata=metadata)


def test_titles_say_where_a_passage_stands() -> None:
    assert title_of(passage(source="a.pdf", title="还款 > 逾期", page=3)) == "a.pdf · 还款 > 逾期 · page 3"
    assert title_of(passage(source="a.xlsx", sheet="差旅", row=7)) == "a.xlsx · 差旅 · row 7"
    assert title_of(passage("很" * 200)) == "很" * 80
    assert title_of(passage(" ")) == "a b"


def test_links_of_passages(store: Path, tmp_path: Path) -> None:
    source = "文档/故宫.txt"
    file = store.parent / source
    assert Links(store).url_of(passage(source=source, page=2)) == f"{file.as_uri()}#page=2"
    assert Links(store).url_of(passage(source="文档/gone.txt")) == "peg-rag:passage/a%20b"
    assert Links(tmp_path).url_of(passage(source=source)) == "peg-rag:passage/a%20b"
    published = Links(store, "https://docs.example.org/kb/")
    assert published.url_of(passage(source="a b/c#1.pdf", page=2)) == (
        "https://docs.example.org/kb/a%20b/c%231.pdf#page=2"
    )
    assert published.url_of(passage(source=source, url="https://example.org/x")) == "https://example.org/x"
    assert published.url_of(passage(source="a", url="javascript:alert(1)")) == "https://docs.example.org/kb/a"
    for wrong in ("docs.example.org", "ftp://example.org", "http://", "http://[", ""):
        with pytest.raises(InvalidInput, match="base URL"):
            Links(store, wrong)


def test_the_file_of_a_source(store: Path, tmp_path: Path) -> None:
    assert file_of(store, "文档/故宫.txt") == store.parent / "文档" / "故宫.txt"
    assert file_of(store, "文档/../kb/index.sqlite") is None
    assert file_of(store, "other") is None
    assert file_of(tmp_path, "文档/故宫.txt") is None


@given(
    st.lists(st.text("花呗还款。，\n a", min_size=1, max_size=60), min_size=1, max_size=4),
    st.integers(6, 30),
    st.booleans(),
)
def test_joined_passages_are_the_document(texts: list[str], characters: int, titled: bool) -> None:
    sections = []
    start = 0
    for number, text in enumerate(texts):
        sections.append(Section(text, title=f"第{number}节" if titled else "", start=start))
        start += len(text) + 2
    chunks = list(split(sections, "a.txt", "1", Chunking(characters=characters, overlap=characters // 3)))
    joined = join_passages([Hit(chunk.id, chunk.text, 0.0, metadata=chunk.metadata) for chunk in chunks])
    expected = [f"第{n}节{text}" if titled and text.strip() else text for n, text in enumerate(texts)]
    assert "".join(joined.split()) == "".join("".join(expected).split())


async def test_names_that_are_answered() -> None:
    """Names that were given are answered, with any port; others are not."""

    async def status(names: Sequence[str], host: str) -> int:
        with PEGIndex(None, dimension=2) as index:
            app: Any = create_http_app(create_server(KnowledgeReader(index, LetterEncoder())), allowed_hosts=names)
            async with (
                app.router.lifespan_context(app),
                httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://{host}") as http,
            ):
                message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                response = await http.post("/mcp", json=message, headers={"Accept": "application/json"})
                return response.status_code

    assert await status((), "127.0.0.1:8001") != 421
    assert await status((), "rag.example.org") == 421
    assert await status(["rag.example.org"], "rag.example.org") != 421
    assert await status(["rag.example.org"], "rag.example.org:8001") != 421
    assert await status(["rag.example.org"], "evil.example.org") == 421
    assert await status(["*"], "evil.example.org") != 421


def test_listening_on_ipv6() -> None:
    with listen("::1", 0) as listening:
        assert listening.getsockname()[0] == "::1"
