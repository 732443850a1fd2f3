"""Reading and writing the tables of an index: every SQL statement except those on postings is here.

All functions run inside the caller's transaction. They raise `DamagedRow` for content that this library cannot have
written, since a file may be changed by a failing disk, or by hand.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from typing import Any

import numpy as np

from peg_rag.index.database import BLOCK, BLOCK_BITS, DamagedRow
from peg_rag.index.encodings import STORAGES, Array, Storage, from_blobs
from peg_rag.index.filters import Condition
from peg_rag.index.lexical import build_postings, write_postings
from peg_rag.index.segment import KINDS
from peg_rag.index.segment_file import Manifest
from peg_rag.index.tokenizers import TOKENIZERS, Tokenizer

PARAMETERS_PER_STATEMENT = 500  # of the 32,766 that SQLite allows


@dataclass(frozen=True, slots=True)
class Record:
    """A stored document, as `PEGIndex.get` returns it."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Documents:
    """Stored documents with their vectors, as `export` yields them and `upsert` takes them.

    Attributes:
        ids, texts, metadatas: one for each document.
        vectors: (documents, dimension) float32 unit rows.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: Array
    metadatas: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedDocuments:
    """Documents as they are stored: valid, with metadata as JSON and vectors as blobs."""

    ids: Sequence[str]
    texts: Sequence[str]
    metadatas: Sequence[str]
    vectors: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "EncodedDocuments":
        return EncodedDocuments(self.ids[part], self.texts[part], self.metadatas[part], self.vectors[part])


@dataclass(frozen=True, slots=True)
class IndexState:
    """The single row with the counters of the index.

    Attributes:
        sequence: one more with every committed change.
        next_key: the key of the next document.
        documents: how many live documents there are.
        generation: of the segment; 0 when there is none.
    """

    sequence: int
    next_key: int
    documents: int
    generation: int

    @classmethod
    def read(cls, connection: Connection) -> "IndexState":
        """The state that the transaction sees."""
        row = connection.execute("SELECT sequence, next_key, documents, generation FROM state").fetchone()
        if row is None or not _are_counts(row):
            raise DamagedRow("the row of `state` is missing, or is not four whole numbers")
        return cls(*row)

    def advance(self, **values: int) -> "IndexState":
        """The state after one more change, with these values replaced."""
        return replace(self, sequence=self.sequence + 1, **values)

    def write(self, connection: Connection) -> None:
        """Store the state."""
        values = (self.sequence, self.next_key, self.documents, self.generation)
        connection.execute("UPDATE state SET sequence = ?, next_key = ?, documents = ?, generation = ?", values)


# -- settings and manifest --------------------------------------------------------------------------------------------


def read_settings(connection: Connection, state: IndexState | None = None) -> dict[str, str]:
    """The settings of the index; empty only while it is being created. `state` is read here unless it is at hand."""
    settings = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    state = state or IndexState.read(connection)
    if not settings and not state.sequence:
        return settings
    for name, choices in _CHOICES.items():
        value = settings.get(name)
        if not isinstance(value, str) or (choices and value not in choices):
            choices_text = f"; there are {', '.join(choices)}" if choices else ""
            raise DamagedRow(f"the stored {name} {value!r} is missing or unknown in the settings{choices_text}")
    dimension = settings.get("dimension", "1" if not state.next_key else None)
    if not isinstance(dimension, str) or not _DIMENSION.fullmatch(dimension):
        raise DamagedRow(f"the stored dimension {str(dimension)[:20]!r} is not a whole number, 1 or more")
    return settings


_CHOICES: dict[str, Sequence[str]] = {
    "identity": (), "metric": (), "tokenizer": TOKENIZERS, "storage": STORAGES, "kind": KINDS
}  # fmt: skip
_DIMENSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def write_settings(connection: Connection, settings: Mapping[str, str]) -> None:
    """Add or replace settings."""
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(settings.items()))


def read_manifest(connection: Connection) -> Manifest:
    """The manifest of the segment file."""
    row = connection.execute("SELECT kind, size, checksums, keys FROM base").fetchone()
    if row is None:
        raise DamagedRow("the manifest of the vector file is missing")
    kind, size, checksums, keys = row
    blobs_are_whole = isinstance(checksums, bytes) and isinstance(keys, bytes) and not len(keys) % 8
    if kind not in KINDS or not _are_counts([size]) or not blobs_are_whole:
        raise DamagedRow("the manifest of the vector file is malformed")
    manifest = Manifest(kind, size, checksums, keys)
    document_keys = manifest.read_keys()
    if len(keys) and (document_keys[0] < 0 or (document_keys[1:] <= document_keys[:-1]).any()):
        raise DamagedRow("the keys in the manifest of the vector file do not ascend")
    return manifest


def write_manifest(connection: Connection, manifest: Manifest, state: IndexState) -> None:
    """Replace the manifest; `state` is what the segment contains."""
    values = (manifest.kind, manifest.size, manifest.checksums, manifest.keys, state.next_key, state.documents)
    connection.execute("INSERT OR REPLACE INTO base VALUES (1, ?, ?, ?, ?, ?, ?)", values)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has changed since the segment was built.

    Attributes:
        rows: of the segment.
        inserted: documents inserted since, whether still live or not.
        deleted: documents deleted since.
        tombstones: rows of the segment and inserted documents that are deleted.
    """

    rows: int
    inserted: int
    deleted: int
    tombstones: int

    @classmethod
    def read(cls, connection: Connection, state: IndexState) -> "Backlog":
        """The backlog of the state that the transaction sees."""
        row = connection.execute("SELECT length(keys) / 8, next_key, documents FROM base").fetchone()
        rows, next_key, documents = row or (0, 0, 0)
        if not _are_counts([rows, next_key, documents]):
            raise DamagedRow("the manifest of the vector file is malformed")
        inserted = state.next_key - next_key
        deleted = documents + inserted - state.documents
        return cls(rows, inserted, deleted, tombstones=rows + inserted - state.documents)


# -- documents --------------------------------------------------------------------------------------------------------


def insert_documents(connection: Connection, tokenizer: Tokenizer, first_key: int, documents: EncodedDocuments) -> None:
    """Insert documents and their postings under consecutive keys, block by block."""
    start = 0
    while start < len(documents):
        block, offset = divmod(first_key + start, BLOCK)
        part = documents[start : start + BLOCK - offset]
        postings = build_postings(tokenizer, part.texts, offset)
        _insert_rows(connection, range(first_key + start, first_key + start + len(part)), part)
        write_postings(connection, block, postings)
        write_lengths(connection, block, slice(offset, offset + len(part)), postings.lengths + 1)
        start += len(part)


def _insert_rows(connection: Connection, keys: Sequence[int], documents: EncodedDocuments) -> None:
    connection.executemany(
        "INSERT INTO documents VALUES (?, ?, ?)", zip(keys, documents.ids, documents.metadatas, strict=True)
    )
    connection.executemany(
        "INSERT INTO bodies VALUES (?, ?, ?)", zip(keys, documents.texts, documents.vectors, strict=True)
    )


def delete_documents(connection: Connection, keys: Sequence[int]) -> int:
    """Delete documents. Their postings stay, masked by a length of 0, until the block is dropped."""
    for table in ("documents", "bodies"):
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])
    by_block: dict[int, list[int]] = {}
    for key in keys:
        by_block.setdefault(key // BLOCK, []).append(key % BLOCK)
    for block, offsets in by_block.items():
        write_lengths(connection, block, offsets, 0)
    return len(keys)


def delete_all_documents(connection: Connection) -> None:
    """Delete all documents and postings."""
    for table in ("documents", "bodies", "blocks", "postings"):
        connection.execute(f"DELETE FROM {table}")


def read_encoded_documents(connection: Connection, keys: Sequence[int]) -> EncodedDocuments:
    """Documents as they are stored, ready to be inserted again under new keys."""
    rows = list(_select_rows(connection, "id, text, metadata, vector", keys))
    _check_complete({row[0] for row in rows}, keys)
    return EncodedDocuments([r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows], [r[4] for r in rows])


def read_records(connection: Connection, keys: Sequence[int]) -> dict[int, Record]:
    """Documents by key, in the order of `keys`."""
    rows = {row[0]: row for row in _select_rows(connection, "id, text, metadata", keys)}
    _check_complete(rows.keys(), keys)
    return {key: _decode_record(*rows[key]) for key in keys}


def read_documents(connection: Connection, keys: Sequence[int], dimension: int, storage: Storage) -> Documents:
    """Documents with their vectors, in the order of `keys`."""
    records = list(read_records(connection, keys).values())
    return Documents(
        [record.id for record in records],
        [record.text for record in records],
        read_vectors(connection, np.array(keys, dtype=np.int64), dimension, storage),
        [record.metadata for record in records],
    )


def _decode_record(key: int, name: Any, text: Any, metadata: Any) -> Record:
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(metadata, str):
        raise DamagedRow(f"the id, text or metadata of the document with key {key} is not a string")
    try:
        fields = _parse_json(metadata)
    except (ValueError, RecursionError) as error:
        raise DamagedRow(f"the metadata of document {name[:80]!r} cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DamagedRow(f"the metadata of document {name[:80]!r} is not a JSON object")
    return Record(name, text, fields)


def _parse_json(text: str) -> Any:
    """`json.loads`, in about half its time for an object without white space around it, as it is stored."""
    if text.startswith("{"):
        value, end = _JSON.raw_decode(text)
        if end == len(text):
            return value
    return json.loads(text)


_JSON = json.JSONDecoder()


def read_vectors(connection: Connection, keys: Array, dimension: int, storage: Storage) -> Array:
    """(n, dimension) float32 vectors of (n,) keys."""
    blobs = dict(_select_rows(connection, "vector", keys.tolist()))
    _check_complete(blobs.keys(), keys.tolist())
    return from_blobs([blobs[key] for key in keys.tolist()], dimension, storage)


def _check_complete(present: Collection[int], keys: Sequence[int]) -> None:
    missing = [key for key in keys if key not in present]
    if missing:
        raise DamagedRow(f"the row of the document with key {missing[0]} is missing")


def _select_rows(connection: Connection, columns: str, keys: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for part in _split_values(keys):
        marks = ",".join("?" * len(part))
        sql = f"SELECT key, {columns} FROM documents JOIN bodies USING (key) WHERE key IN ({marks})"
        yield from connection.execute(sql, part)


def read_vectors_after(
    connection: Connection, key: int, dimension: int, storage: Storage, *, every: int = 1
) -> Iterator[tuple[Array, Array]]:
    """(n,) keys greater than `key`, ascending, and their (n, dimension) vectors, a few thousand at a time.

    Args:
        every: read only the keys that are a multiple of this, as a sample.
    """
    sql = "SELECT key, vector FROM bodies WHERE key > ? AND key % ? = 0 ORDER BY key"
    cursor = connection.execute(sql, (key, every))
    while rows := cursor.fetchmany(4096):
        keys = np.array([key for key, _ in rows], dtype=np.int64)
        yield keys, from_blobs([blob for _, blob in rows], dimension, storage)


# -- keys -------------------------------------------------------------------------------------------------------------


def find_keys_of_ids(connection: Connection, ids: Sequence[str]) -> list[int]:
    """Keys of the ids that exist, without repetition."""
    keys: list[int] = []
    for part in _split_values(list(dict.fromkeys(ids))):
        marks = ",".join("?" * len(part))
        keys += [key for (key,) in connection.execute(f"SELECT key FROM documents WHERE id IN ({marks})", part)]
    return keys


def find_keys(connection: Connection, condition: Condition) -> list[int]:
    """Keys of the documents that pass a filter, oldest first."""
    sql = f"SELECT key FROM documents WHERE {condition.sql} ORDER BY key"
    return [key for (key,) in connection.execute(sql, condition.parameters)]


def find_keys_after(connection: Connection, key: int, limit: int) -> list[int]:
    """The next keys greater than `key`, oldest first."""
    sql = "SELECT key FROM documents WHERE key > ? ORDER BY key LIMIT ?"
    return [key for (key,) in connection.execute(sql, (key, limit))]


def find_ids(connection: Connection, condition: Condition) -> list[str]:
    """Ids of the documents that pass a filter, oldest first."""
    sql = f"SELECT id FROM documents WHERE {condition.sql} ORDER BY key"
    names = [name for (name,) in connection.execute(sql, condition.parameters)]
    if not all(isinstance(name, str) for name in names):
        raise DamagedRow("the id of a document is not a string")
    return names


def count_documents(connection: Connection, condition: Condition) -> int:
    """How many documents pass a filter."""
    sql = f"SELECT count(*) FROM documents WHERE {condition.sql}"
    return int(connection.execute(sql, condition.parameters).fetchone()[0])


def _are_counts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _split_values(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), PARAMETERS_PER_STATEMENT):
        yield values[start : start + PARAMETERS_PER_STATEMENT]


# -- blocks of lengths ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """The live documents and their lengths, as arrays over *slots*.

    The slot of a key is the position of its block among the existing blocks, times `BLOCK`, plus its offset there.

    Attributes:
        numbers: (blocks,) the blocks that exist, ascending.
        lengths: (slots,) 1 + the number of terms of each document; 0 for a deleted or missing one.
    """

    numbers: Array
    lengths: Array

    @classmethod
    def read(cls, connection: Connection) -> "Blocks":
        """All blocks."""
        rows = connection.execute("SELECT block, lengths FROM blocks ORDER BY block").fetchall()
        for _, blob in rows:
            _check_lengths(blob)
        lengths = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<u4")
        return cls(np.array([block for block, _ in rows], dtype=np.int64), lengths)

    def count_live(self) -> Array:
        """(blocks,) number of live documents."""
        counts: Array = np.count_nonzero(self.lengths.reshape(-1, BLOCK), axis=1)
        return counts

    def slots_of_keys(self, keys: Array) -> Array:
        """(n,) slots of (n,) ascending keys; -1 for keys of blocks that do not exist."""
        slots = np.full(len(keys), -1, dtype=np.int64)
        blocks = keys >> BLOCK_BITS
        starts = np.searchsorted(blocks, self.numbers)
        stops = np.searchsorted(blocks, self.numbers, side="right")
        for position in np.flatnonzero(stops > starts).tolist():
            part = slice(starts[position], stops[position])
            slots[part] = keys[part] + BLOCK * (position - self.numbers[position])
        return slots

    def keys_of_slots(self, slots: Array) -> Array:
        """(n,) keys of (n,) slots."""
        keys: Array = self.numbers[slots // BLOCK] * BLOCK + slots % BLOCK
        return keys


def _check_lengths(blob: Any) -> None:
    if not isinstance(blob, bytes) or len(blob) != 4 * BLOCK:
        raise DamagedRow("a row of document lengths has the wrong size")


def write_lengths(connection: Connection, block: int, offsets: Any, lengths: Any) -> None:
    """Set the lengths of some documents of a block; 0 marks a deleted document."""
    row = connection.execute("SELECT lengths FROM blocks WHERE block = ?", (block,)).fetchone()
    if row is not None:
        _check_lengths(row[0])
    values = np.zeros(BLOCK, dtype="<u4") if row is None else np.frombuffer(row[0], dtype="<u4").copy()
    values[offsets] = lengths
    connection.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (block, values.tobytes()))


def drop_block(connection: Connection, block: int) -> None:
    """Delete the lengths and postings of a block."""
    connection.execute("DELETE FROM postings WHERE block = ?", (block,))
    connection.execute("DELETE FROM blocks WHERE block = ?", (block,))
