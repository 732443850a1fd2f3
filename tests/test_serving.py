"""`peg-rag serve`, as clients meet it: a real process on 127.0.0.1, real OpenAI clients, every route."""

import base64
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from serving_fixtures import AUTH, DOCUMENTS, KEY, RunningServer, client, make_store, running, server, store

from peg_rag import PEGEmbeddings, PEGEncoder
from peg_rag.serving.knowledge import UPLOADS

__all__ = ["client", "server", "store"]
TEXTS = ["花呗如何绑定银行卡？", "故宫门票多少钱", "逾期怎么办" * 40, "a", "花呗"]


@pytest.fixture(scope="session")
def served_model() -> str:
    return "peg-mini"


@pytest.fixture(scope="module")
def ours(served_model: str) -> Iterator[PEGEmbeddings]:
    with PEGEmbeddings(model=served_model) as embeddings:
        yield embeddings


@pytest.fixture(scope="module")
def name(served_model: str) -> str:
    with PEGEncoder(served_model) as encoder:
        return encoder.spec.name


def upload(client: httpx.Client, name: str, content: str | bytes, headers: dict[str, str] = AUTH) -> httpx.Response:
    return client.post("/documents", files={"files": (name, content)}, headers=headers)


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """(name, data) of each server-sent event."""
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block.strip()]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]


# -- the real clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_openai_client_gets_the_same_vectors(
    server: RunningServer, ours: PEGEmbeddings, name: str, encoding: str | None
) -> None:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as api:
        asked: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
        answer = api.embeddings.create(model=name, input=TEXTS, **asked)
        one = api.embeddings.create(model=name, input=TEXTS[0])
        models = [model.id for model in api.models.list()]
        assert api.models.retrieve(name).id == name
        assert api.models.retrieve("peg-rag").id == "peg-rag"
    found: list[Any] = [item.embedding for item in answer.data]
    if encoding == "base64":  # the client decodes only what it asked for by itself
        found = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in found]
    np.testing.assert_allclose(found, ours.embed_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(one.data[0].embedding, ours.embed_documents(TEXTS[:1])[0], atol=1e-6)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    assert models == [name, "peg-rag", "peg-rag-extractive"]


async def test_the_async_openai_client_gets_the_same_vectors_from_many_requests_at_once(
    server: RunningServer, ours: PEGEmbeddings, name: str
) -> None:
    import asyncio

    import openai

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as api:
        asked = [api.embeddings.create(model=name, input=[text, TEXTS[-1]]) for text in TEXTS * 8]
        answers = await asyncio.gather(*asked)
    for text, answer in zip(TEXTS * 8, answers, strict=True):
        expected = ours.embed_documents([text, TEXTS[-1]])
        np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-6)


def test_the_openai_client_sees_typed_errors(server: RunningServer, name: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        with pytest.raises(openai.NotFoundError) as missing:
            api.embeddings.create(model="text-embedding-3-small", input="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as tokens:
            api.embeddings.create(model=name, input=[[1, 2, 3]])
        assert tokens.value.code == "invalid_request"
        assert tokens.value.param == "input"
        assert "check_embedding_ctx_length=False" in tokens.value.message
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            api.embeddings.create(model=name, input="a", dimensions=100_000)


async def test_langchain_openai_embeddings_give_the_same_vectors(
    server: RunningServer, ours: PEGEmbeddings, name: str
) -> None:
    from langchain_openai import OpenAIEmbeddings

    theirs = OpenAIEmbeddings(
        model=name,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        check_embedding_ctx_length=False,
        chunk_size=2,
    )
    np.testing.assert_allclose(theirs.embed_documents(TEXTS), ours.embed_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(await theirs.aembed_documents(TEXTS), ours.embed_documents(TEXTS), atol=1e-6)
    asking = OpenAIEmbeddings(
        model=name,
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"input_type": "query"}},
    )
    np.testing.assert_allclose(asking.embed_query(TEXTS[0]), ours.embed_query(TEXTS[0]), atol=1e-6)


def test_llama_index_openai_like_embeddings_give_the_same_vectors(
    server: RunningServer, ours: PEGEmbeddings, name: str
) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    theirs = OpenAILikeEmbedding(model_name=name, api_base=f"{server.url}/v1", api_key="any", embed_batch_size=3)
    np.testing.assert_allclose(theirs.get_text_embedding_batch(TEXTS), ours.embed_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(theirs.get_text_embedding(TEXTS[0]), ours.embed_documents(TEXTS[:1])[0], atol=1e-6)


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_truncated_vectors_have_unit_length(client: httpx.Client, name: str, served_model: str) -> None:
    answer = client.post("/v1/embeddings", json={"model": name, "input": TEXTS, "dimensions": 16}).json()
    with PEGEncoder(served_model, truncate_dim=16) as encoder:
        expected = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], expected, atol=1e-6)


def test_queries_and_documents_are_embedded_with_their_own_prompts(tmp_path: Path, served_model: str) -> None:
    from serving_fixtures import threaded

    from peg_rag.serving.app import create_app
    from peg_rag.serving.settings import ServerSettings

    settings = ServerSettings()
    with (
        PEGEncoder(served_model, query_prompt="问题：") as encoder,
        threaded(create_app(encoder, settings=settings), settings) as (url, _),
    ):
        for role, encode in (("query", encoder.encode_queries), ("document", encoder.encode_documents)):
            body = {"model": encoder.spec.name, "input": TEXTS, "input_type": role}
            answer = httpx.post(f"{url}/v1/embeddings", json=body).json()
            np.testing.assert_allclose([i["embedding"] for i in answer["data"]], encode(TEXTS), atol=1e-6)
        assert httpx.post(f"{url}/search", json={"query": "a"}).status_code == 404  # no store, no such route


def test_usage_counts_what_the_encoder_encoded(client: httpx.Client, name: str, served_model: str) -> None:
    texts = [*TEXTS, "花呗" * 5000]
    answer = client.post("/v1/embeddings", json={"model": name, "input": texts}).json()
    with PEGEncoder(served_model) as encoder:
        encoder.encode_documents(texts)
        assert answer["usage"]["prompt_tokens"] == encoder.stats.tokens


# -- searching and asking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "scores"),
    [("hybrid", {"dense", "lexical", "fused", "rerank"}), ("dense", {"dense"}), ("lexical", {"lexical"})],
)
def test_search_gives_passages_with_their_component_scores(client: httpx.Client, mode: str, scores: set[str]) -> None:
    answer = client.post("/search", json={"query": "花呗怎么绑定银行卡", "k": 2, "mode": mode}).json()
    assert answer["hits"][0]["metadata"]["source"] == "docs/花呗.md"
    assert all(set(hit["scores"]) == scores for hit in answer["hits"])
    assert [hit["score"] for hit in answer["hits"]] == sorted((h["score"] for h in answer["hits"]), reverse=True)


def test_search_filters_on_metadata(client: httpx.Client) -> None:
    body = {"query": "花呗", "where": {"source": {"$in": ["docs/故宫.txt"]}}}
    hits = client.post("/search", json=body).json()["hits"]
    assert [hit["metadata"]["source"] for hit in hits] == ["docs/故宫.txt"]


def test_an_answer_is_streamed_hits_first_and_cites_its_sources(client: httpx.Client) -> None:
    with client.stream("POST", "/ask", json={"question": "花呗怎么绑定银行卡", "threshold": 0}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        response.read()
    stream = events(response)
    assert (stream[0][0], stream[-1][0]) == ("hits", "done")
    hits, sentences, end = stream[0][1]["hits"], [data for kind, data in stream if kind == "sentence"], stream[-1][1]
    assert end["kind"] == "extractive"
    assert end["found"]
    for sentence in sentences:
        cited = next(hit for hit in hits if hit["id"] == sentence["passage_id"])
        assert cited["text"][sentence["start"] :].startswith(sentence["text"])
        assert end["citations"][sentence["citation"] - 1]["passage_id"] == cited["id"]
    whole = client.post("/ask", json={"question": "花呗怎么绑定银行卡", "threshold": 0, "stream": False}).json()
    assert (whole["sentences"], whole["hits"], whole["text"]) == (sentences, hits, end["text"])


def test_an_unanswerable_question_is_not_found(client: httpx.Client) -> None:
    answer = client.post("/ask", json={"question": "花呗", "threshold": 1.0, "stream": False}).json()
    assert (answer["found"], answer["sentences"], answer["citations"]) == (False, [], [])
    assert "没有找到" in answer["text"]


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writable(tmp_path_factory: pytest.TempPathFactory, served_model: str) -> Iterator[tuple[httpx.Client, Path]]:
    """A server whose store the tests change: (client, store)."""
    store = make_store(tmp_path_factory.mktemp("writable"), served_model)
    with running(store) as started, httpx.Client(base_url=started.url, timeout=60) as opened:
        yield opened, store


def test_documents_are_listed_retrieved_and_paged(client: httpx.Client) -> None:
    listed = client.get("/documents").json()
    assert {card["name"] for card in listed["documents"]} == {f"docs/{name}" for name in DOCUMENTS}
    assert listed["total"] == len(DOCUMENTS)
    assert not any(card["uploaded"] for card in listed["documents"])
    assert len(client.get("/documents", params={"limit": 1, "offset": 1}).json()["documents"]) == 1
    card = next(card for card in listed["documents"] if card["name"] == "docs/花呗.md")
    assert client.get(f"/documents/{card['id']}").json() == {**card, "passages": 2}
    passages = client.get(f"/documents/{card['id']}/passages").json()["passages"]
    assert [passage["metadata"]["chunk"] for passage in passages] == [0, 1]
    opened = client.get(f"/passages/{passages[1]['id']}").json()
    assert (opened["text"], opened["before"], opened["after"]) == (passages[1]["text"], passages[0]["text"], "")
    assert opened["document"] == card


def test_an_uploaded_document_is_found_replaced_and_deleted(writable: tuple[httpx.Client, Path]) -> None:
    client, store = writable
    question = {"query": "量子纠缠", "mode": "lexical"}
    assert client.post("/search", json=question).json()["hits"] == []
    added = upload(client, "../../物理.md", "# 物理\n\n量子纠缠是两个粒子的关联。").json()["added"][0]
    assert (added["name"], added["passages"], added["replaced"], added["uploaded"]) == ("物理.md", 1, False, True)
    hits = client.post("/search", json=question).json()["hits"]
    assert hits[0]["metadata"]["source"] == added["source"] == f"{UPLOADS}/物理.md"
    assert client.get("/documents").json()["documents"][0]["id"] == added["id"]  # the newest first
    again = upload(client, "物理.md", "量子纠缠已被实验证实。").json()["added"][0]
    assert (again["id"], again["replaced"]) == (added["id"], True)
    assert [h["text"] for h in client.post("/search", json=question).json()["hits"]] == ["量子纠缠已被实验证实。"]
    assert client.get(f"/passages/{hits[0]['id']}").status_code == 404
    assert client.delete(f"/documents/{added['id']}", headers=AUTH).json() == {"id": added["id"], "deleted": True}
    assert client.post("/search", json=question).json()["hits"] == []
    assert client.delete(f"/documents/{added['id']}", headers=AUTH).status_code == 404
    assert list((store / UPLOADS).iterdir()) == []


def test_a_text_is_added_as_a_document(writable: tuple[httpx.Client, Path]) -> None:
    client, _ = writable
    added = client.post("/documents/text", json={"name": "便笺", "text": "会议在周五下午三点。"}, headers=AUTH).json()
    assert added["name"] == "便笺.txt"
    assert client.get(f"/documents/{added['id']}/passages").json()["passages"][0]["text"] == "会议在周五下午三点。"
    assert client.delete(f"/documents/{added['id']}", headers=AUTH).status_code == 200


def test_an_unreadable_file_leaves_nothing_behind(writable: tuple[httpx.Client, Path]) -> None:
    client, store = writable
    before = client.get("/documents").json()
    for name, content, status in (
        ("a.pdf", b"not a pdf", 422),
        ("empty.txt", b"", 422),
        ("binary.txt", bytes(range(256)) * 8, 422),
        ("a.exe", b"MZ", 415),
        ("a.docx", b"PK\x03\x04broken", 422),
    ):
        answer = upload(client, name, content)
        assert answer.status_code == status, answer.text
        assert name in answer.json()["error"]["message"]
        assert str(store) not in answer.text
    assert client.get("/documents").json() == before
    assert not list((store / UPLOADS).glob("*"))


def test_files_are_accepted_or_rejected_one_by_one(writable: tuple[httpx.Client, Path]) -> None:
    client, _ = writable
    files: list[tuple[str, tuple[str, str | bytes]]] = [
        ("files", ("好.txt", "好的文件。")),
        ("files", ("坏.pdf", b"bad")),
        ("files", ("又好.txt", "也好。")),
        ("files", ("坏.exe", b"bad")),
    ]
    answer = client.post("/documents", files=files, headers=AUTH).json()
    assert [card["name"] for card in answer["added"]] == ["好.txt", "又好.txt"]
    assert [(r["name"], r["status"]) for r in answer["rejected"]] == [("坏.pdf", 422), ("坏.exe", 415)]
    assert not any(r["message"].startswith(str(r["status"])) for r in answer["rejected"])
    for card in answer["added"]:
        client.delete(f"/documents/{card['id']}", headers=AUTH)


def test_a_document_of_an_indexed_folder_cannot_be_deleted(writable: tuple[httpx.Client, Path]) -> None:
    client, _ = writable
    card = next(c for c in client.get("/documents").json()["documents"] if not c["uploaded"])
    answer = client.delete(f"/documents/{card['id']}", headers=AUTH)
    assert answer.status_code == 409
    assert "peg-rag index" in answer.json()["error"]["message"]


def test_uploads_survive_a_restart(tmp_path: Path, served_model: str) -> None:
    store = make_store(tmp_path, served_model)
    with running(store) as first, httpx.Client(base_url=first.url, timeout=60) as client:
        added = upload(client, "留下.txt", "重启之后还在。").json()["added"][0]
    assert first.process.returncode == 0
    with running(store) as second, httpx.Client(base_url=second.url, timeout=60) as client:
        assert client.get(f"/documents/{added['id']}").json()["passages"] == 1


def test_a_new_store_starts_empty_and_accepts_uploads(tmp_path: Path, served_model: str) -> None:
    with (
        running(tmp_path / "new", "--model", served_model) as started,
        httpx.Client(base_url=started.url, timeout=60) as client,
    ):
        assert client.get("/documents").json() == {"documents": [], "total": 0}
        assert client.post("/search", json={"query": "花呗"}).json()["hits"] == []
        assert client.post("/ask", json={"question": "花呗", "stream": False}).json()["found"] is False
        assert upload(client, "a.txt", "花呗还款").status_code == 200
        assert len(client.post("/search", json={"query": "花呗"}).json()["hits"]) == 1


# -- the server itself ------------------------------------------------------------------------------------------------


def test_info_and_health_describe_the_server(client: httpx.Client, name: str) -> None:
    info = client.get("/info").json()
    assert (info["model"], info["passages"], info["writable"], info["private"]) == (name, 4, True, False)
    for path in ("/health", "/health/live", "/health/ready"):
        assert client.get(path).json() == {"status": "ok"}
    assert "/v1/embeddings" in client.get("/openapi.json").json()["paths"]


def test_the_page_is_served_under_a_strict_policy_and_revalidated(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-cache"
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for asset in re.findall(r'(?:src|href)="\./([^"]+)"', page.text):
        answer = client.get(f"/{asset}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
    assert client.head("/").status_code == 200
    for path in ("/nowhere", "/assets/nowhere", "/assets/../index.html", "/index.html", "/sources.sha256"):
        assert client.get(path).status_code == 404
    assert client.post("/nowhere").status_code == 404


def test_the_api_documentation_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "http" not in page.text.replace("http://www.w3.org", "")
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/assets/{asset}" in page.text
        assert client.get(f"/docs/assets/{asset}").status_code == 200
    assert "'sha256-" in page.headers["content-security-policy"]


def test_metrics_are_labelled_by_route_and_never_by_client_input(client: httpx.Client) -> None:
    client.get("/passages/a-private-name")
    client.get("/nowhere/a-private-name")
    text = client.get("/metrics").text
    assert 'peg_rag_requests_total{method="GET",route="/passages/{passage_id:path}",status="404"}' in text
    assert 'route="(other)"' in text
    assert "private-name" not in text
    assert "peg_rag_request_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text


def test_logs_contain_no_client_text(server: RunningServer, client: httpx.Client, name: str) -> None:
    secret = "绝密内容"
    client.post("/v1/embeddings", json={"model": name, "input": secret})
    client.post("/search", json={"query": secret, "where": {secret: secret}})
    client.post("/ask", json={"question": secret})
    client.post("/search", json={"query": secret, "k": secret})
    client.get(f"/passages/{secret}", params={"q": secret})
    upload(client, f"{secret}.pdf", secret)
    time.sleep(0.2)
    requests = [entry for entry in server.entries() if entry["message"] == "request"]
    assert {"request_id", "method", "route", "status", "milliseconds", "bytes_in", "bytes_out"} <= set(requests[-1])
    assert not any(secret in line or "%E7%BB%9D" in line or KEY in line for line in server.lines)


def test_sigterm_lets_requests_in_flight_finish(tmp_path: Path, served_model: str, name: str) -> None:
    store, answers = make_store(tmp_path, served_model), []
    body = json.dumps({"model": name, "input": ["花呗银行卡还款" * 50] * 1000}).encode()

    def slowly() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        started.set()
        time.sleep(1)
        yield body[len(body) // 2 :]

    def ask() -> None:
        headers = {"Content-Type": "application/json"}
        answers.append(httpx.post(f"{running_server.url}/v1/embeddings", content=slowly(), headers=headers, timeout=30))

    started = threading.Event()
    with running(store) as running_server:
        asking = threading.Thread(target=ask)
        asking.start()
        assert started.wait(10)
        os.kill(running_server.process.pid, signal.SIGTERM)
        asking.join(30)
        with pytest.raises(httpx.ConnectError):  # nobody new is let in
            httpx.get(f"{running_server.url}/health")
        assert running_server.process.wait(20) == 0
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 1000
