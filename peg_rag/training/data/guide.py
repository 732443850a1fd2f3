"""A guide model removes likely false negatives (GISTEmbed, Solatorio 2024, arXiv 2402.16829).

A candidate that the guide finds nearer to the query than the query's own positive is probably an answer that nobody
labelled, and is masked. The guide encodes each text once, before training, so a step costs it a look-up and a product
of (rows, candidates, d) and neither a forward pass nor a second tokenizer. Candidates that are no texts of the data,
such as mixtures, are never masked. Of GISTEmbed's comparisons this is query against document; its loss has queries
among the negatives of queries, ours has not.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.data.vectors import TextVectors
    from peg_rag.training.loss.masks import TileColumns, TileRows

TIE = 1e-3  # of cosine: what half precision makes of two equal texts


class GuideOptions(Options):
    """A model that tells likely answers among the candidates."""

    kind: Literal["guide"]
    model: str = "peg-mini"
    """Hub id, folder or bundled name of the guide."""
    margin: float = Field(default=0.0, ge=-1, le=1)
    """A candidate is masked when the guide's cosine exceeds the positive's less this."""

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
        return GuideMask(self.margin, queries, documents)


class GuideMask:
    """Hides candidates that the guide ranks above the positive. A `CandidateMask`.

    Args:
        margin: as in `GuideOptions`.
        queries, documents: the guide's vectors.
    """

    def __init__(self, margin: float, queries: "TextVectors", documents: "TextVectors") -> None:
        self._margin = margin
        self._queries = queries
        self._documents = documents
        self._columns: dict[
            tuple[int, int], tuple[Tensor, Tensor, Tensor]
        ] = {}  # by their place: texts, vectors, which there are

    def hidden(self, rows: "TileRows", columns: "TileColumns") -> "Tensor":
        """(r, c) bool; a tie with the positive stays a negative."""
        import torch

        queries, has_query = _look_up(self._queries, rows.texts, rows.positives)
        positives, has_positive = _look_up(self._documents, rows.positive_texts, rows.positives)
        limits = torch.linalg.vecdot(queries, positives) - self._margin + TIE  # (r,)
        documents, has_document = self._find_columns(columns)
        equation = "rd,cd->rc" if documents.ndim == 2 else "rd,rcd->rc"
        scores = torch.einsum(equation, queries, documents)  # (r, c)
        has_vectors = (has_query & has_positive)[:, None] & has_document
        hidden: Tensor = (scores > limits[:, None]) & has_vectors
        return hidden

    def _find_columns(self, columns: "TileColumns") -> "tuple[Tensor, Tensor]":
        """Vectors of shared candidates (c, d) or of a row's own (r, h, d), and which there are, (1, c) or (r, h)."""
        import torch

        if columns.part is None:
            return _look_up(self._documents, columns.texts, columns.scores)
        place = (columns.part.start, columns.part.stop)
        cached = self._columns.get(place)
        if cached is None or not torch.equal(cached[0], columns.texts):
            if cached is not None:
                self._columns.clear()  # of the step before
            vectors, has_vectors = _look_up(self._documents, columns.texts[0], columns.scores)
            cached = (columns.texts, vectors, has_vectors[None])
            self._columns[place] = cached
        return cached[1], cached[2]


def _look_up(table: "TextVectors", texts: "Tensor", like: "Tensor") -> "tuple[Tensor, Tensor]":
    """Vectors of texts (…, d) in the type and on the device of `like`, and whether there is one (…)."""
    import torch

    places = table.find(texts.cpu().numpy())
    vectors = torch.from_numpy(np.asarray(table.vectors[np.maximum(places, 0)])).to(like)
    return vectors, torch.from_numpy(places >= 0).to(like.device)


def hash_array(array: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> str:
    """A short digest of numbers."""
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=12).hexdigest()
