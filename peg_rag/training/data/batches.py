"""From a plan of rows to what a training step takes: token ids, owners and text keys of one rank's share of a batch.

Everything here is a function of the step alone (and of the rank), so a data loader needs no memory and no order, and
any worker can prepare any step. Hard negatives are chosen for the whole batch on every rank alike, so that no text
stands in it twice whatever the number of ranks. Costs one to three seconds on a CPU core for 80,000 documents;
`data_workers` prepares batches ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peg_rag.training.data.pairs import PairFile, pair_texts, row_negative_keys, row_tokens
from peg_rag.training.data.sampler import PlannedBatch, mix
from peg_rag.training.data.tokens import Ints, TokenRows
from peg_rag.training.extension import BatchSampler, BatchTransform
from peg_rag.training.loss.contrastive import Pairs


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a batch: b queries, and n documents, of which the first b are their positives.

    Attributes:
        step: from 0.
        rows: where the queries come from.
        queries, documents: token ids of b and n texts.
        owners: the query that brought a document, −1 for one that all share, (n,).
        query_keys, document_keys: see `text_key`, (b,) and (n,).
        known_positives: further (query, document) rows that are answers, (k, 2).
        known_texts: (query row, text key) of all answers in the files; None where nothing asks for them.
        grades: the labels as numbers, NaN where there is none, (b,).
        weights: by which the queries count in the loss, (b,); None: all alike.
    """

    step: int
    rows: PlannedBatch
    queries: TokenRows
    documents: TokenRows
    owners: Ints
    query_keys: Ints
    document_keys: Ints
    known_positives: Ints
    grades: NDArray[np.float32]
    known_texts: Ints | None = None
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def pairs(self, device: torch.device) -> Pairs:
        """What the loss must know, as tensors."""
        return Pairs(
            positives=torch.arange(len(self.queries), device=device),
            owners=_to_tensor(self.owners, device),
            query_text_ids=_to_tensor(self.query_keys, device),
            document_text_ids=_to_tensor(self.document_keys, device),
            known_positives=_to_tensor(self.known_positives, device) if len(self.known_positives) else None,
            known_texts=None if self.known_texts is None else _to_tensor(self.known_texts, device),
            query_weights=None if self.weights is None else _to_tensor(self.weights, device),
        )

    def pin_memory(self) -> "RankBatch":
        """The same with its tokens in page-locked memory, from which a GPU copies them beside other work."""
        queries, documents = (
            TokenRows(_pin_array(side.tokens), side.offsets) for side in (self.queries, self.documents)
        )
        return replace(self, queries=queries, documents=documents)


class FeatureRows:
    """Token ids as the input of a `TrainableEncoder`; the `Rows` that a cached step asks for.

    All tokens go to the device at once; padding is made there, chunk by chunk.
    """

    def __init__(self, rows: TokenRows, pad_id: int, device: torch.device) -> None:
        self._lengths = rows.lengths
        self._starts = rows.offsets[:-1]
        tokens = rows.tokens if len(rows.tokens) else np.array([pad_id], dtype=np.int32)
        self._tokens = _to_tensor(tokens, device)
        self._pad_id = pad_id

    @property
    def lengths(self) -> Ints:
        """Tokens of each text, (n,)."""
        return self._lengths

    def features(self, rows: NDArray[np.intp]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, (rows, longest) int64, on the device."""
        device = self._tokens.device
        longest = max(int(self._lengths[rows].max()), 1)
        place = torch.arange(longest, device=device)
        padding = place >= _to_tensor(self._lengths[rows], device).unsqueeze(1)  # (rows, longest)
        index = (_to_tensor(self._starts[rows], device).unsqueeze(1) + place).masked_fill_(padding, 0)
        ids = self._tokens[index].long().masked_fill_(padding, self._pad_id)
        return {"input_ids": ids, "attention_mask": (~padding).long()}


class KnownPositives:
    """Which texts answer which query, over all files: found by binary search, 16 bytes a pair."""

    def __init__(self, files: Sequence[PairFile]) -> None:
        queries = np.concatenate([file.query_keys[file.usable] for file in files])
        order = np.argsort(queries, kind="stable")
        self._queries = queries[order]
        self._positives = np.concatenate([file.positive_keys[file.usable] for file in files])[order]

    def answers(self, query_keys: Ints) -> Ints:
        """(query row, text key) of every known answer, (k, 2)."""
        low = np.searchsorted(self._queries, query_keys, side="left")
        counts = np.searchsorted(self._queries, query_keys, side="right") - low  # (b,)
        rows = np.repeat(np.arange(len(query_keys)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([rows, self._positives[np.repeat(low, counts) + within]], axis=1)

    def among(self, query_keys: Ints, document_keys: Ints) -> Ints:
        """(query row, document row), (k, 2), where the document is known to answer the query."""
        rows, keys = self.answers(query_keys).T
        order = np.argsort(document_keys, kind="stable")
        place = np.searchsorted(document_keys[order], keys)
        documents = order[np.minimum(place, len(order) - 1)]
        is_answer = document_keys[documents] == keys
        return np.stack([rows[is_answer], documents[is_answer]], axis=1)


class StepBatches(torch.utils.data.Dataset[RankBatch]):
    """Item `step` is this rank's share of batch `step`.

    Args:
        files, rows: `rows[i]` are the rows of `files[i]` that the sampler's source i stands for.
        sampler: which rows make up a batch.
        steps: batches there are.
        negatives: at most so many for each query.
        seed: of the choice among more negatives than that.
        transforms: change a batch once it is read, in this order.
        with_answers: list all known answers of the queries, for candidates that come from outside the batch.
        known_positives: the answers of all queries; None takes those of the files.
    """

    def __init__(
        self,
        files: Sequence[PairFile],
        rows: Sequence[Ints],
        sampler: BatchSampler,
        *,
        steps: int,
        negatives: int,
        rank: int,
        world: int,
        seed: int = 0,
        transforms: Sequence[BatchTransform] = (),
        with_answers: bool = False,
        known_positives: KnownPositives | None = None,
    ) -> None:
        self._files = files
        self._rows = rows
        self._sampler = sampler
        self._steps = steps
        self._negatives = negatives
        self._rank = rank
        self._world = world
        self._seed = seed
        self._transforms = transforms
        self._with_answers = with_answers
        self._known_positives = KnownPositives(files) if known_positives is None else known_positives
        self._weighted = any((file.weights != 1).any() for file in files)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> RankBatch:
        plan = sort_by_source(drop_remainder(self._sampler.batch(step), self._world))
        size = len(plan) // self._world
        choices: list[list[int]] = [[] for _ in range(len(plan))]
        if self._negatives:
            choices = self._choose_negatives(plan, step)
        share = slice(self._rank * size, (self._rank + 1) * size)
        batch = self._read_batch(step, plan.shard(self._rank, self._world), choices[share])
        for transform in self._transforms:
            batch = transform(batch, step)
        return batch

    def texts(self, batch: RankBatch) -> list[dict[str, Any]]:
        """The rows of a batch as text, with where they come from."""
        rows = []
        for file, numbers in self._group_by_file(batch.rows):
            for number, row in zip(numbers.tolist(), pair_texts(file, numbers), strict=True):
                rows.append({"file": file.name, "row": number, **row})
        return rows

    def _group_by_file(self, plan: PlannedBatch) -> list[tuple[PairFile, Ints]]:
        """Rows of the files, file by file: a batch is kept in this order."""
        return [
            (self._files[source], self._rows[source][plan.rows[plan.sources == source]])
            for source in np.unique(plan.sources)
        ]

    def _choose_negatives(self, plan: PlannedBatch, step: int) -> list[list[int]]:
        """For each row the places, among its negatives, of at most `negatives` texts that are nowhere else."""
        groups = self._group_by_file(plan)
        used_keys = {
            key
            for file, rows in groups
            for keys in (file.query_keys, file.positive_keys)
            for key in keys[rows].tolist()
        }
        choices = []
        for file, rows in groups:
            keys, offsets = row_negative_keys(file, rows)
            draws = mix(keys.view(np.uint64), self._seed, 5, step)
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                places = list(range(start, end))
                if end - start > self._negatives:
                    places = (start + np.argsort(draws[start:end], kind="stable")).tolist()
                choice: list[int] = []
                for place in places:
                    key = int(keys[place])
                    if len(choice) < self._negatives and key not in used_keys:
                        used_keys.add(key)
                        choice.append(place - start)
                choices.append(sorted(choice))
        return choices

    def _read_batch(self, step: int, plan: PlannedBatch, choices: list[list[int]]) -> RankBatch:
        queries, positives, negatives = [], [], []
        query_keys, positive_keys, negative_keys, grades, weights = [], [], [], [], []
        start = 0
        for file, rows in self._group_by_file(plan):
            tokens = row_tokens(file, rows)
            places = _flatten_choices(tokens.negative_offsets, choices[start : start + len(rows)])
            queries.append(tokens.queries)
            positives.append(tokens.positives)
            negatives.append(tokens.negatives.take(places))
            negative_keys.append(tokens.negative_keys[places])
            query_keys.append(file.query_keys[rows])
            positive_keys.append(file.positive_keys[rows])
            grades.append(file.grades[rows])
            weights.append(file.weights[rows])
            start += len(rows)
        owners = np.repeat(np.arange(start), [len(choice) for choice in choices])
        all_query_keys = np.concatenate(query_keys)
        document_keys = np.concatenate([*positive_keys, *negative_keys])
        return RankBatch(
            step=step,
            rows=plan,
            queries=TokenRows.joined(queries),
            documents=TokenRows.joined([*positives, *negatives]),
            owners=np.concatenate([np.arange(start), owners]),
            query_keys=all_query_keys,
            document_keys=document_keys,
            known_positives=self._known_positives.among(all_query_keys, document_keys),
            grades=np.concatenate(grades),
            known_texts=self._known_positives.answers(all_query_keys) if self._with_answers else None,
            weights=np.concatenate(weights) if self._weighted else None,
        )


def _flatten_choices(offsets: Ints, choices: list[list[int]]) -> Ints:
    """Places among the negatives of all rows, given those among each row's own."""
    starts = offsets[:-1].tolist()
    places = [start + place for start, choice in zip(starts, choices, strict=True) for place in choice]
    return np.array(places, dtype=np.int64)


def drop_remainder(plan: PlannedBatch, world: int) -> PlannedBatch:
    """As many rows as the ranks can share out evenly."""
    size = len(plan) // world * world
    return PlannedBatch(plan.sources[:size], plan.rows[:size])


def sort_by_source(plan: PlannedBatch) -> PlannedBatch:
    """The rows source by source, in their order otherwise."""
    order = np.argsort(plan.sources, kind="stable")
    return PlannedBatch(plan.sources[order], plan.rows[order])


def _to_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _pin_array(array: NDArray[Any]) -> NDArray[Any]:
    pinned: NDArray[Any] = torch.from_numpy(np.ascontiguousarray(array)).pin_memory().numpy()
    return pinned
