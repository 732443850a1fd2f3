"""Fine-tune multilingual-e5-small as the reader: does a statement, read in its context, answer a question?

    python train/answer_scorer.py --features runs/rows.npz --tokenizer runs/start/tokenizer.json --pack runs/reading.npz
    python train/reader.py fit --data runs/reading.npz --start runs/start --out runs/first --passes 2
    python train/reader.py fit --data runs/reading.npz --start runs/start --out runs/reader --begin runs/first --seed 1
    python train/reader.py average --start runs/start --runs runs/first runs/reader --out runs/mean
    python train/reader.py score --data runs/reading.npz --start runs/start --out runs/reader
    python train/reader.py write --start runs/start --out runs/reader
    python train/reader.py unpack --start runs/start --out runs/shipped   # the asset, to go on from with --begin

`train/reader_start.py` makes `runs/start`; a second pass begins with the weights of the first. The mean of the weights
of several passes (Wortsman et al., arXiv 2203.05482) is less sure of what it has not learned, and ranks as well. A
question's statements compete with one another and with "nothing answers", whose logit is 0. One fold of documents is
left out, and the trees that decide learn from what the reader says of those (`train/answer_scorer.py --reading`). The
embeddings and the lower layers stay as they are: they know Chinese, and much of the work is saved. A step scores more
rows than it learns from: it does without the questions that are known by now, and of the others takes the rows that
mislead the network most.

`fit` goes on where it was stopped; `write` makes the asset. `torchrun --nproc-per-node 2 -- train/reader.py fit …`
shares each step out to two processes of one thread each, which on two cores take less time than two threads of one
process.
"""

import argparse
import json
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel
from transformers import logging as transformers_logging

from peg_rag.answering.reading import END, QUESTION_TOKENS, START, STATEMENT_TOKENS, context_tokens

FROZEN_LAYERS = 4
QUESTIONS_OF_STEP = 96
ROWS_DRAWN = 5  # of a question, which are scored without gradients first
ROWS_OF_QUESTION = 3  # of these, that compete in the step: the right one and the likeliest others
UNANSWERABLE = 0.2  # share of the questions of a pass, at most
DROPOUT = 0.1  # of what the attention and the feed-forward part of a layer that learns add, and of the pooled state
KNOWN_LOSS = 0.05  # of a question over all its drawn rows, below which the step does without it
MOST_RIGHT = 1
ROWS_OF_CHUNK = 8  # rows of like length that are padded together; few, so that what they compute stays in the cache
HARDNESS = 0.35  # the n-th most misleading row is drawn with weight 1 / (1 + HARDNESS * n)
RATE = 1.2e-4
HEAD_RATE_FACTOR = 5.0  # of the first pass, whose pooler and score are new
WARMUP = 0.06
DECAY = 0.01
BETAS = (0.9, 0.98)
SAVED_EVERY = 50  # steps
POSITIONS = 256  # kept in the asset; a row has at most 204 tokens
PAD = 1

ASSET = Path(__file__).resolve().parent.parent / "peg_rag" / "assets" / "reader-mini"

Ints = NDArray[np.int64]


class Reading:
    """Questions with their statements and the contexts of these, as `train/answer_scorer.py --pack` writes them.

    Arrays of the file: `tokens` and `lengths` of all texts; `folds`, `weights` and `sizes` (questions,); `questions`,
    as the file of each row would put them, `statements`, `contexts`, `right` (rows,), a question's rows side by side.
    """

    def __init__(self, file: Path) -> None:
        arrays = np.load(file, allow_pickle=False)
        self._tokens = arrays["tokens"].astype(np.int64)
        self._text_lengths = arrays["lengths"].astype(np.int64)
        self._text_starts = np.cumsum(self._text_lengths) - self._text_lengths
        self.folds = arrays["folds"].astype(np.int64)
        self.weights = arrays["weights"].astype(np.float32)
        self.sizes = arrays["sizes"].astype(np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.right = arrays["right"].astype(bool)
        self._questions = arrays["questions"].astype(np.int64)
        self._statements = arrays["statements"].astype(np.int64)
        self._contexts = arrays["contexts"].astype(np.int64)

    def choose_questions(self, left_out: int, generator: np.random.Generator) -> Ints:
        """Numbers of the questions to learn from: all answerable ones about documents that are not left out, and as
        many unanswerable ones as `UNANSWERABLE` allows."""
        numbers = np.flatnonzero(self.folds != left_out)
        is_answerable = np.logical_or.reduceat(self.right, self.starts)[numbers]
        answerable, others = numbers[is_answerable], numbers[~is_answerable]
        most = int(len(answerable) * UNANSWERABLE / (1 - UNANSWERABLE))
        if len(others) > most:
            others = generator.choice(others, most, replace=False)
        return np.sort(np.concatenate([answerable, others]))

    def write_row(self, row: int) -> list[int]:
        """<s> question </s> statement </s> context </s>."""
        question = self._read_text(self._questions[row], QUESTION_TOKENS)
        statement = self._read_text(self._statements[row], STATEMENT_TOKENS)
        context = self._read_text(self._contexts[row], context_tokens(len(statement)))
        return [START, *question, END, *statement, END, *context, END]

    def _read_text(self, text: int, most: int) -> list[int]:
        start = self._text_starts[text]
        tokens: list[int] = self._tokens[start : start + min(most, self._text_lengths[text])].tolist()
        return tokens

    def draw_rows(self, question: int, generator: np.random.Generator) -> Ints:
        """Rows of a question to choose from: a right one, and of the others above all the misleading ones."""
        own = np.arange(self.starts[question], self.starts[question] + self.sizes[question])
        right = own[self.right[own]]
        wrong = own[~self.right[own]]  # sorted: the most misleading first
        right = generator.choice(right, min(len(right), MOST_RIGHT), replace=False)
        count = min(len(wrong), ROWS_DRAWN - len(right))
        chances = 1.0 / (1.0 + HARDNESS * np.arange(len(wrong)))
        rivals = generator.choice(wrong, count, replace=False, p=chances / chances.sum()) if count else wrong
        return np.concatenate([right, rivals]).astype(np.int64)


class Reader(nn.Module):
    """BERT, a pooler and a score of the first token's state."""

    def __init__(self, folder: Path, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        config = BertConfig.from_pretrained(folder)
        config.hidden_act = "gelu_pytorch_tanh"
        config.hidden_dropout_prob = 0.0
        config.attention_probs_dropout_prob = 0.0
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.bert = BertModel.from_pretrained(
            folder, config=config, add_pooling_layer=False, attn_implementation="eager"
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)
        for layer in (self.pooler, self.score):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for part in (self.bert.embeddings, *self.bert.encoder.layer[:FROZEN_LAYERS]):
            part.requires_grad_(False)
        self._cast: dict[int, Layer] = {}  # the frozen layers, which stay as they are

    def trained_weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}

    def forward(self, rows: Sequence[list[int]]) -> Tensor:
        """(rows,) log odds of each row of token ids."""
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        parts = [order[start : start + ROWS_OF_CHUNK] for start in range(0, len(order), ROWS_OF_CHUNK)]
        layers = [self._cast_layer(number) for number in range(len(self.bert.encoder.layer))]
        scores = torch.cat([self._score_chunk([rows[row] for row in part], layers) for part in parts])
        return scores[torch.tensor(order, device=scores.device).argsort()]

    def _cast_layer(self, number: int) -> "Layer":
        """A layer's matrices in bfloat16, made once for all chunks of a step."""
        if number < FROZEN_LAYERS and number in self._cast:
            return self._cast[number]
        own: Any = self.bert.encoder.layer[number]
        attention = own.attention.self
        projections = (attention.query, attention.key, attention.value)
        attended = own.attention.output.dense
        layer = Layer(
            qkv=torch.cat([part.weight for part in projections]).bfloat16(),
            qkv_bias=torch.cat([part.bias for part in projections]).bfloat16(),
            attended=attended.weight.bfloat16(),
            attended_bias=attended.bias.bfloat16(),
            up=own.intermediate.dense.weight.bfloat16(),
            up_bias=own.intermediate.dense.bias.bfloat16(),
            down=own.output.dense.weight.bfloat16(),
            down_bias=own.output.dense.bias.bfloat16(),
            attention_norm=own.attention.output.LayerNorm,
            norm=own.output.LayerNorm,
        )
        if number < FROZEN_LAYERS:
            self._cast[number] = layer
        return layer

    def _score_chunk(self, rows: Sequence[list[int]], layers: Sequence["Layer"]) -> Tensor:
        """Scores (rows,). Sums and norms are in float32, products in bfloat16, as with autocast, which takes about half
        as long again on a processor."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=self.score.weight.device)
        mask = torch.zeros(ids.shape, dtype=torch.bfloat16, device=ids.device).masked_fill(ids == PAD, -1e4)
        hidden = self.bert.embeddings(ids)  # (rows, tokens, width)
        for number, layer in enumerate(layers):
            hidden = self._apply_layer(
                hidden,
                mask[:, None, None],
                layer,
                dropout=self.dropout if self.training and number >= FROZEN_LAYERS else 0.0,
                is_last=number == len(layers) - 1,
            )
        pooled = functional.dropout(torch.tanh(self.pooler(hidden[:, 0])), self.dropout, self.training)
        scores: Tensor = self.score(pooled)
        return scores.squeeze(1)

    def _apply_layer(self, hidden: Tensor, mask: Tensor, layer: "Layer", *, dropout: float, is_last: bool) -> Tensor:
        """(rows, tokens, width) → the same; the last layer computes the first tokens alone, (rows, 1, width)."""
        rows, tokens, width = hidden.shape
        heads = self.bert.config.num_attention_heads
        projected = functional.linear(hidden.bfloat16(), layer.qkv, layer.qkv_bias)
        queries, keys, values = projected.view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        if is_last:
            queries = queries[:, :, :1]
            hidden = hidden[:, :1]
        scores = queries @ keys.transpose(2, 3) * (width // heads) ** -0.5 + mask
        attended = (scores.softmax(-1) @ values).transpose(1, 2).reshape(rows, -1, width)
        attended = functional.linear(attended, layer.attended, layer.attended_bias)
        hidden = layer.attention_norm(hidden + functional.dropout(attended, dropout))
        inner = functional.gelu(functional.linear(hidden.bfloat16(), layer.up, layer.up_bias))
        inner = functional.linear(inner, layer.down, layer.down_bias)
        out: Tensor = layer.norm(hidden + functional.dropout(inner, dropout))
        return out


class Layer(NamedTuple):
    """A layer's matrices (out, in) and biases in bfloat16, and its norms."""

    qkv: Tensor
    qkv_bias: Tensor
    attended: Tensor
    attended_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    attention_norm: nn.Module
    norm: nn.Module


def choose_rows(scores: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Of a question's drawn rows those that compete, its right ones and the likeliest others, and the question's loss.

    Args:
        scores: (rows,) float32.
        right: (rows,) bool.

    Returns:
        Positions of the rows, (at most `ROWS_OF_QUESTION`,), in their order, and the loss over all rows.
    """
    owner = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    loss = measure_loss(scores, right, owner, scores.new_ones(1))
    order = torch.where(right, torch.inf, scores).argsort(descending=True)
    return order[:ROWS_OF_QUESTION].sort().values, loss.item()


def measure_loss(scores: Tensor, right: Tensor, owner: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each question's right rows against its other rows and "nothing answers", whose logit is 0.

    Args:
        scores: (rows,) float32.
        right: (rows,) bool.
        owner: (rows,) number of the question.
        weights: (questions,)
    """
    losses = []
    for question in range(len(weights)):
        own = scores[owner == question]
        is_right = right[owner == question]
        nothing = own.new_zeros(1)
        answer = own[is_right] if is_right.any() else nothing
        losses.append(torch.cat([own, nothing]).logsumexp(0) - answer.logsumexp(0))
    return (torch.stack(losses) * weights).sum() / weights.sum()


class Drawn(NamedTuple):
    """A question's rows of token ids, which of them answer, (rows,), and its share of the step's weights."""

    rows: list[list[int]]
    right: Tensor
    share: float


class Trainer:
    """Passes through the questions of the documents that are not left out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(arguments.seed)
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.seed = arguments.seed
        self.reading = Reading(Path(arguments.data))
        self.device = torch.device(arguments.device)
        self.model = Reader(Path(arguments.start), arguments.dropout).to(self.device)
        generator = np.random.default_rng(self.seed)
        numbers = self.reading.choose_questions(arguments.left_out, generator)
        passes = [generator.permutation(numbers)[: arguments.questions] for _ in range(arguments.passes)]
        self.order = np.concatenate(passes)
        if len(self.order) < QUESTIONS_OF_STEP:
            raise SystemExit(f"{arguments.data}: {len(self.order)} questions; expected {QUESTIONS_OF_STEP} for a step")
        self.options = describe_run(arguments) | {"order": str(zlib.crc32(self.order.tobytes()))}
        head = [*self.model.pooler.parameters(), *self.model.score.parameters()]
        body = [weight for weight in self.model.bert.parameters() if weight.requires_grad]
        rate = float(arguments.rate)
        rate_of_head = rate if arguments.begin else rate * HEAD_RATE_FACTOR
        groups = [{"params": body, "peak": rate}, {"params": head, "peak": rate_of_head}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=BETAS, weight_decay=DECAY)
        if arguments.begin:
            load_trained(self.model, Path(arguments.begin))
        self.step = 0
        self._load_state()
        self.rank, self.ranks = join_ranks()

    def fit(self) -> list[float]:
        """The loss of each step."""
        total = len(self.order) // QUESTIONS_OF_STEP
        losses: list[float] = []
        begin = time.monotonic()
        first = self.step
        learnt = 0
        while self.step < total:
            torch.manual_seed(zlib.crc32(f"{self.seed} {self.step} {self.rank}".encode()))  # of the dropout
            loss, rows = self._measure_gradients(self._draw_questions(self.step))
            loss = self._sum_over_ranks(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * schedule_rate((self.step + 1) / total)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
            self.step += 1
            learnt += rows
            if self.step % 10 == 0:
                steps = self.step - first
                self.log(
                    f"{self.step}/{total} loss {np.mean(losses[-100:]):.3f} {learnt / steps:.0f} rows of this rank "
                    f"and {(time.monotonic() - begin) / steps:.1f} s a step"
                )
            if self.step % SAVED_EVERY == 0 or self.step == total:
                self._save_state()
        return losses

    def _sum_over_ranks(self, loss: Tensor) -> Tensor:
        """Add up the gradients of all ranks; returns the step's loss."""
        gradients = self._own_gradients()
        if self.ranks > 1:
            joined = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
            dist.all_reduce(joined)
            loss, *parts = joined.split([1, *(gradient.numel() for gradient in gradients)])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return loss

    def _own_gradients(self) -> list[Tensor]:
        """The gradients of all trained weights; zeros where this rank learned from no question."""
        for weight in self.model.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight in self.model.parameters() if weight.grad is not None]

    def _draw_questions(self, step: int) -> list[Drawn]:
        """This rank's part of a step."""
        generator = np.random.default_rng((self.seed, step))
        questions = self.order[step * QUESTIONS_OF_STEP : (step + 1) * QUESTIONS_OF_STEP]
        shares = self.reading.weights[questions] / self.reading.weights[questions].sum()
        drawn = []
        for question, share in zip(questions, shares, strict=True):
            rows = self.reading.draw_rows(int(question), generator)
            right = torch.from_numpy(self.reading.right[rows]).to(self.device)
            drawn.append(Drawn([self.reading.write_row(int(row)) for row in rows], right, float(share)))
        return drawn[self.rank :: self.ranks]

    def _measure_gradients(self, drawn: Sequence[Drawn]) -> tuple[Tensor, int]:
        """Adds up the gradients of the questions that are not known yet.

        Returns:
            The questions' part of the step's loss over all drawn rows, and the number of rows that were learned from.
        """
        self.model.eval()
        with torch.no_grad():
            scores = self.model([row for question in drawn for row in question.rows])
        total = scores.new_zeros(())
        kept = []
        for question, own in zip(drawn, scores.split([len(question.rows) for question in drawn]), strict=True):
            places, loss = choose_rows(own, question.right)
            total += question.share * loss
            if not loss <= KNOWN_LOSS:  # nor is a question known whose loss is no number
                rows = [question.rows[place] for place in places.tolist()]
                kept.append(Drawn(rows, question.right[places], question.share))
        if kept:
            self._propagate(kept)
        return total, sum(len(question.rows) for question in kept)

    def _propagate(self, drawn: Sequence[Drawn]) -> None:
        sizes = torch.tensor([len(question.rows) for question in drawn], device=self.device)
        owner = torch.arange(len(drawn), device=self.device).repeat_interleave(sizes)
        shares = torch.tensor([question.share for question in drawn], device=self.device)
        right = torch.cat([question.right for question in drawn])
        self.model.train()
        scores = self.model([row for question in drawn for row in question.rows])
        (shares.sum() * measure_loss(scores, right, owner, shares)).backward()

    def _save_state(self) -> None:
        """The weights first: a run that is stopped between the two files makes them again."""
        if self.rank:
            return
        save_file(self.model.trained_weights(), self.out / "trained.new", metadata=self.options)
        (self.out / "trained.new").replace(self.out / "trained.safetensors")
        state = {"step": self.step, "options": self.options}
        state |= {"model": self.model.trained_weights(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.out / "state.new")
        (self.out / "state.new").replace(self.out / "state.pt")

    def _load_state(self) -> None:
        file = self.out / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["options"] != self.options:
            raise SystemExit(f"{file} is of {state['options']}, not {self.options}; give another --out")
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def log(self, line: str) -> None:
        if self.rank:
            return
        print(line, flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(line + "\n")


def describe_run(arguments: argparse.Namespace) -> dict[str, str]:
    """What a run that goes on must have in common with the one that was stopped."""
    names = ("data", "start", "begin", "rate", "dropout", "left_out", "questions", "passes", "seed")
    return {name: str(getattr(arguments, name)) for name in names}


def join_ranks() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def fit(arguments: argparse.Namespace) -> None:
    Trainer(arguments).fit()


def schedule_rate(progress: float) -> float:
    return min(progress / WARMUP, 1.0) * max(0.02, 1.0 - progress)


def load_reader(start: Path, out: Path) -> Reader:
    """The fine-tuned network."""
    model = Reader(start)
    load_trained(model, out)
    return model.eval()


def load_trained(model: Reader, out: Path) -> None:
    """The weights that a run trained."""
    file = out / "trained.safetensors"
    if not file.is_file():
        raise SystemExit(f"{file} is not there; expected the folder that an earlier `fit` wrote")
    weights = load_file(file)
    if differing := sorted(weights.keys() ^ model.trained_weights().keys()):
        raise SystemExit(f"{file} is of another network: {differing[0]} is in only one of the two")
    model.load_state_dict(weights, strict=False)


@torch.inference_mode()
def score_questions(
    model: Reader, reading: Reading, questions: Sequence[int], most: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Log odds of the first `most` rows of each question."""
    chunk = 64
    for begin in range(0, len(questions), chunk):
        part = questions[begin : begin + chunk]
        sizes = [min(most, int(reading.sizes[question])) for question in part]
        rows = [
            reading.write_row(int(reading.starts[question]) + place)
            for question, size in zip(part, sizes, strict=True)
            for place in range(size)
        ]
        logits = model(rows).cpu().numpy()
        for question, own in zip(part, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
            yield int(question), own


def report(reading: Reading, logits: dict[int, NDArray[np.float32]]) -> str:
    """How often the likeliest row is right, and what would be said at log odds above 0."""
    counts = dict.fromkeys(("answerable", "first", "right", "wrong", "others", "others_said"), 0)
    for question, own in logits.items():
        start = reading.starts[question]
        right = reading.right[start : start + reading.sizes[question]]
        best = int(np.argmax(own))
        is_said = bool(own[best] > 0)
        if right.any():
            counts["answerable"] += 1
            counts["first"] += int(right[best])
            counts["right"] += int(right[best] and is_said)
            counts["wrong"] += int(is_said and not right[best])
        else:
            counts["others"] += 1
            counts["others_said"] += int(is_said)
    answerable = max(counts["answerable"], 1)
    shares = [counts[name] / answerable for name in ("first", "right", "wrong")]
    return (
        f"of {answerable} answerable first right {shares[0]:.4f}; {shares[1]:.3f} right {shares[2]:.3f} wrong; "
        f"{counts['others_said'] / max(counts['others'], 1):.3f} of {counts['others']} others said"
    )


def read_left_out(out: Path) -> int:
    """The fold whose documents the network has not seen."""
    with safe_open(out / "trained.safetensors", "pt") as file:
        return int(file.metadata()["left_out"])


def score(arguments: argparse.Namespace) -> None:
    reading = Reading(Path(arguments.data))
    model = load_reader(Path(arguments.start), Path(arguments.out)).to(arguments.device)
    questions = np.flatnonzero(reading.folds == read_left_out(Path(arguments.out)))
    if arguments.questions:
        questions = np.random.default_rng(1).permutation(questions)[: arguments.questions]
    logits: dict[int, NDArray[np.float32]] = {}
    for question, own in score_questions(model, reading, questions.tolist(), arguments.most):
        logits[question] = own
        if len(logits) % 1_000 == 0:
            print(f"{len(logits):,} of {len(questions):,}: {report(reading, logits)}", flush=True)
    print(report(reading, logits))
    values: dict[str, Any] = {
        "questions": np.array(list(logits)),
        "sizes": np.array([len(own) for own in logits.values()]),
        "logits": np.concatenate(list(logits.values())),
    }
    np.savez_compressed(Path(arguments.out) / "left-out.npz", **values)


# -- asset ------------------------------------------------------------------------------------------------------------


def write(arguments: argparse.Namespace) -> None:
    """Writes the folder that `peg_rag.answering.reading` loads, with matrices in eight bits."""
    start = Path(arguments.start)
    folder = Path(arguments.folder)
    model = load_reader(start, Path(arguments.out))
    config = model.bert.config
    folder.mkdir(parents=True, exist_ok=True)
    save_numpy(quantize_weights(name_weights(model)), folder / "model.safetensors", metadata={"format": "np"})
    shape = {"format": 2, "layers": config.num_hidden_layers, "heads": config.num_attention_heads}
    (folder / "config.json").write_text(json.dumps(shape, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(start / "tokenizer.json", folder / "tokenizer.json")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def name_weights(model: Reader) -> dict[str, NDArray[np.float32]]:
    """The weights by the names that reading knows them by; all tokens are of one type, which the positions take in."""
    state = {name: weight.float().numpy() for name, weight in model.state_dict().items()}
    embeddings = "bert.embeddings"
    weights = {
        "words.weight": state[f"{embeddings}.word_embeddings.weight"],
        "positions.weight": state[f"{embeddings}.position_embeddings.weight"][:POSITIONS]
        + state[f"{embeddings}.token_type_embeddings.weight"][0],
    }
    layers = model.bert.config.num_hidden_layers
    for number in range(layers):
        for part in ("weight", "bias"):
            layer = f"bert.encoder.layer.{number}.attention.self"
            projections = [state[f"{layer}.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"layers.{number}.qkv.{part}"] = np.concatenate(projections)
    for name, source in _name_parts(layers).items():
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] = state[f"{source}.{part}"]
    return weights


def _name_parts(layers: int) -> dict[str, str]:
    """The network's name of each part that is stored as it is, by the name that reading knows it by."""
    names = {"norm": "bert.embeddings.LayerNorm", "pooler": "pooler", "score": "score"}
    for number in range(layers):
        layer = f"bert.encoder.layer.{number}"
        names |= {
            f"layers.{number}.attended": f"{layer}.attention.output.dense",
            f"layers.{number}.attention_norm": f"{layer}.attention.output.LayerNorm",
            f"layers.{number}.up": f"{layer}.intermediate.dense",
            f"layers.{number}.down": f"{layer}.output.dense",
            f"layers.{number}.norm": f"{layer}.output.LayerNorm",
        }
    return names


def average(arguments: argparse.Namespace) -> None:
    """Writes the mean of the weights of several runs that left out the same documents."""
    runs = [Path(run) for run in arguments.runs]
    left_out = {read_left_out(run) for run in runs}
    if len(left_out) != 1:
        raise SystemExit(f"--runs: they left out folds {sorted(left_out)}; expected runs that left out the same")
    trained = [load_reader(Path(arguments.start), run).trained_weights() for run in runs]
    mean = {name: torch.stack([weights[name] for weights in trained]).mean(dim=0) for name in trained[0]}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(mean, out / "trained.safetensors", metadata={"left_out": str(left_out.pop())})


def unpack(arguments: argparse.Namespace) -> None:
    """Makes of the asset what `fit` starts from: the network's folder, and the weights of a pass that was trained."""
    folder = Path(arguments.folder)
    start = Path(arguments.start)
    out = Path(arguments.out)
    for path in (start, out):
        path.mkdir(parents=True, exist_ok=True)
    packed = load_numpy(folder / "model.safetensors")
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pieces, width = packed["words.weight"].shape
    config = BertConfig(
        vocab_size=pieces,
        hidden_size=width,
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=packed["layers.0.up.weight"].shape[0],
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
        pad_token_id=PAD,
    )
    config.save_pretrained(start)
    weights = rename_weights(dequantize_weights(packed), shape["layers"])
    body = {name.removeprefix("bert."): weight for name, weight in weights.items() if name.startswith("bert.")}
    save_numpy(body, start / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(folder / "tokenizer.json", start / "tokenizer.json")
    trained = Reader(start).trained_weights()
    save_numpy({name: weights[name] for name in trained}, out / "trained.safetensors", metadata={"left_out": "0"})


def dequantize_weights(packed: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The inverse of `quantize_weights`, but for what rounding took."""
    weights = {}
    for name, weight in packed.items():
        if name.endswith(".scale"):
            continue
        scale = packed.get(f"{name.removesuffix('.weight')}.scale")
        weights[name] = weight.astype(np.float32) if scale is None else weight.astype(np.float32) * scale[:, None]
    return weights


def rename_weights(weights: dict[str, NDArray[np.float32]], layers: int) -> dict[str, NDArray[np.float32]]:
    """The inverse of `name_weights`."""
    embeddings = "bert.embeddings"
    positions = weights["positions.weight"]
    state = {
        f"{embeddings}.word_embeddings.weight": weights["words.weight"],
        f"{embeddings}.position_embeddings.weight": positions,
        f"{embeddings}.token_type_embeddings.weight": np.zeros((1, positions.shape[1]), dtype=np.float32),
    }
    for number in range(layers):
        for part in ("weight", "bias"):
            projections = np.split(weights[f"layers.{number}.qkv.{part}"], 3)
            for name, projection in zip(("query", "key", "value"), projections, strict=True):
                projection = np.ascontiguousarray(projection)
                state[f"bert.encoder.layer.{number}.attention.self.{name}.{part}"] = projection
    for name, source in _name_parts(layers).items():
        for part in ("weight", "bias"):
            state[f"{source}.{part}"] = weights[f"{name}.{part}"]
    return state


def quantize_weights(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Matrices as int8 with a scale for each row, but for the positions, which are few; the rest as it is."""
    out: dict[str, NDArray[Any]] = {}
    for name, weight in weights.items():
        if weight.ndim == 1 or name == "positions.weight":
            out[name] = weight
            continue
        scale = np.abs(weight).max(axis=1) / 127 + np.float32(1e-12)
        out[name] = np.rint(weight / scale[:, None]).astype(np.int8)
        out[f"{name.removesuffix('.weight')}.scale"] = scale
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["fit", "average", "score", "write", "unpack"])
    parser.add_argument("--data", help="what `train/answer_scorer.py --pack` wrote; for `fit` and `score`")
    parser.add_argument("--start", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--begin", help="for `fit`: the folder of an earlier pass, whose weights this one begins with")
    parser.add_argument("--runs", nargs="+", default=[], help="for `average`: the folders of several passes")
    parser.add_argument("--rate", type=float, default=RATE, help="for `fit`: the highest learning rate")
    parser.add_argument("--dropout", type=float, default=DROPOUT, help="for `fit`")
    parser.add_argument("--left-out", type=int, default=0, help="for `fit`: fold of the documents that are left out")
    parser.add_argument("--questions", type=int, help="at most, of a pass; default all")
    parser.add_argument("--passes", type=int, default=1, help="for `fit`: through the questions")
    parser.add_argument("--most", type=int, default=12, help="rows of a question that are scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", default=ASSET, help="the asset, which `write` makes and `unpack` takes")
    arguments = parser.parse_args()
    commands = {"fit": fit, "average": average, "score": score, "write": write, "unpack": unpack}
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
