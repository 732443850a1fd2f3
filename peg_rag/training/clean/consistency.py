"""Consistency: a first model must find a pair's positive among random passages (E5, arXiv 2212.03533, section 3.1).

A model rates the pairs it was trained on too highly, wrong ones among them. So the filter is cross-fitted: the rows are
cut into halves by their positive's text, a small static model is trained on each, and each scores the half it has not
seen. Costs a minute of training for each half and one encoding of the texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.retriever import Encoder
from peg_rag.training.data.sampler import mix, smallest_hashes
from peg_rag.training.data.tokens import Ints

if TYPE_CHECKING:
    from peg_rag.training.recipe import Recipe

Floats = NDArray[np.float32]
BLOCK_ROWS = 2_048
FIRST_BATCH = 512
FIRST_STEPS = 300
FIRST_EPOCHS = 3
_SALT_HALF, _SALT_POOL = 31, 32


def assign_halves(positive_keys: Ints) -> NDArray[np.bool_]:
    """Which half each row belongs to; rows with the same positive are together."""
    halves: NDArray[np.bool_] = (mix(positive_keys.view(np.uint64), _SALT_HALF) & np.uint64(1)).astype(bool)
    return halves


def first_model_recipe(pairs: Path, rows: int, output: Path, cache: Path, seed: int) -> "Recipe":
    """The recipe of a first model: a static one of the bundled words, trained for a minute."""
    from peg_rag.training.recipe import Recipe

    batch = min(FIRST_BATCH, max(rows // 4, 2))
    steps = max(1, min(FIRST_STEPS, FIRST_EPOCHS * rows // batch))
    tree: dict[str, Any] = {
        "output_dir": str(output),
        "cache_dir": str(cache),
        "seed": seed,
        "model": {"static": {"dimension": 256, "tokenizer": "peg-mini"}},
        "stages": [
            {
                "name": "first",
                "steps": steps,
                "batch": {"queries": batch},
                "data": {"sources": [{"path": str(pairs)}]},
                "loss": {"temperature": 0.05},
                "optimizer": {"learning_rate": 0.03},
            }
        ],
        "validation": {"share": 0.0},
    }
    return Recipe.parse(tree)


def rank_positives(
    queries: Sequence[str], positives: Sequence[str], keys: Ints, encoder: Encoder, pool: int
) -> tuple[Ints, Floats]:
    """The rank of each positive (from 1) among `pool` random ones, and its cosine, (n,) each.

    A passage of the pool with the positive's own text counts for nothing, and neither does a tie.
    """
    distinct, first = np.unique(keys, return_index=True)
    chosen = first[smallest_hashes(distinct, pool, _SALT_POOL)]
    passages = encoder.encode_documents([positives[row] for row in chosen.tolist()])
    ranks = np.empty(len(queries), dtype=np.int64)
    cosines = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        vectors = encoder.encode_queries(queries[part])
        own = (vectors * encoder.encode_documents(positives[part])).sum(1)  # (b,)
        scores = vectors @ passages.T  # (b, pool)
        better = (scores > own[:, None] + 1e-6) & (keys[chosen][None, :] != keys[part][:, None])
        ranks[part] = 1 + better.sum(1)
        cosines[part] = own
    return ranks, cosines


def trust_of(cosines: Floats) -> Floats:
    """Weights by the cosine of the positive, σ((s − m + ½·sd) / (½·sd)), (n,); see `peg_rag.training.loss.trust`."""
    width = 0.5 * float(cosines.std())
    if width < 1e-6:
        return np.ones_like(cosines)
    weights: Floats = 1.0 / (1.0 + np.exp(-(cosines - cosines.mean() + width) / width))
    return weights
