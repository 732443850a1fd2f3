"""Approximate search for mining in corpora too large for exact search: inverted lists of product-quantised vectors.

Ten million passages of 256 dimensions are 10 GB in float32, and 100,000 queries against them 5·10¹⁴ operations. Here a
vector is 32 bytes in one of √n lists (product quantisation, Jégou et al. 2011); a query looks into a few lists, and its
best candidates are scored again by the exact vectors, which are read shard by shard. Costs n·√n·2·d operations to fill
the lists, 2·d operations for each candidate, and memory for the codes (40 bytes a vector) and one shard.

Everything that is finished lies in a file of its own (the trained lists, each shard's codes, each block of queries'
candidates, each shard's scores), so interrupted work goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from peg_rag.extras import require
from peg_rag.files import open_atomically
from peg_rag.training.mining.search import Floats, Ranking

TRAINED_VECTORS = 40  # a list; fewer make poor lists
ROUNDS = 10  # of k-means
CODE_DIMENSIONS = 8  # that one byte of a code stands for
SPARE_CANDIDATES = 4  # times k: what quantisation puts below others, the exact score brings up again
SCORED_AT_ONCE = 65_536  # pairs of a query and a candidate


@dataclass(frozen=True)
class ApproximateOptions:
    """How thoroughly is searched.

    Attributes:
        probes: lists that each query looks into.
        query_rows: queries whose candidates are saved together.
    """

    probes: int = 32
    query_rows: int = 8_192


def search_approximately(
    work: Path,
    queries: Sequence[Floats],
    documents: Sequence[Floats],
    searched: int,
    k: int,
    *,
    options: ApproximateOptions | None = None,
    show_progress: bool = False,
) -> Ranking:
    """The k best of the first `searched` document vectors for every query, nearly all of them, with exact cosines.

    Args:
        work: a folder for what is finished; a later call with the same vectors goes on from it.
        queries, documents: shards of unit vectors (rows, d), float32 or float16, usually mapped from disk. All but the
            last shard of documents are equally long.
        searched: document vectors that are searched, from the first on.
    """
    options = options or ApproximateOptions()
    work.mkdir(parents=True, exist_ok=True)
    shards = _cut_shards(documents, searched)
    k = min(k, searched)
    index = _load_index(work, shards, options, show_progress)
    candidates = _find_candidates(work, index, queries, min(SPARE_CANDIDATES * k, searched), options, show_progress)
    del index
    candidates.sort(axis=1)  # equal scores are then in order of position, as in exact search
    scores = _score_candidates(work, queries, shards, candidates, show_progress)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(candidates, order, axis=1)
    return Ranking(rows, np.take_along_axis(scores, order, axis=1))


def _cut_shards(documents: Sequence[Floats], searched: int) -> list[Floats]:
    """The shards' rows that are searched; shards without any are left out."""
    shards = []
    left = searched
    for shard in documents:
        if left > 0:
            shards.append(shard[:left])
        left -= len(shard)
    return shards


def _load_index(work: Path, shards: Sequence[Floats], options: ApproximateOptions, show_progress: bool) -> Any:
    """The index of all shards: trained, filled and joined, as far as that was not done before."""
    faiss = require("faiss", "train")
    trained = work / "trained.faiss"
    if not trained.is_file():
        _save_index(trained, _train_index(shards))
    start = 0
    bar = tqdm(shards, desc="quantise", unit="shard", disable=not show_progress)
    for number, shard in enumerate(bar):
        file = work / f"codes-{number}.faiss"
        if not file.is_file():
            part = _read_index(trained)
            part.add_with_ids(_to_float32(shard), np.arange(start, start + len(shard)))
            _save_index(file, part)
        start += len(shard)
    index = _read_index(trained)
    for number in range(len(shards)):
        index.merge_from(_read_index(work / f"codes-{number}.faiss"), 0)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", min(options.probes, index.nlist))
    return index


def _train_index(shards: Sequence[Floats]) -> Any:
    """Lists and codes learned from an even sample of the vectors."""
    faiss = require("faiss", "train")
    total = sum(map(len, shards))
    dimension = shards[0].shape[1]
    lists = min(2 ** round(np.log2(total**0.5)), max(total // TRAINED_VECTORS, 1))
    step = max(total // (TRAINED_VECTORS * lists), 1)
    sample = np.concatenate([_to_float32(shard[::step]) for shard in shards])
    width = next(width for width in range(max(dimension // CODE_DIMENSIONS, 1), 0, -1) if dimension % width == 0)
    bits = int(np.clip(np.log2(len(sample) / TRAINED_VECTORS), 1, 8))
    quantizer = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(quantizer, dimension, lists, width, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = ROUNDS
    index.cp.spherical = True
    index.train(sample)
    return index


def _find_candidates(
    work: Path, index: Any, queries: Sequence[Floats], count: int, options: ApproximateOptions, show_progress: bool
) -> NDArray[np.int32]:
    """Rows of each query's candidates, −1 for none, (queries, count)."""
    blocks = [
        shard[at : at + options.query_rows] for shard in queries for at in range(0, len(shard), options.query_rows)
    ]
    found = []
    for number, block in enumerate(tqdm(blocks, desc="search", unit="block", disable=not show_progress)):
        file = work / f"candidates-{number}.npy"
        if not file.is_file():
            _, rows = index.search(_to_float32(block), count)
            _save_array(file, rows.astype(np.int32))
        found.append(np.load(file))
    return np.concatenate(found)


def _score_candidates(
    work: Path,
    queries: Sequence[Floats],
    shards: Sequence[Floats],
    candidates: NDArray[np.int32],
    show_progress: bool,
) -> Floats:
    """The exact cosine of each candidate, −inf for none, (queries, count); each shard is read once."""
    scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
    flat = candidates.ravel()
    order = np.argsort(flat, kind="stable")  # shard by shard
    vectors = np.concatenate([_to_float32(shard) for shard in queries])
    start = 0
    for number, shard in enumerate(tqdm(shards, desc="score", unit="shard", disable=not show_progress)):
        low, high = np.searchsorted(flat, [start, start + len(shard)], sorter=order)
        places = order[low:high]
        file = work / f"scores-{number}.npy"
        if not file.is_file():
            rows = flat[places].astype(np.int64) - start
            _save_array(file, _multiply_pairs(vectors, places // candidates.shape[1], shard, rows))
        scores.ravel()[places] = np.load(file)
        start += len(shard)
    return scores


def _multiply_pairs(
    queries: Floats, which: NDArray[np.signedinteger[Any]], shard: Floats, rows: NDArray[np.int64]
) -> Floats:
    """Inner products of queries and the shard's rows, pair by pair, (pairs,)."""
    documents = np.array(shard)  # one read from the first byte to the last
    products = np.empty(len(rows), dtype=np.float32)
    for at in range(0, len(rows), SCORED_AT_ONCE):
        part = slice(at, at + SCORED_AT_ONCE)
        products[part] = np.einsum("nd,nd->n", queries[which[part]], _to_float32(documents[rows[part]]))
    return products


def _to_float32(vectors: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _save_index(file: Path, index: Any) -> None:
    faiss = require("faiss", "train")
    with open_atomically(file) as stream:
        stream.write(faiss.serialize_index(index))


def _read_index(file: Path) -> Any:
    faiss = require("faiss", "train")
    return faiss.deserialize_index(np.fromfile(file, dtype=np.uint8))


def _save_array(file: Path, array: NDArray[Any]) -> None:
    with open_atomically(file) as stream:
        np.save(stream, array)
