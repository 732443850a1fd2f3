"""`peg-rag embed`: embeds a file of texts to a Parquet file, in parts, so that an interruption costs half a minute.

During the run the folder OUT.parts holds a description of the job and one Parquet file per part. Parts are written
atomically, and the same command run again resumes after the last one. OUT itself is written by rename at the end.
"""

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peg_rag.errors import DataError, IndexBusy, InvalidInput
from peg_rag.extras import require
from peg_rag.files import sync_file, write_atomically
from peg_rag.records import choose_text_column, list_text_columns, parse_csv, parse_json_lines, read_parquet

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder

_SNIFF_BYTES = 1 << 20
_SLICE_TEXTS = 256  # texts between two updates of the progress bar
_SLICES_PER_DEVICE = 2  # under way at a time, where there are several devices
_PART_SECONDS = 30.0
_PART_TEXTS = 16_384
_FORMAT = 1

_Row = tuple[int, str]  # the number of the row in the file, and its text


@dataclass(frozen=True)
class _Job:
    """The input and the settings that the parts are made with; only the same job can resume them."""

    format: int
    input: str
    sha256: str
    column: str | None
    role: str
    identity: str


@dataclass
class _Part:
    """Embedded texts that will be one file. `first`: the number of texts in the parts before it."""

    first: int
    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    vectors: list[Any] = field(default_factory=list)  # arrays of shape (texts, dimension)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def end(self) -> int:
        return self.first + len(self.texts)

    def add(self, rows: list[int], texts: list[str], vectors: Any) -> None:
        self.rows += rows
        self.texts += texts
        self.vectors.append(vectors)

    def is_complete(self) -> bool:
        return time.monotonic() - self.started_at > _PART_SECONDS or len(self.texts) >= _PART_TEXTS

    def write(self, folder: Path, job: _Job) -> None:
        import numpy as np

        pa = require("pyarrow", "cli")
        pq = require("pyarrow.parquet", "cli")
        matrix = np.concatenate(self.vectors)  # (texts, dimension)
        columns = {
            "row": pa.array(self.rows, pa.int64()),
            "text": pa.array(self.texts, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1]),
        }
        table = pa.table(columns, metadata={"peg_rag.identity": job.identity, "peg_rag.role": job.role})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(folder / f"{self.first:012}.parquet", sink.getvalue())


def embed(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="txt (a text per line), jsonl, csv, tsv or parquet; several with ray."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file to write; with ray, a folder of them.")],
    column: Annotated[
        str | None,
        typer.Option("--column", "-c", help="The column of the texts. Default: text, or the only column."),
    ] = None,
    role: Annotated[str, typer.Option(help="document or query: selects the prompt to prepend.")] = "document",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hub id, folder or peg-mini. Default: $PEG_RAG_MODEL, TownsWu/PEG."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Several, with a worker process each: cuda:0,cuda:1. Instead of --device."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, torch, numpy, openvino or onnx.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, and discard another job's parts.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local: this process. ray: the cluster of $RAY_ADDRESS, else one on this machine.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With ray: encoders at work at a time. Default: as many as fit.")
    ] = None,
    num_cpus: Annotated[float, typer.Option(min=0.0, help="With ray: CPUs of each worker.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(min=0.0, help="With ray: GPUs of each worker; 0.5 shares one.")] = 0.0,
) -> None:
    """Embed a file of texts. Run again after an interruption, it resumes. Blank texts are skipped."""
    if role not in ("document", "query"):
        raise InvalidInput(f"--role {role}: document or query is expected")
    settings: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "backend": backend}
    if devices is not None and engine == "ray":
        raise InvalidInput(f"--devices {devices} is for --engine local; with ray, give --workers and --num-gpus")
    if engine == "ray":
        pool = {"workers": workers, "num_cpus": num_cpus, "num_gpus": num_gpus}
        _embed_with_ray(files, out, settings, column=column, role=role, overwrite=overwrite, **pool)
    elif engine != "local":
        raise InvalidInput(f"--engine {engine}: local or ray is expected")
    elif len(files) > 1:
        raise InvalidInput(f"{len(files)} files; one is expected. --engine ray embeds several, into a folder")
    elif workers is not None or (num_cpus, num_gpus) != (1.0, 0.0):
        raise InvalidInput("--workers, --num-cpus and --num-gpus are for --engine ray; --devices names local devices")
    else:
        names = None if devices is None else [name.strip() for name in devices.split(",")]
        _embed_file(files[0], out, settings | {"devices": names}, column, role, overwrite)


def _embed_with_ray(files: list[Path], out: Path, settings: dict[str, Any], **options: Any) -> None:
    from peg_rag.cli.console import note, progress, warn
    from peg_rag.ray_embedding import EncoderSettings, embed_corpus

    with progress() as bars:
        task = bars.add_task("embed", total=None, unit="rows")
        report = embed_corpus(
            files,
            out,
            settings=EncoderSettings(**settings),
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            **options,
        )
    message = f"{report.texts:,} texts → {out} ({report.blocks:,} files"
    if report.new_texts:
        message += f", {report.new_texts / report.seconds:,.0f} texts/s"
    note(f"{message})")
    if report.bad_rows:
        warn(f"{report.bad_rows:,} rows without a text are listed in {out / 'bad-rows'}")


def _embed_file(
    file: Path, out: Path, settings: dict[str, Any], column: str | None, role: str, overwrite: bool
) -> None:
    from peg_rag.encoder import PEGEncoder

    if not file.is_file():
        raise InvalidInput(f"{file}: there is no such file")
    if out.is_dir():
        raise InvalidInput(f"{out} is a folder; give a file as --out")
    if out.exists() and not overwrite:
        raise InvalidInput(f"{out} exists; give another --out, or --overwrite")
    with PEGEncoder(**settings) as encoder:
        digest, lines = _hash_and_count(file)
        job = _Job(_FORMAT, file.name, digest, column, role, encoder.identity)
        with _lock_parts(out) as parts:
            _claim_parts(parts, job, overwrite)
            started_at = time.monotonic()
            _embed_parts(encoder, job, file, parts, lines)
            seconds = time.monotonic() - started_at
            texts = _merge_parts(parts, out)
        _print_summary(out, texts, encoder, seconds)


@contextmanager
def _lock_parts(out: Path) -> Iterator[Path]:
    """The folder of the parts, locked for this process; removed once the job is done, or if it has no part yet."""
    from filelock import FileLock, Timeout

    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(parts / "lock", timeout=0).acquire()
    except Timeout as error:
        raise IndexBusy(f"another process is writing {out}; wait for it to finish") from error
    is_finished = False
    with lock:
        try:
            yield parts
            is_finished = True
        finally:
            if is_finished or not any(parts.glob("*.parquet")):
                shutil.rmtree(parts, ignore_errors=True)


def _print_summary(out: Path, texts: int, encoder: "PEGEncoder", seconds: float) -> None:
    from peg_rag.cli.console import note

    stats = encoder.stats
    count = f"{texts:,} {'text' if texts == 1 else 'texts'}"
    details = f"{out.stat().st_size / 1e6:,.1f} MB"
    if stats.texts:
        details += f", {stats.texts / seconds:,.0f} texts/s"
    message = f"{count} → {out} ({details})"
    if stats.truncated:
        message += f"; {stats.truncated:,} exceeded the model's maximum length and were truncated"
    note(message)


def _claim_parts(parts: Path, job: _Job, overwrite: bool) -> None:
    """Use the folder for this job: it must be empty, or hold parts of the same job."""
    manifest = parts / "job.json"
    if manifest.is_file() and any(parts.glob("*.parquet")):
        earlier_job = json.loads(manifest.read_text(encoding="utf-8"))
        if earlier_job == asdict(job):
            return
        if not overwrite:
            differences = ", ".join(key for key, value in asdict(job).items() if earlier_job.get(key) != value)
            raise InvalidInput(
                f"{parts} holds parts made with another {differences}; finish that job with its own arguments, "
                "or start over with --overwrite"
            )
        for part in parts.glob("*.parquet"):
            part.unlink()
    write_atomically(manifest, json.dumps(asdict(job), ensure_ascii=False).encode())


def _embed_parts(encoder: "PEGEncoder", job: _Job, file: Path, parts: Path, lines: int | None) -> None:
    """Embed the texts that are in no part yet, and write a part every half minute."""
    from peg_rag.cli.console import progress

    count = sum(_count_texts(parts))
    records = islice(_read_texts(file, job.column), count, None)
    with progress() as bars:
        task = bars.add_task(f"embed ({job.identity.split('@')[0]})", total=lines, completed=count, unit="texts")
        part = _Part(first=count)
        for batch, vectors in _embed_slices(encoder, job.role, records):
            part.add([row for row, _ in batch], [text for _, text in batch], vectors)
            bars.advance(task, len(batch))
            if part.is_complete():
                part.write(parts, job)
                part = _Part(first=part.end)
        if part.texts:
            part.write(parts, job)
        count = part.end
        bars.update(task, total=count)
    if not count:
        raise DataError(f"{file} holds no text")


def _embed_slices(encoder: "PEGEncoder", role: str, records: Iterator[_Row]) -> Iterator[tuple[list[_Row], Any]]:
    """Slices of the rows with their vectors, (slice, dimension), in order.

    With several devices, the next slices are embedded at the same time, so that no device waits for the end of one.
    """
    encode = encoder.encode_documents if role == "document" else encoder.encode_queries

    def embed_slice(rows: list[_Row]) -> tuple[list[_Row], Any]:
        return rows, encode([text for _, text in rows])

    slices = iter(lambda: list(islice(records, _SLICE_TEXTS)), [])
    if len(encoder.devices) == 1:
        yield from map(embed_slice, slices)
        return
    ahead = _SLICES_PER_DEVICE * len(encoder.devices)
    executor = ThreadPoolExecutor(ahead)
    futures: deque[Future[tuple[list[_Row], Any]]] = deque()
    try:
        for rows in slices:
            futures.append(executor.submit(embed_slice, rows))
            if len(futures) == ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, what is under way fails when the encoder closes


def _count_texts(parts: Path) -> list[int]:
    """The number of texts in each part, in order. An unreadable or misplaced part is deleted, with all that follow."""
    pq = require("pyarrow.parquet", "cli")
    counts: list[int] = []
    is_valid = True
    for part in sorted(parts.glob("*.parquet")):
        try:
            is_valid = is_valid and int(part.stem) == sum(counts)
            if is_valid:
                counts.append(pq.read_metadata(part).num_rows)
        except (OSError, ValueError):
            is_valid = False
        if not is_valid:
            part.unlink()
    return counts


def _merge_parts(parts: Path, out: Path) -> int:
    """Write all parts to one file, atomically; returns the number of texts."""
    pq = require("pyarrow.parquet", "cli")
    files = sorted(parts.glob("*.parquet"))
    merged = parts / "merged.tmp"
    with pq.ParquetWriter(merged, pq.read_schema(files[0])) as writer:
        for file in files:
            writer.write_table(pq.read_table(file))
    sync_file(merged)
    merged.replace(out)
    return int(pq.read_metadata(out).num_rows)


def _hash_and_count(file: Path) -> tuple[str, int | None]:
    """The file's digest and, for formats with one text per line, the approximate number of texts."""
    if file.suffix.lower() == ".parquet":
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, None
    sha = hashlib.sha256()
    lines = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
            lines += block.count(b"\n")
    return sha.hexdigest(), lines or 1


def _read_texts(file: Path, column: str | None) -> Iterator[_Row]:
    """(row, text), with rows numbered from 0 in file order; blank texts are skipped."""
    readers = {
        ".txt": _read_lines,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{file}: expected a file named {', '.join('*' + suffix for suffix in readers)}")
    for row, text in reader(file, column):
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


def _read_lines(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    if column is not None:
        raise InvalidInput(f"--column {column}: a txt file has no columns")
    return enumerate(line.rstrip("\r\n") for line in _open_text(file))


def _read_jsonl(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    for row in parse_json_lines(_open_text(file), file, bad_rows="raise", strings=True):
        text = row.value
        if isinstance(text, dict):
            column = column or choose_text_column(file, list(text))
            if column not in text:
                raise DataError(f"{file}, line {row.line} has no {column!r}; it has {', '.join(text) or 'nothing'}")
            text = text[column]
        yield row.number - 1, text


def _read_csv(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    text_column = None
    for row in parse_csv(_open_text(file), file, bad_rows="raise", fields="any", delimiter=delimiter):
        text_column = text_column or choose_text_column(file, list(row.value), column)
        yield row.number - 1, row.value[text_column]


def _read_parquet(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    column = choose_text_column(file, list_text_columns(file, "cli"), column)
    for row in read_parquet(file, "cli", columns=[column]):
        yield row.number - 1, row.value[column]
