"""Rows of token ids: in memory as two arrays, on disk as Arrow, made once for each file and tokenizer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.extras import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints = NDArray[np.int64]
FORMAT = 4  # of the cached rows and tokens: raise it when their meaning changes
ANCHOR_END = " "  # between an anchor and its text
KNOWN_TEXTS = 200_000  # whose cleaned form or tokens are remembered while a file is read


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids of any lengths, in two arrays.

    Attributes:
        tokens: the ids of all rows, (total,) int32.
        offsets: row i is `tokens[offsets[i]:offsets[i + 1]]`, (n + 1,) int64.
    """

    tokens: NDArray[np.int32]
    offsets: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        tokens = np.fromiter((t for row in rows for t in row), dtype=np.int32, count=int(lengths.sum()))
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        tokens = np.concatenate([part.tokens for part in parts]) if parts else np.zeros(0, np.int32)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def lengths(self) -> Ints:
        """Tokens in each row, (n,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: NDArray[np.integer]) -> "TokenRows":
        """The rows of these indices, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # (total,)
        return TokenRows(self.tokens[np.repeat(self.offsets[:-1][rows], lengths) + within], offsets)


def tokenise_rows(
    rows: Any, tokenizer: "Tokenizer", cache: Path, prompts: dict[str, str], *, anchored: bool = False
) -> Any:
    """The rows' token ids as a mapped dataset, from the cache or made now.

    Args:
        anchored: also the positives with their anchors before them.
    """
    query_prompt = prompts.get("query", "")
    document_prompt = prompts.get("document", "")
    special = tokenizer.num_special_tokens_to_add(False) > 0
    blank = [] if special else [_unknown_token(tokenizer)]

    memory: dict[str, NDArray[np.int32]] = {}  # a mined negative stands in many rows

    def encode(texts: list[str]) -> list[NDArray[np.int32]]:
        if len(memory) > KNOWN_TEXTS:
            memory.clear()
        new_texts = [text for text in dict.fromkeys(texts) if text not in memory]
        encodings = tokenizer.encode_batch_fast(new_texts, add_special_tokens=special)
        memory.update({t: np.array(e.ids or blank, dtype=np.int32) for t, e in zip(new_texts, encodings, strict=True)})
        return [memory[text] for text in texts]

    def tokenise(batch: dict[str, list[Any]]) -> Any:
        counts = [len(row) for row in batch["negatives"]]
        flat = encode([document_prompt + text for row in batch["negatives"] for text in row])
        columns = {
            "query_ids": _to_list_array(encode([query_prompt + text for text in batch["query"]])),
            "positive_ids": _to_list_array(encode([document_prompt + text for text in batch["positive"]])),
            "negatives_ids": _nest_values(_to_list_array(flat), counts),
        }
        if anchored:
            pairs = zip(batch["anchor"], batch["positive"], strict=True)
            columns["anchored_ids"] = _to_list_array(
                encode([document_prompt + (f"{anchor}{ANCHOR_END}" if anchor else "") + text for anchor, text in pairs])
            )
        return require("pyarrow", "train").table(columns)

    datasets = require("datasets", "train")
    ids = datasets.List(datasets.Value("int32"))
    features = {"query_ids": ids, "positive_ids": ids, "negatives_ids": datasets.List(ids)}
    if anchored:
        features["anchored_ids"] = ids
    texts = rows.select_columns(["query", "positive", "negatives", *(["anchor"] if anchored else [])])
    source = Path(rows.cache_files[0]["filename"]).stem
    key = digest(source, tokenizer.to_str(), json.dumps(prompts, sort_keys=True))  # the source's says which columns
    return texts.map(
        tokenise,
        batched=True,
        batch_size=2_000,
        remove_columns=texts.column_names,
        features=datasets.Features(features),
        cache_file_name=str(cache / f"tokens-{key}.arrow"),
        new_fingerprint=key,
        load_from_cache_file=True,
        desc="tokenise",
    )


def _to_list_array(rows: list[NDArray[np.int32]]) -> Any:
    """Rows of token ids as an Arrow list array, without a Python number for each token."""
    pa = require("pyarrow", "train")
    values = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return _nest_values(pa.array(values, pa.int32()), [len(row) for row in rows])


def _nest_values(values: Any, lengths: list[int]) -> Any:
    pa = require("pyarrow", "train")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


@contextmanager
def dataset_progress(show: bool) -> Iterator[None]:
    """`datasets` shows its bars or not while inside."""
    datasets = require("datasets", "train")
    before = datasets.are_progress_bars_disabled()
    _show_bars(show)
    try:
        yield
    finally:
        _show_bars(not before)


def _show_bars(show: bool) -> None:
    datasets = require("datasets", "train")
    if show:
        datasets.enable_progress_bars()
    else:
        datasets.disable_progress_bars()


def _unknown_token(tokenizer: "Tokenizer") -> int:
    """The token of an empty text in a static model, as at inference."""
    return next((i for name in ("<unk>", "[UNK]") if (i := tokenizer.token_to_id(name)) is not None), 0)


def token_rows_of(array: Any) -> TokenRows:
    lengths = list_lengths(array)
    return TokenRows(array.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)]))


def list_lengths(array: Any) -> Ints:
    lengths = require("pyarrow.compute", "train").list_value_length(array)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def digest(*parts: str) -> str:
    """A short hash of strings, for names in the cache."""
    joined = "\0".join([str(FORMAT), *parts])
    return hashlib.blake2b(joined.encode(), digest_size=12).hexdigest()
