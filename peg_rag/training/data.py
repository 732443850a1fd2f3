"""Training pairs: files in, memory-mapped rows and token ids out.

Why this exists: a run of days must not stop for one broken line, must not hold its texts in memory and must not
tokenise the same text twice. Each file is read once, cleaned, checked row by row (what is wrong is counted and
reported by file and line) and written as Arrow, from which Hugging Face `datasets` maps it; the token ids lie beside
it. Both are cached, keyed by the file's content and the tokenizer. Costs the first time about a CPU second for 3,000
rows of news (400 characters) or 15,000 of questions, then milliseconds, and 24 bytes of memory a row in use.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.files import open_packed, unreadable, write_atomically
from peg_rag.readers import encoding_of
from peg_rag.texts import replace_unencodable
from peg_rag.training.recipe import Columns, SourceOptions, expand_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]

FORMAT = 2  # of the cached rows and tokens: raise it when their meaning changes
FAULTS_SHOWN = 5
SNIFFED_BYTES = 1 << 16  # that tell a text file's encoding
WRITE_ROWS = 10_000
KNOWN_TEXTS = 200_000  # whose cleaned form or tokens are remembered while a file is read
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\ufeff]")
_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids of any lengths, in two arrays.

    Attributes:
        tokens: the ids of all rows, (total,) int32.
        offsets: row i is `tokens[offsets[i]:offsets[i + 1]]`, (n + 1,) int64.
    """

    tokens: NDArray[np.int32]
    offsets: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        tokens = np.fromiter((t for row in rows for t in row), dtype=np.int32, count=int(lengths.sum()))
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        tokens = np.concatenate([part.tokens for part in parts]) if parts else np.zeros(0, np.int32)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def lengths(self) -> Ints:
        """Tokens in each row, (n,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: NDArray[np.integer]) -> "TokenRows":
        """The rows of these indices, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # (total,)
        return TokenRows(self.tokens[np.repeat(self.offsets[:-1][rows], lengths) + within], offsets)


@dataclass
class ReadReport:
    """What reading one file found. `dropped` counts rows by reason; `faults` are the first few, with their lines."""

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


@dataclass(frozen=True)
class PairFile:
    """One source, ready for training: texts and token ids mapped from disk, the keys of its texts in memory.

    Attributes:
        name: the file's name without its suffixes.
        rows: a `datasets.Dataset` of query, positive, negatives, grade and their keys.
        tokens: a `datasets.Dataset` of query_ids, positive_ids, negatives_ids; row i belongs to row i of `rows`.
        kept: the rows in use (no repeated pair, nothing below the least label), (n,) int64.
        query_keys, positive_keys: of all rows, int64; see `text_key`.
        grades: the label as a number, NaN where there is none, float32.
        weight: the recipe's factor for this source.
        report: what was wrong in the file.
    """

    name: str
    rows: Any
    tokens: Any
    kept: Ints
    query_keys: Ints
    positive_keys: Ints
    grades: NDArray[np.float32]
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


def clean_text(text: str) -> str:
    """NFC, control characters removed, white space collapsed: the only changes made to a training text."""
    text = replace_unencodable(text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return _SPACE.sub(" ", _CONTROL.sub("", text)).strip()


def text_key(text: str) -> int:
    """64 bits that are equal for texts alike but for case, width, spaces and punctuation.

    Repeated pairs, the validation split, batches without repeats and the false-negative mask all go by it. Among a
    hundred million texts, the chance that any two share a key by accident is one in 3,700.
    """
    letters = _NOT_WORD.sub("", text).casefold() or text
    if not unicodedata.is_normalized("NFKC", letters):  # without its punctuation, Chinese text mostly is: much faster
        folded = unicodedata.normalize("NFKC", letters).casefold()
        letters = _NOT_WORD.sub("", folded) or folded
    digest = hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=8).digest()
    return int(struct.unpack("<q", digest)[0])


def source_files(source: SourceOptions, path: str = "sources") -> list[Path]:
    """The files of a source: its path with `$VARIABLES` expanded, a glob where it holds `*`.

    Raises:
        DataError: no file is there.
        RecipeError: a variable is not set.
    """
    pattern = expand_path(source.path)
    if not any(c in pattern.name for c in "*?["):
        if not pattern.is_file():
            raise DataError(f"{path}: {pattern} is not there; give the path of a .jsonl, .csv, .tsv or .parquet file")
        return [pattern]
    found = sorted(f for f in pattern.parent.glob(pattern.name) if not any(f.match(e) for e in source.exclude))
    if not found:
        raise DataError(f"{path}: no file matches {pattern} (after leaving out {source.exclude})")
    return found


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
            rows, report = _rows(file, source.columns, cache, maximum_bad_share, where)
            with _progress(show_progress):
                tokens = _tokens(rows, tokenizer, cache, dict(prompts or {}))
            files.append(_pair_file(file, source, rows, tokens, report))
    return files


def row_tokens(file: PairFile, rows: Ints) -> RowTokens:
    """Token ids and keys of some rows of a file, read from the memory map."""
    table = file.tokens.with_format("arrow")[rows]
    keys, offsets = row_negative_keys(file, rows)
    return RowTokens(
        _token_rows(table.column("query_ids").combine_chunks()),
        _token_rows(table.column("positive_ids").combine_chunks()),
        _token_rows(table.column("negatives_ids").combine_chunks().flatten()),
        offsets,
        keys,
    )


def row_negative_keys(file: PairFile, rows: Ints) -> tuple[Ints, Ints]:
    """Keys of the rows' negatives (total,), and where each row's begin (n + 1,)."""
    table = file.rows.select_columns(["negative_keys"]).with_format("arrow")[rows]
    lists = table.column("negative_keys").combine_chunks()
    keys = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return keys, np.concatenate([[0], np.cumsum(_list_lengths(lists))])


def pair_texts(file: PairFile, rows: Ints) -> list[dict[str, Any]]:
    """Query, positive and negatives of some rows, as they were read."""
    columns = file.rows.select_columns(["query", "positive", "negatives"])[rows]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def read_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each row of a .jsonl, .csv, .tsv (also .gz, .zst) or .parquet file with its line; a str says what is wrong.

    Raises:
        DataError: the file is missing, of an unknown form, or cannot be read on.
    """
    if not file.is_file():
        raise DataError(f"{file} is not there")
    form = next((s for s in reversed(file.suffixes) if s not in (".gz", ".zst")), "")
    readers = {
        ".jsonl": _json_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if form not in readers:
        raise DataError(
            f"{file}: unknown kind of file; .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet is expected"
        )
    try:
        yield from readers[form](file)
    except unreadable(UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({error}); is the file whole?") from error


def read_lines(file: Path) -> Iterator[str]:
    """The clean lines of a .txt file (also .gz, .zst) that hold something.

    Raises:
        DataError: the file is missing, is no text, or cannot be read on.
    """
    if not file.is_file():
        raise DataError(f"{file} is not there")
    try:
        with open_packed(file, "train") as stream:
            encoding = _encoding(stream.read(SNIFFED_BYTES), file)
        with io.TextIOWrapper(open_packed(file, "train"), encoding=encoding, errors="replace", newline="\n") as lines:
            for line in lines:
                if text := clean_text(line):
                    yield text
    except unreadable() as error:
        raise DataError(f"{file} cannot be read ({error}); is the file whole?") from error


def _encoding(head: bytes, file: Path) -> str:
    """UTF-8 where next to nothing of the head is broken, for one bad line must not change the rest; else as readers."""
    if b"\0" not in head and head.decode("utf-8", "replace").count("\ufffd") <= len(head) // 1_000:
        return "utf-8"
    return encoding_of(head, str(file))


def _json_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    with open_packed(file, "train") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                yield number, "not JSON"
                continue
            yield number, row if isinstance(row, dict) else "not a JSON object"


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    tabs = ".tsv" in file.suffixes
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    with io.TextIOWrapper(open_packed(file, "train"), encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restkey="", **dialect)
        for row in reader:
            whole = "" not in row and None not in row.values()
            yield reader.line_num, row if whole else "another number of fields than the header"


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    parquet = require("pyarrow.parquet", "train")
    number = 0
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=WRITE_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _rows(file: Path, columns: Columns, cache: Path, maximum_bad_share: float, where: str) -> tuple[Any, ReadReport]:
    """The file's clean rows as a mapped dataset, from the cache or made now."""
    key = digest(file_digest(file), columns.model_dump_json())
    arrow, record = cache / f"rows-{key}.arrow", cache / f"rows-{key}.json"
    if not (arrow.is_file() and record.is_file()):
        report = ReadReport(file.name)
        _write_rows(arrow, _checked(read_rows(file), columns, report, where))
        write_atomically(record, json.dumps(vars(report), ensure_ascii=False).encode())
    report = ReadReport(**json.loads(record.read_text(encoding="utf-8")))
    _judge(report, maximum_bad_share, where)
    return require("datasets", "train").Dataset.from_file(str(arrow)), report


def _judge(report: ReadReport, maximum_bad_share: float, where: str) -> None:
    total = report.rows + report.bad
    if report.bad:
        logger.warning("%s: %d of %d rows are left out (%s)", report.file, report.bad, total, "; ".join(report.faults))
    if report.rows == 0:
        raise DataError(f"{where}: {report.file} has no usable row. " + "; ".join(report.faults))
    if report.bad > maximum_bad_share * total:
        raise DataError(
            f"{where}: {report.bad} of {total} rows of {report.file} are bad, more than maximum_bad_share="
            f"{maximum_bad_share:g} allows: {'; '.join(report.faults)}. Mend the file or raise the share"
        )


def _checked(
    raw: Iterable[tuple[int, Mapping[str, Any] | str]], columns: Columns, report: ReadReport, where: str
) -> Iterator[dict[str, Any]]:
    """Clean rows; what cannot be used is noted in the report."""
    first = True
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
        yield checked


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
    negatives = _negatives(row.get(columns.negatives) if columns.negatives else None)
    if negatives is None:
        return f"{columns.negatives} is not a list of strings"
    query_key, positive_key = text_key(texts["query"]), text_key(texts["positive"])
    if query_key == positive_key and not columns.label_is_grade:
        return "query and positive are the same text"
    distinct = {key: text for key, text in reversed(negatives) if text}
    kept = [(key, text) for key, text in reversed(distinct.items()) if key not in (query_key, positive_key)]
    grade = _grade(row.get(columns.label) if columns.label else None)
    if columns.label_is_grade and np.isnan(grade):
        return f"{columns.label} is not a number"
    return {
        **texts,
        "negatives": [text for _, text in kept],
        "query_key": query_key,
        "positive_key": positive_key,
        "negative_keys": [key for key, _ in kept],
        "grade": grade,
    }


def _negatives(value: Any) -> list[tuple[int, str]] | None:
    """Clean texts with their keys; None where the value is no list of strings."""
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


def _grade(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _write_rows(arrow: Path, rows: Iterable[dict[str, Any]]) -> None:
    pa = require("pyarrow", "train")
    texts, keys = pa.list_(pa.string()), pa.list_(pa.int64())
    schema = pa.schema(
        {
            "query": pa.string(),
            "positive": pa.string(),
            "negatives": texts,
            "query_key": pa.int64(),
            "positive_key": pa.int64(),
            "negative_keys": keys,
            "grade": pa.float32(),
        }
    )
    arrow.parent.mkdir(parents=True, exist_ok=True)
    part = arrow.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for block in _blocks(rows, WRITE_ROWS):
                    writer.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        part.replace(arrow)
    finally:
        part.unlink(missing_ok=True)


def _blocks(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _tokens(rows: Any, tokenizer: "Tokenizer", cache: Path, prompts: dict[str, str]) -> Any:
    """The rows' token ids as a mapped dataset, from the cache or made now."""
    query_prompt, document_prompt = prompts.get("query", ""), prompts.get("document", "")
    special = tokenizer.num_special_tokens_to_add(False) > 0
    blank = [] if special else [_unknown(tokenizer)]

    known: dict[str, NDArray[np.int32]] = {}  # a mined negative stands in many rows

    def encode(texts: list[str]) -> list[NDArray[np.int32]]:
        if len(known) > KNOWN_TEXTS:
            known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        encodings = tokenizer.encode_batch_fast(new, add_special_tokens=special)
        known.update({t: np.array(e.ids or blank, dtype=np.int32) for t, e in zip(new, encodings, strict=True)})
        return [known[text] for text in texts]

    def tokenise(batch: dict[str, list[Any]]) -> Any:
        counts = [len(row) for row in batch["negatives"]]
        flat = encode([document_prompt + text for row in batch["negatives"] for text in row])
        columns = {
            "query_ids": _lists(encode([query_prompt + text for text in batch["query"]])),
            "positive_ids": _lists(encode([document_prompt + text for text in batch["positive"]])),
            "negatives_ids": _nested(_lists(flat), counts),
        }
        return require("pyarrow", "train").table(columns)

    datasets = require("datasets", "train")
    ids = datasets.List(datasets.Value("int32"))
    texts = rows.select_columns(["query", "positive", "negatives"])
    source = Path(rows.cache_files[0]["filename"]).stem
    key = digest(source, tokenizer.to_str(), json.dumps(prompts, sort_keys=True))
    return texts.map(
        tokenise,
        batched=True,
        batch_size=2_000,
        remove_columns=texts.column_names,
        features=datasets.Features(query_ids=ids, positive_ids=ids, negatives_ids=datasets.List(ids)),
        cache_file_name=str(cache / f"tokens-{key}.arrow"),
        new_fingerprint=key,
        load_from_cache_file=True,
        desc="tokenise",
    )


def _lists(rows: list[NDArray[np.int32]]) -> Any:
    """Rows of token ids as an Arrow list array, without a Python number for each token."""
    pa = require("pyarrow", "train")
    values = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return _nested(pa.array(values, pa.int32()), [len(row) for row in rows])


def _nested(values: Any, lengths: list[int]) -> Any:
    pa = require("pyarrow", "train")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


@contextmanager
def _progress(show: bool) -> Iterator[None]:
    """`datasets` shows its bars or not while inside."""
    datasets = require("datasets", "train")
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if show else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def _unknown(tokenizer: "Tokenizer") -> int:
    """The token of an empty text in a static model, as at inference."""
    return next((i for name in ("<unk>", "[UNK]") if (i := tokenizer.token_to_id(name)) is not None), 0)


def _pair_file(file: Path, source: SourceOptions, rows: Any, tokens: Any, report: ReadReport) -> PairFile:
    numbers = rows.select_columns(["query_key", "positive_key", "grade"]).with_format("numpy")[:]
    query_keys, positive_keys = numbers["query_key"].astype(np.int64), numbers["positive_key"].astype(np.int64)
    pairs = np.stack([query_keys, positive_keys], axis=1)  # (rows, 2)
    _, first = np.unique(pairs, axis=0, return_index=True)
    kept = np.sort(first)
    report.repeated = len(rows) - len(kept)
    grades = numbers["grade"].astype(np.float32)
    if source.minimum_label is not None:
        kept = kept[~(grades[kept] < source.minimum_label)]
    name = file.name.split(".")[0]
    return PairFile(name, rows, tokens, kept, query_keys, positive_keys, grades, source.weight, report)


def _token_rows(array: Any) -> TokenRows:
    lengths = _list_lengths(array)
    return TokenRows(array.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)]))


def _list_lengths(array: Any) -> Ints:
    lengths = require("pyarrow.compute", "train").list_value_length(array)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def file_digest(file: Path) -> str:
    """A hash of the file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest(*parts: str) -> str:
    """A short hash of strings, for names in the cache."""
    joined = "\0".join([str(FORMAT), *parts])
    return hashlib.blake2b(joined.encode(), digest_size=12).hexdigest()
