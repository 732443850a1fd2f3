"""Rounds of a stage: what depends on the model is made anew before each.

Negatives that were hard for the first model are easy for the present one (Conan-embedding, arXiv 2408.15710, replaces
them as it goes). A stage of `rounds` is cut into equal parts, and before each its negatives are mined and its order is
arranged by the model as it then is. Both are written to the round's folder before its first step, so batches stay a
function of the step, and a resumed run finds what the killed one had made.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import TrainingError
from peg_rag.files import open_atomically, write_atomically
from peg_rag.retriever import Encoder
from peg_rag.training.data.pairs import PairFile, load_pairs, pair_texts
from peg_rag.training.data.tokens import Ints
from peg_rag.training.mining.mine import MiningOptions, mine_hard_negatives
from peg_rag.training.recipe import SourceOptions, StageOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)
BLOCK_ROWS = 4_096
READY_FILE = "ready"


@dataclass(frozen=True)
class Round:
    """Steps `start` to `stop` (excluded) of a stage, and the folder of what is made for them."""

    start: int
    stop: int
    folder: Path

    @property
    def is_ready(self) -> bool:
        """Whether all that the round needs was made and is still there."""
        return (self.folder / READY_FILE).is_file() and not self._list_damaged()

    def mark_ready(self) -> None:
        """List what was made, with its size, once it all is."""
        if not self.is_ready:
            sizes = {path.name: path.stat().st_size for path in sorted(self.folder.iterdir()) if path.is_file()}
            sizes.pop(READY_FILE, None)
            write_atomically(self.folder / READY_FILE, json.dumps(sizes).encode())

    def check(self, step: int) -> None:
        """Refuse to make anew, with another model, what an earlier run made at the round's first step.

        Raises:
            TrainingError: the round is under way and its files are gone or cut off.
        """
        if self.is_ready:
            return
        if step > self.start:
            raise TrainingError(
                f"{self.folder} is gone or damaged: the run's negatives or order of rows from step {self.start} on "
                f"lay there, and the model at step {step} would choose others. Put it back, or start anew (--overwrite)"
            )
        for name in self._list_damaged():
            (self.folder / name).unlink(missing_ok=True)

    def _list_damaged(self) -> list[str]:
        """Files that were made and are not there in their size."""
        file = self.folder / READY_FILE
        listed: list[str] | dict[str, int] = json.loads(file.read_bytes() or b"{}") if file.is_file() else {}
        if isinstance(listed, list):  # an older run lists names alone
            return [name for name in listed if not (self.folder / name).is_file()]
        paths = {name: self.folder / name for name in listed}
        return [name for name, path in paths.items() if not path.is_file() or path.stat().st_size != listed[name]]


def list_rounds(options: StageOptions, folder: Path) -> list[Round]:
    """The rounds of a stage, of equal length to within a step."""
    cuts = [options.steps * number // options.rounds for number in range(options.rounds + 1)]
    return [Round(start, stop, folder / f"round-{number + 1}") for number, (start, stop) in enumerate(pairwise(cuts))]


def mine_round(
    files: Sequence[PairFile],
    rows: Sequence[Ints],
    options: MiningOptions,
    encoder: Encoder,
    tokenizer: "Tokenizer",
    prompts: dict[str, str],
    folder: Path,
    cache: Path,
) -> list[PairFile]:
    """The rows that are trained on, with negatives that the encoder finds hard; all of them are usable."""
    mined = []
    for number, (file, numbers) in enumerate(zip(files, rows, strict=True)):
        out = folder / f"mined-{number}.jsonl"
        if not out.is_file():
            pairs = folder / f"pairs-{number}.jsonl"
            _write_pairs(pairs, file, numbers)
            report = mine_hard_negatives(pairs, out, encoder, options=options)
            pairs.unlink()
            if not report.negatives:
                logger.warning(
                    "%s: no negative was mined for its %d rows; lower first_rank or the margins, or add rows",
                    file.name,
                    len(numbers),
                )
        (loaded,) = load_pairs([SourceOptions(path=str(out))], tokenizer, cache, prompts=prompts)
        weights = _match_weights(file, numbers, loaded)
        groups = file.groups[numbers]
        mined.append(replace(loaded, name=file.name, weight=file.weight, weights=weights, groups=groups))
    return mined


def _match_weights(file: PairFile, rows: Ints, mined: PairFile) -> NDArray[np.float32]:
    """The weights of the mined rows, which are the given ones in their order."""
    if len(mined.weights) != len(rows):
        raise TrainingError(f"{mined.name} holds {len(mined.weights)} pairs, and {len(rows)} were mined for")
    weights: NDArray[np.float32] = file.weights[rows]
    return weights


def _write_pairs(path: Path, file: PairFile, rows: Ints) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as stream:
        for start in range(0, len(rows), BLOCK_ROWS):
            for pair in pair_texts(file, rows[start : start + BLOCK_ROWS]):
                stream.write(json.dumps(pair, ensure_ascii=False).encode() + b"\n")
