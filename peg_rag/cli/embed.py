"""`peg-rag embed`: a file of texts → a Parquet file of vectors, in parts, so that an interruption costs half a minute.

Beside OUT stands OUT.parts while the work goes on: what it is made from, and one Parquet file for every stretch of
texts done. A part appears by rename, so it is whole or not there; the same command run again continues after the last
one. OUT itself appears by rename at the end.
"""

import csv
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peg_rag.errors import DataError, IndexBusy, InvalidInput
from peg_rag.extras import require
from peg_rag.files import write_atomically

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder

_SNIFF_BYTES = 1 << 20
_SLICE_TEXTS = 256  # texts between two moves of the progress bar
_PART_SECONDS = 30.0
_PART_TEXTS = 16_384
_FORMAT = 1


@dataclass(frozen=True)
class _Job:
    """What the parts are made from; they are continued only by the same job."""

    format: int
    input: str
    sha256: str
    column: str | None
    role: str
    identity: str


def embed(
    file: Annotated[Path, typer.Argument(help="txt (a text per line), jsonl, csv, tsv or parquet.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file to write.")],
    column: Annotated[
        str | None,
        typer.Option("--column", "-c", help="The column that holds the text. Default: text, or the only one."),
    ] = None,
    role: Annotated[str, typer.Option(help="document or query: which prompt goes before the texts.")] = "document",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hub id, folder or peg-mini. Default: $PEG_RAG_MODEL, TownsWu/PEG."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto or the name of a backend.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT, and drop parts of another run.")] = False,
) -> None:
    """Embed a file of texts; interrupted, it continues when run again. Blank texts are left out."""
    from peg_rag.encoder import PEGEncoder

    if role not in ("document", "query"):
        raise InvalidInput(f"--role {role}: document or query is expected")
    if not file.is_file():
        raise InvalidInput(f"{file}: there is no such file")
    if out.exists() and not overwrite:
        raise InvalidInput(f"{out} exists; give another --out, or --overwrite")
    with PEGEncoder(model, device=device, dtype=dtype, backend=backend) as encoder:
        digest, lines = _digest_and_lines(file)
        job = _Job(_FORMAT, file.name, digest, column, role, encoder.identity)
        with _parts_folder(out) as parts:
            _claim(parts, job, overwrite)
            _embed_parts(encoder, job, file, parts, lines)
            texts = _merge(parts, out)
        _summary(out, texts, encoder)


@contextmanager
def _parts_folder(out: Path) -> Iterator[Path]:
    """The folder of the parts, for this process alone; gone when the work is done, or when nothing was."""
    from filelock import FileLock, Timeout

    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(parts / "lock", timeout=0).acquire()
    except Timeout as error:
        raise IndexBusy(f"another process is writing {out}; wait for it to finish") from error
    finished = False
    with lock:
        try:
            yield parts
            finished = True
        finally:
            if finished or not any(parts.glob("*.parquet")):
                shutil.rmtree(parts, ignore_errors=True)


def _summary(out: Path, texts: int, encoder: "PEGEncoder") -> None:
    from peg_rag.cli.console import note

    stats = encoder.stats
    rate = f", {stats.texts / stats.seconds:,.0f} texts/s" if stats.texts and stats.seconds else ""
    cut = f"; {stats.truncated:,} were longer than the model takes and were cut" if stats.truncated else ""
    count = f"{texts:,} {'text' if texts == 1 else 'texts'}"
    note(f"{count} → {out} ({out.stat().st_size / 1e6:,.1f} MB{rate}){cut}")


def _claim(parts: Path, job: _Job, overwrite: bool) -> None:
    """Take the parts folder for this job: empty, or begun by the same one."""
    manifest = parts / "job.json"
    if manifest.is_file() and any(parts.glob("*.parquet")):
        begun = json.loads(manifest.read_text(encoding="utf-8"))
        if begun == asdict(job):
            return
        if not overwrite:
            differing = ", ".join(key for key, value in asdict(job).items() if begun.get(key) != value)
            raise InvalidInput(
                f"{parts} holds parts made with another {differing}; finish that run with its own arguments, "
                "or start anew with --overwrite"
            )
        for part in parts.glob("*.parquet"):
            part.unlink()
    write_atomically(manifest, json.dumps(asdict(job), ensure_ascii=False).encode())


def _embed_parts(encoder: "PEGEncoder", job: _Job, file: Path, parts: Path, lines: int | None) -> None:
    """Embed what no part holds yet, closing a part every half minute."""
    from peg_rag.cli.console import progress

    done = sum(_part_texts(parts))
    records = _records(file, job.column)
    for _ in islice(records, done):
        pass
    encode = encoder.encode_documents if job.role == "document" else encoder.encode_queries
    with progress() as bars:
        task = bars.add_task(f"embed ({job.identity.split('@')[0]})", total=lines, completed=done, unit="texts")
        rows: list[int] = []
        texts: list[str] = []
        vectors: list[Any] = []
        closed = time.monotonic()
        while some := list(islice(records, _SLICE_TEXTS)):
            rows += [row for row, _ in some]
            texts += [text for _, text in some]
            vectors.append(encode([text for _, text in some]))
            bars.advance(task, len(some))
            if time.monotonic() - closed > _PART_SECONDS or len(texts) >= _PART_TEXTS:
                done = _write_part(parts, done, rows, texts, vectors, job)
                rows, texts, vectors, closed = [], [], [], time.monotonic()
        done = _write_part(parts, done, rows, texts, vectors, job)
        bars.update(task, total=done)
    if not done:
        raise DataError(f"{file} holds no text")


def _part_texts(parts: Path) -> list[int]:
    """Texts in each part, in order; a part that cannot be read, or is out of place, goes, with all after it."""
    pq = require("pyarrow.parquet", "cli")
    counts: list[int] = []
    sound = True
    for part in sorted(parts.glob("*.parquet")):
        try:
            sound = sound and int(part.stem) == sum(counts)
            counts += [pq.read_metadata(part).num_rows] if sound else []
        except (OSError, ValueError):
            sound = False
        if not sound:
            part.unlink()
    return counts


def _write_part(parts: Path, done: int, rows: list[int], texts: list[str], vectors: list[Any], job: _Job) -> int:
    """Write texts `done` and following; returns the number of texts done after it."""
    import numpy as np

    pa, pq = require("pyarrow", "cli"), require("pyarrow.parquet", "cli")
    if not texts:
        return done
    matrix = np.concatenate(vectors)  # (texts, dimension)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    table = pa.table({"row": pa.array(rows, pa.int64()), "text": pa.array(texts, pa.string()), "embedding": embedding})
    table = table.replace_schema_metadata({"peg_rag.identity": job.identity, "peg_rag.role": job.role})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(parts / f"{done:012}.parquet", sink.getvalue())
    return done + len(texts)


def _merge(parts: Path, out: Path) -> int:
    """All parts in one file, which appears whole."""
    pq = require("pyarrow.parquet", "cli")
    files = sorted(parts.glob("*.parquet"))
    draft = parts / "whole.draft"
    with pq.ParquetWriter(draft, pq.read_schema(files[0])) as writer:
        for file in files:
            writer.write_table(pq.read_table(file))
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
        draft.replace(out)
    return int(pq.read_metadata(out).num_rows)


def _digest_and_lines(file: Path) -> tuple[str, int | None]:
    """The file's digest and, where a line is a text, about how many texts it holds."""
    if file.suffix.lower() == ".parquet":
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, None
    sha, lines = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
            lines += block.count(b"\n")
    return sha.hexdigest(), lines or 1


def _records(file: Path, column: str | None) -> Iterator[tuple[int, str]]:
    """(row, text), rows counted from 0 as they stand in the file; blank texts are left out."""
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{file}: expected a file named {', '.join('*' + suffix for suffix in readers)}")
    for row, text in enumerate(reader(file, column)):
        if not isinstance(text, str):
            raise DataError(f"{file}, row {row}: the text is {type(text).__name__} ({text!r}); a string is expected")
        if text.strip():
            yield row, text


def _open_text(file: Path) -> Iterator[str]:
    from peg_rag.readers import encoding_of

    with file.open("rb") as head:
        encoding = encoding_of(head.read(_SNIFF_BYTES), str(file))
    try:
        with file.open(encoding=encoding, newline="") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not valid {encoding} text ({error.reason}); save it as UTF-8") from error


def _lines(file: Path, column: str | None) -> Iterator[Any]:
    if column is not None:
        raise InvalidInput(f"--column {column}: a txt file has no columns")
    return (line.rstrip("\r\n") for line in _open_text(file))


def _json_lines(file: Path, column: str | None) -> Iterator[Any]:
    for number, line in enumerate(_open_text(file), start=1):
        try:
            row = json.loads(line) if line.strip() else ""
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{file}, line {number} is not JSON: {error}") from error
        if isinstance(row, dict):
            column = column or _text_column(file, list(row))
            if column not in row:
                raise DataError(f"{file}, line {number} has no {column!r}; it has {', '.join(row) or 'nothing'}")
            row = row[column]
        yield row


def _csv_rows(file: Path, column: str | None) -> Iterator[Any]:
    csv.field_size_limit(1 << 27)
    rows = csv.DictReader(_open_text(file), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    column = _text_column(file, list(rows.fieldnames or []), column)
    try:
        for row in rows:
            yield row[column]
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: {error}") from error


def _parquet_rows(file: Path, column: str | None) -> Iterator[Any]:
    pa, pq = require("pyarrow", "cli"), require("pyarrow.parquet", "cli")
    try:
        source = pq.ParquetFile(file)
        strings = [
            f.name for f in source.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
        ]
        column = _text_column(file, strings, column)
        for batch in source.iter_batches(batch_size=1024, columns=[column]):
            yield from batch.column(0).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a whole Parquet file: {error}") from error


def _text_column(file: Path, columns: list[str], asked: str | None = None) -> str:
    """The column asked for, else `text`, else the only one that could hold text."""
    if asked is not None and asked not in columns:
        raise InvalidInput(f"{file} has no text column {asked!r}; it has {', '.join(columns) or 'none'}")
    if asked is None and "text" not in columns and len(columns) != 1:
        raise InvalidInput(
            f"which column of {file} holds the text? Say --column, one of: {', '.join(columns) or 'none'}"
        )
    return asked or ("text" if "text" in columns else columns[0])
