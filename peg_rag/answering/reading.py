"""The reader: a small transformer that reads a question beside a statement in its context, and says whether it answers.

Why this exists: features compare words, and 修好没 shares none with `状态: 待配件`. A cross-encoder sees the question,
the statement and what stands around it together (Nogueira and Cho, arXiv 1901.04085). It is too slow for every
statement, so it reads the few that the scorer puts first. `train/gpu/reader.py` trains it; what it gains, and where it
gains nothing, is in `train/LOG.md`.

It runs on NumPy, without padding, so that answers with the bundled model need no torch. Twelve short statements take 35
to 40 ms on two cores, and some 160 ms where they and their rows are long.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from peg_rag.answering.passages import Passage
from peg_rag.answering.statements import Statement
from peg_rag.errors import DamagedModel
from peg_rag.models import bundled_path

READER = "reader-mini"
QUESTION_TOKENS = 40
STATEMENT_TOKENS = 80
CONTEXT_TOKENS = 128
_BEFORE = 60  # characters of the passage before a sentence that are read with it
_AFTER = 40
_HEADINGS = 80  # characters of the file's name and headings
_HEAD_WIDTH = 64
_CLS = 2
_SEP = 3
_EPSILON = 1e-6  # of the layer norms
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ContextualStatement:
    """What is read of a statement: its own text, and the text that it stands in."""

    statement: str
    context: str


def describe_statement(passage: Passage, statement: Statement) -> ContextualStatement:
    """A cell with its column, in its row; a sentence or list between its neighbours; both under their headings."""
    headings = " ".join([passage.context.replace("\n", " ")[-_HEADINGS:], statement.heading]).strip()
    if statement.cell is not None:
        others = [cell for cell in (*statement.row, *passage.form) if cell != statement.cell]
        row = " | ".join(_write_cell(cell.name, cell.value) for cell in others)
        return ContextualStatement(_write_cell(statement.cell.name, statement.cell.value), f"{headings} | {row}")
    text = passage.hit.text
    start, end = statement.span
    before = text[max(0, start - _BEFORE) : start]
    after = text[end : end + _AFTER]
    return ContextualStatement(statement.text, f"{headings} | {before} … {after}")


def _write_cell(name: str, value: str) -> str:
    return f"{name}: {value}" if name else value


class StatementReader:
    """The network: pre-norm transformer layers over a convolution, and a score of the first token's state.

    Args:
        folder: `model.safetensors`, `config.json` and `tokenizer.json`, written by `train/gpu/unpack_reader.py`.

    Raises:
        DamagedModel: a file is missing or does not fit the others.
    """

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._layers = int(config["layers"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            weights = load_file(folder / "model.safetensors")
            self._weights = {
                name: np.ascontiguousarray(weight if "embed" in name else weight.T, dtype=np.float32)
                for name, weight in weights.items()
            }
        except Exception as error:  # tokenizers raises `Exception` itself
            raise DamagedModel(f"{folder}: {error}; install peg-rag again") from error
        self._tokenizer.no_padding()

    def read(self, question: str, statements: Sequence[ContextualStatement]) -> NDArray[np.float64]:
        """(statements,) Log odds that each answers, against "nothing answers"."""
        if not statements:
            return np.zeros(0)
        rows = self._encode(question, statements)
        lengths = np.array([len(ids) for ids, _ in rows])
        ids = np.concatenate([ids for ids, _ in rows])
        types = np.concatenate([types for _, types in rows])
        return self._score(ids, types, lengths).astype(np.float64)

    def _encode(
        self, question: str, statements: Sequence[ContextualStatement]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Token ids and their types: [CLS] question [SEP] statement [SEP] context [SEP]."""
        texts = [question, *(s.statement for s in statements), *(s.context for s in statements)]
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        count = len(statements)
        question_ids = [_CLS, *tokens[0][:QUESTION_TOKENS], _SEP]
        rows = []
        for statement, context in zip(tokens[1 : 1 + count], tokens[1 + count :], strict=True):
            statement_ids = [*statement[:STATEMENT_TOKENS], _SEP]
            context_ids = [*context[:CONTEXT_TOKENS], _SEP]
            types = [0] * len(question_ids) + [1] * len(statement_ids) + [0] * len(context_ids)
            rows.append((np.array([*question_ids, *statement_ids, *context_ids]), np.array(types)))
        return rows

    def _score(self, ids: NDArray[np.int64], types: NDArray[np.int64], lengths: NDArray[np.int64]) -> Matrix:
        """Scores (rows,) of rows whose tokens (tokens,) lie one after the other; `lengths` counts those of each row."""
        weights = self._weights
        ends = np.cumsum(lengths)
        starts = ends - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        hidden = weights["embed.words"][ids] + weights["embed.positions"][positions] + weights["embed.types"][types]
        hidden = self._normalize(hidden, "embed.norm")  # (tokens, width)
        hidden += _apply_gelu(self._mix_neighbours(hidden, positions, np.repeat(lengths, lengths)))
        for layer in range(self._layers):
            hidden = self._apply_layer(hidden, starts, ends, f"layers.{layer}", is_last=layer == self._layers - 1)
        hidden = self._normalize(hidden, "last_norm")  # (rows, width)
        pooled = np.tanh(hidden @ weights["pooler.weight"] + weights["pooler.bias"])  # (rows, width)
        scores: Matrix = (pooled @ weights["score.weight"] + weights["score.bias"])[:, 0]
        return scores

    def _mix_neighbours(self, hidden: Matrix, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> Matrix:
        """A convolution over each token and its two neighbours in the row, (tokens, width)."""
        before, here, after = self._weights["neighbours.weight"]  # each (width, width)
        earlier = np.where(positions[:, None] > 0, np.roll(hidden, 1, axis=0), np.float32(0))
        later = np.where((positions < lengths - 1)[:, None], np.roll(hidden, -1, axis=0), np.float32(0))
        mixed: Matrix = earlier @ before + hidden @ here + later @ after + self._weights["neighbours.bias"]
        return mixed

    def _apply_layer(
        self, hidden: Matrix, starts: NDArray[np.int64], ends: NDArray[np.int64], name: str, *, is_last: bool
    ) -> Matrix:
        """(tokens, width) → (tokens, width); the last layer computes the first tokens alone, (rows, width)."""
        weights = self._weights
        normed = self._normalize(hidden, f"{name}.attention_norm")
        projected = normed @ weights[f"{name}.qkv.weight"] + weights[f"{name}.qkv.bias"]  # (tokens, 3 · width)
        rows = [_attend(projected[start:end], is_last) for start, end in zip(starts, ends, strict=True)]
        attended = np.concatenate(rows) @ weights[f"{name}.attended.weight"] + weights[f"{name}.attended.bias"]
        hidden = (hidden[starts] if is_last else hidden) + attended
        normed = self._normalize(hidden, f"{name}.inner_norm")
        inner = _apply_gelu(normed @ weights[f"{name}.up.weight"] + weights[f"{name}.up.bias"])
        out: Matrix = hidden + inner @ weights[f"{name}.down.weight"] + weights[f"{name}.down.bias"]
        return out

    def _normalize(self, rows: Matrix, name: str) -> Matrix:
        centred = rows - rows.mean(axis=1, keepdims=True)
        scale: Matrix = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + np.float32(_EPSILON))
        normed: Matrix = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed


def _attend(projected: Matrix, is_last: bool) -> Matrix:
    """Self-attention of one row, (tokens, 3 · width) → (tokens, width); (1, width) of the first token alone."""
    tokens = len(projected)
    split = projected.reshape(tokens, 3, -1, _HEAD_WIDTH)
    queries, keys, values = (split[:, part].transpose(1, 0, 2) for part in range(3))  # (heads, tokens, _HEAD_WIDTH)
    if is_last:
        queries = queries[:, :1]
    scores: Matrix = queries @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(_HEAD_WIDTH))
    scores -= scores.max(axis=2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=2, keepdims=True)
    attended: Matrix = (scores @ values).transpose(1, 0, 2).reshape(queries.shape[1], -1)
    return attended


def _apply_gelu(rows: Matrix) -> Matrix:
    """GELU by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    inner = np.float32(0.7978845608) * (rows + np.float32(0.044715) * rows * rows * rows)
    np.tanh(inner, out=inner)
    inner += 1
    inner *= rows
    inner *= np.float32(0.5)
    return inner


@cache
def load_reader() -> StatementReader:
    """The reader that comes with the package."""
    return StatementReader(bundled_path(READER))
