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
    lengths: Sequence[int] | NDArray[np.integer], batch_tokens: int, *, workers: int = 1
) -> list[NDArray[np.intp]]:
    """Pack rows of the given token lengths into batches of at most `batch_tokens` tokens, padding counted.

    Args:
        lengths: tokens in each row, (n,).
        batch_tokens: rows × longest row of a batch stays at or below this; a single longer row stands alone.
        workers: how many share the batches, all of which they get at once. Of several, each batch holds an equal share
            of the tokens that are left, down to a quarter of `batch_tokens`.

    Returns:
        Index arrays, longest rows first; together they hold each of 0…n−1 once.
    """
    if batch_tokens < 1:
        raise InvalidInput(f"batch_tokens={batch_tokens} must be 1 or more")
    sizes = np.maximum(np.asarray(lengths, dtype=np.int64), 1)  # (n,); an empty row still takes a row
    order = np.argsort(-sizes, kind="stable")
    smallest = batch_tokens if workers == 1 else max(1, batch_tokens // SMALLEST_PART)
    tokens_left = int(sizes.sum())
    batches = []
    start = 0
    while start < len(order):
        budget = min(batch_tokens, max(smallest, tokens_left // workers))
        rows = max(1, budget // int(sizes[order[start]]))
        batch = order[start : start + rows]
        batches.append(batch)
        tokens_left -= int(sizes[batch].sum())
        start += rows
    return batches
