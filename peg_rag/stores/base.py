"""`Store`: what the retriever, the adapters and the commands need of a place where documents are kept.

`PEGIndex` is the embedded one; each other store is a file beside this one. They share the filter language, the terms of
a text, the fusion of both sides and the errors, so a program that works with one works with all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from peg_rag.hits import Hit
from peg_rag.index.encodings import Array
from peg_rag.index.fusion import Method
from peg_rag.index.ranking import Weights
from peg_rag.index.tables import Documents, Record
from peg_rag.index.validation import Mode


class Store(Protocol):
    """Documents by id, with vectors and metadata; dense, lexical and hybrid search under filters.

    Arguments, results and errors are those of `PEGIndex`, whose docstrings say more. Filters are those of
    `peg_rag.index.filters`. Every method may raise `StoreError` when a server does not answer.
    """

    @property
    def identity(self) -> str:
        """The model that made the vectors; "unknown" if none was named."""

    @property
    def dimension(self) -> int | None:
        """Dimension of the vectors; None until the first are written."""

    @property
    def tokenizer(self) -> str:
        """How texts are split into terms."""

    def __len__(self) -> int: ...

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: Array | Sequence[Sequence[float]],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Insert documents, replacing those with the same id. When it returns they survive a crash of the server."""

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or those that match a filter; returns how many there were."""

    def clear(self) -> None:
        """Delete all documents; the settings stay."""

    def persist(self) -> None:
        """Rearrange what was written so that searches are fast; writes are durable without it."""

    def close(self) -> None:
        """Release files and connections."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def get(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Record]:
        """The documents with these ids, in their order and without unknown ids; or all that match a filter."""

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of all documents, or of those that match a filter, oldest first."""

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""

    def export(self, ids: Sequence[str] | None = None, *, batch_size: int = 1000) -> Iterator[Documents]:
        """The documents with these ids, or all, with their vectors, oldest first."""

    def search(
        self,
        vector: Array | Sequence[float] | None = None,
        text: str | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[Hit]:
        """The k best documents for one query, best first."""

    def search_batch(
        self,
        vectors: Array | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[list[Hit]]:
        """`search` for many queries at once."""

    def mmr(
        self,
        vector: Array | Sequence[float],
        *,
        k: int = 10,
        fetch_k: int = 50,
        diversity: float = 0.5,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
    ) -> list[Hit]:
        """k of the fetch_k nearest documents, chosen to differ."""
