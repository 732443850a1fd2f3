"""Static models: the mean of token vectors, in numpy.

No torch is imported, so a command starts in a fraction of a second. Costs one gather and one sum a text: some four
million tokens a second on a core, and the tokenizer, which takes longer.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.models import ModelSpec, weight_files


class StaticBackend:
    """A matrix of token vectors (vocabulary, dimension), held in float32 whatever the file holds."""

    device = "cpu"
    dtype = "float32"
    batch_tokens = 16_384

    def __init__(self, spec: ModelSpec, *, device: str | None = None, dtype: str = "auto") -> None:
        if device not in (None, "auto", "cpu"):
            raise InvalidInput(f"device={device!r}, but {spec.name} is a static model, which runs on the cpu")
        if dtype not in ("auto", "float32"):
            raise InvalidInput(f"dtype={dtype!r}, but {spec.name} is a static model, which runs in float32")
        self._table: NDArray[np.float32] | None = _read_table(spec)  # (vocabulary, dimension)
        self.vocabulary_size = len(self._table)

    def embed(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self._table is None:
            raise InvalidInput("this backend is closed")
        counts = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))  # (rows,)
        flat = np.fromiter(chain.from_iterable(token_ids), dtype=np.int64, count=int(counts.sum()))  # (tokens,)
        sums = np.empty((len(token_ids), self._table.shape[1]), dtype=np.float32)  # (rows, dimension)
        start = 0
        for row, count in enumerate(counts):  # one text's token vectors fit the processor's cache, a batch's do not
            self._table[flat[start : start + count]].sum(axis=0, out=sums[row])
            start += count
        sums /= counts[:, None]
        return sums

    def close(self) -> None:
        self._table = None


def _read_table(spec: ModelSpec) -> NDArray[np.float32]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = weight_files(spec.path)[0]
    try:
        table = load_file(file)["embedding.weight"]
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise DamagedModel(f"{file} cannot be read ({error}); copy or download the model again") from error
    table = np.ascontiguousarray(table, dtype=np.float32)
    if not table.any():
        raise DamagedModel(f"{file} holds nothing but zeros; copy or download the model again")
    return table
