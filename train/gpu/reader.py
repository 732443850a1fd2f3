"""Train the reader: a small cross-encoder that says whether a statement, read in its context, answers a question.

With `small.py` beside it, it needs torch, NumPy and safetensors, and one accelerator.

    python reader.py pretrain --data train.npz --words words.npy --out run --seconds 132
    python reader.py read --data reading.npz --start run/pretrained.safetensors --out run --fold all
    python reader.py read … --fold 0                       # and so for each of the five folds

* `pretrain`: masked runs of one to three tokens in plain text and in pairs of a question and its passage, then the
  relevance of passages to questions beside hard negatives (`pack.py` makes the data, from permitted sources alone).
* `read`: written documents and their questions (`train/answer_scorer.py --pack`). A question's statements compete with
  one another and with "nothing answers", whose logit is 0. A fold's model never sees the fold's documents; its logits
  of those are what the trees that decide learn from (`train/answer_scorer.py --reading`).

A thread makes the batches while the accelerator computes. They are large and, in `pretrain`, of one shape, and masked
places are found on the CPU: small chunks would be bound by launching kernels, and a count taken on the device makes
every step wait for it.
"""

import argparse
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from small import CLS, MASK, PAD, SEP, VOCABULARY, Optimizer
from torch import Tensor, nn

POSITIONS = 256
MASKED_SHARE = 0.75  # of the seconds of `pretrain`; the rest goes to the relevance of passages
MASKED_RATE = 1.2e-3
RELEVANCE_RATE = 4e-4
READ_RATE = 3e-4
WARMUP = 0.06
LONGEST_WARMUP = 600  # steps
WIDTH = 192  # tokens of a row of `pretrain`
PAIR_QUERY = 48  # tokens of the question in it
ALPHA = 0.6  # a source of n pairs is drawn with weight n ** ALPHA
RUN_STARTS = 0.13  # share of the tokens from which a masked run begins; some 22 % of all tokens are masked
RUN_GOES_ON = 0.55
LISTED = 8  # passages that compete for a question: the right one and seven negatives
QUESTION_TOKENS = 40
STATEMENT_TOKENS = 80
CONTEXT_TOKENS = 128
ROWS_OF_QUESTION = 8  # that compete in a step, the right ones among them
DROPPED_TOKENS = 0.06  # of a question and its statement, masked while reading is learned
PREFETCHED = 8  # batches

Ints = NDArray[np.int64]


# --- model ----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A pre-norm transformer layer, which trains at a high rate from the start (Xiong et al., arXiv 2002.04745)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.inner_norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, width = hidden.shape
        qkv = self.qkv(self.attention_norm(hidden)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, length, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + self.attended(attended.transpose(1, 2).reshape(rows, length, width))
        out: Tensor = hidden + self.down(F.gelu(self.up(self.inner_norm(hidden)), approximate="tanh"))
        return out


class Encoder(nn.Module):
    """The layers, a head over the vocabulary, and a score of the first token's state."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(POSITIONS, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)  # joins characters into words before the layers
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, width)
        self.pooler = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
                is_residual = name.endswith(("attended", "down"))
                nn.init.normal_(module.weight, std=0.02 / (2 * layers) ** 0.5 if is_residual else 0.02)
            if isinstance(module, nn.Linear | nn.Conv1d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor | None) -> Tensor:
        """Hidden states of token ids, (rows, length) → (rows, length, width)."""
        hidden = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types(types))
        hidden = hidden * (ids != PAD)[:, :, None]
        mixed = self.neighbours(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + F.gelu(mixed, approximate="tanh")
        for layer in self.layers:
            hidden = layer(hidden, mask)
        out: Tensor = self.last_norm(hidden)
        return out

    def score_rows(self, ids: Tensor, types: Tensor) -> Tensor:
        """(rows,) float32 of (rows, length)."""
        first = self(ids, types, (ids != PAD)[:, None, None, :])[:, 0]
        score: Tensor = self.score(torch.tanh(self.pooler(first)))  # (rows, 1)
        return score.float().squeeze(1)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, (tokens, width) → (tokens, vocabulary)."""
        return F.gelu(self.head(hidden), approximate="tanh") @ self.words.weight.T


def scheduled_rate(peak: float, progress: float, step: int) -> float:
    return peak * min(1.0, progress / WARMUP, (step + 1) / LONGEST_WARMUP) * max(0.02, 1 - progress)


def save_weights(model: Encoder, shape: dict[str, int], file: Path) -> None:
    weights = {key: value.half().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, file, metadata={"shape": json.dumps(shape)})


def load_weights(file: Path, device: torch.device) -> tuple[Encoder, dict[str, int]]:
    """The network, in bfloat16 on an accelerator and else in float32, and its shape."""
    with safe_open(file, "pt", device="cpu") as weights:
        shape = json.loads(weights.metadata()["shape"])
        model = Encoder(**shape)
        model.load_state_dict({name: weights.get_tensor(name).float() for name in weights.keys()})  # noqa: SIM118
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32), shape


def prefetch(batches: Iterator[tuple[NDArray[Any], ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Batches on the device, made ahead by a thread."""
    ready: queue.Queue[tuple[Tensor, ...] | None] = queue.Queue(PREFETCHED)

    def make_batches() -> None:
        for batch in batches:
            tensors = tuple(torch.from_numpy(array) for array in batch)
            ready.put(tuple(t.pin_memory() for t in tensors) if device.type == "cuda" else tensors)
        ready.put(None)

    threading.Thread(target=make_batches, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


# --- pretraining ----------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Questions of a source with their passages and negatives, as numbers of texts."""

    name: str
    queries: Ints
    positives: Ints
    negatives: Ints
    starts: Ints  # (pairs + 1,)


class Corpus:
    """Plain text and pairs, in memory."""

    def __init__(self, file: Path) -> None:
        arrays = np.load(file, allow_pickle=False)
        self.tokens = arrays["tokens"].astype(np.int64)
        self.lengths = arrays["lengths"].astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        names = sorted({name.split("/")[0] for name in arrays.files if name.endswith("/queries")})
        self.sources = [self._read_pairs(arrays, name) for name in names]
        self.validation = {
            name: {part: arrays[f"{name}/validation_{part}"].astype(np.int64) for part in ("queries", "corpus", "rows")}
            | {"answers": arrays[f"{name}/validation_answers"].astype(np.int64)}
            for name in names
        }
        passages = [arrays[name].astype(np.int64) for name in arrays.files if name.endswith("/passages")]
        every = np.unique(np.concatenate([*passages, *(source.positives for source in self.sources)]))
        self.stream = self._join_texts(every)
        weights = np.array([len(source.queries) ** ALPHA for source in self.sources])
        self.shares = weights / weights.sum()

    @staticmethod
    def _read_pairs(arrays: Any, name: str) -> Pairs:
        counts = arrays[f"{name}/negative_counts"].astype(np.int64)
        queries, positives, negatives = (
            arrays[f"{name}/{part}"].astype(np.int64) for part in ("queries", "positives", "negatives")
        )
        return Pairs(name, queries, positives, negatives, np.concatenate([[0], np.cumsum(counts)]))

    def _join_texts(self, numbers: Ints) -> Ints:
        """The tokens of all texts, which come in random order, each followed by [SEP]."""
        numbers = np.random.default_rng(3).permutation(numbers)
        lengths = self.lengths[numbers] + 1
        ends = np.cumsum(lengths)
        place = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
        index = np.repeat(self.starts[numbers], lengths) + place
        stream: Ints = self.tokens[np.minimum(index, len(self.tokens) - 1)]
        stream[ends - 1] = SEP
        return stream

    def draw_windows(self, rows: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Random stretches of the stream, each after a [CLS], (rows, WIDTH), and their token types, all 0."""
        begins = generator.integers(0, len(self.stream) - WIDTH, size=rows)
        ids = self.stream[begins[:, None] + np.arange(WIDTH)[None, :] - 1]
        ids[:, 0] = CLS
        return ids, np.zeros_like(ids)

    def write_pairs(self, queries: Ints, documents: Ints) -> tuple[Ints, Ints]:
        """[CLS] query [SEP] passage [SEP], (rows, WIDTH), and the token types: 1 for the passage."""
        query_lengths = np.minimum(self.lengths[queries], PAIR_QUERY)[:, None]
        passage_lengths = np.minimum(self.lengths[documents], WIDTH - 3 - query_lengths[:, 0])[:, None]
        ends = query_lengths + passage_lengths + 2  # of the passages
        place = np.arange(WIDTH)[None, :]
        last = len(self.tokens) - 1
        ids = self.tokens[np.minimum(self.starts[queries][:, None] + np.maximum(place - 1, 0), last)]
        offset = place - query_lengths - 2  # in the passage
        passages = self.tokens[np.minimum(self.starts[documents][:, None] + np.maximum(offset, 0), last)]
        ids = np.where(offset >= 0, passages, ids)
        ids = np.where((place == query_lengths + 1) | (place == ends), SEP, ids)
        ids = np.where(place > ends, PAD, ids)
        ids[:, 0] = CLS
        return ids, ((place > query_lengths + 1) & (place <= ends)).astype(np.int64)

    def draw_pairs(self, rows: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Rows of questions with their passages, from all sources by their shares."""
        counts = generator.multinomial(rows, self.shares)
        pairs = [generator.integers(len(s.queries), size=n) for s, n in zip(self.sources, counts, strict=True)]
        queries = np.concatenate([s.queries[p] for s, p in zip(self.sources, pairs, strict=True)])
        documents = np.concatenate([s.positives[p] for s, p in zip(self.sources, pairs, strict=True)])
        return self.write_pairs(queries, documents)

    def draw_lists(self, questions: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Questions, each with its passage and then `LISTED` - 1 negatives, (questions · LISTED, WIDTH)."""
        counts = generator.multinomial(questions, self.shares)
        queries, documents = [], []
        for source, count in zip(self.sources, counts, strict=True):
            with_negatives = np.flatnonzero(np.diff(source.starts))
            if not count or not len(with_negatives):
                continue
            pairs = generator.choice(with_negatives, count)
            sizes = source.starts[pairs + 1] - source.starts[pairs]
            offsets = (generator.random((count, LISTED - 1)) * sizes[:, None]).astype(np.int64)
            negatives = source.negatives[source.starts[pairs][:, None] + offsets]
            queries.append(np.repeat(source.queries[pairs], LISTED))
            documents.append(np.concatenate([source.positives[pairs][:, None], negatives], axis=1).reshape(-1))
        return self.write_pairs(np.concatenate(queries), np.concatenate(documents))


def mask_runs(ids: Ints, generator: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """The ids with runs of one to three tokens masked, the places of these in the flat batch, and their ids before."""
    chance = generator.random((3, *ids.shape), dtype=np.float32)
    begins = chance[0] < RUN_STARTS
    second = np.zeros_like(begins)
    second[:, 1:] = begins[:, :-1] & (chance[1, :, 1:] < RUN_GOES_ON)
    third = np.zeros_like(begins)
    third[:, 1:] = second[:, :-1] & (chance[2, :, 1:] < RUN_GOES_ON)
    is_masked = (begins | second | third) & (ids > MASK)
    places = np.flatnonzero(is_masked)
    return np.where(is_masked & (chance[1] < 0.9), MASK, ids), places, ids.reshape(-1)[places]


class Pretrainer:
    """Masked tokens, then relevance, by the clock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.seconds = arguments.seconds
        self.rows = arguments.rows
        self.seed = arguments.seed
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(arguments.seed)
        width = arguments.width
        self.shape = {"vocabulary": VOCABULARY, "width": width, "layers": arguments.layers}
        self.shape |= {"heads": width // 64, "inner": 4 * width}
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = Encoder(**self.shape)
        if arguments.words:
            table = torch.from_numpy(np.load(arguments.words, allow_pickle=False).astype(np.float32))
            self.model.words.weight.data.copy_(table[:, :width])
        self.model = self.model.to(self.device, dtype)
        self.corpus = Corpus(Path(arguments.data))

    def run(self) -> None:
        self.log(f"{len(self.corpus.stream):,} tokens, {sum(len(s.queries) for s in self.corpus.sources):,} pairs")
        seconds = MASKED_SHARE * self.seconds
        self._run_for(seconds, MASKED_RATE, self._masked_batches(), self._measure_masked_loss, "masked")
        save_weights(self.model, self.shape, self.out / "masked.safetensors")
        seconds = (1 - MASKED_SHARE) * self.seconds
        self._run_for(seconds, RELEVANCE_RATE, self._list_batches(), self._measure_list_loss, "relevance")
        save_weights(self.model, self.shape, self.out / "pretrained.safetensors")
        self._report_relevance()

    def _run_for(
        self,
        seconds: float,
        peak: float,
        batches: Iterator[tuple[NDArray[Any], ...]],
        measure_loss: Callable[..., Tensor],
        name: str,
    ) -> None:
        optimizer = Optimizer(self.model)
        losses: list[Tensor] = []
        step = 0
        begin = last_log = time.monotonic()
        for batch in prefetch(batches, self.device):
            spent = time.monotonic() - begin
            if spent >= seconds:
                break
            loss = measure_loss(*batch)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step(scheduled_rate(peak, spent / seconds, step))
            step += 1
            if step % 4 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            if time.monotonic() - last_log > 10:
                last_log = time.monotonic()
                speed = step * self.rows * WIDTH / (last_log - begin)
                self.log(f"{name} step {step} loss {torch.stack(losses).mean().item():.3f} {speed:,.0f} tokens/s")
                losses = []
        self.log(f"{name} done: {step} steps")

    def _masked_batches(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Two batches of plain text, then one of pairs, and so on."""
        step = 0
        while True:
            generator = np.random.default_rng((self.seed, 1, step))
            draw = self.corpus.draw_pairs if step % 3 == 2 else self.corpus.draw_windows
            ids, types = draw(self.rows, generator)
            masked, places, labels = mask_runs(ids, generator)
            yield masked.astype(np.int32), types.astype(np.int32), places, labels
            step += 1

    def _measure_masked_loss(self, ids: Tensor, types: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        states = self.model(ids, types, (ids != PAD)[:, None, None, :])
        return F.cross_entropy(self.model.token_logits(states.flatten(0, 1)[places]).float(), labels)

    def _list_batches(self) -> Iterator[tuple[NDArray[Any], ...]]:
        step = 0
        while True:
            ids, types = self.corpus.draw_lists(self.rows // LISTED, np.random.default_rng((self.seed, 2, step)))
            yield ids.astype(np.int32), types.astype(np.int32)
            step += 1

    def _measure_list_loss(self, ids: Tensor, types: Tensor) -> Tensor:
        scores = self.model.score_rows(ids, types).view(-1, LISTED)
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=self.device))

    @torch.no_grad()
    def _report_relevance(self) -> None:
        """How often the right passage of a held-out question scores above seven of BM25's candidates."""
        table = {}
        generator = np.random.default_rng(7)
        for name, data in self.corpus.validation.items():
            questions = data["queries"][:96]
            if len(questions) < 20:
                continue
            answers = {int(question): int(answer) for question, answer in data["answers"]}
            wrong = generator.integers(min(20, data["rows"].shape[1]), size=(len(questions), LISTED - 1))
            others = data["corpus"][np.take_along_axis(data["rows"][:96], wrong, axis=1)]
            right = np.array([answers[int(question)] for question in questions])
            documents = np.concatenate([right[:, None], others], axis=1)
            ids, types = self.corpus.write_pairs(np.repeat(questions, LISTED), documents.reshape(-1))
            parts = [
                self.model.score_rows(torch.from_numpy(i).to(self.device), torch.from_numpy(t).to(self.device))
                for i, t in zip(np.array_split(ids, 4), np.array_split(types, 4), strict=True)
            ]
            scores = torch.cat(parts).view(-1, LISTED).cpu().numpy()
            rivals = np.where(documents[:, 1:] == right[:, None], -np.inf, scores[:, 1:])
            table[name] = float((scores[:, 0] > rivals.max(axis=1)).mean())
        self.log("first of eight: " + "  ".join(f"{name} {share:.2f}" for name, share in table.items()))
        self.log(f"mean {np.mean(list(table.values())):.3f}")

    def log(self, line: str) -> None:
        print(f"[{self.out.name}] {line}", flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(line + "\n")


# --- reading --------------------------------------------------------------------------------------------------------


class Reading:
    """Questions with their statements and the contexts of these, all as numbers of texts.

    Arrays of the file: `tokens` and `lengths` of all texts; `questions`, `folds`, `weights` and `sizes` (questions,);
    `statements`, `contexts`, `right` (rows,), the rows of a question one after the other.
    """

    def __init__(self, file: Path) -> None:
        arrays = np.load(file, allow_pickle=False)
        self.tokens = arrays["tokens"].astype(np.int64)
        self.text_lengths = arrays["lengths"].astype(np.int64)
        self.text_starts = np.cumsum(self.text_lengths) - self.text_lengths
        self.questions = arrays["questions"].astype(np.int64)
        self.folds = arrays["folds"].astype(np.int64)
        self.weights = arrays["weights"].astype(np.float32)
        self.sizes = arrays["sizes"].astype(np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.statements = arrays["statements"].astype(np.int64)
        self.contexts = arrays["contexts"].astype(np.int64)
        self.right = arrays["right"].astype(bool)
        self.question_of_row = np.repeat(self.questions, self.sizes)
        lengths = [np.minimum(self.text_lengths[numbers], limit) for numbers, limit in self._parts(slice(None))]
        self.lengths = sum(lengths) + 4

    def _parts(self, rows: Any) -> list[tuple[Ints, int]]:
        return [
            (self.question_of_row[rows], QUESTION_TOKENS),
            (self.statements[rows], STATEMENT_TOKENS),
            (self.contexts[rows], CONTEXT_TOKENS),
        ]

    def write_rows(self, rows: Ints) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """[CLS] question [SEP] statement [SEP] context [SEP], padded; the statement's tokens are of type 1."""
        width = -(-int(self.lengths[rows].max()) // 16) * 16
        place = np.arange(width)[None, :]
        ids = np.full((len(rows), width), PAD, dtype=np.int32)
        ids[:, 0] = CLS
        types = np.zeros_like(ids)
        begin = np.ones((len(rows), 1), dtype=np.int64)
        for part, (numbers, limit) in enumerate(self._parts(rows)):
            end = begin + np.minimum(self.text_lengths[numbers], limit)[:, None]
            index = np.clip(self.text_starts[numbers][:, None] + place - begin, 0, len(self.tokens) - 1)
            is_of_part = (place >= begin) & (place < end)
            ids = np.where(is_of_part, self.tokens[index], ids).astype(np.int32)
            ids = np.where(place == end, SEP, ids).astype(np.int32)
            if part == 1:
                types = np.where(is_of_part | (place == end), 1, types).astype(np.int32)
            begin = end + 1
        return ids, types

    def draw(self, questions: Ints, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """The rows that compete, right ones and some of the others, and how many of them each question has."""
        rows = []
        for question in questions:
            own = np.arange(self.starts[question], self.starts[question] + self.sizes[question])
            right = own[self.right[own]]
            wrong = own[~self.right[own]]
            chances = 1.0 / (1.0 + 0.35 * np.arange(len(wrong)))  # rows are sorted: the most misleading first
            count = min(len(wrong), max(2, ROWS_OF_QUESTION - len(right)))
            rivals = generator.choice(wrong, count, replace=False, p=chances / chances.sum()) if count else wrong
            rows.append(np.concatenate([right[: ROWS_OF_QUESTION - 2], rivals]))
        return np.concatenate(rows), np.array([len(part) for part in rows])


class Reader:
    """Fine-tunes an encoder on the documents outside a fold, or on all."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.seconds = arguments.seconds
        self.epochs = arguments.epochs
        self.tokens = arguments.tokens
        self.seed = arguments.seed
        self.fold = -1 if arguments.fold == "all" else int(arguments.fold)
        torch.manual_seed(self.seed)
        self.reading = Reading(Path(arguments.data))
        self.model, self.shape = load_weights(Path(arguments.start), self.device)
        self.model.head.requires_grad_(False)
        self.optimizer = Optimizer(self.model)

    def fit(self) -> None:
        """`epochs` times through the questions of the other folds, or until the seconds are over if that is sooner."""
        numbers = np.flatnonzero(self.reading.folds != self.fold)
        size = max(2, int(self.tokens // (float(self.reading.lengths.mean()) * ROWS_OF_QUESTION)))
        total = max(1, self.epochs * len(numbers) // size)
        losses: list[Tensor] = []
        step = 0
        begin = last_log = time.monotonic()
        for batch in prefetch(self._batches(numbers, size, total), self.device):
            progress = max(step / total, (time.monotonic() - begin) / self.seconds)
            if progress >= 1:
                break
            loss = self._measure_loss(*batch)
            loss.backward()
            losses.append(loss.detach())
            self.optimizer.step(scheduled_rate(READ_RATE, progress, step))
            step += 1
            if step % 4 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            if time.monotonic() - last_log > 10:
                last_log = time.monotonic()
                print(f"[{self.fold}] {step}/{total} loss {torch.stack(losses).mean().item():.3f}", flush=True)
                losses = []
        print(f"[{self.fold}] {step}/{total} steps in {time.monotonic() - begin:.0f} s", flush=True)

    def _batches(self, numbers: Ints, size: int, total: int) -> Iterator[tuple[NDArray[Any], ...]]:
        """Ids and types of the shorter rows, then of the longer ones; what is right, whose each row is, the weights."""
        generator = np.random.default_rng((self.seed, self.fold + 1))
        order = np.concatenate([generator.permutation(numbers) for _ in range(self.epochs)])
        for step in range(total):
            questions = order[step * size : (step + 1) * size]
            rows, counts = self.reading.draw(questions, generator)
            owner = np.repeat(np.arange(len(questions)), counts)
            by_length = np.argsort(self.reading.lengths[rows], kind="stable")
            halves = np.array_split(by_length, 2)
            texts = [self.reading.write_rows(rows[half]) for half in halves]
            arrays = [array for ids, types in texts for array in (self._drop_tokens(ids, generator), types)]
            right = self.reading.right[rows[by_length]]
            yield (*arrays, right, owner[by_length], self.reading.weights[questions])

    @staticmethod
    def _drop_tokens(ids: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.int32]:
        is_dropped = (generator.random(ids.shape, dtype=np.float32) < DROPPED_TOKENS) & (ids > MASK)
        return np.where(is_dropped, MASK, ids).astype(np.int32)

    def _measure_loss(self, ids: Tensor, types: Tensor, longer: Tensor, longer_types: Tensor, *rest: Tensor) -> Tensor:
        right, owner, weights = rest
        scores = torch.cat([self.model.score_rows(ids, types), self.model.score_rows(longer, longer_types)])
        return competition_loss(scores, right, owner, weights)

    @torch.no_grad()
    def predict(self, questions: Ints) -> NDArray[np.float32]:
        """Logits of all rows of the questions, in their order."""
        reading = self.reading
        rows = [np.arange(reading.starts[q], reading.starts[q] + reading.sizes[q]) for q in questions]
        every = np.concatenate(rows)
        by_length = np.argsort(reading.lengths[every], kind="stable")
        chunks = [by_length[start : start + 1_024] for start in range(0, len(every), 1_024)]
        batches = prefetch((reading.write_rows(every[chunk]) for chunk in chunks), self.device)
        scores = torch.cat([self.model.score_rows(ids, types) for ids, types in batches]).cpu().numpy()
        out = np.empty(len(every), dtype=np.float32)
        out[by_length] = scores
        return out


def competition_loss(scores: Tensor, right: Tensor, owner: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each question's right rows against its other rows and "nothing answers", whose logit is 0.

    Args:
        scores: (rows,) float32.
        right: (rows,) bool.
        owner: (rows,) number of the question.
        weights: (questions,)
    """
    count = len(weights)
    zero = torch.zeros(count, device=scores.device)
    all_sum = sum_of_exponentials(scores, owner, count, zero)
    is_answerable = torch.zeros(count, device=scores.device).index_add(0, owner, right.float()) > 0
    floor = torch.where(is_answerable, -1e4, 0.0)  # "nothing answers" is right where no row is
    right_sum = sum_of_exponentials(torch.where(right, scores, -1e4), owner, count, floor)
    return ((all_sum - right_sum) * weights).sum() / weights.sum()


def sum_of_exponentials(scores: Tensor, owner: Tensor, count: int, null: Tensor) -> Tensor:
    """(questions,) log(exp(null) + the sum of exp(scores) over the question's rows)."""
    largest = null.clone().scatter_reduce(0, owner, scores.detach(), "amax")
    total = torch.exp(null - largest).index_add(0, owner, torch.exp(scores - largest[owner]))
    return largest + torch.log(total)


def report_fold(reading: Reading, questions: Ints, logits: NDArray[np.float32], name: str) -> None:
    """Prints how often the likeliest row is right, and what would be said at log odds above 0."""
    sizes = reading.sizes[questions]
    ends = np.cumsum(sizes)
    first = right_said = wrong_said = declined = answerable = 0
    unanswerable = unanswerable_said = 0
    for question, start, end in zip(questions, ends - sizes, ends, strict=True):
        right = reading.right[reading.starts[question] : reading.starts[question] + reading.sizes[question]]
        best = int(np.argmax(logits[start:end]))
        is_said = logits[start + best] > 0
        if right.any():
            answerable += 1
            first += int(right[best])
            right_said += int(right[best] and is_said)
            wrong_said += int(is_said and not right[best])
            declined += int(not is_said)
        else:
            unanswerable += 1
            unanswerable_said += int(is_said)
    shares = [number / max(answerable, 1) for number in (first, right_said, wrong_said, declined)]
    text = "first right {:.4f}; {:.3f} right {:.3f} wrong {:.3f} declined".format(*shares)
    text += f"; {unanswerable_said / max(unanswerable, 1):.3f} of {unanswerable} others said"
    print(f"{name}: of {answerable} answerable {text}", flush=True)


def read(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    reader = Reader(arguments)
    reader.fit()
    if reader.fold < 0:
        save_weights(reader.model, reader.shape, out / "reader.safetensors")
        return
    questions = np.flatnonzero(reader.reading.folds == reader.fold)
    logits = reader.predict(questions)
    report_fold(reader.reading, questions, logits, f"fold {reader.fold}")
    np.savez_compressed(out / f"fold-{reader.fold}.npz", questions=questions, logits=logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pretrain", "read"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--start")
    parser.add_argument("--words", help="vectors of the vocabulary to begin with, (VOCABULARY, width or more)")
    parser.add_argument("--fold", default="all")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--rows", type=int, default=256, help="of a step of `pretrain`")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a step of `read`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.command == "pretrain":
        Pretrainer(arguments).run()
    else:
        read(arguments)


if __name__ == "__main__":
    main()
