"""Ways to join dense and lexical rankings, compared on held-out training pairs; the default of PEGIndex is chosen here.

Queries are rows of `pairs` that the model has not seen: the validation split of sources it was trained on, sources it
was not trained on at all, and, with `--left-out`, whole domains that a model of `train/leave_one_out.py` did without. A
field the model does not know is where a hybrid can lose to its lexical side. A source's positives are the corpus. Every
query is searched once; all ways fuse the same 100 best candidates of each side. The evaluation sets are not touched.

    python benchmarks/fusion.py                                   # PEG_DATA names the data folder, else ../shared/data
    python benchmarks/fusion.py --left-out runs/leave-one-out     # models called no_law, no_medicine, …
    python benchmarks/fusion.py --write                           # also writes benchmarks/results/fusion.md

Cost: about three minutes on two cores.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.files import open_packed
from peg_rag.index.fusion import by_confidence, fuse
from peg_rag.training.data.sampler import in_validation
from peg_rag.training.data.texts import text_key

RESULTS = Path(__file__).parent / "results" / "fusion.md"
TRAINED = [
    "encyclopedia-cmrc2018_trial",
    "finance-finna",
    "insurance-baoxian",
    "law-statutes",
    "medicine-kuake_qtr",
    "news-xwlb",
    "tourism-crosswoz",
    "web-qbqtc",
    "film-kdconv",
    "psychology-smile",
]
UNTRAINED = ["encyclopedia-squad_zh", "reading-c3", "law-lawyer_llama_qa", "law-lawyer_llama_article"]
LEFT_OUT = {
    "news": ["news-xwlb", "news-crud_lead"],
    "law": ["law-statutes"],
    "medicine": ["medicine-kuake_qtr", "medicine-chip_cdn", "medicine-disease_kb"],
    "tourism": ["tourism-crosswoz", "tourism-kdconv_kb", "tourism-kdconv"],
}
HELD_OUT = 0.02  # the share that train/recipes/peg_mini.yaml holds out
DOCUMENTS, QUERIES, CANDIDATES, CUTOFF = 10_000, 120, 100, 10

Rankings = Mapping[str, Mapping[str, float]]
Fused = Mapping[str, float]


@dataclass(frozen=True)
class Searched:
    """One query: both scores of every candidate, and the ids of its relevant documents."""

    rankings: Rankings
    relevant: frozenset[str]


def drop_unmatched(rankings: Rankings) -> Rankings:
    """The lexical side without documents that share no term with the query: they have no place."""
    lexical = {key: score for key, score in rankings["lexical"].items() if score > 0}
    return {"dense": rankings["dense"], "lexical": lexical}


def lean_weights(dense: float) -> Callable[[Rankings], Mapping[str, float]]:
    """`by_confidence`, leaning to one side."""
    share = {"dense": dense, "lexical": 1 - dense}
    return lambda rankings: {name: share[name] * weight for name, weight in by_confidence(rankings).items()}


WAYS: dict[str, Callable[[Rankings], Fused]] = {
    "dense alone": lambda r: r["dense"],
    "BM25 alone": lambda r: r["lexical"],
    "rrf": lambda r: fuse(drop_unmatched(r), method="rrf"),
    "rrf, BM25 twice": lambda r: fuse(drop_unmatched(r), {"lexical": 2}, method="rrf"),
    "convex, dense 0.3": lambda r: fuse(r, {"dense": 0.3, "lexical": 0.7}),
    "convex, dense 0.5": lambda r: fuse(r, {"dense": 0.5, "lexical": 0.5}),
    "convex, dense 0.7": lambda r: fuse(r, {"dense": 0.7, "lexical": 0.3}),
    "convex by confidence": lambda r: fuse(r, by_confidence),
    "convex by confidence, dense 0.25": lambda r: fuse(r, lean_weights(0.25)),
    "convex by confidence, dense 0.3": lambda r: fuse(r, lean_weights(0.3)),
    "convex by confidence, dense 0.35 (default)": lambda r: fuse(r),
    "convex by confidence, dense 0.4": lambda r: fuse(r, lean_weights(0.4)),
    "convex by confidence, dense 0.6": lambda r: fuse(r, lean_weights(0.6)),
}


def held_out(path: Path, count: int, *, trained: bool) -> tuple[list[str], dict[str, frozenset[str]]]:
    """The positives of a source, and up to `count` held-out queries with the numbers of their positives."""
    documents: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    with open_packed(path, "eval") as lines:
        for line in lines:
            row = json.loads(line)
            if row["positive"] in documents or len(documents) < DOCUMENTS:
                key = documents.setdefault(row["positive"], str(len(documents)))
                relevant.setdefault(row["query"], set()).add(key)
    queries = list(relevant)
    if trained:
        in_share = in_validation(np.array([text_key(query) for query in queries], dtype=np.int64), HELD_OUT)
        queries = [query for query, out in zip(queries, in_share, strict=True) if out]
    return list(documents), {query: frozenset(relevant[query]) for query in queries[:count]}


def search_source(path: Path, encoder: PEGEncoder, *, trained: bool) -> list[Searched]:
    """Search the held-out queries of one source among its positives."""
    texts, relevant = held_out(path, QUERIES, trained=trained)
    queries = list(relevant)
    with PEGIndex() as index:
        index.upsert([str(i) for i in range(len(texts))], texts, encoder.encode_documents(texts))
        results = index.search_batch(encoder.encode_queries(queries), queries, k=2 * CANDIDATES, fetch_k=CANDIDATES)
    return [
        Searched({side: {hit.id: hit.scores[side] for hit in hits} for side in ("dense", "lexical")}, relevant[query])
        for query, hits in zip(queries, results, strict=True)
    ]


def ndcg(fused: Fused, relevant: frozenset[str]) -> float:
    """nDCG@10 with equal grades."""
    best = sorted(fused, key=lambda key: -fused[key])[:CUTOFF]
    gain = sum(1 / np.log2(place + 2) for place, key in enumerate(best) if key in relevant)
    return float(gain / sum(1 / np.log2(place + 2) for place in range(min(CUTOFF, len(relevant)))))


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row for each way. scores: source → way → mean nDCG@10."""
    groups = {
        "trained on": [name for name in scores if name in TRAINED],
        "not trained on": [name for name in scores if name not in TRAINED],
        "all": list(scores),
    }
    columns = [f"{group} ({len(names)})" for group, names in groups.items()]
    lines = [f"| nDCG@10 | {' | '.join(columns)} | worst loss to BM25 |", "|---|" + "---:|" * (len(columns) + 1)]
    for way in WAYS:
        means = [np.mean([scores[name][way] for name in names]) for names in groups.values()]
        worst = min(scores[name][way] - scores[name]["BM25 alone"] for name in scores)
        lines.append(f"| {way} | " + " | ".join(f"{mean:.3f}" for mean in means) + f" | {worst:+.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", here)))
    parser.add_argument("--model", default="peg-mini", help="a bundled name or a folder")
    parser.add_argument("--left-out", type=Path, help="a folder with models no_DOMAIN")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    options = parser.parse_args()
    jobs = [(options.model, name, name, name in TRAINED) for name in [*TRAINED, *UNTRAINED]]
    if options.left_out:
        folders = [(domain, options.left_out / f"no_{domain}") for domain in LEFT_OUT]
        models = [(domain, folder) for domain, folder in folders if folder.is_dir()]
        jobs += [(folder, f"{name} (left out)", name, False) for domain, folder in models for name in LEFT_OUT[domain]]
    scores: dict[str, dict[str, float]] = {}
    for model, label, name, trained in jobs:
        with PEGEncoder(model) as encoder:
            queries = search_source(options.data / "pairs" / f"{name}.jsonl.zst", encoder, trained=trained)
        scores[label] = {
            way: float(np.mean([ndcg(fused(q.rankings), q.relevant) for q in queries])) for way, fused in WAYS.items()
        }
        print(f"{label:32} {len(queries):4} queries", {way: round(score, 3) for way, score in scores[label].items()})
    print(text := table(scores))
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(f"# Fusion\n\nMade by `benchmarks/fusion.py --write`.\n\n{text}\n")


if __name__ == "__main__":
    main()
