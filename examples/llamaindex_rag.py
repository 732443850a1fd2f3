"""Question answering over a folder with LlamaIndex: a query engine that cites its sources.

python examples/llamaindex_rag.py

Answers are sentences quoted from the documents, unless an OpenAI-compatible server (Ollama, vLLM, …) is named:
OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_API_KEY=none OPENAI_MODEL=qwen3:8b python examples/llamaindex_rag.py
"""

import os
from pathlib import Path

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.llms import LLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import CitationQueryEngine

from peg_rag.llama_index import PEGEmbedding, PEGVectorStore
from peg_rag.llama_index.llm import ExtractiveLLM

FOLDER = Path(__file__).parent / "data"
QUESTIONS = ("丙烯颜料有毒吗？", "慕田峪长城有多少座敌楼？", "周杰伦的第一张专辑叫什么？")


def load(folder: Path) -> list[Document]:
    """The folder's files. Their names are for citing, and would only be noise in what is embedded."""
    hidden = {"excluded_embed_metadata_keys": ["source"], "excluded_llm_metadata_keys": ["source"]}
    return [
        Document(text=file.read_text("utf-8"), metadata={"source": f"{file.parent.name}/{file.name}"}, **hidden)
        for file in sorted(folder.glob("*/*.*"))
    ]


def language_model(embed_model: PEGEmbedding) -> LLM:
    if "OPENAI_BASE_URL" not in os.environ:
        print("No OPENAI_BASE_URL is set: answers are extractive, that is, quoted from the documents.")
        return ExtractiveLLM(embed_model=embed_model)
    from llama_index.llms.openai_like import OpenAILike

    model, url = os.environ["OPENAI_MODEL"], os.environ["OPENAI_BASE_URL"]
    return OpenAILike(model=model, api_base=url, is_chat_model=True, context_window=16_384)  # the key: as usual


def main() -> None:
    embed_model = PEGEmbedding("peg-mini")  # the small bundled model; PEGEmbedding() is PEG itself
    store = PEGVectorStore(embed_model=embed_model)  # PEGVectorStore("kb", …) keeps it on disk
    index = VectorStoreIndex.from_documents(
        load(FOLDER),
        storage_context=StorageContext.from_defaults(vector_store=store),
        transformations=[SentenceSplitter(chunk_size=512, chunk_overlap=0)],
        embed_model=embed_model,
    )
    engine = CitationQueryEngine.from_args(
        index, llm=language_model(embed_model), similarity_top_k=4, vector_store_query_mode="hybrid"
    )
    for question in QUESTIONS:
        response = engine.query(question)
        print(f"\nQuestion: {question}\nAnswer:   {response}")
        for number, source in enumerate(response.source_nodes, 1):
            if f"[{number}]" in str(response):
                print(f"  [{number}] {source.metadata['source']}")


if __name__ == "__main__":
    main()
