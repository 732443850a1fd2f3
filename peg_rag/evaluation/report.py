"""Evaluation reports: the values of every query in Parquet, and one HTML page.

A mean says which system is better; the wrong hits say why. The page is a single file without scripts or links, so it
can be mailed and archived. It takes a second or two, most of it matplotlib's.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peg_rag.evaluation.datasets import RetrievalDataset
from peg_rag.evaluation.metrics import METRICS
from peg_rag.evaluation.scoring import Evaluation
from peg_rag.evaluation.significance import Comparison, compare
from peg_rag.extras import require
from peg_rag.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORST = 5  # queries shown for each set
SHOWN_HITS = 3
EXCERPT = 160  # characters of a text that are shown
_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; color: #222;
       max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% } svg { max-width: 100%; height: auto }
td, th { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } td.best { font-weight: 700 }
.hit { margin: 0 0 .5rem; padding-left: .6rem; border-left: 3px solid #c44 } .hit.right { border-color: #2a7 }
.score { color: #777; font-size: .85em } .worst { table-layout: fixed }
h3 { margin: 2rem 0 .2rem } .note { color: #666 }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A dataset's means by system, and each later system against the first."""

    dataset: str
    means: Mapping[str, float]
    comparisons: Mapping[str, Comparison]


def summarise(results: Sequence[Evaluation], metric: str = "nDCG@10") -> list[Row]:
    """One row for each dataset, in the order met. Several results of one system on one set count as its seeds."""
    rows = []
    for dataset, group in _group_by(results, "dataset").items():
        systems = _group_by(group, "system")
        first = next(iter(systems.values()))
        means = {name: float(np.mean([run.mean(metric) for run in runs])) for name, runs in systems.items()}
        against = {name: compare(first, runs, metric) for name, runs in systems.items() if runs is not first}
        rows.append(Row(dataset, means, against))
    return rows


def write_per_query(results: Iterable[Evaluation], path: str | Path) -> None:
    """Write a row for each dataset, system and query: its id, every metric, and what was found first (Parquet)."""
    pa = require("pyarrow", "eval")
    parquet = require("pyarrow.parquet", "eval")
    tables = []
    for result in results:
        tops = [
            max(result.run.get(query, {}).items(), key=_score_of, default=(None, None)) for query in result.query_ids
        ]
        count = len(result.query_ids)
        columns: dict[str, Any] = {"dataset": [result.dataset] * count, "system": [result.system] * count}
        columns |= {"query_id": list(result.query_ids)} | {name: result.values[name] for name in result.values}
        columns["first_document"] = pa.array([document for document, _ in tops], pa.string())
        columns["first_score"] = pa.array([score for _, score in tops], pa.float64())
        tables.append(pa.table(columns))
    buffer = io.BytesIO()
    parquet.write_table(pa.concat_tables(tables), buffer)
    write_atomically(Path(path), buffer.getvalue())


def write_report(
    results: Sequence[Evaluation], datasets: Sequence[RetrievalDataset], path: str | Path, metric: str = "nDCG@10"
) -> None:
    """Write one HTML page: means and paired tests, bars, score distributions, and the worst queries of each set."""
    rows = summarise(results, metric)
    sets = {dataset.name: dataset for dataset in datasets}
    parts = [
        f"<h1>Retrieval evaluation</h1>{_render_means(rows, metric)}",
        f"<h2>{metric} by set</h2>{_draw_bars(rows, metric)}",
        "<h2>Score of the first hit, when it is right and when it is wrong</h2>",
        '<p class="note">The further apart, the better a threshold can tell the two.</p>',
        _draw_distributions(results, sets),
        "<h2>Other metrics</h2>",
        *(_render_means(summarise(results, name), name, tested=False) for name in METRICS if name != metric),
        f"<h2>Worst queries of {escape(results[0].system)}</h2>",
        *(_render_worst_queries(sets[name], group, metric) for name, group in _group_by(results, "dataset").items()),
    ]
    title = "<title>Retrieval evaluation</title>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{_STYLE}</style>'
    write_atomically(Path(path), (head + "".join(parts) + "</html>").encode())


def _group_by(results: Iterable[Evaluation], attribute: str) -> dict[str, list[Evaluation]]:
    groups: dict[str, list[Evaluation]] = {}
    for result in results:
        groups.setdefault(getattr(result, attribute), []).append(result)
    return groups


def _score_of(item: tuple[str, float]) -> float:
    return item[1]


def _render_means(rows: Sequence[Row], metric: str, *, tested: bool = True) -> str:
    """A table of means; beside each system but the first, its difference and p-value where `tested`."""
    systems = list(rows[0].means)
    heads = "".join(f'<th class="number">{escape(system)}</th>' for system in systems)
    body = []
    for row in rows:
        best = max(row.means.values())
        differences = {system: _render_difference(row, system) for system in systems if tested}
        cells = [
            f'<td class="number{" best" * (mean == best)}">{mean:.3f}{differences.get(system, "")}</td>'
            for system, mean in row.means.items()
        ]
        body.append(f"<tr><td>{escape(row.dataset)}</td>{''.join(cells)}</tr>")
    average = [np.mean([row.means[system] for row in rows]) for system in systems]
    cells = [f'<td class="number"><b>{value:.3f}</b></td>' for value in average]
    body.append(f"<tr><td><b>mean</b></td>{''.join(cells)}</tr>")
    return f"<table><tr><th>{metric}</th>{heads}</tr>{''.join(body)}</table>"


def _render_difference(row: Row, system: str) -> str:
    comparison = row.comparisons.get(system)
    if comparison is None:
        return ""
    interval = f"95 % interval {comparison.low:+.3f} to {comparison.high:+.3f}"
    title = f"{interval}; {comparison.wins} queries better, {comparison.losses} worse"
    return f'<br><span class="score" title="{title}">{comparison.difference:+.3f}, p = {comparison.p:.2g}</span>'


def _draw_bars(rows: Sequence[Row], metric: str) -> str:
    systems = list(rows[0].means)
    height = 0.9 / len(systems)

    def draw(axes: "Axes") -> None:
        for i, system in enumerate(systems):
            places = np.arange(len(rows)) + i * height
            axes.barh(places, [row.means[system] for row in rows], height=height, label=system)
        axes.set_yticks(np.arange(len(rows)) + 0.45 - height / 2, [row.dataset for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel=metric, xlim=(0, 1))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    return _render_figure([draw], (10, 0.6 + len(rows) * (0.25 + 0.16 * len(systems))))


def _draw_distributions(results: Sequence[Evaluation], sets: Mapping[str, RetrievalDataset]) -> str:
    """A histogram for each system: the first hit's score over all sets, right and wrong apart."""

    def panel(system: str, runs: Sequence[Evaluation]) -> Any:
        scores: dict[bool, list[float]] = {True: [], False: []}
        for run in runs:
            for query, hits in run.run.items():
                if hits:
                    document, score = max(hits.items(), key=_score_of)
                    scores[sets[run.dataset].qrels[query].get(document, 0) > 0].append(score)

        def draw(axes: "Axes") -> None:
            # Rounded, as forty bins do not fit between scores that differ in their last bits.
            bins = np.histogram_bin_edges(np.round([*scores[True], *scores[False]], 6), bins=40).tolist()
            axes.hist(scores[False], bins=bins, alpha=0.6, label="wrong", color="#c44")
            axes.hist(scores[True], bins=bins, alpha=0.6, label="right", color="#2a7")
            axes.set(title=system, xlabel="score", ylabel="queries")
            axes.legend(frameon=False)

        return draw

    panels = [panel(system, runs) for system, runs in _group_by(results, "system").items()]
    return _render_figure(panels, (min(12, 4 * len(panels)), 3))


def _render_figure(panels: Sequence[Any], size: tuple[float, float]) -> str:
    """Panels side by side as inline SVG. Text stays text, so that the reader's fonts show Chinese names."""
    matplotlib = require("matplotlib", "eval")
    figures = require("matplotlib.figure", "eval")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "peg-rag", "font.family": "sans-serif"}):
        figure = figures.Figure(figsize=size, layout="constrained")
        for draw, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
            draw(axes)
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # matplotlib only measures the text; the browser draws it, with fonts that do have Chinese.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]  # without the XML declaration


def _render_worst_queries(dataset: RetrievalDataset, results: Sequence[Evaluation], metric: str) -> str:
    """The first system's worst queries, with the relevant documents and every system's first hits side by side."""
    values = results[0].values[metric]
    # Of equally bad queries, those that the others answer best come first: they can teach the most.
    other_means = np.mean([result.values[metric] for result in results[1:]] or [values], axis=0)
    order = np.lexsort((-other_means, values))[:WORST]
    systems = [next(iter(runs)) for runs in _group_by(results, "system").values()]
    heads = "".join(f"<th>{escape(result.system)}</th>" for result in systems)
    rows = [_render_query(dataset, results[0].query_ids[i], systems, int(i), metric) for i in order]
    table = f'<table class="worst"><tr><th>query and relevant documents</th>{heads}</tr>{"".join(rows)}</table>'
    return f"<h3>{escape(dataset.name)}</h3>{table}"


def _render_query(dataset: RetrievalDataset, query: str, systems: Sequence[Evaluation], i: int, metric: str) -> str:
    grades = dataset.qrels[query]
    relevant = [document for document, grade in grades.items() if grade > 0][:SHOWN_HITS]
    question = f"<b>{_render_excerpt(dataset.queries[query])}</b>" + "".join(
        _render_hit(dataset, document, True) for document in relevant
    )
    cells = [f"<td>{question}</td>"]
    for result in systems:
        ranking = sorted(result.run.get(query, {}).items(), key=_score_of, reverse=True)[:SHOWN_HITS]
        hits = "".join(
            _render_hit(dataset, document, grades.get(document, 0) > 0, score) for document, score in ranking
        )
        cells.append(f'<td><span class="score">{metric} {result.values[metric][i]:.2f}</span>{hits}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _render_hit(dataset: RetrievalDataset, document: str, right: bool, score: float | None = None) -> str:
    score_label = "" if score is None else f' <span class="score">{score:.3f}</span>'
    text = dataset.corpus.get(document, "(not in the corpus)")
    return f'<p class="hit{" right" * right}">{_render_excerpt(text)}{score_label}</p>'


def _render_excerpt(text: str) -> str:
    return escape(text if len(text) <= EXCERPT else text[:EXCERPT] + "…")
