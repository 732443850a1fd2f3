"""One HTML page that says whether search got better: thumbs over time, and the present index beside earlier ones.

Thumbs alone mislead, for the questions change with the readers. So the questions that readers have judged are put to
the index of today and to the earlier models or stores, and their scores are compared query by query. Costs a search for
each judged question, and for an earlier model an encoding of all passages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peg_rag.errors import DataError
from peg_rag.evaluation import Evaluation, RetrievalDataset, System, evaluate
from peg_rag.evaluation.report import _STYLE, _render_figure, _render_means, summarise
from peg_rag.feedback.export import Judgements, collect_judgements
from peg_rag.feedback.store import Rating
from peg_rag.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peg_rag.index import PEGIndex
    from peg_rag.retriever import Encoder

METRICS = ("nDCG@10", "Recall@10", "MRR@10")
_SHOWN_REASONS = 20
_DEPTH = 100  # hits that are judged


@dataclass(frozen=True)
class Store:
    """A store as a `System`: its own index and model, searched as `/ask` does, with hybrid search."""

    index: "PEGIndex"
    encoder: "Encoder"
    name: str

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> dict[str, dict[str, float]]:
        from peg_rag.retriever import Retriever

        retriever = Retriever(self.index, self.encoder, k=k, mode="hybrid")
        hits = retriever.retrieve_batch(list(dataset.queries.values()))
        return {
            query: {hit.id: hit.score for hit in query_hits}
            for query, query_hits in zip(dataset.queries, hits, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Week:
    """The thumbs of a week, from Monday 00:00 UTC."""

    monday: datetime
    up: int
    down: int


def judged_dataset(judgements: Judgements, index: "PEGIndex") -> RetrievalDataset:
    """The judged questions that have a relevant passage, over all passages of the index.

    Raises:
        DataError: there is no such question.
    """
    if not judgements.answered:
        raise DataError("no rating names a passage that answers its question, so nothing can be scored yet")
    corpus = {record.id: record.text for record in index.get(where={})}
    queries = {query: judgements.queries[query] for query in judgements.answered}
    return RetrievalDataset("feedback", corpus, queries, judgements.answered)


def count_weeks(ratings: Sequence[Rating]) -> list[Week]:
    """The thumbs by week, from the first rating's to the last's, weeks without any included."""
    counts: dict[datetime, list[int]] = {}
    for rating in ratings:
        day = datetime.fromtimestamp(rating.created_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        week = counts.setdefault(day - timedelta(days=day.weekday()), [0, 0])
        week[rating.vote == "down"] += 1
    if not counts:
        return []
    first = min(counts)
    weeks = (max(counts) - first).days // 7 + 1
    mondays = [first + timedelta(weeks=number) for number in range(weeks)]
    return [Week(monday, *counts.get(monday, [0, 0])) for monday in mondays]


def score_systems(
    ratings: Sequence[Rating], index: "PEGIndex", systems: Sequence[System]
) -> tuple[Judgements, list[Evaluation]]:
    """The judgements of the ratings, and each system's scores on them; no scores where nothing can be scored yet."""
    judgements = collect_judgements(ratings, index)
    if not judgements.answered:
        return judgements, []
    dataset = judged_dataset(judgements, index)
    return judgements, [evaluate(system, dataset, k=_DEPTH) for system in systems]


def write_report(
    path: str | Path, ratings: Sequence[Rating], judgements: Judgements, results: Sequence[Evaluation]
) -> None:
    """Write the page. It has no scripts and no links, so it can be mailed and archived.

    Args:
        results: of the present index first; a later one is tested against it.
    """
    up = sum(rating.vote == "up" for rating in ratings)
    parts = [
        "<h1>Feedback</h1>",
        f"<p>{len(ratings):,} ratings: {up:,} useful, {len(ratings) - up:,} not. {len(judgements.queries):,} questions "
        f"have judged passages, {len(judgements.answered):,} of them a relevant one.</p>",
        "<h2>Thumbs by week</h2>",
        _draw_weeks(count_weeks(ratings)) if ratings else "<p>There are no ratings yet.</p>",
        "<h2>The judged questions, asked again</h2>",
        _render_scores(results),
        _render_reasons(ratings),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Feedback</title><style>{_STYLE}</style>'
    write_atomically(Path(path), (head + "".join(parts) + "</html>").encode())


def _render_scores(results: Sequence[Evaluation]) -> str:
    if not results:
        return '<p class="note">No question has a relevant passage yet: nothing can be scored.</p>'
    note = (
        f"{len(results[0].query_ids):,} questions with a relevant passage; differences are against "
        f"{escape(results[0].system)}, with the p-value of a permutation test paired over questions. Passages that "
        "nobody judged count as wrong, which favours the system whose answers were rated."
    )
    tables = [_render_means(summarise(results, metric), metric) for metric in METRICS]
    return f'<p class="note">{note}</p>{_draw_scores(results)}{"".join(tables)}'


def _draw_scores(results: Sequence[Evaluation]) -> str:
    def panel(metric: str) -> Any:
        def draw(axes: "Axes") -> None:
            places = np.arange(len(results))
            axes.barh(places, [result.mean(metric) for result in results], color="#3d6f8e", height=0.6)
            axes.set_yticks(places, [result.system for result in results] if metric == METRICS[0] else [])
            axes.invert_yaxis()
            axes.set(title=metric, xlim=(0, 1))

        return draw

    return _render_figure([panel(metric) for metric in METRICS], (11, 0.9 + 0.4 * len(results)))


def _draw_weeks(weeks: Sequence[Week]) -> str:
    def draw(axes: "Axes") -> None:
        places = np.arange(len(weeks))
        axes.bar(places, [week.up for week in weeks], color="#2a7", label="useful")
        axes.bar(places, [-week.down for week in weeks], color="#c44", label="not useful")
        step = -(-len(weeks) // 6)  # of more dates, one would lie upon the next
        axes.set_xticks(places[::step], [f"{week.monday:%Y-%m-%d}" for week in weeks[::step]])
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.locator_params(axis="y", integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
        axes.set(ylabel="ratings")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _render_figure([draw], (10, 2.6))


def _render_reasons(ratings: Sequence[Rating]) -> str:
    """The newest reasons for a thumb down, to be read by people."""
    reasons = [rating for rating in reversed(ratings) if rating.vote == "down" and rating.reason][:_SHOWN_REASONS]
    if not reasons:
        return ""
    rows = [f"<tr><td>{escape(rating.question)}</td><td>{escape(rating.reason)}</td></tr>" for rating in reasons]
    table = f"<table><tr><th>question</th><th>reason</th></tr>{''.join(rows)}</table>"
    return f"<h2>What was wrong, in readers' words</h2>{table}"
