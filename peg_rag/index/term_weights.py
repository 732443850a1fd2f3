"""How much a term of a query is worth beyond its rarity: learned, where BM25 only counts.

BM25 takes what is rare for what is important. That misleads it in questions, whose words of asking are rare in the
passages that answer them. Here each term's weight is multiplied by e^theta. Theta is the sum of a few places in one
table of 262,144 bytes, so that a pair which was never seen still takes a share of its two characters.
`train/term_weights.py` learns it; `train/results/term_weights.md` says what it is worth.

Only queries are weighted: postings stay as they are, and any index can be searched either way. Cost: about 2 µs for
each term of a query; 5 ms and 256 KiB once.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.index.encodings import Array
from peg_rag.index.tokenizers import Tokenizer

BundledTermWeights = Literal["mini"]
SIZE = 1 << 18
FORMAT = 1
FILE_NAME = "term-weights.safetensors"


@dataclass(frozen=True, slots=True)
class TermWeights:
    """The table of theta.

    Attributes:
        steps: (SIZE,) int8, theta of each place in multiples of `step`.
        step: theta of one step.
    """

    steps: Array
    step: float

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedModel: the file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        file = folder / FILE_NAME
        try:
            with safe_open(file, "numpy") as stream:
                settings: dict[str, Any] = json.loads((stream.metadata() or {})["term_weights"])
                steps = stream.get_tensor("steps")
            step = float(settings["step"])
        except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
            raise DamagedModel(f"{file} holds no term weights ({error}); install the package again") from error
        if settings.get("format") != FORMAT or steps.shape != (SIZE,) or steps.dtype != np.int8 or not 0 < step < 1:
            raise DamagedModel(f"{file} holds term weights of another form; install the package again")
        return cls(steps, step)

    def save(self, folder: Path, *, sources: Sequence[str] = ()) -> None:
        """Write one file; `sources` names the pairs that the table was learned from."""
        from safetensors.numpy import save

        from peg_rag.files import write_atomically

        settings = {"format": FORMAT, "step": self.step, "sources": list(sources)}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE_NAME, save({"steps": self.steps}, {"term_weights": json.dumps(settings)}))

    @classmethod
    def of(cls, table: Array) -> Self:
        """From the (SIZE,) thetas, rounded to 1 / 127 of the largest."""
        step = float(np.abs(table).max()) / 127 or 1.0
        return cls(np.round(table / step).astype(np.int8), step)

    def multiplier(self, term: str) -> float:
        """What to multiply the weight of a term by."""
        return math.exp(self.step * sum(int(self.steps[place]) for place in hash_parts(term)))

    def weigh(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Weights of a query's terms, multiplied."""
        return {term: weight * self.multiplier(term) for term, weight in weights.items()}


def hash_parts(term: str) -> list[int]:
    """Places in the table that a term adds up: its own, that of its kind, and for a pair those of its characters."""
    return [zlib.crc32(part.encode("utf-8", "replace")) % SIZE for part in split_parts(term)]


def split_parts(term: str) -> list[str]:
    """A term and what it shares with others; the names of parts are no terms."""
    if term.isdigit():
        return [term, "#number"]
    if term.isascii():
        return [term, "#word"]
    if len(term) == 1:
        return [term, "#character"]
    if len(term) == 2:
        return [term, "#pair", f"{term[0]}_", f"_{term[1]}"]
    return [term, "#word"]


def find_term_weights(choice: TermWeights | BundledTermWeights | None, tokenizer: Tokenizer) -> TermWeights | None:
    """The term weights that an index was opened with.

    Raises:
        InvalidInput: an unknown name, or a tokenizer whose terms the weights do not know.
    """
    if choice is None:
        return None
    if tokenizer.name != "bigram":
        raise InvalidInput(
            f"term weights are for the terms of the tokenizer 'bigram', and this index uses {tokenizer.name!r}; "
            "leave term_weights out"
        )
    return choice if isinstance(choice, TermWeights) else load_term_weights(choice)


@lru_cache(maxsize=1)
def load_term_weights(name: str) -> TermWeights:
    """The bundled term weights of that name; read once.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in get_args(BundledTermWeights):
        raise InvalidInput(f"term weights {name!r} are unknown; there are 'mini'")
    return TermWeights.load(Path(str(files("peg_rag") / "assets" / f"term-weights-{name}")))
