"""Train a small Chinese encoder and a cross-encoder on one accelerator, by the clock.

Self-contained, for machines that have torch, NumPy and safetensors and nothing else. A run goes through four phases,
each with a share of the seconds it is given: masked tokens with a RetroMAE decoder (Xiao et al., arXiv 2205.12035),
contrastive pairs with BM25 negatives, contrastive pairs with negatives mined by the model itself, and a cross-encoder
that starts from the result. Data come from `pack.py`; `unpack.py` makes model folders of what comes out.

    python small.py train --data train.npz --out run --seconds 300 --leave-out law,medicine
    python small.py score --data eval.npz --run run --out scores.npz

A run saves its state every twenty seconds and goes on from there when it is started again.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
PHASES = {"masked": 0.27, "pairs": 0.38, "mined": 0.13, "cross": 0.22}  # shares of the seconds
RATES = {"masked": 1e-3, "pairs": 6e-4, "mined": 2e-4, "cross": 3e-4}
WARMUP = 0.06  # of a phase
ALPHA = 0.6  # a source of n pairs is drawn with weight n ** ALPHA
TEMPERATURE = 0.05
VOCABULARY = 12_032  # the 12,000 tokens of `pack.py` and some rows that make the matrix product even
ENCODER_MASKED = 0.3
DECODER_MASKED = 0.5
SCORED = 0.3  # of the tokens, by the decoder: logits over the vocabulary are most of the work
NO_GAP = 1 << 30
SHORTEST_QUERY = 8
LONGEST_QUERY = 64

Ints = NDArray[np.int64]


# --- model ----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A BERT layer, normalised after each part."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        qkv = self.qkv(hidden).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, length, width / heads)
        return self.attend(hidden, q, k, v, mask)

    def decode(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """Queries that look at other states than themselves; `visible` (rows, length, length)."""
        rows, length, width = queries.shape
        weights = zip((queries, context, context), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(*part).view(rows, length, self.heads, width // self.heads).transpose(1, 2) for part in weights
        )
        return self.attend(queries, q, k, v, visible[:, None])

    def attend(self, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = self.attended(attended.transpose(1, 2).reshape(hidden.shape))
        hidden = self.attention_norm(hidden + attended)
        out: Tensor = self.output_norm(hidden + self.down(F.gelu(self.up(hidden))))
        return out


class Encoder(nn.Module):
    """BERT with what the phases need besides: a decoder layer, a head over the vocabulary, a relevance head."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, inner: int, positions: int = 512) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.decoder = Layer(width, heads, inner)
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=1e-12)
        self.pooler = nn.Linear(width, width)
        self.relevance = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        hidden = self.words(ids) + self.positions.weight[: ids.shape[1]]
        hidden = hidden + (self.types.weight[0] if types is None else self.types(types))
        normed: Tensor = self.norm(hidden)
        return normed

    def decode(self, vectors: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """RetroMAE's decoder: what each place makes of the vector (rows, width) and of the tokens that it sees."""
        context = torch.cat([vectors[:, None], self.embed(ids)[:, 1:]], dim=1)  # (rows, length, width)
        queries = self.norm(vectors[:, None] + self.positions.weight[: ids.shape[1]] + self.types.weight[0])
        decoded: Tensor = self.decoder.decode(queries, context, visible)
        return decoded

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        """Hidden states of padded token ids, (rows, length) → (rows, length, width)."""
        mask = (ids != PAD)[:, None, None, :]
        hidden = self.embed(ids, types)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden

    def vectors(self, ids: Tensor) -> Tensor:
        """Unit vectors: the mean of the hidden states, (rows, length) → (rows, width) float32."""
        return F.normalize(mean_of_tokens(self(ids), ids), dim=1)

    def scores(self, ids: Tensor, types: Tensor) -> Tensor:
        """Relevance of pairs, (rows, length) → (rows,) float32."""
        first = self(ids, types)[:, 0]
        relevance: Tensor = self.relevance(torch.tanh(self.pooler(first)))  # (rows, 1)
        return relevance.float().squeeze(1)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, (tokens, width) → (tokens, vocabulary)."""
        logits: Tensor = self.head_norm(F.gelu(self.head(hidden))) @ self.words.weight.T
        return logits


def mean_of_tokens(hidden: Tensor, ids: Tensor) -> Tensor:
    real = (ids != PAD)[:, :, None]
    return (hidden * real).sum(1, dtype=torch.float32) / real.sum(1)


def visible_places(ids: Tensor, shown: Tensor) -> Tensor:
    """What the decoder sees where it tells each token, (rows, length, length): never that token, always place 0."""
    visible = (shown | (ids <= MASK)[:, None, :]) & (ids != PAD)[:, None, :]
    visible &= ~torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    visible[:, :, 0] = True
    return visible


def masked_loss(model: Encoder, ids: Tensor, hidden: Tensor, visible: Tensor, scored: Tensor) -> Tensor:
    """RetroMAE with its enhanced decoding: the encoder tells its hidden tokens, the decoder those that are scored."""
    states = model(torch.where(hidden, MASK, ids))
    vectors = mean_of_tokens(states, ids).to(states.dtype)
    loss = token_loss(model, states[hidden], ids[hidden])
    return loss + token_loss(model, model.decode(vectors, ids, visible)[scored], ids[scored])


def token_loss(model: Encoder, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.token_logits(states).float(), targets)


class Optimizer:
    """AdamW over float32 copies of the weights, which may be bfloat16 themselves."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.01) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = [weight.detach().float().clone() for weight in self.weights]
        self.decay = [weight_decay if weight.ndim > 1 else 0.0 for weight in self.weights]
        self.reset()

    def reset(self) -> None:
        self.means = [torch.zeros_like(master) for master in self.masters]
        self.squares = [torch.zeros_like(master) for master in self.masters]
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float, max_norm: float = 1.0) -> None:
        used = [index for index, weight in enumerate(self.weights) if weight.grad is not None]
        gradients = [self.weights[index].grad.float() for index in used]  # type: ignore[union-attr]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        masters = [self.masters[index] for index in used]
        means = [self.means[index] for index in used]
        squares = [self.squares[index] for index in used]
        self.steps += 1
        torch._foreach_lerp_(means, gradients, 0.1)
        torch._foreach_mul_(squares, 0.98)
        torch._foreach_addcmul_(squares, gradients, gradients, 0.02)
        torch._foreach_mul_(masters, [1 - rate * self.decay[index] for index in used])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - 0.98**self.steps) ** 0.5)
        torch._foreach_add_(roots, 1e-8)
        torch._foreach_addcdiv_(masters, means, roots, -rate / (1 - 0.9**self.steps))
        torch._foreach_copy_([self.weights[index] for index in used], masters)
        for weight in self.weights:
            weight.grad = None


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Texts as stretches of one array of tokens; from `gap_at` on, `gap` tokens are left out."""

    starts: Ints
    lengths: Ints
    gap_at: Ints
    gap: Ints

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Ints) -> "Rows":
        return Rows(self.starts[rows], self.lengths[rows], self.gap_at[rows], self.gap[rows])


def join_rows(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__dataclass_fields__))


class Texts:
    """All texts on the device, and what pads them."""

    def __init__(self, tokens: NDArray[np.uint16], lengths: NDArray[Any], device: torch.device) -> None:
        self.device = device
        self.lengths = lengths.astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = torch.from_numpy(tokens.astype(np.int16)).to(device)

    def rows(self, numbers: Ints) -> Rows:
        lengths = self.lengths[numbers]
        return Rows(self.starts[numbers], lengths, np.full(len(lengths), NO_GAP), np.zeros(len(lengths), np.int64))

    def pad(self, rows: Rows, limit: int) -> Tensor:
        """Token ids with [CLS] and [SEP], (rows, longest rounded up to 8) int64."""
        lengths = np.minimum(rows.lengths, limit)
        width = -(-(int(lengths.max()) + 2) // 8) * 8
        place = torch.arange(width, device=self.device)[None, :]
        ends = self._tensor(lengths)[:, None] + 1
        ids = torch.where(place < ends, self._gather(rows, place - 1), PAD)
        ids = torch.where(place == ends, SEP, ids)
        ids[:, 0] = CLS
        return ids

    def pad_pairs(self, queries: Rows, documents: Rows, limit: int) -> tuple[Tensor, Tensor]:
        """[CLS] query [SEP] document [SEP], and the types of the tokens."""
        query_lengths = np.minimum(queries.lengths, LONGEST_QUERY)
        lengths = np.minimum(documents.lengths, limit)
        width = -(-(int((query_lengths + lengths).max()) + 3) // 8) * 8
        place = torch.arange(width, device=self.device)[None, :]
        first = self._tensor(query_lengths)[:, None] + 1
        last = first + self._tensor(lengths)[:, None] + 1
        ids = torch.where(place < first, self._gather(queries, place - 1), self._gather(documents, place - first - 1))
        ids = torch.where((place == first) | (place == last), SEP, ids)
        ids = torch.where(place > last, PAD, ids)
        ids[:, 0] = CLS
        return ids, ((place > first) & (place <= last)).long()

    def _gather(self, rows: Rows, offsets: Tensor) -> Tensor:
        skipped = torch.where(offsets >= self._tensor(rows.gap_at)[:, None], self._tensor(rows.gap)[:, None], 0)
        index = self._tensor(rows.starts)[:, None] + offsets + skipped
        return self.tokens[index.clamp(0, len(self.tokens) - 1)].long()

    def _tensor(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def chunk_by_length(lengths: Ints, tokens: int) -> Iterator[Ints]:
    """Rows sorted by length, longest first, in chunks of at most `tokens` padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // (int(lengths[order[start]]) + 10))
        yield order[start : start + size]
        start += size


@dataclass
class Source:
    """Pairs of one file, or passages that give pairs of a sentence and its passage."""

    name: str
    queries: Ints
    positives: Ints
    negatives: Ints
    negative_starts: Ints  # (pairs + 1,)
    passages: Ints | None
    validation: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.queries) if self.passages is None else len(self.passages)


@dataclass
class Batch:
    """`queries[i]` is answered by `documents[i]`; the rest of the documents are negatives."""

    queries: Rows
    documents: Rows
    query_keys: Ints
    document_keys: Ints


def load_sources(arrays: Any) -> list[Source]:
    names = sorted({name.split("/")[0] for name in arrays.files if "/" in name})
    sources = []
    empty = np.zeros(0, np.int64)
    for name in names:
        if f"{name}/passages" in arrays.files:
            passages = arrays[f"{name}/passages"].astype(np.int64)
            sources.append(Source(name, empty, empty, empty, empty, passages, {}))
            continue
        counts = arrays[f"{name}/negative_counts"].astype(np.int64)
        prefix = f"{name}/validation_"
        sources.append(
            Source(
                name,
                arrays[f"{name}/queries"].astype(np.int64),
                arrays[f"{name}/positives"].astype(np.int64),
                arrays[f"{name}/negatives"].astype(np.int64),
                np.concatenate([[0], np.cumsum(counts)]),
                None,
                {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)},
            )
        )
    return sources


class PairSampler:
    """Batches of one source each, a function of seed and step."""

    def __init__(self, texts: Texts, sources: Sequence[Source], ends: Ints, *, tokens: int, seed: int) -> None:
        self.texts = texts
        self.sources = [source for source in sources if len(source) >= 64]
        self.tokens = tokens
        self.seed = seed
        self.ends = ends  # places of the tokens that end a sentence
        weights = np.array([len(source) ** ALPHA for source in self.sources])
        self.shares = weights / weights.sum()
        self.negatives = 1

    def batch(self, step: int) -> Batch:
        generator = np.random.default_rng((self.seed, step))
        source = self.sources[generator.choice(len(self.sources), p=self.shares)]
        if source.passages is not None:
            return self._passage_batch(source, generator)
        return self._pair_batch(source, generator)

    def _pair_batch(self, source: Source, generator: np.random.Generator) -> Batch:
        lengths = self.texts.lengths
        sample = generator.integers(len(source), size=64)
        per_pair = (
            lengths[source.queries[sample]].mean() + (1 + self.negatives) * lengths[source.positives[sample]].mean()
        )
        size = int(np.clip(self.tokens // (per_pair + 4), 16, 4_096))
        rows = (
            generator.permutation(len(source))[:size]
            if len(source) < 4 * size
            else generator.choice(len(source), size, replace=False)
        )
        _, first = np.unique(source.positives[rows], return_index=True)
        rows = rows[np.sort(first)]
        counts = source.negative_starts[rows + 1] - source.negative_starts[rows]
        choices = [np.zeros(0, np.int64)]
        for _ in range(self.negatives):
            has = counts > 0
            offsets = (generator.random(int(has.sum())) * counts[has]).astype(np.int64)
            choices.append(source.negatives[source.negative_starts[rows[has]] + offsets])
        queries = source.queries[rows]
        documents = np.concatenate([source.positives[rows], np.unique(np.concatenate(choices))])
        return Batch(self.texts.rows(queries), self.texts.rows(documents), queries, documents)

    def _passage_batch(self, source: Source, generator: np.random.Generator) -> Batch:
        assert source.passages is not None
        size = max(16, self.tokens // 400)
        passages = generator.choice(source.passages, min(size, len(source.passages)), replace=False)
        starts, lengths = self.texts.starts[passages], self.texts.lengths[passages]
        low = np.searchsorted(self.ends, starts)
        high = np.searchsorted(self.ends, starts + lengths)
        sentence = low + (generator.random(len(passages)) * (high - low + 1)).astype(np.int64) - 1
        begin = np.where(sentence < low, starts, self.ends[np.maximum(sentence, 0)] + 1)
        end = np.where(sentence + 1 < high, self.ends[np.minimum(sentence + 1, len(self.ends) - 1)], starts + lengths)
        size_of = np.minimum(end - begin, LONGEST_QUERY)
        good = (size_of >= SHORTEST_QUERY) & (lengths - size_of >= 24)
        keep = generator.random(len(passages)) < 0.15  # the sentence stays in its passage
        gap = np.where(keep, 0, end - begin + 1).clip(0)
        queries = Rows(begin, size_of, np.full(len(begin), NO_GAP), np.zeros(len(begin), np.int64))
        gap = np.minimum(gap, lengths - (begin - starts))
        documents = Rows(starts, lengths - gap, np.where(gap > 0, begin - starts, NO_GAP), gap)
        rows = np.flatnonzero(good)
        return Batch(queries.take(rows), documents.take(rows), -1 - np.arange(len(rows)), passages[rows])


# --- training -------------------------------------------------------------------------------------------------------


class Trainer:
    """One run: its model, its data, its clock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.seconds = arguments.seconds
        self.tokens = arguments.tokens
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.leave_out = [name for name in arguments.leave_out.split(",") if name]
        torch.manual_seed(arguments.seed)
        torch.set_float32_matmul_precision("high")
        arrays = np.load(arguments.data, allow_pickle=False)
        self.texts = Texts(arrays["tokens"], arrays["lengths"], self.device)
        sources = load_sources(arrays)
        self.sources = [source for source in sources if source.name.split("-")[0] not in self.leave_out]
        self.left_out = [source for source in sources if source.name.split("-")[0] in self.leave_out]
        self.ends = np.flatnonzero(np.isin(arrays["tokens"], arrays["enders"]))
        self.shape = {
            "vocabulary": VOCABULARY,
            "width": arguments.width,
            "layers": arguments.layers,
            "heads": arguments.width // 64,
            "inner": 4 * arguments.width,
        }
        self.model = Encoder(**self.shape).to(self.device, self.dtype)
        self.optimizer = Optimizer(self.model)
        self.sampler = PairSampler(self.texts, self.sources, self.ends, tokens=self.tokens, seed=arguments.seed)
        self.seed = arguments.seed
        self.phase_spent = 0.0
        self.step = 0
        self.total_tokens = 0
        self.losses: list[Tensor] = []

    def run(self) -> None:
        phases = list(PHASES)
        first, self.phase_spent, self.step = self._restore()
        for phase in phases[first:]:
            if phase in ("mined", "cross"):
                self.mine()
            self._run_phase(phase)
            if phase == "mined":
                self.save_model("encoder")
                self.report("encoder")
            self.phase_spent, self.step = 0.0, 0
            self.optimizer.reset()
            self._save(phases.index(phase) + 1)
        self.save_model("cross")
        self.report("cross")

    def _run_phase(self, phase: str) -> None:
        budget = PHASES[phase] * self.seconds
        begin = time.monotonic() - self.phase_spent
        last_save = last_log = time.monotonic()
        tokens_before = self.total_tokens
        while (spent := time.monotonic() - begin) < budget:
            progress = spent / budget
            rate = RATES[phase] * min(1.0, progress / WARMUP) * max(0.02, 1 - progress)
            self.losses.append(getattr(self, f"_{phase}_step")(self.step))
            self.optimizer.step(rate)
            self.step += 1
            if self.step % 4 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            if now - last_log > 10:
                loss = torch.stack(self.losses).mean().item()
                speed = (self.total_tokens - tokens_before) / (now - begin)
                self.log(f"{phase} step {self.step} {progress:.2f} loss {loss:.3f} {speed:,.0f} tokens/s")
                self.losses, last_log = [], now
            if now - last_save > 20:
                self.phase_spent, last_save = now - begin, now
                self._save(list(PHASES).index(phase))
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0
        self.log(f"{phase} done: {self.step} steps, {self.total_tokens - tokens_before:,} tokens, {memory:.1f} GiB")

    # Each step leaves gradients and answers with its loss.

    def _masked_step(self, step: int) -> Tensor:
        generator = np.random.default_rng((self.seed, 1, step))
        if not hasattr(self, "_passages"):
            numbers = [s.passages if s.passages is not None else np.unique(s.positives) for s in self.sources]
            passages = np.unique(np.concatenate(numbers))
            self._passages = passages[self.texts.lengths[passages] >= 24]
        size = max(8, int(self.tokens // self.texts.lengths[self._passages].mean()))
        rows = self.texts.rows(generator.choice(self._passages, size))
        losses = []
        for chunk in chunk_by_length(rows.lengths, self.tokens // 2):
            ids = self.texts.pad(rows.take(chunk), 510)
            loss = self._masked_loss(ids) * (len(chunk) / size)
            loss.backward()
            losses.append(loss.detach())
            self.total_tokens += ids.numel()
        return torch.stack(losses).sum()

    def _masked_loss(self, ids: Tensor) -> Tensor:
        real = ids > MASK
        hidden = real & (torch.rand(ids.shape, device=self.device) < ENCODER_MASKED)
        scored = real & (torch.rand(ids.shape, device=self.device) < SCORED)
        chance = torch.rand(*ids.shape, ids.shape[1], device=self.device)
        return masked_loss(self.model, ids, hidden, visible_places(ids, chance >= DECODER_MASKED), scored)

    def _pairs_step(self, step: int) -> Tensor:
        batch = self.sampler.batch(step)
        queries = self.encode(batch.queries)
        documents = self.encode(batch.documents)
        loss = contrastive_loss(
            queries,
            documents,
            torch.from_numpy(batch.query_keys).to(self.device),
            torch.from_numpy(batch.document_keys).to(self.device),
        )
        loss.backward()
        return loss.detach()

    _mined_step = _pairs_step

    def _cross_step(self, step: int) -> Tensor:
        generator = np.random.default_rng((self.seed, 2, step))
        sources = [source for source in self.sampler.sources if source.passages is None and len(source.negatives)]
        shares = np.array([len(source) ** ALPHA for source in sources])
        source = sources[generator.choice(len(sources), p=shares / shares.sum())]
        listed = 8
        lengths = self.texts.lengths
        sample = generator.integers(len(source), size=64)
        per_pair = lengths[source.queries[sample]].mean() + lengths[source.positives[sample]].mean() + 3
        size = int(np.clip(self.tokens // (listed * per_pair), 4, 512))
        counts = source.negative_starts[1:] - source.negative_starts[:-1]
        rows = generator.choice(np.flatnonzero(counts > 0), size)
        offsets = (generator.random((size, listed - 1)) * counts[rows][:, None]).astype(np.int64)
        documents = np.concatenate(
            [source.positives[rows][:, None], source.negatives[source.negative_starts[rows][:, None] + offsets]], axis=1
        )  # (size, listed)
        scores = self.score_pairs(np.repeat(source.queries[rows], listed), documents.reshape(-1)).view(size, listed)
        again = torch.from_numpy(np.array([[False, *(row[1:] == row[0])] for row in documents])).to(self.device)
        loss = F.cross_entropy(scores.masked_fill(again, -1e4), torch.zeros(size, dtype=torch.long, device=self.device))
        loss.backward()
        return loss.detach()

    def encode(self, rows: Rows, limit: int = 510) -> Tensor:
        """Unit vectors in the order of the rows, (rows, width) float32."""
        chunks = list(chunk_by_length(np.minimum(rows.lengths, limit), self.tokens))
        vectors = []
        for chunk in chunks:
            ids = self.texts.pad(rows.take(chunk), limit)
            vectors.append(self.model.vectors(ids))
            self.total_tokens += ids.numel()
        back = np.argsort(np.concatenate(chunks), kind="stable")
        return torch.cat(vectors)[torch.from_numpy(back).to(self.device)]

    def score_pairs(self, queries: Ints, documents: Ints, limit: int = 320) -> Tensor:
        """Relevance of texts by number, in their order, (pairs,)."""
        question_rows, document_rows = self.texts.rows(queries), self.texts.rows(documents)
        lengths = np.minimum(question_rows.lengths, LONGEST_QUERY) + np.minimum(document_rows.lengths, limit)
        chunks = list(chunk_by_length(lengths, self.tokens))
        scores = []
        for chunk in chunks:
            ids, types = self.texts.pad_pairs(question_rows.take(chunk), document_rows.take(chunk), limit)
            scores.append(self.model.scores(ids, types))
            self.total_tokens += ids.numel()
        back = np.argsort(np.concatenate(chunks), kind="stable")
        return torch.cat(scores)[torch.from_numpy(back).to(self.device)]

    @torch.no_grad()
    def mine(self) -> None:
        """Replace the negatives of every source by ones that the model itself ranks high, besides half of BM25's."""
        begin = time.monotonic()
        self.sampler.negatives = 2
        file = self.out / "mined.npz"
        pair_sources = [source for source in self.sampler.sources if source.passages is None]
        if not file.is_file():
            mined: dict[str, NDArray[Any]] = {}
            for source in pair_sources:
                negatives, starts = mine_negatives(self, source)
                mined |= {f"{source.name}/negatives": negatives, f"{source.name}/starts": starts}
            np.savez(file, **mined)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too
            self.log(f"mined in {time.monotonic() - begin:.1f} s")
        arrays = np.load(file, allow_pickle=False)
        for source in pair_sources:
            source.negatives = arrays[f"{source.name}/negatives"]
            source.negative_starts = arrays[f"{source.name}/starts"]

    # --- state

    def save_model(self, name: str) -> None:
        weights = {key: value.half().cpu().contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, self.out / f"{name}.safetensors", metadata={"shape": json.dumps(self.shape)})

    def _save(self, phase: int) -> None:
        state = {}
        for index, master in enumerate(self.optimizer.masters):
            state[f"master.{index}"] = master
            state[f"mean.{index}"] = self.optimizer.means[index]
            state[f"square.{index}"] = self.optimizer.squares[index]
        clock = {"phase": phase, "spent": self.phase_spent, "step": self.step, "optimizer_steps": self.optimizer.steps}
        partial = self.out / "state.partial"
        save_file(state, partial, metadata={"clock": json.dumps(clock)})
        partial.replace(self.out / "state.safetensors")

    @torch.no_grad()
    def _restore(self) -> tuple[int, float, int]:
        file = self.out / "state.safetensors"
        if not file.is_file():
            return 0, 0.0, 0
        with safe_open(file, "pt", device=str(self.device)) as state:
            clock = json.loads(state.metadata()["clock"])
            for index, weight in enumerate(self.optimizer.weights):
                self.optimizer.masters[index].copy_(state.get_tensor(f"master.{index}"))
                self.optimizer.means[index].copy_(state.get_tensor(f"mean.{index}"))
                self.optimizer.squares[index].copy_(state.get_tensor(f"square.{index}"))
                weight.copy_(self.optimizer.masters[index])
        self.optimizer.steps = clock["optimizer_steps"]
        self.log(f"resumed in {list(PHASES)[min(clock['phase'], 3)]}, step {clock['step']}")
        return clock["phase"], clock["spent"], clock["step"]

    def log(self, line: str) -> None:
        print(f"[{self.out.name}] {line}", flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(line + "\n")

    @torch.no_grad()
    def report(self, phase: str) -> None:
        """Validation nDCG@10 by source, left-out ones apart."""
        begin = time.monotonic()
        encoder = Scorer(self.texts, self.device, self.tokens)
        encoder.load(self.out / "encoder.safetensors")
        cross = self if phase == "cross" else None
        table = {}
        for source in [*self.sources, *self.left_out]:
            if len(source.validation.get("queries", ())) and len(source.validation["corpus"]) > 50:
                table[source.name] = validate(source, encoder, cross)
        names = list(next(iter(table.values())))
        groups = {"seen": self.sources, "left out": self.left_out}
        for group, members in groups.items():
            rows = [table[source.name] for source in members if source.name in table]
            if rows:
                line = "  ".join(f"{name} {np.mean([row[name] for row in rows]):.4f}" for name in names)
                self.log(f"{phase}, {group} ({len(rows)} sources): {line}")
        for source in self.left_out:
            if source.name in table:
                line = "  ".join(f"{name} {table[source.name][name]:.4f}" for name in names)
                self.log(f"    {source.name}: {line}")
        (self.out / f"{phase}_validation.json").write_text(json.dumps(table, indent=1))
        self.log(f"validated in {time.monotonic() - begin:.1f} s")


def contrastive_loss(queries: Tensor, documents: Tensor, query_keys: Tensor, document_keys: Tensor) -> Tensor:
    """Symmetric InfoNCE; a document that answers the query by another row is no negative.

    Shapes: queries (b, d), documents (n, d) of which the first b are positives, keys (b,) and (n,).
    """
    size = len(queries)
    scores = queries @ documents.T / TEMPERATURE  # (b, n)
    same = document_keys[:size, None] == document_keys[None, :]
    same[:, :size] |= query_keys[:, None] == query_keys[None, :]
    same |= query_keys[:, None] == document_keys[None, :]
    same.fill_diagonal_(False)
    scores = scores.masked_fill(same, -1e4)
    targets = torch.arange(size, device=queries.device)
    return (F.cross_entropy(scores, targets) + F.cross_entropy(scores[:, :size].T, targets)) / 2


@torch.no_grad()
def mine_negatives(trainer: Trainer, source: Source, most: int = 8, margin: float = 0.95) -> tuple[Ints, Ints]:
    """Negatives and where those of each pair start: up to `most` of the first 60 that the model ranks, below the
    positive by a margin, and half of the old ones.
    """
    texts = trainer.texts
    corpus, positive_rows = np.unique(source.positives, return_inverse=True)
    passages = trainer.encode(texts.rows(corpus))  # (corpus, width)
    answers = np.unique(source.queries << 32 | source.positives)
    mined_rows, mined_counts = [], []
    for start in range(0, len(source.queries), 4_096):
        part = slice(start, start + 4_096)
        questions = source.queries[part]
        vectors = trainer.encode(texts.rows(questions))
        scores = vectors @ passages.T  # (queries, corpus)
        positive = torch.from_numpy(positive_rows[part]).to(trainer.device)
        limit = margin * scores.gather(1, positive[:, None])
        top = scores.topk(min(60, len(corpus)), dim=1)
        good = (top.values < limit).cpu().numpy()
        documents = corpus[top.indices.cpu().numpy()]  # (queries, 60)
        good &= ~np.isin(questions[:, None] << 32 | documents, answers) & (documents != questions[:, None])
        rank = np.cumsum(good, axis=1)
        good &= rank <= most
        mined_counts.append(good.sum(1))
        mined_rows.append(documents[good])
    counts = np.concatenate(mined_counts)
    mined = np.concatenate(mined_rows)
    starts = np.concatenate([[0], np.cumsum(counts)])
    old_counts = (source.negative_starts[1:] - source.negative_starts[:-1] + 1) // 2
    parts = [
        part
        for row in range(len(counts))
        for part in (
            mined[starts[row] : starts[row + 1]],
            source.negatives[source.negative_starts[row] : source.negative_starts[row] + old_counts[row]],
        )
    ]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(counts + old_counts)])


# --- scores ---------------------------------------------------------------------------------------------------------


def ndcg(ranked: NDArray[np.bool_], relevant: Ints) -> float:
    """Mean nDCG@10 of binary judgements in ranked order, (queries, ≥ 10), with the number of relevant documents."""
    discounts = 1 / np.log2(np.arange(2, 12))
    width = min(10, ranked.shape[1])
    gains = (ranked[:, :width] * discounts[:width]).sum(1)
    ideal = np.cumsum(discounts)[np.minimum(relevant, 10) - 1]
    return float((gains / ideal).mean())


def scale(scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores of each row's known candidates brought to 0–1; 0 for the others."""
    low = np.where(mask, scores, np.inf).min(1, keepdims=True)
    high = np.where(mask, scores, -np.inf).max(1, keepdims=True)
    return np.where(mask, (scores - low) / np.maximum(high - low, 1e-9), 0)


def validate(source: Source, encoder: Trainer, cross_encoder: Trainer | None) -> dict[str, float]:
    """nDCG@10 of BM25, the vectors, both, and the cross-encoder over both's candidates."""
    data = source.validation
    corpus, questions = data["corpus"].astype(np.int64), data["queries"].astype(np.int64)
    answers = data["answers"].astype(np.int64)
    keys = np.unique(answers[:, 0] << 32 | answers[:, 1])
    relevant = np.array([(answers[:, 0] == question).sum() for question in questions])
    query_vectors = encoder.encode(encoder.texts.rows(questions))
    passage_vectors = encoder.encode(encoder.texts.rows(corpus))
    dense_all = (query_vectors @ passage_vectors.T).cpu().numpy()
    bm25_rows = data["rows"].astype(np.int64)
    dense_rows = np.argsort(-dense_all, axis=1)[:, :50]
    rows = np.concatenate([bm25_rows, dense_rows], axis=1)  # candidates, some twice
    again = np.array([[row in line[:place] for place, row in enumerate(line)] for line in rows.tolist()])
    bm25 = np.concatenate([data["scores"].astype(np.float32), np.zeros(dense_rows.shape, np.float32)], axis=1)
    dense = np.take_along_axis(dense_all, rows, axis=1)
    in_dense = np.array([np.isin(line, top) for line, top in zip(rows, dense_rows, strict=True)])
    is_answer = np.isin(questions[:, None] << 32 | corpus[rows], keys)
    words = scale(bm25, bm25 > 0)
    both = 0.55 * words + 0.45 * scale(dense, in_dense)
    kinds = {"bm25": words, "dense": np.where(in_dense, dense, -9), "hybrid": both}
    if cross_encoder is not None:
        size = rows.shape[1]
        scores = cross_encoder.score_pairs(np.repeat(questions, size), corpus[rows].reshape(-1)).view(-1, size)
        cross = scores.cpu().numpy()
        kinds["cross"] = cross
        scaled = 1 / (1 + np.exp(-(cross - cross.max(1, keepdims=True)) / 2))
        for share in (0.3, 0.5, 0.7):
            kinds[f"hybrid+{share} cross"] = (1 - share) * both + 2 * share * scaled
    table = {}
    for name, scores_of in kinds.items():
        order = np.argsort(-np.where(again, -1e9, scores_of), axis=1, kind="stable")
        table[name] = ndcg(np.take_along_axis(is_answer & ~again, order, axis=1), relevant)
    return table


@torch.no_grad()
def score_evaluation(arguments: argparse.Namespace) -> None:
    """For each query of the evaluation sets: the union of BM25's and the vectors' first hundred, with three scores."""
    device = torch.device(arguments.device)
    arrays = np.load(arguments.data, allow_pickle=False)
    sets = sorted({name.split("/")[0] for name in arrays.files})
    if arguments.sets:
        sets = [name for name in sets if name in arguments.sets.split(",")]
    out: dict[str, NDArray[Any]] = {}
    for name in sets:
        begin = time.monotonic()
        texts = Texts(arrays[f"{name}/tokens"], arrays[f"{name}/lengths"], device)
        count = int(arrays[f"{name}/documents"][0])
        scorer = Scorer(texts, device, arguments.tokens)
        scorer.load(Path(arguments.run) / "encoder.safetensors")
        documents = scorer.encode(texts.rows(np.arange(count)))
        queries = scorer.encode(texts.rows(np.arange(count, len(texts.lengths))))
        scores = queries @ documents.T  # (queries, documents)
        top = scores.topk(min(arguments.candidates, count), dim=1).indices
        bm25_rows = torch.from_numpy(arrays[f"{name}/rows"].astype(np.int64)).to(device)
        rows = torch.cat([bm25_rows, top], dim=1)
        dense = scores.gather(1, rows)
        out[f"{name}/rows"] = rows.cpu().numpy().astype(np.uint16)
        out[f"{name}/dense"] = dense.cpu().numpy().astype(np.float16)
        del scores, documents
        if (Path(arguments.run) / "cross.safetensors").is_file():
            scorer.load(Path(arguments.run) / "cross.safetensors")
            size = rows.shape[1]
            numbers = np.repeat(np.arange(count, len(texts.lengths)), size)
            cross = scorer.score_pairs(numbers, rows.cpu().numpy().reshape(-1))
            out[f"{name}/cross"] = cross.view(-1, size).cpu().numpy().astype(np.float16)
        print(f"{name}: {len(queries)} queries in {time.monotonic() - begin:.1f} s", flush=True)
    np.savez_compressed(arguments.out, **out)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too


class Scorer(Trainer):
    """A trainer's encoding and scoring for models that are finished."""

    def __init__(self, texts: Texts, device: torch.device, tokens: int) -> None:
        self.texts = texts
        self.device = device
        self.tokens = tokens
        self.total_tokens = 0

    def load(self, file: Path) -> None:
        with safe_open(file, "pt", device=str(self.device)) as weights:
            self.model = Encoder(**json.loads(weights.metadata()["shape"]))
            self.model.load_state_dict({name: weights.get_tensor(name).float() for name in weights.keys()})  # noqa: SIM118
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = self.model.to(self.device, dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "score"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--run")
    parser.add_argument("--sets", default="")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--leave-out", default="")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24_576, help="of a step; more steps teach more than larger ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.command == "score":
        score_evaluation(arguments)
    else:
        Trainer(arguments).run()


if __name__ == "__main__":
    main()
