"""Documents that all queries of a batch share: random ones of the corpus, encoded once a step, nobody's positive.

More negatives for the price of one encoding each, as SimKGC shares its pre-batch negatives (Wang et al. 2022, arXiv
2203.02167): each query meets all of them, and those that are known to answer it are masked by the loss. Every document
of the corpus comes once before any comes again, whatever the number of ranks. An anchor, such as the title or the
entity, may enter the encoder before the text: it says what a passage without its context is about.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from peg_rag.training.data.batches import RankBatch
    from peg_rag.training.data.tokens import Ints, TokenRows

_SALT = 22


class SharedDocumentOptions(Options):
    """Random documents of the corpus, as negatives of every query."""

    kind: Literal["shared_documents"]
    documents: int = Field(ge=1)
    """In each step, over all ranks."""
    anchor: bool = False
    """Put each document's anchor (`columns.anchor`: its title, section or entity) before its text."""

    def build(self, stage: StageContext) -> "SharedDocuments":
        """The transform of a stage."""
        return SharedDocuments(self, stage)


class SharedDocuments:
    """Adds documents without an owner to a batch. A `BatchTransform`."""

    def __init__(self, options: SharedDocumentOptions, stage: StageContext) -> None:
        from peg_rag.training.data.sampler import Permutation

        self._files = stage.files
        self._corpus = [
            _distinct_rows(file.positive_keys, rows) for file, rows in zip(stage.files, stage.rows, strict=True)
        ]
        self._ends = np.cumsum([len(rows) for rows in self._corpus])
        self._order = Permutation(int(self._ends[-1]), stage.seed, _SALT)
        self._count = min(options.documents, int(self._ends[-1]))
        self._rank = stage.rank
        self._world = stage.world
        self._anchor = options.anchor

    def __call__(self, batch: "RankBatch", step: int) -> "RankBatch":
        """The batch with this rank's share of the step's documents at its end."""
        from peg_rag.training.data.tokens import TokenRows

        places = np.arange(step * self._count, (step + 1) * self._count)[self._rank :: self._world]
        epochs, within = np.divmod(places, self._order.n)
        tokens, keys = self._read_documents(self._order(within, epochs))
        return replace(
            batch,
            documents=TokenRows.joined([batch.documents, tokens]),
            owners=np.concatenate([batch.owners, np.full(len(keys), -1)]),
            document_keys=np.concatenate([batch.document_keys, keys]),
        )

    def _read_documents(self, numbers: "Ints") -> "tuple[TokenRows, Ints]":
        """Token ids and keys of documents by their number in the corpus, file by file."""
        from peg_rag.training.data.pairs import anchored_positives, row_tokens
        from peg_rag.training.data.tokens import TokenRows

        sources = np.searchsorted(self._ends, numbers, side="right")
        tokens = []
        keys = [np.zeros(0, dtype=np.int64)]
        for source in np.unique(sources).tolist():
            file = self._files[source]
            start = self._ends[source] - len(self._corpus[source])
            rows = self._corpus[source][numbers[sources == source] - start]
            has_anchors = self._anchor and "anchored_ids" in file.tokens.column_names
            tokens.append(anchored_positives(file, rows) if has_anchors else row_tokens(file, rows).positives)
            keys.append(file.positive_keys[rows])
        return TokenRows.joined(tokens), np.concatenate(keys)


def _distinct_rows(keys: "Ints", rows: "Ints") -> "Ints":
    """Of rows with the same text the first, in order."""
    _, first = np.unique(keys[rows], return_index=True)
    return rows[np.sort(first)]
