"""The bundled reranker as LangChain's document compressor and as LlamaIndex's node postprocessor."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.schema import NodeWithScore, TextNode

from peg_rag import langchain, llama_index
from peg_rag.errors import InvalidInput
from peg_rag.reranking import load_reranker

QUERY = "慕田峪长城门票多少钱"
TEXTS = [
    "八达岭长城的门票旺季40元，淡季35元。",
    "慕田峪长城的门票45元，六十岁以上老人半价。",
    "长城的门票可以在网上预约，也可以现场购买。",
    "故宫的门票旺季60元。",
]


def test_langchain_documents_are_copied_best_first() -> None:
    documents = [Document(text, id=str(n), metadata={"number": n}) for n, text in enumerate(TEXTS)]
    ranked = load_reranker("mini").rank(QUERY, TEXTS)
    best = langchain.PEGReranker().compress_documents(documents, QUERY)
    assert [document.metadata["number"] for document in best] == [each.index for each in ranked]
    assert [document.metadata["relevance_score"] for document in best] == [each.score for each in ranked]
    assert best[0].id == "1"
    assert documents[1].metadata == {"number": 1}
    assert langchain.PEGReranker(top_n=2).compress_documents(documents, QUERY) == best[:2]
    assert langchain.PEGReranker().compress_documents([], QUERY) == []


async def test_langchain_in_a_compression_retriever() -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever

    store = InMemoryVectorStore.from_texts(TEXTS, DeterministicFakeEmbedding(size=8))
    retriever = ContextualCompressionRetriever(
        base_retriever=store.as_retriever(search_kwargs={"k": 4}), base_compressor=langchain.PEGReranker(top_n=1)
    )
    assert [document.page_content for document in retriever.invoke(QUERY)] == [TEXTS[1]]
    assert [document.page_content for document in await retriever.ainvoke(QUERY)] == [TEXTS[1]]


async def test_llama_index_nodes_come_back_best_first() -> None:
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"file": "长城.md"}), score=0.0) for text in TEXTS]
    ranked = load_reranker("mini").rank(QUERY, TEXTS)
    best = llama_index.PEGReranker(top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node for node in best] == [nodes[each.index].node for each in ranked[:3]]
    assert [node.score for node in best] == [each.score for each in ranked[:3]]
    assert await llama_index.PEGReranker(top_n=3).apostprocess_nodes(nodes, query_str=QUERY) == best
    with pytest.raises(InvalidInput, match="query_str"):
        llama_index.PEGReranker().postprocess_nodes(nodes)


def test_settings_are_checked() -> None:
    for kind in (langchain.PEGReranker, llama_index.PEGReranker):
        with pytest.raises(ValueError, match="top_n"):
            kind(top_n=0)
    with pytest.raises(InvalidInput, match="blank"):
        langchain.PEGReranker().compress_documents([Document("长城")], " ")


def test_llama_indexs_retriever_hands_its_choice_to_the_store() -> None:
    embedding = llama_index.PEGEmbedding("peg-mini")
    store = llama_index.PEGVectorStore(embed_model=embedding)
    store.add([TextNode(text=text, embedding=embedding.get_text_embedding(text)) for text in TEXTS])

    def scores(**settings: Any) -> list[float | None]:
        return [node.score for node in llama_index.PEGRetriever(store, embedding, **settings).retrieve(QUERY)]

    by_default = scores(mode="hybrid")
    fused = [hit.score for hit in store.client.search(embedding.get_query_embedding(QUERY), QUERY, k=2)]
    assert scores(mode="hybrid", rerank="none") == pytest.approx(fused)
    assert scores(mode="hybrid", rerank="mini") == by_default != fused
    assert len(scores(rerank="auto")) == 2
    with pytest.raises(InvalidInput, match="hybrid"):
        scores(rerank="mini")
    with pytest.raises(InvalidInput, match="'maxi'"):
        scores(mode="hybrid", rerank="maxi")
    plain = llama_index.PEGVectorStore(embed_model=embedding, rerank="none")
    plain.add([TextNode(text=text, embedding=embedding.get_text_embedding(text)) for text in TEXTS])
    nodes = llama_index.PEGRetriever(plain, embedding, mode="hybrid").retrieve(QUERY)
    assert [node.score for node in nodes] == pytest.approx(fused)
