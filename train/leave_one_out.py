"""Fields that the training has never seen: each domain is left out in turn, and its evaluation set scored.

Users bring fields of their own, so what a model does on one it was not trained on says more than the mean over those it
was. Each model is the bundled one's recipe without the domain's sources, from the first line: the words are counted
without them too. So are the reranker's trees and its table of rarity, which come from the judged candidates of
`reranker.py`; neighbours of a domain that were collected in the same way are left out of them with it.

    python train/make_text_pairs.py --out runs/text-pairs
    python train/reranker.py halves --out runs/reranker          # and candidates: see there
    python train/leave_one_out.py --out runs/leave-one-out --reranker runs/reranker

Goes on where it was stopped. Cost: for each domain about 25 minutes of one core to train, and three to score.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import yaml
from experiments import RESULTS, Runs, data_folder
from reranker import FOLDS, fit, search

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.evaluation import (
    BM25s,
    Dense,
    Evaluation,
    Indexed,
    RetrievalDataset,
    System,
    compare,
    evaluate,
    load_beir,
)
from peg_rag.evaluation.metrics import Run
from peg_rag.evaluation.systems import query_texts
from peg_rag.reranking import MiniReranker
from peg_rag.reranking.features import Candidates
from peg_rag.reranking.mini import CANDIDATES
from peg_rag.training import Recipe, train

SETS = {
    "law": "law-lawyer_llama",
    "medicine": "medical-kuake_qtr",
    "tourism": "tourism-kdconv",
    "news": "news-xwlb",
    "finance": "finance-finna",
}
COMPARED = (("bm25", "hybrid"), ("hybrid", "reranked"), ("bm25", "reranked"))
TIMED_QUERIES = 200
RECIPE = Path(__file__).parent / "recipes" / "peg_mini.yaml"


def build_recipe(out: Path, domain: str) -> Recipe:
    """`peg_mini.yaml` without a domain."""
    tree: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for stage in tree["stages"]:
        for source in stage["data"]["sources"]:
            source["exclude"] = [*source.get("exclude", []), f"{domain}-*"]
    return Recipe.parse(tree | {"output_dir": str(out)})


def train_without(out: Path, domain: str) -> Path:
    """The folder of the model; one that another recipe made is refused, whether it is finished or not."""
    recipe = build_recipe(out, domain)
    if (out / "peg_rag.json").is_file() and Recipe.load(out / "recipe.yaml") != recipe:
        raise SystemExit(f"{out} was made by another recipe; name another --out")
    if not (out / "peg_rag.json").is_file():
        train(recipe, resume=(out / "recipe.yaml").is_file(), show_progress=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the models go")
    parser.add_argument("--text-pairs", type=Path, default=Path("runs/text-pairs"), help="made by make_text_pairs.py")
    parser.add_argument("--reranker", type=Path, required=True, help="the folder of reranker.py")
    parser.add_argument("--domains", nargs="+", choices=list(SETS), default=list(SETS))
    arguments = parser.parse_args()
    data = data_folder()
    os.environ["PEG_TEXT_PAIRS"] = str(arguments.text_pairs)
    runs = Runs(RESULTS / "leave_one_out.jsonl")
    for domain in arguments.domains:
        folder = train_without(arguments.out / f"no_{domain}", domain)
        if not runs.has({"domain": domain}):
            (fold,) = [fold for fold in FOLDS if domain in fold]
            reranker = fit(arguments.reranker, folder, fold)
            runs.add({"domain": domain, **score_model(folder, reranker, load_beir(data / "eval" / SETS[domain]))})
    write_table(runs)


@dataclass
class Reranked:
    """The hybrid's first candidates in the order of a reranker."""

    encoder: PEGEncoder
    reranker: MiniReranker
    name: str = "reranked"

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        ids = list(dataset.corpus)
        queries = query_texts(dataset)
        run: Run = {}
        results = search(self.encoder, list(dataset.corpus.values()), queries)
        for name, query, (numbers, candidates) in zip(dataset.qrels, queries, results, strict=True):
            scores = self.reranker.score(query, candidates).tolist()
            run[name] = {ids[number]: score for number, score in zip(numbers, scores, strict=True)}
        return run


def score_model(folder: Path, reranker: MiniReranker, dataset: RetrievalDataset) -> dict[str, Any]:
    """Scores of each system, what one gains over another, and milliseconds a query."""
    with PEGEncoder(folder) as encoder:
        systems: list[System] = [
            Dense(encoder, "dense"),
            BM25s(),
            Indexed("lexical", name="bm25"),
            Indexed("hybrid", encoder, "hybrid"),
            Reranked(encoder, reranker),
        ]
        results = {system.name: evaluate(system, dataset) for system in systems}
        milliseconds = time_queries(encoder, reranker, dataset)
    return {
        "set": dataset.name,
        "queries": len(dataset.qrels),
        "scores": {name: result.mean() for name, result in results.items()},
        "gains": {
            f"{after} over {before}": describe_gain(results[before], results[after]) for before, after in COMPARED
        },
        "milliseconds": milliseconds,
        "bytes": {"model": (folder / "model.safetensors").stat().st_size, "reranker": count_bytes(reranker)},
    }


def describe_gain(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """In nDCG@10, with its 95 % interval and the p of a paired permutation test."""
    gain = compare([before], [after])
    return {"difference": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p}


def time_queries(encoder: PEGEncoder, reranker: MiniReranker, dataset: RetrievalDataset) -> dict[str, float]:
    """Mean processor milliseconds of the first queries, one after another."""
    texts = list(dataset.corpus.values())
    queries = query_texts(dataset)[:TIMED_QUERIES]
    with PEGIndex() as index:
        index.upsert(list(dataset.corpus), texts, encoder.encode_documents(texts))
        time_query(index, encoder, reranker, queries[0])  # what is loaded once
        times = [time_query(index, encoder, reranker, query) for query in queries]
    return {name: 1_000 * float(np.mean([time[name] for time in times])) for name in times[0]}


def time_query(index: PEGIndex, encoder: PEGEncoder, reranker: MiniReranker, query: str) -> dict[str, float]:
    """Seconds of a search for ten hits by words and by both sides, and of reranking fifty."""
    start = process_time()
    index.search(None, query, k=10, mode="lexical")
    after_words = process_time()
    index.search(encoder.encode_queries([query])[0], query, k=10, mode="hybrid")
    after_hybrid = process_time()
    hits = index.search(encoder.encode_queries([query])[0], query, k=CANDIDATES, mode="hybrid")
    sides = [np.array([hit.scores[side] for hit in hits]) for side in ("dense", "lexical", "fused")]
    before_reranking = process_time()
    reranker.score(query, Candidates([hit.text for hit in hits], *sides))
    return {
        "bm25": after_words - start,
        "hybrid": after_hybrid - after_words,
        "rerank": process_time() - before_reranking,
    }


def count_bytes(reranker: MiniReranker) -> int:
    """Of the trees and the table of rarity; the vectors are the model's."""
    rarity = reranker.maker.rarity
    return sum(array.nbytes for array in (*reranker.trees.tensors().values(), rarity.units, rarity.pairs))


def write_table(runs: Runs) -> None:
    rows = sorted(runs, key=lambda row: list(SETS).index(row["domain"]))
    lines = [
        "# Left-out domains",
        "",
        "Made by `train/leave_one_out.py`: the bundled model's whole recipe, and the reranker, without a domain.",
        "nDCG@10; gains in points with 95 % intervals and paired permutation tests over the queries.",
        "",
        *score_table(rows),
        "",
        *gain_table(rows),
        "",
        "Processor milliseconds a query on one of two shared cores: a search for ten hits, encoding included, and",
        "reranking fifty.",
        "",
        *time_table(rows),
        "",
        f"The model has {megabytes(rows, 'model'):.1f} MB, the reranker besides {megabytes(rows, 'reranker'):.2f} MB.",
    ]
    lines += [f"\n{row['domain'].capitalize()}: {row['note']}." for row in rows if "note" in row]
    text = "\n".join(lines) + "\n"
    (RESULTS / "leave_one_out.md").write_text(text, encoding="utf-8")
    print(text)


def score_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(rows[0]["scores"])
    lines = [f"| left out | set | queries | {' | '.join(names)} |", "|---|---|" + "---:|" * (1 + len(names))]
    for row in rows:
        values = " | ".join(f"{row['scores'][name]:.3f}" for name in names)
        lines.append(f"| {row['domain']} | {row['set']} | {row['queries']:,} | {values} |")
    means = " | ".join(f"**{np.mean([row['scores'][name] for row in rows]):.3f}**" for name in names)
    return [*lines, f"| **mean** | | | {means} |"]


def gain_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [f"{after} over {before}" for before, after in COMPARED]
    cells = [[format_gain(row["gains"].get(name)) for name in names] for row in rows]
    means = [
        100 * np.mean([row["scores"][after] - row["scores"][before] for row in rows]) for before, after in COMPARED
    ]
    return [
        f"| left out | {' | p | '.join(names)} | p |",
        "|---|" + "---:|" * (2 * len(names)),
        *(f"| {row['domain']} | {' | '.join(some)} |" for row, some in zip(rows, cells, strict=True)),
        f"| **mean** | {' | | '.join(f'**{mean:+.1f}**' for mean in means)} | |",
    ]


def format_gain(gain: Mapping[str, float] | None) -> str:
    """A dash where a run of an earlier version did not test it."""
    if gain is None:
        return "– | –"
    points, low, high = (100 * gain[name] for name in ("difference", "low", "high"))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}] | {gain['p']:.4f}"


def time_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(rows[0]["milliseconds"])
    lines = [f"| left out | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in rows:
        values = " | ".join(f"{row['milliseconds'][name]:.1f}" for name in names)
        lines.append(f"| {row['domain']} | {values} |")
    return lines


def megabytes(rows: Sequence[Mapping[str, Any]], part: str) -> float:
    return float(max(row["bytes"][part] for row in rows)) / 1e6


if __name__ == "__main__":
    main()
