"""What a recipe would take, before it is run: candidates per query, tokens, memory for each device, hours.

A run of days that dies of memory on its first night, or would take a month, should be known in a minute. Tokens come
from a sample of the recipe's own files, the rate from a few chunks through the recipe's own model on this machine, the
rest is arithmetic. Costs reading 500 rows of each file and, for a BERT-large on two CPU cores, a minute.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from peg_rag.batching import plan_batches
from peg_rag.errors import DataError
from peg_rag.files import open_packed, unreadable
from peg_rag.training.data.batches import FeatureRows
from peg_rag.training.data.files import is_text_file, read_lines, read_rows, source_files
from peg_rag.training.data.sampler import shares
from peg_rag.training.data.texts import clean_text
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.loss.momentum import MomentumOptions
from peg_rag.training.model.encoder import TrainableEncoder, build_encoder, parameter_count
from peg_rag.training.recipe import Recipe, StageOptions, expand_path

SAMPLE_ROWS = 500
MEASURED_TOKENS = {"cpu": 512, "cuda": 32_768}
SLOTS = 100_000
ADAM_BYTES = 16  # for each parameter: weight, gradient, two moments, all float32
GIB = 2**30


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes.

    Attributes:
        candidates: documents each query is ranked against.
        tokens: in one step, over all devices.
        vector_bytes, chunk_bytes: on each device: vectors with their gradients, those of
            candidate sources included, and one chunk's activations.
        seconds: of one step; encoder and loss together, data and communication left out.
    """

    name: str
    steps: int
    queries: int
    documents: int
    candidates: int
    rows: int
    tokens: float
    vector_bytes: float
    chunk_bytes: float
    seconds: float


@dataclass(frozen=True)
class RunEstimate:
    """What a recipe takes on `devices` devices like the one here.

    Attributes:
        token_rate: tokens a second through the encoder (forward, forward again, backward) on one device.
        multiply_rate: floating-point operations a second of a matrix product as large as a tile, on one device.
        weight_bytes: weights, gradients and optimiser on each device.
    """

    parameters: int
    devices: int
    device: str
    token_rate: float
    multiply_rate: float
    weight_bytes: float
    stages: list[StageEstimate]

    @property
    def hours(self) -> float:
        return sum(stage.steps * stage.seconds for stage in self.stages) / 3_600

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        yield f"{self.parameters / 1e6:,.1f} M parameters on {self.devices} × {self.device}"
        yield (
            f"measured on one: {self.token_rate:,.0f} tokens/s through encoder and back, "
            f"{self.multiply_rate / 1e9:,.0f} GFLOP/s in matrix products"
        )
        for stage in self.stages:
            memory = self.weight_bytes + stage.vector_bytes + stage.chunk_bytes
            size = f"{stage.queries:,} queries and {stage.documents:,} documents"
            if not stage.queries:
                size = f"{stage.documents:,} texts"
            yield f"stage {stage.name}: {stage.steps:,} steps of {size}"
            if stage.candidates:
                yield f"  candidates per query: {stage.candidates:,}"
            yield f"  rows to draw from: {stage.rows:,} (estimated)" if stage.rows else "  rows to draw from: unknown"
            yield f"  tokens: {stage.tokens / 1e6:,.2f} M a step, {stage.tokens * stage.steps / 1e9:,.2f} G in all"
            yield (
                f"  memory on each device: {memory / GIB:,.2f} GiB (weights, optimiser {self.weight_bytes / GIB:,.2f}, "
                f"vectors and gradients {stage.vector_bytes / GIB:,.2f}, a chunk {stage.chunk_bytes / GIB:,.2f})"
            )
            yield f"  time: {stage.seconds:,.1f} s a step, {stage.steps * stage.seconds / 3_600:,.1f} hours"
        yield f"in all {self.hours:,.1f} hours, communication and evaluation left out"


def estimate_run(recipe: Recipe, *, devices: int = 1) -> RunEstimate:
    """Check that everything the recipe names exists, measure, and estimate.

    Raises:
        RecipeError, DataError, ModelNotAvailable: as `train` would raise.
    """
    device = torch.device(recipe.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cache = expand_path(recipe.cache_dir)
    encoder = build_encoder(recipe.model, recipe.stages[0].data.sources, cache).to(device)
    token_rate = _token_rate(encoder, device, recipe.precision == "bf16")
    multiply_rate = _multiply_rate(encoder.dimension, device)
    stages = [
        _estimate_stage(options, encoder, devices, token_rate, multiply_rate, recipe.precision)
        for options in recipe.stages
    ]
    parameters = parameter_count(encoder)
    return RunEstimate(parameters, devices, str(device), token_rate, multiply_rate, ADAM_BYTES * parameters, stages)


def _estimate_stage(
    options: StageOptions,
    encoder: TrainableEncoder,
    devices: int,
    token_rate: float,
    multiply_rate: float,
    precision: str,
) -> StageEstimate:
    samples = [_sample_file(file, encoder) for source in options.data.sources for file in source_files(source)]
    documents = options.batch.documents
    queries = 0 if options.objective == "retromae" else options.batch.queries
    counts = shares([s.rows for s in samples], [1.0] * len(samples), options.data.alpha, SLOTS)
    weights = counts / counts.sum()
    query_tokens = float(np.dot(weights, [sample.query for sample in samples]))
    document_tokens = float(np.dot(weights, [sample.document for sample in samples]))
    tokens = queries * query_tokens + documents * document_tokens
    loss = _loss_operations(options, encoder, tokens)
    chunk = options.memory.chunk_tokens or (4_096 if encoder.kind == "transformer" else 0)
    return StageEstimate(
        name=options.name,
        steps=options.steps,
        queries=queries,
        documents=documents,
        candidates=options.candidates_per_query,
        rows=sum(s.rows for s in samples),
        tokens=tokens,
        vector_bytes=_vector_bytes(queries, documents, encoder.dimension, devices)
        + _candidate_bytes(options, encoder.dimension),
        chunk_bytes=chunk * _token_bytes(encoder, precision),
        seconds=tokens * _passes(options) / (token_rate * devices) + loss / (multiply_rate * devices),
    )


def _loss_operations(options: StageOptions, encoder: TrainableEncoder, tokens: float) -> float:
    """Floating-point operations of a step's loss: of cosines, or of logits over the vocabulary, computed twice."""
    if options.objective == "retromae":
        told = tokens * (1 + options.retromae.encoder_masked)
        return 8.0 * told * encoder.tokenizer.get_vocab_size() * encoder.dimension
    directions = 2 if options.loss.symmetric else 1
    return 8.0 * options.batch.queries * options.candidates_per_query * encoder.dimension * directions


def _passes(options: StageOptions) -> float:
    """What a momentum encoder's forward pass adds to the four that a step costs (a backward pass counts as two)."""
    return 1.0 + 0.25 * any(isinstance(source, MomentumOptions) for source in options.loss.candidates)


def _vector_bytes(queries: int, documents: int, dimension: int, devices: int) -> float:
    """Own vectors and gradients; all documents of all devices at unit length, and their gradients; float32."""
    vectors = 2 * (queries + documents) / devices
    return float(4 * dimension * (vectors + 2 * documents + 2 * queries / devices))


def _candidate_bytes(options: StageOptions, dimension: int) -> float:
    """What candidate sources keep, its selection for a step, and that at unit length; float32."""
    return 4.0 * dimension * 3 * sum(source.max_candidates for source in options.loss.candidates)


def _token_bytes(encoder: TrainableEncoder, precision: str) -> float:
    """Activations of one token: 34·h + 5·heads·length bytes a layer in 16 bits (arXiv 2205.05198, eq. 1)."""
    config = getattr(encoder.body, "config", None)
    if config is None:
        return 0.0
    per_layer = 34 * config.hidden_size + 5 * config.num_attention_heads * encoder.max_length
    return float(config.num_hidden_layers * per_layer * (1 if precision == "bf16" else 2))


@dataclass(frozen=True)
class _Sample:
    """Mean tokens of a file's queries and documents, and its rows."""

    query: float
    document: float
    rows: int


def _sample_file(file: Path, encoder: TrainableEncoder) -> _Sample:
    if is_text_file(file):
        texts = list(islice(read_lines(file), SAMPLE_ROWS))
        return _Sample(0.0, _mean_tokens(encoder, texts), _count_rows(file))
    rows = [row for _, row in islice(read_rows(file), SAMPLE_ROWS) if not isinstance(row, str)]
    queries = [clean_text(str(row.get("query", next(iter(row.values()))))) for row in rows]
    documents = [clean_text(str(row.get("positive", list(row.values())[-1]))) for row in rows]
    return _Sample(_mean_tokens(encoder, queries), _mean_tokens(encoder, documents), _count_rows(file))


def _mean_tokens(encoder: TrainableEncoder, texts: Sequence[str]) -> float:
    return float(np.mean([len(row) for row in encoder.token_ids(list(texts))]))


def _count_rows(file: Path) -> int:
    if ".parquet" in file.suffixes:
        from pyarrow.parquet import ParquetFile

        return int(ParquetFile(file).metadata.num_rows)
    try:
        with open_packed(file, "train") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    except unreadable() as error:
        raise DataError(f"{file} cannot be read ({error}); is the file whole?") from error


def _token_rate(encoder: TrainableEncoder, device: torch.device, bf16: bool) -> float:
    """Tokens a second through a step with cached gradients: forward, forward again, backward."""
    length = min(encoder.max_length, 128)
    rows = max(1, MEASURED_TOKENS.get(device.type, 4_096) // length) * (1 if encoder.kind == "transformer" else 256)
    tokens = TokenRows.of(np.random.default_rng(0).integers(5, 100, (rows, length)).tolist())
    features = FeatureRows(tokens, encoder.pad_id, device).features(plan_batches(tokens.lengths, rows * length)[0])
    encoder.train()

    def once() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                encoder(features)
            encoder(features).float().sum().backward()

    rate = rows * length / _time_call(once, device)
    nn.Module.zero_grad(encoder)
    return rate


def _multiply_rate(dimension: int, device: torch.device) -> float:
    queries = torch.randn(1_024, dimension, device=device)
    documents = torch.randn(4_096, dimension, device=device)
    return 2.0 * 1_024 * 4_096 * dimension / _time_call(lambda: queries @ documents.T, device)


def _time_call(work: Callable[[], object], device: torch.device, least: float = 1.0) -> float:
    """Seconds for one call: the fastest of as many as fit into `least` seconds, after one to warm up."""
    fastest = float("inf")
    total = 0.0
    work()
    while total < least:
        _synchronise_device(device)
        start = time.perf_counter()
        work()
        _synchronise_device(device)
        seconds = time.perf_counter() - start
        fastest = min(fastest, seconds)
        total += seconds
    return fastest


def _synchronise_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
