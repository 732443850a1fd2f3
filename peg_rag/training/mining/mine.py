"""Hard negatives: for every training pair, passages that a first model ranks high and that answer nothing.

Random negatives are told apart after a few hundred steps; what a model still confuses teaches it. The danger is the
unlabelled right answer among them, so three nets catch those: equal texts, every known positive of the query (from all
rows that ask it), and a margin below the positive's own score, absolute or relative (the positive-aware mining of
NV-Retriever, arXiv 2407.15831, section 3.2).

Costs one encoding of the corpus and the queries, an exact search (2·queries·corpus·dimension operations), and
memory for one shard of vectors; `peg_rag.training.mining.approximate` is for millions of passages. Every finished
shard stays on disk, so an interrupted run goes on where it stopped.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from peg_rag.errors import DataError, InvalidInput
from peg_rag.extras import require_zstd
from peg_rag.files import write_atomically
from peg_rag.retriever import Encoder
from peg_rag.training.data.files import read_lines, read_rows
from peg_rag.training.data.sampler import mix
from peg_rag.training.data.texts import clean_text, text_key
from peg_rag.training.data.tokens import Ints
from peg_rag.training.mining.approximate import search_approximately
from peg_rag.training.mining.search import (
    Corpus,
    Floats,
    PairTexts,
    Ranking,
    encode_shards,
    search_corpus,
    search_words,
    vector_at,
)
from peg_rag.training.recipe import Columns

logger = logging.getLogger(__name__)
SPARE_RANKS = 64  # that known positives and given negatives may take up
TEXT_COLUMNS = ("text", "positive", "passage", "document")


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """How negatives are chosen.

    Attributes:
        negatives: for each pair; a pair may get fewer.
        first_rank, last_rank: only candidates of these ranks (from 1, known positives not counted) are considered.
        margin: a candidate must score below the positive's cosine less this; None switches it off.
        relative_margin: a candidate must score below this share of the positive's cosine; None switches it off.
        random: draw among the candidates instead of taking the best.
        bm25: every other candidate is BM25's; the margins, by the encoder's cosine, hold for those too.
        keep: negatives that the file gives come first.
        approximate: look through product-quantised lists instead of every vector: for millions of passages; needs
            faiss, and misses some of the nearest.
        seed: of the draw.
    """

    negatives: int = 5
    first_rank: int = 1
    last_rank: int = 100
    margin: float | None = None
    relative_margin: float | None = 0.95
    random: bool = False
    bm25: bool = False
    keep: bool = True
    approximate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise InvalidInput(f"negatives={self.negatives} must be 1 or more")
        if not 1 <= self.first_rank <= self.last_rank:
            raise InvalidInput(
                f"ranks {self.first_rank} to {self.last_rank} are no range; 1 <= first <= last is expected"
            )


@dataclass
class MiningReport:
    """What mining did.

    Attributes:
        pairs, corpus: how many there were.
        negatives: how many were written.
        short: pairs with fewer negatives than were asked for.
        refused: candidates that became none, by reason.
    """

    pairs: int = 0
    corpus: int = 0
    negatives: int = 0
    short: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def mine_hard_negatives(
    pairs: Path | Sequence[Path],
    out: Path,
    encoder: Encoder,
    *,
    corpus: Path | Sequence[Path] | None = None,
    options: MiningOptions | None = None,
    shard_rows: int = 100_000,
    columns: Columns | None = None,
    show_progress: bool = False,
) -> MiningReport:
    """Write the pairs with mined negatives to `out` (.jsonl, .jsonl.gz or .jsonl.zst).

    Args:
        pairs: files of query, positive and perhaps negatives, as for training.
        encoder: the first model.
        corpus: files whose rows have a column text, positive, passage or document, or .txt files of one text a line;
            None for the positives and negatives of the pairs themselves.
        shard_rows: corpus rows whose vectors are in memory at once.

    An interrupted call, made again with the same arguments, goes on from the shards in `<out>.mining`.

    Raises:
        DataError: a file is missing or holds nothing usable.
    """
    options = options or MiningOptions()
    pair_texts = _read_pairs(_list_paths(pairs), columns or Columns())
    passages = _read_corpus(_list_paths(corpus) if corpus is not None else None, pair_texts)
    work = _work_folder(out, pair_texts, passages, encoder, options, shard_rows)
    total = len(passages.texts) + len(pair_texts.queries)
    with tqdm(total=total, desc="encode", unit="text", disable=not show_progress) as bar:
        queries = encode_shards(work / "queries", pair_texts.queries, encoder.encode_queries, shard_rows, bar)
        documents = encode_shards(work / "documents", passages.texts, encoder.encode_documents, shard_rows, bar)
    k = options.last_rank + SPARE_RANKS
    if options.approximate:
        ranking = search_approximately(
            work / "approximate", queries, documents, passages.searched, k, show_progress=show_progress
        )
    else:
        ranking = search_corpus(work, queries, documents, passages.searched, k, show_progress)
    rankings = [ranking]
    if options.bm25:
        rankings.append(search_words(work, pair_texts, passages, queries, documents, k, show_progress))
    report = MiningReport(len(pair_texts.queries), passages.searched)
    _write_rows(out, _choose_negatives(pair_texts, passages, queries, documents, rankings, options, report))
    shutil.rmtree(work)
    return report


def _list_paths(paths: Path | Sequence[Path]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]


def _read_pairs(files: list[Path], columns: Columns) -> PairTexts:
    queries: list[str] = []
    positives: list[str] = []
    negatives: list[list[str]] = []
    for file in files:
        before = len(queries)
        for _, row in read_rows(file):
            query = _clean_column(row, columns.query)
            positive = _clean_column(row, columns.positive)
            if query and positive:
                queries.append(query)
                positives.append(positive)
                negatives.append(_clean_negatives(row, columns.negatives))
        if len(queries) == before:
            raise DataError(f"{file} has no row with texts in {columns.query!r} and {columns.positive!r}")
    return PairTexts(queries, positives, negatives, _hash_texts(queries), _hash_texts(positives))


def _clean_column(row: Any, column: str) -> str:
    value = None if isinstance(row, str) else row.get(column)
    return clean_text(value) if isinstance(value, str) else ""


def _clean_negatives(row: Any, column: str | None) -> list[str]:
    value = None if isinstance(row, str) or column is None else row.get(column)
    if not isinstance(value, list):
        return []
    return [clean_text(text) for text in value if isinstance(text, str)]


def _read_corpus(files: list[Path] | None, pairs: PairTexts) -> Corpus:
    source: Iterable[str] = [*pairs.positives, *(text for row in pairs.negatives for text in row)]
    if files is not None:
        source = (text for file in files for text in _corpus_texts(file))
    texts, keys = _drop_repeats(source, set())
    searched = len(texts)
    if not searched:
        raise DataError(
            "the corpus has no text; give --corpus a file with a column text, positive, passage or document"
        )
    extra, extra_keys = _drop_repeats(pairs.positives, set(keys))
    return Corpus(texts + extra, np.array(keys + extra_keys, dtype=np.int64), searched)


def _corpus_texts(file: Path) -> Iterator[str]:
    if ".txt" in file.suffixes:
        yield from read_lines(file)
        return
    for _, row in read_rows(file):
        if isinstance(row, str):
            continue
        title = _clean_column(row, "title")
        cleaned = (_clean_column(row, column) for column in TEXT_COLUMNS)
        text = next((text for text in cleaned if text), "")
        if text:
            yield f"{title} {text}".strip()


def _drop_repeats(texts: Iterable[str], used_keys: set[int]) -> tuple[list[str], list[int]]:
    """Texts whose keys are not among `used_keys`, to which they are added; and those keys."""
    distinct = []
    keys = []
    for text in texts:
        key = text_key(text)
        if key not in used_keys:
            used_keys.add(key)
            distinct.append(text)
            keys.append(key)
    return distinct, keys


def _hash_texts(texts: list[str]) -> Ints:
    return np.fromiter(map(text_key, texts), dtype=np.int64, count=len(texts))


def _work_folder(
    out: Path, pairs: PairTexts, corpus: Corpus, encoder: Encoder, options: MiningOptions, shard_rows: int
) -> Path:
    """Where shards lie. A folder of another call (other texts, encoder or shards) is emptied."""
    digest = hashlib.blake2b(digest_size=12)
    for keys in (pairs.query_keys, pairs.positive_keys, corpus.keys):
        digest.update(keys.tobytes())
    identity = getattr(encoder, "identity", type(encoder).__name__)
    digest.update(json.dumps([identity, options.last_rank, shard_rows, corpus.searched]).encode())
    work = out.with_name(f"{out.name}.mining")
    mark = work / "call"
    if mark.is_file() and mark.read_text() == digest.hexdigest():
        logger.info("going on with %s", work)
        return work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_atomically(mark, digest.hexdigest().encode())
    return work


def _choose_negatives(
    pairs: PairTexts,
    corpus: Corpus,
    queries: list[Floats],
    documents: list[Floats],
    rankings: Sequence[Ranking],
    options: MiningOptions,
    report: MiningReport,
) -> Iterator[dict[str, Any]]:
    """The rows of the output, negatives chosen from the rankings in turn."""
    row_of = {key: row for row, key in enumerate(corpus.keys.tolist())}
    answers: dict[int, set[int]] = {}
    for query_key, positive_key in zip(pairs.query_keys.tolist(), pairs.positive_keys.tolist(), strict=True):
        answers.setdefault(query_key, {query_key}).add(positive_key)
    for i, query in enumerate(pairs.queries):
        own_answers = answers[int(pairs.query_keys[i])]
        positive = vector_at(documents, row_of[int(pairs.positive_keys[i])])
        limit = _score_limit(float(vector_at(queries, i) @ positive), options)
        negatives = []
        if options.keep:
            negatives = [text for text in pairs.negatives[i] if text_key(text) not in own_answers]
        excluded = own_answers | {text_key(text) for text in negatives}
        lists = [_rank_candidates(ranking, i, corpus, excluded, limit, options, report) for ranking in rankings]
        rows = _interleave_rankings(lists)
        if options.random:
            rows = _shuffle_rows(rows, options.seed, i)
        count = max(options.negatives, len(negatives))
        negatives = [*negatives, *(corpus.texts[row] for row in rows)][:count]
        report.negatives += len(negatives)
        report.short += len(negatives) < options.negatives
        yield {"query": query, "positive": pairs.positives[i], "negatives": negatives}


def _score_limit(positive: float, options: MiningOptions) -> float:
    """The cosine that a negative must stay below, given the positive's."""
    limits = [positive - options.margin] if options.margin is not None else []
    limits += [positive * options.relative_margin] if options.relative_margin is not None and positive > 0 else []
    return min(limits, default=float("inf"))


def _rank_candidates(
    ranking: Ranking,
    pair: int,
    corpus: Corpus,
    excluded: set[int],
    limit: float,
    options: MiningOptions,
    report: MiningReport,
) -> list[int]:
    """Rows of the corpus in the range of ranks and below the limit; known answers are left out before counting."""
    scored = zip(ranking.rows[pair].tolist(), ranking.scores[pair].tolist(), strict=True)
    candidates = [(row, score) for row, score in scored if row >= 0]
    unknown = [(row, score) for row, score in candidates if int(corpus.keys[row]) not in excluded]
    ranged = unknown[options.first_rank - 1 : options.last_rank]
    rows = [row for row, score in ranged if score < limit]
    report.refused["known answer or given"] += len(candidates) - len(unknown)
    report.refused["too close to the positive"] += len(ranged) - len(rows)
    return rows


def _interleave_rankings(lists: Sequence[list[int]]) -> list[int]:
    """The first of each list, then the second of each, …; every row once."""
    rows = [row for turn in zip_longest(*lists) for row in turn if row is not None]
    return list(dict.fromkeys(rows))


def _shuffle_rows(rows: list[int], seed: int, pair: int) -> list[int]:
    order = np.argsort(mix(np.array(rows, dtype=np.uint64), seed, pair), kind="stable")
    return [rows[place] for place in order]


def _write_rows(out: Path, rows: Iterator[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    with _open_for_writing(part, out.suffix) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(out)


def _open_for_writing(part: Path, suffix: str) -> Any:
    import gzip

    if suffix == ".gz":
        return gzip.open(part, "wt", encoding="utf-8")
    if suffix == ".zst":
        return require_zstd("train").open(part, "wt", encoding="utf-8")
    return part.open("w", encoding="utf-8")
