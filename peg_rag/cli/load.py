"""`peg-rag load out/ --store URL`: puts the vectors that `peg-rag embed` wrote into a store."""

from pathlib import Path
from typing import Annotated

import typer


def load(
    vectors: Annotated[Path, typer.Argument(help="What `peg-rag embed` wrote: a Parquet file, or a folder of them.")],
    store: Annotated[
        str, typer.Option("--store", "-s", help="A folder or the URL of a store; created if it does not exist.")
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Also delete from the store what the files do not have.")
    ] = False,
    kind: Annotated[
        str | None, typer.Option(help="How the store searches vectors: flat (exact) or hnsw. Default: as it is, flat.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Documents that are written together.")] = 1000,
    name: Annotated[
        str | None,
        typer.Option(help="What ids begin with, where the files have no ids. Default: the names of the files."),
    ] = None,
) -> None:
    """Load embedded texts into a store. Run again, it loads what is missing."""
    from peg_rag.cli.knowledge import copy_with_progress
    from peg_rag.stores import open_store
    from peg_rag.stores.parquet import ParquetDocuments

    documents = ParquetDocuments(vectors, name)
    with open_store(store, identity=documents.identity, kind=kind) as target:
        documents.refuse_other_files(target)
        copy_with_progress(documents, target, store, delete=delete, batch_size=batch)
