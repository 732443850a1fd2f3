"""The frameworks' vector stores and retrievers over PostgreSQL and Milvus: a URL in the place of the folder."""

import itertools
import pickle
from collections.abc import Iterator

import pytest
from conftest import LetterEncoder
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from postgres_server import PostgresServer
from store_fixtures import MilvusFile, milvus, postgres  # noqa: F401

from peg_rag.errors import IndexMismatch
from peg_rag.langchain import PEGEmbeddings
from peg_rag.langchain import PEGRetriever as LangChainRetriever
from peg_rag.langchain import PEGVectorStore as LangChainStore
from peg_rag.llama_index import PEGVectorStore as LlamaIndexStore

_numbers = itertools.count()


class TestPostgres(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, postgres: PostgresServer) -> Iterator[VectorStore]:  # noqa: F811
        store = LangChainStore(self.get_embeddings(), postgres.url(f"chain_{next(_numbers)}"))
        yield store
        store.close()


@pytest.mark.slow
class TestMilvus(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, milvus: MilvusFile) -> Iterator[VectorStore]:  # noqa: F811
        store = LangChainStore(self.get_embeddings(), milvus.url(f"chain_{next(_numbers)}"))
        yield store
        store.close()


@pytest.fixture(params=["postgres", "milvus"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a new store may be made."""
    location: str = request.getfixturevalue(request.param).url(f"adapter_{next(_numbers)}")
    return location


def test_langchain_searches_both_sides(url: str, letters: LetterEncoder) -> None:
    embeddings = PEGEmbeddings.from_encoder(letters)
    metas = [{"n": 1}, {"n": 2}, {"n": 3}]
    store = LangChainStore.from_texts(
        ["花呗还款", "花呗逾期", "银行卡绑定"], embeddings, metas, ids=["1", "2", "3"], path=url
    )
    retriever = LangChainRetriever(vectorstore=store, k=2, search_type="hybrid")
    assert [document.id for document in retriever.invoke("花呗还款")] == ["1", "2"]
    assert [document.id for document in retriever.invoke("花呗", filter={"n": {"$gt": 1}}, search_type="lexical")] == [
        "2"
    ]
    store.close()
    with pytest.raises(IndexMismatch):
        LangChainStore(PEGEmbeddings(model="peg-mini"), url)


def test_llama_index_keeps_nodes(url: str, letters: LetterEncoder) -> None:
    texts = ["花呗还款", "花呗逾期", "银行卡绑定"]
    vectors = letters.encode_documents(texts).tolist()
    nodes = [
        TextNode(id_=f"n{i}", text=text, embedding=vector, metadata={"n": i})
        for i, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]
    store = LlamaIndexStore(url, identity=letters.identity)
    assert store.add(nodes) == ["n0", "n1", "n2"]
    query = VectorStoreQuery(query_embedding=vectors[0], query_str="花呗还款", similarity_top_k=2, mode="hybrid")  # type: ignore[arg-type]
    assert store.query(query).ids == ["n0", "n1"]
    query.filters = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    assert store.query(query).ids == ["n2"]
    again = pickle.loads(pickle.dumps(store))
    assert [node.metadata["n"] for node in again.get_nodes(["n2", "n0"])] == [2, 0]
    store.delete_nodes(["n0"])
    assert {node.node_id for node in again.get_nodes()} == {"n1", "n2"}
    again.close()
    store.close()
