"""A guide model removes likely false negatives (GISTEmbed, Solatorio 2024, arXiv 2402.16829).

A candidate that the guide finds nearer to the query than the query's own positive is probably an answer that nobody
labelled, and is masked. The guide encodes each text once, before training, so a step costs it a look-up and a product
of (rows, candidates, d) and neither a forward pass nor a second tokenizer. Candidates that are no texts of the data,
such as mixtures, are never masked.

GISTEmbed compares in three ways, and `compare` names which of them mask a candidate: it is nearer to the query, it is
nearer to the positive (documents that say the same), or it answers a question that is nearer to the query (questions
that ask the same) than the guide finds query and positive to each other. Texts of one kind are nearer to each other
than a question to its answer, so the latter two mask much more; hence query against document alone by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.data.pairs import PairFile
    from peg_rag.training.data.tokens import Ints
    from peg_rag.training.data.vectors import TextVectors
    from peg_rag.training.loss.masks import TileColumns, TileRows

    _Vectors = tuple[Tensor, Tensor]  # and which there are

TIE = 1e-3  # of cosine: what half precision makes of two equal texts


Comparison = Literal["query_document", "document_document", "query_query"]


class GuideOptions(Options):
    """A model that tells likely answers among the candidates."""

    kind: Literal["guide"]
    model: str = Field(default="peg-mini", min_length=1)
    """Hub id, folder or bundled name of the guide."""
    margin: float = Field(default=0.0, ge=-1, le=1)
    """A candidate is masked when the guide's cosine exceeds the positive's less this."""
    compare: tuple[Comparison, ...] = Field(default=("query_document",), min_length=1)
    """What is compared: any of these masks."""

    def build(self, stage: StageContext) -> "GuideMask":
        """The mask of a stage; encodes its texts the first time.

        Raises:
            ModelNotAvailable: there is no such model.
        """
        from peg_rag.encoder import PEGEncoder
        from peg_rag.training.data.pairs import row_negative_keys
        from peg_rag.training.data.tokens import digest
        from peg_rag.training.data.vectors import encode_texts

        with PEGEncoder(self.model) as encoder:
            content = [
                str(hash_array(part))
                for file, rows in zip(stage.files, stage.rows, strict=True)
                for part in (file.query_keys[rows], file.positive_keys[rows], row_negative_keys(file, rows)[0])
            ]
            stem = stage.cache / f"guide-{digest(str(encoder.identity), *content)}"
            queries = encode_texts(stage.files, stage.rows, "query", encoder, stem.with_name(f"{stem.name}-query"))
            documents = encode_texts(
                stage.files, stage.rows, "document", encoder, stem.with_name(f"{stem.name}-document")
            )
        return GuideMask(self.margin, queries, documents, self.compare, Questions.of(stage.files, stage.rows, queries))


@dataclass(frozen=True)
class Questions:
    """Which question a document answers: the first of the data.

    Attributes:
        documents: keys of the documents, ascending, (n,) int64.
        places: of their questions among the guide's query vectors, (n,).
    """

    documents: "Ints"
    places: "Ints"

    @classmethod
    def of(cls, files: "Sequence[PairFile]", rows: "Sequence[Ints]", queries: "TextVectors") -> "Questions":
        """From the pairs that are trained on."""
        positives = np.concatenate([file.positive_keys[part] for file, part in zip(files, rows, strict=True)])
        asked = np.concatenate([file.query_keys[part] for file, part in zip(files, rows, strict=True)])
        documents, first = np.unique(positives, return_index=True)
        return cls(documents, queries.find(asked[first]))

    def find(self, keys: "Ints") -> "Ints":
        """Places of the questions of documents, −1 for one that answers none, any shape → the same shape."""
        if not len(self.documents):
            return np.full(keys.shape, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.documents, keys), len(self.documents) - 1)
        return np.where(self.documents[at] == keys, self.places[at], -1)


class GuideMask:
    """Hides candidates that the guide ranks above the positive. A `CandidateMask`.

    Args:
        margin, compare: as in `GuideOptions`.
        queries, documents: the guide's vectors.
        questions: which question a document answers, where queries are compared.
    """

    def __init__(
        self,
        margin: float,
        queries: "TextVectors",
        documents: "TextVectors",
        compare: Sequence[Comparison] = ("query_document",),
        questions: Questions | None = None,
    ) -> None:
        self._margin = margin
        self._queries = queries
        self._documents = documents
        self._compare = compare
        self._questions = questions
        self._columns: dict[
            tuple[int, int], tuple[Tensor, _Vectors, _Vectors | None]
        ] = {}  # by their place, with texts

    def hidden(self, rows: "TileRows", columns: "TileColumns") -> "Tensor":
        """(r, c) bool; a tie with the positive stays a negative."""
        import torch

        queries, has_query = _look_up(self._queries, rows.texts, rows.positives)
        positives, has_positive = _look_up(self._documents, rows.positive_texts, rows.positives)
        limits = (torch.linalg.vecdot(queries, positives) - self._margin + TIE)[:, None]  # (r, 1)
        documents, questions = self._find_columns(columns)
        hidden = torch.zeros_like(columns.scores, dtype=torch.bool)
        if "query_document" in self._compare:
            hidden |= _exceed(queries, documents, limits)
        if "document_document" in self._compare:
            hidden |= _exceed(positives, documents, limits)
        if questions is not None:
            hidden |= _exceed(queries, questions, limits)
        return hidden & (has_query & has_positive)[:, None]

    def _find_columns(self, columns: "TileColumns") -> "tuple[_Vectors, _Vectors | None]":
        """Vectors of the candidates, and of the questions that they answer where these are compared."""
        import torch

        if columns.part is None:
            return self._look_up_candidates(columns.texts, columns.scores)
        place = (columns.part.start, columns.part.stop)
        cached = self._columns.get(place)
        if cached is None or not torch.equal(cached[0], columns.texts):
            if cached is not None:
                self._columns.clear()  # of the step before
            cached = (columns.texts, *self._look_up_candidates(columns.texts[0], columns.scores))
            self._columns[place] = cached
        return cached[1], cached[2]

    def _look_up_candidates(self, texts: "Tensor", like: "Tensor") -> "tuple[_Vectors, _Vectors | None]":
        documents = _look_up(self._documents, texts, like)
        if self._questions is None or "query_query" not in self._compare:
            return documents, None
        return documents, _take(self._queries, self._questions.find(texts.cpu().numpy()), like)


def _exceed(rows: "Tensor", candidates: "_Vectors", limits: "Tensor") -> "Tensor":
    """Whether the cosines of rows (r, d) with candidates, (c, d) or each row's own (r, h, d), exceed the limits."""
    import torch

    vectors, has_vectors = candidates
    equation = "rd,cd->rc" if vectors.ndim == 2 else "rd,rcd->rc"
    scores = torch.einsum(equation, rows, vectors)  # (r, c)
    exceeding: Tensor = (scores > limits) & has_vectors
    return exceeding


def _look_up(table: "TextVectors", texts: "Tensor", like: "Tensor") -> "_Vectors":
    """Vectors of texts (…, d) in the type and on the device of `like`, and whether there is one (…)."""
    return _take(table, table.find(texts.cpu().numpy()), like)


def _take(table: "TextVectors", places: "Ints", like: "Tensor") -> "_Vectors":
    """The table's vectors at these places, anything at −1, and which there are."""
    import torch

    vectors = torch.from_numpy(np.asarray(table.vectors[np.maximum(places, 0)])).to(like)
    return vectors, torch.from_numpy(places >= 0).to(like.device)


def hash_array(array: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> str:
    """A short digest of numbers."""
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=12).hexdigest()
