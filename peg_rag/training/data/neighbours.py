"""Batches of neighbours: rows whose texts are near each other are hard negatives for each other, without mining.

Sample4Geo (Deuser et al. 2023, arXiv 2303.11851) fills batches with each example's nearest neighbours, NGAME (Dahiya et
al. 2022, arXiv 2207.04452) with clusters. Here both are an order of a source's rows, of which batches are consecutive
pieces, so that every row is used once an epoch. Sample4Geo takes its first neighbours from what is known without a
model, there geography; here `group_epochs` begins with rows of one document, place or category. Nearness is that of the
model at the beginning of the stage (or round): the order is then known before the first step, and a resumed run finds
it on disk.

`neighbours` costs an exact search up to `EXACT_ROWS` rows (2·n²·d operations), an approximate one above, and
4·among bytes a row on disk; `clusters` costs log2(n / size) passes over the vectors for each size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from peg_rag.extras import require
from peg_rag.files import open_atomically
from peg_rag.index.exact import exact_search
from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from peg_rag.training.data.pairs import PairFile
    from peg_rag.training.data.tokens import Ints

Floats = NDArray[np.float32]
EXACT_ROWS = 200_000
PROBES = 32  # lists of an approximate index that are searched
BLOCK_ROWS = 4_096
SPLIT_ROUNDS = 4  # of two-means before a cluster is cut at the median
_SALT_SEEDS, _SALT_CHOICE, _SALT_CLUSTERS, _SALT_SPLIT, _SALT_GROUPS, _SALT_SINGLES = 24, 25, 26, 27, 28, 29


class NeighbourOptions(Options):
    """Each row followed by its neighbours."""

    kind: Literal["neighbours"]
    nearest: int = Field(default=32, ge=1)
    """Neighbours of a row that come first."""
    random: int = Field(default=32, ge=0)
    """Others that are drawn among the next ones."""
    among: int = Field(default=128, ge=1)
    """Neighbours that are known of each row."""
    group_epochs: int = Field(default=0, ge=0)
    """Epochs in which rows of one group (`columns.group`: a document, a place, a category) stand together instead."""

    @model_validator(mode="after")
    def _check_counts(self) -> "NeighbourOptions":
        if self.nearest + self.random > self.among:
            raise ValueError(f"nearest + random = {self.nearest + self.random} exceed among={self.among}; raise among")
        return self

    def build(self, stage: StageContext) -> "NeighbourOrder":
        """The order of a stage's rows; searches the neighbours the first time."""
        graphs = []
        for number, (file, rows) in enumerate(stage_rows(stage)):
            path = stage.folder / f"neighbours-{number}.npy"
            if not path.is_file():
                queries, documents = encode_rows(file, rows, stage)
                _save_array(path, search_neighbours(queries, documents, self.among))
            graphs.append(np.load(path, mmap_mode="r"))
        return NeighbourOrder(self, graphs, stage.seed, [file.groups[rows] for file, rows in stage_rows(stage)])


class NeighbourOrder:
    """A row, its nearest neighbours that are left, some random ones of the next, and on to another row. A `RowOrder`.

    Args:
        graphs: for each source the neighbours of its rows, the nearest first, (n, among) int32, −1 for none.
        groups: for each source the groups of its rows, −1 for none, (n,); only needed where the options ask for them.
    """

    def __init__(
        self,
        options: NeighbourOptions,
        graphs: "Sequence[NDArray[np.int32]]",
        seed: int,
        groups: "Sequence[Ints]" = (),
    ) -> None:
        self._options = options
        self._graphs = graphs
        self._groups = groups
        self._seed = seed
        self._orders: dict[int, tuple[int, Ints]] = {}  # by source: the last epoch and its order

    def rows(self, source: int, epoch: int) -> "Ints":
        """A permutation of the source's rows."""
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            arrange = self._arrange_groups if epoch < self._options.group_epochs else self._arrange_rows
            cached = (epoch, arrange(source, epoch))
            self._orders[source] = cached
        return cached[1]

    def _arrange_groups(self, source: int, epoch: int) -> "Ints":
        """Group by group, in random order, with rows without a group scattered between."""
        from peg_rag.training.data.sampler import Permutation, mix

        groups = self._groups[source]
        rows = np.arange(len(groups))
        of_group = mix(groups.view(np.uint64), self._seed, _SALT_GROUPS, source, epoch)
        of_row = mix(rows.view(np.uint64), self._seed, _SALT_SINGLES, source, epoch)
        within = Permutation(len(rows), self._seed, _SALT_SEEDS, source)(rows, epoch)
        return np.lexsort((within, np.where(groups >= 0, of_group, of_row)))

    def _arrange_rows(self, source: int, epoch: int) -> "Ints":
        from peg_rag.training.data.sampler import Permutation, mix

        graph = self._graphs[source]
        n = len(graph)
        is_used = np.zeros(n, dtype=bool)
        groups = []
        for row in Permutation(n, self._seed, _SALT_SEEDS, source)(np.arange(n), epoch).tolist():
            if is_used[row]:
                continue
            is_used[row] = True
            neighbours = np.asarray(graph[row], dtype=np.int64)
            neighbours = neighbours[neighbours >= 0]
            neighbours = neighbours[~is_used[neighbours]]
            farther = neighbours[self._options.nearest :]
            draws = mix(farther.view(np.uint64), self._seed, _SALT_CHOICE, epoch)
            group = np.concatenate(
                [neighbours[: self._options.nearest], farther[np.argsort(draws)[: self._options.random]]]
            )
            is_used[group] = True
            groups.append(np.concatenate([[row], group]))
        return np.concatenate(groups)


class ClusterOptions(Options):
    """Clusters of near rows, in random order."""

    kind: Literal["clusters"]
    sizes: tuple[int, ...] = (16, 32, 64)
    """Rows in a cluster in the first epoch, the second, …; the last holds for all that follow."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 2:
            raise ValueError(f"sizes={list(sizes)} must be at least one number of 2 or more")
        return sizes

    def build(self, stage: StageContext) -> "ClusterOrder":
        """The order of a stage's rows; finds the clusters the first time."""
        orders = []
        for number, (file, rows) in enumerate(stage_rows(stage)):
            paths = [stage.folder / f"clusters-{number}-{size}.npy" for size in self.sizes]
            if not all(path.is_file() for path in paths):
                queries, documents = encode_rows(file, rows, stage)
                for path, size in zip(paths, self.sizes, strict=True):
                    _save_array(path, balanced_clusters(queries + documents, size, stage.seed))
            orders.append([np.load(path) for path in paths])
        return ClusterOrder(self, orders, stage.seed)


class ClusterOrder:
    """Clusters of near rows in an order that changes every epoch. A `RowOrder`.

    Args:
        clusters: for each source and size the rows, cluster by cluster, (n,).
    """

    def __init__(self, options: ClusterOptions, clusters: "Sequence[Sequence[Ints]]", seed: int) -> None:
        self._sizes = options.sizes
        self._clusters = clusters
        self._seed = seed

    def rows(self, source: int, epoch: int) -> "Ints":
        """A permutation of the source's rows."""
        from peg_rag.training.data.sampler import Permutation

        stage = min(epoch, len(self._sizes) - 1)
        rows = self._clusters[source][stage]
        cuts = _cluster_bounds(len(rows), self._sizes[stage])
        order = Permutation(len(cuts) - 1, self._seed, _SALT_CLUSTERS, source)(np.arange(len(cuts) - 1), epoch)
        return np.concatenate([rows[cuts[cluster] : cuts[cluster + 1]] for cluster in order.tolist()])


def stage_rows(stage: StageContext) -> "Iterator[tuple[PairFile, Ints]]":
    """Each file with its rows that are trained on."""
    return zip(stage.files, stage.rows, strict=True)


def encode_rows(file: "PairFile", rows: "Ints", stage: StageContext) -> tuple[Floats, Floats]:
    """Vectors of the queries and of the positives of some rows, (n, d) each, by the stage's model."""
    from peg_rag.training.data.pairs import pair_texts

    queries = []
    documents = []
    for start in range(0, len(rows), BLOCK_ROWS):
        texts = pair_texts(file, rows[start : start + BLOCK_ROWS])
        queries.append(stage.encoder.encode_queries([row["query"] for row in texts]))
        documents.append(stage.encoder.encode_documents([row["positive"] for row in texts]))
    return np.concatenate(queries), np.concatenate(documents)


def search_neighbours(queries: Floats, documents: Floats, among: int) -> NDArray[np.int32]:
    """For each query the rows of the documents nearest to it, its own left out, (n, among), −1 for none."""
    n = len(documents)
    width = min(among + 1, n)
    search = _prepare_search(documents, width)
    neighbours = np.full((n, among), -1, dtype=np.int32)
    for start in range(0, n, BLOCK_ROWS):
        rows = search(queries[start : start + BLOCK_ROWS])  # (q, width)
        own_rows = np.arange(start, start + len(rows))[:, None]
        order = np.argsort(rows == own_rows, axis=1, kind="stable")  # its own document last
        nearest = np.take_along_axis(rows, order, axis=1)
        nearest[nearest == own_rows] = -1
        neighbours[start : start + len(rows), : min(width, among)] = nearest[:, :among]
    return neighbours


def _prepare_search(documents: Floats, k: int) -> Callable[[Floats], NDArray[np.integer[Any]]]:
    """What gives the k nearest documents of some queries, (q, d) → (q, k); −1 for none."""
    if len(documents) <= EXACT_ROWS:
        return lambda queries: exact_search(queries, documents, k).indices
    faiss = require("faiss", "train")
    dimension = documents.shape[1]
    lists = int(4 * len(documents) ** 0.5)
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(documents)
    index.add(documents)
    index.nprobe = PROBES
    return lambda queries: index.search(queries, k)[1]


def balanced_clusters(vectors: Floats, size: int, seed: int) -> "Ints":
    """Rows cluster by cluster, (n,): halves by two-means, cut at the median, until a part is one cluster.

    The parts are those that `_cluster_bounds` cuts: of `size` rows, the last of what is left.
    """
    rows = np.arange(len(vectors))
    pending = [(0, len(rows))]
    while pending:
        start, stop = pending.pop()
        clusters = -(-(stop - start) // size)
        if clusters < 2:
            continue
        middle = start + clusters // 2 * size
        part = rows[start:stop]
        scores = _split_scores(vectors[part], seed + start)
        rows[start:stop] = part[np.argsort(-scores, kind="stable")]
        pending += [(start, middle), (middle, stop)]
    return rows


def _split_scores(vectors: Floats, seed: int) -> Floats:
    """How much nearer each vector is to the first of two means than to the second, (n,)."""
    from peg_rag.training.data.sampler import smallest_hashes

    first, second = vectors[smallest_hashes(np.arange(len(vectors)), 2, seed, _SALT_SPLIT)]
    for _ in range(SPLIT_ROUNDS):
        scores = vectors @ (first - second)
        nearer = scores > np.median(scores)
        if not nearer.any():
            break
        first, second = (_unit_mean(vectors[side]) for side in (nearer, ~nearer))
    split: Floats = vectors @ (first - second)
    return split


def _unit_mean(vectors: Floats) -> Floats:
    mean: Floats = vectors.mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _cluster_bounds(n: int, size: int) -> list[int]:
    return [*range(0, n, size), n]


def _save_array(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as file:
        np.save(file, array)
