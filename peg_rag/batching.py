"""Length-sorted, token-budget batches: no padding to speak of, and a memory peak that does not depend on the corpus.

A batch of texts costs rows × longest row, padding included. Sorted by token length, neighbours are about equally long,
so next to nothing is padding; a budget in tokens instead of rows keeps every batch the same size in memory. The longest
come first, so a batch that does not fit fails at the start and not at the end. Inference and training share this.

Several workers that each take the next batch finish together if the last batches are small, and a short list is shared
only if there is a batch for each: guided self-scheduling (Polychronopoulos and Kuck, 1987).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput

SMALLEST_PART = 4  # a batch for several workers has a quarter of `batch_tokens` or more; smaller ones are slow


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that a model takes at once: their numbers, (rows,), and the token ids of each."""

    rows: NDArray[np.intp]
    token_ids: list[list[int]]


def plan_batches(
    lengths: Sequence[int] | NDArray[np.integer],
    batch_tokens: int,
    *,
    batch_cost: int | None = None,
    workers: int = 1,
) -> list[NDArray[np.intp]]:
    """Pack rows of the given token lengths into batches of at most `batch_tokens` tokens, padding counted.

    Args:
        lengths: tokens in each row, (n,).
        batch_tokens: rows × longest row of a batch stays at or below this; a single longer row stands alone.
        batch_cost: the time of one more batch, in tokens. Then batches are split where that saves more padding than it
            costs, which matters for few texts of unlike lengths. None: every batch is as full as it may be.
        workers: how many share the batches, all of which they get at once. Of several, each batch holds at most an
            equal share of the tokens that are left, down to a quarter of `batch_tokens`.

    Returns:
        Index arrays, longest rows first; together they hold each of 0…n−1 once.
    """
    if batch_tokens < 1:
        raise InvalidInput(f"batch_tokens={batch_tokens} must be 1 or more")
    sizes = np.maximum(np.asarray(lengths, dtype=np.int64), 1)  # (n,); an empty row still takes a row
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order]
    most_rows = np.maximum(1, batch_tokens // ordered)  # (n,) of a batch that begins here
    rows = most_rows if batch_cost is None else _choose_rows(ordered, most_rows, batch_cost)
    smallest = batch_tokens if workers == 1 else batch_tokens // SMALLEST_PART
    tokens_left = int(ordered.sum())
    batches = []
    start = 0
    while start < len(order):
        share = max(smallest, tokens_left // workers)
        stop = start + min(int(rows[start]), max(1, share // int(ordered[start])))
        batches.append(order[start:stop])
        tokens_left -= int(ordered[start:stop].sum())
        start = stop
    return batches


def _choose_rows(sizes: NDArray[np.int64], most_rows: NDArray[np.int64], batch_cost: int) -> NDArray[np.int64]:
    """(n,) rows of a batch that begins at each row of (n,) descending sizes, for the least cost of all that follow."""
    count = len(sizes)
    rows = np.ones(count, dtype=np.int64)
    costs = np.zeros(count + 1, dtype=np.int64)  # of the rows from here to the last: padded tokens and batches
    for start in range(count - 1, -1, -1):
        stop = min(count, start + int(most_rows[start]))
        options = costs[start + 1 : stop + 1] + sizes[start] * np.arange(1, stop - start + 1)
        rows[start] = 1 + int(np.argmin(options))
        costs[start] = batch_cost + options[rows[start] - 1]
    return rows
