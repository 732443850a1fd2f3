"""One training step over a batch of any size in bounded memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

1. Encode the whole batch without a graph, in length-sorted chunks of a token budget; remember each chunk's RNG state.
2. Compute the loss and its gradients on the vectors alone (`peg_rag.training.loss`, tile by tile).
3. Encode chunk by chunk again under the remembered RNG, now with a graph, and back-propagate ⟨vectors, gradient⟩.

The result equals a plain step over the whole batch, dropout included. It costs a second forward pass, about a third
more arithmetic, and holds one chunk's activations. Where the activations of the whole batch fit in memory (measured on
a first chunk), the graphs of step 1 are kept and step 3 needs no second forward.

Across ranks the parameters are reduced once, in the last chunk's backward. `DistributedDataParallel` averages gradients
over ranks while the loss is one loss over all of them, so each surrogate is scaled by the number of ranks.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from peg_rag.batching import plan_batches
from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.extras import require
from peg_rag.training.extension import BatchObserver
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import LossMetrics
from peg_rag.training.loss.objective import Objective


class Rows(Protocol):
    """The tokenised texts of one side of a batch: their lengths, and any of them as model input."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each text."""

    def features(self, rows: NDArray[np.intp]) -> Any:
        """Padded model input for these rows, on the model's device."""


@dataclass(frozen=True)
class StepBatch:
    """One optimiser step's texts on this rank, and what the objective must know about them.

    queries: b rows. documents: n rows. labels: `Pairs` for the contrastive loss, (b,) grades for CoSENT.
    """

    queries: Rows
    documents: Rows
    labels: Any


@dataclass
class _Chunk:
    """Some rows of one side: with the RNG state before their encoding, and with their graph where it is kept."""

    side: int
    rows: NDArray[np.intp]
    rng: list[Tensor]
    graph: Tensor | None = None  # (len(rows), d)


class CachedStep:
    """Call it with a batch: gradients are added to the parameters, as `loss.backward()` would.

    Args:
        model: features → (n, d) vectors; a module (bare or in DistributedDataParallel) or any callable.
        objective: the loss on the vectors.
        batch_tokens: rows × longest of a chunk; None measures a first chunk and takes what fits.
        graphs: `replay` encodes twice, `keep` once with all graphs in memory, `auto` keeps them when they fit.
        device: where the model is.
        observers: see each batch before it is encoded.

    What was measured once holds for all later steps and is part of `state_dict`: a resumed run repeats the arithmetic.
    """

    def __init__(
        self,
        model: Callable[[Any], Tensor],
        objective: Objective,
        *,
        batch_tokens: int | None = None,
        graphs: Literal["auto", "keep", "replay"] = "auto",
        device: torch.device | str = "cpu",
        observers: Sequence[BatchObserver] = (),
    ) -> None:
        if graphs not in ("auto", "keep", "replay"):
            raise InvalidInput(f"graphs={graphs!r} is none of 'auto', 'keep', 'replay'")
        self.model = model
        self.objective = objective
        self.batch_tokens = batch_tokens
        self.graphs = graphs
        self.device = torch.device(device)
        self._observers = observers
        self._token_bytes = 0.0  # activations per token; 0: not measured yet
        self._free_bytes = 0

    def __call__(self, batch: StepBatch, progress: float = 0.0) -> LossMetrics:
        """Encode, compute the loss, back-propagate. `progress`: fraction of the run that is over, 0 to 1.

        Raises:
            TrainingError: a vector is not finite, or encoding again gave other vectors. The model's gradients are
                untouched then.
        """
        sides = (batch.documents, batch.queries)
        if min(len(side.lengths) for side in sides) == 0:
            raise InvalidInput("a batch needs at least one query and one document on every rank")
        if self._token_bytes == 0.0 and (self.batch_tokens is None or self.graphs == "auto"):
            self._measure_memory(sides)
        assert self.batch_tokens is not None
        for observer in self._observers:
            observer.observe(batch, self.batch_tokens)
        chunks = [_Chunk(i, rows, []) for i, side in enumerate(sides) for rows in self._plan_chunks(side)]
        keep = self._keep_graphs(chunks, sides)
        vectors = self._encode_chunks(chunks, sides, keep)
        result = self.objective(vectors[1], vectors[0], batch.labels, progress)
        gradients = (result.document_gradient, result.query_gradient)
        if keep:
            self._backward_graphs(chunks, gradients)
        else:
            self._replay_chunks(chunks, sides, vectors, gradients)
        return result.metrics

    def state_dict(self) -> dict[str, Any]:
        """The objective's state and the sizes in use."""
        sizes = {"batch_tokens": self.batch_tokens, "token_bytes": self._token_bytes, "free_bytes": self._free_bytes}
        return {"objective": self.objective.state_dict(), **sizes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.objective.load_state_dict(state["objective"])
        self.batch_tokens = state["batch_tokens"]
        self._token_bytes = state["token_bytes"]
        self._free_bytes = state["free_bytes"]

    # 1. Encode without a graph, or with one that is kept.

    def _plan_chunks(self, side: Rows) -> list[NDArray[np.intp]]:
        assert self.batch_tokens is not None
        return plan_batches(side.lengths, self.batch_tokens)

    def _keep_graphs(self, chunks: list[_Chunk], sides: Sequence[Rows]) -> bool:
        """Whether all graphs of the batch are to be, or may be, held at once."""
        if self.graphs == "auto":
            tokens = sum(len(chunk.rows) * int(sides[chunk.side].lengths[chunk.rows].max()) for chunk in chunks)
            return tokens * self._token_bytes <= self._free_bytes / 2
        return self.graphs == "keep"

    def _encode_chunks(self, chunks: list[_Chunk], sides: Sequence[Rows], keep: bool) -> list[Tensor]:
        """The vectors of each side, (n, d) in float32 or better and without graph."""
        vectors: list[Tensor | None] = [None, None]
        for chunk in chunks:
            chunk.rng = self._random_state()
            encode = self.model if keep and chunk is chunks[-1] else self._local_model
            with torch.set_grad_enabled(keep):
                part = encode(sides[chunk.side].features(chunk.rows))  # (rows, d)
            chunk.graph = part if keep else None
            side = vectors[chunk.side]
            if side is None:
                dtype = torch.promote_types(part.dtype, torch.float32)
                side = part.new_empty(len(sides[chunk.side].lengths), part.shape[1], dtype=dtype)
                vectors[chunk.side] = side
            side[self._row_index(chunk)] = part.detach().to(side.dtype)
        return [side for side in vectors if side is not None]

    # 3. Back-propagate ⟨vectors, gradient⟩.

    def _backward_graphs(self, chunks: list[_Chunk], gradients: Sequence[Tensor]) -> None:
        """Through the kept graphs, in one go: a parameter is then reduced once."""
        graphs = [chunk.graph for chunk in chunks if chunk.graph is not None]
        parts = [self._chunk_gradient(chunk, gradients, graph) for chunk, graph in zip(chunks, graphs, strict=True)]
        torch.autograd.backward(graphs, parts)

    def _replay_chunks(
        self, chunks: list[_Chunk], sides: Sequence[Rows], vectors: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        """Encode again, chunk by chunk under the RNG of the first time, and leave the RNG as it was left then."""
        after = self._random_state()
        torch.clear_autocast_cache()  # it holds weights cast without a graph
        for chunk in chunks:
            last = chunk is chunks[-1]
            self._set_random_state(chunk.rng)
            with nullcontext() if last else self._no_sync(), torch.enable_grad():
                part = (self.model if last else self._local_model)(sides[chunk.side].features(chunk.rows))  # (rows, d)
                if chunk is chunks[0]:
                    _check_repeated(part, vectors[chunk.side][self._row_index(chunk)])
                torch.autograd.backward([part], [self._chunk_gradient(chunk, gradients, part)])
        self._set_random_state(after)

    def _chunk_gradient(self, chunk: _Chunk, gradients: Sequence[Tensor], vectors: Tensor) -> Tensor:
        """The chunk's gradient, times the number of ranks where DistributedDataParallel will divide by it."""
        factor = Ranks().size if self._local_model is not self.model else 1
        return (gradients[chunk.side][self._row_index(chunk)] * factor).to(vectors.dtype)

    def _row_index(self, chunk: _Chunk) -> Tensor:
        return torch.from_numpy(chunk.rows).to(self.device)

    @property
    def _local_model(self) -> Callable[[Any], Tensor]:
        """The model without its wrapper, whose every forward would talk to the other ranks."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def _no_sync(self) -> AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _random_state(self) -> list[Tensor]:
        on_device = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)

    # Sizes.

    def _measure_memory(self, sides: Sequence[Rows]) -> None:
        """Learn from one small chunk how many bytes of activations a token costs, and how many are free."""
        before = self._random_state()
        side = sides[0]
        rows = plan_batches(side.lengths, 1024)[0]
        parameters = {p.untyped_storage().data_ptr() for p in getattr(self._local_model, "parameters", tuple)()}
        bytes_by_storage: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                bytes_by_storage[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            vectors = self._local_model(side.features(rows))
        if not vectors.requires_grad:
            raise InvalidInput("the model's vectors have no gradient: all its parameters are frozen")
        torch.clear_autocast_cache()
        self._set_random_state(before)
        self._token_bytes = max(sum(bytes_by_storage.values()), 1) / (len(rows) * int(side.lengths[rows].max()))
        self._free_bytes = _free_bytes(self.device)
        if self.batch_tokens is None:
            ceiling = 65_536 if self.device.type == "cuda" else 4_096  # throughput has levelled off by then
            self.batch_tokens = int(min(max(self._free_bytes / 4 / self._token_bytes, 512), ceiling))


def _check_repeated(again: Tensor, before: Tensor) -> None:
    """The gradients belong to the vectors of the first encoding; others would silently train on noise."""
    distance = torch.linalg.vector_norm(again.detach().to(before.dtype) - before)
    if distance > 1e-2 * torch.linalg.vector_norm(before):
        raise TrainingError(
            "encoding a chunk for the second time gave other vectors than the first: the model or its features draw on "
            "randomness other than torch's generators, or keep state between calls. Make them repeatable, or use "
            "graphs='keep'"
        )


def _free_bytes(device: torch.device) -> int:
    """Memory that this process may still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = int(require("psutil", "train").virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max"
        limit = free
    return max(min(free, limit), 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
