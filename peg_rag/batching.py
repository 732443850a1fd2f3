"""Length-sorted, token-budget batches: no padding to speak of, and a memory peak that does not depend on the corpus.

A batch of texts costs rows × longest row, padding included. Sorted by token length, neighbours are about equally long,
so next to nothing is padding; a budget in tokens instead of rows keeps every batch the same size in memory. The longest
come first, so a batch that does not fit fails at the start and not at the end. Inference and training share this.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput


def plan_batches(lengths: Sequence[int] | NDArray[np.integer], batch_tokens: int) -> list[NDArray[np.intp]]:
    """Pack rows of the given token lengths into batches of at most `batch_tokens` tokens, padding counted.

    Args:
        lengths: tokens in each row, (n,).
        batch_tokens: rows × longest row of a batch stays at or below this; a single longer row stands alone.

    Returns:
        Index arrays, longest rows first; together they hold each of 0…n−1 once.
    """
    if batch_tokens < 1:
        raise InvalidInput(f"batch_tokens={batch_tokens} must be 1 or more")
    sizes = np.maximum(np.asarray(lengths, dtype=np.int64), 1)  # (n,); an empty row still takes a row
    order = np.argsort(-sizes, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // int(sizes[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches
