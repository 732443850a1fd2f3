"""Near-duplicates: texts that share most of their runs of characters, found by MinHash (Broder 1997).

`datasketch` makes the signatures; texts whose signatures agree in a band are compared run by run, so chance agreement
removes nothing. Costs about a millisecond a text of 400 characters, and 4·permutations bytes for each.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.extras import require

PERMUTATIONS = 64
BANDS = 16  # of four rows: two texts with a similarity of 0.8 agree in one with probability 0.9998, of 0.4 with 0.34
RUN = 4  # characters
COMPARED = 32  # members of a band that a text is compared with, at most: a template with thousands of copies
_SPACE = re.compile(r"[\W_]+")


def group_near_duplicates(texts: Sequence[str], similarity: float = 0.8) -> NDArray[np.int64]:
    """A number for each text, (n,): the smallest index of the texts it is a near-duplicate of, directly or by others.

    Args:
        similarity: Jaccard similarity of the sets of runs from which on two texts are near-duplicates.
    """
    normalised = [normalise(text) for text in texts]
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(text, i) for i, text in enumerate(normalised)], dtype=np.int64)
    distinct = sorted(first.values())
    if len(distinct) < 2:
        return groups
    runs = {i: character_runs(normalised[i]) for i in distinct}
    signatures = _sign([runs[i] for i in distinct])
    for members in _band_members(signatures):
        _join_members([distinct[member] for member in members], runs, groups, similarity)
    return np.array([_find_root(groups, i) for i in range(len(texts))], dtype=np.int64)


def normalise(text: str) -> str:
    """Compatibility forms, case, space and punctuation make no difference."""
    return _SPACE.sub("", unicodedata.normalize("NFKC", text).lower())


def character_runs(text: str) -> frozenset[str]:
    """The runs of four characters of a text; the text itself where it is shorter."""
    return frozenset(text[start : start + RUN] for start in range(max(len(text) - RUN + 1, 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared runs among all of both."""
    return len(left & right) / len(left | right)


def _sign(runs: Sequence[frozenset[str]]) -> NDArray[np.uint64]:
    """Signatures, (n, PERMUTATIONS)."""
    minhash = require("datasketch", "train").MinHash
    encoded = ([run.encode("utf-8", "surrogatepass") for run in text] for text in runs)
    hashes = minhash.generator(encoded, num_perm=PERMUTATIONS, seed=1)
    return np.stack([each.hashvalues for each in hashes])


def _band_members(signatures: NDArray[np.uint64]) -> "list[NDArray[np.int64]]":
    """Texts whose signatures agree in a band, ascending, group by group."""
    width = PERMUTATIONS // BANDS
    groups = []
    for start in range(0, PERMUTATIONS, width):
        band = np.ascontiguousarray(signatures[:, start : start + width])
        _, inverse = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        cuts = np.flatnonzero(np.diff(inverse.ravel()[order])) + 1
        groups += [members for members in np.split(order, cuts) if len(members) > 1]
    return groups


def _join_members(
    members: list[int], runs: dict[int, frozenset[str]], groups: NDArray[np.int64], similarity: float
) -> None:
    """Join each member with an earlier one that it is near to."""
    representatives: list[int] = []
    for member in members:
        near = next((other for other in representatives if jaccard(runs[member], runs[other]) >= similarity), None)
        if near is None:
            if len(representatives) < COMPARED:
                representatives.append(member)
            continue
        roots = sorted((_find_root(groups, member), _find_root(groups, near)))
        groups[roots[1]] = roots[0]


def _find_root(groups: NDArray[np.int64], i: int) -> int:
    while groups[i] != i:
        groups[i] = groups[groups[i]]
        i = int(groups[i])
    return i
