"""`CachedEncoder`: vectors that were computed once are read back, from a file that many processes may share.

Why: evaluating, mining and re-indexing embed the same texts again and again. A vector is kept under a digest of
everything it depends on (weights, pooling, prompts, length limit, type, role, text), so a changed setting never meets
an old vector, and a query never gets the vector of an equal document. Costs 4 × dimension + 32 bytes on disk for each
text, and about 10 µs to read one back. SQLite holds it: writes are atomic, readers do not wait for writers.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.encoder import PEGEncoder, Role, encode_together, locate_lost_texts, make_batcher
from peg_rag.errors import DamagedIndex, WorkerDied
from peg_rag.texts import check_texts

_READ_AT_ONCE = 500  # keys in one SELECT
_WRITE_AT_ONCE = 4_096  # texts encoded between two commits: what a crash can cost


class CachedEncoder:
    """A `PEGEncoder` whose vectors are kept in a file; wherever an encoder goes, this goes.

    Args:
        encoder: makes the vectors that are not there yet.
        path: the cache file, made if it is not there; encoders of any models may share one.

    Raises:
        DamagedIndex: the file is there and is no vector cache.
    """

    def __init__(self, encoder: PEGEncoder, path: str | Path) -> None:
        self.encoder = encoder
        self.path = Path(path)
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._batcher = make_batcher()
        self._connection = self._open_file()

    @property
    def identity(self) -> str:
        return self.encoder.identity

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """As `PEGEncoder.encode_queries`: (n, dimension)."""
        return self._encode_texts(check_texts(texts, what="queries"), "query", show_progress)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """As `PEGEncoder.encode_documents`: (n, dimension)."""
        return self._encode_texts(check_texts(texts, what="documents"), "document", show_progress)

    async def aencode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `PEGEncoder.aencode_queries`: (n, dimension)."""
        checked = check_texts(texts, what="queries")
        return await encode_together(self._batcher, self.encode_queries, checked, "query")

    async def aencode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `PEGEncoder.aencode_documents`: (n, dimension)."""
        checked = check_texts(texts, what="documents")
        return await encode_together(self._batcher, self.encode_documents, checked, "document")

    def close(self) -> None:
        """Finish the async calls that wait, then close the file and the encoder."""
        self._batcher.close()
        with self._lock:
            self._connection.close()
        self.encoder.close()

    def __enter__(self) -> "CachedEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        CachedEncoder.__init__(self, **state)

    def _open_file(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a lost vector is computed again
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            connection.execute("SELECT key, vector FROM vectors LIMIT 1")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise DamagedIndex(f"{self.path} is no vector cache ({error}); remove it or name another file") from error
        return connection

    def _encode_texts(self, texts: list[str], role: Role, show_progress: bool) -> NDArray[np.float32]:
        salt = f"{self.encoder.fingerprint}\0{role}\0".encode()
        keys = [hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        vectors_by_key = self._read_vectors(set(keys))
        missing_texts = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors_by_key}
        self.hits, self.misses = self.hits + len(texts) - len(missing_texts), self.misses + len(missing_texts)
        encode = self.encoder.encode_queries if role == "query" else self.encoder.encode_documents
        new_keys, new_texts = list(missing_texts), list(missing_texts.values())
        for start in range(0, len(new_keys), _WRITE_AT_ONCE):
            part = slice(start, start + _WRITE_AT_ONCE)
            try:
                vectors = encode(new_texts[part], show_progress=show_progress)  # (part, dimension)
            except WorkerDied as error:  # its positions are those in this part
                raise locate_lost_texts(error, error.texts, texts, role) from error
            self._write_vectors(zip(new_keys[part], vectors, strict=True))
            vectors_by_key.update(zip(new_keys[part], vectors, strict=True))
        out = np.empty((len(texts), self.dimension), dtype=np.float32)
        for row, key in enumerate(keys):
            out[row] = vectors_by_key[key]
        return out

    def _read_vectors(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        key_list = list(keys)
        vectors_by_key: dict[bytes, NDArray[np.float32]] = {}
        with self._lock:
            for start in range(0, len(key_list), _READ_AT_ONCE):
                part = key_list[start : start + _READ_AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)
                vectors_by_key.update((key, np.frombuffer(blob, dtype="<f4")) for key, blob in rows)
        return vectors_by_key

    def _write_vectors(self, rows: Iterable[tuple[bytes, NDArray[np.float32]]]) -> None:
        blobs = [(key, vector.astype("<f4").tobytes()) for key, vector in rows]
        with self._lock, self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", blobs)
