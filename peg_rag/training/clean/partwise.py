"""Fitting a discriminator over parts of texts: documents against foreign texts, and against shuffled parts.

See `peg_rag.partwise` for what it is for. A part of a document must not be recognised by its own document, so that one
is left out of everything it is compared with. Costs an encoding of the texts' parts, their cosines with the documents
and some seconds of a network of a thousand weights.
"""

import gzip
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from peg_rag.errors import DataError, InvalidInput
from peg_rag.partwise import (
    FEATURES,
    NEAREST,
    Floats,
    Ints,
    PairCounts,
    PartDiscriminator,
    PartNetwork,
    PartReference,
    TextParts,
    normalise_vectors,
)
from peg_rag.retriever import Encoder

MAX_DOCUMENTS = 8_192  # whose vectors are kept
MAX_TEXTS = 4_096  # of each kind whose parts are trained on
ALIKE_DOCUMENTS = 1_024  # whose nearest others say how near documents are to each other
ALIKE_QUANTILE = 0.25  # of those cosines: a foreign text above it is left out
LEAST_FOREIGN = 256  # foreign texts that stay in any case
LONGEST_RUN = 8  # parts of a text in an example
SINGLE_SHARE = 0.4  # of the examples that are one part, as a question is
HIDDEN = 64
STEPS = 400
EXAMPLES = 256  # in a step, half of them of the documents
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


def fit_discriminator(
    documents: Sequence[str],
    encoder: Encoder,
    *,
    foreign: Sequence[str] | None = None,
    shuffled: float = 0.0,
    seed: int = 0,
) -> PartDiscriminator:
    """What tells texts that belong to these documents from others.

    Args:
        documents: passages; of more than 8,192 a random sample is compared with.
        foreign: texts that do not belong to them; None takes the passages of the package's demo: papers, films, music,
            sights and hotels. Those that are as near to the documents as these are to each other are left out.
        shuffled: share of the counter-examples that are parts of different documents put together. They teach to
            recognise passages that are patched up; for questions, which have few parts, leave it at 0.
        seed: of the sample and the training.

    Raises:
        DataError: fewer than two documents or foreign texts.
        InvalidInput: `shuffled` is no share.
    """
    if not 0 <= shuffled <= 1:
        raise InvalidInput(f"shuffled={shuffled} is a share and must lie between 0 and 1")
    foreign = load_demo_passages() if foreign is None else foreign
    _check_counts(documents, foreign)
    generator = np.random.default_rng(seed)
    kept = _draw_rows(len(documents), MAX_DOCUMENTS, generator)
    vectors = normalise_vectors(encoder.encode_documents([documents[row] for row in kept.tolist()]))
    foreign = _leave_out_alike(foreign, vectors, encoder)
    reference = PartReference(vectors.astype(np.float16), PairCounts.of(documents), PairCounts.of(foreign))
    chosen = kept[: min(MAX_TEXTS, len(kept))]
    own = _Examples.of([documents[row] for row in chosen.tolist()], encoder, reference, "documents")
    other = _draw_rows(len(foreign), MAX_TEXTS, generator)
    others = _Examples.of([foreign[row] for row in other.tolist()], encoder, reference, "foreign")
    return PartDiscriminator(encoder, reference, _train_network(own, others, shuffled, seed))


def _check_counts(documents: Sequence[str], foreign: Sequence[str]) -> None:
    if min(len(documents), len(foreign)) < 2:
        raise DataError(f"{len(documents)} documents and {len(foreign)} foreign texts; two of each are needed at least")


def _leave_out_alike(foreign: Sequence[str], documents: Floats, encoder: Encoder) -> list[str]:
    """Foreign texts less those that are as near to a document as documents are to each other.

    Documents of the kind that the foreign texts are of would otherwise be told from themselves. The farthest stay, if
    all are near.
    """
    sample = documents[:ALIKE_DOCUMENTS]
    few = min(NEAREST, len(documents) - 1)
    limit = np.quantile(_mean_nearest(sample, documents, few, own=True), ALIKE_QUANTILE)
    nearest = _mean_nearest(normalise_vectors(encoder.encode_documents(list(foreign))), documents, few)
    order = np.argsort(nearest, kind="stable")
    count = max(int((nearest < limit).sum()), min(LEAST_FOREIGN, len(foreign)))
    return [foreign[row] for row in np.sort(order[:count]).tolist()]


def _mean_nearest(vectors: Floats, documents: Floats, few: int, own: bool = False) -> Floats:
    """The mean cosine of each vector with its nearest few documents, (n,); `own`: vector i is document i, left out.

    Of a few, since among the documents there may be some that stray.
    """
    means = np.empty(len(vectors), dtype=np.float32)
    for at in range(0, len(vectors), ALIKE_DOCUMENTS):
        scores = vectors[at : at + ALIKE_DOCUMENTS] @ documents.T
        if own:
            rows = np.arange(len(scores))
            scores[rows, at + rows] = -1.0
        means[at : at + ALIKE_DOCUMENTS] = -np.partition(-scores, few - 1, axis=1)[:, :few].mean(1)
    return means


def load_demo_passages() -> list[str]:
    """The passages of the package's demo."""
    file = files("peg_rag") / "assets/demo/passages.jsonl.gz"
    with file.open("rb") as stream, gzip.open(stream, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _draw_rows(count: int, most: int, generator: np.random.Generator) -> Ints:
    """At most so many of 0…count−1, in random order."""
    rows: Ints = generator.permutation(count)[:most]
    return rows


class _Examples:
    """Texts of one kind by the features of their parts (parts, FEATURES); text i has the parts starts[i] on."""

    def __init__(self, features: Floats, counts: Ints) -> None:
        self.features = features
        self._counts = counts
        self._starts = np.cumsum(counts) - counts

    @classmethod
    def of(cls, texts: Sequence[str], encoder: Encoder, reference: PartReference, kind: str) -> "_Examples":
        parts = TextParts.of(texts)
        vectors = normalise_vectors(encoder.encode_documents(parts.parts))
        own_rows = parts.owners if kind == "documents" else None  # the documents kept begin with those trained on
        features = reference.describe_parts(parts.parts, vectors, own_rows=own_rows, of=kind)
        return cls(features, np.bincount(parts.owners, minlength=parts.texts))

    def draw_runs(self, count: int, generator: np.random.Generator) -> Ints:
        """Parts that follow one another, (count, LONGEST_RUN), −1 where a run is shorter."""
        texts = generator.integers(len(self._counts), size=count)
        lengths = np.minimum(_draw_lengths(count, generator), self._counts[texts])
        offsets = (generator.random(count) * (self._counts[texts] - lengths + 1)).astype(np.int64)
        places = np.arange(LONGEST_RUN)
        return np.where(places < lengths[:, None], (self._starts[texts] + offsets)[:, None] + places, -1)

    def draw_shuffled(self, count: int, generator: np.random.Generator) -> Ints:
        """Parts of any texts together, (count, LONGEST_RUN); two at least."""
        lengths = np.maximum(_draw_lengths(count, generator), 2)
        rows = generator.integers(len(self.features), size=(count, LONGEST_RUN))
        return np.where(np.arange(LONGEST_RUN) < lengths[:, None], rows, -1)


def _draw_lengths(count: int, generator: np.random.Generator) -> Ints:
    lengths = generator.integers(2, LONGEST_RUN + 1, size=count)
    return np.where(generator.random(count) < SINGLE_SHARE, 1, lengths)


class _Network(nn.Module):
    """`PartNetwork` while it is trained."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.randn(len(FEATURES), HIDDEN, generator=generator) / len(FEATURES) ** 0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.output = nn.Parameter(torch.zeros(2 * HIDDEN))
        self.output_bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Features (n, parts, FEATURES) and which parts there are (n, parts) → log-odds (n,)."""
        hidden = torch.relu(features @ self.hidden + self.hidden_bias)  # (n, parts, h)
        weights = present.to(hidden.dtype).unsqueeze(2)
        counts = weights.sum(1)
        means = (hidden * weights).sum(1) / counts  # (n, h)
        variances = ((hidden - means.unsqueeze(1)).square() * weights).sum(1) / counts
        return torch.cat([means, (variances + 1e-6).sqrt()], 1) @ self.output + self.output_bias


def _train_network(own: _Examples, others: _Examples, shuffled: float, seed: int) -> PartNetwork:
    generator = np.random.default_rng(seed + 1)
    both = np.concatenate([own.features, others.features])
    centre = both.mean(0)
    scale = np.maximum(both.std(0), 1e-6)
    network = _Network(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    half = EXAMPLES // 2
    mixed = round(shuffled * half)
    labels = torch.cat([torch.ones(half), torch.zeros(half)])
    for _ in range(STEPS):
        drawn = [
            (own, own.draw_runs(half, generator)),
            (own, own.draw_shuffled(mixed, generator)),
            (others, others.draw_runs(half - mixed, generator)),
        ]
        features = np.concatenate([(kind.features[rows] - centre) / scale for kind, rows in drawn])
        present = np.concatenate([rows >= 0 for _, rows in drawn])
        odds = network(_to_tensor(features), torch.from_numpy(present))
        loss = functional.binary_cross_entropy_with_logits(odds, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = (network.hidden, network.hidden_bias, network.output, network.output_bias)
    return PartNetwork(centre, scale, *(weight.detach().numpy() for weight in weights))


def _to_tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
