"""What a reranker looks at: for one query, a row of numbers for each candidate.

A field that the trees have not seen has other lengths, other words and other scores. So nothing here is a bare score or
count: scores are taken relative to the other candidates', matches as shares of the query, weights of words as this
query's candidates and a table of common words suggest. `FEATURES` names the columns.

Cost: 3 to 5 ms for fifty candidates of up to 100 characters, 7 to 9 ms for those of 400.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peg_rag.reranking.matching import LONGEST_RUN, Runs, best_of_rows, best_windows, common_runs, count_runs
from peg_rag.reranking.rarity import Rarity
from peg_rag.reranking.units import CODE_POINTS, Array, Units, split_units
from peg_rag.reranking.vectors import TokenVectors

QUERY_UNITS = 256  # the rest of a query is not looked at
QUERY_WORDS = 64
WINDOW = 60  # units
WORD_WINDOW = 32  # words
HEAD = 30  # units: a title, or what stands in its place
FOLLOWERS = 19  # candidates that the best one is compared with
LIKENESS = (0.95, 0.8, 0.6, 0.4)  # cosines from which on a word of the query counts as met


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a hybrid search brings for one query.

    Attributes:
        texts: (n,) the documents.
        dense, lexical, fused: (n,) their scores.
    """

    texts: Sequence[str]
    dense: Array
    lexical: Array
    fused: Array


@dataclass(frozen=True, slots=True)
class FeatureMaker:
    """Makes the features of candidates.

    Attributes:
        vectors: of tokens, for likeness between words.
        rarity: how rare units and pairs of units are in general.
    """

    vectors: TokenVectors
    rarity: Rarity

    def make(self, query: str, candidates: Candidates) -> Array:
        """(candidates, len(FEATURES)) float32; finite, whatever the texts are."""
        documents = split_units(candidates.texts)
        question = _first_units(split_units([query]), QUERY_UNITS)
        columns = {
            **score_features(candidates),
            **match_features(question, documents, self.rarity),
            **word_features(question, documents, self.vectors),
            **length_features(question, documents),
        }
        columns |= {f"{name}_behind": columns[name] - columns[name].max() for name in COMPARED}
        return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)


# -- scores -----------------------------------------------------------------------------------------------------------


def score_features(candidates: Candidates) -> dict[str, Array]:
    """Each side's scores among the candidates, how far its best stands out, and how well the sides agree."""
    columns: dict[str, Array] = {}
    sides = {"dense": candidates.dense, "lexical": candidates.lexical, "fused": candidates.fused}
    for name, scores in sides.items():
        scores = np.asarray(scores, dtype=np.float64)
        columns[f"{name}_scaled"] = _scale_scores(scores)
        columns[f"{name}_standard"] = standardize(scores)
        columns[f"{name}_place"] = _log_ranks(scores)
        columns[f"{name}_stands_out"] = np.full(len(scores), _stands_out(scores))
    best = candidates.lexical.max()
    columns["lexical_share"] = candidates.lexical / best if best > 0 else np.zeros(len(candidates.texts))
    agreement = float(np.mean(columns["dense_standard"] * columns["lexical_standard"]))
    columns["agreement"] = np.full(len(candidates.texts), agreement)
    return columns


def _scale_scores(scores: Array) -> Array:
    """0 (the least) to 1 (the best); 0 for all where they are equal."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))


def standardize(scores: Array) -> Array:
    """In standard deviations from the mean; 0 for all where they are equal, or differ by less than a float tells."""
    deviation = scores.std()
    differ = deviation > 0 and scores.max() > scores.min()
    return (scores - scores.mean()) / deviation if differ else np.zeros(len(scores))


def _log_ranks(scores: Array) -> Array:
    """log2(1 + how many are better)."""
    return np.asarray(np.log2(1.0 + np.sum(scores[None, :] > scores[:, None], axis=1)))


def _stands_out(scores: Array) -> float:
    """How far the best stands above the next ones, in their standard deviations: 0 to 10; 1 for fewer than three."""
    best_first = np.sort(scores)[::-1]
    followers = best_first[1 : 1 + FOLLOWERS]
    if len(followers) < 2:
        return 1.0
    above = float(best_first[0] - followers.mean())
    deviation = float(followers.std())
    return min(above / deviation, 10.0) if deviation > above / 10 else 10.0 if above > 0 else 0.0


# -- matches ----------------------------------------------------------------------------------------------------------


def match_features(question: Units, documents: Units, rarity: Rarity) -> dict[str, Array]:
    """How much of the query stands in each document: single units, pairs, threes, the longest run; and how densely."""
    columns = {name: np.zeros(len(documents)) for name in MATCHES} | {"words_coverage": np.ones(len(documents))}
    longest = np.zeros(len(documents))
    if len(question.codes):
        for runs in common_runs(question.codes, documents):
            longest[documents.rows[runs.places]] = runs.length  # runs come longer and longer
            if runs.length <= len(KINDS):
                columns |= run_features(KINDS[runs.length - 1], runs, documents, rarity)
            if runs.length == 1:
                columns["words_coverage"] = word_coverage(runs, documents)
    columns["longest_run"] = np.log2(1.0 + longest)
    columns["longest_run_share"] = longest / max(1, min(len(question.codes), LONGEST_RUN))
    columns["longest_run_document"] = longest / np.clip(documents.lengths, 1, LONGEST_RUN)
    return columns


def run_features(kind: str, runs: Runs, documents: Units, rarity: Rarity) -> dict[str, Array]:
    """Coverage of the query's runs of one length, plain and weighted, in the whole document and parts of it."""
    counts = count_runs(runs, documents)  # (documents, runs)
    holders = np.count_nonzero(counts, axis=0)
    local = np.log1p((len(documents) - holders + 0.5) / (holders + 0.5))
    room = np.maximum(documents.lengths - runs.length + 1, 1)
    columns = {
        f"{kind}_coverage": np.mean(counts > 0, axis=1),
        f"{kind}_coverage_local": _share_of_weights((counts > 0) @ local, local),
        f"{kind}_saturated_local": _share_of_weights(counts / (counts + 1.0) @ local, local),
        f"{kind}_of_document": counts.sum(axis=1) / room,
    }
    if kind == "threes":
        return columns
    general = rarity.of_units(runs.codes[:, 0]) if kind == "units" else rarity.of_pairs(runs.codes)
    in_head = runs.places - documents.starts[documents.rows[runs.places]] < HEAD
    head = Runs(runs.length, runs.query, runs.codes, runs.places[in_head], runs.runs[in_head])
    return columns | {
        f"{kind}_coverage_general": _share_of_weights((counts > 0) @ general, general),
        f"{kind}_window": _share_of_weights(best_windows(runs, general, documents, WINDOW), general),
        f"{kind}_head": _share_of_weights((count_runs(head, documents) > 0) @ general, general),
        f"{kind}_first": _first_matches(runs, documents),
    }


def word_coverage(units: Runs, documents: Units) -> Array:
    """Share of the query's words and numbers in each document; 1 where the query has none."""
    is_word = units.codes[:, 0] >= CODE_POINTS
    if not is_word.any():
        return np.ones(len(documents))
    return np.asarray(np.mean(count_runs(units, documents)[:, is_word] > 0, axis=1))


def _first_matches(runs: Runs, documents: Units) -> Array:
    """log2(1 + units before the first match); where there is none, the whole length."""
    before = documents.lengths.copy()
    rows = documents.rows[runs.places]
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    before[rows[firsts]] = runs.places[firsts] - documents.starts[rows[firsts]]
    return np.log2(1.0 + before)


def _share_of_weights(part: Array, weights: Array) -> Array:
    """Parts of the sum of all weights; 0 where nothing has a weight."""
    total = float(weights.sum())
    return np.asarray(part, dtype=np.float64) / total if total > 0 else np.zeros(len(part))


# -- words ------------------------------------------------------------------------------------------------------------


def word_features(question: Units, documents: Units, vectors: TokenVectors) -> dict[str, Array]:
    """How near each document's words come to each word of the query, and its best stretch to the query as a whole."""
    query_words, times = np.unique(vectors.cut_query(question)[:QUERY_WORDS], return_counts=True)
    words = vectors.find_words(documents)
    columns = {name: np.zeros(len(documents)) for name in WORDS}
    if not len(query_words) or not len(words.tokens):
        return columns
    weights = (vectors.lengths[query_words] * times).astype(np.float64)
    used, numbers = _number_tokens(words.tokens, len(vectors.lengths))
    query_directions = vectors.directions_of(query_words)  # (query words, dimension)
    aim = weights @ query_directions  # (dimension,)
    aim /= max(float(np.linalg.norm(aim)), 1e-12)
    aims = np.concatenate([query_directions, aim[None].astype(np.float32)])
    likeness = vectors.directions_of(used) @ aims.T  # (used tokens, query words + 1)
    rows = documents.rows[words.places]
    holds = np.zeros((len(documents), len(used)), dtype=bool)
    holds[rows, numbers] = True
    best = _best_of_documents(holds, likeness[:, :-1])  # (documents, query words)
    columns["words_best"] = _share_of_weights(best @ weights, weights)
    columns["words_best_plain"] = best.mean(axis=1)
    columns["words_best_least"] = best.min(axis=1)
    for cosine in LIKENESS:
        columns[f"words_like_{cosine}"] = _share_of_weights((best >= cosine) @ weights, weights)
    longest = np.flatnonzero(np.diff(words.places, append=-1))  # one word for each place
    columns |= _window_nearness(
        likeness[numbers[longest], -1], vectors.lengths[words.tokens[longest]], rows[longest], len(documents)
    )
    return columns


def _number_tokens(tokens: Array, count: int) -> tuple[Array, Array]:
    """The distinct ones of (n,) tokens below `count`, ascending, and each token's place among them, (n,)."""
    is_used = np.zeros(count, dtype=bool)
    is_used[tokens] = True
    used = np.flatnonzero(is_used)
    places = np.empty(count, dtype=np.int32)
    places[used] = np.arange(len(used), dtype=np.int32)
    return used, places[tokens]


def _best_of_documents(holds: Array, values: Array) -> Array:
    """(documents, columns) the largest of the values of what each holds; 0 for one that holds nothing.

    Args:
        holds: (documents, items) bool.
        values: (items, columns).
    """
    best = np.zeros((len(holds), values.shape[1]))
    for row, held in enumerate(holds):
        items = np.flatnonzero(held)
        if len(items):
            values[items].max(axis=0, out=best[row])
    return best


def _window_nearness(nearness: Array, lengths: Array, rows: Array, count: int) -> dict[str, Array]:
    """Mean nearness to the query, weighted by the vectors' lengths: of all words, and of the best few in a row.

    Args:
        nearness, lengths: (words,) one for each place where words begin.
        rows: (words,) the document of each, ascending.
        count: of documents.
    """
    weights = np.concatenate([[0.0], np.cumsum(lengths, dtype=np.float64)])
    products = np.concatenate([[0.0], np.cumsum(lengths * nearness, dtype=np.float64)])
    firsts = np.searchsorted(rows, np.arange(count + 1))
    ends = np.arange(1, len(rows) + 1)
    starts = np.maximum(firsts[rows], ends - WORD_WINDOW)
    means = (products[ends] - products[starts]) / np.maximum(weights[ends] - weights[starts], 1e-12)
    totals = np.diff(weights[firsts])
    return {
        "words_window": best_of_rows(means, rows, count),
        "words_mean": np.diff(products[firsts]) / np.maximum(totals, 1e-12),
    }


# -- lengths ----------------------------------------------------------------------------------------------------------


def length_features(question: Units, documents: Units) -> dict[str, Array]:
    """Lengths of the query and the documents, and of each document beside the others."""
    lengths = np.log2(1.0 + documents.lengths)
    return {
        "length": lengths,
        "length_beside": lengths - np.median(lengths),
        "query_length": np.full(len(documents), np.log2(1.0 + len(question.codes))),
    }


def _first_units(units: Units, count: int) -> Units:
    """The first units of one text."""
    codes = units.codes[:count]
    return Units(codes, units.rows[:count], np.array([0, len(codes)]))


# -- names ------------------------------------------------------------------------------------------------------------

KINDS = ("units", "pairs", "threes")
_OF_RUNS = ("coverage", "coverage_local", "saturated_local", "of_document")
_OF_SHORT_RUNS = ("coverage_general", "window", "head", "first")
MATCHES = (
    *(f"{kind}_{what}" for kind in KINDS for what in _OF_RUNS),
    *(f"{kind}_{what}" for kind in KINDS[:2] for what in _OF_SHORT_RUNS),
    "words_coverage",
    "longest_run",
    "longest_run_share",
    "longest_run_document",
)
WORDS = (
    "words_best",
    "words_best_plain",
    "words_best_least",
    *(f"words_like_{cosine}" for cosine in LIKENESS),
    "words_window",
    "words_mean",
)
SCORES = (
    *(
        f"{side}_{what}"
        for side in ("dense", "lexical", "fused")
        for what in ("scaled", "standard", "place", "stands_out")
    ),
    "lexical_share",
    "agreement",
)
LENGTHS = ("length", "length_beside", "query_length")
COMPARED = (
    "units_coverage_local",
    "pairs_coverage_local",
    "threes_coverage_local",
    "pairs_coverage_general",
    "pairs_window",
    "longest_run",
    "words_best",
    "words_window",
)
FEATURES = (*SCORES, *MATCHES, *WORDS, *LENGTHS, *(f"{name}_behind" for name in COMPARED))
