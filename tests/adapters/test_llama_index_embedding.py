"""LlamaIndex: events, caches, serialisation, pipelines, and the stores that `PEGEmbedding` is used with."""

import pickle
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from conftest import LetterEncoder
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from peg_rag.errors import IndexMismatch
from peg_rag.llama_index import PEGEmbedding


class Events(BaseEventHandler):
    seen: list[Any] = []  # noqa: RUF012 (pydantic copies it)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, EmbeddingStartEvent | EmbeddingEndEvent):
            self.seen.append(event)


def random_words(count: int) -> list[str]:
    letters = np.random.default_rng(0).choice(list(string.ascii_lowercase), size=(count, 24))
    return ["".join(row) for row in letters]


@pytest.fixture
def events() -> Any:
    root, handler = get_dispatcher("root"), Events()
    root.add_event_handler(handler)
    yield handler.seen
    root.event_handlers.remove(handler)


@pytest.fixture
def embedding(letters: LetterEncoder) -> PEGEmbedding:
    return PEGEmbedding.from_encoder(letters)


def test_a_corpus_is_one_call_to_the_encoder(embedding: PEGEmbedding, letters: LetterEncoder) -> None:
    texts = ["a" * (1 + i % 7) for i in range(5_000)]
    assert len(embedding.get_text_embedding_batch(texts)) == 5_000
    assert letters.calls == [("document", 5_000)]


async def test_events_and_callbacks_are_kept(letters: LetterEncoder, events: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embedding = PEGEmbedding.from_encoder(letters, callback_manager=CallbackManager([debug]))
    calls = [
        ([embedding.get_query_embedding("a")], ["a"]),
        ([await embedding.aget_query_embedding("b")], ["b"]),
        ([embedding.get_text_embedding("c")], ["c"]),
        ([await embedding.aget_text_embedding("d")], ["d"]),
        (embedding.get_text_embedding_batch(["e", "f"]), ["e", "f"]),
        (await embedding.aget_text_embedding_batch(["g", "h"]), ["g", "h"]),
    ]
    starts, ends = events[::2], events[1::2]
    assert all(isinstance(event, EmbeddingStartEvent) for event in starts)
    assert all(event.model_dict["class_name"] == "PEGEmbedding" for event in starts)
    assert [(event.embeddings, event.chunks) for event in ends] == calls
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [pair[1].payload["chunks"] for pair in pairs if pair[1].payload] == [chunks for _, chunks in calls]


def test_dict_round_trip(tiny_bert: Path) -> None:
    first = PEGEmbedding(str(tiny_bert), query_prompt="如何", truncate_dim=16, dtype="float32")
    again = PEGEmbedding.from_dict(first.to_dict(), dtype="float32")
    assert again.get_query_embedding("花呗") == first.get_query_embedding("花呗")
    assert again.to_dict() == first.to_dict()
    assert PEGEmbedding.from_json(first.to_json()).to_dict() == first.to_dict()


def test_another_model_under_a_saved_name_is_refused(tiny_bert: Path) -> None:
    saved = PEGEmbedding(str(tiny_bert)).to_dict() | {"identity": "older@00000000/cls/32"}
    with pytest.raises(IndexMismatch, match="older@00000000"):
        PEGEmbedding.from_dict(saved)


def test_how_it_is_run_does_not_change_the_ingestion_hash(tiny_bert: Path) -> None:
    nodes = [TextNode(text="花呗")]
    here = PEGEmbedding(str(tiny_bert))
    there = PEGEmbedding(
        str(tiny_bert),
        device="cpu",
        batch_tokens=64,
        embed_batch_size=4,
        num_workers=3,
        embeddings_cache=SimpleKVStore(),
    )
    other = PEGEmbedding(str(tiny_bert), pooling="mean")
    assert get_transformation_hash(nodes, here) == get_transformation_hash(nodes, there)
    assert get_transformation_hash(nodes, here) != get_transformation_hash(nodes, other)


async def test_cache_is_keyed_by_role(letters: LetterEncoder) -> None:
    class TwoRoles(LetterEncoder):
        def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
            return -super().encode_queries(texts)

    encoder = TwoRoles()
    embedding = PEGEmbedding.from_encoder(encoder, embeddings_cache=SimpleKVStore())
    document, query = embedding.get_text_embedding("花呗"), embedding.get_query_embedding("花呗")
    assert query == [-value for value in document]
    assert (await embedding.aget_text_embedding("花呗"), await embedding.aget_query_embedding("花呗")) == (
        document,
        query,
    )
    assert embedding.get_text_embedding_batch(["花呗", "理财", "花呗"])[0] == document
    assert (await embedding.aget_text_embedding_batch(["理财", "逾期"]))[0] == embedding.get_text_embedding("理财")
    assert encoder.calls == [("document", 1), ("query", 1), ("document", 1), ("document", 1)]


def test_cache_is_keyed_by_model_and_prompt(tiny_bert: Path) -> None:
    cache = SimpleKVStore()
    settings: list[dict[str, Any]] = [{}, {"document_prompt": "如何"}, {"pooling": "mean"}, {"max_length": 8}]
    vectors = [
        PEGEmbedding(str(tiny_bert), embeddings_cache=cache, **given).get_text_embedding("花呗如何更换银行卡")
        for given in settings
    ]
    assert len({tuple(vector) for vector in vectors}) == len(settings)


def test_pickle_keeps_an_injected_encoder(embedding: PEGEmbedding) -> None:
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_query_embedding("花呗") == embedding.get_query_embedding("花呗")


def test_simple_vector_store(embedding: PEGEmbedding) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in ["花呗", "银行卡", "理财"]], embed_model=embedding)
    assert [hit.text for hit in index.as_retriever(similarity_top_k=1).retrieve("银行")] == ["银行卡"]


async def test_ingestion_pipeline(embedding: PEGEmbedding, letters: LetterEncoder) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding], cache=IngestionCache())
    documents = [Document(text="花呗"), Document(text="银行卡")]
    nodes = pipeline.run(documents=documents)
    assert [node.embedding for node in nodes] == embedding.get_text_embedding_batch(["花呗", "银行卡"])
    before = len(letters.calls)
    pipeline.run(documents=documents)  # answered by the ingestion cache
    assert len(letters.calls) == before
    assert len(await pipeline.arun(documents=[Document(text="理财")])) == 1


@pytest.mark.slow
def test_ingestion_workers_have_the_model(tiny_bert: Path) -> None:
    embedding = PEGEmbedding(str(tiny_bert), dtype="float32", num_workers=2)
    nodes = IngestionPipeline(transformations=[embedding], disable_cache=True).run(
        documents=[Document(text="花呗"), Document(text="银行卡")], num_workers=2
    )
    vectors = [node.get_embedding() for node in nodes]
    assert np.allclose(vectors, embedding.get_text_embedding_batch(["花呗", "银行卡"]))


def test_chroma_takes_more_than_its_batch_limit_in_one_call(embedding: PEGEmbedding, tmp_path: Path) -> None:
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "letters", configuration={"hnsw": {"space": "cosine"}}
    )
    texts = random_words(6_500)
    store = ChromaVectorStore(chroma_collection=collection)
    context = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex([TextNode(text=text) for text in texts], storage_context=context, embed_model=embedding)
    assert collection.count() == 6_500
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=embedding).as_retriever(similarity_top_k=1)
    assert [retriever.retrieve(text)[0].text for text in texts[::1_000]] == texts[::1_000]
