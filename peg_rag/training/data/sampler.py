"""Which rows make up which batch: a pure function of the seed and the step.

A run that is resumed must see the very batches it would have seen, on any number of ranks, and replaying a loader for
100,000 steps takes hours. So nothing is remembered here. A slot (a step, or one place of a mixed batch) is sent through
a keyed permutation of all slots of the run, where it lands names its source and how many slots of that source came
before; that number is a place in the source's own endless stream of shuffled epochs. Seeking to any step costs the same
microseconds as going on. Every row of a source is thus used equally often, to within one, except where a batch would
hold a text twice: such a row gives way to one drawn at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DataError, InvalidInput
from peg_rag.training.extension import RowOrder

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Mixing = Literal["one_source", "mixed"]

ROUNDS = 6  # Feistel rounds; three make a pseudo-random permutation of a large domain, small domains need more
SPARE_ROWS = 64  # random rows looked at together, besides two for each row that repeats a text
_SPLIT_SALT = 0x5EED_0F_5A1D
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class SourceRows:
    """What sampling knows of a source: its size, its weight and the keys of its texts.

    Attributes:
        name: for messages.
        query_keys, positive_keys: one for each row that may be drawn, (n,) int64.
        weight: factor on n ** alpha.
    """

    name: str
    query_keys: Ints
    positive_keys: Ints
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.query_keys)


@dataclass(frozen=True)
class PlannedBatch:
    """Rows of a batch: row `rows[i]` of source `sources[i]`, both (B,) int64."""

    sources: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def shard(self, rank: int, world: int) -> "PlannedBatch":
        """One rank's consecutive part; up to world − 1 rows at the end are dropped, so that all are equally long."""
        size = len(self) // world
        part = slice(rank * size, (rank + 1) * size)
        return PlannedBatch(self.sources[part], self.rows[part])


class Permutation:
    """Keyed permutations of 0…n−1 of which any part can be computed alone: a Feistel network with cycle walking.

    Args:
        n: size of the domain.
        key: equal keys give equal permutations.
    """

    def __init__(self, n: int, *key: int) -> None:
        if n < 1:
            raise InvalidInput(f"a permutation of {n} items; 1 or more are expected")
        self.n = n
        self._half_bits = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
        self._half_mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        self._round_keys = mix(np.arange(ROUNDS, dtype=np.uint64), *key)

    def __call__(self, places: NDArray[np.integer], tweaks: NDArray[np.integer] | int = 0) -> Ints:
        """Where these places go, (m,) → (m,). Each value of `tweaks` (m,) is a permutation of its own."""
        values = np.asarray(places).astype(np.uint64)
        tweak = np.broadcast_to(mix(np.atleast_1d(np.asarray(tweaks)).astype(np.uint64), 4), values.shape)
        values = self._run_rounds(values, tweak)
        while (outside := values >= np.uint64(self.n)).any():  # the network's domain is a power of four: walk back in
            values[outside] = self._run_rounds(values[outside], tweak[outside])
        return values.astype(np.int64)

    def _run_rounds(self, values: Words, tweak: Words) -> Words:
        high = values >> self._half_bits
        low = values & self._half_mask
        for key in self._round_keys:
            mixed = high ^ (_scramble_words(low ^ key ^ tweak) & self._half_mask)
            high = low
            low = mixed
        return (high << self._half_bits) | low


class BatchPlan:
    """The batches of a stage.

    Args:
        sources: where rows come from.
        batch: rows in a batch, over all ranks.
        steps: batches in the stage; each source gets its share of them exactly, to within one.
        alpha: a source of n rows has the share weight · n ** alpha. 1 is proportional to size, 0 gives all the same.
        mixing: `one_source`: all rows of a batch are of one source (a smaller source gives a smaller batch);
            `mixed`: every row is drawn by itself.
        seed: equal seeds give equal batches.
        distinct: no text stands twice in a batch, as query or as positive.
        order: in which a source's rows are taken in each epoch; None shuffles them.

    Raises:
        DataError: there is no source, or one has no rows.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        batch: int,
        steps: int,
        alpha: float = 1.0,
        mixing: Mixing = "one_source",
        seed: int = 0,
        distinct: bool = True,
        order: RowOrder | None = None,
    ) -> None:
        check_sources(sources)
        self.sources = sources
        self.batch_size = batch
        self.steps = steps
        self.mixing = mixing
        self.seed = seed
        self._distinct = distinct
        self._row_order = order
        self._slots = steps * (batch if mixing == "mixed" else 1)
        counts = shares([len(s) for s in sources], [s.weight for s in sources], alpha, self._slots)
        self.slot_counts = counts  # of each source, (sources,)
        self._ends = np.cumsum(counts)
        self._order = Permutation(self._slots, seed, 1)

    def batch(self, step: int) -> PlannedBatch:
        """The rows of batch `step`; after the last step the plan begins anew with other slots of the streams."""
        if self.mixing == "one_source":
            source, occurrence = self._locate_slots(np.array([step]))
            size = min(self.batch_size, len(self.sources[int(source[0])]))
            places = occurrence[0] * size + np.arange(size)
            sources = np.full(size, source[0])
        else:
            sources, places = self._locate_slots(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        rows = self._rows_at(sources, places)
        return self._replace_repeats(sources, rows, step) if self._distinct else PlannedBatch(sources, rows)

    def _locate_slots(self, slots: Ints) -> tuple[Ints, Ints]:
        """Slots (m,) → their source, and how many slots of that source come before in the plan's order, (m,) each."""
        turn, slots = np.divmod(slots, self._slots)
        landed = self._order(slots)
        sources = np.searchsorted(self._ends, landed, side="right").astype(np.int64)
        before = landed - (self._ends - self.slot_counts)[sources]
        return sources, turn * self.slot_counts[sources] + before

    def _rows_at(self, sources: Ints, places: Ints) -> Ints:
        """Place p of a source's stream is row π(p mod n) with one permutation π for each epoch p // n."""
        rows = np.empty_like(places)
        for source in np.unique(sources):
            slots = np.flatnonzero(sources == source)
            epochs, within = np.divmod(places[slots], len(self.sources[source]))
            if self._row_order is None:
                rows[slots] = Permutation(len(self.sources[source]), self.seed, 2, int(source))(within, epochs)
            else:
                rows[slots] = self._take_rows(self._row_order, int(source), within, epochs)
        return rows

    def _take_rows(self, order: RowOrder, source: int, within: Ints, epochs: Ints) -> Ints:
        """The rows at these places of the source's epochs, (m,)."""
        rows = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            part = epochs == epoch
            rows[part] = order.rows(source, epoch)[within[part]]
        return rows

    def _replace_repeats(self, sources: Ints, rows: Ints, step: int) -> PlannedBatch:
        """Drop rows that repeat a text of an earlier one and draw random rows of the same source in their place."""
        used_keys: set[int] = set()
        fresh = self._mark_fresh(sources, rows, used_keys)
        batch_sources = [sources[fresh]]
        batch_rows = [rows[fresh]]
        for source, missing in zip(*np.unique(sources[~fresh], return_counts=True), strict=True):
            spare = self._draw_spare_rows(int(source), int(missing), step, used_keys)
            batch_sources.append(np.full(len(spare), source))
            batch_rows.append(spare)
        return PlannedBatch(np.concatenate(batch_sources), np.concatenate(batch_rows))

    def _draw_spare_rows(self, source: int, missing: int, step: int, used_keys: set[int]) -> Ints:
        """Up to `missing` random rows of a source with new texts: fewer where it has no more."""
        n = len(self.sources[source])
        shuffle = Permutation(n, self.seed, 3, step, source)
        spare: list[Ints] = []
        block = 2 * missing + SPARE_ROWS
        for start in range(0, n, block):
            rows = shuffle(np.arange(start, min(start + block, n)))
            rows = rows[self._mark_fresh(np.full(len(rows), source), rows, used_keys, limit=missing)]
            spare.append(rows)
            missing -= len(rows)
            if not missing:
                break
        return np.concatenate(spare)

    def _mark_fresh(
        self, sources: Ints, rows: Ints, used_keys: set[int], limit: int | None = None
    ) -> NDArray[np.bool_]:
        """Which rows bring two texts not yet in `used_keys` (which they are added to), in order; the first `limit`."""
        fresh = np.zeros(len(rows), dtype=bool)
        wanting = len(rows) if limit is None else limit
        for i, (query, positive) in enumerate(zip(*self._gather_keys(sources, rows), strict=True)):
            if wanting and query not in used_keys and positive not in used_keys:
                used_keys.add(query)
                used_keys.add(positive)
                fresh[i] = True
                wanting -= 1
        return fresh

    def _gather_keys(self, sources: Ints, rows: Ints) -> tuple[list[int], list[int]]:
        queries = np.empty_like(rows)
        positives = np.empty_like(rows)
        for source in np.unique(sources):
            slots = sources == source
            queries[slots] = self.sources[source].query_keys[rows[slots]]
            positives[slots] = self.sources[source].positive_keys[rows[slots]]
        return queries.tolist(), positives.tolist()


def check_sources(sources: Sequence[SourceRows]) -> None:
    """Refuse what no batch can be made of.

    Raises:
        DataError: there is no source, or one has no rows.
    """
    if not sources:
        raise DataError("no source to sample from; name at least one in the stage's data.sources")
    if empty := [source.name for source in sources if not len(source)]:
        raise DataError(f"{', '.join(empty)}: no row is left to train on; leave the source out, or add rows")


def shares(sizes: Sequence[int], weights: Sequence[float], alpha: float, slots: int) -> Ints:
    """How many of the slots each source gets: ∝ weight · n ** alpha, rounded by largest remainder, (sources,)."""
    proportions = np.array(weights, dtype=np.float64) * np.array(sizes, dtype=np.float64) ** alpha
    if not proportions.sum() > 0:
        raise DataError("all sources have weight 0; give at least one a weight above 0")
    exact = proportions / proportions.sum() * slots
    counts: Ints = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - counts), kind="stable")[: slots - int(counts.sum())]  # remainders
    counts[largest] += 1
    return counts


def in_validation(query_keys: Ints, share: float) -> NDArray[np.bool_]:
    """Whether rows belong to the validation split. Only the query's text decides: neither seed, file nor order does."""
    return mix(query_keys.view(np.uint64), _SPLIT_SALT) < np.uint64(min(int(share * 2.0**64), 2**64 - 1))


def smallest_hashes(keys: Ints, count: int, *salt: int) -> Ints:
    """Indices of the `count` keys with the smallest hash: a sample that does not depend on order or file."""
    order: Ints = np.argsort(mix(keys.view(np.uint64), *salt), kind="stable")
    smallest: Ints = np.sort(order[:count])
    return smallest


def mix(values: Words, *key: int) -> Words:
    """Hash words under a key; what splitmix64 does, once for each part of the key."""
    mixed = np.array(values, dtype=np.uint64)
    for part in key:
        mixed = _scramble_words(mixed ^ _scramble_words(np.array([part & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)))
    return mixed


def _scramble_words(words: Words) -> Words:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): every bit in moves every bit out."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))
