"""`peg-rag evaluate sets/…`: scores dense, BM25 and hybrid retrieval on queries with relevance judgements."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peg_rag.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from rich.table import Table

    from peg_rag.cache import CachedEncoder
    from peg_rag.encoder import PEGEncoder
    from peg_rag.evaluation import Comparison, Evaluation, RetrievalDataset, SentencePairs, System
    from peg_rag.evaluation.report import Row

    Encoders = dict[str, PEGEncoder | CachedEncoder]

SYSTEMS = ("dense", "bm25", "bm25s", "hybrid", "reranked")


def evaluate(
    sets: Annotated[
        list[Path], typer.Argument(help="Folders in BEIR or DuReader-retrieval format, and STS files (.tsv).")
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="The embedding model; may be repeated to compare models.")
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option(
            "--systems",
            "-s",
            help=f"Some of {', '.join(SYSTEMS)}; the first is the baseline. `reranked` is the hybrid and the bundled "
            "reranker, for peg-mini. Default: dense, bm25, hybrid and, with peg-mini, reranked.",
        ),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option("--rerank", "--reranker", help="A cross-encoder that reranks the first 50 hits of each system."),
    ] = None,
    candidates: Annotated[
        bool,
        typer.Option(
            "--candidates",
            "--reranking",
            help="Rank candidates instead of searching: for a folder, BM25's first 50 and the judged documents; for a "
            ".tsv file, the second sentences that are paired with a first one.",
        ),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric to show and to test. Default: nDCG@10; MAP and MRR with --candidates."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for per_query.parquet and report.html.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="A file that caches the vectors, so that a second run is fast.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: the best one available.")] = None,
) -> None:
    """Score retrieval systems on judged queries, test their differences and write a report."""
    from peg_rag.cli.console import show, stderr
    from peg_rag.evaluation import METRICS, load_dataset, load_sts
    from peg_rag.evaluation.report import summarise, write_per_query, write_report

    names = _parse_systems(systems, candidates)
    metrics = _choose_metrics(metric, candidates, METRICS)
    datasets = [load_dataset(path) for path in sets if not path.is_file()]
    pairs = [load_sts(path) for path in sets if path.is_file()]
    if candidates:
        datasets = _build_reranking_sets(datasets, pairs)
        pairs = []
    encoders = _load_encoders(model or ["peg-mini"], cache, device)
    if systems is None and not candidates and all(map(_has_bundled_reranker, encoders.values())):
        names.append("reranked")
    try:
        retrieval_systems = _create_systems(names, encoders, reranker, candidates)
        results, correlations = _score_all(retrieval_systems, encoders, datasets, pairs)
    finally:
        for encoder in encoders.values():
            encoder.close()
    for name in metrics if results else []:
        show(_build_table(summarise(results, name), name))
    if correlations:
        show(_build_sts_table(correlations, list(encoders)))
    if out is not None and results:
        write_per_query(results, out / "per_query.parquet")
        write_report(results, datasets, out / "report.html", metrics[0])
        stderr.print(f"{out / 'report.html'} and {out / 'per_query.parquet'}", style="dim", soft_wrap=True)


def _score_all(
    systems: "list[System]",
    encoders: "Encoders",
    datasets: "list[RetrievalDataset]",
    pairs: "list[SentencePairs]",
) -> "tuple[list[Evaluation], dict[str, list[float]]]":
    """Every system on every dataset, and each model's rank correlation on every file of sentence pairs."""
    from peg_rag.cli.console import progress
    from peg_rag.evaluation import evaluate as score
    from peg_rag.evaluation import sts_spearman

    results = []
    correlations = {}
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(datasets) * len(systems) + len(pairs) * len(encoders))
        for dataset in datasets:
            for system in systems:
                bar.update(task, description=f"{dataset.name}: {system.name}")
                results.append(score(system, dataset))
                bar.advance(task)
        for pair in pairs:
            bar.update(task, description=pair.name)
            correlations[pair.name] = [sts_spearman(encoder, pair) for encoder in encoders.values()]
            bar.advance(task, len(encoders))
    return results, correlations


def _parse_systems(systems: str | None, candidates_only: bool) -> list[str]:
    if candidates_only and systems not in (None, "dense"):
        raise InvalidInput(f"--systems {systems}: --candidates ranks with the models only; omit --systems")
    names = [name.strip() for name in (systems or "dense,bm25,hybrid").split(",") if name.strip()]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise InvalidInput(f"unknown system {unknown[0]!r} in --systems; choose from {', '.join(SYSTEMS)}")
    if not names:
        raise InvalidInput(f"--systems is empty; choose from {', '.join(SYSTEMS)}")
    return ["dense"] if candidates_only else names


def _choose_metrics(metric: str | None, candidates_only: bool, metrics: tuple[str, ...]) -> list[str]:
    if metric is None:
        return ["MAP@100", "MRR@10"] if candidates_only else ["nDCG@10"]
    if metric not in metrics:
        raise InvalidInput(f"unknown metric {metric!r} in --metric; choose from {', '.join(metrics)}")
    return [metric]


def _build_reranking_sets(datasets: "list[RetrievalDataset]", pairs: "list[SentencePairs]") -> "list[RetrievalDataset]":
    from peg_rag.evaluation import Indexed, as_reranking, with_candidates

    with_hits = [with_candidates(dataset, Indexed("lexical").run(dataset, 50)) for dataset in datasets]
    return [*with_hits, *map(as_reranking, pairs)]


def _load_encoders(models: list[str], cache: Path | None, device: str | None) -> "Encoders":
    from peg_rag.cache import CachedEncoder
    from peg_rag.encoder import PEGEncoder

    encoders: Encoders = {}
    for name in models:
        encoder = PEGEncoder(name, device=device)
        encoders[encoder.spec.name] = encoder if cache is None else CachedEncoder(encoder, cache)
    return encoders


def _create_systems(
    names: list[str], encoders: "Encoders", reranker: str | None, candidates_only: bool
) -> "list[System]":
    """The systems by name; those that need vectors once per model."""
    from peg_rag.evaluation import BM25s, Candidates, Dense, Indexed, Reranked, RerankedHybrid

    systems: list[System] = []
    for name in names:
        if name == "bm25":
            systems.append(Indexed("lexical"))
        elif name == "bm25s":
            systems.append(BM25s())
        for model, encoder in encoders.items():
            if name == "dense":
                systems.append(Candidates(encoder, model) if candidates_only else Dense(encoder, model))
            elif name == "hybrid":
                label = "hybrid" if len(encoders) == 1 else f"hybrid {model}"
                systems.append(Indexed("hybrid", encoder, label))
            elif name == "reranked":
                systems.append(RerankedHybrid(encoder))
    if reranker is None:
        return systems
    scorer = _CrossEncoder(reranker)
    first_stages = [system for system in systems if not isinstance(system, RerankedHybrid)]
    return [*systems, *(Reranked(system, scorer) for system in first_stages)]


def _has_bundled_reranker(encoder: "PEGEncoder | CachedEncoder") -> bool:
    from peg_rag.reranking import model_of_reranker

    return encoder.identity.partition("/")[0] == model_of_reranker("mini")


class _CrossEncoder:
    """sentence-transformers' cross-encoder, as a `Reranker`."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:  # no extra has it, since nothing else needs it
            raise MissingExtra(
                f"--rerank {name} needs sentence-transformers. Install it with: pip install sentence-transformers"
            ) from error
        self._model = CrossEncoder(name)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [float(score) for score in self._model.predict(text_pairs)]


def _build_table(rows: "list[Row]", metric: str) -> "Table":
    from rich.table import Table

    systems = list(rows[0].means)
    table = Table(metric, *systems, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        best = max(row.means.values())
        cells = [_format_cell(mean, mean == best, row.comparisons.get(system)) for system, mean in row.means.items()]
        table.add_row(row.dataset, *cells)
    if len(rows) > 1:
        averages = (sum(row.means[system] for row in rows) / len(rows) for system in systems)
        table.add_row("mean", *(f"{average:.3f}" for average in averages), style="bold")
    if len(systems) > 1:
        table.caption = f"* differs from {systems[0]} (p < 0.05, permutation test paired over queries)"
    return table


def _format_cell(mean: float, best: bool, comparison: "Comparison | None") -> str:
    mark = "*" if comparison is not None and comparison.p < 0.05 else " "
    if best:
        return f"[bold]{mean:.3f}[/bold]{mark}"
    return f"{mean:.3f}{mark}"


def _build_sts_table(correlations: dict[str, list[float]], models: list[str]) -> "Table":
    from rich.table import Table

    table = Table("Spearman", *models, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, values in correlations.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    return table
