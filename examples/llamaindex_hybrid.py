"""Dense, lexical and hybrid search in Chinese with LlamaIndex: what each of them finds, and misses.

python examples/llamaindex_hybrid.py

Vectors find what is said in other words; BM25 finds names and terms as they are written. Hybrid search fuses the two
rankings, with no language model and no second store.
"""

from pathlib import Path

from llama_index.core import Document, StorageContext, VectorStoreIndex

from peg_rag.llama_index import PEGEmbedding, PEGRetriever, PEGVectorStore

FOLDER = Path(__file__).parent / "data"
QUERIES = ("想脱单应该去拜哪座庙？", "Tallentyre 写过什么书？")
MODES = ("default", "text_search", "hybrid")  # LlamaIndex's names for dense, lexical and hybrid search


def load(folder: Path) -> list[Document]:
    return [
        Document(text=file.read_text("utf-8"), metadata={"source": file.name}, excluded_embed_metadata_keys=["source"])
        for file in sorted(folder.glob("*/*.*"))
    ]


def main() -> None:
    embed_model = PEGEmbedding("peg-mini")  # the small bundled model; PEGEmbedding() is PEG itself
    store = PEGVectorStore(embed_model=embed_model)
    storage = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex.from_documents(load(FOLDER), storage_context=storage, embed_model=embed_model)

    for query in QUERIES:
        print(query)
        for mode in MODES:
            retriever = PEGRetriever(store, embed_model, mode=mode, similarity_top_k=3)
            nodes = retriever.retrieve(query)
            print(f"  {mode:12}", "  ".join(f"{hit.metadata['source']} {hit.score:.3f}" for hit in nodes))
        print()


if __name__ == "__main__":
    main()
