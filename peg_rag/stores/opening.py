"""From a name to a store: a folder is the embedded index, a URL names a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peg_rag.errors import InvalidInput
from peg_rag.index import PEGIndex
from peg_rag.stores.base import Store


def open_store(location: str | Path | None = None, *, identity: str | None = None, **options: Any) -> Store:
    """Open the store at a location, or create it.

    Args:
        location: a folder (None: memory) for the embedded `PEGIndex`;
            `postgresql://user:password@host:5432/database?collection=name` for PostgreSQL with pgvector;
            `milvus://user:password@host:19530/database?collection=name` for Milvus, and `milvus:///path/to/file.db` for
            Milvus Lite. Without `collection` the name is `peg_rag`.
        identity: names the model of the vectors (`PEGEncoder.identity`); compared with the stored one.
        options: of `PEGIndex`, `PostgresStore` or `MilvusStore`.

    Raises:
        InvalidInput: a URL of an unknown scheme.
        IndexMismatch: the store was made with another model, dimension or tokenizer.
        StoreError: the server cannot be reached.
        MissingExtra: the client of that server is not installed.
    """
    if not is_url(location):
        return PEGIndex(location, identity=identity, **options)
    scheme = str(location).partition("://")[0]
    if scheme not in _OPENERS:
        schemes = ", ".join(f"{name}://" for name in _OPENERS)
        raise InvalidInput(f"{scheme}:// names no kind of store; there are {schemes} and folders")
    return _OPENERS[scheme](str(location), identity=identity, **options)


def is_url(location: object) -> bool:
    """Whether a location names a server rather than a folder."""
    return isinstance(location, str) and "://" in location


def _open_postgres(url: str, **options: Any) -> Store:
    from peg_rag.stores.postgres import PostgresStore

    return PostgresStore(url, **options)


def _open_milvus(url: str, **options: Any) -> Store:
    from peg_rag.stores.milvus import MilvusStore

    return MilvusStore(url, **options)


_OPENERS: dict[str, Callable[..., Store]] = {
    "postgresql": _open_postgres,
    "postgres": _open_postgres,
    "milvus": _open_milvus,
}
