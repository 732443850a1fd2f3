"""LlamaIndex's retriever: modes, query bundles, query engines, reranking, and stores of another make."""

import asyncio
import time
from pathlib import Path
from typing import Any

import chromadb
import pytest
import tiny_cross_encoder
from conftest import LetterEncoder
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings.mock_embed_model import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SentenceTransformerRerank, SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.tools import RetrieverTool, ToolSelection
from llama_index.core.tools.calling import acall_tool_with_selection
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.llama_index import PEGEmbedding, PEGRetriever, PEGVectorStore
from peg_rag.passages import NO_PASSAGES

TEXTS = ["花呗还款", "花呗逾期还款", "银行卡绑定", "理财"]
MODES = ["default", "hybrid", "text_search", "mmr"]


@pytest.fixture
def embedding(letters: LetterEncoder) -> PEGEmbedding:
    return PEGEmbedding.from_encoder(letters)


def make_nodes(embedding: PEGEmbedding) -> list[TextNode]:
    nodes = [
        TextNode(id_=f"n{i}", text=text, metadata={"number": i}, embedding=embedding.get_text_embedding(text))
        for i, text in enumerate(TEXTS)
    ]
    for node in nodes:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{node.node_id}")
    return nodes


@pytest.fixture
def store(embedding: PEGEmbedding, letters: LetterEncoder) -> PEGVectorStore:
    store = PEGVectorStore(embed_model=embedding)
    store.add(make_nodes(embedding))
    letters.calls.clear()
    return store


def texts(hits: list[NodeWithScore]) -> list[str]:
    return [hit.text for hit in hits]


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_in_sync_and_async(
    store: PEGVectorStore, embedding: PEGEmbedding, letters: LetterEncoder, mode: str
) -> None:
    retriever = PEGRetriever(store, embedding, similarity_top_k=1, mode=mode)
    hits = retriever.retrieve("花呗逾期")
    assert texts(hits) == ["花呗逾期还款"]
    assert hits[0].score is not None
    assert hits[0].score > 0
    assert texts(await retriever.aretrieve("花呗逾期")) == ["花呗逾期还款"]
    assert letters.calls == ([] if mode == "text_search" else [("query", 1)] * 2)


async def test_a_bundles_embedding_is_kept(
    store: PEGVectorStore, embedding: PEGEmbedding, letters: LetterEncoder
) -> None:
    vector = embedding.get_query_embedding("理财")
    letters.calls.clear()
    retriever = PEGRetriever(store, embedding, similarity_top_k=1)
    bundle = QueryBundle("花呗", embedding=vector)
    assert texts(retriever.retrieve(bundle)) == texts(await retriever.aretrieve(bundle)) == ["理财"]
    assert letters.calls == []


async def test_custom_embedding_strings_are_averaged(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    retriever = PEGRetriever(store, embedding, similarity_top_k=2)
    bundle = QueryBundle("花呗", custom_embedding_strs=["理财", "银行卡"])
    assert set(texts(retriever.retrieve(bundle))) == {"理财", "银行卡绑定"}
    assert set(texts(await retriever.aretrieve(bundle))) == {"理财", "银行卡绑定"}
    assert bundle.embedding is None


def test_filters_and_documents(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=2, operator=FilterOperator.GTE)])
    assert set(texts(PEGRetriever(store, embedding, similarity_top_k=4, filters=filters).retrieve("花呗"))) == {
        "银行卡绑定",
        "理财",
    }
    assert texts(PEGRetriever(store, embedding, doc_ids=["doc-n3"]).retrieve("花呗")) == ["理财"]
    strict = PEGRetriever(store, embedding, similarity_top_k=4, vector_store_kwargs={"threshold": 0.99})
    assert texts(strict.retrieve("花呗还款")) == ["花呗还款"]


def test_alpha_and_mmr_threshold(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    by_words = PEGRetriever(store, embedding, similarity_top_k=1, mode="hybrid", alpha=0.0)
    assert texts(by_words.retrieve("理")) == ["理财"]
    varied = PEGRetriever(store, embedding, similarity_top_k=2, mode="mmr", mmr_threshold=0.1)
    assert texts(varied.retrieve("花呗还款")) != ["花呗还款", "花呗逾期还款"]


def test_mistakes_are_typed(store: PEGVectorStore, embedding: PEGEmbedding, tiny_bert: Path) -> None:
    with pytest.raises(InvalidInput, match="svm"):
        PEGRetriever(store, embedding, mode="svm")
    with pytest.raises(IndexMismatch, match=r"letters.*tiny-bert"):
        PEGRetriever(store, PEGEmbedding(str(tiny_bert)))
    with pytest.raises(InvalidInput, match="keeps no text"):
        PEGRetriever(SimpleVectorStore(), embedding)
    nodes = PEGVectorStore()
    for query in ("", " "):
        with pytest.raises(InvalidInput, match="blank"):
            PEGRetriever(nodes, PEGEmbedding(str(tiny_bert))).retrieve(query)


def test_an_embedding_of_another_make(embedding: PEGEmbedding) -> None:
    theirs = MockEmbedding(embed_dim=8)
    store = PEGVectorStore(embed_model=theirs)
    store.add([TextNode(text="花呗", embedding=theirs.get_text_embedding("花呗"))])
    assert texts(PEGRetriever(store, theirs).retrieve("花呗")) == ["花呗"]


class LengthReranker(BaseNodePostprocessor):
    """Prefers long nodes."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        scored = [NodeWithScore(node=each.node, score=float(len(each.text))) for each in nodes]
        return sorted(scored, key=lambda each: -(each.score or 0))[:1]


async def test_in_a_query_engine_with_a_reranker(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    engine = RetrieverQueryEngine(
        PEGRetriever(store, embedding, similarity_top_k=4, mode="hybrid"),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.0), LengthReranker()],
    )
    for response in (engine.query("理财"), await engine.aquery("理财")):
        assert texts(response.source_nodes) == ["花呗逾期还款"]
        assert response.source_nodes[0].score == 6
        assert "花呗逾期还款" in str(response)


def test_a_real_cross_encoder_in_a_query_engine(
    store: PEGVectorStore, embedding: PEGEmbedding, tiny_bert: Path, tmp_path: Path
) -> None:
    model = tiny_cross_encoder.build(tiny_bert, tmp_path)
    rerank = SentenceTransformerRerank(model=model, top_n=2, trust_remote_code=False)
    engine = RetrieverQueryEngine(
        PEGRetriever(store, embedding, similarity_top_k=4),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[rerank],
    )
    sources = engine.query("花呗逾期").source_nodes
    nodes = [NodeWithScore(node=node) for node in make_nodes(embedding)]
    assert texts(sources) == texts(rerank.postprocess_nodes(nodes, query_str="花呗逾期"))


def test_events_carry_nodes_and_scores(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    class Ends(BaseEventHandler):
        seen: list[Any] = []  # noqa: RUF012 (pydantic copies it)

        def handle(self, event: Any, **kwargs: Any) -> None:
            if isinstance(event, RetrievalEndEvent):
                self.seen.append(event)

    root, handler, debug = get_dispatcher("root"), Ends(), LlamaDebugHandler(print_trace_on_end=False)
    root.add_event_handler(handler)
    try:
        hits = PEGRetriever(store, embedding, callback_manager=CallbackManager([debug])).retrieve("花呗")
    finally:
        root.event_handlers.remove(handler)
    assert [event.nodes for event in handler.seen] == [hits]
    ((_, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert end.payload is not None
    assert end.payload["nodes"] == hits


def test_over_chroma(embedding: PEGEmbedding, tmp_path: Path) -> None:
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "kept", configuration={"hnsw": {"space": "cosine"}}
    )
    chroma = ChromaVectorStore(chroma_collection=collection)
    chroma.add(make_nodes(embedding))  # type: ignore[arg-type]
    assert texts(PEGRetriever(chroma, embedding, similarity_top_k=1).retrieve("银行卡")) == ["银行卡绑定"]
    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=3)])
    assert texts(PEGRetriever(chroma, embedding, filters=filters, mode="mmr").retrieve("花呗")) == ["理财"]
    for mode in ("hybrid", "text_search", "sparse"):
        with pytest.raises(UnsupportedSearch, match="ChromaVectorStore"):
            PEGRetriever(chroma, embedding, mode=mode)


async def test_the_event_loop_keeps_turning(store: PEGVectorStore) -> None:
    class Slow(LetterEncoder):
        def _encode(self, texts: Any) -> Any:
            time.sleep(0.2)
            return super()._encode(texts)

    retriever = PEGRetriever(store, PEGEmbedding.from_encoder(Slow()))
    task, ticks = asyncio.ensure_future(retriever.aretrieve("花呗")), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert len(await task) == 2
    assert ticks >= 5


# -- as a tool ---------------------------------------------------------------------------------------------------------


async def test_a_tool_gives_numbered_passages_and_their_nodes(embedding: PEGEmbedding) -> None:
    store = PEGVectorStore(embed_model=embedding)
    metadata = {"source": "花呗.pdf", "title": "还款 > 逾期", "page": 3}
    for text, known in (("花呗逾期还款", metadata), ("银行卡绑定", {})):
        store.add([TextNode(text=text, metadata=known, embedding=embedding.get_text_embedding(text))])
    tool = PEGRetriever(store, embedding).as_tool(name="look_up", description="花呗的规则")
    assert (tool.metadata.name, tool.metadata.description) == ("look_up", "花呗的规则")
    assert list(tool.metadata.get_parameters_dict()["properties"]) == ["query"]
    for output in (tool.call(query="花呗逾期"), await tool.acall(query="花呗逾期")):
        assert output.content == "[1] (source: 花呗.pdf · 还款 > 逾期 · page 3)\n花呗逾期还款\n\n[2] 银行卡绑定"
        assert texts(output.raw_output) == ["花呗逾期还款", "银行卡绑定"]


async def test_a_tool_searches_for_the_models_words_alone(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    class Recorder(PEGRetriever):
        def _make_query(self, bundle: QueryBundle, embedding: Any) -> Any:
            queries.append(bundle.query_str)
            return super()._make_query(bundle, embedding)

    queries: list[str] = []
    retriever = Recorder(store, embedding, mode="hybrid")
    tool = retriever.as_tool()
    tool.call(query="花呗")
    await tool.acall(query="花呗")
    assert queries == ["花呗", "花呗"]
    RetrieverTool.from_defaults(retriever).call(query="花呗")
    assert queries[-1] != "花呗"  # the reason for a tool of our own


def test_a_tool_that_finds_nothing_says_so(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="number", value=99)])
    output = PEGRetriever(store, embedding, filters=filters).as_tool().call(query="花呗")
    assert output.content == NO_PASSAGES
    assert output.raw_output == []


async def test_a_tool_as_agents_call_it(store: PEGVectorStore, embedding: PEGEmbedding) -> None:
    tool = PEGRetriever(store, embedding, similarity_top_k=1).as_tool()
    selection = ToolSelection(tool_id="1", tool_name=tool.metadata.get_name(), tool_kwargs={"query": "花呗逾期"})
    output = await acall_tool_with_selection(selection, [tool])
    assert output.content.endswith("花呗逾期还款")
    wrong = ToolSelection(tool_id="2", tool_name=tool.metadata.get_name(), tool_kwargs={"words": "花呗", "k": 3})
    assert (await acall_tool_with_selection(wrong, [tool])).is_error
