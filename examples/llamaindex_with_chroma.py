"""PEG in a vector store of another make: Chroma under LlamaIndex, on disk, with metadata filters.

python examples/llamaindex_with_chroma.py

`PEGEmbedding` is an ordinary LlamaIndex embedding: Milvus, Qdrant, pgvector and the others take it in the same way.
"""

import tempfile
from pathlib import Path

import chromadb
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore

from peg_rag.llama_index import PEGEmbedding

FOLDER = Path(__file__).parent / "data"
QUESTION = "白葡萄酒和红葡萄酒哪个亚硫酸盐更多？"

embed_model = PEGEmbedding("peg-mini")  # the small bundled model; PEGEmbedding() is PEG itself


def documents() -> list[Document]:
    """One document per file; the folder's name becomes metadata to filter by, and is not embedded."""
    return [
        Document(
            text=file.read_text("utf-8"),
            metadata={"source": file.name, "topic": file.parent.name},
            excluded_embed_metadata_keys=["source", "topic"],
        )
        for file in sorted(FOLDER.glob("*/*.*"))
    ]


def open_store(path: str) -> ChromaVectorStore:
    client = chromadb.PersistentClient(path)
    collection = client.get_or_create_collection("guide", configuration={"hnsw": {"space": "cosine"}})
    return ChromaVectorStore(chroma_collection=collection)


def search(index: VectorStoreIndex, filters: MetadataFilters | None = None) -> None:
    for node in index.as_retriever(similarity_top_k=2, filters=filters).retrieve(QUESTION):
        print(f"  {node.score:.3f}  {node.metadata['topic']}/{node.metadata['source']}")


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        storage = StorageContext.from_defaults(vector_store=open_store(path))
        VectorStoreIndex.from_documents(documents(), storage_context=storage, embed_model=embed_model)

        index = VectorStoreIndex.from_vector_store(open_store(path), embed_model)  # what was added is on disk
        print(QUESTION)
        search(index)
        print(f"{QUESTION} (only among the papers)")
        search(index, MetadataFilters(filters=[MetadataFilter(key="topic", value="papers")]))


if __name__ == "__main__":
    main()
