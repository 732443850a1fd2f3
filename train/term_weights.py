"""Learns how much each term of a query is worth in BM25, and says what that gains on fields it never saw.

BM25 takes a rare term for an important one, and some rare ones say little. Here each term's inverse document frequency
is multiplied by e^theta, where theta is a sum over hashed parts of the term (`peg_rag.index.term_weights`), learned by
InfoNCE: the passage that answers a query, against BM25's own best hits for it. Every choice is made on whole domains
left out.

    python train/term_weights.py candidates --out runs/term-weights     # BM25's hits, 5 minutes of one core
    python train/term_weights.py choose --out runs/term-weights         # settings and shrinkage, on left-out domains
    python train/term_weights.py validate --out runs/term-weights --reranker runs/reranker  # whole searches, likewise
    python train/term_weights.py fit --out runs/term-weights            # writes the bundled table
    python train/term_weights.py speed --out runs/term-weights          # what the weights cost a search
    python train/term_weights.py report --out runs/term-weights --reranker runs/reranker    # evaluation sets, once

`validate` and `report` need what `reranker.py` made: its half models, candidates and trees.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, Literal

import numpy as np
from experiments import NOT_CHINESE, RESULTS, Runs, data_folder
from reranker import (
    DOCUMENTS,
    EVALUATION_DOMAINS,
    FOLDS,
    SHARE,
    Source,
    blind_half,
    by_domain,
    domain_of,
    evaluation,
    fit,
    left_out_scores,
    load_judged,
    permitted_files,
)
from scipy import optimize, sparse
from tqdm import tqdm

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.evaluation import Evaluation, RetrievalDataset, compare, load_beir
from peg_rag.evaluation.metrics import Run
from peg_rag.index.lexical import K1, B
from peg_rag.index.term_weights import SIZE, TermWeights, hash_parts, load_term_weights
from peg_rag.index.tokenizers import HeadNumbers, get_tokenizer
from peg_rag.models import bundled_path
from peg_rag.reranking import MiniReranker, load_reranker
from peg_rag.training.data.files import read_lines
from peg_rag.training.data.texts import text_key

Array = np.ndarray

QUERIES = 2_000  # of a source, at most
VALIDATION = 1_000  # of them, as many as the reranker was chosen on
HITS = 50
CUTOFF = 10
FIRST_SCALE = 0.2  # of BM25's scores, as logits
SHRINKAGES = (0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Settings:
    """How theta is learned.

    Attributes:
        decay: half of it times the squared length of the table is added to the loss, a sum over the queries.
        parts: of a term that add up to its theta: `all`; its `own` place alone; all but a pair's own (`characters`); or
            that of its kind alone (`kinds`: four numbers in all).
        negatives: hits of BM25 beside the answer.
        queries: of a source, at most.
        balance: a domain of n queries weighs n ** (1 - balance).
        steps: of L-BFGS, at most.
    """

    decay: float = 10.0
    parts: Literal["all", "own", "characters", "kinds"] = "all"
    negatives: int = 15
    queries: int = 1_000
    balance: float = 0.0
    steps: int = 20

    @property
    def name(self) -> str:
        return f"{self.parts}-{self.decay:g}-{self.negatives}-{self.queries}-{self.balance:g}-{self.steps}"


CHOICES = (
    *(Settings(decay, "all") for decay in (3.0, 30.0, 100.0)),
    Settings(10.0, "own"),
    Settings(30.0, "characters"),
    Settings(30.0, "kinds", steps=8),
    Settings(30.0, "all", balance=1.0),
)
SHRINKAGE = 0.5
CHOSEN = Settings(30.0, "all", balance=1.0)


# -- BM25's hits, taken apart -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """BM25's first hits of a source's queries, and what each term of a query gives to each of them.

    Attributes:
        terms: (terms,) the distinct terms of the queries, spelled.
        values: (entries,) float32: what a term adds to a hit's score; entries of a hit stand together, by query.
        numbers: (entries,) int32, the number of the term.
        sizes: (hits,) int32, entries of each hit.
        labels: (hits,) 1 for relevant ones.
        hits: (queries,) int32, hits of each query; the first of those is the answer where `HITS` does not hold it.
        is_hit: (hits,) whether BM25 has it among the first `HITS`; the others are answers that it has not.
        relevant: (queries,) relevant documents in the corpus.
    """

    terms: Array
    values: Array
    numbers: Array
    sizes: Array
    labels: Array
    hits: Array
    is_hit: Array
    relevant: Array


def read_source(file: Path) -> Source:
    """The first texts of a file, and queries drawn by the hash of their text."""
    documents: dict[str, int] = {}
    relevant: dict[str, set[int]] = {}
    for line in read_lines(file):
        row = json.loads(line)
        if row["query"] == row["positive"] or (row["positive"] not in documents and len(documents) >= DOCUMENTS):
            continue
        relevant.setdefault(row["query"], set()).add(documents.setdefault(row["positive"], len(documents)))
    queries = sorted(relevant, key=text_key)[:QUERIES]
    return Source(file.name.removesuffix(".jsonl.zst"), list(documents), queries, [relevant[q] for q in queries])


@dataclass(frozen=True)
class TermMatrix:
    """A source as BM25 sees it.

    Attributes:
        terms: (terms,) spelled.
        documents: (documents, terms) what each term adds to each document's score for a query that holds it once.
        queries: (queries, terms) occurrences.
    """

    terms: Array
    documents: sparse.csr_array
    queries: sparse.csr_array

    @classmethod
    def of(cls, source: Source) -> "TermMatrix":
        heads = HeadNumbers()
        occurrences = get_tokenizer("bigram").find_occurrences([*source.texts, *source.queries], heads)
        documents = len(source.texts)
        of_query = occurrences.rows >= documents
        codes = np.unique(occurrences.codes[of_query])
        numbers = np.searchsorted(codes, occurrences.codes)
        is_used = codes[np.minimum(numbers, len(codes) - 1)] == occurrences.codes
        shape = (documents + len(source.queries), len(codes))
        counts = sparse.coo_array(
            (np.ones(int(is_used.sum()), np.float32), (occurrences.rows[is_used], numbers[is_used])), shape=shape
        ).tocsr()
        counts.sum_duplicates()
        lengths = np.bincount(occurrences.rows[~of_query], minlength=documents)
        return cls(spell_terms(heads, codes), bm25_parts(counts[:documents], lengths), counts[documents:])


def spell_terms(heads: HeadNumbers, codes: Array) -> Array:
    tails = [chr(tail) if tail else "" for tail in (codes & 0xFFFF).tolist()]
    return np.array([head + tail for head, tail in zip(heads.spell(codes >> 16), tails, strict=True)])


def bm25_parts(counts: sparse.csr_array, lengths: Array) -> sparse.csr_array:
    """Inverse document frequency times the saturated count: `peg_rag.index.lexical.bm25`, term by term."""
    documents = counts.shape[0]
    holders = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log1p((documents - holders + 0.5) / (holders + 0.5))
    norm = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1.0))
    tf = np.minimum(counts.data, 255)
    rows = np.repeat(np.arange(documents), np.diff(counts.indptr))
    data = (idf[counts.indices] * (K1 + 1) * tf / (tf + norm[rows])).astype(np.float32)
    return sparse.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)


def find_candidates(source: Source) -> Candidates:
    matrix = TermMatrix.of(source)
    columns = matrix.documents.T.tocsr()  # (terms, documents)
    values, numbers, sizes, labels, hits, is_hit = [], [], [], [], [], []
    for row, relevant in enumerate(source.relevant):
        query = matrix.queries[[row]]
        scores = (query @ columns).toarray()[0]
        best = select_best(scores, HITS)
        answer = [] if relevant & set(best.tolist()) else [min(relevant)]  # where no hit is one
        documents = np.array([*answer, *best.tolist()], dtype=int)
        part = matrix.documents[documents][:, query.indices].multiply(query.data).tocsr()
        values.append(part.data)
        numbers.append(query.indices[part.indices])
        sizes.append(np.diff(part.indptr))
        labels.append(np.isin(documents, list(relevant)))
        is_hit.append(np.arange(len(documents)) >= len(answer))
        hits.append(len(documents))
    return Candidates(
        matrix.terms,
        np.concatenate(values).astype(np.float32),
        np.concatenate(numbers).astype(np.int32),
        np.concatenate(sizes).astype(np.int32),
        np.concatenate(labels).astype(np.int8),
        np.array(hits, dtype=np.int32),
        np.concatenate(is_hit),
        np.array([len(relevant) for relevant in source.relevant]),
    )


def select_best(scores: Array, k: int) -> Array:
    """The k best documents with a score above 0, best first, equal ones in order."""
    matches = np.flatnonzero(scores > 0)
    if len(matches) > k:
        least = np.partition(scores[matches], -k)[-k]
        matches = matches[scores[matches] >= least]
    return matches[np.argsort(-scores[matches], kind="stable")][:k]


def make_candidates(out: Path, data: Path) -> None:
    folder = out / "candidates"
    folder.mkdir(parents=True, exist_ok=True)
    for file in tqdm(permitted_files(data), desc="sources"):
        source_file = folder / f"{file.name.removesuffix('.jsonl.zst')}.npz"
        if not source_file.is_file():
            np.savez(source_file, **vars(find_candidates(read_source(file))))


@lru_cache(maxsize=1)
def load_candidates(out: Path) -> dict[str, Candidates]:
    candidates = {}
    for file in sorted((out / "candidates").glob("*.npz")):
        with np.load(file) as arrays:
            candidates[file.stem] = Candidates(**{name: arrays[name] for name in arrays})
    return candidates


# -- learning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lists:
    """Queries of several sources as lists of hits, the answer first: what theta is learned from.

    Attributes:
        terms: (terms,) the distinct terms, spelled.
        values, numbers: (entries,) as in `Candidates`.
        entry_starts: (hits,) where the entries of each hit begin.
        hit_starts: (queries,) where the hits of each query begin.
        sources: (queries,) int, the number of the source.
        weights: (queries,) how much each counts, 1 in the mean.
    """

    terms: Array
    values: Array
    numbers: Array
    entry_starts: Array
    hit_starts: Array
    sources: Array
    weights: Array

    @classmethod
    def of(cls, by_source: Mapping[str, Candidates], settings: Settings, seed: int = 0) -> "Lists":
        candidates = list(by_source.values())
        terms, inverse = np.unique(np.concatenate([source.terms for source in candidates]), return_inverse=True)
        firsts = np.cumsum([0, *(len(source.terms) for source in candidates)])
        rng = np.random.default_rng(seed)
        values, numbers, sizes, hits, sources = [], [], [], [], []
        for number, source in enumerate(candidates):
            order, counts = select_lists(source, settings)
            if seed:  # other seeds learn from other queries: a sample with replacement
                order, counts = resample(order, counts, rng)
            entries = join_ranges(np.cumsum(source.sizes)[order] - source.sizes[order], source.sizes[order])
            values.append(source.values[entries])
            numbers.append(inverse[firsts[number] + source.numbers[entries]].astype(np.int32))
            sizes.append(source.sizes[order])
            hits.append(counts)
            sources.append(np.full(len(counts), number))
        source_of_query = np.concatenate(sources)
        all_sizes = np.concatenate(sizes).astype(np.int64)
        all_hits = np.concatenate(hits).astype(np.int64)
        return cls(
            terms,
            np.concatenate(values),
            np.concatenate(numbers),
            np.cumsum(all_sizes) - all_sizes,
            np.cumsum(all_hits) - all_hits,
            source_of_query,
            balance_domains([domain_of(name) for name in by_source], source_of_query, settings.balance),
        )


def balance_domains(domains: Sequence[str], sources: Array, balance: float) -> Array:
    """(queries,) weights, 1 in the mean, that take a domain of n queries for one of n ** (1 - balance)."""
    numbers = np.unique(domains, return_inverse=True)[1][sources]
    weights = np.bincount(numbers)[numbers] ** -balance
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def join_ranges(starts: Array, sizes: Array) -> Array:
    """start, start + 1, … start + size - 1 of each."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


def select_lists(candidates: Candidates, settings: Settings) -> tuple[Array, Array]:
    """Hits to learn from, the answer first in each list, and (lists,) their counts.

    The best answer of a query stands against its best other hits; a query without both teaches nothing. Hits without an
    entry are left out.
    """
    order: list[int] = []
    counts: list[int] = []
    start = 0
    for size in candidates.hits[: settings.queries].tolist():
        rows = np.arange(start, start + size)
        start += size
        rows = rows[candidates.sizes[rows] > 0]
        answers = rows[candidates.labels[rows] == 1]
        negatives = rows[candidates.labels[rows] == 0][: settings.negatives]
        if len(answers) and len(negatives):
            order += [int(answers[0]), *negatives.tolist()]
            counts.append(1 + len(negatives))
    return np.array(order, dtype=np.int64), np.array(counts, dtype=np.int64)


def resample(order: Array, counts: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    rows = np.sort(rng.integers(0, len(counts), len(counts)))
    starts = np.cumsum(counts) - counts
    return order[join_ranges(starts[rows], counts[rows])], counts[rows]


def part_places(terms: Sequence[str], settings: Settings) -> sparse.csr_array:
    """(terms, SIZE): which places of the table each term adds up."""
    places = [hash_parts(term) for term in terms]
    if settings.parts == "own":
        places = [term_places[:1] for term_places in places]
    elif settings.parts == "characters":
        places = [term_places[1:] if len(term_places) > 2 else term_places for term_places in places]
    elif settings.parts == "kinds":
        places = [term_places[1:2] for term_places in places]
    counts = np.array([len(term_places) for term_places in places])
    starts = np.cumsum([0, *counts.tolist()])
    return sparse.csr_array(
        (np.ones(starts[-1], np.float32), np.concatenate(places).astype(np.int32), starts), shape=(len(terms), SIZE)
    )


Objective = Callable[[Array], tuple[float, Array]]


def make_objective(lists: Lists, settings: Settings) -> tuple[Objective, Array]:
    """A function from parameters to a loss and its slopes, and the parameters to start from.

    The parameters are the (SIZE,) table and the logarithm of each source's scale. The loss is the weighted sum over
    queries of -log softmax(scale * score) of the answer, plus `decay` / 2 times the squared length of the table.
    """
    places = part_places(lists.terms.tolist(), settings)
    places_by_part = places.T.tocsr()
    sources = int(lists.sources.max()) + 1
    hits = np.diff(lists.hit_starts, append=len(lists.entry_starts))
    sizes = np.diff(lists.entry_starts, append=len(lists.values))
    query_of_hit = np.repeat(np.arange(len(hits)), hits)

    def objective(parameters: Array) -> tuple[float, Array]:
        table = parameters[:SIZE]
        scale = np.exp(parameters[SIZE:])[lists.sources].astype(np.float32)  # (queries,)
        multipliers = np.exp(places @ table).astype(np.float32)  # (terms,)
        weighted = lists.values * multipliers[lists.numbers]  # (entries,)
        scores = np.add.reduceat(weighted, lists.entry_starts)  # (hits,)
        logits = scores * scale[query_of_hit]
        logits -= np.maximum.reduceat(logits, lists.hit_starts)[query_of_hit]
        exponentials = np.exp(logits)
        totals = np.add.reduceat(exponentials, lists.hit_starts)
        losses = np.log(totals) - logits[lists.hit_starts]  # (queries,)
        value = float(np.sum(lists.weights * losses, dtype=np.float64))
        slopes = exponentials / totals[query_of_hit]
        slopes[lists.hit_starts] -= 1
        slopes *= lists.weights[query_of_hit]  # (hits,) of the loss by logit
        of_scales = np.bincount(lists.sources, np.add.reduceat(slopes * scores, lists.hit_starts) * scale, sources)
        of_entries = np.repeat(slopes * scale[query_of_hit], sizes)
        of_terms = np.bincount(lists.numbers, of_entries * weighted, len(lists.terms))
        of_table = places_by_part @ of_terms + settings.decay * table
        return value + settings.decay / 2 * float(table @ table), np.concatenate([of_table, of_scales])

    return objective, np.concatenate([np.zeros(SIZE), np.full(sources, np.log(FIRST_SCALE))])


def learn_table(lists: Lists, settings: Settings) -> Array:
    """(SIZE,) the table that explains the answers best, by L-BFGS."""
    objective, start = make_objective(lists, settings)
    options = {"maxiter": settings.steps, "maxcor": 10}
    result = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(result.x[:SIZE], dtype=np.float32)


def sum_parts(table: Array, terms: Sequence[str], settings: Settings) -> Array:
    """(terms,) the sum of each term's parts."""
    return np.asarray(part_places(terms, settings) @ table)


# -- settings and shrinkage, on domains left out ----------------------------------------------------------------------


def load_table(out: Path, settings: Settings, left_out: Sequence[str] = (), seed: int = 0) -> Array:
    """The table of all domains but some; read from its file where it was learned before."""
    name = "_".join(["without", *left_out]) if left_out else "all"
    file = out / "tables" / f"{name}-{settings.name}-{seed}.npy"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        candidates = {name: one for name, one in load_candidates(out).items() if domain_of(name) not in left_out}
        np.save(file, learn_table(Lists.of(candidates, settings, seed), settings))
    return np.asarray(np.load(file))


def shrink_table(table: Array) -> TermWeights:
    """The weights that an index takes: a share of theta, centred.

    Every term has exactly one kind, so what is taken from all kinds alike changes no ranking. It keeps the scores of
    Chinese queries where BM25 has them.
    """
    table = table.copy()
    kinds = [hash_parts(term)[1] for term in ("花", "花呗", "api", "2024")]
    table[kinds] -= table[kinds[:2]].mean()
    return TermWeights.of(SHRINKAGE * table)


def ndcg_of_hits(candidates: Candidates, theta: Array) -> Array:
    """(queries,) nDCG@10 of BM25's own hits in the order of the weighted scores, of the first `VALIDATION` queries."""
    weighted = candidates.values * np.exp(theta)[candidates.numbers]
    ends = np.cumsum(candidates.sizes)
    sums = np.concatenate([[0.0], np.cumsum(weighted, dtype=np.float64)])
    scores = sums[ends] - sums[ends - candidates.sizes]
    values = []
    start = 0
    for size, relevant in zip(candidates.hits[:VALIDATION].tolist(), candidates.relevant.tolist(), strict=False):
        rows = np.arange(start, start + size)[candidates.is_hit[start : start + size]]
        start += size
        gains = candidates.labels[rows][np.argsort(-scores[rows], kind="stable")][:CUTOFF]
        ideal = np.sum(1 / np.log2(np.arange(2, 2 + min(relevant, CUTOFF))))
        values.append(float(np.sum(gains / np.log2(np.arange(2, 2 + len(gains)))) / ideal))
    return np.array(values)


def left_out_gains(out: Path, settings: Settings, seed: int, shrinkages: Sequence[float]) -> dict[str, list[float]]:
    """By domain, what BM25 gains in points of nDCG@10 with a table that never saw it, for each shrinkage."""
    candidates = load_candidates(out)
    gains: dict[str, list[float]] = {}
    for fold in FOLDS:
        table = load_table(out, settings, fold, seed)
        for name, source in candidates.items():
            if domain_of(name) in fold:
                theta = sum_parts(table, source.terms.tolist(), settings)
                base = ndcg_of_hits(source, 0 * theta)
                gains[name] = [100 * float(np.mean(ndcg_of_hits(source, s * theta) - base)) for s in shrinkages]
    columns = [by_domain({name: row[i] for name, row in gains.items()}) for i in range(len(shrinkages))]
    return {domain: [column[domain] for column in columns] for domain in columns[0]}


def choose(out: Path) -> None:
    """What BM25 gains on domains that the table never saw, by settings and shrinkage; the chosen ones by seed, too."""
    runs = Runs(out / "choices.jsonl")
    trials = [(settings, 0) for settings in CHOICES] + [(CHOSEN, seed) for seed in SEEDS]
    for settings, seed in trials:
        key = {"settings": settings.name, "seed": seed}
        if not runs.has(key):
            start = process_time()
            gains = left_out_gains(out, settings, seed, SHRINKAGES)
            runs.add({**key, "gains": gains, "seconds": process_time() - start})


# -- beside the dense side and the reranker ---------------------------------------------------------------------------

SYSTEMS = ("bm25", "hybrid", "reranked")
Order = list[tuple[int, float]]


@dataclass(frozen=True)
class Searcher:
    """How the queries of a source, or of an evaluation set, are answered.

    Attributes:
        folder: of an index of the documents, whose ids are their numbers.
        encoder: the dense side.
        reranker: of the hybrid's first hits.
    """

    folder: Path
    encoder: PEGEncoder
    reranker: MiniReranker

    def add(self, texts: Sequence[str]) -> None:
        with PEGIndex(self.folder) as index:
            index.upsert([str(number) for number in range(len(texts))], texts, self.encoder.encode_documents(texts))
            index.persist()

    def search(self, queries: Sequence[str], weights: TermWeights | None) -> Iterator[dict[str, Order]]:
        """For each query what each of `SYSTEMS` puts first: document numbers and scores, best first."""
        with PEGIndex(self.folder, term_weights=weights, read_only=True) as index:
            for start in range(0, len(queries), 100):
                batch = queries[start : start + 100]
                vectors = self.encoder.encode_queries(batch)
                by_terms = index.search_batch(texts=batch, k=CUTOFF, mode="lexical")
                fused = index.search_batch(vectors, batch, k=HITS, mode="hybrid")
                for query, lexical, hits in zip(batch, by_terms, fused, strict=True):
                    scores = self.reranker.score_hits(query, hits)
                    order = np.argsort(-scores, kind="stable").tolist()
                    yield {
                        "bm25": [(int(hit.id), hit.score) for hit in lexical],
                        "hybrid": [(int(hit.id), hit.score) for hit in hits],
                        "reranked": [(int(hits[row].id), float(scores[row])) for row in order],
                    }


def ndcg(order: Order, relevant: set[int]) -> float:
    gains = [1 / np.log2(2 + rank) for rank, (number, _) in enumerate(order[:CUTOFF]) if number in relevant]
    return float(sum(gains) / sum(1 / np.log2(2 + rank) for rank in range(min(len(relevant), CUTOFF))))


def validate(out: Path, reranker_out: Path, data: Path, queries: int) -> None:
    """The systems on each source, all of them blind to its domain, without weights and with them."""
    runs = Runs(out / "validation.jsonl")
    plain = plain_results(out, reranker_out, queries)
    for file in permitted_files(data):
        name = file.name.removesuffix(".jsonl.zst")
        key = {"source": name, "settings": CHOSEN.name, "shrinkage": SHRINKAGE, "queries": queries}
        if not runs.has(key):
            (fold,) = [fold for fold in FOLDS if domain_of(name) in fold]
            source = read_source(file)
            folder = blind_half(reranker_out, source.domain)
            weights = shrink_table(load_table(out, CHOSEN, fold))
            with PEGEncoder(folder) as encoder, TemporaryDirectory() as index_folder:
                searcher = Searcher(Path(index_folder), encoder, fit(reranker_out, folder, fold))
                searcher.add(source.texts)
                values = [
                    [ndcg(orders[system], relevant) for system in SYSTEMS]
                    for orders, relevant in zip(
                        searcher.search(source.queries[:queries], weights), source.relevant, strict=False
                    )
                ]
            runs.add({**key, "plain": plain[name], "weighted": np.mean(values, axis=0).tolist()})


def plain_results(out: Path, reranker_out: Path, queries: int) -> dict[str, list[float]]:
    """By source, what the systems score without weights: from what this script and `reranker.py` searched before."""
    judged = load_judged(reranker_out)
    trees = left_out_scores(reranker_out, judged)
    results = {}
    for name, candidates in load_candidates(out).items():
        bm25 = ndcg_of_hits(candidates, np.zeros(len(candidates.terms)))
        orders = [judged[name].fused, judged[name].blended(trees[name], SHARE)]
        sides = [bm25, *(judged[name].ndcg(order) for order in orders)]
        results[name] = [float(np.mean(values[:queries])) for values in sides]
    return results


# -- the bundled file, and what it is worth ---------------------------------------------------------------------------


def fit_bundled(out: Path, data: Path) -> None:
    """Write the table that is learned from all permitted sources."""
    sources = [file.name.removesuffix(".jsonl.zst") for file in permitted_files(data)]
    weights = shrink_table(load_table(out, CHOSEN))
    weights.save(bundled_path("term-weights-mini"), sources=sources)


def report(out: Path, reranker_out: Path, data: Path, queries: int) -> None:
    """Score the evaluation sets with the bundled files, and left-out domains with what never saw them."""
    runs = Runs(RESULTS / "term_weights.jsonl")
    for folder in sorted(path for path in (data / "eval").iterdir() if path.is_dir() and path.name not in NOT_CHINESE):
        if not runs.has({"left_out": None, "set": folder.name}):
            with PEGEncoder("peg-mini") as encoder, TemporaryDirectory() as index_folder:
                searcher = Searcher(Path(index_folder), encoder, load_reranker("mini"))
                row = compare_weights(searcher, load_term_weights("mini"), load_beir(folder), queries)
            runs.add({"left_out": None, **row})
    for domain, name in EVALUATION_DOMAINS.items():
        if not runs.has({"left_out": domain}):
            (fold,) = [fold for fold in FOLDS if domain in fold]
            folder = blind_half(reranker_out, domain)
            weights = shrink_table(load_table(out, CHOSEN, fold))
            with PEGEncoder(folder) as encoder, TemporaryDirectory() as index_folder:
                searcher = Searcher(Path(index_folder), encoder, fit(reranker_out, folder, fold))
                row = compare_weights(searcher, weights, load_beir(data / "eval" / name), queries)
            runs.add({"left_out": domain, **row})


def compare_weights(
    searcher: Searcher, weights: TermWeights, dataset: RetrievalDataset, queries: int
) -> dict[str, Any]:
    """Each system without and with weights on the same queries: those first by the hash of their text."""
    names = sorted(dataset.qrels, key=lambda name: text_key(dataset.queries[name]))[:queries]
    sample = replace(dataset, qrels={name: dataset.qrels[name] for name in names})
    ids = list(dataset.corpus)
    searcher.add(list(dataset.corpus.values()))
    sides: list[dict[str, Evaluation]] = []
    for side in (None, weights):
        runs: dict[str, Run] = {system: {} for system in SYSTEMS}
        results = searcher.search([dataset.queries[name] for name in names], side)
        for name, orders in zip(names, results, strict=True):
            for system, order in orders.items():
                runs[system][name] = {ids[number]: score for number, score in order}
        sides.append({system: evaluation(sample, system, run) for system, run in runs.items()})
    row: dict[str, Any] = {"set": dataset.name, "queries": len(names)}
    for system in SYSTEMS:
        plain, weighted = (side[system] for side in sides)
        difference = compare([plain], [weighted])
        row[system] = [plain.mean(), weighted.mean(), difference.low, difference.high, difference.p]
    return row


def measure_speed(data: Path) -> None:
    """Processor seconds of BM25 with the bundled weights and without, taking turns on one source."""
    source = read_source(data / "pairs" / "news-xwlb.jsonl.zst")
    seconds = {"plain": 0.0, "weighted": 0.0}
    with PEGIndex() as plain, PEGIndex(term_weights="mini") as weighted:
        indexes = {"plain": plain, "weighted": weighted}
        for index in indexes.values():
            index.upsert(
                [str(number) for number in range(len(source.texts))], source.texts, np.ones((len(source.texts), 2))
            )
            index.search(text=source.queries[0])
        for query in source.queries[:500]:
            for name, index in indexes.items():
                start = process_time()
                index.search(text=query)
                seconds[name] += process_time() - start
    print(f"{len(source.texts):,} documents, {seconds}: ratio {seconds['weighted'] / seconds['plain']:.3f}")


def write_results(out: Path) -> None:
    """`results/term_weights.md` from what the steps logged."""
    lines = ["# Learned weights of query terms", "", "Made by `train/term_weights.py`. nDCG@10, differences in points."]
    lines += ["", "## Settings: BM25's own 50 hits in the new order, domains that the table never saw", ""]
    lines += choice_table(Runs(out / "choices.jsonl"))
    validation = list(Runs(out / "validation.jsonl"))
    for name in dict.fromkeys(row["settings"] for row in validation):
        rows = [row for row in validation if row["settings"] == name]
        lines += ["", f"## Validation: whole searches, domains that nothing in them ever saw (`{name}`)", ""]
        lines += [f"{rows[0]['queries']} queries of each of {len(rows)} sources; half of theta.", ""]
        lines += validation_table(rows)
    runs = list(Runs(RESULTS / "term_weights.jsonl"))
    lines += ["", "## Evaluation sets, the bundled table (scored once)", ""]
    lines += evaluation_table([row for row in runs if row["left_out"] is None])
    lines += ["", "## Evaluation sets, domains that model, trees and table never saw (scored once)", ""]
    lines += evaluation_table([row for row in runs if row["left_out"] is not None])
    text = "\n".join(lines) + "\n"
    (RESULTS / "term_weights.md").write_text(text, encoding="utf-8")
    print(text)


def choice_table(runs: Runs) -> list[str]:
    rows = list(runs)
    domains = list(rows[0]["gains"])
    lines = [f"| parts | decay | queries | balance | seed | share of theta | mean | {' | '.join(domains)} |"]
    lines += ["|---|" + "---:|" * (6 + len(domains))]
    for row in rows:
        parts, decay, _, queries, balance, _ = row["settings"].split("-")
        for place, shrinkage in enumerate(SHRINKAGES):
            gains = [row["gains"][domain][place] for domain in domains]
            values = " | ".join(f"{gain:+.1f}" for gain in gains)
            lines.append(
                f"| {parts} | {decay} | {queries} | {balance} | {row['seed']} | {shrinkage} "
                f"| **{np.mean(gains):+.2f}** | {values} |"
            )
    return lines


def validation_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """By domain, each system without weights, and what it gains with them."""
    sides = [
        [by_domain({row["source"]: row[side][place] for row in rows}) for side in ("plain", "weighted")]
        for place in range(len(SYSTEMS))
    ]
    lines = [f"| domain | {' | '.join(f'{system} | gain' for system in SYSTEMS)} |", "|---|" + "---:|" * 6]
    lines += [table_row(d, [(plain[d], weighted[d]) for plain, weighted in sides]) for d in sides[0][0]]
    means = [(float(np.mean(list(p.values()))), float(np.mean(list(w.values())))) for p, w in sides]
    return [*lines, table_row("**mean**", means)]


def table_row(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    cells = [f"{plain:.3f} | {100 * (weighted - plain):+.2f}" for plain, weighted in pairs]
    return f"| {name} | {' | '.join(cells)} |"


def evaluation_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| set | queries | bm25 | gain | hybrid | gain | reranked | gain |", "|---|" + "---:|" * 7]
    for row in rows:
        cells = []
        for system in SYSTEMS:
            plain, weighted, low, high, _ = row[system]
            cells.append(f"{plain:.3f} | {100 * (weighted - plain):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        lines.append(f"| {row['set']} | {row['queries']:,} | {' | '.join(cells)} |")
    if rows:
        means = [(float(np.mean([r[s][0] for r in rows])), float(np.mean([r[s][1] for r in rows]))) for s in SYSTEMS]
        lines.append(table_row("**mean** |", means))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["candidates", "choose", "validate", "fit", "report", "speed", "table"])
    parser.add_argument("--out", type=Path, required=True, help="where candidates and tables go")
    parser.add_argument("--reranker", type=Path, default=Path("runs/reranker"), help="made by reranker.py")
    parser.add_argument("--queries", type=int, default=VALIDATION, help="of a source or set, for validate and report")
    arguments = parser.parse_args()
    data = data_folder()
    if arguments.step == "candidates":
        make_candidates(arguments.out, data)
    elif arguments.step == "choose":
        choose(arguments.out)
    elif arguments.step == "validate":
        validate(arguments.out, arguments.reranker, data, arguments.queries)
    elif arguments.step == "fit":
        fit_bundled(arguments.out, data)
    elif arguments.step == "report":
        report(arguments.out, arguments.reranker, data, arguments.queries)
    elif arguments.step == "speed":
        measure_speed(data)
    if arguments.step in ("choose", "validate", "report", "table"):
        write_results(arguments.out)


if __name__ == "__main__":
    main()
