"""Keep an index in step with a folder with LlamaIndex: a pipeline with a docstore, upserts, deletions and a cache.

python examples/llamaindex_ingestion.py

The docstore knows what was ingested, so only what is new or changed goes through the pipeline, and what is gone is
deleted. The cache knows what came out for the same documents before, so an index can be made anew without embedding.
"""

import shutil
import tempfile
from pathlib import Path

from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore

from peg_rag import PEGEncoder
from peg_rag.llama_index import PEGEmbedding, PEGVectorStore

SIGHTS = Path(__file__).parent / "data" / "sights"

encoder = PEGEncoder("peg-mini")  # the small bundled model; PEGEncoder() is PEG itself
embed_model = PEGEmbedding.from_encoder(encoder)


def load(folder: Path) -> list[Document]:
    """The folder's files, with ids that stay the same from run to run: without them nothing can be recognised."""
    unembedded = {"excluded_embed_metadata_keys": ["source"], "excluded_llm_metadata_keys": ["source"]}
    return [
        Document(text=file.read_text("utf-8"), id_=file.name, metadata={"source": file.name}, **unembedded)
        for file in sorted(folder.iterdir())
    ]


def ingest(folder: Path, state: Path, index: Path) -> None:
    """One run of a program: take up what was kept in `state`, bring the index in step, keep the state again."""
    store = PEGVectorStore(index, embed_model=embed_model)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=512, chunk_overlap=0), embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    if state.exists():
        pipeline.load(str(state))
    before = encoder.stats.texts
    nodes = pipeline.run(documents=load(folder))
    pipeline.persist(str(state))
    embedded = encoder.stats.texts - before
    print(f"   {len(nodes)} nodes went in, {embedded} of them embedded; the index holds {len(store.get_nodes())}")
    store.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(SIGHTS, Path(temporary, "sights")))
        state, index = Path(temporary, "state"), Path(temporary, "index")

        print("1. A folder of ten files")
        ingest(folder, state, index)

        print("2. Again: nothing changed")
        ingest(folder, state, index)

        print("3. The index is lost, and the docstore with it; the cache is left: nothing is embedded again")
        shutil.rmtree(index)
        (state / "docstore.json").unlink()
        ingest(folder, state, index)

        print("4. A file changes, another is deleted")
        file = folder / "mutianyu.md"
        file.write_text(file.read_text("utf-8").replace("门票：40元", "门票：45元"), "utf-8")
        (folder / "zoo.md").unlink()
        ingest(folder, state, index)


if __name__ == "__main__":
    main()
