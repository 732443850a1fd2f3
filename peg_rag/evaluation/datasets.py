"""Readers of evaluation sets: BEIR folders, DuReader-retrieval and STS files, as small typed objects.

A silently dropped line changes every score, so a reader stops at the first line that it cannot use and names the file
and the line. Sets are held in memory as Python strings: about 200 MB for a million Chinese passages of 60 characters.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np

from peg_rag.errors import DataError
from peg_rag.files import open_packed, unreadable
from peg_rag.records import parse_json_lines

logger = logging.getLogger(__name__)

Qrels = dict[str, dict[str, int]]
SUFFIXES = ("", ".gz", ".zst")


@dataclass(frozen=True, slots=True)
class RetrievalDataset:
    """A corpus, queries over it and their relevance judgements.

    Attributes:
        name: the folder's name.
        corpus: document id → text (title and text, where there is a title).
        queries: query id → text; only queries that have a judgement.
        qrels: query id → document id → grade (0: judged and not relevant).
    """

    name: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class SentencePairs:
    """Two sentences a row and how close a person found them (STS): `labels` is (n,) float64, larger is closer."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: np.ndarray


def load_beir(folder: str | Path, split: str = "test") -> RetrievalDataset:
    """Read a folder in BEIR's form: `corpus.jsonl`, `queries.jsonl` (plain, `.gz` or `.zst`) and `qrels/<split>.tsv`.

    Raises:
        DataError: a file is missing or a line cannot be used (the message gives file and line); a judged query is
            not among the queries.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with corpus.jsonl, queries.jsonl, qrels/{split}.tsv")
    qrels_file = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(qrels_file)
    corpus = _read_texts(_find_packed(folder / "corpus.jsonl"))
    queries = _read_texts(_find_packed(folder / "queries.jsonl"))
    if unknown := [query for query in qrels if query not in queries]:
        raise DataError(f"{qrels_file}: {len(unknown)} queries are not in queries.jsonl, the first is {unknown[0]!r}")
    _warn_of_missing_documents(folder, qrels, corpus)
    return RetrievalDataset(folder.name, corpus, {query: queries[query] for query in qrels}, qrels)


def load_dureader(folder: str | Path, split: str = "dev") -> RetrievalDataset:
    """Read DuReader-retrieval as it is distributed: `<split>/<split>.json` and the `passage-collection` folder.

    A passage is the third of four tab-separated fields of a line; lines are counted from 0 over `part-00`, `part-01`, …
    and `passage2id.map.json` gives each line its passage id. Every paragraph named as an answer is relevant (grade 1).

    Raises:
        DataError: a file is missing or a line cannot be used (the message gives file and line).
    """
    folder = Path(folder)
    corpus = _read_passages(folder / "passage-collection")
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    questions = _find_packed(folder / split / f"{split}.json")
    for number, row in _read_json_rows(questions):
        try:
            query, text = str(row["question_id"]), str(row["question"])
            qrels[query] = {str(answer["paragraph_id"]): 1 for answer in row["answer_paragraphs"]}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{questions}, line {number}: expected question_id, question and answer_paragraphs with a paragraph_id "
                f"each ({type(error).__name__}: {error})"
            ) from None
        queries[query] = text
    if not qrels:
        raise DataError(f"{questions} has no questions")
    _warn_of_missing_documents(folder, qrels, corpus)
    return RetrievalDataset(f"dureader-{split}", corpus, queries, qrels)


def load_dataset(folder: str | Path) -> RetrievalDataset:
    """A BEIR folder, or DuReader-retrieval's, told apart by what lies in it."""
    folder = Path(folder)
    return load_dureader(folder) if (folder / "passage-collection").is_dir() else load_beir(folder)


def load_sts(path: str | Path) -> SentencePairs:
    """Read a tab-separated file with the header `sentence1 sentence2 label` and numeric labels."""
    path = Path(path)
    rows = []
    for number, row in _tsv_rows(path, ["sentence1", "sentence2", "label"]):
        try:
            rows.append((row[0], row[1], float(row[2])))
        except ValueError:
            raise DataError(f"{path}, line {number}: the label must be a number, got {row[2]!r}") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    first, second, labels = zip(*rows, strict=True)
    return SentencePairs(path.name.removesuffix(".tsv"), first, second, np.array(labels, dtype=np.float64))


def as_reranking(pairs: SentencePairs) -> RetrievalDataset:
    """Graded pairs as a reranking set: each first sentence is a query, and its second sentences are the candidates.

    The rounded labels are the grades. Queries whose candidates are all relevant, or all not relevant, are left out:
    every order of them scores the same.

    Raises:
        DataError: no query is left.
    """
    grades: dict[str, dict[str, int]] = {}
    for query, text, label in zip(pairs.first, pairs.second, pairs.labels.tolist(), strict=True):
        grades.setdefault(query, {})[text] = round(label)
    grades = {query: texts for query, texts in grades.items() if min(texts.values()) <= 0 < max(texts.values())}
    if not grades:
        raise DataError(f"{pairs.name} has no query with both relevant and other candidates")
    ids = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(text for texts in grades.values() for text in texts))}
    queries = {f"q{i}": query for i, query in enumerate(grades)}
    qrels = {name: {ids[text]: grade for text, grade in grades[query].items()} for name, query in queries.items()}
    return RetrievalDataset(f"{pairs.name} (reranking)", {name: text for text, name in ids.items()}, queries, qrels)


def with_candidates(dataset: RetrievalDataset, run: Mapping[str, Mapping[str, float]], k: int = 50) -> RetrievalDataset:
    """A search task as a reranking set: the first `k` of a run and the judged documents are a query's candidates.

    Unjudged documents count as not relevant, so the scores compare two systems and mean little alone.
    """
    qrels: Qrels = {}
    for query, judged in dataset.qrels.items():
        top = sorted(run.get(query, {}).items(), key=lambda hit: -hit[1])[:k]
        qrels[query] = {document: 0 for document, _ in top} | dict(judged)
    candidates = {document for judged in qrels.values() for document in judged}
    corpus = {document: text for document, text in dataset.corpus.items() if document in candidates}
    qrels = {query: {d: grade for d, grade in judged.items() if d in corpus} for query, judged in qrels.items()}
    return RetrievalDataset(f"{dataset.name} (reranking)", corpus, dataset.queries, qrels)


def _open_text(path: Path) -> IO[str]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    return TextIOWrapper(open_packed(path, "eval"), encoding="utf-8", newline="\n")


def _read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number (from 1) and the object of every line of a JSON Lines file; blank lines are left out."""
    for row in parse_json_lines((line for _, line in _read_lines(path)), path, bad_rows="raise"):
        yield row.line, row.value


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines; a file that is cut short or is not UTF-8 becomes a DataError naming the last good line."""
    number = 0
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except unreadable(UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read after line {number} ({error}); is the file complete?") from error


def _find_packed(path: Path) -> Path:
    for suffix in SUFFIXES:
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    raise DataError(f"{path} does not exist, neither plain nor packed as .gz or .zst")


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in _read_json_rows(path):
        identifier, text, title = row.get("_id"), row.get("text"), row.get("title") or ""
        if not isinstance(identifier, str) or not isinstance(text, str) or not isinstance(title, str):
            raise DataError(
                f'{path}, line {number}: expected strings "_id", "text" (and "title"), got {str(row)[:200]}'
            )
        if identifier in texts:
            raise DataError(f"{path}, line {number}: the id {identifier!r} was already used")
        texts[identifier] = f"{title} {text}".strip() if title else text
    if not texts:
        raise DataError(f"{path} is empty")
    return texts


def _read_passages(folder: Path) -> dict[str, str]:
    names = folder / "passage2id.map.json"
    try:
        ids: dict[str, str] = json.loads(names.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{names} cannot be read ({error}); expected a JSON object of line number → passage id"
        ) from None
    parts = sorted(path for path in folder.glob("part-*") if path.is_file())
    corpus: dict[str, str] = {}
    for part, number, line in ((path, number, line) for path in parts for number, line in _read_lines(path)):
        fields = line.split("\t")
        if len(fields) != 4:
            raise DataError(f"{part}, line {number}: expected 4 tab-separated fields, got {len(fields)}")
        if (identifier := ids.get(str(len(corpus)))) is None or identifier in corpus:
            raise DataError(f"{part}, line {number}: {names.name} gives line {len(corpus)} no id of its own")
        corpus[identifier] = fields[2]
    if not corpus:
        raise DataError(f"{folder} has no passages; expected files part-00, part-01, …")
    return corpus


def _warn_of_missing_documents(folder: Path, qrels: Qrels, corpus: Mapping[str, str]) -> None:
    absent = sum(document not in corpus for judged in qrels.values() for document in judged)
    if absent:
        logger.warning("%s: %d judged documents are not in the corpus; nothing can find them", folder, absent)


def _tsv_rows(path: Path, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    lines = _read_lines(path)
    _, first = next(lines, (0, ""))
    if first.split("\t") != header:
        raise DataError(f"{path}, line 1: expected the header {' '.join(header)} (tab-separated), got {first[:200]!r}")
    for number, line in lines:
        row = line.split("\t")
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: expected {len(header)} tab-separated fields, got {len(row)}")
        yield number, row


def _read_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for number, (query, document, grade) in _tsv_rows(path, ["query-id", "corpus-id", "score"]):
        try:
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise DataError(f"{path}, line {number}: the grade must be a whole number, got {grade!r}") from None
    if not qrels:
        raise DataError(f"{path} has no judgements")
    return qrels
