"""The rows of an index's SQLite file, read and written by name: every SQL statement outside the postings is here.

All functions work inside the transaction of the connection they are given, and raise `BadRow` for what cannot have been
written by this library: a file may be changed by a failing disk, or by hand.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from typing import Any

import numpy as np

from peg_rag.index.documents import BLOCK, BadRow
from peg_rag.index.filters import Condition
from peg_rag.index.lexical import TOKENIZERS
from peg_rag.index.vectors import KINDS, STORAGES, Array, Stamp, Storage, from_blobs

IN_ONE_STATEMENT = 500  # parameters, of the 32,766 that SQLite allows


@dataclass(frozen=True, slots=True)
class Record:
    """A stored document, as `PEGIndex.get` returns it."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rows:
    """Documents ready to be written: checked, metadata as JSON, vectors as stored bytes."""

    ids: Sequence[str]
    texts: Sequence[str]
    metadatas: Sequence[str]
    vectors: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Rows":
        piece = slice(start, stop)
        return Rows(self.ids[piece], self.texts[piece], self.metadatas[piece], self.vectors[piece])


@dataclass(frozen=True, slots=True)
class State:
    """The one row that says where the index stands.

    Attributes:
        sequence: one more with every committed change.
        next_key: the key of the next document.
        documents: how many there are.
        generation: of the vector file; 0 when there is none.
    """

    sequence: int
    next_key: int
    documents: int
    generation: int

    @classmethod
    def read(cls, connection: Connection) -> "State":
        row = connection.execute("SELECT sequence, next_key, documents, generation FROM state").fetchone()
        if row is None or not _are_whole(row):
            raise BadRow("the row of `state` is missing, or is not four whole numbers")
        return cls(*row)

    def changed(self, **values: int) -> "State":
        return replace(self, sequence=self.sequence + 1, **values)

    def write(self, connection: Connection) -> None:
        values = (self.sequence, self.next_key, self.documents, self.generation)
        connection.execute("UPDATE state SET sequence = ?, next_key = ?, documents = ?, generation = ?", values)


# -- settings and the vector file's stamp -----------------------------------------------------------------------------


def read_settings(connection: Connection) -> dict[str, str]:
    """What the index was made with; empty only while it is being made."""
    settings = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    state = State.read(connection)
    if not settings and not state.sequence:
        return settings
    for name, choices in _CHOICES.items():
        value = settings.get(name)
        if not isinstance(value, str) or (choices and value not in choices):
            known = f"; there are {', '.join(choices)}" if choices else ""
            raise BadRow(f"the stored {name} {value!r} is missing or unknown in the settings{known}")
    dimension = settings.get("dimension", "1" if not state.next_key else None)
    if not isinstance(dimension, str) or not _DIMENSION.fullmatch(dimension):
        raise BadRow(f"the stored dimension {str(dimension)[:20]!r} is not a whole number, 1 or more")
    return settings


_CHOICES: dict[str, Sequence[str]] = {
    "identity": (), "metric": (), "tokenizer": TOKENIZERS, "storage": STORAGES, "kind": KINDS
}  # fmt: skip
_DIMENSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def write_settings(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(settings.items()))


def read_stamp(connection: Connection) -> Stamp:
    row = connection.execute("SELECT kind, size, checksums, keys FROM base").fetchone()
    if row is None:
        raise BadRow("the record of the vector file is missing")
    kind, size, checksums, keys = row
    blobs_are_whole = isinstance(checksums, bytes) and isinstance(keys, bytes) and not len(keys) % 8
    if kind not in KINDS or not _are_whole([size]) or not blobs_are_whole:
        raise BadRow("the record of the vector file is not one")
    stamp = Stamp(kind, size, checksums, keys)
    if len(keys) and (stamp.rows()[0] < 0 or (np.diff(stamp.rows()) <= 0).any()):
        raise BadRow("the keys in the record of the vector file do not ascend")
    return stamp


def write_stamp(connection: Connection, stamp: Stamp, state: State) -> None:
    values = (stamp.kind, stamp.size, stamp.checksums, stamp.keys, state.next_key, state.documents)
    connection.execute("INSERT OR REPLACE INTO base VALUES (1, ?, ?, ?, ?, ?, ?)", values)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has come together since the vector file was made.

    Attributes:
        rows: in the file.
        new: keys given since.
        gone: documents removed since.
        dead: rows of the file and new keys without a document.
    """

    rows: int
    new: int
    gone: int
    dead: int

    @classmethod
    def read(cls, connection: Connection, state: State) -> "Backlog":
        row = connection.execute("SELECT length(keys) / 8, next_key, documents FROM base").fetchone()
        rows, next_key, documents = row or (0, 0, 0)
        if not _are_whole([rows, next_key, documents]):
            raise BadRow("the record of the vector file is not one")
        new = state.next_key - next_key
        return cls(rows, new, documents + new - state.documents, rows + new - state.documents)


# -- documents --------------------------------------------------------------------------------------------------------


def insert_documents(connection: Connection, keys: Sequence[int], rows: Rows) -> None:
    connection.executemany("INSERT INTO documents VALUES (?, ?, ?)", zip(keys, rows.ids, rows.metadatas, strict=True))
    connection.executemany("INSERT INTO bodies VALUES (?, ?, ?)", zip(keys, rows.texts, rows.vectors, strict=True))


def remove_documents(connection: Connection, keys: Sequence[int]) -> int:
    """Take documents out. Their postings stay, masked by a length of 0, until the block is dropped."""
    for table in ("documents", "bodies"):
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])
    by_block: dict[int, list[int]] = {}
    for key in keys:
        by_block.setdefault(key // BLOCK, []).append(key % BLOCK)
    for block, offsets in by_block.items():
        write_lengths(connection, block, offsets, 0)
    return len(keys)


def remove_everything(connection: Connection) -> None:
    for table in ("documents", "bodies", "blocks", "postings"):
        connection.execute(f"DELETE FROM {table}")


def read_raw(connection: Connection, keys: Sequence[int]) -> Rows:
    """Documents as they are stored, ready to be written again under other keys."""
    found = list(_by_key(connection, "id, text, metadata, vector", keys))
    _refuse_missing({row[0] for row in found}, keys)
    return Rows([r[1] for r in found], [r[2] for r in found], [r[3] for r in found], [r[4] for r in found])


def records(connection: Connection, keys: Sequence[int]) -> dict[int, Record]:
    """Documents by key, in the order of `keys`."""
    found = {row[0]: row for row in _by_key(connection, "id, text, metadata", keys)}
    _refuse_missing(found.keys(), keys)
    return {key: _record(*found[key]) for key in keys}


def _record(key: int, name: Any, text: Any, metadata: Any) -> Record:
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(metadata, str):
        raise BadRow(f"the id, text or metadata of the document with key {key} is not a string")
    try:
        fields = json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"the metadata of document {name[:80]!r} cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRow(f"the metadata of document {name[:80]!r} is not a JSON object")
    return Record(name, text, fields)


def vectors_of(connection: Connection, keys: Array, dimension: int, storage: Storage) -> Array:
    """(n, dimension) float32 vectors of (n,) keys."""
    found = dict(_by_key(connection, "vector", keys.tolist()))
    _refuse_missing(found.keys(), keys.tolist())
    return from_blobs([found[key] for key in keys.tolist()], dimension, storage)


def _refuse_missing(keys: Collection[int], wanted: Sequence[int]) -> None:
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise BadRow(f"the row of the document with key {missing[0]} is missing")


def _by_key(connection: Connection, columns: str, keys: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for part in _parts(keys):
        marks = ",".join("?" * len(part))
        sql = f"SELECT key, {columns} FROM documents JOIN bodies USING (key) WHERE key IN ({marks})"
        yield from connection.execute(sql, part)


def vectors_after(
    connection: Connection, key: int, dimension: int, storage: Storage, *, every: int = 1
) -> Iterator[tuple[Array, Array]]:
    """(n,) keys greater than `key`, ascending, and their (n, dimension) vectors, a few thousand at a time.

    Args:
        every: leave out all keys but each `every`-th.
    """
    sql = "SELECT key, vector FROM bodies WHERE key > ? AND key % ? = 0 ORDER BY key"
    cursor = connection.execute(sql, (key, every))
    while rows := cursor.fetchmany(4096):
        keys = np.array([key for key, _ in rows], dtype=np.int64)
        yield keys, from_blobs([blob for _, blob in rows], dimension, storage)


# -- keys -------------------------------------------------------------------------------------------------------------


def keys_of_ids(connection: Connection, ids: Sequence[str]) -> list[int]:
    """Keys of the ids that are there, each once."""
    keys: list[int] = []
    for part in _parts(list(dict.fromkeys(ids))):
        marks = ",".join("?" * len(part))
        keys += [key for (key,) in connection.execute(f"SELECT key FROM documents WHERE id IN ({marks})", part)]
    return keys


def keys_where(connection: Connection, condition: Condition) -> list[int]:
    """Keys of the documents that pass a filter, oldest first."""
    sql = f"SELECT key FROM documents WHERE {condition.sql} ORDER BY key"
    return [key for (key,) in connection.execute(sql, condition.parameters)]


def ids_where(connection: Connection, condition: Condition) -> list[str]:
    sql = f"SELECT id FROM documents WHERE {condition.sql} ORDER BY key"
    names = [name for (name,) in connection.execute(sql, condition.parameters)]
    if not all(isinstance(name, str) for name in names):
        raise BadRow("the id of a document is not a string")
    return names


def count_where(connection: Connection, condition: Condition) -> int:
    sql = f"SELECT count(*) FROM documents WHERE {condition.sql}"
    return int(connection.execute(sql, condition.parameters).fetchone()[0])


def _are_whole(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), IN_ONE_STATEMENT):
        yield values[start : start + IN_ONE_STATEMENT]


# -- blocks of lengths ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which keys are alive, and how long their documents are.

    Attributes:
        numbers: (blocks,) the blocks that exist, ascending.
        lengths: (blocks * BLOCK,) 1 + the number of terms of each document; 0 where there is none.
    """

    numbers: Array
    lengths: Array

    @classmethod
    def read(cls, connection: Connection) -> "Blocks":
        rows = connection.execute("SELECT block, lengths FROM blocks ORDER BY block").fetchall()
        for _, blob in rows:
            _check_lengths(blob)
        lengths = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<u4")
        return cls(np.array([block for block, _ in rows], dtype=np.int64), lengths)

    def alive(self) -> Array:
        """(blocks,) how many documents each has."""
        counts: Array = np.count_nonzero(self.lengths.reshape(-1, BLOCK), axis=1)
        return counts

    def slots(self, keys: Array) -> Array:
        """(n,) places in `lengths` of keys; -1 for keys of blocks that do not exist."""
        if not len(self.numbers) or not len(keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.numbers, keys // BLOCK), len(self.numbers) - 1)
        return np.where(self.numbers[place] == keys // BLOCK, place * BLOCK + keys % BLOCK, -1)

    def keys(self, slots: Array) -> Array:
        keys: Array = self.numbers[slots // BLOCK] * BLOCK + slots % BLOCK
        return keys


def _check_lengths(blob: Any) -> None:
    if not isinstance(blob, bytes) or len(blob) != 4 * BLOCK:
        raise BadRow("a row of document lengths is not whole")


def write_lengths(connection: Connection, block: int, offsets: Any, lengths: Any) -> None:
    """Set the lengths of some keys of a block; 0 says that the document is gone."""
    row = connection.execute("SELECT lengths FROM blocks WHERE block = ?", (block,)).fetchone()
    if row is not None:
        _check_lengths(row[0])
    values = np.zeros(BLOCK, dtype="<u4") if row is None else np.frombuffer(row[0], dtype="<u4").copy()
    values[offsets] = lengths
    connection.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (block, values.tobytes()))


def drop_block(connection: Connection, block: int) -> None:
    connection.execute("DELETE FROM postings WHERE block = ?", (block,))
    connection.execute("DELETE FROM blocks WHERE block = ?", (block,))
