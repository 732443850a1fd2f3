"""`/v1/rerank` as clients meet it: a real server process, LangChain's Jina client, and what is refused."""

from pathlib import Path

import httpx
import pytest
from serving_fixtures import AUTH, RunningServer, client, running, server, store

from peg_rag.reranking import load_reranker

__all__ = ["client", "server", "store"]
QUERY = "慕田峪长城门票多少钱"
DOCUMENTS = [
    "八达岭长城的门票旺季40元，淡季35元。",
    "慕田峪长城的门票45元，六十岁以上老人半价。",
    "长城的门票可以在网上预约，也可以现场购买。",
    "故宫的门票旺季60元。",
]


@pytest.fixture(scope="session")
def served_model() -> str:
    return "peg-mini"


def test_documents_come_back_best_first(client: httpx.Client) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    answer = client.post("/v1/rerank", json=body).json()
    expected = load_reranker("mini").rank(QUERY, DOCUMENTS)
    assert [result["index"] for result in answer["results"]] == [each.index for each in expected]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [each.score for each in expected], abs=1e-6
    )
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
    assert answer["results"][0]["index"] == 1
    assert answer["model"] == "reranker-mini"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > len(DOCUMENTS)
    assert client.post("/v1/rerank", json=body).json()["id"] != answer["id"]


def test_objects_top_n_and_returned_documents(client: httpx.Client) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "source": "长城.md"}, *DOCUMENTS[2:]]
    body = {"query": QUERY, "documents": documents, "top_n": 2, "return_documents": True, "model": "reranker-mini"}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert len(results) == 2
    assert results[0]["document"] == {"text": DOCUMENTS[1]}
    whole = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": 99}).json()["results"]
    assert len(whole) == len(DOCUMENTS)


def test_langchains_jina_client(client: httpx.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_community.document_compressors import jina_rerank
    from langchain_core.documents import Document

    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{server.url}/v1/rerank")
    theirs = jina_rerank.JinaRerank(jina_api_key="any", model="reranker-mini", top_n=2)
    documents = theirs.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    assert documents[0].page_content == DOCUMENTS[1]
    assert len(documents) == 2
    assert 0 < documents[0].metadata["relevance_score"] < 1


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"query": " "}, 400, "query"),
        ({"query": None}, 400, "query"),
        ({"documents": []}, 400, "documents"),
        ({"documents": "长城"}, 400, "documents"),
        ({"documents": [1]}, 400, "documents"),
        ({"documents": [{"title": "长城"}]}, 400, "documents"),
        ({"documents": ["长" * 100_001]}, 413, "documents"),
        ({"documents": ["长"] * 2049}, 413, "documents"),
        ({"documents": ["长" * 90_000] * 12}, 413, "documents"),
        ({"top_n": 0}, 400, "top_n"),
        ({"top_n": "2"}, 400, "top_n"),
        ({"model": "rerank-v3.5"}, 404, "model"),
        ({"threshold": 0.5}, 400, "threshold"),
    ],
)
def test_what_is_refused(client: httpx.Client, change: dict[str, object], status: int, param: str) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS} | change)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["param"].startswith(param)


def test_it_is_described(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    assert "post" in api["paths"]["/v1/rerank"]
    assert {"query", "documents", "model", "top_n", "return_documents"} <= set(
        api["components"]["schemas"]["RerankRequest"]["properties"]
    )


def test_without_a_store_and_behind_a_key() -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    with running("--model", "peg-mini", "--private") as started:
        assert httpx.post(f"{started.url}/v1/rerank", json=body, timeout=60).status_code == 401
        answer = httpx.post(f"{started.url}/v1/rerank", json=body, headers=AUTH, timeout=60)
    assert answer.json()["results"][0]["index"] == 1


def test_a_server_of_another_model_reranks_alike(tiny_bert: Path) -> None:
    with running("--model", tiny_bert) as started:
        answer = httpx.post(
            f"{started.url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}, timeout=60
        ).json()
    assert [result["index"] for result in answer["results"]] == [
        each.index for each in load_reranker("mini").rank(QUERY, DOCUMENTS)
    ]
