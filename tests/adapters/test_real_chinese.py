"""The bundled model on the demo's Chinese passages: both frameworks find the same, and find the answer."""

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from peg_rag import PEGEncoder
from peg_rag import langchain as lc
from peg_rag import llama_index as li

DEMO = files("peg_rag") / "assets" / "demo"


@pytest.fixture(scope="module")
def encoder() -> PEGEncoder:
    return PEGEncoder("peg-mini")


@pytest.fixture(scope="module")
def passages() -> list[dict[str, str]]:
    lines = gzip.decompress((DEMO / "passages.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines[:1_000]]


@pytest.fixture(scope="module")
def questions(passages: list[dict[str, str]]) -> dict[str, list[str]]:
    known = {passage["id"] for passage in passages}
    lines = [json.loads(line) for line in (DEMO / "questions.jsonl").read_text("utf-8").splitlines()]
    return {line["question"]: line["relevant"] for line in lines if known & set(line["relevant"])}


@pytest.fixture(scope="module")
def folder(encoder: PEGEncoder, passages: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index filled by LangChain; LlamaIndex opens one of its own."""
    path = tmp_path_factory.mktemp("kb") / "langchain"
    documents = [Document(p["text"], id=p["id"], metadata={"topic": p["topic"]}) for p in passages]
    lc.PEGVectorStore.from_documents(documents, lc.PEGEmbeddings.from_encoder(encoder), path=path).close()
    return path


@pytest.mark.parametrize(
    ("search_type", "mode"), [("similarity", "default"), ("hybrid", "hybrid"), ("lexical", "sparse")]
)
def test_both_frameworks_find_the_same(
    encoder: PEGEncoder,
    passages: list[dict[str, str]],
    questions: dict[str, list[str]],
    folder: Path,
    search_type: str,
    mode: str,
) -> None:
    store = lc.PEGVectorStore(lc.PEGEmbeddings.from_encoder(encoder), folder)
    retriever = lc.PEGRetriever(vectorstore=store, k=5, search_type=search_type)
    ours = [[document.id for document in found] for found in retriever.batch(list(questions))]

    embedding = li.PEGEmbedding.from_encoder(encoder)
    nodes = [TextNode(id_=p["id"], text=p["text"]) for p in passages]
    theirs = li.PEGVectorStore(embed_model=embedding)
    theirs.add(embedding(nodes))
    asked = li.PEGRetriever(theirs, embedding, similarity_top_k=5, mode=mode)
    assert [[hit.node.node_id for hit in asked.retrieve(question)] for question in questions] == ours

    answered = [bool(set(found) & set(relevant)) for found, relevant in zip(ours, questions.values(), strict=True)]
    assert len(questions) >= 3
    assert sum(answered) >= 0.8 * len(answered)
    store.close()


def test_the_bundled_model_by_name() -> None:
    texts = ["如何更换花呗绑定银行卡", "花呗更改绑定银行卡", "北京故宫的门票"]
    first, second, third = lc.PEGEmbeddings(model="peg-mini").embed_documents(texts)
    assert li.PEGEmbedding("peg-mini").get_text_embedding_batch(texts) == [first, second, third]
    likeness = li.PEGEmbedding("peg-mini").similarity
    assert likeness(first, second) > 0.5 > likeness(first, third)
