"""LangChain's vector store: the standard suite on disk and in memory, indexing, and the failures of other stores."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.langchain import PEGEmbeddings, PEGVectorStore


class TestOnDisk(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = PEGVectorStore(self.get_embeddings(), tmp_path / "store")
        yield store
        store.close()


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return PEGVectorStore(self.get_embeddings())


@pytest.fixture
def embeddings(letters: LetterEncoder) -> PEGEmbeddings:
    return PEGEmbeddings.from_encoder(letters)


DOCUMENTS = [
    Document("花呗还款", metadata={"year": 2021, "tags": ["花呗"]}),
    Document("花呗逾期", metadata={"year": 2023, "tags": ["花呗", "逾期"]}),
    Document("银行卡绑定", metadata={"year": 2024}),
]


@pytest.fixture
def store(embeddings: PEGEmbeddings) -> PEGVectorStore:
    return PEGVectorStore.from_documents(DOCUMENTS, embeddings, ids=["1", "2", "3"])


def texts(found: list[Document]) -> list[str]:
    return [document.page_content for document in found]


def test_from_documents_persists_and_grows(embeddings: PEGEmbeddings, tmp_path: Path) -> None:
    PEGVectorStore.from_documents(DOCUMENTS[:2], embeddings, path=tmp_path / "kb").close()
    with_third = PEGVectorStore.from_documents(DOCUMENTS[2:], embeddings, path=tmp_path / "kb")
    assert len(with_third.index) == 3
    with_third.close()
    again = PEGVectorStore(embeddings, tmp_path / "kb")
    assert texts(again.similarity_search("银行卡", k=1)) == ["银行卡绑定"]


def test_lexical_search_persists(embeddings: PEGEmbeddings, tmp_path: Path) -> None:
    PEGVectorStore.from_documents(DOCUMENTS, embeddings, path=tmp_path).close()
    assert texts(PEGVectorStore(embeddings, tmp_path).similarity_search("逾期", mode="lexical")) == ["花呗逾期"]
    assert PEGVectorStore(embeddings).similarity_search("逾期", mode="lexical") == []
    assert PEGVectorStore(embeddings).similarity_search("逾期", mode="hybrid") == []


def test_twelve_thousand_documents_in_one_call(embeddings: PEGEmbeddings, tmp_path: Path) -> None:
    bodies = [f"{number:05d}" for number in range(12_000)]
    store = PEGVectorStore.from_texts(bodies, embeddings, path=tmp_path)
    assert len(store.index) == 12_000
    assert texts(store.similarity_search("11999", mode="lexical")) == ["11999"]


def test_nothing_to_add(embeddings: PEGEmbeddings) -> None:
    assert PEGVectorStore(embeddings).add_texts([]) == []
    assert PEGVectorStore.from_texts([], embeddings).similarity_search("花呗") == []


def test_a_duplicate_id_replaces(store: PEGVectorStore) -> None:
    store.add_texts(["理财", "借款"], ids=["1", "1"])
    assert len(store.index) == 3
    assert texts(store.get_by_ids(["1"])) == ["借款"]
    store.delete(["1"])
    assert store.add_texts(["理财"]) != ["1"]
    assert len(store.index) == 3


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": {"$gte": 2023}}, {"花呗逾期", "银行卡绑定"}),
        ({"year": 2021}, {"花呗还款"}),
        ({"tags": {"$contains": "逾期"}}, {"花呗逾期"}),
        ({"$not": {"year": {"$in": [2021, 2023]}}}, {"银行卡绑定"}),
    ],
)
def test_filters(store: PEGVectorStore, where: dict[str, Any], expected: set[str]) -> None:
    assert set(texts(store.similarity_search("花呗", filter=where))) == expected
    assert set(texts(store.max_marginal_relevance_search("花呗", filter=where))) == expected
    vector = store.embeddings.embed_query("花呗")
    assert set(texts(store.similarity_search_by_vector(vector, filter=where))) == expected


def test_a_rare_filter_still_finds_its_documents(embeddings: PEGEmbeddings) -> None:
    crowd = [Document("花呗", metadata={"rare": False})] * 500
    store = PEGVectorStore.from_documents([*crowd, Document("理财", metadata={"rare": True})], embeddings)
    assert texts(store.similarity_search("花呗", k=4, filter={"rare": True})) == ["理财"]


def test_scores_are_cosines_and_relevance_is_between_0_and_1(letters: LetterEncoder) -> None:
    class Opposed(LetterEncoder):
        def encode_queries(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return -super().encode_queries(texts)

    straight = PEGVectorStore.from_documents(DOCUMENTS, PEGEmbeddings.from_encoder(letters))
    (nearest, cosine), *_ = straight.similarity_search_with_score("花呗还款")
    assert nearest.page_content == "花呗还款"
    assert cosine == pytest.approx(1, abs=1e-5)
    scores = [score for _, score in straight.similarity_search_with_relevance_scores("花呗还款")]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len(straight.similarity_search_with_relevance_scores("花呗还款", score_threshold=0.9)) == 1
    opposed = PEGVectorStore.from_documents(DOCUMENTS, PEGEmbeddings.from_encoder(Opposed()))
    assert {score for _, score in opposed.similarity_search_with_relevance_scores("花呗")} == {0.0}


def test_lexical_and_hybrid_search(store: PEGVectorStore) -> None:
    assert texts(store.similarity_search("逾期", mode="lexical")) == ["花呗逾期"]
    assert texts(store.similarity_search("花呗逾期", k=1, mode="hybrid")) == ["花呗逾期"]
    with pytest.raises(InvalidInput, match="sideways"):
        store.similarity_search("花呗", mode="sideways")
    with pytest.raises(TypeError, match="fliter"):
        store.similarity_search("花呗", fliter={})


def test_mmr_prefers_what_is_different(embeddings: PEGEmbeddings) -> None:
    store = PEGVectorStore.from_texts(["花呗花呗", "花呗花", "花呗银行卡"], embeddings)
    assert texts(store.max_marginal_relevance_search("花呗", k=2, lambda_mult=1)) == ["花呗花呗", "花呗花"]
    assert texts(store.max_marginal_relevance_search("花呗", k=2, lambda_mult=0.1)) == ["花呗花呗", "花呗银行卡"]
    vector = embeddings.embed_query("花呗")
    assert texts(store.max_marginal_relevance_search_by_vector(vector, k=1)) == ["花呗花呗"]


def test_deleting(store: PEGVectorStore) -> None:
    store.delete(filter={"year": {"$lt": 2023}})
    assert set(store.index.ids()) == {"2", "3"}
    store.delete(["2", "not there"])
    store.delete()
    assert len(store.index) == 0


def test_another_model_is_refused(embeddings: PEGEmbeddings, tiny_bert: Path, tmp_path: Path) -> None:
    PEGVectorStore.from_documents(DOCUMENTS, embeddings, path=tmp_path / "ours").close()
    with pytest.raises(IndexMismatch, match=r"letters.*tiny-bert"):
        PEGVectorStore(PEGEmbeddings(model=tiny_bert), tmp_path / "ours")
    foreign = DeterministicFakeEmbedding(size=40)
    with pytest.raises(IndexMismatch, match="unknown"):
        PEGVectorStore(foreign, tmp_path / "ours")
    theirs = PEGVectorStore.from_documents(DOCUMENTS, foreign, path=tmp_path / "theirs")
    assert theirs.index.identity == "unknown"
    with pytest.raises(IndexMismatch, match="letters"):
        PEGVectorStore(embeddings, tmp_path / "theirs")


def test_bad_input_loses_nothing(store: PEGVectorStore) -> None:
    for bad in (
        {"texts": ["a", None]},
        {"texts": "a"},
        {"texts": ["a"], "ids": ["1", "2"]},
        {"texts": ["a"], "ids": [""]},
    ):
        with pytest.raises(InvalidInput):
            store.add_texts(**bad)
    with pytest.raises(InvalidInput, match="JSON"):
        store.add_texts(["a"], [{"when": object()}])
    with pytest.raises(InvalidInput, match="dimension"):
        store.similarity_search_by_vector([1.0, 2.0])
    assert texts(store.get_by_ids(["1", "2", "3"])) == texts(DOCUMENTS)
    assert store.similarity_search("花呗", k=0) == []
    assert len(store.similarity_search("花呗", k=99)) == 3


@pytest.mark.parametrize("cleanup", [None, "incremental", "full", "scoped_full"])
async def test_langchain_indexing(embeddings: PEGEmbeddings, cleanup: Any) -> None:
    def version(*texts: str) -> list[Document]:
        return [Document(text, metadata={"source": "a.md"}) for text in texts]

    settings: dict[str, Any] = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
    for asynchronous in (False, True):
        store, records = PEGVectorStore(embeddings), InMemoryRecordManager("store")
        records.create_schema()

        async def run(documents: list[Document]) -> dict[str, Any]:
            if asynchronous:  # noqa: B023
                return dict(await aindex(documents, records, store, **settings))  # noqa: B023
            return dict(index(documents, records, store, **settings))  # noqa: B023

        assert (await run(version("花呗", "理财")))["num_added"] == 2
        assert (await run(version("花呗", "理财")))["num_skipped"] == 2
        changed = await run(version("花呗", "借款"))
        assert changed["num_added"] == 1
        assert changed["num_deleted"] == (0 if cleanup is None else 1)
        assert len(store.index) == (3 if cleanup is None else 2)


def test_standard_retriever(store: PEGVectorStore) -> None:
    retriever = store.as_retriever(search_kwargs={"k": 1, "mode": "hybrid", "filter": {"year": 2024}})
    assert texts(retriever.invoke("花呗")) == ["银行卡绑定"]
    assert texts(store.as_retriever(search_type="mmr", search_kwargs={"k": 1}).invoke("花呗逾期")) == ["花呗逾期"]
    threshold = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
    assert texts(threshold.invoke("花呗还款")) == ["花呗还款"]


@pytest.mark.parametrize("search_type", ["hybrid", "lexical"])
async def test_the_standard_retriever_searches_hybrid_and_lexical(store: PEGVectorStore, search_type: str) -> None:
    retriever = store.as_retriever(search_type=search_type, search_kwargs={"k": 2})
    assert isinstance(retriever, VectorStoreRetriever)
    assert retriever.tags == ["PEGVectorStore", "PEGEmbeddings"]
    expected = texts(store.similarity_search("逾期", k=2, mode=search_type))
    assert expected[0] == "花呗逾期"
    assert texts(retriever.invoke("逾期")) == texts(await retriever.ainvoke("逾期")) == expected
    assert texts(store.search("逾期", search_type, k=2)) == texts(await store.asearch("逾期", search_type, k=2))
    assert texts(retriever.invoke("逾期", k=1, filter={"year": 2023})) == ["花呗逾期"]
    assert retriever.batch(["逾期"]) == [retriever.invoke("逾期")]


def test_a_search_type_and_another_mode_contradict_each_other(store: PEGVectorStore) -> None:
    assert store.search("逾期", "hybrid", mode="hybrid", k=1) == store.search("逾期", "hybrid", k=1)
    with pytest.raises(InvalidInput, match="leave mode out"):
        store.search("逾期", "lexical", mode="dense")


def test_an_unknown_search_type_is_refused(store: PEGVectorStore) -> None:
    for search_type in ("similarity", "mmr", "similarity_score_threshold"):
        assert texts(store.search("花呗还款", search_type, k=1)) == ["花呗还款"]
    with pytest.raises(ValueError, match="sideways"):
        store.as_retriever(search_type="sideways")
    with pytest.raises(ValueError, match="sideways"):
        store.search("花呗", "sideways")


async def test_relevance_is_the_cosine_in_dense_and_hybrid_search(store: PEGVectorStore) -> None:
    """A fused score is about 1 for the best hit of any query, so a threshold on it would let everything pass."""
    cosines = {document.id: score for document, score in store.similarity_search_with_score("银行", k=3)}
    for mode in ("dense", "hybrid"):
        pairs = store.similarity_search_with_relevance_scores("银行", k=3, mode=mode)
        assert {document.id: score for document, score in pairs} == pytest.approx(cosines, abs=1e-6)
        assert await store.asimilarity_search_with_relevance_scores("银行", k=3, mode=mode) == pairs
    kwargs = {"k": 3, "score_threshold": 0.3}
    for search_type in ("similarity_score_threshold", "hybrid"):
        retriever = store.as_retriever(search_type=search_type, search_kwargs=kwargs)
        assert texts(retriever.invoke("银行")) == ["银行卡绑定"]
        assert retriever.invoke("XYZ") == []
    with pytest.raises(UnsupportedSearch, match="BM25"):
        store.similarity_search_with_relevance_scores("银行", mode="lexical")


def test_dates_and_numpy_scalars_in_metadata_and_filters(embeddings: PEGEmbeddings) -> None:
    metadatas = [{"day": date(2024, 5, day), "pages": np.int64(day), "tags": ["甲", "乙"][:day]} for day in (1, 2)]
    store = PEGVectorStore.from_texts(["花呗", "理财"], embeddings, metadatas, ids=["1", "2"])
    assert store.get_by_ids(["1"])[0].metadata == {"day": "2024-05-01", "pages": 1, "tags": ["甲"]}
    for where in ({"day": {"$gt": date(2024, 5, 1)}}, {"pages": np.int32(2)}, {"tags": {"$in": ["乙"]}}):
        assert texts(store.similarity_search("花呗", filter=where)) == ["理财"]
    assert texts(store.similarity_search("花呗", filter={"day": {"$like": "2024-05-_1"}})) == ["花呗"]


async def test_async_search(store: PEGVectorStore) -> None:
    vector = store.embeddings.embed_query("银行卡")
    assert texts(await store.asimilarity_search("银行卡", k=1, filter={"year": 2024})) == ["银行卡绑定"]
    assert texts(await store.asimilarity_search_by_vector(vector, k=1)) == ["银行卡绑定"]
    assert texts(await store.amax_marginal_relevance_search("银行卡", k=1)) == ["银行卡绑定"]
    assert (await store.asimilarity_search_with_relevance_scores("银行卡", k=1))[0][1] > 0.5
    fresh = await PEGVectorStore.afrom_documents(DOCUMENTS, store.embeddings)
    assert len(fresh.index) == 3
