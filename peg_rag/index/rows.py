"""The rows of an index's SQLite file, read and written by name: every SQL statement outside the postings is here.

All functions work inside the transaction of the connection they are given.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from typing import Any

import numpy as np

from peg_rag.errors import DamagedIndex
from peg_rag.index.documents import BLOCK
from peg_rag.index.filters import Condition
from peg_rag.index.vectors import Array, Stamp, Storage, from_blobs

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
        if row is None:
            raise DamagedIndex("the state row is missing from the index's SQLite file; restore it from a copy")
        return cls(*row)

    def changed(self, **values: int) -> "State":
        return replace(self, sequence=self.sequence + 1, **values)

    def write(self, connection: Connection) -> None:
        values = (self.sequence, self.next_key, self.documents, self.generation)
        connection.execute("UPDATE state SET sequence = ?, next_key = ?, documents = ?, generation = ?", values)


# -- settings and the vector file's stamp -----------------------------------------------------------------------------


def read_settings(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def write_settings(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(settings.items()))


def read_stamp(connection: Connection) -> Stamp:
    row = connection.execute("SELECT kind, size, checksums, keys FROM base").fetchone()
    if row is None:
        raise DamagedIndex("the record of the vector file is missing from the SQLite file; restore it from a copy")
    return Stamp(*row)


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
    return Rows([r[1] for r in found], [r[2] for r in found], [r[3] for r in found], [r[4] for r in found])


def records(connection: Connection, keys: Sequence[int]) -> dict[int, Record]:
    """Documents by key, in the order of `keys`."""
    found = {row[0]: row for row in _by_key(connection, "id, text, metadata", keys)}
    return {key: Record(found[key][1], found[key][2], json.loads(found[key][3])) for key in keys if key in found}


def vectors_of(connection: Connection, keys: Array, dimension: int, storage: Storage) -> Array:
    """(n, dimension) float32 vectors of (n,) keys."""
    found = dict(_by_key(connection, "vector", keys.tolist()))
    return from_blobs([found[key] for key in keys.tolist()], dimension, storage)


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
    return [name for (name,) in connection.execute(sql, condition.parameters)]


def count_where(connection: Connection, condition: Condition) -> int:
    sql = f"SELECT count(*) FROM documents WHERE {condition.sql}"
    return int(connection.execute(sql, condition.parameters).fetchone()[0])


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
        lengths = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<u4")
        if len(lengths) != len(rows) * BLOCK:
            raise DamagedIndex(
                "a row of document lengths is not whole in the index's SQLite file; restore it from a copy"
            )
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


def write_lengths(connection: Connection, block: int, offsets: Any, lengths: Any) -> None:
    """Set the lengths of some keys of a block; 0 says that the document is gone."""
    row = connection.execute("SELECT lengths FROM blocks WHERE block = ?", (block,)).fetchone()
    values = np.zeros(BLOCK, dtype="<u4") if row is None else np.frombuffer(row[0], dtype="<u4").copy()
    values[offsets] = lengths
    connection.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (block, values.tobytes()))


def drop_block(connection: Connection, block: int) -> None:
    connection.execute("DELETE FROM postings WHERE block = ?", (block,))
    connection.execute("DELETE FROM blocks WHERE block = ?", (block,))
