"""Token vectors for comparing a query with every word of a document, instead of with the mean of them.

The vectors are those of a static model, `peg-mini` by default, whatever model makes the dense scores. Its tokenizer
would take longer than everything else (20 ms for fifty passages), so a document is looked up instead of cut up: every
run of up to four units that is a token counts as a word, overlapping ones too. A query is cut into its longest tokens.

Cost: 0.2 s and about 75 MB to load; 1.5 ms to find the words of fifty passages of 400 characters.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from peg_rag.errors import DamagedModel
from peg_rag.models import weight_files
from peg_rag.reranking.units import Array, Units, unit_code, unit_strings

LONGEST_WORD = 4  # units
_WIDE = 1 << 16  # characters from here on are words by themselves only
_SLOT_BITS = 18
_ROWS_AT_ONCE = 4_096  # of the vectors, so that no second table stands in memory


@dataclass(frozen=True, slots=True)
class Words:
    """Tokens that stand in texts, ascending by place; several may begin at one place, the longest last.

    Attributes:
        tokens: (words,) rows of the vectors.
        places: (words,) the unit at which each begins.
        spans: (words,) units of each.
    """

    tokens: Array
    places: Array
    spans: Array


@dataclass(frozen=True, slots=True)
class _Table:
    """Runs of one length that are tokens, by the hash of their code.

    A search in the sorted codes would miss the cache at every step. So each place of `slots` leads to one code that
    hashes there; the few codes that found their place taken are searched for.

    Attributes:
        codes: (n,) distinct codes.
        tokens: (n,) their tokens.
        slots: (2**_SLOT_BITS,) int32 row of a code that hashes there, -1 for none.
        crowded: (m,) ascending codes that are not in `slots`.
        crowded_rows: (m,) their rows.
    """

    codes: Array
    tokens: Array
    slots: Array
    crowded: Array
    crowded_rows: Array

    @classmethod
    def of(cls, codes: Array, tokens: Array) -> Self:
        rows = np.arange(len(codes), dtype=np.int32)
        places = _hash_codes(codes)
        slots = np.full(1 << _SLOT_BITS, -1, dtype=np.int32)
        slots[places] = rows
        left_over = np.flatnonzero(slots[places] != rows)
        order = left_over[np.argsort(codes[left_over])]
        return cls(codes, tokens, slots, codes[order], order)

    def look_up(self, codes: Array) -> tuple[Array, Array]:
        """The indices of the codes that are tokens, ascending, and their tokens."""
        if not len(self.codes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        rows = self.slots[_hash_codes(codes)]
        likely = np.flatnonzero(rows >= 0)
        rows = rows[likely]
        is_token = self.codes[rows] == codes[likely]
        if len(self.crowded):
            others = np.flatnonzero(~is_token)
            wanted = codes[likely[others]]
            places = np.minimum(np.searchsorted(self.crowded, wanted), len(self.crowded) - 1)
            is_crowded = self.crowded[places] == wanted
            rows[others[is_crowded]] = self.crowded_rows[places[is_crowded]]
            is_token[others[is_crowded]] = True
        return likely[is_token], self.tokens[rows[is_token]]


class TokenVectors:
    """Directions and lengths of a static model's token vectors, and where its tokens stand in texts.

    Attributes:
        directions: (tokens, dimension) float32 unit vectors, with the digits of a float16, as the trees were trained.
            Kept as float16 they would take half of the 72 MB, and a sixth of a query's time to convert.
        lengths: (tokens,) lengths of the whole vectors: how much a token counts in a mean.
    """

    def __init__(self, tokens: Sequence[str], table: Array) -> None:
        """Args: tokens, one for each row of `table` (tokens, dimension); those that are no run of units stay unused."""
        self.lengths: Array = np.empty(len(table), dtype=np.float32)
        self.directions: Array = np.empty(table.shape, dtype=np.float32)
        for start in range(0, len(table), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = table[rows].astype(np.float32)
            self.lengths[rows] = np.linalg.norm(part, axis=1)
            self.directions[rows] = _unit_rows(part, self.lengths[rows]).astype(np.float16)
        self._tables = _build_tables(tokens)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The vectors of a static model's folder.

        Raises:
            DamagedModel: its tokenizer or weights cannot be read, or do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = weight_files(folder)[0]
        try:
            tokens = [token for token, _ in json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]]
            table = load_file(file)["embedding.weight"]
        except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
            raise DamagedModel(f"{folder} is no static model with a unigram tokenizer ({error})") from error
        if len(tokens) != len(table):
            raise DamagedModel(f"{folder} has {len(tokens)} tokens and {len(table)} vectors; copy the model again")
        return cls(tokens, table)

    def directions_of(self, tokens: Array) -> Array:
        """(n, dimension) float32 directions; `tokens` are numbers, or a mask of all tokens."""
        return np.asarray(self.directions[tokens], dtype=np.float32)

    def find_words(self, texts: Units) -> Words:
        """Every token that stands somewhere in the texts."""
        tokens = np.full((len(texts.codes), LONGEST_WORD), -1, dtype=np.int32)  # by place, then by length
        for column, codes in enumerate(_packed_runs(texts)):
            starts, names = self._tables[column].look_up(codes)
            tokens[starts, column] = names
        cells = np.flatnonzero(tokens >= 0)
        places, columns = np.divmod(cells, LONGEST_WORD)
        return Words(tokens.ravel()[cells], places, columns + 1)

    def cut_query(self, query: Units) -> Array:
        """(words,) tokens of one text, cut from its start into the longest; units that are no token are passed over."""
        words = self.find_words(query)
        longest = {place: number for number, place in enumerate(words.places.tolist())}
        tokens = []
        place = 0
        while place < len(query.codes):
            number = longest.get(place)
            if number is None:
                place += 1
            else:
                tokens.append(words.tokens[number])
                place += int(words.spans[number])
        return np.array(tokens, dtype=np.int64)


def _build_tables(tokens: Sequence[str]) -> list[_Table]:
    """By length, the tokens that are runs of units and nothing else."""
    lengths = np.array([len(token) for token in tokens], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    characters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    plain = np.concatenate([[0], np.cumsum(_is_plain(characters))])
    is_plain = plain[starts + lengths] - plain[starts] == lengths
    others = _spell_tokens(tokens, np.flatnonzero(~is_plain).tolist())
    tables = []
    for length in range(1, LONGEST_WORD + 1):
        rows = np.flatnonzero(is_plain & (lengths == length))
        units = characters[starts[rows][:, None] + np.arange(length)]  # (rows, length)
        shifts = np.arange(length - 1, -1, -1, dtype=np.uint64) * np.uint64(16)
        codes = np.concatenate([np.sum(units << shifts, axis=1, dtype=np.uint64), _as_codes(others[length - 1])])
        numbers = np.concatenate([rows, np.array(list(others[length - 1].values()), dtype=np.int64)])
        tables.append(_Table.of(codes, numbers))
    return tables


def _is_plain(characters: Array) -> Array:
    """Which are Chinese characters that are units by themselves and that no normalisation changes."""
    return ((characters >= 0x4E00) & (characters <= 0x9FFF)) | ((characters >= 0x3400) & (characters <= 0x4DBF))


def _spell_tokens(tokens: Sequence[str], numbers: Sequence[int]) -> list[dict[int, int]]:
    """By length, the code and number of those of the tokens that are runs of units."""
    entries: list[dict[int, int]] = [{} for _ in range(LONGEST_WORD)]
    for number in numbers:
        units = unit_strings(tokens[number])
        if 0 < len(units) <= LONGEST_WORD and "".join(units) == tokens[number]:
            code = _pack_codes([unit_code(unit) for unit in units])
            if code:
                entries[len(units) - 1].setdefault(code, number)
    return entries


def _as_codes(entries: Mapping[int, int]) -> Array:
    return np.array(list(entries), dtype=np.uint64)


def _pack_codes(codes: Sequence[int]) -> int:
    """One number for a run of units; 0 where a unit is too wide to stand beside others."""
    if len(codes) == 1:
        return codes[0]
    if max(codes) >= _WIDE:
        return 0
    return sum(code << 16 * (len(codes) - 1 - place) for place, code in enumerate(codes))


def _packed_runs(texts: Units) -> Iterator[Array]:
    """For each length up to `LONGEST_WORD`: (units,) codes of the run at each unit, 0 where it leaves its text."""
    codes = texts.codes.astype(np.uint64)
    yield codes
    narrow = np.where(codes < _WIDE, codes, 0)
    runs = narrow
    room = texts.ends - np.arange(len(codes))
    for length in range(2, LONGEST_WORD + 1):
        following = np.zeros_like(narrow)
        following[: -(length - 1)] = narrow[length - 1 :]
        whole = (runs > 0) & (following > 0) & (room >= length)
        runs = np.where(whole, runs << np.uint64(16) | following, 0)
        yield runs


def _hash_codes(codes: Array) -> Array:
    return np.asarray((codes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _SLOT_BITS))


def _unit_rows(table: Array, lengths: Array) -> Array:
    """Rows brought to length 1; rows of zeros stay."""
    return np.asarray(table / np.where(lengths > 0, lengths, 1)[:, None])
