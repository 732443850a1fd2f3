"""Which parts of a query stand in which documents: runs of units, their weights, and the densest stretch of a document.

A mean of vectors and a bag of words both forget where things stand, and an exact name of six characters drowns in
them. Everything here works on all documents of a query at once: runs of k + 1 units are made out of those of k, and as
most positions match nothing, each step is shorter than the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from peg_rag.reranking.units import Array, Units

_TABLE = 1 << 16  # slots for the units of a query
LONGEST_RUN = 32  # units; longer common runs count as this long


@dataclass(frozen=True, slots=True)
class Runs:
    """Where the query's runs of `length` units stand in documents.

    Attributes:
        length: units of a run.
        query: (query units - length + 1,) the number of the run that begins at each unit of the query.
        codes: (runs, 2) the codes of the first two units of each distinct run; the second is 0 for single units.
        places: (matches,) the unit of the documents at which a match begins, ascending.
        runs: (matches,) the number of the run that stands there.
    """

    length: int
    query: Array
    codes: Array
    places: Array
    runs: Array

    @property
    def distinct(self) -> int:
        """Distinct runs of the query."""
        return len(self.codes)


def common_runs(query: Array, documents: Units) -> Iterator[Runs]:
    """The query's runs of 1, 2, 3, … units in the documents; ends after the first length of which there are none.

    Args:
        query: (query units,) codes.
    """
    codes, inverse = np.unique(query, return_inverse=True)
    units = _find_codes(codes, documents.codes)  # (units,) number of the query's unit, -1 for others
    places = np.flatnonzero(units >= 0)
    ends = documents.ends[places]
    heads = np.stack([codes, np.zeros_like(codes)], axis=1)
    runs = Runs(1, inverse, heads, places, units[places])
    yield runs
    while len(runs.places) and runs.length < min(LONGEST_RUN, len(query)):
        length = runs.length
        longer = runs.query[:-1] * len(codes) + inverse[length:]  # a run and the unit after it, as one number
        numbers, first_at, query_runs = np.unique(longer, return_index=True, return_inverse=True)
        has_room = runs.places + length < ends
        places = runs.places[has_room]
        following = units[places + length]
        matches = _find_positions(numbers, np.where(following >= 0, runs.runs[has_room] * len(codes) + following, -1))
        is_match = matches >= 0
        ends = ends[has_room][is_match]
        heads = np.stack([query[first_at], query[first_at + 1]], axis=1)
        runs = Runs(length + 1, query_runs, heads, places[is_match], matches[is_match])
        yield runs


def count_runs(runs: Runs, documents: Units) -> Array:
    """(documents, distinct runs) how often each run stands in each document."""
    cells = documents.rows[runs.places] * runs.distinct + runs.runs
    return np.bincount(cells, minlength=len(documents) * runs.distinct).reshape(len(documents), runs.distinct)


def best_windows(runs: Runs, weights: Array, documents: Units, width: int) -> Array:
    """(documents,) the largest total weight of distinct runs that begin within `width` units of each other.

    A match counts in every window from its place on, until the window has left it behind or the same run stands there
    again; so the totals of all windows are one cumulative sum of what enters and what leaves.
    """
    if not len(runs.places):
        return np.zeros(len(documents))
    rows = documents.rows[runs.places]
    order = np.argsort(rows * runs.distinct + runs.runs, kind="stable")
    places, numbers, rows = runs.places[order], runs.runs[order], rows[order]
    last = np.minimum(places + width, documents.starts[rows + 1])
    again = (numbers[1:] == numbers[:-1]) & (rows[1:] == rows[:-1])
    last[:-1] = np.where(again, np.minimum(last[:-1], places[1:]), last[:-1])
    change = np.bincount(places, weights[numbers], minlength=len(documents.codes) + 1)
    change -= np.bincount(last, weights[numbers], minlength=len(documents.codes) + 1)
    totals = np.cumsum(change)
    return np.maximum(best_of_rows(totals[places], rows, len(documents)), 0.0)


def best_of_rows(values: Array, rows: Array, count: int) -> Array:
    """(count,) the largest of each row's values (n,); 0 for rows without any. `rows` (n,) ascend."""
    best = np.zeros(count)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    best[rows[firsts]] = np.maximum.reduceat(values, firsts)
    return best


def _find_codes(sorted_codes: Array, codes: Array) -> Array:
    """`_find_positions` by a table of the codes' last bits, which is several times as fast for many codes."""
    slots = np.full(_TABLE, -1, dtype=np.int32)
    slots[sorted_codes % _TABLE] = np.arange(len(sorted_codes), dtype=np.int32)
    if np.any(slots[sorted_codes % _TABLE] != np.arange(len(sorted_codes))):  # two share a slot
        return _find_positions(sorted_codes, codes)
    places = slots[codes % _TABLE]
    return np.where(sorted_codes[places] == codes, places, -1)  # an empty slot leads to the last code, which differs


def _find_positions(sorted_values: Array, values: Array) -> Array:
    """(wanted,) the place of each in the ascending `sorted_values`, -1 where it is not there."""
    places = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.where(sorted_values[places] == values, places, -1)
