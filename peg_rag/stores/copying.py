"""Documents from one store to another, or from files of vectors into a store, without embedding anything again.

Every batch is compared with what the target has, and only what differs is written. So a copy that was cut short goes on
where it stopped, and one that is complete costs only the comparison. At the end the target is asked for every id.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from peg_rag.errors import IndexMismatch, InvalidInput, StoreError
from peg_rag.index.filters import dumps
from peg_rag.index.store import UNKNOWN
from peg_rag.index.tables import Documents
from peg_rag.index.validation import validate_count
from peg_rag.stores.base import Store

SAME_COSINE = 0.9995  # of a vector and itself, however a store rounds it
BATCH = 1000
OnProgress = Callable[[int], None]  # documents compared so far


class Source(Protocol):
    """Where documents come from: a store, or `peg_rag.stores.parquet.ParquetDocuments`."""

    @property
    def identity(self) -> str:
        """The model that made the vectors; "unknown" if none was named."""

    def __len__(self) -> int: ...

    def export(self, *, batch_size: int = 1000) -> Iterator[Documents]:
        """All documents, some at a time."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did.

    Attributes:
        documents: of the source.
        written: that were missing in the target or differed there.
        deleted: from the target, because the source does not have them.
        others: left in the target, that the source does not have.
    """

    documents: int
    written: int
    deleted: int
    others: int


def copy_documents(
    source: Source,
    target: Store,
    *,
    delete: bool = False,
    batch_size: int = BATCH,
    on_progress: OnProgress | None = None,
) -> CopyReport:
    """Bring the documents of a source into a store; again, after an interruption or a change, only the differences.

    Args:
        delete: also delete from the target what the source does not have.
        batch_size: documents that are written together.
        on_progress: called with the number of documents compared so far; there are `len(source)`.

    Raises:
        IndexMismatch: the vectors of both are of different models.
        InvalidInput: a document cannot be stored, or the source is empty and `delete` would delete everything.
        StoreError: a server cannot be reached; or, at the end, documents are missing in the target.
    """
    if UNKNOWN not in (source.identity, target.identity) and source.identity != target.identity:
        raise IndexMismatch(
            f"the vectors of the source were made by {source.identity}, those of the target by {target.identity}; "
            "copy into a new store, or index the documents again"
        )
    has_documents = len(target) > 0
    names: set[str] = set()
    written: set[str] = set()
    done = 0
    for documents in source.export(batch_size=max(validate_count(batch_size, "batch_size"), 1)):
        rows = _find_differences(documents, target) if has_documents else range(len(documents))
        _write_rows(documents, rows, target)
        names.update(documents.ids)
        written.update(documents.ids[row] for row in rows)
        done += len(documents)
        if on_progress is not None:
            on_progress(done)
    deleted = _delete_others(target, names, batch_size) if delete else 0
    target.persist()
    return CopyReport(len(names), len(written), deleted, _count_others(target, names))


def _find_differences(documents: Documents, target: Store) -> Sequence[int]:
    """Rows of the documents that the target lacks or has otherwise."""
    stored = {
        name: (batch.texts[row], batch.metadatas[row], batch.vectors[row])
        for batch in target.export(documents.ids, batch_size=len(documents))
        for row, name in enumerate(batch.ids)
    }
    return [row for row, name in enumerate(documents.ids) if not _is_same(documents, row, stored.get(name))]


def _is_same(documents: Documents, row: int, stored: tuple[object, ...] | None) -> bool:
    if stored is None:
        return False
    text, metadata, vector = stored
    if text != documents.texts[row] or not _is_same_metadata(dict(documents.metadatas[row]), metadata):
        return False
    ours = np.asarray(documents.vectors[row], dtype=np.float64)
    theirs = np.asarray(vector, dtype=np.float64)
    if ours.shape != theirs.shape:
        return False
    return bool(ours @ theirs >= SAME_COSINE * np.linalg.norm(ours) * np.linalg.norm(theirs))


def _is_same_metadata(ours: dict[str, Any], theirs: object) -> bool:
    """Whether metadata is what a store has of it, which is JSON: a date, for one, becomes a string."""
    if ours == theirs:
        return True
    try:
        return bool(json.loads(dumps(ours)) == theirs)
    except (TypeError, ValueError, RecursionError):  # cannot be stored, and the store says why
        return False


def _write_rows(documents: Documents, rows: Sequence[int], target: Store) -> None:
    if not rows:
        return
    target.upsert(
        [documents.ids[row] for row in rows],
        [documents.texts[row] for row in rows],
        documents.vectors[list(rows)],
        [documents.metadatas[row] for row in rows],
    )


def _delete_others(target: Store, names: set[str], batch_size: int) -> int:
    if not names:
        raise InvalidInput("the source is empty, and delete=True would empty the target; target.clear() does that")
    others = [name for name in target.ids() if name not in names]
    return sum(target.delete(others[start : start + batch_size]) for start in range(0, len(others), batch_size))


def _count_others(target: Store, names: set[str]) -> int:
    """How many documents of the target the source does not have, after verifying that it has all others."""
    stored = set(target.ids())
    missing = names - stored
    if missing:
        raise StoreError(
            f"{len(missing):,} of {len(names):,} documents are missing in the target, such as {min(missing)!r}; "
            "another program deletes them, or the server lost them. Copy again"
        )
    return len(stored - names)
