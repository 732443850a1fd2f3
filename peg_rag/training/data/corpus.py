"""Plain texts to pre-train on: files in, batches of token ids and of what is hidden from the model out.

There is more text than there are questions. A source is a text file, one text a line, or a file of pairs whose
positives are taken. Texts are cleaned, tokenised and cached as pairs are, and repeated ones count once. Which tokens
are hidden is a function of the seed, the step and the text alone: neither ranks nor chunks nor a resumed run change it.
Costs the first time about a CPU second for 4,000 texts of 400 characters, then microseconds a text.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from peg_rag.errors import RecipeError
from peg_rag.extras import require
from peg_rag.files import open_atomically, write_atomically
from peg_rag.training.data.batches import drop_remainder, sort_by_source
from peg_rag.training.data.files import file_digest, is_text_file, read_lines, read_rows, source_files
from peg_rag.training.data.pairs import ReadReport, check_report, split_blocks
from peg_rag.training.data.sampler import PlannedBatch, mix
from peg_rag.training.data.soft_augmentation import mask_token, special_tokens
from peg_rag.training.data.texts import clean_text, text_key
from peg_rag.training.data.tokens import Ints, TokenRows, digest, token_rows_of
from peg_rag.training.extension import BatchSampler
from peg_rag.training.recipe import SourceOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WRITE_ROWS = 2_000
WORD_BITS = 31  # of the random words that decide what the decoder sees
_SALT = 31


@dataclass(frozen=True)
class TextFile:
    """One source of texts, ready for training.

    Attributes:
        name: the file's name without its suffixes.
        rows: a `datasets.Dataset` of text, key and token ids.
        usable: the rows in use, one of each text, (n,) int64.
        keys: of all rows, int64; see `text_key`.
        weight: the recipe's factor for this source.
        report: what was wrong with the file.
    """

    name: str
    rows: Any
    usable: Ints
    keys: Ints
    weight: float
    report: ReadReport

    @property
    def query_keys(self) -> Ints:
        """The keys, by the name that sampling and the validation split know."""
        return self.keys

    @property
    def positive_keys(self) -> Ints:
        """The keys, by the name that sampling and the validation split know."""
        return self.keys


@dataclass(frozen=True)
class TextBatch:
    """One rank's share of a batch: b texts, `total` tokens in all.

    Attributes:
        step: from 0.
        rows: where the texts come from.
        texts: their token ids, special tokens included.
        ordinary: (total,) bool, tokens that are not special: the model can be asked for them.
        masked: (total,) bool, tokens that the encoder does not see.
        words: (total, 2) int64 below 2**31. The decoder, where it tells token i, sees token j if
            `words[i, 0]` and `words[j, 1]` say so.
    """

    step: int
    rows: PlannedBatch
    texts: TokenRows
    ordinary: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    words: Ints

    def __len__(self) -> int:
        return len(self.texts)


def load_texts(
    sources: Sequence[SourceOptions],
    tokenizer: "Tokenizer",
    cache: Path,
    *,
    prompt: str = "",
    maximum_bad_share: float = 0.01,
    path: str = "sources",
) -> list[TextFile]:
    """Read, clean and tokenise every file of the sources, or find it in the cache.

    Args:
        tokenizer: set to truncate and not to pad.
        prompt: put before each text when it is tokenised.
        maximum_bad_share: a file of pairs with more bad rows than this stops the run.
        path: where the sources stand in the recipe, for messages.

    Raises:
        DataError: a file is missing, empty, has no such column or too many bad rows.
    """
    files = []
    for i, source in enumerate(sources):
        for file in source_files(source, f"{path}[{i}].path"):
            rows, report = _load_rows(file, source, tokenizer, cache, prompt)
            check_report(report, maximum_bad_share, f"{path}[{i}]")
            keys = rows.select_columns(["key"]).with_format("numpy")[:]["key"].astype(np.int64)
            _, first = np.unique(keys, return_index=True)
            usable = np.sort(first)
            report.repeated = len(keys) - len(usable)
            files.append(TextFile(file.name.split(".")[0], rows, usable, keys, source.weight, report))
    return files


def _load_rows(
    file: Path, source: SourceOptions, tokenizer: "Tokenizer", cache: Path, prompt: str
) -> tuple[Any, ReadReport]:
    column = source.columns.positive
    key = digest("texts", file_digest(file), column, prompt, tokenizer.to_str())
    arrow = cache / f"texts-{key}.arrow"
    record = cache / f"texts-{key}.json"
    if not (arrow.is_file() and record.is_file()):
        report = ReadReport(file.name)
        _write_rows(arrow, _read_texts(file, column, report), tokenizer, prompt)
        write_atomically(record, json.dumps(vars(report), ensure_ascii=False).encode())
    report = ReadReport(**json.loads(record.read_text(encoding="utf-8")))
    return require("datasets", "train").Dataset.from_file(str(arrow)), report


def _read_texts(file: Path, column: str, report: ReadReport) -> Iterator[str]:
    """The clean texts of a file that are not blank; what cannot be used is noted in the report."""
    if is_text_file(file):
        for text in read_lines(file):
            report.rows += 1
            yield text
        return
    for line, row in read_rows(file):
        if isinstance(row, str):
            report.note(line, row)
            continue
        value = row.get(column)
        text = clean_text(value) if isinstance(value, str) else ""
        if not text:
            report.note(line, f"{column} holds no text")
            continue
        report.rows += 1
        yield text


def _write_rows(arrow: Path, texts: Iterator[str], tokenizer: "Tokenizer", prompt: str) -> None:
    pa = require("pyarrow", "train")
    schema = pa.schema({"text": pa.string(), "key": pa.int64(), "ids": pa.list_(pa.int32())})
    with open_atomically(arrow) as file, pa.ipc.new_stream(file, schema) as writer:
        for block in split_blocks(texts, WRITE_ROWS):
            encodings = tokenizer.encode_batch_fast([prompt + text for text in block], add_special_tokens=True)
            columns = {
                "text": block,
                "key": [text_key(text) for text in block],
                "ids": [encoding.ids for encoding in encodings],
            }
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))


class TextReader:
    """Reads rows of texts, and says which of their tokens are hidden.

    Args:
        files, rows: `rows[i]` are the rows of `files[i]` that source i of a `PlannedBatch` stands for.
        tokenizer: whose special tokens are never hidden.
        masked: share of a text's tokens that the encoder does not see; one at least.
        seed: of the choice.
    """

    def __init__(
        self, files: Sequence[TextFile], rows: Sequence[Ints], tokenizer: "Tokenizer", *, masked: float, seed: int
    ) -> None:
        self._files = files
        self._rows = rows
        self._special = special_tokens(tokenizer)
        self._masked = masked
        self._seed = seed

    def read(self, planned: PlannedBatch, step: int) -> TextBatch:
        """Rows in the order of their sources as a batch, with what is hidden at this step."""
        parts = self._group_by_file(planned)
        tables = [file.rows.select_columns(["ids"]).with_format("arrow")[rows] for file, rows in parts]
        texts = TokenRows.joined([token_rows_of(table.column("ids").combine_chunks()) for table in tables])
        keys = np.concatenate([file.keys[rows] for file, rows in parts])
        ordinary = ~np.isin(texts.tokens, self._special)
        draws = [draw_words(texts, keys, self._seed, step, draw) for draw in range(3)]
        masked = choose_masked(texts, ordinary, draws[0], self._masked)
        words = np.stack(draws[1:], axis=1) >> np.uint64(64 - WORD_BITS)
        return TextBatch(step, planned, texts, ordinary, masked, words.astype(np.int64))

    def read_all(self, step: int) -> TextBatch:
        """All rows as one batch."""
        counts = [len(rows) for rows in self._rows]
        places = np.concatenate([np.arange(count) for count in counts])
        return self.read(PlannedBatch(np.repeat(np.arange(len(counts)), counts), places), step)

    def texts(self, batch: TextBatch) -> list[dict[str, Any]]:
        """The rows of a batch as text, with where they come from."""
        rows = []
        for file, numbers in self._group_by_file(batch.rows):
            texts = file.rows.select_columns(["text"])[numbers]["text"]
            rows += [{"file": file.name, "row": n, "text": t} for n, t in zip(numbers.tolist(), texts, strict=True)]
        return rows

    def _group_by_file(self, planned: PlannedBatch) -> list[tuple[TextFile, Ints]]:
        """Rows of the files, file by file: a batch is kept in this order."""
        return [
            (self._files[source], self._rows[source][planned.rows[planned.sources == source]])
            for source in np.unique(planned.sources)
        ]


class TextBatches(torch.utils.data.Dataset[TextBatch]):
    """Item `step` is this rank's share of batch `step`.

    Args:
        reader: of the rows.
        sampler: which rows make up a batch.
        steps: batches there are.
    """

    def __init__(self, reader: TextReader, sampler: BatchSampler, *, steps: int, rank: int, world: int) -> None:
        self._reader = reader
        self._sampler = sampler
        self._steps = steps
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> TextBatch:
        planned = sort_by_source(drop_remainder(self._sampler.batch(step), self._world))
        return self._reader.read(planned.shard(self._rank, self._world), step)

    def texts(self, batch: TextBatch) -> list[dict[str, Any]]:
        """The rows of a batch as text, with where they come from."""
        return self._reader.texts(batch)


def draw_words(texts: TokenRows, keys: Ints, seed: int, step: int, draw: int) -> NDArray[np.uint64]:
    """A random word for each token, by its text and its place in it, (total,)."""
    places = np.arange(len(texts.tokens)) - np.repeat(texts.offsets[:-1], texts.lengths)
    of_texts = mix(keys.view(np.uint64), seed, _SALT, step, draw)
    return mix(np.repeat(of_texts, texts.lengths) + places.astype(np.uint64), _SALT)


def choose_masked(
    texts: TokenRows, ordinary: NDArray[np.bool_], words: NDArray[np.uint64], share: float
) -> NDArray[np.bool_]:
    """This share of each text's ordinary tokens, those with the least words; one at least, (total,) bool."""
    numbers = np.repeat(np.arange(len(texts)), texts.lengths)
    counts = np.bincount(numbers[ordinary], minlength=len(texts))
    wanted = np.minimum(counts, np.maximum(1, np.rint(share * counts).astype(np.int64)))
    places = np.flatnonzero(ordinary)
    order = places[np.lexsort((words[places], numbers[places]))]  # text by text, the least word first
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    masked = np.zeros(len(texts.tokens), dtype=bool)
    masked[order[ranks < np.repeat(wanted, counts)]] = True
    return masked


def require_mask_token(tokenizer: "Tokenizer") -> int:
    """The id of the token that stands for a hidden one.

    Raises:
        RecipeError: the tokenizer has none.
    """
    token = mask_token(tokenizer)
    if token is None:
        raise RecipeError(
            "objective retromae needs a tokenizer with a mask token, and this model's has none; start from a "
            "transformer such as BERT, or remove the stage"
        )
    return token
