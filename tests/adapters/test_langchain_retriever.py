"""LangChain's retriever: the standard suite for dense, hybrid and Chroma; callbacks, batches, scores and reranking."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_cross_encoder
from conftest import LetterEncoder
from langchain_chroma import Chroma
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from pydantic import BaseModel, Field, ValidationError, create_model

from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.langchain import PEGEmbeddings, PEGRetriever, PEGVectorStore
from peg_rag.langchain.chat import ExtractiveChatModel
from peg_rag.passages import NO_PASSAGES

TEXTS = ["花呗还款", "花呗逾期还款", "银行卡绑定", "花呗理财", "还款日"]


def documents() -> list[Document]:
    return [Document(text, id=str(i), metadata={"number": i, "score": "mine"}) for i, text in enumerate(TEXTS)]


@pytest.fixture
def embeddings(letters: LetterEncoder) -> PEGEmbeddings:
    return PEGEmbeddings.from_encoder(letters)


@pytest.fixture
def store(embeddings: PEGEmbeddings, letters: LetterEncoder) -> PEGVectorStore:
    store = PEGVectorStore.from_documents(documents(), embeddings)
    letters.calls.clear()
    return store


def chroma(embeddings: Embeddings, folder: Path) -> Chroma:
    settings: Any = {"hnsw": {"space": "cosine"}}
    return Chroma.from_documents(
        documents(),
        embeddings,
        persist_directory=str(folder),
        collection_configuration=settings,
        collection_name="kept",
    )


class Standard(RetrieversIntegrationTests):
    """The suite, but for the store."""

    params: dict[str, Any]

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return PEGRetriever

    @property
    def retriever_query_example(self) -> str:
        return "花呗还款"

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.params


class TestDense(Standard):
    @pytest.fixture(autouse=True)
    def _params(self, store: PEGVectorStore) -> None:
        self.params = {"vectorstore": store}


class TestHybrid(Standard):
    @pytest.fixture(autouse=True)
    def _params(self, store: PEGVectorStore) -> None:
        self.params = {"vectorstore": store, "search_type": "hybrid"}


class TestLexical(Standard):
    @pytest.fixture(autouse=True)
    def _params(self, store: PEGVectorStore) -> None:
        self.params = {"vectorstore": store, "search_type": "lexical"}


class TestOverChroma(Standard):
    @pytest.fixture(autouse=True)
    def _params(self, embeddings: PEGEmbeddings, tmp_path: Path) -> None:
        self.params = {"vectorstore": chroma(embeddings, tmp_path)}


def texts(found: list[Document]) -> list[str]:
    return [document.page_content for document in found]


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.ended: list[list[Document]] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(self, serialized: Any, query: str, *, metadata: Any = None, **kwargs: Any) -> None:
        self.started.append(query)
        self.metadata = metadata

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.ended.append(list(documents))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


async def test_settings_can_change_in_a_call(store: PEGVectorStore) -> None:
    retriever = PEGRetriever(vectorstore=store, k=2, filter={"number": {"$gte": 2}})
    assert len(retriever.invoke("花呗逾期还款")) == 2
    assert "花呗逾期还款" not in texts(retriever.invoke("花呗逾期还款"))
    assert texts(retriever.invoke("花呗逾期还款", k=1, filter={"number": {"$lt": 2}})) == ["花呗逾期还款"]
    assert texts(await retriever.ainvoke("花呗逾期还款", k=1, filter={"number": {"$lt": 2}})) == ["花呗逾期还款"]
    assert texts(retriever.invoke("逾期", search_type="lexical", filter={})) == ["花呗逾期还款"]
    retriever.k = 1
    assert len(retriever.invoke("花呗")) == 1


def test_mistakes_are_refused(store: PEGVectorStore) -> None:
    with pytest.raises(ValueError, match="search_kwargs"):
        PEGRetriever(vectorstore=store, search_kwargs={"k": 3})
    with pytest.raises(ValueError, match="search_type"):
        PEGRetriever(vectorstore=store, search_type="sideways")
    with pytest.raises(InvalidInput, match="sideways"):
        PEGRetriever(vectorstore=store).invoke("花呗", search_type="sideways")
    with pytest.raises(TypeError, match="fliter"):
        PEGRetriever(vectorstore=store).invoke("花呗", fliter={})
    with pytest.raises(InvalidInput, match="no embeddings"):
        PEGRetriever(vectorstore=Chroma(collection_name="bare", embedding_function=None))


def test_documents_come_as_they_were_stored(store: PEGVectorStore) -> None:
    (found,) = PEGRetriever(vectorstore=store, k=1).invoke("花呗还款")
    assert found == documents()[0]
    assert type(found) is Document


def test_scores_on_request(store: PEGVectorStore) -> None:
    (found,) = PEGRetriever(vectorstore=store, k=1, search_type="hybrid", with_scores=True).invoke("花呗还款")
    assert set(found.metadata["scores"]) == {"dense", "lexical", "fused"}
    assert found.metadata["score"] == found.metadata["scores"]["fused"]
    assert found.metadata["number"] == 0


async def test_callbacks_carry_scores_that_the_caller_did_not_ask_for(store: PEGVectorStore) -> None:
    recorder = Recorder()
    retriever = PEGRetriever(vectorstore=store, k=1)
    shown = retriever.invoke("花呗还款", {"callbacks": [recorder]})
    shown += await retriever.ainvoke("花呗还款", {"callbacks": [recorder]})
    assert [document.metadata["score"] for document in shown] == ["mine", "mine"]
    assert [found[0].metadata["score"] for found in recorder.ended] == pytest.approx([1, 1], abs=1e-4)
    assert recorder.started == ["花呗还款"] * 2
    assert {type(document) for found in recorder.ended for document in found} == {Document}


def test_tracing_parameters(store: PEGVectorStore) -> None:
    recorder = Recorder()
    PEGRetriever(vectorstore=store).invoke("花呗", {"callbacks": [recorder]})
    assert {key: value for key, value in recorder.metadata.items() if key.startswith("ls_")} == {
        "ls_retriever_name": "peg",
        "ls_vector_store_provider": "PEGVectorStore",
        "ls_embedding_provider": "PEGEmbeddings",
        "ls_embedding_model": "letters/40",
    }


@pytest.mark.parametrize("search_type", ["similarity", "hybrid", "mmr"])
async def test_a_batch_is_encoded_at_once(store: PEGVectorStore, letters: LetterEncoder, search_type: Any) -> None:
    recorder, queries = Recorder(), ["花呗", "银行卡", "还款日"]
    retriever = PEGRetriever(vectorstore=store, k=2, search_type=search_type)
    together = retriever.batch(queries, {"callbacks": [recorder]})
    assert letters.calls == [("query", 3)]
    assert recorder.started == queries
    assert [texts(found) for found in recorder.ended] == [texts(found) for found in together]
    assert "score" in recorder.ended[0][0].metadata
    assert await retriever.abatch(queries) == together
    assert letters.calls == [("query", 3)] * 2
    assert [retriever.invoke(query) for query in queries] == together
    assert retriever.batch(queries, k=1, filter={"number": 2})[0][0].page_content == "银行卡绑定"
    assert retriever.batch([]) == await retriever.abatch([]) == []


async def test_one_bad_query_of_a_batch_fails_alone(embeddings: PEGEmbeddings, tiny_bert: Path) -> None:
    recorder = Recorder()
    retriever = PEGRetriever(
        vectorstore=PEGVectorStore.from_documents(documents(), PEGEmbeddings(model=tiny_bert)), k=1
    )
    for outcome in (
        retriever.batch(["花呗", " ", "还款"], {"callbacks": [recorder]}, return_exceptions=True),
        await retriever.abatch(["花呗", " ", "还款"], return_exceptions=True),
    ):
        assert [isinstance(each, InvalidInput) for each in outcome] == [False, True, False]
    assert len(recorder.ended) == 2
    assert len(recorder.errors) == 1
    with pytest.raises(InvalidInput, match="blank"):
        retriever.batch(["花呗", " "])
    with pytest.raises(InvalidInput, match="blank"):
        await retriever.abatch(["花呗", " "])


class LengthEncoder(BaseCrossEncoder):
    """Prefers long documents."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [float(len(document)) for _, document in text_pairs]


def test_reranker(store: PEGVectorStore) -> None:
    retriever = PEGRetriever(vectorstore=store, k=1, rerank=LengthEncoder(), with_scores=True)
    (found,) = retriever.invoke("银行卡绑定")
    assert found.page_content == "花呗逾期还款"
    assert found.metadata["score"] == found.metadata["scores"]["rerank"] == 6


def test_a_real_cross_encoder(store: PEGVectorStore, tiny_bert: Path, tmp_path: Path) -> None:
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    reranker = HuggingFaceCrossEncoder(model_name=tiny_cross_encoder.build(tiny_bert, tmp_path))
    found = PEGRetriever(vectorstore=store, rerank=reranker, with_scores=True).invoke("花呗逾期")
    scores = reranker.score([("花呗逾期", text) for text in TEXTS])
    expected = sorted(zip(scores, TEXTS, strict=True), reverse=True)[:4]
    assert [(document.metadata["score"], document.page_content) for document in found] == [
        (pytest.approx(score, abs=1e-4), text) for score, text in expected
    ]


def test_threshold_and_mmr(store: PEGVectorStore) -> None:
    assert texts(PEGRetriever(vectorstore=store, score_threshold=0.99).invoke("花呗还款")) == ["花呗还款"]
    diverse = PEGRetriever(vectorstore=store, search_type="mmr", k=2, lambda_mult=0.1)
    assert texts(diverse.invoke("花呗还款"))[1] == "银行卡绑定"


def stores_of_another_make(embeddings: Embeddings, folder: Path) -> list[VectorStore]:
    from langchain_community.vectorstores import FAISS

    return [
        chroma(embeddings, folder),
        InMemoryVectorStore.from_texts(TEXTS, embeddings),
        FAISS.from_documents(documents(), embeddings),
    ]


def test_other_stores_search_densely_and_say_so_when_they_cannot(embeddings: PEGEmbeddings, tmp_path: Path) -> None:
    for store in stores_of_another_make(embeddings, tmp_path):
        retriever = PEGRetriever(vectorstore=store, k=2, with_scores=True)
        first, second = retriever.invoke("花呗逾期还款")
        assert first.page_content == "花呗逾期还款"
        assert first.metadata["score"] >= second.metadata["score"]
        assert texts(PEGRetriever(vectorstore=store, k=1, search_type="mmr").invoke("银行卡")) == ["银行卡绑定"]
        assert len(PEGRetriever(vectorstore=store, k=3, rerank=LengthEncoder()).batch(["花呗", "银行"])) == 2
        for search_type in ("hybrid", "lexical"):
            with pytest.raises(UnsupportedSearch, match=type(store).__name__):
                PEGRetriever(vectorstore=store, search_type=search_type).invoke("花呗")


def test_chroma_filters_in_its_own_language(embeddings: PEGEmbeddings, tmp_path: Path) -> None:
    retriever = PEGRetriever(vectorstore=chroma(embeddings, tmp_path), filter={"number": {"$gte": 3}})
    assert set(texts(retriever.invoke("花呗还款"))) == {"花呗理财", "还款日"}
    assert texts(retriever.invoke("花呗还款", filter={"number": 2})) == ["银行卡绑定"]


def test_embeddings_of_another_make(store: PEGVectorStore, embeddings: PEGEmbeddings) -> None:
    class Foreign(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return embeddings.embed_documents(texts)

        def embed_query(self, text: str) -> list[float]:
            return embeddings.embed_query(text)

    foreign = PEGVectorStore.from_documents(documents(), Foreign())
    assert PEGRetriever(vectorstore=foreign).batch(TEXTS) == PEGRetriever(vectorstore=store).batch(TEXTS)


def test_in_a_chain(store: PEGVectorStore) -> None:
    prompt = ChatPromptTemplate.from_template("{context}|{question}")
    retriever = PEGRetriever(vectorstore=store, k=1).configurable_fields(k=ConfigurableField(id="k"))
    joined = retriever | RunnableLambda(lambda found: ",".join(texts(found)))
    chain = (
        {"context": joined, "question": RunnablePassthrough()}
        | prompt
        | RunnableLambda(lambda value: value.to_messages()[0])
        | StrOutputParser()
    )
    assert chain.invoke("银行卡") == "银行卡绑定|银行卡"
    assert len(chain.invoke("银行卡", {"configurable": {"k": 2}}).split(",")) == 2


async def test_the_event_loop_keeps_turning(embeddings: PEGEmbeddings, store: PEGVectorStore) -> None:
    class Slow(LetterEncoder):
        def _encode(self, texts: Any) -> Any:
            time.sleep(0.2)
            return super()._encode(texts)

    retriever = PEGRetriever(vectorstore=PEGVectorStore(PEGEmbeddings.from_encoder(Slow())))
    for call in (retriever.ainvoke("花呗"), retriever.abatch(["花呗", "银行"])):
        task, ticks = asyncio.ensure_future(call), 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 5


def test_a_store_of_another_model_is_refused(store: PEGVectorStore, tiny_bert: Path) -> None:
    store._embedding = PEGEmbeddings(model=tiny_bert)
    with pytest.raises(IndexMismatch, match=r"letters.*tiny-bert"):
        PEGRetriever(vectorstore=store)


# -- as a tool ---------------------------------------------------------------------------------------------------------


class ToolFixtures:
    """The retriever's tool, for the frameworks' suites."""

    @pytest.fixture(autouse=True)
    def _tool(self, store: PEGVectorStore) -> None:
        self.built = PEGRetriever(vectorstore=store, k=2, search_type="hybrid").as_tool()

    @property
    def tool_constructor(self) -> BaseTool:
        return self.built

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"query": "花呗逾期"}


class TestToolUnits(ToolFixtures, ToolsUnitTests):
    """The unit suite."""


class TestToolIntegration(ToolFixtures, ToolsIntegrationTests):
    """The integration suite."""


def tool_call(**arguments: Any) -> dict[str, Any]:
    return {"name": "search_documents", "args": arguments, "id": "1", "type": "tool_call"}


async def test_a_tool_gives_numbered_passages_and_their_documents(embeddings: PEGEmbeddings) -> None:
    store = PEGVectorStore.from_documents(
        [
            Document("花呗逾期还款", metadata={"source": "花呗.pdf", "title": "还款 > 逾期", "page": 3}),
            Document("银行卡绑定"),
        ],
        embeddings,
    )
    tool = PEGRetriever(vectorstore=store).as_tool(name="look_up", description="花呗的规则")
    assert (tool.name, tool.description, list(tool.args)) == ("look_up", "花呗的规则", ["query"])
    for message in (tool.invoke(tool_call(query="花呗逾期")), await tool.ainvoke(tool_call(query="花呗逾期"))):
        assert message.content == "[1] (source: 花呗.pdf · 还款 > 逾期 · page 3)\n花呗逾期还款\n\n[2] 银行卡绑定"
        assert texts(message.artifact) == ["花呗逾期还款", "银行卡绑定"]


def test_a_tool_that_finds_nothing_says_so(store: PEGVectorStore) -> None:
    message = PEGRetriever(vectorstore=store, filter={"number": 99}).as_tool().invoke(tool_call(query="花呗"))
    assert message.content == NO_PASSAGES
    assert message.artifact == []


def test_a_tool_lets_the_model_set_what_its_schema_has(store: PEGVectorStore) -> None:
    class Input(BaseModel):
        query: str
        k: int = Field(ge=1, le=3)

    tool = PEGRetriever(vectorstore=store).as_tool(Input)
    assert len(tool.invoke(tool_call(query="花呗", k=3)).artifact) == 3
    with pytest.raises(ValidationError):
        tool.invoke(tool_call(query="花呗", k=99))
    for wrong in (create_model("Wrong", question=(str, ...)), create_model("Wrong", query=(str, ...), top=(int, 1))):
        with pytest.raises(InvalidInput, match="args_schema"):
            PEGRetriever(vectorstore=store).as_tool(wrong)
    with pytest.raises(InvalidInput, match="args_schema"):
        PEGRetriever(vectorstore=store).as_tool(arg_types={"query": str})


def test_a_tool_refuses_a_blank_query_so_that_the_model_can_try_again(store: PEGVectorStore) -> None:
    with pytest.raises(ValidationError, match="query"):
        PEGRetriever(vectorstore=store).as_tool().invoke(tool_call(query=" "))


def test_a_tool_is_traced_as_the_parent_of_its_search(store: PEGVectorStore) -> None:
    class Runs(BaseCallbackHandler):
        def __init__(self) -> None:
            self.parents: dict[str, Any] = {}

        def on_tool_start(self, serialized: Any, input_str: str, *, run_id: Any, **kwargs: Any) -> None:
            self.parents["tool"] = run_id

        def on_retriever_start(
            self, serialized: Any, query: str, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
        ) -> None:
            self.parents["retriever's parent"] = parent_run_id

    runs = Runs()
    PEGRetriever(vectorstore=store).as_tool().invoke(tool_call(query="花呗"), {"callbacks": [runs]})
    assert runs.parents["retriever's parent"] == runs.parents["tool"]


def test_a_tool_in_an_agent(store: PEGVectorStore, embeddings: PEGEmbeddings) -> None:
    from langchain.agents import create_agent

    store.add_texts(["花呗逾期后，每天按未还金额的万分之五收取利息。"])
    tool = PEGRetriever(vectorstore=store, search_type="hybrid", k=2).as_tool()
    agent = create_agent(ExtractiveChatModel(embeddings=embeddings, threshold=0), [tool])
    question: Any = {"messages": [("user", "花呗逾期每天收取多少利息？")]}
    messages = agent.invoke(question)["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[-1].text == "花呗逾期后，每天按未还金额的万分之五收取利息。[1]"
