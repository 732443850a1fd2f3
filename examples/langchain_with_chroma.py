"""PEG in a vector store of another make: Chroma, on disk, with metadata filters and relevance scores.

python examples/langchain_with_chroma.py

`PEGEmbeddings` is an ordinary LangChain `Embeddings`: Milvus, Qdrant, pgvector and the others take it in the same way,
and `PEGRetriever` searches any of them. (Lexical and hybrid search need `PEGVectorStore`.)
"""

import tempfile
from pathlib import Path

from langchain_chroma import Chroma
from langchain_core.documents import Document

from peg_rag.langchain import PEGEmbeddings, PEGRetriever

FOLDER = Path(__file__).parent / "data"
QUESTION = "白葡萄酒和红葡萄酒哪个亚硫酸盐更多？"

embeddings = PEGEmbeddings(model="peg-mini")  # the small bundled model; PEGEmbeddings() is PEG itself


def documents() -> list[Document]:
    """One document per file; the folder's name becomes metadata to filter by."""
    return [
        Document(file.read_text("utf-8"), id=file.stem, metadata={"source": file.name, "topic": file.parent.name})
        for file in sorted(FOLDER.glob("*/*.*"))
    ]


def open_store(path: str) -> Chroma:
    # Cosine, because with Chroma's default, squared L2, relevance scores can be negative.
    return Chroma("guide", embeddings, persist_directory=path, collection_configuration={"hnsw": {"space": "cosine"}})


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        open_store(path).add_documents(documents())

        store = open_store(path)  # what was added is on disk
        print(f"{len(store.get()['ids'])} documents in Chroma\n\n{QUESTION}")
        for document, score in store.similarity_search_with_relevance_scores(QUESTION, k=3):
            print(f"  {score:.3f}  {document.metadata['topic']}/{document.metadata['source']}")

        retriever = PEGRetriever(vectorstore=store, k=2, filter={"topic": "papers"}, with_scores=True)
        print(f"\n{QUESTION} (only among the papers)")
        for document in retriever.invoke(QUESTION):
            print(f"  {document.metadata['score']:.3f}  {document.metadata['topic']}/{document.metadata['source']}")


if __name__ == "__main__":
    main()
