"""The reader: a small transformer that reads a question beside a statement in its context, and says whether it answers.

Why this exists: features compare words, and 修好没 shares none with `状态: 待配件`. A cross-encoder sees the question,
the statement and what stands around it together (Nogueira and Cho, arXiv 1901.04085). It is too slow for every
statement, so it reads the few that the scorer puts first. `train/reader.py` fine-tunes it; what it gains, and where it
gains nothing, is in `train/LOG.md`.

It starts from multilingual-e5-small (Wang et al., arXiv 2402.05672), which knows more Chinese than the documents
written for training could teach it. It runs on NumPy, without padding, so that answers with the bundled model need no
torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from peg_rag.answering.cells import longest_run
from peg_rag.answering.passages import Passage, start_of_body
from peg_rag.answering.question import Question
from peg_rag.answering.statements import Cell, Statement
from peg_rag.answering.words import fold_text
from peg_rag.errors import DamagedModel
from peg_rag.models import bundled_path

READER = "reader-mini"
QUESTION_TOKENS = 40
STATEMENT_TOKENS = 112
CONTEXT_TOKENS = 96
PAIR_TOKENS = 160  # of a statement with its context, which a long statement leaves less for
START = 0  # <s>
END = 2  # </s>
_BEFORE = 60  # characters of the passage before a sentence that are read with it
_AFTER = 40
_HEADINGS = 60  # characters of the file's name and headings
_ROW = 120  # characters of a cell's row that are read with it
_DEFINED = 60  # characters of definitions that are read with a statement
_SEPARATOR = " | "
_VALUE = 60  # characters of a value that are compared with the question
_SHORTEST_RUN = 2  # characters that a value shares with the question, for its cell to be read before others
_SHORTEST_REPEATED = 3  # characters of a heading that is left out where a later one contains it
_TYPED = 40  # characters of a question that are read before its file's terms
_QUESTION_MARKS = "?？ "
_EPSILON = 1e-12  # of the layer norms
_CACHED_ROWS = 64  # whose inner states, 400 KB, stay in a core's cache
_FORMAT = 2  # of the folder
_LAYER_PARTS = ("qkv", "attended", "attention_norm", "up", "down", "norm")
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ContextualStatement:
    """What is read of a statement: the question as its file would put it, its own text, and the text it stands in."""

    question: str
    statement: str
    context: str


def context_tokens(statement_tokens: int) -> int:
    """How much is read of the context of a statement of so many tokens."""
    return min(CONTEXT_TOKENS, PAIR_TOKENS - statement_tokens)


def describe_statement(question: Question, passage: Passage, statement: Statement) -> ContextualStatement:
    """A cell with its column, in its row; a sentence or list between its neighbours; both under their headings, with
    what the file defines of the names in it."""
    headings = _write_headings(passage, statement.heading)
    if statement.cell is not None:
        others = [cell for cell in (*statement.row, *passage.form) if cell != statement.cell]
        row = _SEPARATOR.join(_write_cell(cell)[:_ROW] for cell in _choose_cells(question, others))
        cell = _write_cell(statement.cell)
        meanings = _write_meanings(question, passage, [cell, row], f"{cell}{row}")
        return ContextualStatement(_write_question(question), cell, f"{headings}{meanings} | {row}")
    text = passage.hit.text
    start, end = statement.span
    before = text[max(start_of_body(passage.hit), start - _BEFORE) : start].strip()
    after = text[end : end + _AFTER].strip()
    meanings = _write_meanings(question, passage, [statement.text], f"{before}{statement.text}{after}")
    return ContextualStatement(_write_question(question), statement.text, f"{headings}{meanings} | {before} … {after}")


def _write_question(question: Question) -> str:
    """The question as it was typed, with the terms that the file has for what it says."""
    if not question.terms:
        return question.typed
    return f"{question.typed.rstrip(_QUESTION_MARKS)[:_TYPED]}（{'、'.join(question.terms)}）"


def _write_meanings(question: Question, passage: Passage, texts: Sequence[str], known: str) -> str:
    """What the file defines of the names in some texts, but for what is read anyway: at most `_DEFINED` characters,
    first what shares words with the question, then what is said of the first text."""
    found = [
        (name, meaning) for text in texts for name, meaning in passage.meanings if name in text and meaning not in known
    ]
    runs = {pair: longest_run(_fold_short(pair[1]), question.text) for pair in found}
    written = []
    rest = _DEFINED
    for name, meaning in sorted(runs, key=lambda pair: -(runs[pair] if runs[pair] >= _SHORTEST_RUN else 0)):
        if len(name) + len(meaning) <= rest:
            written.append(f"{_SEPARATOR}{name}: {meaning}")
            rest -= len(name) + len(meaning)
    return "".join(written)


def _write_headings(passage: Passage, heading: str) -> str:
    """The file's name, sheet and headings, without those that a later one contains: the last `_HEADINGS` characters."""
    names = [*passage.names, heading.strip()]
    folded = [_fold_short(name) for name in names]
    kept = [
        name
        for number, name in enumerate(names)
        if folded[number] and not any(_is_repeated(folded[number], other) for other in folded[number + 1 :])
    ]
    return " > ".join(kept)[-_HEADINGS:]


def _is_repeated(name: str, other: str) -> bool:
    return name == other or (len(name) >= _SHORTEST_REPEATED and name in other)


def _choose_cells(question: Question, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a row that go into `_ROW` characters, in their order; those that share most with the question are
    taken first, then those that stand first."""
    runs = [longest_run(_fold_short(cell.value), question.text) for cell in cells]
    shared = [run if run >= _SHORTEST_RUN else 0 for run in runs]
    numbers = []
    rest = _ROW
    for number in sorted(range(len(cells)), key=lambda number: -shared[number]):
        length = min(len(_write_cell(cells[number])), _ROW)
        if length <= rest:
            numbers.append(number)
            rest -= length + len(_SEPARATOR)
    return [cells[number] for number in sorted(numbers)]


@lru_cache(maxsize=4096)
def _fold_short(text: str) -> str:
    """A name or value as it is compared, kept since the statements of a passage share them."""
    return fold_text(text[: 2 * _VALUE])[:_VALUE]


def _write_cell(cell: Cell) -> str:
    return f"{cell.name}: {cell.value}" if cell.name else cell.value


def _join_tokens(question: list[int], statement: list[int], context: list[int]) -> NDArray[np.int64]:
    read_of_context = context[: context_tokens(len(statement))]
    return np.array([START, *question[:QUESTION_TOKENS], END, *statement, END, *read_of_context, END])


class StatementReader:
    """The network: BERT with its weights in eight bits, and a score of the first token's state.

    Args:
        folder: `model.safetensors`, `config.json` and `tokenizer.json`, written by `train/reader.py write`.

    Raises:
        DamagedModel: a file is missing or does not fit the others.
    """

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._layers = int(config["layers"])
            self._heads = int(config["heads"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            weights = load_file(folder / "model.safetensors")
            _check_weights(weights, config, self._tokenizer.get_vocab_size())
        except Exception as error:  # tokenizers raises `Exception` itself
            raise DamagedModel(f"{folder}: {error}; install peg-rag again") from error
        self._words = weights.pop("words.weight")  # int8; only the rows of a question's tokens are dequantized
        self._word_scales = weights.pop("words.scale")
        self._weights = {
            name: np.ascontiguousarray(_dequantize_weight(name, weights))
            for name in weights
            if not name.endswith(".scale")
        }
        self._tokenizer.no_padding()

    def read(self, statements: Sequence[ContextualStatement]) -> NDArray[np.float64]:
        """(statements,) Log odds that each answers its question, against "nothing answers"."""
        if not statements:
            return np.zeros(0)
        rows = self._encode(statements)
        lengths = np.array([len(row) for row in rows])
        return self._score(np.concatenate(rows), lengths).astype(np.float64)

    def _encode(self, statements: Sequence[ContextualStatement]) -> list[NDArray[np.int64]]:
        """Token ids: <s> question </s> statement </s> context </s>."""
        texts = [text for s in statements for text in (s.question, s.statement, s.context)]
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        rows = zip(tokens[::3], tokens[1::3], tokens[2::3], strict=True)
        return [_join_tokens(question, statement[:STATEMENT_TOKENS], context) for question, statement, context in rows]

    def _score(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Matrix:
        """Scores (rows,) of rows whose tokens (tokens,) lie one after the other; `lengths` counts those of each row."""
        weights = self._weights
        ends = np.cumsum(lengths)
        starts = ends - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        words = self._words[ids].astype(np.float32) * self._word_scales[ids][:, None]
        hidden = self._normalize(words + weights["positions.weight"][positions], "norm")  # (tokens, width)
        for layer in range(self._layers):
            hidden = self._apply_layer(hidden, starts, ends, f"layers.{layer}", is_last=layer == self._layers - 1)
        pooled = np.tanh(hidden @ weights["pooler.weight"] + weights["pooler.bias"])  # (rows, width)
        scores: Matrix = (pooled @ weights["score.weight"] + weights["score.bias"])[:, 0]
        return scores

    def _apply_layer(
        self, hidden: Matrix, starts: NDArray[np.int64], ends: NDArray[np.int64], name: str, *, is_last: bool
    ) -> Matrix:
        """(tokens, width) → (tokens, width); the last layer computes the first tokens alone, (rows, width)."""
        weights = self._weights
        projected = hidden @ weights[f"{name}.qkv.weight"] + weights[f"{name}.qkv.bias"]  # (tokens, 3 · width)
        rows = [_attend(projected[start:end], self._heads, is_last) for start, end in zip(starts, ends, strict=True)]
        attended = np.concatenate(rows) @ weights[f"{name}.attended.weight"] + weights[f"{name}.attended.bias"]
        attended += hidden[starts] if is_last else hidden
        hidden = self._normalize(attended, f"{name}.attention_norm")
        inner: Matrix = hidden @ weights[f"{name}.up.weight"]
        inner += weights[f"{name}.up.bias"]
        _apply_gelu(inner)
        out: Matrix = inner @ weights[f"{name}.down.weight"] + weights[f"{name}.down.bias"]
        out += hidden
        return self._normalize(out, f"{name}.norm")

    def _normalize(self, rows: Matrix, name: str) -> Matrix:
        centred: Matrix = rows - rows.mean(axis=1, keepdims=True)
        scale: Matrix = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + np.float32(_EPSILON))
        centred /= scale
        centred *= self._weights[f"{name}.weight"]
        centred += self._weights[f"{name}.bias"]
        return centred


def _check_weights(weights: dict[str, NDArray[Any]], config: dict[str, Any], pieces: int) -> None:
    """
    Raises:
        ValueError: the files do not fit one another.
    """
    if config["format"] != _FORMAT:
        raise ValueError(f"format {config['format']}, expected {_FORMAT}")
    parts = [f"layers.{number}.{part}" for number in range(config["layers"]) for part in _LAYER_PARTS]
    expected = {f"{part}.{kind}" for part in ("norm", "pooler", "score", *parts) for kind in ("weight", "bias")}
    expected |= {"words.weight", "words.scale", "positions.weight"}
    if missing := sorted(expected - weights.keys()):
        raise ValueError(f"no weights {missing[0]}")
    rows, width = weights["words.weight"].shape
    if rows != pieces or width % config["heads"]:
        raise ValueError(f"{rows} vectors of {width} for {pieces} pieces and {config['heads']} heads")


def _dequantize_weight(name: str, weights: dict[str, NDArray[Any]]) -> Matrix:
    """A weight in float32; a matrix is kept as int8 (out, in) with a scale for each output, and turned to (in, out)."""
    weight = weights[name]
    scale = weights.get(f"{name.removesuffix('.weight')}.scale")
    if scale is None:
        return weight.astype(np.float32)
    turned: Matrix = (weight.astype(np.float32) * scale.astype(np.float32)[:, None]).T
    return turned


def _attend(projected: Matrix, heads: int, is_last: bool) -> Matrix:
    """Self-attention of one row, (tokens, 3 · width) → (tokens, width); (1, width) of the first token alone."""
    tokens, columns = projected.shape
    width = columns // 3 // heads
    split = projected.reshape(tokens, 3, heads, width)
    queries, keys, values = (split[:, part].transpose(1, 0, 2) for part in range(3))  # (heads, tokens, width)
    if is_last:
        queries = queries[:, :1]
    scores: Matrix = queries @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(width))
    scores -= scores.max(axis=2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=2, keepdims=True)
    attended: Matrix = (scores @ values).transpose(1, 0, 2).reshape(queries.shape[1], -1)
    return attended


def _apply_gelu(rows: Matrix) -> None:
    """GELU in place, by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415), a few rows at a time so that
    they stay in the cache."""
    for start in range(0, len(rows), _CACHED_ROWS):
        block = rows[start : start + _CACHED_ROWS]
        inner = block * block
        inner *= np.float32(0.7978845608 * 0.044715)
        inner += np.float32(0.7978845608)
        inner *= block
        np.tanh(inner, out=inner)
        inner += 1
        block *= inner
        block *= np.float32(0.5)


@cache
def load_reader() -> StatementReader:
    """The reader that comes with the package."""
    return StatementReader(bundled_path(READER))
