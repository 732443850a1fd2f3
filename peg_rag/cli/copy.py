"""`peg-rag copy kb postgresql://…`: brings a store's documents to another place without embedding them again."""

from typing import Annotated

import typer

from peg_rag.cli.messages import translate


def copy(
    source: Annotated[str, typer.Argument(help="The store to copy: a folder or a URL.")],
    target: Annotated[str, typer.Argument(help="Where to; created if it does not exist.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Also delete from the target what the source does not have.")
    ] = False,
    kind: Annotated[
        str | None, typer.Option(help="How the target searches vectors: flat (exact) or hnsw. Default: as it is, flat.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Documents that are written together.")] = 1000,
) -> None:
    """Copy a store to another place, vectors included. Run again, it copies what has changed."""
    from peg_rag.cli.knowledge import copy_with_progress
    from peg_rag.errors import InvalidInput
    from peg_rag.stores import open_store

    if source == target:
        raise InvalidInput(translate("source and target are the same store"))
    with open_store(source, read_only=True) as documents:
        options = {"identity": documents.identity, "tokenizer": documents.tokenizer, "kind": kind}
        with open_store(target, **options) as store:
            copy_with_progress(documents, store, target, delete=delete, batch_size=batch)
