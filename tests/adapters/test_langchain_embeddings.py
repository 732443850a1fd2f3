"""LangChain: the standard suites, and the stores that `PEGEmbeddings` is used with."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from langchain_chroma import Chroma
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from peg_rag.errors import IndexMismatch, InvalidInput
from peg_rag.langchain import PEGEmbeddings, PEGVectorStore


class TestUnit(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True)
    def _model_folder(self, tiny_bert: Path) -> None:
        self.folder = str(tiny_bert)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return PEGEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"PEG_RAG_MODEL": self.folder}, {}, {"identity": PEGEmbeddings(model=self.folder).identity}


class TestIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _model_folder(self, tiny_bert: Path) -> None:
        self.folder = str(tiny_bert)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return PEGEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder}


async def test_queries_in_one_call(letters: LetterEncoder) -> None:
    embeddings = PEGEmbeddings.from_encoder(letters)
    together = embeddings.embed_queries(["ab", "花呗"])
    assert letters.calls == [("query", 2)]
    assert together == [embeddings.embed_query("ab"), embeddings.embed_query("花呗")]
    assert await embeddings.aembed_queries(["ab", "花呗"]) == together
    assert embeddings.embed_queries([]) == []


def test_a_bare_string_is_not_embedded_letter_by_letter(tiny_bert: Path) -> None:
    with pytest.raises(InvalidInput, match="list of strings"):
        PEGEmbeddings(model=tiny_bert).embed_queries("ab")  # type: ignore[arg-type]


def test_in_memory_vector_store(letters: LetterEncoder) -> None:
    store = InMemoryVectorStore.from_texts(["花呗", "银行卡", "理财"], PEGEmbeddings.from_encoder(letters))
    assert [hit.page_content for hit in store.similarity_search("银行", k=1)] == ["银行卡"]
    assert {role for role, _ in letters.calls} == {"query", "document"}


@pytest.mark.filterwarnings("ignore:Relevance scores must be between")  # Chroma's cosine of equal vectors is 1 + 6e-7
def test_chroma_takes_more_than_its_batch_limit_in_one_call(letters: LetterEncoder, tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice(list(string.ascii_lowercase), size=(6_500, 24))
    documents = [Document("".join(word), metadata={"odd": bool(i % 2)}) for i, word in enumerate(words)]
    embeddings = PEGEmbeddings.from_encoder(letters)
    settings: dict[str, Any] = {
        "collection_name": "letters",
        "persist_directory": str(tmp_path),
        "collection_configuration": {"hnsw": {"space": "cosine"}},
    }
    Chroma.from_documents(documents, embeddings, **settings)
    again = Chroma(embedding_function=embeddings, **settings)
    assert again._collection.count() == 6_500
    for document in documents[1::1_000]:
        hits = again.similarity_search_with_relevance_scores(document.page_content, k=2, filter={"odd": True})
        assert hits[0][0].page_content == document.page_content
        assert 1 + 1e-5 > hits[0][1] > hits[1][1] >= 0


def test_a_cache_of_the_framework_keeps_the_identity(tmp_path: Path) -> None:
    """An index that was filled through a cache is searched without it, and another model's is still refused."""
    embeddings = PEGEmbeddings("peg-mini")
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings, InMemoryByteStore(), namespace=embeddings.identity, key_encoder="sha256"
    )
    store = PEGVectorStore.from_texts(["花呗", "故宫"], cached, path=tmp_path / "kb")
    assert store.index.identity == embeddings.identity
    assert store.similarity_search("故宫", k=1)[0].page_content == "故宫"
    store.close()
    store = PEGVectorStore(embeddings, tmp_path / "kb")
    assert store.similarity_search("花呗", k=1)[0].page_content == "花呗"
    store.close()
    with pytest.raises(IndexMismatch):
        PEGVectorStore(PEGEmbeddings("peg-mini", truncate_dim=64), tmp_path / "kb")
    strangers = CacheBackedEmbeddings.from_bytes_store(
        DeterministicFakeEmbedding(size=512), InMemoryByteStore(), key_encoder="sha256"
    )
    with pytest.raises(IndexMismatch, match="unknown"):
        PEGVectorStore(strangers, tmp_path / "kb")
