"""From a plan of rows to what a training step takes: token ids, owners and text keys of one rank's share of a batch.

Why this exists: everything here is a function of the step alone (and of the rank), so a data loader needs no memory
and no order, and any worker can prepare any step. Hard negatives are chosen for the whole batch on every rank alike,
so that no text stands in it twice whatever the number of ranks. Costs one to three seconds on a CPU core for 80,000
documents; `data_workers` prepares batches ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peg_rag.training.data.pairs import PairFile, pair_texts, row_negative_keys, row_tokens
from peg_rag.training.data.sampler import BatchPlan, PlannedBatch, mix
from peg_rag.training.data.tokens import Ints, TokenRows
from peg_rag.training.loss.contrastive import Pairs


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a batch: b queries, and n documents, of which the first b are their positives.

    Attributes:
        step: from 0.
        rows: where the queries come from.
        queries, documents: token ids of b and n texts.
        owners: the query that brought a document, (n,).
        query_keys, document_keys: see `text_key`, (b,) and (n,).
        known_positives: further (query, document) rows that are answers, (k, 2).
        grades: the labels as numbers, NaN where there is none, (b,).
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

    def pairs(self, device: torch.device) -> Pairs:
        """What the loss must know, as tensors."""
        return Pairs(
            positives=torch.arange(len(self.queries), device=device),
            owners=_tensor(self.owners, device),
            query_texts=_tensor(self.query_keys, device),
            document_texts=_tensor(self.document_keys, device),
            known_positives=_tensor(self.known_positives, device) if len(self.known_positives) else None,
        )


class FeatureRows:
    """Token ids as the input of a `TrainableEncoder`; the `Rows` that a cached step asks for."""

    def __init__(self, rows: TokenRows, pad_id: int, device: torch.device) -> None:
        self._rows, self._pad_id, self._device = rows, pad_id, device
        self._lengths = rows.lengths

    @property
    def lengths(self) -> Ints:
        return self._lengths

    def features(self, rows: NDArray[np.intp]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, (rows, longest) int64, on the device."""
        part = self._rows.take(rows)
        lengths = part.lengths
        mask = np.arange(max(int(lengths.max()), 1)) < lengths[:, None]  # (rows, longest)
        ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        ids[mask] = part.tokens
        return {"input_ids": _tensor(ids, self._device), "attention_mask": _tensor(mask.astype(np.int64), self._device)}


class KnownPositives:
    """Which texts answer which query, over all files: found by binary search, 16 bytes a pair."""

    def __init__(self, files: Sequence[PairFile]) -> None:
        queries = np.concatenate([file.query_keys[file.kept] for file in files])
        order = np.argsort(queries, kind="stable")
        self._queries = queries[order]
        self._positives = np.concatenate([file.positive_keys[file.kept] for file in files])[order]

    def among(self, query_keys: Ints, document_keys: Ints) -> Ints:
        """Rows (query, document), (k, 2), where the document is known to answer the query."""
        low = np.searchsorted(self._queries, query_keys, side="left")
        counts = np.searchsorted(self._queries, query_keys, side="right") - low  # (b,)
        rows = np.repeat(np.arange(len(query_keys)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        answers = self._positives[np.repeat(low, counts) + within]  # (answers,)
        order = np.argsort(document_keys, kind="stable")
        place = np.searchsorted(document_keys[order], answers)
        documents = order[np.minimum(place, len(order) - 1)]
        found = document_keys[documents] == answers
        return np.stack([rows[found], documents[found]], axis=1)


class StepBatches(torch.utils.data.Dataset[dict[str, RankBatch]]):
    """Item `step` is this rank's share of batch `step`."""

    def __init__(
        self, files: Sequence[PairFile], rows: Sequence[Ints], plan: BatchPlan, *, negatives: int, rank: int, world: int
    ) -> None:
        """`rows[i]` are the rows of `files[i]` that the plan's source i stands for."""
        self._files, self._rows, self._plan = files, rows, plan
        self._negatives, self._rank, self._world = negatives, rank, world
        self._known = KnownPositives(files)

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> dict[str, RankBatch]:
        planned = self._plan.batch(step)
        planned = _by_source(_whole_shards(planned, self._world))
        size = len(planned) // self._world
        mine = slice(self._rank * size, (self._rank + 1) * size)
        chosen = self._choose_negatives(planned, step) if self._negatives else [[] for _ in range(len(planned))]
        return {"batch": self._read(step, planned.shard(self._rank, self._world), chosen[mine])}

    def texts(self, batch: RankBatch) -> list[dict[str, Any]]:
        """The rows of a batch as text, with where they come from."""
        rows = []
        for file, numbers in self._groups(batch.rows):
            for number, row in zip(numbers.tolist(), pair_texts(file, numbers), strict=True):
                rows.append({"file": file.name, "row": number, **row})
        return rows

    def _groups(self, planned: PlannedBatch) -> list[tuple[PairFile, Ints]]:
        """Rows of the files, file by file: a batch is kept in this order."""
        return [
            (self._files[source], self._rows[source][planned.rows[planned.sources == source]])
            for source in np.unique(planned.sources)
        ]

    def _choose_negatives(self, planned: PlannedBatch, step: int) -> list[list[int]]:
        """For each row the places, among its negatives, of at most `negatives` texts that are nowhere else."""
        groups = self._groups(planned)
        seen = {
            key
            for file, rows in groups
            for keys in (file.query_keys, file.positive_keys)
            for key in keys[rows].tolist()
        }
        chosen = []
        for file, rows in groups:
            keys, offsets = row_negative_keys(file, rows)
            draws = mix(keys.view(np.uint64), self._plan.seed, 5, step)
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                places = range(start, end)
                if end - start > self._negatives:
                    places = (start + np.argsort(draws[start:end], kind="stable")).tolist()
                taken: list[int] = []
                for place in places:
                    key = int(keys[place])
                    if len(taken) < self._negatives and key not in seen:
                        seen.add(key)
                        taken.append(place - start)
                chosen.append(sorted(taken))
        return chosen

    def _read(self, step: int, planned: PlannedBatch, chosen: list[list[int]]) -> RankBatch:
        queries, positives, negatives, negative_keys = [], [], [], []
        query_keys, positive_keys, grades = [], [], []
        done = 0
        for file, rows in self._groups(planned):
            read = row_tokens(file, rows)
            mine = chosen[done : done + len(rows)]
            places = np.array(
                [
                    start + place
                    for start, taken in zip(read.negative_offsets.tolist(), mine, strict=False)
                    for place in taken
                ],
                dtype=np.int64,
            )
            queries.append(read.queries)
            positives.append(read.positives)
            negatives.append(read.negatives.take(places))
            negative_keys.append(read.negative_keys[places])
            query_keys.append(file.query_keys[rows])
            positive_keys.append(file.positive_keys[rows])
            grades.append(file.grades[rows])
            done += len(rows)
        owners = np.repeat(np.arange(done), [len(taken) for taken in chosen])
        asked, documents = np.concatenate(query_keys), np.concatenate([*positive_keys, *negative_keys])
        return RankBatch(
            step=step,
            rows=planned,
            queries=TokenRows.joined(queries),
            documents=TokenRows.joined([*positives, *negatives]),
            owners=np.concatenate([np.arange(done), owners]),
            query_keys=asked,
            document_keys=documents,
            known_positives=self._known.among(asked, documents),
            grades=np.concatenate(grades),
        )


def _whole_shards(planned: PlannedBatch, world: int) -> PlannedBatch:
    size = len(planned) // world * world
    return PlannedBatch(planned.sources[:size], planned.rows[:size])


def _by_source(planned: PlannedBatch) -> PlannedBatch:
    order = np.argsort(planned.sources, kind="stable")
    return PlannedBatch(planned.sources[order], planned.rows[order])


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
