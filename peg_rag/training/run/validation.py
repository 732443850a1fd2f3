"""What a run is judged by while it trains: a split of its own pairs, and BEIR folders to report on.

A choice made on the evaluation sets makes their numbers worthless, so choices are made on a split of the training
pairs. It is cut by the query's text alone (the same text is always on the same side, whatever the seed, the files or
their order) and before anything is sampled; training rows whose positive is a validation query go as well. Texts are
tokenised once; each evaluation costs one encoding of a few thousand of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peg_rag.batching import plan_batches
from peg_rag.errors import DataError
from peg_rag.evaluation import RetrievalDataset, evaluate, load_beir
from peg_rag.training.data.batches import FeatureRows
from peg_rag.training.data.pairs import KeyedFile, PairFile, pair_texts
from peg_rag.training.data.sampler import SourceRows, in_validation, smallest_hashes
from peg_rag.training.data.tokens import Ints, TokenRows
from peg_rag.training.model.encoder import TrainableEncoder
from peg_rag.training.recipe import ObjectiveName, ValidationOptions, expand_path

METRIC = "nDCG@10"
EVALUATION_TOKENS = 16_384
_SALT_QUERIES = 11
_SALT_DISTRACTORS = 12


@dataclass(frozen=True)
class Split:
    """Rows of each file to train on, and rows whose queries are scored."""

    training: list[Ints]
    validation: list[Ints]


def split_rows(files: Sequence[KeyedFile], options: ValidationOptions) -> Split:
    """Cut the validation split off; the rows of one query text (of plain texts: one text) are all on one side."""
    held_out = [in_validation(file.query_keys[file.usable], options.share) for file in files]
    queries = [file.query_keys[file.usable][out] for file, out in zip(files, held_out, strict=True)]
    validation_keys = np.unique(np.concatenate(queries))
    training = []
    validation = []
    for file, out in zip(files, held_out, strict=True):
        leaks = np.isin(file.positive_keys[file.usable], validation_keys)
        training.append(file.usable[~out & ~leaks])
        rows = file.usable[out]
        keys = np.unique(file.query_keys[rows])
        sample = keys[smallest_hashes(keys, options.queries_per_source, _SALT_QUERIES)]
        validation.append(rows[np.isin(file.query_keys[rows], sample)])
    return Split(training, validation)


def training_sources(files: Sequence[KeyedFile], rows: Sequence[Ints]) -> list[SourceRows]:
    """The rows as sampling sees them."""
    return [
        SourceRows(file.name, file.query_keys[numbers], file.positive_keys[numbers], file.weight)
        for file, numbers in zip(files, rows, strict=True)
    ]


def retrieval_validation(files: Sequence[PairFile], split: Split, distractors: int) -> RetrievalDataset | None:
    """The split as a retrieval task; None where it has no row. Query ids begin with the file's number."""
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, (file, rows) in enumerate(zip(files, split.validation, strict=True)):
        for row, text in zip(rows.tolist(), pair_texts(file, rows) if len(rows) else [], strict=True):
            query = f"{number}/{file.query_keys[row]}"
            positive = str(file.positive_keys[row])
            queries[query] = text["query"]
            corpus[positive] = text["positive"]
            qrels.setdefault(query, {})[positive] = 1
            corpus.update({f"{positive}/{i}": negative for i, negative in enumerate(text["negatives"])})
    total = sum(map(len, split.training))
    for file, rows in zip(files, split.training, strict=True):
        share = distractors * len(rows) // max(total, 1)
        sample = rows[smallest_hashes(file.positive_keys[rows], share, _SALT_DISTRACTORS)]
        for row, text in zip(sample.tolist(), pair_texts(file, sample) if len(sample) else [], strict=True):
            corpus.setdefault(str(file.positive_keys[row]), text["positive"])
    return RetrievalDataset("validation", corpus, queries, qrels) if queries else None


@dataclass(frozen=True)
class GradedPairs:
    """Pairs with a grade, to be ranked by similarity."""

    first: list[str]
    second: list[str]
    grades: NDArray[np.float32]


def graded_validation(files: Sequence[PairFile], split: Split) -> GradedPairs | None:
    """The split of graded pairs; None where it has no row."""
    texts = [
        row for file, rows in zip(files, split.validation, strict=True) if len(rows) for row in pair_texts(file, rows)
    ]
    if not texts:
        return None
    grades = np.concatenate([file.grades[rows] for file, rows in zip(files, split.validation, strict=True)])
    return GradedPairs([row["query"] for row in texts], [row["positive"] for row in texts], grades)


class InTraining:
    """A model that is being trained, as the encoder that evaluation takes. Dropout is off while it encodes.

    Args:
        autocast: the precision to encode in.
        tokens: remembers the token ids of every list of texts, for models that share a tokenizer; None remembers none.
    """

    identity = "in training"

    def __init__(
        self,
        encoder: TrainableEncoder,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        tokens: dict[bytes, TokenRows] | None = None,
    ) -> None:
        self._encoder = encoder
        self._autocast = autocast
        self._tokens = tokens
        self._device = next(encoder.parameters()).device

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return self._encode_texts(texts, self._encoder.query_prompt)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return self._encode_texts(texts, self._encoder.document_prompt)

    def _encode_texts(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        tokens = self._tokenise_texts(texts, prompt)
        rows = FeatureRows(tokens, self._encoder.pad_id, self._device)
        vectors = np.empty((len(texts), self._encoder.dimension), dtype=np.float32)
        training = self._encoder.training
        self._encoder.eval()
        try:
            with torch.no_grad(), self._autocast():
                for batch in plan_batches(tokens.lengths, EVALUATION_TOKENS):
                    vectors[batch] = self._encoder(rows.features(batch)).float().cpu().numpy()
        finally:
            self._encoder.train(training)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(norms, 1e-12)
        return vectors

    def _tokenise_texts(self, texts: Sequence[str], prompt: str) -> TokenRows:
        """Token ids, from memory where the same texts were encoded before: hashing them is a hundred times faster."""
        if self._tokens is None:
            return TokenRows.of(self._encoder.token_ids([prompt + text for text in texts]))
        digest = hashlib.blake2b(prompt.encode(), digest_size=16)
        for text in texts:
            digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
        key = digest.digest()
        if key not in self._tokens:
            self._tokens[key] = TokenRows.of(self._encoder.token_ids([prompt + text for text in texts]))
        return self._tokens[key]


class BeirFolders:
    """The evaluation sets that a recipe names, read when first asked for and kept."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders

    def check(self) -> None:
        """A folder that does not exist should be known now and not after the first thousand steps.

        Raises:
            DataError: one does not exist.
        """
        for i, folder in enumerate(self._folders):
            if not expand_path(folder).is_dir():
                raise DataError(f"evaluation.beir[{i}]: {folder} does not exist; a folder in BEIR's form is expected")

    @cached_property
    def datasets(self) -> list[RetrievalDataset]:
        """In the order of the recipe."""
        return [load_beir(expand_path(folder)) for folder in self._folders]


class StageScorer:
    """Scores of a stage's model: on its validation split, and on the BEIR folders. Everything is read once."""

    def __init__(
        self, objective: ObjectiveName, files: Sequence[PairFile], split: Split, distractors: int, beir: BeirFolders
    ) -> None:
        self._objective = objective
        self._files = files
        self._split = split
        self._distractors = distractors
        self._beir = beir

    def score(self, encoder: InTraining) -> dict[str, float]:
        """`ndcg@10` and `ndcg@10_by_file`, or `spearman`, and `<name>_ndcg@10` of each BEIR folder."""
        scores: dict[str, float] = {}
        if self._objective == "cosent" and self._graded_pairs is not None:
            scores |= graded_scores(encoder, self._graded_pairs)
        if self._objective == "contrastive" and self._retrieval_task is not None:
            scores |= retrieval_scores(encoder, self._retrieval_task, self._files)
        for dataset in self._beir.datasets:
            scores[f"{dataset.name}_ndcg@10"] = evaluate(encoder, dataset, k=100).mean()
        return scores

    @cached_property
    def _graded_pairs(self) -> "GradedPairs | None":
        return graded_validation(self._files, self._split)

    @cached_property
    def _retrieval_task(self) -> RetrievalDataset | None:
        return retrieval_validation(self._files, self._split, self._distractors)


def retrieval_scores(encoder: InTraining, dataset: RetrievalDataset, files: Sequence[PairFile]) -> dict[str, float]:
    """nDCG@10 over all queries, and the mean of the files' means (a large file counts no more than a small one)."""
    result = evaluate(encoder, dataset, k=100)
    values = result.values[METRIC]
    numbers = np.array([int(query.split("/")[0]) for query in result.query_ids])
    means = [float(values[numbers == number].mean()) for number in range(len(files)) if (numbers == number).any()]
    return {"ndcg@10": float(values.mean()), "ndcg@10_by_file": float(np.mean(means))}


def graded_scores(encoder: InTraining, pairs: GradedPairs) -> dict[str, float]:
    """Spearman's rank correlation of cosine and grade."""
    cosines = (encoder.encode_queries(pairs.first) * encoder.encode_documents(pairs.second)).sum(axis=1)
    return {"spearman": spearman(cosines, pairs.grades)}


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Rank correlation, equal values sharing their mean rank."""
    if len(first) < 2:
        raise DataError(f"a rank correlation of {len(first)} pairs; 2 or more are needed: raise validation.share")
    return float(np.corrcoef(_rank_values(first), _rank_values(second))[0, 1])


def _rank_values(values: NDArray[Any]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
