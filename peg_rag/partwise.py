"""How much a text belongs to a set of documents, judged by its parts.

A search always finds something. Whether a question is outside the documents altogether, or a passage strayed in from
elsewhere, is another question, and a single cosine mixes it with how well the question is put. Here a text is cut into
parts of a clause or two; each is compared with the documents (its nearest vectors, its pairs of characters), and a
small network judges by the mean and the spread of what it sees in the parts, as DisCoPatch (Caetano et al. 2025, arXiv
2501.08005) judges a picture by the statistics over its patches. It is trained on parts of the documents against foreign
ones, and against parts shuffled among documents: `peg_rag.training.clean.partwise`.

Costs, for 8,192 documents and a model of 512 dimensions: 8.5 MB, and for each part an encoding and 8,192 cosines.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.retriever import Encoder, identity_of

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FORMAT = 1
FILE_NAME = "partwise.safetensors"
PART_CHARACTERS = (12, 32)  # a part is at least and at most so long, where the text allows
MAX_PARTS = 64  # of a text that are looked at
NEAREST = 8  # documents whose mean cosine is a feature
PLACES = 1 << 16  # of the tables of hashed pairs
FEATURES = ("nearest", "near", "familiarity", "unknown", "unknown_rare", "specificity")
BLOCK_PARTS = 2_048
_CLAUSE = re.compile(r"[^。！？!?；;，,：:\n]+[。！？!?；;，,：:\n]*")
_NOT_LETTERS = re.compile(r"[\W_]+")
_FIRST, _SECOND, _LAST = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9))


def cut_parts(text: str) -> list[str]:
    """A text's parts, at ends of clauses; joined, they are the text but for marks at its beginning.

    A text without letters is one part.
    """
    shortest, longest = PART_CHARACTERS
    parts: list[str] = []
    part = ""
    for clause in _CLAUSE.findall(text):
        for start in range(0, len(clause), longest):
            piece = clause[start : start + longest]
            if len(part) + len(piece) > longest or len(part) >= shortest:
                parts.append(part)
                part = ""
            part += piece
    if part and parts and len(part) < shortest:
        parts[-1] += part
    elif part:
        parts.append(part)
    return [part for part in parts if part] or [text]


@dataclass(frozen=True, slots=True)
class TextParts:
    """The parts of some texts.

    Attributes:
        parts: of all texts, one after the other; of each the first `MAX_PARTS`.
        owners: the text that each is of, ascending, (parts,).
        texts: how many texts there are.
    """

    parts: list[str]
    owners: Ints
    texts: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextParts":
        """Cut each text."""
        pieces = [cut_parts(text)[:MAX_PARTS] for text in texts]
        owners = np.repeat(np.arange(len(texts)), [len(parts) for parts in pieces])
        return cls([part for parts in pieces for part in parts], owners, len(texts))


def hash_pairs(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """The distinct pairs of neighbouring letters of each text: text numbers, ascending, and places, (pairs,) each."""
    letters = [_NOT_LETTERS.sub("", text.casefold()) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in letters])
    codes = np.frombuffer("".join(letters).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    together = np.flatnonzero(rows[1:] == rows[:-1])
    mixed = ((codes[together] * _FIRST) ^ (codes[together + 1] * _SECOND)) * _LAST
    places = (mixed >> np.uint64(48)).astype(np.int64)
    distinct = np.unique(rows[together] * PLACES + places)
    return distinct // PLACES, distinct % PLACES


@dataclass(frozen=True, slots=True)
class PairCounts:
    """In how many of some texts each hashed pair of letters stands.

    Attributes:
        counts: (PLACES,) int32.
        texts: how many texts were counted.
    """

    counts: NDArray[np.int32]
    texts: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "PairCounts":
        """Count the pairs of some texts."""
        _, places = hash_pairs(texts)
        return cls(np.bincount(places, minlength=PLACES).astype(np.int32), len(texts))

    def log_shares(self, places: Ints, own: int) -> NDArray[np.float64]:
        """The logarithm of each pair's share of the texts, (pairs,); `own`: texts of which the pair itself was one."""
        shares: NDArray[np.float64] = np.log((np.maximum(self.counts[places] - own, 0) + 0.5) / (self.texts + 1.0))
        return shares


@dataclass(frozen=True, slots=True)
class PartReference:
    """What parts are compared with.

    Attributes:
        vectors: unit vectors of documents, (n, d) float16.
        documents, foreign: pairs of letters of the documents, and of foreign texts.
    """

    vectors: NDArray[np.float16]
    documents: PairCounts
    foreign: PairCounts

    def describe_parts(
        self, parts: Sequence[str], vectors: Floats, *, own_rows: Ints | None = None, of: str | None = None
    ) -> Floats:
        """Features of parts (parts, FEATURES), given their unit vectors (parts, d).

        Args:
            own_rows: the row of `vectors` that is of a part's own document, which is left out; −1 for none.
            of: `documents` or `foreign`, whose counts the parts are a part of; they are then left out of them.
        """
        features = np.empty((len(parts), len(FEATURES)), dtype=np.float32)
        features[:, :2] = self._measure_nearness(vectors, own_rows)
        features[:, 2:] = self._measure_words(parts, of)
        return features

    def _measure_nearness(self, vectors: Floats, own_rows: Ints | None) -> Floats:
        """The largest cosine of each part with a document, and the mean of the largest few, (parts, 2)."""
        documents = self.vectors.astype(np.float32)
        nearness = np.zeros((len(vectors), 2), dtype=np.float32)
        few = min(NEAREST, len(documents))
        for start in range(0, len(vectors), BLOCK_PARTS):
            scores = vectors[start : start + BLOCK_PARTS] @ documents.T  # (b, n)
            if own_rows is not None:
                own = own_rows[start : start + BLOCK_PARTS]
                with_own = np.flatnonzero(own >= 0)
                scores[with_own, own[with_own]] = -1.0
            best = -np.partition(-scores, few - 1, axis=1)[:, :few]
            nearness[start : start + BLOCK_PARTS] = np.stack([best.max(1), best.mean(1)], axis=1)
        return nearness

    def _measure_words(self, parts: Sequence[str], of: str | None) -> NDArray[np.float64]:
        """How known the parts' pairs of letters are, (parts, 4); zeros for a part without any."""
        rows, places = hash_pairs(parts)
        known = self.documents.log_shares(places, of == "documents")
        elsewhere = self.foreign.log_shares(places, of == "foreign")
        unknown = (self.documents.counts[places] <= (of == "documents")).astype(np.float64)
        counts = np.maximum(np.bincount(rows, minlength=len(parts)), 1)
        weights = np.maximum(np.bincount(rows, -elsewhere, minlength=len(parts)), 1e-9)
        columns = [
            np.bincount(rows, known, minlength=len(parts)) / counts,
            np.bincount(rows, unknown, minlength=len(parts)) / counts,
            np.bincount(rows, -elsewhere * unknown, minlength=len(parts)) / weights,
            np.bincount(rows, known - elsewhere, minlength=len(parts)) / counts,
        ]
        return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class PartNetwork:
    """The weights: a hidden layer over a part's features, and an output over mean and spread of it over the parts.

    Attributes:
        centre, scale: of the features, (FEATURES,) each.
        hidden_weights, hidden_bias: (FEATURES, h) and (h,).
        output_weights, output_bias: (2·h,) and (1,).
    """

    centre: Floats
    scale: Floats
    hidden_weights: Floats
    hidden_bias: Floats
    output_weights: Floats
    output_bias: Floats

    def judge(self, features: Floats, owners: Ints, texts: int) -> NDArray[np.float64]:
        """Log-odds of each text, (texts,), from the features of its parts (parts, FEATURES)."""
        scaled = (features - self.centre) / self.scale
        hidden = np.maximum(scaled @ self.hidden_weights + self.hidden_bias, 0.0).astype(np.float64)  # (parts, h)
        counts = np.bincount(owners, minlength=texts)[:, None]
        means = _sum_rows(hidden, owners, texts) / counts  # (texts, h)
        variances = _sum_rows((hidden - means[owners]) ** 2, owners, texts) / counts
        seen = np.concatenate([means, np.sqrt(variances + 1e-6)], axis=1)
        odds: NDArray[np.float64] = seen @ self.output_weights.astype(np.float64) + float(self.output_bias[0])
        return odds


@dataclass(frozen=True, slots=True)
class PartDiscriminator:
    """Tells texts that belong to some documents from others.

    Attributes:
        encoder: of the vectors; not saved.
        reference, network: what `peg_rag.training.clean.partwise.fit_discriminator` made.
    """

    encoder: Encoder
    reference: PartReference
    network: PartNetwork

    def score_queries(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds that each question is within the documents, (texts,): below 0 it is probably outside."""
        return self._score(TextParts.of(texts), self.encoder.encode_queries)

    def score_documents(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds that each passage belongs to the documents, (texts,)."""
        return self._score(TextParts.of(texts), self.encoder.encode_documents)

    def _score(self, texts: TextParts, encode: Any) -> NDArray[np.float64]:
        if not texts.parts:
            return np.zeros(0)
        features = self.reference.describe_parts(texts.parts, normalise_vectors(encode(texts.parts)))
        return self.network.judge(features, texts.owners, texts.texts)

    def save(self, folder: Path) -> None:
        """Write one file, without the encoder."""
        from safetensors.numpy import save

        from peg_rag.files import write_atomically

        tensors: dict[str, NDArray[Any]] = {name: getattr(self.network, name) for name in PartNetwork.__slots__}
        tensors["vectors"] = self.reference.vectors
        tensors["document_counts"] = self.reference.documents.counts
        tensors["foreign_counts"] = self.reference.foreign.counts
        settings = {
            "format": FORMAT,
            "identity": identity_of(self.encoder),
            "documents": self.reference.documents.texts,
            "foreign": self.reference.foreign.texts,
        }
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomically(folder / FILE_NAME, save(contiguous, {"partwise": json.dumps(settings)}))

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedModel: the file is missing or damaged.
            InvalidInput: it was made with another encoder.
        """
        from safetensors import SafetensorError, safe_open

        file = folder / FILE_NAME
        try:
            with safe_open(file, "numpy") as stream:
                settings: dict[str, Any] = json.loads((stream.metadata() or {})["partwise"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  no mapping
            weights = PartNetwork(**{name: tensors[name] for name in PartNetwork.__slots__})
            documents = PairCounts(tensors["document_counts"], int(settings["documents"]))
            foreign = PairCounts(tensors["foreign_counts"], int(settings["foreign"]))
            reference = PartReference(tensors["vectors"], documents, foreign)
        except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
            raise DamagedModel(f"{file} holds no part discriminator ({error}); fit it again") from error
        if settings.get("format") != FORMAT or len(weights.centre) != len(FEATURES):
            raise DamagedModel(f"{file} holds a part discriminator of another form; fit it again")
        if settings.get("identity") != identity_of(encoder):
            raise InvalidInput(
                f"{file} was made with the model {settings.get('identity')!r}, and the encoder is "
                f"{identity_of(encoder)!r}; load it with its own model, or fit it again"
            )
        return cls(encoder, reference, weights)


def normalise_vectors(vectors: Any) -> Floats:
    """Vectors (n, d) at unit length, float32; a zero vector stays zero.

    Raises:
        InvalidInput: they are no matrix.
    """
    matrix = np.asarray(vectors, dtype=np.float32)
    if matrix.ndim != 2:
        raise InvalidInput(f"vectors of shape {matrix.shape}; (texts, dimension) is expected")
    unit: Floats = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return unit


def _sum_rows(values: NDArray[np.float64], owners: Ints, texts: int) -> NDArray[np.float64]:
    """Sums of the rows of each owner, (parts, h) → (texts, h)."""
    sums = np.zeros((texts, values.shape[1]))
    np.add.at(sums, owners, values)
    return sums
