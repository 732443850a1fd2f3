"""Vectors in shards on disk, and the best rows of the corpus for every query, shard by shard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from peg_rag.files import open_atomically, sync_file
from peg_rag.index.exact import Neighbours, update_neighbours
from peg_rag.training.data.tokens import Ints

Floats = NDArray[np.float32]
QUERY_BLOCK = 4_096
LEXICAL_BLOCK = 256


@dataclass(frozen=True)
class PairTexts:
    """The pairs' texts and keys; negatives as the file gives them."""

    queries: list[str]
    positives: list[str]
    negatives: list[list[str]]
    query_keys: Ints
    positive_keys: Ints


@dataclass(frozen=True)
class Corpus:
    """Distinct texts; the first `searched` may become negatives, the others are positives whose score is needed."""

    texts: list[str]
    keys: Ints
    searched: int


@dataclass
class Ranking:
    """The best candidates of every pair so far: rows of the corpus (n, k), −1 for none, and cosines (n, k)."""

    rows: NDArray[np.int32]
    scores: Floats


def encode_shards(stem: Path, texts: list[str], encode: Any, shard_rows: int, bar: Any) -> list[Floats]:
    """Vectors in shards of (shard_rows, dimension), mapped from disk; a shard that exists is not encoded again."""
    shards = []
    for number, start in enumerate(range(0, len(texts), shard_rows)):
        file = stem.with_name(f"{stem.name}-{number}.npy")
        rows = texts[start : start + shard_rows]
        if not file.is_file():
            part = file.with_suffix(".part")
            shard = np.lib.format.open_memmap(part, "w+", np.float32, (len(rows), _probe_dimension(encode)))
            for place in range(0, len(rows), QUERY_BLOCK):
                shard[place : place + QUERY_BLOCK] = encode(rows[place : place + QUERY_BLOCK])
                bar.update(len(rows[place : place + QUERY_BLOCK]))
            shard.flush()
            sync_file(part)
            part.replace(file)
        else:
            bar.update(len(rows))
        shards.append(np.load(file, mmap_mode="r"))
    return shards


def _probe_dimension(encode: Any) -> int:
    return int(getattr(encode.__self__, "dimension", 0)) or int(encode(["维"]).shape[1])


def search_corpus(
    work: Path, queries: list[Floats], documents: list[Floats], searched: int, k: int, show_progress: bool
) -> Ranking:
    """The k best of the searched corpus rows for every query; what each shard adds is saved before the next begins."""
    total = sum(map(len, queries))
    k = min(k, searched)
    searched_shards, ranking = _load_progress(work, total, k)
    start = sum(len(shard) for shard in documents[:searched_shards])
    with tqdm(
        total=len(documents), initial=searched_shards, desc="search", unit="shard", disable=not show_progress
    ) as bar:
        for number in range(searched_shards, len(documents)):
            vectors = documents[number][: max(searched - start, 0)]
            if len(vectors):
                _search_shard(np.asarray(vectors), start, queries, ranking)
                _save_progress(work, number + 1, ranking)
            start += len(documents[number])
            bar.update()
    return ranking


def _load_progress(work: Path, total: int, k: int) -> tuple[int, Ranking]:
    """Shards already searched, and what they gave."""
    states = sorted(work.glob("found-*.npz"), key=lambda file: int(file.stem.split("-")[1]))
    if states:
        with np.load(states[-1]) as state:
            return int(states[-1].stem.split("-")[1]), Ranking(state["rows"], state["scores"])
    return 0, Ranking(np.full((total, k), -1, dtype=np.int32), np.full((total, k), -np.inf, dtype=np.float32))


def _save_progress(work: Path, number: int, ranking: Ranking) -> None:
    file = work / f"found-{number}.npz"
    with open_atomically(file) as stream:
        np.savez(stream, rows=ranking.rows, scores=ranking.scores)
    for older in work.glob("found-*.npz"):
        if older != file:
            older.unlink()


def _search_shard(vectors: Floats, start: int, queries: list[Floats], ranking: Ranking) -> None:
    """Merge a shard's best rows into the ranking."""
    place = 0
    for shard in queries:
        rows = slice(place, place + len(shard))
        best = Neighbours(ranking.rows[rows], ranking.scores[rows])
        update_neighbours(best, shard, vectors, first=start)
        place += len(shard)


def search_words(
    work: Path,
    pairs: PairTexts,
    corpus: Corpus,
    queries: list[Floats],
    documents: list[Floats],
    k: int,
    show_progress: bool,
) -> Ranking:
    """BM25's best rows of the corpus for every query, with the encoder's cosines, in BM25's order."""
    from peg_rag.index import PEGIndex

    n = len(pairs.queries)
    ranking = Ranking(np.full((n, k), -1, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32))
    with PEGIndex(work / "lexical", identity="lexical only", dimension=1) as index:
        for start in range(len(index), corpus.searched, QUERY_BLOCK):
            texts = corpus.texts[start : min(start + QUERY_BLOCK, corpus.searched)]
            index.upsert([str(start + i) for i in range(len(texts))], texts, np.ones((len(texts), 1), np.float32))
        with tqdm(total=n, desc="BM25", unit="query", disable=not show_progress) as bar:
            for start in range(0, n, LEXICAL_BLOCK):
                block = pairs.queries[start : start + LEXICAL_BLOCK]
                for i, hits in enumerate(index.search_batch(texts=block, k=k, mode="lexical")):
                    rows = [int(hit.id) for hit in hits]
                    vectors = [vector_at(documents, row) for row in rows]
                    ranking.rows[start + i, : len(rows)] = rows
                    ranking.scores[start + i, : len(rows)] = [
                        vector @ vector_at(queries, start + i) for vector in vectors
                    ]
                bar.update(len(block))
    return ranking


def vector_at(shards: list[Floats], row: int) -> Floats:
    size = len(shards[0])
    vector: Floats = shards[row // size][row % size]
    return vector
