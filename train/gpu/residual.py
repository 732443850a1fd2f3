"""A small contextual encoder that starts as a static model, and short training runs of it on one accelerator.

The vector of a text is the unit mean of its token vectors plus what a few transformer layers make of them; the last
projection starts at zero, so the untrained encoder is the static model. `ablation_transformer.py` asks with it whether
progressive weights pay, `peg_small.py` whether context pays on domains never seen. Both have minutes: shapes are fixed,
a whole step (batch, loss, AdamW) is one CUDA graph, and what differs between runs are tensors that the graph reads, so
dozens of runs share one capture. On a CPU the same step runs without a graph, for rehearsals and tests.

Self-contained: torch, NumPy. Data come from `pack_halves.py`. The loss is `peg_rag.training`'s, see `weighted_loss`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

ALPHA = 0.7  # a source of n pairs is drawn with weight n ** ALPHA
MINED = 8  # negatives kept for a pair
MINED_RANKS = 64  # of the model's ranking that are looked at
RELATIVE_MARGIN = 0.95  # a negative scores below this share of the positive
TIE = 1e-5  # a negative this close to a threshold lies below it, as in peg_rag.training.loss.progressive
CUTOFF = 10
ENCODED_TOKENS = 1 << 19  # padded tokens that are encoded at once, without gradient

Ints = NDArray[np.int64]


# --- model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The contextual part.

    Attributes:
        layers, width, heads, inner: of the transformer.
        positions: tokens of a text that have a position of their own; those behind share the last one's.
        gated: whether context also weighs the token vectors in the mean, by 1 + tanh.
        dropout: of attention's and the inner layer's results.
        dropped_tokens: share of tokens that a training step leaves out.
    """

    layers: int
    width: int
    heads: int
    inner: int
    positions: int
    gated: bool = False
    dropout: float = 0.0
    dropped_tokens: float = 0.0


class Block(nn.Module):
    """Attention and two linear layers, each normalised before and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.attention_norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.attended = nn.Linear(shape.width, shape.width)
        self.inner_norm = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, shape.inner)
        self.down = nn.Linear(shape.inner, shape.width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        qkv = self.qkv(self.attention_norm(hidden)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, length, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = self.attended(attended.transpose(1, 2).reshape(rows, length, width))
        hidden = hidden + F.dropout(attended, self.dropout, self.training)
        inner = self.down(F.gelu(self.up(self.inner_norm(hidden)), approximate="tanh"))
        return hidden + F.dropout(inner, self.dropout, self.training)


class ResidualEncoder(nn.Module):
    """Unit vectors of padded token ids: the static mean plus a contextual part that starts at zero.

    Args:
        table: token vectors, (tokens + 1, dimension); the last row is zero and belongs to the padding.
        directions: what the first projection starts with, (dimension, width); the main directions of the texts.
        train_table: whether the token vectors learn too.
    """

    def __init__(self, table: Tensor, directions: Tensor, shape: Shape, *, train_table: bool) -> None:
        super().__init__()
        dimension = table.shape[1]
        self.shape = shape
        self.padding = len(table) - 1
        self.table = nn.Parameter(table.clone(), requires_grad=train_table)
        self.input_norm = nn.LayerNorm(dimension)
        self.project = nn.Linear(dimension, shape.width)
        self.positions = nn.Parameter(torch.empty(shape.positions, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.LayerNorm(shape.width)
        self.output = nn.Linear(shape.width, dimension)
        self.gate = nn.Linear(shape.width, 1)
        self._initialise_weights(directions)

    @torch.no_grad()
    def _initialise_weights(self, directions: Tensor) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)
        self.project.weight.copy_(directions.T)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.gate.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(rows, length) → (rows, dimension) float32."""
        if self.training and self.shape.dropped_tokens:
            left_out = torch.rand(ids.shape, device=ids.device) < self.shape.dropped_tokens
            left_out[:, 0] = False
            ids = ids.masked_fill(left_out, self.padding)
        rows, length = ids.shape
        real = ids != self.padding  # (rows, length)
        words = self.table.index_select(0, ids.flatten()).view(rows, length, -1)
        words = words.to(self.output.weight.dtype)
        hidden = self.project(self.input_norm(words)) + self._positions_of(length)
        for block in self.blocks:
            hidden = block(hidden, real[:, None, None, :])
        hidden = self.output_norm(hidden)
        if self.shape.gated:
            words = words * (1 + torch.tanh(self.gate(hidden)))
        static = F.normalize(mean_of_tokens(words, real), dim=1)
        context = self.output(mean_of_tokens(hidden, real).to(words.dtype))
        return F.normalize(static + context.float(), dim=1)

    def _positions_of(self, length: int) -> Tensor:
        missing = length - len(self.positions)
        if missing <= 0:
            return self.positions[:length]
        return torch.cat([self.positions, self.positions[-1:].expand(missing, -1)])


def mean_of_tokens(hidden: Tensor, real: Tensor) -> Tensor:
    """(rows, length, width) → (rows, width) float32."""
    total = (hidden * real[:, :, None]).sum(1, dtype=torch.float32)
    return total / real.sum(1, keepdim=True).clamp(min=1)


class AdamW:
    """AdamW over float32 weights, whose step count and rate are tensors, so that a graph can replay it."""

    def __init__(self, weights: Sequence[Tensor], weight_decay: float) -> None:
        self.weights = list(weights)
        self.means = [torch.zeros_like(weight) for weight in weights]
        self.squares = [torch.zeros_like(weight) for weight in weights]
        self.weight_decay = weight_decay

    def reset(self) -> None:
        torch._foreach_zero_(self.means)
        torch._foreach_zero_(self.squares)

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: Tensor, count: Tensor, max_norm: float = 1.0) -> None:
        """`count`: of this step, from 1; float."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        clipped = list(torch._foreach_mul(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0)))
        torch._foreach_lerp_(self.means, clipped, 0.1)
        torch._foreach_mul_(self.squares, 0.999)
        torch._foreach_addcmul_(self.squares, clipped, clipped, 0.001)
        roots = torch._foreach_sqrt(self.squares)
        torch._foreach_mul_(roots, (1 - 0.999**count).rsqrt())
        torch._foreach_add_(roots, 1e-8)
        moves = torch._foreach_div(self.means, roots)
        torch._foreach_mul_(moves, rate / (1 - 0.9**count))
        torch._foreach_mul_(self.weights, 1 - rate * self.weight_decay)
        torch._foreach_sub_(self.weights, moves)


# --- loss -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighting:
    """How negatives count now, as tensors.

    Attributes:
        scale: 1 / temperature.
        strength: what is added to a negative's logit per unit of its cosine.
        curricular, t: whether hard negatives are scaled as in CurricularFace, and by what.
    """

    scale: Tensor
    strength: Tensor
    curricular: Tensor
    t: Tensor


def hidden_answers(query_keys: Tensor, document_keys: Tensor) -> Tensor:
    """(b, n) bool: the document is the query's text, or answers it by another row.

    Args:
        query_keys: (b,) texts of the queries.
        document_keys: (n,) texts of the documents, the first b of which are the positives.
    """
    size = len(query_keys)
    same_query = (query_keys[:, None] == query_keys[None, :]).float()  # (b, b)
    same_text = (document_keys[:size, None] == document_keys[None, :]).float()  # (b, n)
    return (same_query @ same_text > 0) | (query_keys[:, None] == document_keys[None, :])


def weighted_loss(cosines: Tensor, hidden: Tensor, weights: Tensor, weighting: Weighting) -> Tensor:
    """Symmetric InfoNCE with weighted negatives, as `peg_rag.training.loss.reference.dense_loss` defines it.

    Args:
        cosines: (b, n) of queries and documents, the first b of which are the positives.
        hidden: (b, n) bool, candidates that are no negatives.
        weights: (b,) of the queries.
    """
    size = len(cosines)
    weights = weights / weights.sum()
    forward = _direction_loss(cosines, hidden, weights, weighting)
    backward = _direction_loss(cosines[:, :size].T, hidden[:, :size].T, weights, weighting)
    return (forward + backward) / 2


def _direction_loss(cosines: Tensor, hidden: Tensor, weights: Tensor, weighting: Weighting) -> Tensor:
    size = len(cosines)
    at_target = torch.eye(size, cosines.shape[1], dtype=torch.bool, device=cosines.device)
    positives = cosines.detach().diagonal()[:, None]  # (b, 1)
    hard = (cosines > positives + TIE) & weighting.curricular
    scaled = torch.where(hard, cosines * (weighting.t + cosines).clamp(min=0), cosines) * weighting.scale
    logits = scaled + weighting.strength * cosines.detach()
    logits = torch.where(at_target, cosines * weighting.scale, logits)
    logits = logits.masked_fill(hidden & ~at_target, -torch.inf)
    return -(weights * logits.log_softmax(1).diagonal()).sum()


def trust_weights(cosines: Tensor) -> Tensor:
    """Weights of a source's pairs by how well the model believes them, (pairs,): σ((s − mean + sd/2) / (sd/2))."""
    half = cosines.std().clamp(min=1e-6) / 2
    return torch.sigmoid((cosines - cosines.mean() + half) / half)


# --- data -----------------------------------------------------------------------------------------------------------


class Texts:
    """Texts on the device as padded rows of token ids."""

    def __init__(
        self, tokens: NDArray[Any], lengths: NDArray[Any], limit: int, padding: int, device: torch.device
    ) -> None:
        lengths = lengths.astype(np.int64)
        starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        flat = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self.lengths = torch.from_numpy(lengths).clamp(1, limit).to(device)
        width = min(limit, -(-int(lengths.max()) // 32) * 32)
        self.ids = torch.empty(len(lengths), width, dtype=torch.int32, device=device)
        place = torch.arange(width, device=device)
        true_lengths = torch.from_numpy(lengths).to(device)
        for start in range(0, len(lengths), 1 << 16):
            part = slice(start, start + (1 << 16))
            index = (starts[part, None] + place).clamp(max=len(flat) - 1)
            self.ids[part] = flat[index].masked_fill(place >= true_lengths[part, None], padding)
        self.ids[true_lengths == 0, 0] = 0  # as the package reads an empty text: one unknown token

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Task:
    """A corpus, queries, and which answers which."""

    name: str
    texts: Texts
    queries: Tensor  # rows of texts
    corpus: Tensor
    answers: Tensor  # (answers, 3): query, document, grade


@dataclass(frozen=True)
class Source:
    """Where a file's pairs stand among all pairs, and how many padded tokens its passages get."""

    name: str
    start: int
    end: int
    width: int


@dataclass
class Pack:
    """What `pack_halves.py` made, on the device."""

    table: Tensor  # (tokens + 1, dimension), the last row zero
    texts: Texts
    sources: list[Source]
    queries: Tensor  # (pairs,) rows of texts
    positives: Tensor
    validation: list[Task] = field(default_factory=list)
    evaluation: list[Task] = field(default_factory=list)


def load_pack(
    file: Path, device: torch.device, *, widths: Sequence[int], sets: Callable[[str, bool], bool] = lambda *_: True
) -> Pack:
    """Read a pack; passages are cut at the last of the widths.

    Args:
        widths: padded tokens of passages; a source gets the first that holds nine in ten of its passages.
        sets: by name and whether its domain is in the half, which evaluation sets to read.
    """
    arrays = np.load(file, allow_pickle=False)
    codes, scales = arrays["table/codes"], arrays["table/scales"]
    table = torch.zeros(len(codes) + 1, codes.shape[1])
    table[:-1] = torch.from_numpy(codes.astype(np.float32) * scales)
    padding = len(codes)
    lengths = arrays["texts/lengths"].astype(np.int64)
    texts = Texts(arrays["texts/tokens"], lengths, widths[-1], padding, device)
    sources: list[Source] = []
    queries: list[Ints] = []
    positives: list[Ints] = []
    for name in sorted({name.split("/")[1] for name in arrays.files if name.startswith("train/")}):
        start = sum(len(part) for part in queries)
        query, positive = (arrays[f"train/{name}/{part}"].astype(np.int64) for part in ("queries", "positives"))
        usual = np.percentile(lengths[positive], 90)
        width = next((width for width in widths if width >= usual), widths[-1])
        sources.append(Source(name, start, start + len(query), width))
        queries.append(query)
        positives.append(positive)
    pack = Pack(
        table.to(device),
        texts,
        sources,
        torch.from_numpy(np.concatenate(queries)).to(device),
        torch.from_numpy(np.concatenate(positives)).to(device),
    )
    for name in sorted({name.rsplit("/", 1)[0] for name in arrays.files if name.startswith("validation/")}):
        parts = [torch.from_numpy(arrays[f"{name}/{part}"].astype(np.int64)).to(device) for part in TASK_PARTS]
        pack.validation.append(Task(name.removeprefix("validation/"), texts, *parts))
    for name in sorted({name.split("/")[1] for name in arrays.files if name.startswith("evaluation/")}):
        prefix = f"evaluation/{name}"
        if sets(name, bool(arrays[f"{prefix}/known"])):
            source_texts = Texts(arrays[f"{prefix}/tokens"], arrays[f"{prefix}/lengths"], widths[-1], padding, device)
            documents = int(arrays[f"{prefix}/documents"])
            numbers = torch.arange(len(source_texts), device=device)
            answers = torch.from_numpy(arrays[f"{prefix}/answers"].astype(np.int64)).to(device)
            pack.evaluation.append(Task(name, source_texts, numbers[documents:], numbers[:documents], answers))
    return pack


TASK_PARTS = ("queries", "corpus", "answers")


@torch.no_grad()
def main_directions(pack: Pack, count: int) -> Tensor:
    """The directions that hold most of the length of the passages' static vectors, (dimension, count)."""
    table = pack.table
    products = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    rows = torch.unique(pack.positives)
    for part in torch.split(rows, 4_096):
        ids = pack.texts.ids[part]
        words = table[ids.long()]  # the padding's vector is zero
        vectors = F.normalize(words.sum(1), dim=1).double()
        products += vectors.T @ vectors
    directions: Tensor = torch.linalg.eigh(products).eigenvectors
    return directions[:, -count:].flip(1).float()


# --- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        steps, rate, warmup: AdamW's, the rate falling along a line after a share of the steps.
        temperature, strategy, strength, half_life: as in `peg_rag.training.recipe.LossOptions`.
        trust: whether pairs are weighted by `trust_weights` after a fifth of the run.
        noise: share of the pairs whose positive is another pair's, within their source.
        remine: parts of the run after which negatives are mined anew.
        seed: of batches, noise and weights.
    """

    steps: int
    rate: float
    seed: int = 0
    warmup: float = 0.05
    weight_decay: float = 0.01
    temperature: float = 0.05
    strategy: str = "none"
    strength: float = 5.0
    half_life: float = 0.3
    trust: bool = False
    noise: float = 0.0
    remine: tuple[float, ...] = ()


@dataclass(frozen=True)
class Batches:
    """Sizes that a graph is captured with.

    Attributes:
        queries: pairs of a batch, by the width of its passages.
        negatives: of a pair.
        query_width: padded tokens of a query.
    """

    queries: dict[int, int]
    negatives: int
    query_width: int


class Lab:
    """A model, its data and its step; runs one plan after the other.

    Args:
        most_steps: of any plan.
        graphs: whether to capture a step as a CUDA graph.
    """

    def __init__(
        self,
        pack: Pack,
        model: ResidualEncoder,
        batches: Batches,
        *,
        most_steps: int,
        graphs: bool,
        weight_decay: float = 0.01,
    ) -> None:
        self.pack = pack
        self.model = model
        self.batches = batches
        self.device = pack.table.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.beginning = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.optimizer = AdamW(list(self.trained.values()), weight_decay)
        pairs = len(pack.queries)
        self.positives = pack.positives.clone()
        self.negatives = torch.zeros(pairs, MINED, dtype=torch.int64, device=self.device)
        self.weights = torch.ones(pairs, device=self.device)
        self.rows = {
            width: torch.zeros(most_steps, size, dtype=torch.int64, device=self.device)
            for width, size in batches.queries.items()
        }
        self.picks = {
            width: torch.zeros(most_steps, size, batches.negatives, dtype=torch.int64, device=self.device)
            for width, size in batches.queries.items()
        }
        self.position = {width: self._make_scalar(0, torch.int64) for width in batches.queries}
        self.step_number = self._make_scalar(0, torch.int64)
        self.rates = torch.zeros(most_steps, device=self.device)
        self.losses = torch.zeros(most_steps, device=self.device)
        self.step_share = self._make_scalar(0.0)  # 1 / steps
        self.scale = self._make_scalar(20.0)
        self.fixed_strength = self._make_scalar(0.0)
        self.growing_strength = self._make_scalar(0.0)
        self.curricular = self._make_scalar(False, torch.bool)
        self.retained = self._make_scalar(1.0)
        self.t = self._make_scalar(0.0)
        self.replays: dict[int, Callable[[], None]] = {}
        self.graphs = graphs
        self.clean_negatives: Tensor | None = None

    def _make_scalar(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((), value, dtype=dtype, device=self.device)

    # -- one step

    def _take_step(self, width: int) -> None:
        place, size = self.position[width], self.batches.queries[width]
        rows = self.rows[width].index_select(0, place[None])[0]  # (b,)
        picks = self.picks[width].index_select(0, place[None])[0]  # (b, negatives)
        query_keys = self.pack.queries[rows]
        document_keys = torch.cat([self.positives[rows], self.negatives[rows].gather(1, picks).flatten()])
        weights = self._half_weights()
        queries = self._encode_rows(weights, query_keys, self.batches.query_width)
        documents = self._encode_rows(weights, document_keys, width)
        cosines = queries @ documents.T  # (b, n)
        with torch.no_grad():
            positive = cosines[:, :size].diagonal().mean()
            retained = torch.maximum(self.retained, (self.step_number == 0).float())  # a graph takes no host scalar
            self.t.mul_(retained).add_((1 - retained) * positive)
        strength = self.fixed_strength + self.growing_strength * self.step_number * self.step_share
        weighting = Weighting(self.scale, strength, self.curricular, self.t.clone())
        hidden = hidden_answers(query_keys, document_keys)
        loss = weighted_loss(cosines, hidden, self.weights[rows], weighting)
        trained = list(self.trained.values())
        gradients = [
            torch.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(torch.autograd.grad(loss, trained, allow_unused=True), trained, strict=True)
        ]
        rate = self.rates.index_select(0, self.step_number[None])[0]
        self.optimizer.step(gradients, rate, (self.step_number + 1).float())
        self.losses.index_copy_(0, self.step_number[None], loss.detach()[None])
        self.step_number.add_(1)
        place.add_(1)

    def _half_weights(self) -> dict[str, Tensor]:
        """The weights in the precision of the step; the token vectors are gathered before they are cut."""
        return {
            name: weight if name == "table" else weight.to(self.dtype) for name, weight in self.model.named_parameters()
        }

    def _encode_rows(self, weights: dict[str, Tensor], rows: Tensor, width: int) -> Tensor:
        ids = self.pack.texts.ids[:, :width].index_select(0, rows)
        vectors: Tensor = torch.func.functional_call(self.model, weights, (ids,))
        return vectors

    def capture(self) -> None:
        """Make each width's step ready; its state is reset afterwards."""
        pool = None
        for width in self.batches.queries:
            if not self.graphs:
                self.replays[width] = partial(self._take_step, width)
                continue
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._take_step(width)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._take_step(width)
            pool = graph.pool()
            self.replays[width] = graph.replay

    # -- one run

    def reset(self, plan: Plan) -> list[int]:
        """The start of a run → the width of each step."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(self.beginning[name])
        self.model.train()
        self.optimizer.reset()
        for number in (*self.position.values(), self.step_number, self.t, self.losses):
            number.zero_()
        self.weights.fill_(1)
        warm = max(1, int(plan.warmup * plan.steps))
        steps = np.arange(plan.steps)
        rates = plan.rate * np.minimum((steps + 1) / warm, (plan.steps - steps) / (plan.steps - warm))
        self.rates[: plan.steps] = torch.from_numpy(rates).to(self.rates)
        self.step_share.fill_(1 / plan.steps)
        self.scale.fill_(1 / plan.temperature)
        self.fixed_strength.fill_(plan.strength if plan.strategy == "static" else 0)
        self.growing_strength.fill_(plan.strength if plan.strategy == "linear" else 0)
        self.curricular.fill_(plan.strategy == "curricular")
        self.retained.fill_(0.5 ** (1 / (plan.steps * plan.half_life)))
        self.positives.copy_(self._noisy_positives(plan))
        torch.manual_seed(plan.seed)
        return self._schedule_widths(plan)

    def _noisy_positives(self, plan: Plan) -> Tensor:
        """Some pairs of each source exchange their positives in a circle."""
        positives = self.pack.positives.cpu().numpy().copy()
        generator = np.random.default_rng((plan.seed, 7))
        for source in self.pack.sources:
            size = source.end - source.start
            rows = source.start + generator.permutation(size)[: round(plan.noise * size)]
            positives[rows] = positives[np.roll(rows, 1)]
        return torch.from_numpy(positives)

    def _schedule_widths(self, plan: Plan) -> list[int]:
        """Batches of one source each, a function of the seed."""
        generator = np.random.default_rng((plan.seed, 8))
        sizes = np.array([source.end - source.start for source in self.pack.sources])
        shares = sizes**ALPHA / (sizes**ALPHA).sum()
        sources = [self.pack.sources[i] for i in generator.choice(len(sizes), plan.steps, p=shares)]
        rows: dict[int, list[Ints]] = {width: [] for width in self.batches.queries}
        for source in sources:
            size = self.batches.queries[source.width]
            available = source.end - source.start
            drawn = generator.choice(available, size, replace=available < size)
            rows[source.width].append(source.start + drawn)
        for width, parts in rows.items():
            if parts:
                self.rows[width][: len(parts)] = torch.from_numpy(np.stack(parts)).to(self.device)
                self.picks[width][: len(parts)] = self._draw_negatives(len(parts), width, plan.seed)
        return [source.width for source in sources]

    def _draw_negatives(self, steps: int, width: int, seed: int) -> Tensor:
        """Which of the mined negatives of each pair a step takes, none twice."""
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (steps, self.batches.queries[width], MINED)
        order = torch.rand(shape, generator=generator, device=self.device).argsort(2)
        return order[:, :, : self.batches.negatives]

    def train(self, plan: Plan, watch: Callable[[int], bool] = lambda _: True) -> int:
        """Run a plan → steps made. `watch` is called after each step with their number; False ends the run."""
        if not self.replays:
            self.capture()
        widths = self.reset(plan)
        self._mine_start(plan)
        trust_at = plan.steps // 5 if plan.trust else 0
        mine_at = {int(part * plan.steps) for part in plan.remine}
        for number, width in enumerate(widths, start=1):
            self.replays[width]()
            if number == trust_at:
                self.weights.copy_(self._trust_weights())
            if number in mine_at:
                self.negatives.copy_(self.mine())
            if not watch(number):
                return number
        return len(widths)

    def _mine_start(self, plan: Plan) -> None:
        """The untrained model's negatives; those of clean pairs are mined once for all runs."""
        if plan.noise:
            self.negatives.copy_(self.mine())
            return
        if self.clean_negatives is None:
            self.clean_negatives = self.mine()
        self.negatives.copy_(self.clean_negatives)

    # -- the model at work

    @torch.no_grad()
    def encode(self, texts: Texts, rows: Tensor, limit: int) -> Tensor:
        """Unit vectors of some texts, (rows, dimension) float32."""
        training = self.model.training
        self.model.eval()
        weights = self._half_weights()
        lengths = texts.lengths[rows].clamp(max=limit)
        order = torch.argsort(lengths)
        sorted_lengths = lengths[order].cpu().numpy()
        vectors = torch.empty(len(rows), self.model.table.shape[1], device=self.device)
        for part in chunk_rows(sorted_lengths):
            width = -(-int(sorted_lengths[part.stop - 1]) // 8) * 8
            numbers = order[part]
            ids = texts.ids[:, : min(width, limit)].index_select(0, rows[numbers])
            vectors[numbers] = torch.func.functional_call(self.model, weights, (ids,))
        self.model.train(training)
        return vectors

    @torch.no_grad()
    def mine(self) -> Tensor:
        """Hard negatives of every pair, (pairs, 8) rows of texts: the first the model ranks that answer nothing and
        score below the positive by a margin, then passages at random.
        """
        negatives = torch.empty_like(self.negatives)
        generator = torch.Generator(self.device).manual_seed(0)
        span = len(self.pack.texts)
        for source in self.pack.sources:
            pairs = slice(source.start, source.end)
            queries, positives = self.pack.queries[pairs], self.positives[pairs]
            corpus = torch.unique(positives)
            passages = self.encode(self.pack.texts, corpus, source.width)
            known_pairs = torch.unique(queries * span + positives)
            for part in torch.split(torch.arange(len(queries), device=self.device), 4_096):
                vectors = self.encode(self.pack.texts, queries[part], self.batches.query_width)
                scores = vectors @ passages.T  # (queries, corpus)
                positive_scores = scores.gather(1, torch.searchsorted(corpus, positives[part])[:, None])
                top = scores.topk(min(MINED_RANKS, len(corpus)), dim=1)
                documents = corpus[top.indices]
                good = (top.values < RELATIVE_MARGIN * positive_scores) & (documents != queries[part, None])
                good &= ~torch.isin(queries[part, None] * span + documents, known_pairs)
                spare = torch.randint(
                    len(corpus), (len(part), MINED), generator=generator, device=self.device
                )  # may be an answer; the loss hides those
                documents = torch.cat([documents, corpus[spare]], dim=1)
                order = torch.cat([~good, torch.zeros_like(spare, dtype=torch.bool)], dim=1)
                first = torch.argsort(order.to(torch.int8), dim=1, stable=True)[:, :MINED]
                negatives[source.start + part] = documents.gather(1, first)
        return negatives

    @torch.no_grad()
    def _trust_weights(self) -> Tensor:
        weights = torch.ones_like(self.weights)
        for source in self.pack.sources:
            pairs = slice(source.start, source.end)
            queries = self.encode(self.pack.texts, self.pack.queries[pairs], self.batches.query_width)
            positives = self.encode(self.pack.texts, self.positives[pairs], source.width)
            weights[pairs] = trust_weights((queries * positives).sum(1))
        return weights

    def score(self, task: Task, *, query_limit: int, limit: int, depth: int = 0) -> "Scores":
        """nDCG@10 of each query, and the first documents of each with their cosines."""
        queries = self.encode(task.texts, task.queries, query_limit)
        documents = self.encode(task.texts, task.corpus, limit)
        return rank(queries, documents, task.answers, depth)


def chunk_rows(lengths: Ints) -> Iterator[slice]:
    """Stretches of rows sorted by length, shortest first, that hold a bounded number of padded tokens."""
    start = 0
    while start < len(lengths):
        end = min(len(lengths), start + 32_768)
        while end - start > 1 and (end - start) * int(lengths[end - 1]) > ENCODED_TOKENS:
            end = start + max(1, (end - start) * 3 // 4)
        yield slice(start, end)
        start = end


@dataclass(frozen=True)
class Scores:
    """ndcg: (queries,). rows, cosines: (queries, depth), best first."""

    ndcg: NDArray[np.float64]
    rows: NDArray[np.int32]
    cosines: NDArray[np.float16]


@torch.no_grad()
def rank(queries: Tensor, documents: Tensor, answers: Tensor, depth: int = 0) -> Scores:
    """Search every query in the documents; gains are the grades, (answers, 3) of query, document, grade."""
    size, count = len(queries), len(documents)
    grades = torch.zeros(size, count, dtype=torch.int8, device=queries.device)
    grades[answers[:, 0], answers[:, 1]] = answers[:, 2].to(torch.int8)
    top = (queries @ documents.T).topk(min(max(depth, CUTOFF), count), dim=1)
    discounts = 1 / torch.log2(torch.arange(2, 2 + CUTOFF, device=queries.device))
    gains = grades.gather(1, top.indices[:, :CUTOFF]).float()
    achieved = (gains * discounts[: gains.shape[1]]).sum(1)
    return Scores(
        achieved.double().cpu().numpy() / best_gains(answers.cpu().numpy(), size),
        top.indices[:, :depth].to(torch.int32).cpu().numpy(),
        top.values[:, :depth].half().cpu().numpy(),
    )


def best_gains(answers: Ints, queries: int) -> NDArray[np.float64]:
    """The discounted gain of each query's best ranking."""
    answers = answers[np.lexsort((-answers[:, 2], answers[:, 0]))]
    place = np.arange(len(answers)) - np.searchsorted(answers[:, 0], answers[:, 0])
    gains = np.where(place < CUTOFF, answers[:, 2] / np.log2(place + 2), 0)
    return np.maximum(np.bincount(answers[:, 0], gains, queries), 1e-9)


def measure_rate(lab: Lab, plan: Plan, seconds: float) -> float:
    """Steps a second of a plan, warm."""
    lab.train(plan, lambda number: number < 20)
    synchronize(lab.device)
    begin = time.monotonic()
    steps = lab.train(plan, lambda number: number % 20 > 0 or not _is_over(lab.device, begin + seconds))
    synchronize(lab.device)
    return steps / (time.monotonic() - begin)


def _is_over(device: torch.device, deadline: float) -> bool:
    synchronize(device)
    return time.monotonic() > deadline


def prepare_device() -> torch.device:
    """The device of this machine, set up for short runs of many shapes."""
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)  # plans every shape anew
    return torch.device("cuda")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
