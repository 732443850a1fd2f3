"""Training pairs: files in, memory-mapped rows and token ids out.

A run of days must not stop for one broken line, must not hold its texts in memory and must not tokenise the same text
twice. Each file is read once, cleaned, checked row by row (what is wrong is counted and reported by file and line) and
written as Arrow, from which Hugging Face `datasets` maps it; the token ids lie beside it. Both are cached, keyed by the
file's content and the tokenizer. Costs the first time about a CPU second for 3,000 rows of news (400 characters) or
15,000 of questions, then milliseconds, and 40 bytes of memory a row.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.files import open_atomically, write_atomically
from peg_rag.training.data.files import file_digest, read_rows, source_files
from peg_rag.training.data.texts import clean_text, text_key
from peg_rag.training.data.tokens import (
    KNOWN_TEXTS,
    Ints,
    TokenRows,
    dataset_progress,
    digest,
    list_lengths,
    token_rows_of,
    tokenise_rows,
)
from peg_rag.training.recipe import Columns, SourceOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)
Row = TypeVar("Row")
FAULTS_SHOWN = 5
WRITE_ROWS = 10_000


@dataclass
class ReadReport:
    """What came of reading one file. `dropped` counts rows by reason; `faults` are the first few, with their lines."""

    file: str
    rows: int = 0
    bad: int = 0
    repeated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, line: int, reason: str) -> None:
        self.bad += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(self.faults) < FAULTS_SHOWN:
            self.faults.append(f"{self.file}:{line}: {reason}")


class KeyedFile(Protocol):
    """What sampling and the validation split know of a file, of pairs or of texts; see `PairFile`."""

    @property
    def name(self) -> str:
        """The file's name without its suffixes."""

    @property
    def usable(self) -> Ints:
        """The rows in use, (n,)."""

    @property
    def query_keys(self) -> Ints:
        """Of all rows."""

    @property
    def positive_keys(self) -> Ints:
        """Of all rows; the same for single texts."""

    @property
    def weight(self) -> float:
        """The recipe's factor for this source."""


@dataclass(frozen=True)
class PairFile:
    """One source, ready for training: texts and token ids mapped from disk, the keys of its texts in memory.

    Attributes:
        name: the file's name without its suffixes.
        rows: a `datasets.Dataset` of query, positive, negatives, grade and their keys.
        tokens: a `datasets.Dataset` of query_ids, positive_ids, negatives_ids; row i belongs to row i of `rows`.
        usable: the rows in use (no repeated pair, nothing below the least label), (n,) int64.
        query_keys, positive_keys: of all rows, int64; see `text_key`.
        grades: the label as a number, NaN where there is none, float32.
        weights: by which the rows count in the loss, 1 where the file says nothing, float32.
        groups: of the rows, equal for equal values of the column; −1 where the file says nothing, int64.
        weight: the recipe's factor for this source.
        report: what was wrong with the file.
    """

    name: str
    rows: Any
    tokens: Any
    usable: Ints
    query_keys: Ints
    positive_keys: Ints
    grades: NDArray[np.float32]
    weights: NDArray[np.float32]
    groups: Ints
    weight: float
    report: ReadReport


@dataclass(frozen=True)
class RowTokens:
    """The token ids and keys of some rows: negatives of row i are `negatives` offsets[i] … offsets[i + 1]."""

    queries: TokenRows
    positives: TokenRows
    negatives: TokenRows
    negative_offsets: Ints
    negative_keys: Ints


def load_pairs(
    sources: Sequence[SourceOptions],
    tokenizer: "Tokenizer",
    cache: Path,
    *,
    prompts: Mapping[str, str] | None = None,
    maximum_bad_share: float = 0.01,
    path: str = "sources",
    show_progress: bool = False,
) -> list[PairFile]:
    """Read, clean and tokenise every file of the sources, or find it in the cache.

    Args:
        tokenizer: set to truncate and not to pad.
        prompts: text put before each `query` and each `document` when it is tokenised.
        maximum_bad_share: a file with more bad rows than this stops the run.
        path: where the sources stand in the recipe, for messages.

    Raises:
        DataError: a file is missing, empty, has no such column or too many bad rows.
    """
    files = []
    for i, source in enumerate(sources):
        for file in source_files(source, f"{path}[{i}].path"):
            where = f"{path}[{i}]"
            rows, report = _load_rows(file, source.columns, cache, maximum_bad_share, where)
            with dataset_progress(show_progress):
                anchored = source.columns.anchor is not None
                tokens = tokenise_rows(rows, tokenizer, cache, dict(prompts or {}), anchored=anchored)
            files.append(_make_pair_file(file, source, rows, tokens, report))
    return files


def row_tokens(file: PairFile, rows: Ints) -> RowTokens:
    """Token ids and keys of some rows of a file, read from the memory map."""
    table = file.tokens.with_format("arrow")[rows]
    keys, offsets = row_negative_keys(file, rows)
    return RowTokens(
        token_rows_of(table.column("query_ids").combine_chunks()),
        token_rows_of(table.column("positive_ids").combine_chunks()),
        token_rows_of(table.column("negatives_ids").combine_chunks().flatten()),
        offsets,
        keys,
    )


def anchored_positives(file: PairFile, rows: Ints) -> TokenRows:
    """Token ids of the positives of some rows, each with its anchor before it."""
    table = file.tokens.select_columns(["anchored_ids"]).with_format("arrow")[rows]
    return token_rows_of(table.column("anchored_ids").combine_chunks())


def row_negative_keys(file: PairFile, rows: Ints) -> tuple[Ints, Ints]:
    """Keys of the rows' negatives (total,), and where each row's begin (n + 1,)."""
    table = file.rows.select_columns(["negative_keys"]).with_format("arrow")[rows]
    lists = table.column("negative_keys").combine_chunks()
    keys = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return keys, np.concatenate([[0], np.cumsum(list_lengths(lists))])


def pair_texts(file: PairFile, rows: Ints) -> list[dict[str, Any]]:
    """Query, positive and negatives of some rows, as they were read."""
    columns = file.rows.select_columns(["query", "positive", "negatives"])[rows]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _load_rows(
    file: Path, columns: Columns, cache: Path, maximum_bad_share: float, where: str
) -> tuple[Any, ReadReport]:
    """The file's clean rows as a mapped dataset, from the cache or made now."""
    key = digest(file_digest(file), columns.model_dump_json())
    arrow = cache / f"rows-{key}.arrow"
    record = cache / f"rows-{key}.json"
    if not (arrow.is_file() and record.is_file()):
        report = ReadReport(file.name)
        _write_rows(arrow, _check_rows(read_rows(file), columns, report, where))
        write_atomically(record, json.dumps(vars(report), ensure_ascii=False).encode())
    report = ReadReport(**json.loads(record.read_text(encoding="utf-8")))
    check_report(report, maximum_bad_share, where)
    return require("datasets", "train").Dataset.from_file(str(arrow)), report


def check_report(report: ReadReport, maximum_bad_share: float, where: str) -> None:
    """Log what is left out.

    Raises:
        DataError: the file has no usable row, or too many bad ones.
    """
    total = report.rows + report.bad
    if report.bad:
        logger.warning("%s: %d of %d rows are left out (%s)", report.file, report.bad, total, "; ".join(report.faults))
    if report.rows == 0:
        raise DataError(f"{where}: {report.file} has no usable row. " + "; ".join(report.faults))
    if report.bad > maximum_bad_share * total:
        raise DataError(
            f"{where}: {report.bad} of {total} rows of {report.file} are bad, more than maximum_bad_share="
            f"{maximum_bad_share:g} allows: {'; '.join(report.faults)}. Fix the file or raise the share"
        )


def _check_rows(
    raw: Iterable[tuple[int, Mapping[str, Any] | str]], columns: Columns, report: ReadReport, where: str
) -> Iterator[dict[str, Any]]:
    """Clean rows; what cannot be used is noted in the report."""
    first = True
    unfilled = {role for role in ("anchor", "group") if getattr(columns, role) is not None}
    for line, row in raw:
        if isinstance(row, str):
            report.note(line, row)
            continue
        if first:
            _check_columns(row, columns, f"{where}: {report.file}", where)
            first = False
        checked = _check_row(row, columns)
        if isinstance(checked, str):
            report.note(line, checked)
            continue
        report.rows += 1
        unfilled -= {role for role in unfilled if checked[role]}
        yield checked
    if report.rows and unfilled:
        role = min(unfilled)
        raise DataError(
            f"{where}: no row of {report.file} has a string or number in its column {getattr(columns, role)!r}, which "
            f"is to hold the {role}. Correct {where}.columns.{role}, or give files without one a source of their own"
        )


def _check_columns(row: Mapping[str, Any], columns: Columns, file: str, where: str) -> None:
    for role in ("query", "positive"):
        name = getattr(columns, role)
        if name not in row:
            raise DataError(
                f"{file} has no column {name!r}; its columns are {', '.join(map(repr, row))}. "
                f"Say which one holds the {role}: {where}.columns.{role}"
            )


def _check_row(row: Mapping[str, Any], columns: Columns) -> dict[str, Any] | str:
    """A clean row, or what is wrong with it."""
    texts = {}
    for role in ("query", "positive"):
        value = row.get(getattr(columns, role))
        if not isinstance(value, str):
            return f"{getattr(columns, role)} is not a string"
        texts[role] = clean_text(value)
        if not texts[role]:
            return f"{getattr(columns, role)} is blank"
    negatives = _parse_negatives(row.get(columns.negatives) if columns.negatives else None)
    if negatives is None:
        return f"{columns.negatives} is not a list of strings"
    query_key = text_key(texts["query"])
    positive_key = text_key(texts["positive"])
    if query_key == positive_key and not columns.label_is_grade:
        return "query and positive are the same text"
    distinct = {key: text for key, text in reversed(negatives) if text}
    usable = [(key, text) for key, text in reversed(distinct.items()) if key not in (query_key, positive_key)]
    grade = _parse_grade(row.get(columns.label) if columns.label else None)
    if columns.label_is_grade and np.isnan(grade):
        return f"{columns.label} is not a number"
    weight = _parse_grade(row.get(columns.weight)) if columns.weight else 1.0
    if not 0 <= weight < np.inf:
        return f"{columns.weight} is not a number of 0 or more"
    return {
        **texts,
        "negatives": [text for _, text in usable],
        "query_key": query_key,
        "positive_key": positive_key,
        "negative_keys": [key for key, _ in usable],
        "grade": grade,
        "weight": weight,
        "anchor": _clean_label(row, columns.anchor),
        "group": _clean_label(row, columns.group),
    }


def _clean_label(row: Mapping[str, Any], column: str | None) -> str:
    """A string or number of a row as text; "" where there is none."""
    value = row.get(column) if column is not None else None
    return clean_text(str(value)) if isinstance(value, str | int | float) else ""


def _parse_negatives(value: Any) -> list[tuple[int, str]] | None:
    """Clean texts with their keys; None where the value is not a list of strings."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return [_clean_and_key(item) for item in value]


@lru_cache(maxsize=KNOWN_TEXTS)
def _clean_and_key(text: str) -> tuple[int, str]:
    clean = clean_text(text)
    return text_key(clean), clean


def _parse_grade(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _write_rows(arrow: Path, rows: Iterable[dict[str, Any]]) -> None:
    pa = require("pyarrow", "train")
    texts = pa.list_(pa.string())
    keys = pa.list_(pa.int64())
    schema = pa.schema(
        {
            "query": pa.string(),
            "positive": pa.string(),
            "negatives": texts,
            "query_key": pa.int64(),
            "positive_key": pa.int64(),
            "negative_keys": keys,
            "grade": pa.float32(),
            "weight": pa.float32(),
            "anchor": pa.string(),
            "group": pa.string(),
        }
    )
    with open_atomically(arrow) as file, pa.ipc.new_stream(file, schema) as writer:
        for block in split_blocks(rows, WRITE_ROWS):
            writer.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))


def split_blocks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in lists of `size`, the last one shorter."""
    block: list[Row] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _make_pair_file(file: Path, source: SourceOptions, rows: Any, tokens: Any, report: ReadReport) -> PairFile:
    numbers = rows.select_columns(["query_key", "positive_key", "grade", "weight"]).with_format("numpy")[:]
    query_keys = numbers["query_key"].astype(np.int64)
    positive_keys = numbers["positive_key"].astype(np.int64)
    pairs = np.stack([query_keys, positive_keys], axis=1)  # (rows, 2)
    _, first = np.unique(pairs, axis=0, return_index=True)
    usable = np.sort(first)
    report.repeated = len(rows) - len(usable)
    grades = numbers["grade"].astype(np.float32)
    if source.minimum_label is not None:
        usable = usable[~(grades[usable] < source.minimum_label)]
    name = file.name.split(".")[0]
    weights = numbers["weight"].astype(np.float32)
    groups = np.full(len(rows), -1, dtype=np.int64)
    if source.columns.group is not None:
        groups = _number_groups(rows.select_columns(["group"])[:]["group"])
    return PairFile(
        name, rows, tokens, usable, query_keys, positive_keys, grades, weights, groups, source.weight, report
    )


def _number_groups(labels: Sequence[str]) -> Ints:
    """A number for each row, equal for equal labels; −1 for "", (n,)."""
    _, numbers = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    has_label = np.array([label != "" for label in labels])
    return np.where(has_label, numbers, -1).astype(np.int64)
