"""Keep an index in step with a folder: what changed is embedded again, what was deleted stops being found.

python examples/langchain_incremental.py

LangChain's record manager remembers what was indexed, and `index` compares. Store and records are both on disk, so each
run of a program takes up where the last one ended.
"""

import shutil
import tempfile
from pathlib import Path

from langchain_classic.indexes import SQLRecordManager
from langchain_core.documents import Document
from langchain_core.indexing import index

from peg_rag.langchain import PEGEmbeddings, PEGVectorStore

SIGHTS = Path(__file__).parent / "data" / "sights"
QUESTION = "慕田峪长城的门票多少钱？"

embeddings = PEGEmbeddings(model="peg-mini")  # the small bundled model; PEGEmbeddings() is PEG itself


def synchronise(folder: Path, database: Path) -> PEGVectorStore:
    """Bring the index in the folder `database` in step with the files in `folder`."""
    store = PEGVectorStore(embeddings, path=database)
    # The records are about one model's vectors: with another model everything is new.
    records = SQLRecordManager(embeddings.identity, db_url=f"sqlite:///{database}/records.db")
    records.create_schema()
    documents = [Document(f.read_text("utf-8"), metadata={"source": f.name}) for f in sorted(folder.iterdir())]
    print("  ", index(documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256"))
    return store


def ask(store: PEGVectorStore) -> None:
    best = store.similarity_search(QUESTION, k=1, mode="hybrid")[0]
    price = next(line for line in best.page_content.splitlines() if line.startswith("门票"))
    print(f"   {QUESTION} {price} ({best.metadata['source']})")
    store.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(SIGHTS, Path(temporary, "sights")))
        database = Path(temporary, "index")

        print("1. Index a folder of ten files")
        ask(synchronise(folder, database))

        print("2. Again: nothing changed, nothing is embedded")
        ask(synchronise(folder, database))

        print("3. A price goes up: one file is embedded again")
        file = folder / "mutianyu.md"
        file.write_text(file.read_text("utf-8").replace("门票：40元", "门票：45元"), "utf-8")
        ask(synchronise(folder, database))

        print("4. The file is deleted: the next best answers")
        file.unlink()
        ask(synchronise(folder, database))


if __name__ == "__main__":
    main()
