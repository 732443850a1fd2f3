"""How alike two words are, by the company they keep: 酒店 and 宾馆, 签字 and 审批, 喂奶 and 哺乳.

Why this exists: people ask in their own words, and no list of synonyms is long enough. The vectors were learnt from
plain text (`train/word_vectors.py`), and like words are only like, not the same (早餐 and 晚餐 are too): it is for the
scorer to weigh that. Costs one small product of matrices for each text that a question is compared with.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.words import STOP_WORDS, Word, tokens_of

_LOW = 0.5  # cosine up to which two words have nothing in common
_HIGH = 0.95  # cosine from which they say the same
_LONGEST = 600  # characters of a text that are compared


@dataclass(frozen=True)
class _Table:
    rows: dict[str, int]
    vectors: NDArray[np.float32]  # (words, dimension), unit length


def measure_likeness(words: tuple[Word, ...], text: str) -> NDArray[np.float32]:
    """(words,) how much each word is like the most similar word of a folded text, from 0 to 1."""
    vectors = text_vectors(text)
    if not words or not len(vectors):
        return np.zeros(len(words), dtype=np.float32)
    cosines = (_word_vectors(words) @ vectors.T).max(axis=1)
    return np.asarray(np.clip((cosines - _LOW) / (_HIGH - _LOW), 0.0, 1.0), dtype=np.float32)


@lru_cache(maxsize=256)
def _word_vectors(words: tuple[Word, ...]) -> NDArray[np.float32]:
    """(words, dimension); zeros for codes and unknown words."""
    table = _read_table()
    vectors = np.zeros((len(words), table.vectors.shape[1]), dtype=np.float32)
    for number, word in enumerate(words):
        if not word.is_code:
            vectors[number] = _vector_of(word.text)
    return vectors


@lru_cache(maxsize=8192)
def _vector_of(word: str) -> NDArray[np.float32]:
    """The word's vector, or the mean of those of its characters' tokens."""
    table = _read_table()
    row = table.rows.get(word)
    if row is not None:
        return np.asarray(table.vectors[row])
    parts = [table.rows[token] for token in word if token in table.rows]
    mean = table.vectors[parts].mean(axis=0) if len(parts) == len(word) > 1 else np.zeros(table.vectors.shape[1])
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), dtype=np.float32)


@lru_cache(maxsize=4096)
def text_vectors(text: str) -> NDArray[np.float32]:
    """(words, dimension) of a text's words that are known, each once."""
    table = _read_table()
    tokens = dict.fromkeys(tokens_of(text[:_LONGEST]))
    rows = [table.rows[token] for token in tokens if token in table.rows and token not in STOP_WORDS]
    return table.vectors[rows]


@lru_cache(maxsize=8192)
def mean_vector(text: str) -> NDArray[np.float32]:
    """(dimension,) the mean of the vectors of a text's words, of unit length; zeros where none is known."""
    mean = text_vectors(text).sum(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), dtype=np.float32)


@cache
def _read_table() -> _Table:
    with (files("peg_rag") / "assets" / "word_vectors.npz").open("rb") as file:
        content = np.load(file, allow_pickle=False)
        words = content["words"].tolist()
        vectors = content["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Table({word: row for row, word in enumerate(words)}, vectors)
