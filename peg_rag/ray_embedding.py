"""Embed a corpus of Parquet files on a Ray cluster: a pool of workers, one encoder each, one output file a block.

A block is a range of rows of one file, cut the same way in every run. The worker that embeds it writes it atomically
under a name that says which rows it holds. So a row is in the output exactly once however often workers die, and a run
that was cut short goes on with the blocks that have no file yet. When a file has changed, its blocks are made again.
Memory does not grow with the corpus: a worker holds one block, and only counts travel back.

The files, the output folder and the model must be readable under the same paths on every machine.

The output folder:

    job.json           the corpus and the settings that the blocks were made with
    00000-000000016384.parquet
                       `file`, `row` (from 0), `text`, `embedding` of the rows of file 0 from 16,384 on
    bad-rows/…jsonl    the rows of a block that have no text, and why
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DataError, IndexBusy, IndexMismatch, InvalidInput, PegRagError
from peg_rag.extras import require
from peg_rag.files import write_atomically
from peg_rag.job_file import JOB_FILE, read_job
from peg_rag.records import choose_text_column, list_text_columns

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16_384
_FORMAT = 1
_CHANGING = ("blocks", "digests")  # of a job, when its files change
_READ_ROWS = 4096  # decoded at a time
_MOST_RETRIES = 3  # of a block whose worker dies
_FOOTER_BYTES = 1 << 16  # of a Parquet file: it holds the schema and the place and statistics of every column chunk

OnProgress = Callable[[int, int], None]  # rows done, rows of the corpus


@dataclass(frozen=True)
class EncoderSettings:
    """What every worker makes its encoder with; see `PEGEncoder`."""

    model: str | None = None
    device: str | None = None
    dtype: str = "auto"
    backend: str = "auto"


@dataclass(frozen=True)
class CorpusReport:
    """What a finished run left in the output folder.

    Attributes:
        texts: embedded rows.
        bad_rows: rows without a text, listed in `bad-rows/`.
        blocks: files of vectors.
        new_texts: rows embedded by this run; the others were there.
        seconds: of this run.
    """

    texts: int
    bad_rows: int
    blocks: int
    new_texts: int
    seconds: float


@dataclass(frozen=True)
class _Block:
    """Rows `start` to `stop` (exclusive) of a file; `number`: the file's in the corpus, from 0."""

    number: int
    file: str
    column: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return f"{self.number:05}-{self.start:012}"


def embed_corpus(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    settings: EncoderSettings | None = None,
    column: str | None = None,
    role: str = "document",
    workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    block_rows: int = BLOCK_ROWS,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> CorpusReport:
    """Embed a column of Parquet files into the folder `out`; the same call again resumes.

    A cluster is used if Ray is connected to one or `RAY_ADDRESS` names one; otherwise one is started on this machine
    for the length of the call.

    Args:
        files: Parquet files, in the order that numbers them.
        column: of the texts; None for `text`, or the only text column.
        role: `document` or `query`: selects the prompt.
        workers: encoders at work at a time; None for as many as the cluster has room for.
        num_cpus, num_gpus: of each worker. Fractions share a GPU.
        block_rows: rows of a block: what a worker holds in memory, and what a crash costs.
        overwrite: discard what another job left in `out`.
        on_progress: called with the rows done and the rows of the corpus.

    Raises:
        InvalidInput: a file, a column or a number is not usable, `out` holds another job, or this machine has not the
            CPUs and GPUs for one worker.
        DataError: a file is not complete Parquet; or blocks could not be read. All others are in `out`.
        IndexBusy: another process is writing `out`.
        MissingExtra: Ray or pyarrow is not installed.
        PegRagError: a worker could not load the model.
    """
    if role not in ("document", "query"):
        raise InvalidInput(f"role={role!r}: document or query is expected")
    for name, value in (("workers", workers), ("block_rows", block_rows)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name}={value} must be 1 or more")
    if num_cpus < 0 or num_gpus < 0:
        raise InvalidInput(f"num_cpus={num_cpus} and num_gpus={num_gpus} cannot be negative")
    settings = settings or EncoderSettings()
    started_at = time.monotonic()
    folder = Path(out).absolute()
    blocks = _plan_blocks([Path(file).absolute() for file in files], column, block_rows)
    with PEGEncoder(settings.model, device="cpu", backend=settings.backend) as encoder:
        identity = encoder.identity
    with _lock_folder(folder):
        _claim_folder(folder, _describe_job(blocks, role, identity, block_rows), overwrite)
        texts_before = _count_texts(folder, blocks)
        pending = [block for block in blocks if block.name not in texts_before]
        if pending:
            progress = _Progress(blocks, pending, on_progress or (lambda done, total: None))
            pool = _Pool(workers, num_cpus, num_gpus)
            with _connect():
                _embed_blocks(pending, folder, settings, role, identity, pool, progress)
        texts = _count_texts(folder, blocks)
    rows = sum(block.rows for block in blocks)
    embedded = sum(texts.values())
    new_texts = embedded - sum(texts_before.values())
    return CorpusReport(embedded, rows - embedded, len(blocks), new_texts, time.monotonic() - started_at)


# -- the plan ---------------------------------------------------------------------------------------------------------


def _plan_blocks(files: Sequence[Path], column: str | None, block_rows: int) -> list[_Block]:
    if not files:
        raise InvalidInput("no file to embed; at least one Parquet file is expected")
    repeated = sorted({str(file) for file in files if files.count(file) > 1})
    if repeated:
        raise InvalidInput(f"{repeated[0]} is named more than once")
    blocks: list[_Block] = []
    for number, file in enumerate(files):
        rows, text_column = _inspect_file(file, column)
        starts = range(0, rows, block_rows)
        blocks += [_Block(number, str(file), text_column, start, min(start + block_rows, rows)) for start in starts]
    if not blocks:
        raise DataError(f"{files[0]}{' and the other files' if len(files) > 1 else ''} hold no rows")
    return blocks


def _inspect_file(file: Path, column: str | None) -> tuple[int, str]:
    """The rows of a Parquet file and its column of texts."""
    pq = require("pyarrow.parquet", "ray")
    if not file.is_file():
        raise InvalidInput(f"{file}: there is no such file")
    if file.suffix.lower() != ".parquet":
        raise InvalidInput(f"{file}: a cluster reads *.parquet only; embed other files with one process each")
    text_column = choose_text_column(file, list_text_columns(file, "ray"), column)
    return int(pq.read_metadata(file).num_rows), text_column


def _describe_job(blocks: Sequence[_Block], role: str, identity: str, block_rows: int) -> dict[str, Any]:
    files = {block.file: block for block in blocks}
    return {
        "format": _FORMAT,
        "identity": identity,
        "role": role,
        "block_rows": block_rows,
        "files": [[block.number, file, block.column] for file, block in files.items()],
        "blocks": len(blocks),
        "digests": {str(block.number): _digest_of_footer(Path(file)) for file, block in files.items()},
    }


def _digest_of_footer(file: Path) -> str:
    """Tells two versions of a Parquet file apart without reading all of it: its size and its last 64 KiB.

    The footer holds the offset, the compressed size and the extremes of every column chunk; a change that leaves all of
    them and the file's size alone is not noticed.
    """
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _FOOTER_BYTES))
        return f"{size}-{hashlib.sha256(stream.read()).hexdigest()}"


# -- the output folder ------------------------------------------------------------------------------------------------


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise IndexBusy(f"another process is writing {folder}; wait for it to finish") from error
    with lock:
        yield


def _claim_folder(folder: Path, job: dict[str, Any], overwrite: bool) -> None:
    """Use the folder for this job: it must be empty, or hold blocks of the same job. Blocks of changed files go."""
    manifest = folder / JOB_FILE
    if manifest.is_file() or any(folder.glob("*.parquet")):
        earlier_job = read_job(folder)
        names = [name for name in job if name not in _CHANGING and earlier_job.get(name) != job[name]]
        if names and not overwrite:
            raise InvalidInput(
                f"{folder} holds vectors made with another {' and '.join(names).replace('_', ' ')}; "
                "give another folder, or start over with overwrite"
            )
        if names:
            manifest.unlink(missing_ok=True)
            _remove_blocks(folder, "*")
        earlier_digests = earlier_job.get("digests", {})
        for number, digest in job["digests"].items():
            if earlier_digests.get(number) != digest:
                _remove_blocks(folder, f"{int(number):05}-*")
    for part in folder.rglob("*.part"):  # of workers that were killed
        part.unlink()
    write_atomically(manifest, json.dumps(job, ensure_ascii=False, indent=1).encode())


def _remove_blocks(folder: Path, pattern: str) -> None:
    for file in [*folder.glob(f"{pattern}.parquet"), *(folder / "bad-rows").glob(f"{pattern}.jsonl")]:
        file.unlink()


def _count_texts(folder: Path, blocks: Sequence[_Block]) -> dict[str, int]:
    """The texts in the file of each block that has one. A file that cannot be read is deleted."""
    pq = require("pyarrow.parquet", "ray")
    counts: dict[str, int] = {}
    for block in blocks:
        file = folder / f"{block.name}.parquet"
        if not file.exists():
            continue
        try:
            counts[block.name] = int(pq.read_metadata(file).num_rows)
        except (OSError, ValueError):
            file.unlink()
    return counts


# -- the cluster ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    workers: int | None
    num_cpus: float
    num_gpus: float


class _Progress:
    """Counts the rows of finished blocks."""

    def __init__(self, blocks: Sequence[_Block], pending: Sequence[_Block], on_progress: OnProgress) -> None:
        self._total = sum(block.rows for block in blocks)
        self._done = self._total - sum(block.rows for block in pending)
        self._on_progress = on_progress
        on_progress(self._done, self._total)

    def add(self, rows: int) -> None:
        self._done += rows
        self._on_progress(self._done, self._total)


@contextmanager
def _connect() -> Iterator[None]:
    """A connection to Ray for the length of the block; one that the caller made is used and left open."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by the import: Ray would report its use to its makers
    ray = require("ray", "ray")
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def _embed_blocks(
    pending: Sequence[_Block],
    folder: Path,
    settings: EncoderSettings,
    role: str,
    identity: str,
    pool: _Pool,
    progress: _Progress,
) -> None:
    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    _check_room([node["Resources"] for node in ray.nodes() if node["Alive"]], pool, bool(os.environ.get("RAY_ADDRESS")))
    workers = min(pool.workers or _count_places(ray.cluster_resources(), pool), len(pending))
    rows = [asdict(block) for block in pending]
    results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(str(folder), settings, role, identity),
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        max_task_retries=_MOST_RETRIES,
    )
    try:
        _report_results(results.iter_rows(), folder, progress)
    except ray.exceptions.RayError as error:
        raise PegRagError(f"the cluster gave up: {_last_line(error)}. Finished blocks are in {folder}") from error


def _report_results(results: Iterable[dict[str, Any]], folder: Path, progress: _Progress) -> None:
    problems: list[str] = []
    for result in results:
        progress.add(result["rows"])
        if result["problem"]:
            problems.append(result["problem"])
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}. All other blocks are in {folder}; mend the file and run the same again")


def _check_room(machines: Sequence[dict[str, float]], pool: _Pool, may_grow: bool) -> None:
    """Refuse workers that fit on none of the machines, for Ray would wait for one that has room.

    Args:
        machines: the resources of each.
        may_grow: another machine may join, so waiting is worth a warning only.
    """
    needs = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
    if any(all(machine.get(name, 0.0) >= needed for name, needed in needs.items()) for machine in machines):
        return
    most = ", ".join(
        f"{max((machine.get(name, 0.0) for machine in machines), default=0.0):g} {name}s" for name in needs
    )
    message = (
        f"a worker needs {pool.num_cpus:g} CPUs and {pool.num_gpus:g} GPUs, and no machine has both; "
        f"the most that one has: {most}"
    )
    if not may_grow:
        raise InvalidInput(f"{message}. Give a smaller num_cpus and num_gpus, or name a larger cluster in RAY_ADDRESS")
    logger.warning("%s. Waiting for a larger one to join the cluster", message)


def _count_places(resources: dict[str, float], pool: _Pool) -> int:
    """How many workers the cluster has room for; at least one."""
    places = [
        resources.get(name, 0.0) / needed for name, needed in (("CPU", pool.num_cpus), ("GPU", pool.num_gpus)) if needed
    ]
    return max(1, int(min(places, default=1.0)))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


class _Worker:
    """Embeds blocks with one encoder, and writes a file for each."""

    def __init__(self, folder: str, settings: EncoderSettings, role: str, identity: str) -> None:
        self._folder = Path(folder)
        self._role = role
        self._encoder = PEGEncoder(**asdict(settings))
        if self._encoder.identity != identity:
            raise IndexMismatch(
                f"a worker loaded {self._encoder.identity}, the run began with {identity}; "
                "put the same model on every machine"
            )

    def __call__(self, batch: Any) -> Any:
        pa = require("pyarrow", "ray")
        blocks = [_Block(**row) for row in batch.to_pylist()]
        problems = [self._embed_or_explain(block) for block in blocks]
        return pa.table({"rows": [block.rows for block in blocks], "problem": pa.array(problems, pa.string())})

    def _embed_or_explain(self, block: _Block) -> str | None:
        """Embed a block; what keeps its rows from being read, if anything does."""
        try:
            texts = _read_column(block)
        except (OSError, ValueError) as error:
            return f"{block.file}, rows {block.start:,} to {block.stop - 1:,} cannot be read: {error}"
        self._write(block, texts)
        return None

    def _write(self, block: _Block, texts: list[str | None]) -> None:
        good = {block.start + i: text for i, text in enumerate(texts) if text is not None and text.strip()}
        bad = {block.start + i: text for i, text in enumerate(texts) if block.start + i not in good}
        if bad:
            lines = [
                {"file": block.file, "row": row, "problem": "null" if text is None else "blank"}
                for row, text in bad.items()
            ]
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomically(self._folder / "bad-rows" / f"{block.name}.jsonl", content.encode())
        encode = self._encoder.encode_documents if self._role == "document" else self._encoder.encode_queries
        vectors = encode(list(good.values()))  # (texts, dimension)
        table = self._make_table(block, good, vectors)
        pa = require("pyarrow", "ray")
        sink = pa.BufferOutputStream()
        require("pyarrow.parquet", "ray").write_table(table, sink)
        write_atomically(self._folder / f"{block.name}.parquet", sink.getvalue())  # last: it says that all is done

    def _make_table(self, block: _Block, texts: dict[int, str], vectors: Any) -> Any:
        pa = require("pyarrow", "ray")
        dimension = self._encoder.dimension
        return pa.table(
            {
                "file": pa.array([block.file] * len(texts), pa.string()),
                "row": pa.array(texts.keys(), pa.int64()),
                "text": pa.array(texts.values(), pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), dimension),
            },
            metadata={"peg_rag.identity": self._encoder.identity, "peg_rag.role": self._role},
        )


def _read_column(block: _Block) -> list[str | None]:
    """The block's texts; of row groups before it, nothing is read."""
    pq = require("pyarrow.parquet", "ray")
    texts: list[str | None] = []
    with pq.ParquetFile(block.file) as file:
        first = 0
        for group in range(file.num_row_groups):
            following = first + file.metadata.row_group(group).num_rows
            if first < block.stop and following > block.start:
                texts += _read_group(file, group, block, first)
            first = following
    if len(texts) != block.rows:
        raise ValueError(f"{len(texts):,} rows were read")
    return texts


def _read_group(file: Any, group: int, block: _Block, first: int) -> list[str | None]:
    """The block's texts in one row group, whose first row is `first`."""
    texts: list[str | None] = []
    row = first
    for batch in file.iter_batches(row_groups=[group], columns=[block.column], batch_size=_READ_ROWS):
        start = max(block.start - row, 0)
        stop = min(block.stop - row, len(batch))
        if start < stop:
            texts += batch.column(0).slice(start, stop - start).to_pylist()
        row += len(batch)
        if row >= block.stop:
            break
    return texts
