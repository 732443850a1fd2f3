"""Vectors of a stage's texts: computed once, kept on disk, looked up by the text's key.

A component that needs another model's opinion of a text must not run that model, nor its tokenizer, in every step. So
each distinct text is encoded once before training, and the half-precision vectors are mapped from disk: 2·d bytes a
text there, 8 bytes a text in memory. Interrupted work goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peg_rag.files import sync_file, write_atomically
from peg_rag.retriever import Encoder
from peg_rag.training.data.pairs import PairFile, pair_texts, row_negative_keys
from peg_rag.training.data.tokens import Ints

Role = Literal["query", "document"]
BLOCK_ROWS = 4_096
SAVED_BLOCKS = 16  # after so many the work that is done is written down


@dataclass(frozen=True)
class TextVectors:
    """Unit vectors of distinct texts.

    Attributes:
        keys: of the texts, ascending, (n,) int64.
        vectors: (n, d) float16, mapped from disk.
    """

    keys: Ints
    vectors: NDArray[np.float16]

    def find(self, keys: Ints) -> Ints:
        """Where texts stand, −1 for one that is not among them, any shape → the same shape."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


def encode_texts(
    files: Sequence[PairFile], rows: Sequence[Ints], role: Role, encoder: Encoder, stem: Path
) -> TextVectors:
    """Vectors of all queries, or of all positives and negatives, of some rows.

    Args:
        stem: of the two files that hold them; where they exist, and are whole, they are read.
    """
    keys_file = stem.with_name(f"{stem.name}.keys.npy")
    vectors_file = stem.with_name(f"{stem.name}.vectors.npy")
    table = _read_vectors(keys_file, vectors_file)
    if table is None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        keys = np.unique(np.concatenate([block for block, _ in _iterate_blocks(files, rows, role)]))
        encode = encoder.encode_queries if role == "query" else encoder.encode_documents
        part = _fill_vectors(_iterate_blocks(files, rows, role), keys, encode, stem)
        np.save(keys_file, keys)
        sync_file(keys_file)
        part.replace(vectors_file)
        _progress_file(stem).unlink(missing_ok=True)
        table = TextVectors(np.load(keys_file), np.load(vectors_file, mmap_mode="r"))
    return table


def _read_vectors(keys_file: Path, vectors_file: Path) -> TextVectors | None:
    """What an earlier run left; None where it left nothing, or a file is cut off."""
    if not (keys_file.is_file() and vectors_file.is_file()):
        return None
    try:
        table = TextVectors(np.load(keys_file), np.load(vectors_file, mmap_mode="r"))
    except (ValueError, OSError, EOFError):
        return None
    return table if len(table.keys) == len(table.vectors) else None


def _iterate_blocks(
    files: Sequence[PairFile], rows: Sequence[Ints], role: Role
) -> Iterator[tuple[Ints, Callable[[], list[str]]]]:
    """Keys of the texts of some rows at a time, (m,), and what reads the texts themselves."""
    for file, numbers in zip(files, rows, strict=True):
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[start : start + BLOCK_ROWS]
            if role == "query":
                yield file.query_keys[block], lambda file=file, block=block: _read_queries(file, block)  # type: ignore[misc]
            else:
                negatives, _ = row_negative_keys(file, block)
                keys = np.concatenate([file.positive_keys[block], negatives])
                yield keys, lambda file=file, block=block: _read_documents(file, block)  # type: ignore[misc]


def _read_queries(file: PairFile, block: Ints) -> list[str]:
    return [row["query"] for row in pair_texts(file, block)]


def _read_documents(file: PairFile, block: Ints) -> list[str]:
    rows = pair_texts(file, block)
    return [row["positive"] for row in rows] + [text for row in rows for text in row["negatives"]]


def _fill_vectors(blocks: Iterator[tuple[Ints, Callable[[], list[str]]]], keys: Ints, encode: Any, stem: Path) -> Path:
    """Write the vector of each key, going on from an earlier call; the file they are in."""
    part = stem.with_name(f"{stem.name}.part")
    blocks_done = _read_progress(stem) if part.is_file() else 0
    filled = np.zeros(len(keys), dtype=bool)
    vectors = np.load(part, mmap_mode="r+") if blocks_done else None
    for number, (block_keys, read_texts) in enumerate(blocks):
        fresh_keys, first = np.unique(block_keys, return_index=True)
        places = np.searchsorted(keys, fresh_keys)
        is_fresh = ~filled[places]
        filled[places] = True
        if number < blocks_done or not is_fresh.any():
            continue
        texts = read_texts()
        new_vectors = np.asarray(encode([texts[i] for i in first[is_fresh]]), dtype=np.float32)
        if vectors is None:
            vectors = np.lib.format.open_memmap(part, "w+", np.float16, (len(keys), new_vectors.shape[1]))
        vectors[places[is_fresh]] = new_vectors / np.maximum(np.linalg.norm(new_vectors, axis=1, keepdims=True), 1e-12)
        if (number + 1) % SAVED_BLOCKS == 0:
            vectors.flush()
            write_atomically(_progress_file(stem), json.dumps({"blocks": number + 1}).encode())
    assert vectors is not None
    vectors.flush()
    sync_file(part)
    return part


def _progress_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.progress.json")


def _read_progress(stem: Path) -> int:
    file = _progress_file(stem)
    return int(json.loads(file.read_text())["blocks"]) if file.is_file() else 0
