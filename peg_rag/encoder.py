"""`PEGEncoder`: texts in, unit vectors out. The only place that runs a model for inference.

Texts are tokenised once, sorted by token length and packed into batches of a token budget; the order is undone at the
end, and texts that are equal are encoded once. Work goes in windows of a few thousand texts, so memory beyond the
result stays bounded however long the corpus is. One encoder serves many threads: a tokenizer is never reconfigured
after loading (else sharing one fails with "Already borrowed") and a backend runs one batch at a time. The async
methods put the texts of concurrent callers into shared batches (`peg_rag.microbatching`). With several devices, batches
go to worker processes (`peg_rag.backends.pool`); everything else stays as it is.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends import Backend, name_backend, open_backend
from peg_rag.batching import Batch, plan_batches
from peg_rag.errors import DamagedModel, InvalidInput, PegRagError, WorkerDied
from peg_rag.microbatching import MicroBatcher
from peg_rag.models import ModelSpec, resolve
from peg_rag.texts import check_texts, replace_unencodable

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from peg_rag.backends.pool import DevicePool

    AnyBackend: TypeAlias = Backend | DevicePool

logger = logging.getLogger(__name__)

Role = Literal["query", "document"]
WINDOW_TEXTS = 8_192  # tokenised and length-sorted together
FIRST_WINDOW_TEXTS = 1_024  # of the windows for an accelerator, which double from one to the next
CPU_BATCH_COST = 64  # in tokens; 34 were measured in bfloat16 and 20 in float32, on one core, and more cores mean more
ASYNC_BATCH_SECONDS = 0.1  # how long a shared batch of concurrent callers may take, about
CHARACTERS_PER_TOKEN = 16  # a text is read up to max_length times this; no language comes near it


@dataclass
class EncoderStats:
    """What an encoder has done since it was made. Counts are of texts actually encoded, so repeats count once."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0  # texts longer than max_length
    blank: int = 0  # documents with nothing in them
    replaced: int = 0  # texts with lone surrogates or NUL
    seconds: float = 0.0  # spent encoding, tokenising included


class PEGEncoder:
    """Turns texts into unit vectors, with the model's own pooling and its own prompts for queries and documents.

    Args:
        model: a hub id, a folder or a bundled name (`peg-mini`); None for `$PEG_RAG_MODEL`, else `TownsWu/PEG`.
        pooling: `cls`, `mean`, `max` or `lasttoken`; None for what the model says (see `peg_rag.models`).
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None or `auto` for the best there is.
        devices: several, such as `["cuda:0", "cuda:1"]`, in place of `device`. Each gets a process that loads the
            weights; see `peg_rag.backends.pool`. One alone is what `device` is, without a process.
        dtype: `auto` (bfloat16 where the hardware has it), `float32`, `bfloat16`, `float16`, or `int8` (products of
            bytes: on a CPU with VNNI, for BERT's shape or where the model was exported in it).
        backend: `auto`, `torch` (transformers), `numpy` (static models); `openvino` or `onnx` (transformers exported by
            `peg-rag export`).
        batch_tokens: tokens in a batch, padding counted; None for the backend's own choice.
        max_length: tokens kept of a text; None for the model's limit.
        normalize: unit vectors (cosine is then the inner product). False leaves the pooled vectors as they are.
        query_prompt, document_prompt: put before each text; None for the model's own.
        truncate_dim: keep this many leading dimensions and normalise again (matryoshka models).
        revision: a hub branch, tag or commit.

    Raises:
        ModelNotAvailable, DamagedModel: see `peg_rag.models.resolve`.
        InvalidInput: an argument is out of range.
        WorkerDied: with `devices`, a worker process died while it loaded the weights.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pooling: str | None = None,
        device: str | None = None,
        devices: Sequence[str] | None = None,
        dtype: str = "auto",
        backend: str = "auto",
        batch_tokens: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        truncate_dim: int | None = None,
        revision: str | None = None,
    ) -> None:
        self.spec: ModelSpec = resolve(
            model,
            pooling=pooling,
            max_length=max_length,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            revision=revision,
        )
        if truncate_dim is not None and not 1 <= truncate_dim <= self.spec.dimension:
            raise InvalidInput(
                f"truncate_dim={truncate_dim}, but {self.spec.name} has {self.spec.dimension} dimensions"
            )
        if batch_tokens is not None and batch_tokens < 1:
            raise InvalidInput(f"batch_tokens={batch_tokens} must be 1 or more")
        self.normalize = normalize
        self.stats = EncoderStats()
        self._truncate_dim = truncate_dim
        self._batch_tokens = batch_tokens
        self._devices = _check_devices(device, devices)
        self._backend_options = {"name": backend, "dtype": dtype}
        self._model: tuple[Tokenizer, AnyBackend] | None = None
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._closed = False
        self._batcher = make_batcher(len(self._devices))
        self._get_model()

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of queries, the query prompt before each. A blank query is an error.

        Raises:
            InvalidInput: not a list of strings, or a blank query; the message names the index.
            WorkerDied: with `devices`, workers died over some of the texts.
        """
        return self._encode_texts(texts, "query", show_progress)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of documents, the document prompt before each.

        A blank document gets a defined vector (that of an empty text) and a warning.

        Raises:
            InvalidInput: not a list of strings; the message names the index.
            WorkerDied: with `devices`, workers died over some of the texts.
        """
        return self._encode_texts(texts, "document", show_progress)

    async def aencode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`encode_queries` off the event loop; concurrent calls share batches, and a cancelled one is dropped.

        Calls may come from any event loop and any thread. The vectors are those of `encode_queries` but for rounding,
        since a text's neighbours in a batch differ: within 1e-5 in float32, 0.003 in
        bfloat16, exactly for static models.

        Raises:
            InvalidInput: as `encode_queries`; a bad call does not disturb the others.
        """
        checked = check_texts(texts, what="queries")
        self._check_blank(checked, "query")
        self._check_open()
        return await encode_together(self._batcher, self.encode_queries, checked, "query")

    async def aencode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`encode_documents` off the event loop; see `aencode_queries`. A large call takes turns with the others.

        Raises:
            InvalidInput: as `encode_documents`; a bad call does not disturb the others.
        """
        checked = check_texts(texts, what="documents")
        self._check_open()
        return await encode_together(self._batcher, self.encode_documents, checked, "document")

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._truncate_dim or self.spec.dimension

    @property
    def identity(self) -> str:
        """Names the vector space: two encoders of one identity may share an index, others may not."""
        prompts = self.spec.query_prompt + "\0" + self.spec.document_prompt
        mark = "" if prompts == "\0" else "+" + hashlib.sha256(prompts.encode()).hexdigest()[:4]
        name = self.spec.name.rsplit("/", 1)[-1]
        return f"{name}@{self.spec.fingerprint}/{self.spec.pooling}/{self.dimension}{mark}"

    @property
    def fingerprint(self) -> str:
        """Names everything a vector depends on, settings that keep the vector space included: the key of a cache."""
        spec = self.spec
        parts = [self.identity, spec.query_prompt, spec.document_prompt, spec.max_length, self.normalize, self.dtype]
        if self.backend_name not in ("torch", "static"):
            parts.append(self.backend_name)
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()

    @property
    def device(self) -> str:
        """`cpu`, `cuda:1`; of several, all of them: `cuda:0,cuda:1`."""
        return self._get_model()[1].device

    @property
    def devices(self) -> list[str]:
        """All devices, one for each worker; in this process, the one."""
        return self.device.split(",")

    @property
    def dtype(self) -> str:
        return self._get_model()[1].dtype

    @property
    def backend_name(self) -> str:
        """`torch`, `static` (what `backend="numpy"` opens), `openvino` or `onnx`."""
        _, backend = self._get_model()
        return str(getattr(backend, "backend_name", None) or name_backend(backend))

    def close(self) -> None:
        """Free the model's memory. A closed encoder refuses to encode, and async calls that still wait fail."""
        with self._lock:
            self._closed = True
        self._batcher.close()  # without the lock, which its thread needs to finish
        with self._lock:
            if self._model is not None:
                self._model[1].close()
            self._model = None

    def __enter__(self) -> "PEGEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PEGEncoder({self.identity})"

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_model", "_lock", "_warned", "_batcher")
        return {key: value for key, value in self.__dict__.items() if key not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._model = None
        self._lock = threading.RLock()
        self._warned = set()
        self._batcher = make_batcher(len(self._devices))

    def _get_model(self) -> "tuple[Tokenizer, AnyBackend]":
        """Tokenizer and backend, loaded now if this encoder came out of a pickle."""
        with self._lock:
            self._check_open()
            if self._model is None:
                backend = self._open_backend()
                tokenizer = load_tokenizer(self.spec)
                _check_token_ids(tokenizer, backend, self.spec)
                self._model = tokenizer, backend
            return self._model

    def _open_backend(self) -> "AnyBackend":
        if len(self._devices) == 1:
            return open_backend(**self._backend_options, spec=self.spec, device=self._devices[0])
        from peg_rag.backends.pool import DevicePool

        return DevicePool(**self._backend_options, spec=self.spec, devices=[str(device) for device in self._devices])

    def _check_open(self) -> None:
        if self._closed:
            raise PegRagError(f"this encoder of {self.spec.name} is closed; make a new one")

    def _encode_texts(self, texts: Sequence[str], role: Role, show_progress: bool) -> NDArray[np.float32]:
        checked = check_texts(texts, what="queries" if role == "query" else "documents")
        self._check_blank(checked, role)
        start = time.perf_counter()
        prompt = self.spec.query_prompt if role == "query" else self.spec.document_prompt
        places: dict[str, int] = {}  # text → row of its vector: equal texts are encoded once
        rows = np.array([places.setdefault(text, len(places)) for text in checked], dtype=np.intp)
        distinct = np.empty((len(places), self.dimension), dtype=np.float32)
        try:
            with _show_progress(len(places), f"embed {role}s", show_progress) as advance:
                self._encode_distinct([self._prepare_text(text, prompt) for text in places], distinct, advance)
        except WorkerDied as error:
            names = list(places)
            raise locate_lost_texts(error, [names[row] for row in error.positions], checked, role) from error
        with self._lock:
            self.stats.seconds += time.perf_counter() - start
        return distinct if len(distinct) == len(rows) else distinct[rows]

    def _encode_distinct(self, texts: list[str], out: NDArray[np.float32], advance: Callable[[int], object]) -> None:
        """Encode into `out` (n, dimension); `advance` is told how many texts are done."""
        tokenizer, backend = self._get_model()
        batches = self._make_batches(tokenizer, backend, texts)
        with closing(_embed_batches(backend, batches)) as results:
            for batch, vectors in results:
                out[batch.rows] = self._finish_vectors(vectors)
                advance(len(batch.rows))

    def _make_batches(self, tokenizer: "Tokenizer", backend: "AnyBackend", texts: list[str]) -> Iterator[Batch]:
        """Batches of the texts, tokenised window by window; the last window's are shared out among the devices."""
        for start, token_ids in self._tokenize_windows(tokenizer, texts, ahead=not _is_on_cpu(backend)):
            is_last = start + len(token_ids) == len(texts)
            budget = self._batch_tokens or backend.batch_tokens
            plan = plan_batches(
                list(map(len, token_ids)),
                budget,
                batch_cost=self._find_batch_cost(backend),
                workers=len(self._devices) if is_last else 1,
            )
            for rows in plan:
                yield Batch(start + rows, [token_ids[row] for row in rows])

    def _tokenize_windows(
        self, tokenizer: "Tokenizer", texts: list[str], *, ahead: bool
    ) -> Iterator[tuple[int, list[list[int]]]]:
        """Each window's place in the texts, and its token ids.

        `ahead`: a thread tokenises the next window meanwhile, and windows begin small so that the device soon has work.
        """
        windows = _plan_windows(len(texts), FIRST_WINDOW_TEXTS if ahead else WINDOW_TEXTS)
        if not ahead or len(windows) < 2:
            for start, stop in windows:
                yield start, self._tokenize_texts(tokenizer, texts[start:stop])
            return
        with ThreadPoolExecutor(1, thread_name_prefix="peg-rag-tokenizer") as executor:
            waiting: deque[Future[list[list[int]]]] = deque()
            for number, (start, _) in enumerate(windows):
                for first, stop in windows[number + len(waiting) : number + 2]:
                    waiting.append(executor.submit(self._tokenize_texts, tokenizer, texts[first:stop]))
                yield start, waiting.popleft().result()

    def _find_batch_cost(self, backend: "AnyBackend") -> int | None:
        """Padding takes time only in a transformer; where launching a batch takes long, full batches are best."""
        return CPU_BATCH_COST if self.spec.kind == "transformer" and _is_on_cpu(backend) else None

    def _prepare_text(self, text: str, prompt: str) -> str:
        """The text as the tokenizer gets it: prompt in front, no more characters than max_length tokens can need."""
        limit = self.spec.max_length * CHARACTERS_PER_TOKEN
        head = text[: limit + 1]
        clean = replace_unencodable(head)
        if clean != head:
            self._count_event("replaced", "a text holds lone surrogates or NUL, which are replaced by U+FFFD")
        return prompt + clean

    def _tokenize_texts(self, tokenizer: "Tokenizer", texts: list[str]) -> list[list[int]]:
        limit = self.spec.max_length * CHARACTERS_PER_TOKEN
        transformer = self.spec.kind == "transformer"
        encodings: list[Encoding] = tokenizer.encode_batch_fast(texts, add_special_tokens=transformer)
        rows = [encoding.ids for encoding in encodings]
        long = sum(
            len(text) > limit or (len(row) >= self.spec.max_length and bool(encoding.overflowing))
            for text, row, encoding in zip(texts, rows, encodings, strict=True)
        )
        if long:
            self._count_event(
                "truncated",
                f"a text is longer than max_length={self.spec.max_length} tokens; the rest of it is not embedded "
                "(encoder.stats.truncated counts them). Split long documents into chunks first",
                long,
            )
        blank = [0] if transformer else [_find_blank_id(tokenizer)]
        with self._lock:
            self.stats.texts += len(rows)
            self.stats.tokens += sum(map(len, rows))
        return [row or blank for row in rows]

    def _finish_vectors(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut to truncate_dim and normalise, (rows, dimension)."""
        vectors = vectors[:, : self.dimension]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (rows, 1)
        if not np.isfinite(norms).all():
            raise DamagedModel(
                f"{self.spec.name} gave a vector that is not finite in {self.dtype}; its weights are damaged, "
                "or the type is too narrow: try dtype='float32'"
            )
        if self.spec.kind == "transformer" and not norms.all():  # the tokens of a static model may well be zero
            raise DamagedModel(f"{self.spec.name} gave a zero vector; its weights are damaged, download them again")
        return vectors / np.maximum(norms, 1e-12) if self.normalize else vectors

    def _check_blank(self, texts: Iterable[str], role: Role) -> None:
        blank = [i for i, text in enumerate(texts) if not text.strip()]
        if not blank:
            return
        if role == "query":
            raise InvalidInput(f"queries[{blank[0]}] is blank; a query must say something")
        self._count_event("blank", f"documents[{blank[0]}] is blank; it gets the vector of an empty text", len(blank))

    def _count_event(self, counter: str, message: str, count: int = 1) -> None:
        """Count it in the stats, and warn the first time."""
        with self._lock:
            setattr(self.stats, counter, getattr(self.stats, counter) + count)
            first = counter not in self._warned
            self._warned.add(counter)
        if first:
            logger.warning("%s: %s. Further ones are only counted.", self.spec.name, message)


def _plan_windows(count: int, first: int) -> list[tuple[int, int]]:
    """Where windows of so many texts begin and end: each is twice as long as the one before, up to WINDOW_TEXTS."""
    size = min(first, WINDOW_TEXTS)
    starts = [0]
    while starts[-1] < count:
        starts.append(min(count, starts[-1] + size))
        size = min(2 * size, WINDOW_TEXTS)
    return list(pairwise(starts))


def _is_on_cpu(backend: "AnyBackend") -> bool:
    return set(backend.device.split(",")) == {"cpu"}


def make_batcher(threads: int = 1) -> MicroBatcher[NDArray[np.float32]]:
    """What puts the texts of an encoder's concurrent callers together; `threads`: batches at a time."""
    return MicroBatcher(np.concatenate, batch_seconds=ASYNC_BATCH_SECONDS, threads=threads)


async def encode_together(
    batcher: MicroBatcher[NDArray[np.float32]],
    encode: Callable[[list[str]], NDArray[np.float32]],
    texts: list[str],
    role: Role,
) -> NDArray[np.float32]:
    """The vectors of texts, (n, dimension), computed in batches with those of concurrent callers."""
    try:
        return await batcher.run(encode, texts)
    except WorkerDied as error:  # its positions are those in a slice of the texts
        raise locate_lost_texts(error, error.texts, texts, role) from error


def locate_lost_texts(error: WorkerDied, lost_texts: Iterable[str], texts: Sequence[str], role: Role) -> WorkerDied:
    """The error with the places of the lost texts in a caller's list."""
    lost = set(lost_texts)
    places = {i: text for i, text in enumerate(texts) if text in lost}
    what = "queries" if role == "query" else "documents"
    return WorkerDied(error.reason, what=what, texts=list(places.values()), positions=list(places))


def _check_devices(device: str | None, devices: Sequence[str] | None) -> list[str | None]:
    """The devices to use; a single None for the best there is."""
    if devices is None:
        return [device]
    if device is not None:
        raise InvalidInput(f"device={device!r} and devices={devices!r}: one of the two is expected")
    if isinstance(devices, str) or not devices or not all(isinstance(name, str) and name for name in devices):
        raise InvalidInput(f"devices={devices!r}: a list of names is expected, such as ['cuda:0', 'cuda:1']")
    return list(devices)


def _embed_batches(
    backend: "AnyBackend", batches: Iterator[Batch]
) -> Generator[tuple[Batch, NDArray[np.float32]], None, None]:
    """Each batch with its pooled vectors, (rows, model dimension), in any order."""
    if hasattr(backend, "embed_batches"):
        yield from backend.embed_batches(batches, max_rows=WINDOW_TEXTS)
        return
    start = None if _is_on_cpu(backend) else getattr(backend, "start", None)
    if start is None:
        for batch in batches:
            yield batch, backend.embed(batch.token_ids)
        return
    waiting: deque[tuple[Batch, Callable[[], NDArray[np.float32]]]] = deque()
    for batch in batches:
        waiting.append((batch, start(batch.token_ids)))
        if len(waiting) > 1:  # the device has its next batch before the result of this one is fetched
            done, fetch = waiting.popleft()
            yield done, fetch()
    for done, fetch in waiting:
        yield done, fetch()


@contextmanager
def _show_progress(total: int, description: str, show: bool) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of texts done; tqdm, which takes a while to import, only draws when shown."""
    if not show:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, unit="text") as bar:
        yield bar.update


def load_tokenizer(spec: ModelSpec) -> "Tokenizer":
    """The model's tokenizer, set to truncate at max_length and never to pad; not to be reconfigured afterwards.

    Raises:
        DamagedModel: the tokenizer's files are missing or unreadable.
    """
    from tokenizers import Tokenizer

    try:
        if spec.kind == "static":
            files = [spec.path / "tokenizer.json", *sorted(spec.path.glob("*_StaticEmbedding/tokenizer.json"))]
            file = next((file for file in files if file.is_file()), files[0])
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(spec.path, trust_remote_code=False, local_files_only=True)
            tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # the loader raises what the damage makes it raise; the user needs the folder's name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedModel(f"the tokenizer in {spec.path} cannot be loaded: {reason}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_length)
    return tokenizer


def _check_token_ids(tokenizer: "Tokenizer", backend: "AnyBackend", spec: ModelSpec) -> None:
    """Refuse a tokenizer and weights that do not belong together, before a text meets a token without an embedding."""
    special = tokenizer.encode("").ids  # the post-processor has ids of its own
    largest = max([*tokenizer.get_vocab().values(), *special], default=0)
    if largest >= backend.vocabulary_size:
        raise DamagedModel(
            f"the tokenizer in {spec.path} has token {largest}, but the weights have embeddings of "
            f"{backend.vocabulary_size} tokens: they belong to different models, or the weights were cut"
        )


def _find_blank_id(tokenizer: "Tokenizer") -> int:
    """The token that stands for an empty text in a static model: the unknown token, else the first."""
    for name in ("<unk>", "[UNK]"):
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    return 0
