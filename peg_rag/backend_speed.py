"""Which backend is fastest on this machine: all that can run a model embed the same passages, in turns.

No table of other machines says it: the order of torch, OpenVINO and ONNX Runtime depends on the CPU's instructions.
What the model was not yet exported for is exported to a temporary folder first, where the tools are installed. Costs a
minute for a small model; for a BERT-large some ten, and 5 GB of memory and of disk.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends.exported import RUNTIMES, is_exported
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import InvalidInput
from peg_rag.export import can_export, read_papers, read_texts, write_variant
from peg_rag.models import ModelSpec, resolve

ROUNDS = 3
PASSAGES = 32
QUERIES = 10


@dataclass(frozen=True, slots=True)
class BackendSpeed:
    """How fast one backend embedded.

    Attributes:
        tokens_per_s: of passages, padding not counted; the best round.
        query_ms: one query at a time; the median.
        min_cosine: of its worst vector to that of the first backend, which is float32 where there is a choice.
    """

    backend: str
    device: str
    dtype: str
    tokens_per_s: float
    query_ms: float
    min_cosine: float


@dataclass(slots=True)
class _Entrant:
    encoder: PEGEncoder
    seconds: list[float] = field(default_factory=list)  # of all passages
    query_seconds: list[float] = field(default_factory=list)
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))


def measure_backends(
    model: str | Path | None = None,
    *,
    rounds: int = ROUNDS,
    texts: Sequence[str] | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> list[BackendSpeed]:
    """Embed the same passages and queries with every backend that can run a model here, in turns.

    Args:
        model: as for `PEGEncoder`.
        rounds: how often each embeds all passages.
        texts: the passages; None for some of the demo.
        notify: is told, in a sentence, what takes long.

    Raises:
        ModelNotAvailable, DamagedModel: as `PEGEncoder`.
    """
    spec = resolve(model)
    passages = read_texts(PASSAGES) if texts is None else list(texts)
    queries = [title for title, _ in read_papers(QUERIES)]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        entrants = [_Entrant(stack.enter_context(encoder)) for encoder in _open_encoders(spec, work, notify)]
        first = entrants[0]
        tokens_before = first.encoder.stats.tokens
        for entrant in entrants:  # what is done once, such as compiling for a length, is not measured
            entrant.vectors = entrant.encoder.encode_documents(passages)
        tokens = first.encoder.stats.tokens - tokens_before
        notify("measuring …")
        _take_turns(entrants, passages, queries, rounds)
        return [_describe_speed(entrant, first, tokens) for entrant in entrants]


def _open_encoders(spec: ModelSpec, work: Path, notify: Callable[[str], None]) -> Iterator[PEGEncoder]:
    """Encoders of the model by every backend, device and dtype; `work` is a folder for exports, not made yet."""
    settings: dict[str, Any] = {"pooling": spec.pooling, "max_length": spec.max_length}
    if spec.kind == "static":
        yield PEGEncoder(spec.path, **settings)
        return
    reference = PEGEncoder(spec.path, backend="torch", dtype="float32", device="cpu", **settings)
    yield reference
    for device in ("cpu", "auto"):
        encoder = PEGEncoder(spec.path, backend="torch", dtype="auto", device=device, **settings)
        if (encoder.device, encoder.dtype) != (reference.device, reference.dtype):
            yield encoder
            reference = encoder
        else:
            encoder.close()
    int8 = _open_int8(spec, settings)
    if int8 is not None:
        yield int8
    for backend in RUNTIMES:
        for dtype in ("auto", "int8"):
            try:
                exported = _open_exported(spec, work, backend, dtype, settings, notify)
            except Exception as error:  # exporters raise what a model makes them raise; the others can be measured
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                notify(f"{backend} ({dtype}) cannot run this model and is left out: {reason}")
                continue
            if exported is not None:
                yield exported


def _open_exported(
    spec: ModelSpec, work: Path, backend: str, dtype: str, settings: dict[str, Any], notify: Callable[[str], None]
) -> PEGEncoder | None:
    """The model through an exported variant, which is made in `work` if there is none; None without the tools."""
    folder = spec.path
    if not is_exported(spec, backend, dtype):
        if not can_export(backend, dtype):
            return None
        notify(f"exporting for {backend} ({dtype}) to a temporary folder …")
        write_variant(spec, work, backend, dtype)
        folder = work
    return PEGEncoder(folder, backend=backend, dtype=dtype, **settings)


def _open_int8(spec: ModelSpec, settings: dict[str, Any]) -> PEGEncoder | None:
    """The model in int8 through torch; None where the processor or the model's layers do not allow it."""
    try:
        return PEGEncoder(spec.path, backend="torch", dtype="int8", device="cpu", **settings)
    except InvalidInput:
        return None


def _take_turns(entrants: Sequence[_Entrant], passages: Sequence[str], queries: Sequence[str], rounds: int) -> None:
    """Measure all, in the opposite order every other time, so that a busy machine hurts all alike."""
    for turn in range(rounds):
        for entrant in entrants[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            entrant.encoder.encode_documents(passages)
            entrant.seconds.append(time.perf_counter() - started)
    for turn, query in enumerate(queries):
        for entrant in entrants[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            entrant.encoder.encode_queries([query])
            entrant.query_seconds.append(time.perf_counter() - started)


def _describe_speed(entrant: _Entrant, first: _Entrant, tokens: int) -> BackendSpeed:
    encoder = entrant.encoder
    return BackendSpeed(
        backend=encoder.backend_name,
        device=encoder.device,
        dtype=encoder.dtype,
        tokens_per_s=round(tokens / min(entrant.seconds), 1),
        query_ms=round(1000 * statistics.median(entrant.query_seconds), 2),
        min_cosine=round(float((entrant.vectors * first.vectors).sum(axis=1).min()), 5),
    )
