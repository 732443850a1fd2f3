"""The scores of a hybrid search for texts that stand in no index: a query, some texts, and nothing else.

A reranker as a service is handed the texts by its caller. How often a term occurs in the collection they come from is
not known then, so it is counted in the texts themselves, as if they were the whole collection. On 14 domains left out
that costs 0.2 points of nDCG@10 beside the counts of an index, and leads the cosine by 6.6; the table of rarity does no
better (`train/reranker.py texts`, `train/results/reranker_texts.md`).

Cost: 1 ms for the terms of fifty passages of 400 characters; their vectors take 25 ms, most of it the tokenizer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from peg_rag.index.fusion import fuse
from peg_rag.index.lexical import K1, B
from peg_rag.index.tokenizers import BigramTokenizer
from peg_rag.reranking.features import Candidates
from peg_rag.reranking.units import Array

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder

_TOKENIZER = BigramTokenizer()


def make_candidates(query: str, texts: Sequence[str], encoder: "PEGEncoder") -> Candidates:
    """The texts with the scores that a hybrid search would give them in an index that holds nothing else."""
    dense = encoder.encode_documents(texts) @ encoder.encode_queries([query])[0]  # (texts,)
    return fuse_candidates(texts, dense.astype(np.float64), score_terms(query, texts))


def fuse_candidates(texts: Sequence[str], dense: Array, lexical: Array) -> Candidates:
    """Texts with (texts,) scores of both sides, and the two fused as the index fuses them."""
    rankings = {"dense": dict(enumerate(dense.tolist())), "lexical": dict(enumerate(lexical.tolist()))}
    fused = fuse(rankings)
    return Candidates(texts, dense, lexical, np.array([fused[place] for place in range(len(texts))]))


def score_terms(query: str, texts: Sequence[str]) -> Array:
    """(texts,) BM25 scores by the formula of `peg_rag.index.lexical`, with the frequencies counted in the texts."""
    occurrences = _TOKENIZER.find_occurrences([query, *texts])
    is_query = occurrences.rows == 0
    codes, weights = np.unique(occurrences.codes[is_query], return_counts=True)  # the query's terms, how often each
    lengths = np.bincount(occurrences.rows, minlength=1 + len(texts))[1:]  # (texts,) terms
    if not len(codes) or not len(texts):
        return np.zeros(len(texts))
    places = np.minimum(np.searchsorted(codes, occurrences.codes), len(codes) - 1)
    is_match = ~is_query & (codes[places] == occurrences.codes)
    cells = (occurrences.rows[is_match] - 1) * len(codes) + places[is_match]
    counts = np.bincount(cells, minlength=len(texts) * len(codes)).reshape(len(texts), len(codes))
    holders = np.count_nonzero(counts, axis=0)  # (terms,) texts with each
    idf = np.log1p((len(texts) - holders + 0.5) / (holders + 0.5))
    average = max(float(lengths.mean()), 1.0)
    norm = K1 * (1 - B + B * lengths / average)[:, None]  # (texts, 1)
    return np.asarray((counts * (K1 + 1) / (counts + norm)) @ (weights * idf))
