"""LlamaIndex's vector store: every method, filters against LlamaIndex's own meaning, pipelines, other models."""

import asyncio
import pickle
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings.mock_embed_model import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from peg_rag import PEGIndex
from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.llama_index import PEGEmbedding, PEGVectorStore

TEXTS = ["花呗还款", "花呗逾期还款", "银行卡绑定", "理财"]
METADATAS: list[dict[str, Any]] = [
    {"year": 2021, "city": "北京", "tags": ["花呗", "还款"], "ratio": 0.5},
    {"year": 2023, "city": "上海", "tags": ["花呗"], "note": ""},
    {"year": 2024, "city": "北京市", "tags": []},
    {"city": None, "draft": True},
]


@pytest.fixture
def embedding(letters: LetterEncoder) -> PEGEmbedding:
    return PEGEmbedding.from_encoder(letters)


def make_nodes(embedding: PEGEmbedding) -> list[TextNode]:
    nodes = []
    for number, (text, metadata) in enumerate(zip(TEXTS, METADATAS, strict=True)):
        node = TextNode(id_=f"n{number}", text=text, metadata=metadata, embedding=embedding.get_text_embedding(text))
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc{number // 2}")
        nodes.append(node)
    return nodes


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, embedding: PEGEmbedding, tmp_path: Path) -> Iterator[PEGVectorStore]:
    store = PEGVectorStore(tmp_path / "kb" if request.param == "disk" else None, embed_model=embedding)
    assert store.add(make_nodes(embedding)) == ["n0", "n1", "n2", "n3"]
    yield store
    store.close()


def ask(embedding: PEGEmbedding, text: str, top_k: int = 4, **settings: Any) -> VectorStoreQuery:
    vector = embedding.get_query_embedding(text)
    return VectorStoreQuery(query_embedding=vector, query_str=text, similarity_top_k=top_k, **settings)


def only(key: str, value: Any, operator: str = "==") -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=FilterOperator(operator))])


async def test_query_in_every_mode(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    for mode in ("default", "hybrid", "text_search", "sparse", "mmr"):
        query = ask(embedding, "花呗逾期", 1, mode=VectorStoreQueryMode(mode))
        result = store.query(query)
        assert result.ids == ["n1"]
        assert result.nodes is not None
        assert result.similarities is not None
        assert [node.get_content() for node in result.nodes] == ["花呗逾期还款"]
        assert result.similarities[0] > 0
        assert (await store.aquery(query)).ids == ["n1"]
    for mode in ("svm", "semantic_hybrid"):
        with pytest.raises(UnsupportedSearch, match=mode):
            store.query(ask(embedding, "花呗", mode=VectorStoreQueryMode(mode)))


def test_similarity_is_the_cosine(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    result = store.query(ask(embedding, "花呗还款"))
    nodes = dict(zip(TEXTS, make_nodes(embedding), strict=True))
    expected = [
        embedding.similarity(embedding.get_query_embedding("花呗还款"), nodes[t].get_embedding()) for t in TEXTS
    ]
    assert result.similarities == pytest.approx(sorted(expected, reverse=True), abs=1e-5)


def test_nodes_come_back_whole(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    original = make_nodes(embedding)[1]
    (node,) = store.get_nodes(["n1"])
    assert isinstance(node, TextNode)
    assert (node.node_id, node.text, node.metadata, node.ref_doc_id) == ("n1", original.text, METADATAS[1], "doc0")
    assert node.hash == original.hash


def test_other_kinds_of_nodes(embedding: PEGEmbedding) -> None:
    vector = embedding.get_text_embedding("花呗")
    store = PEGVectorStore()
    store.add(
        [
            Document(id_="d", text="文档", metadata={"a": 1}, embedding=vector),
            IndexNode(id_="i", text="指向", index_id="there", embedding=vector),
            ImageNode(id_="p", text="图片", image_path="a.png", embedding=vector),
        ]
    )
    document, pointer, image = store.get_nodes(["d", "i", "p"])
    assert (document.node_id, document.get_content(), document.metadata) == ("d", "文档", {"a": 1})
    assert isinstance(pointer, IndexNode)
    assert pointer.index_id == "there"
    assert isinstance(image, ImageNode)
    assert image.image_path == "a.png"


def test_alpha_weighs_vectors_against_words(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    query = ask(embedding, "理", 1, mode=VectorStoreQueryMode.HYBRID, alpha=0.0)
    assert store.query(query).ids == ["n3"]
    query = ask(embedding, "还款还款", mode=VectorStoreQueryMode.HYBRID, alpha=1.0, hybrid_top_k=2)
    assert store.query(query).ids == store.query(ask(embedding, "还款还款", 2)).ids


def test_mmr_threshold(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    near = ask(embedding, "花呗还款", 2, mode=VectorStoreQueryMode.MMR, mmr_threshold=1.0)
    assert store.query(near).ids == ["n0", "n1"]
    different = ask(embedding, "花呗还款", 2, mode=VectorStoreQueryMode.MMR)
    assert store.query(different, mmr_threshold=0.1, fetch_k=4).ids != ["n0", "n1"]


FILTERS = [
    only("year", 2021),
    only("year", 2021, "!="),
    only("year", 2021, ">"),
    only("year", 2023, ">="),
    only("year", 2023, "<"),
    only("year", 2023, "<="),
    only("ratio", 0.5),
    only("city", ["北京", "上海"], "in"),
    only("city", ["北京", "上海"], "nin"),
    only("city", "北京", "text_match"),
    only("tags", "花呗", "contains"),
    only("tags", ["花呗", "还款"], "any"),
    only("tags", ["花呗", "还款"], "all"),
    only("tags", None, "is_empty"),
    only("note", None, "is_empty"),
    only("nowhere", None, "is_empty"),
    MetadataFilters(filters=[]),
    MetadataFilters(filters=[*only("year", 2021).filters, *only("year", 2024).filters], condition=FilterCondition.OR),
    MetadataFilters(
        filters=[*only("year", 2021).filters, *only("city", "上海").filters], condition=FilterCondition.NOT
    ),
    MetadataFilters(filters=[*only("city", "北京", "text_match").filters, *only("year", 2022, ">").filters]),
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: str(filters.model_dump(exclude_none=True))[:80])
def test_filters_mean_what_they_mean_in_llama_index(embedding: PEGEmbedding, filters: MetadataFilters) -> None:
    store = PEGVectorStore()
    store.add(make_nodes(embedding))
    matches = build_metadata_filter_fn(lambda name: METADATAS[int(name[1:])], filters)
    expected = {f"n{number}" for number in range(4) if matches(f"n{number}")}
    for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        assert set(store.query(ask(embedding, "花呗", filters=filters, mode=mode)).ids or []) == expected
    assert {node.node_id for node in store.get_nodes(filters=filters)} == expected


def test_nested_filters(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    either = MetadataFilters(
        filters=[*only("year", 2021).filters, *only("year", 2023).filters], condition=FilterCondition.OR
    )
    both = MetadataFilters(filters=[either, *only("city", "上海").filters])
    assert store.query(ask(embedding, "花呗", filters=both)).ids == ["n1"]


def test_times_and_numpy_scalars_in_metadata(embedding: PEGEmbedding) -> None:
    china = timezone(timedelta(hours=8))
    metadata = {"at": datetime(2024, 5, 1, 7, tzinfo=china), "pages": np.int64(3), "days": [date(2024, 5, 1)]}
    node = TextNode(id_="n", text="花呗", metadata=metadata, embedding=embedding.get_text_embedding("花呗"))
    store = PEGVectorStore()
    store.add([node])
    plain = {"at": "2024-04-30T23:00:00+00:00", "pages": 3, "days": ["2024-05-01"]}
    assert store.get_nodes(["n"])[0].metadata == plain
    assert node.metadata == metadata
    for key, value, operator in (("at", "2024-05-01", "<"), ("pages", 3, "=="), ("days", ["2024-05-01"], "any")):
        assert len(store.get_nodes(filters=only(key, value, operator))) == 1


def test_searches_confined_to_nodes_and_documents(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    assert set(store.query(ask(embedding, "花呗", doc_ids=["doc1"])).ids or []) == {"n2", "n3"}
    assert set(store.query(ask(embedding, "花呗", node_ids=["n0", "n3"])).ids or []) == {"n0", "n3"}
    assert store.query(ask(embedding, "花呗", node_ids=["n0", "n3"], doc_ids=["doc1"])).ids == ["n3"]


async def test_deleting(store: PEGVectorStore) -> None:
    def left() -> set[str]:
        return {node.node_id for node in store.get_nodes()}

    store.delete("doc0")
    assert left() == {"n2", "n3"}
    store.delete_nodes(["n2", "n3"], filters=only("draft", None, "!="))
    assert left() == {"n2"}
    store.delete_nodes([])
    with pytest.raises(InvalidInput, match="clear"):
        store.delete_nodes()
    await store.adelete_nodes(["n2"])
    assert left() == set()
    await store.adelete("doc1")


async def test_clear_and_the_other_async_twins(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    await store.aclear()
    assert await store.aget_nodes() == []
    assert len(await store.async_add(make_nodes(embedding))) == 4
    assert len(await store.aget_nodes(["n0", "missing"])) == 1


def test_nothing_to_add_and_nothing_to_find(embedding: PEGEmbedding) -> None:
    store = PEGVectorStore()
    assert store.add([]) == []
    for mode in ("default", "hybrid", "text_search", "mmr"):
        assert store.query(ask(embedding, "花呗", mode=VectorStoreQueryMode(mode))).nodes == []
    store.add(make_nodes(embedding))
    assert store.query(ask(embedding, "花呗", 0)).nodes == []


def test_adding_again_replaces_and_ids_never_collide(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    changed = make_nodes(embedding)[0]
    changed.set_content("借款")
    store.add([changed])
    assert [node.get_content() for node in store.get_nodes(["n0"])] == ["借款"]
    store.delete_nodes(["n1"])
    fresh = TextNode(text="新", embedding=embedding.get_text_embedding("新"))
    store.add([fresh])
    assert len(store.client) == 4
    assert store.get_nodes([fresh.node_id])[0].get_content() == "新"


def test_a_node_without_embedding_is_named(store: PEGVectorStore) -> None:
    with pytest.raises(InvalidInput, match="'bare' has no embedding"):
        store.add([TextNode(id_="bare", text="花呗")])
    with pytest.raises(InvalidInput, match="dimension"):
        store.add([TextNode(id_="short", text="花呗", embedding=[1.0, 2.0])])
    assert len(store.client) == 4


def test_a_query_without_what_its_mode_needs(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    with pytest.raises(InvalidInput, match="embedding"):
        store.query(VectorStoreQuery(query_str="花呗", similarity_top_k=1))
    with pytest.raises(InvalidInput, match="text"):
        store.query(VectorStoreQuery(mode=VectorStoreQueryMode.TEXT_SEARCH, similarity_top_k=1))
    with pytest.raises(TypeError, match="fliter"):
        store.query(ask(embedding, "花呗"), fliter=1)


def test_another_model_is_refused(embedding: PEGEmbedding, tiny_bert: Path, tmp_path: Path) -> None:
    PEGVectorStore(tmp_path, embed_model=embedding).add(make_nodes(embedding))
    for other in (PEGEmbedding(str(tiny_bert)), MockEmbedding(embed_dim=40)):
        with pytest.raises(IndexMismatch, match="letters"):
            PEGVectorStore(tmp_path, embed_model=other)
    assert PEGVectorStore(tmp_path).identity == "letters/40"
    foreign = PEGVectorStore(embed_model=MockEmbedding(embed_dim=8))
    assert foreign.identity == "unknown"


def test_pickle_and_dict_open_the_same_folder(embedding: PEGEmbedding, tmp_path: Path) -> None:
    store = PEGVectorStore(tmp_path / "kb", embed_model=embedding, storage="float16")
    store.add(make_nodes(embedding))
    for again in (pickle.loads(pickle.dumps(store)), PEGVectorStore.from_dict(store.to_dict())):
        assert len(again.get_nodes()) == 4
        assert isinstance(again.client, PEGIndex)
        assert again.client.storage == "float16"
    with pytest.raises(InvalidInput, match="memory"):
        pickle.dumps(PEGVectorStore())


def test_storage_context_round_trip(embedding: PEGEmbedding, tmp_path: Path) -> None:
    store = PEGVectorStore(tmp_path / "kb", embed_model=embedding)
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS], storage_context=context, embed_model=embedding
    )
    context.persist(str(tmp_path / "context"))
    again = load_index_from_storage(
        StorageContext.from_defaults(
            vector_store=PEGVectorStore(tmp_path / "kb"), persist_dir=str(tmp_path / "context")
        ),
        embed_model=embedding,
    )
    for each in (index, again):
        hits = each.as_retriever(similarity_top_k=1, vector_store_query_mode="hybrid").retrieve("银行卡")
        assert [hit.text for hit in hits] == ["银行卡绑定"]
    with pytest.raises(InvalidInput, match="memory"):
        StorageContext.from_defaults(vector_store=PEGVectorStore()).persist(str(tmp_path / "lost"))


def test_an_index_grows_and_forgets(embedding: PEGEmbedding) -> None:
    index = VectorStoreIndex.from_vector_store(PEGVectorStore(), embed_model=embedding)
    for number, text in enumerate(TEXTS):
        index.insert(Document(id_=f"doc{number}", text=text))
    index.update_ref_doc(Document(id_="doc3", text="借款"))
    index.delete_ref_doc("doc0")
    store: Any = index.vector_store
    assert {node.get_content() for node in store.get_nodes()} == {"花呗逾期还款", "银行卡绑定", "借款"}


@pytest.mark.parametrize("splitter", [[SentenceSplitter()], []], ids=["split", "whole"])
async def test_ingestion_with_docstore_and_upserts(embedding: PEGEmbedding, splitter: list[Any]) -> None:
    store = PEGVectorStore(embed_model=embedding)
    pipeline = IngestionPipeline(
        transformations=[*splitter, embedding],
        docstore=SimpleDocumentStore(),
        vector_store=store,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def documents(**texts: str) -> list[Document]:
        return [Document(id_=name, text=text) for name, text in texts.items()]

    def stored() -> set[str]:
        return {node.get_content() for node in store.get_nodes()}

    assert len(pipeline.run(documents=documents(a="花呗", b="银行卡"))) == 2
    assert len(pipeline.run(documents=documents(a="花呗", b="银行卡"))) == 0
    assert len(pipeline.run(documents=documents(a="花呗", b="理财"))) == 1
    assert stored() == {"花呗", "理财"}
    await pipeline.arun(documents=documents(b="理财", c="借款"))
    assert stored() == {"理财", "借款"}


async def test_the_event_loop_keeps_turning(embedding: PEGEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PEGVectorStore()
    store.add(make_nodes(embedding))
    search = store.client.search

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return search(*args, **kwargs)

    monkeypatch.setattr(store.client, "search", slow)
    task, ticks = asyncio.ensure_future(store.aquery(ask(embedding, "花呗"))), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 5
