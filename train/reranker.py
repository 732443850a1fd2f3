"""Trains the bundled reranker, `peg_rag/assets/reranker-mini`, and says what it is worth on fields it never saw.

Trees that learn from a model's scores on the very sources it was trained on learn to trust it too much. So two static
models share the permitted domains between them, and each scores the domains of the other: what the trees see is what a
new field looks like. Every choice (the trees' size, the share of the hybrid's score) is made on whole domains left out.

    python train/make_text_pairs.py --out runs/text-pairs
    python train/reranker.py halves --out runs/reranker          # two models, 25 minutes of one core each
    python train/reranker.py candidates --out runs/reranker      # searches and features, 15 minutes
    python train/reranker.py choose --out runs/reranker          # domains left out in turn: results/reranker.md
    python train/reranker.py fit --out runs/reranker             # writes the bundled file
    python train/reranker.py report --out runs/reranker          # the evaluation sets, once, to report
    python train/reranker.py texts --out runs/reranker           # texts without an index: results/reranker_texts.md

Each step goes on where it was stopped. Needs the `train` and `eval` extras and LightGBM.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import lightgbm
import numpy as np
import yaml
from experiments import NOT_CHINESE, RESULTS, Runs, data_folder
from sources import RESEARCH_ONLY
from tqdm import tqdm

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.evaluation import Evaluation, RetrievalDataset, compare, load_beir, score_run
from peg_rag.evaluation.metrics import Run
from peg_rag.evaluation.systems import query_texts
from peg_rag.index.lexical import K1, B
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.models import bundled_path, resolve
from peg_rag.reranking import MiniReranker, blend, load_reranker
from peg_rag.reranking.features import FEATURES, Candidates, FeatureMaker
from peg_rag.reranking.mini import CANDIDATES, RERANKERS
from peg_rag.reranking.rarity import Rarity, count_documents
from peg_rag.reranking.texts import fuse_candidates, score_terms
from peg_rag.reranking.trees import Trees
from peg_rag.reranking.units import split_units, unit_code, unit_strings
from peg_rag.reranking.vectors import TokenVectors
from peg_rag.training import Recipe, train
from peg_rag.training.data.files import read_lines
from peg_rag.training.data.texts import text_key

Array = np.ndarray

HALVES = {
    "a": ["law", "medicine", "psychology", "tourism", "film", "music"],
    "b": ["news", "finance", "insurance", "realestate", "web", "general", "encyclopedia", "science"],
}
EVALUATION_DOMAINS = {
    "law": "law-lawyer_llama",
    "medicine": "medical-kuake_qtr",
    "tourism": "tourism-kdconv",
    "news": "news-xwlb",
    "finance": "finance-finna",
}
# Left out together; film and music facts were collected in the way of the tourism ones.
FOLDS = (
    ("law",),
    ("medicine",),
    ("tourism", "film", "music"),
    ("news",),
    ("finance",),
    ("psychology", "encyclopedia"),
    ("web", "science"),
    ("general", "insurance", "realestate"),
)
RECIPE = Path(__file__).parent / "recipes" / "peg_mini.yaml"
DOCUMENTS = 20_000  # of a source, at most
QUERIES = 1_000
COUNTED = 5_000  # documents of a source in the table of rarity
CUTOFF = 10
TEXTS = 10_000  # of a source, where texts are ranked without an index
TEXT_QUERIES = 40
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PARAMETERS: dict[str, Any] = {
    "objective": "lambdarank",
    "label_gain": [0, 1],
    "lambdarank_truncation_level": 15,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "use_missing": False,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}
ROUNDS = 200
SHARE = 0.9


# -- two models, each blind to the other's domains --------------------------------------------------------------------


def half_recipe(out: Path, half: str) -> Recipe:
    """`peg_mini.yaml` on the domains of one half, with three fifths of its steps."""
    tree: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    other_domains = [domain for name, domains in HALVES.items() if name != half for domain in domains]
    for stage in tree["stages"]:
        stage["steps"] = 300
        for source in stage["data"]["sources"]:
            source["exclude"] = [*source.get("exclude", []), *(f"{domain}-*" for domain in other_domains)]
    tree["model"]["static"]["vocabulary"]["texts_per_file"] = 10_000
    tree["validation"] = {"share": 0.02, "queries_per_source": 200, "distractors": 5_000}
    tree["evaluation"] = {"every_steps": 300}
    return Recipe.parse(tree | {"output_dir": str(out / f"half-{half}")})


def train_halves(out: Path) -> None:
    for half in HALVES:
        folder = out / f"half-{half}"
        if not (folder / "peg_rag.json").is_file():
            train(half_recipe(out, half), resume=(folder / "recipe.yaml").is_file(), show_progress=True)


def blind_half(out: Path, domain: str) -> Path:
    """The model that never saw a domain."""
    (half,) = [name for name, domains in HALVES.items() if domain not in domains]
    return out / f"half-{half}"


# -- candidates and their features ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file of pairs as a small search task: its positives are the corpus."""

    name: str
    texts: list[str]
    queries: list[str]
    relevant: list[set[int]]

    @property
    def domain(self) -> str:
        return domain_of(self.name)


@dataclass(frozen=True)
class Judged:
    """The candidates of a source's queries, one after the other.

    Attributes:
        rows: (candidates, features).
        labels: (candidates,) 1 for relevant ones.
        fused: (candidates,) the hybrid's scores.
        sizes: (queries,) candidates of each.
        relevant: (queries,) relevant documents in the corpus, found or not.
    """

    rows: Array
    labels: Array
    fused: Array
    sizes: Array
    relevant: Array

    def ndcg(self, scores: Array) -> Array:
        """(queries,) nDCG@10."""
        values = []
        for part, relevant in zip(self.parts(), self.relevant, strict=True):
            gains = self.labels[part][np.argsort(-scores[part], kind="stable")][:CUTOFF]
            ideal = np.sum(1 / np.log2(np.arange(2, 2 + min(relevant, CUTOFF))))
            values.append(float(np.sum(gains / np.log2(np.arange(2, 2 + len(gains)))) / ideal))
        return np.array(values)

    def blended(self, trees: Array, share: float) -> Array:
        """(candidates,) what the reranker would score with this share."""
        return np.concatenate([blend(trees[part], self.fused[part], share) for part in self.parts()])

    def parts(self) -> list[slice]:
        ends = np.cumsum(self.sizes)
        return [slice(end - size, end) for end, size in zip(ends.tolist(), self.sizes.tolist(), strict=True)]


def permitted_files(data: Path) -> list[Path]:
    files = sorted((data / "pairs").glob("*.jsonl.zst"))
    return [file for file in files if file.name.removesuffix(".jsonl.zst") not in RESEARCH_ONLY]


def read_source(file: Path, most_documents: int = DOCUMENTS, most_queries: int = QUERIES) -> Source:
    """The first texts of a file, and queries drawn by the hash of their text."""
    documents: dict[str, int] = {}
    relevant: dict[str, set[int]] = {}
    for line in read_lines(file):
        row = json.loads(line)
        if row["query"] == row["positive"] or (row["positive"] not in documents and len(documents) >= most_documents):
            continue
        relevant.setdefault(row["query"], set()).add(documents.setdefault(row["positive"], len(documents)))
    queries = sorted(relevant, key=text_key)[:most_queries]
    return Source(file.name.removesuffix(".jsonl.zst"), list(documents), queries, [relevant[q] for q in queries])


def search(encoder: PEGEncoder, texts: Sequence[str], queries: Sequence[str]) -> Iterator[tuple[list[int], Candidates]]:
    """The hybrid's first candidates of each query: their numbers, and what the reranker sees of them."""
    with PEGIndex() as index:
        index.upsert([str(number) for number in range(len(texts))], texts, encoder.encode_documents(texts))
        for batch in batched(queries, 100):
            vectors = encoder.encode_queries(batch)
            for hits in index.search_batch(vectors, batch, k=CANDIDATES, mode="hybrid"):
                sides = [np.array([hit.scores[side] for hit in hits]) for side in ("dense", "lexical", "fused")]
                yield [int(hit.id) for hit in hits], Candidates([hit.text for hit in hits], *sides)


def judge(source: Source, encoder: PEGEncoder, maker: FeatureMaker) -> Judged:
    rows, labels, fused, sizes = [], [], [], []
    results = search(encoder, source.texts, source.queries)
    for query, relevant, (numbers, candidates) in zip(source.queries, source.relevant, results, strict=True):
        rows.append(maker.make(query, candidates))
        labels.append([number in relevant for number in numbers])
        fused.append(candidates.fused)
        sizes.append(len(numbers))
    relevant_counts = np.array([len(relevant) for relevant in source.relevant])
    return Judged(
        np.concatenate(rows),
        np.concatenate(labels).astype(int),
        np.concatenate(fused),
        np.array(sizes),
        relevant_counts,
    )


def rarity_counts(sources: Sequence[Source]) -> dict[str, tuple[Array, Array, int]]:
    """By domain, in how many documents units and pairs stand."""
    texts: dict[str, list[str]] = {}
    for source in sources:
        texts.setdefault(source.domain, []).extend(source.texts[:COUNTED])
    return {
        domain: count_documents(split_units(batch) for batch in batched(lines, 500)) for domain, lines in texts.items()
    }


def rarity_without(counts: Mapping[str, tuple[Array, Array, int]], left_out: Sequence[str] = ()) -> Rarity:
    """The table without the texts of some domains."""
    domain_counts = [count for domain, count in counts.items() if domain not in left_out]
    units, pairs, documents = zip(*domain_counts, strict=True)
    return Rarity.of(np.sum(units, axis=0), np.sum(pairs, axis=0), sum(documents))


def batched(items: Sequence[str], size: int) -> Iterator[list[str]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def make_candidates(out: Path, data: Path) -> None:
    sources = [read_source(file) for file in permitted_files(data)]
    counts = load_counts(out, sources)
    for half in HALVES:
        folder = out / f"half-{half}"
        blind = [source for source in sources if blind_half(out, source.domain) == folder]
        missing_sources = [source for source in blind if not judged_file(out, source.name).is_file()]
        if not missing_sources or not (folder / "peg_rag.json").is_file():
            continue
        vectors = TokenVectors.load(folder)
        with PEGEncoder(folder) as encoder:
            for source in tqdm(missing_sources, desc=folder.name):
                judged = judge(source, encoder, FeatureMaker(vectors, rarity_without(counts, [source.domain])))
                judged_file(out, source.name).parent.mkdir(exist_ok=True)
                np.savez(judged_file(out, source.name), **vars(judged))


def load_counts(out: Path, sources: Sequence[Source] = ()) -> dict[str, tuple[Array, Array, int]]:
    file = out / "rarity.npz"
    if not file.is_file():
        counts = rarity_counts(sources)
        parts: dict[str, Any] = {
            f"{domain} {part}": array for domain, count in counts.items() for part, array in enumerate(count)
        }
        np.savez_compressed(file, **parts)
    with np.load(file) as arrays:
        domains = {name.split()[0] for name in arrays}
        return {d: (arrays[f"{d} 0"], arrays[f"{d} 1"], int(arrays[f"{d} 2"])) for d in sorted(domains)}


def judged_file(out: Path, name: str) -> Path:
    return out / "judged" / f"{name}.npz"


def load_judged(out: Path) -> dict[str, Judged]:
    judged = {}
    for file in sorted((out / "judged").glob("*.npz")):
        with np.load(file) as arrays:
            judged[file.stem] = Judged(**{name: arrays[name] for name in arrays})
    return judged


# -- trees ------------------------------------------------------------------------------------------------------------


def grow_trees(sources: Sequence[Judged], seed: int = 0, **changes: Any) -> lightgbm.Booster:
    """LambdaMART on the queries that have a relevant candidate; one source weighs by its queries."""
    parameters = PARAMETERS | {"seed": seed} | changes
    rounds = parameters.pop("rounds", ROUNDS)
    rows = np.concatenate([judged.rows for judged in sources])
    labels = np.concatenate([judged.labels for judged in sources])
    sizes = np.concatenate([judged.sizes for judged in sources])
    data = lightgbm.Dataset(rows, labels, group=sizes, feature_name=list(FEATURES), params=parameters)
    return lightgbm.train(parameters, data, rounds)


def load_trees(out: Path, left_out: Sequence[str] = ()) -> lightgbm.Booster:
    """Trees of all domains but some; read from their file where they were grown before."""
    file = out / "trees" / f"{'_'.join(['without', *left_out]) if left_out else 'all'}.txt"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        booster = grow_trees([source for name, source in load_judged(out).items() if domain_of(name) not in left_out])
        booster.save_model(file)
    return lightgbm.Booster(model_file=file)


def left_out_scores(out: Path, judged: Mapping[str, Judged]) -> dict[str, Array]:
    """By source, (candidates,) scores of trees that never saw its domain."""
    scores: dict[str, Array] = {}
    for fold in FOLDS:
        booster = load_trees(out, fold)
        for name, source in judged.items():
            if domain_of(name) in fold:
                scores[name] = np.asarray(booster.predict(source.rows))
    return scores


def by_domain(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each domain's sources."""
    domains: dict[str, list[float]] = {}
    for name, value in values.items():
        domains.setdefault(domain_of(name), []).append(value)
    return {domain: float(np.mean(domain_values)) for domain, domain_values in domains.items()}


def domain_of(source: str) -> str:
    return source.split("-")[0]


def choose(out: Path) -> None:
    """What trees gain on the domains that they never saw, by their share."""
    judged = load_judged(out)
    scores = left_out_scores(out, judged)
    hybrid = by_domain({name: float(source.ndcg(source.fused).mean()) for name, source in judged.items()})
    lines = [
        "# The share of the trees",
        "",
        "Made by `train/reranker.py choose`. Validation: points of nDCG@10 that reranking",
    ]
    lines += ["the hybrid's top 50 gains on domains that neither the model nor the trees saw.", ""]
    lines += [f"| share | mean | {' | '.join(hybrid)} |", "|---|" + "---:|" * (1 + len(hybrid))]
    lines += [
        f"| (hybrid) | {np.mean(list(hybrid.values())):.3f} | {' | '.join(f'{v:.3f}' for v in hybrid.values())} |"
    ]
    for share in SHARES:
        orders = {name: source.blended(scores[name], share) for name, source in judged.items()}
        reranked = by_domain({name: float(source.ndcg(orders[name]).mean()) for name, source in judged.items()})
        gains = [100 * (reranked[domain] - hybrid[domain]) for domain in hybrid]
        lines.append(f"| {share:.1f} | **{np.mean(gains):+.2f}** | {' | '.join(f'{gain:+.1f}' for gain in gains)} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "reranker_choice.md").write_text(text, encoding="utf-8")
    print(text)


# -- the bundled file, and what it is worth ---------------------------------------------------------------------------


def fit(out: Path, vectors: Path, left_out: Sequence[str] = ()) -> MiniReranker:
    """The reranker that never saw some domains, for the token vectors of a model."""
    trees = Trees.from_lightgbm(load_trees(out, left_out).dump_model())
    maker = FeatureMaker(TokenVectors.load(vectors), rarity_without(load_counts(out), left_out))
    return MiniReranker(maker, trees, SHARE)


def report(out: Path, data: Path) -> None:
    """Score the evaluation sets with the bundled file, and left-out domains with what never saw them."""
    runs = Runs(RESULTS / "reranker.jsonl")
    sets = [p for p in sorted((data / "eval").iterdir()) if p.is_dir() and p.name not in NOT_CHINESE]
    for folder in sets:
        if not runs.has({"left_out": None, "set": folder.name}):
            with PEGEncoder("peg-mini") as encoder:
                runs.add({"left_out": None, **compare_orders(encoder, load_reranker("mini"), load_beir(folder))})
    for domain, name in EVALUATION_DOMAINS.items():
        if not runs.has({"left_out": domain}):
            folder = blind_half(out, domain)
            with PEGEncoder(folder) as encoder:
                (fold,) = [fold for fold in FOLDS if domain in fold]
                reranker = fit(out, folder, fold)
                runs.add({"left_out": domain, **compare_orders(encoder, reranker, load_beir(data / "eval" / name))})
    write_report(runs)


def compare_orders(encoder: PEGEncoder, reranker: MiniReranker, dataset: RetrievalDataset) -> dict[str, Any]:
    """The hybrid's candidates in its own order and in the reranker's, query by query."""
    ids = list(dataset.corpus)
    queries = query_texts(dataset)
    orders: dict[str, Run] = {"hybrid": {}, "reranked": {}}
    seconds = 0.0
    results = search(encoder, list(dataset.corpus.values()), queries)
    for name, query, (numbers, candidates) in zip(dataset.qrels, queries, results, strict=True):
        start = process_time()
        scores = reranker.score(query, candidates)
        seconds += process_time() - start
        for system, values in (("hybrid", candidates.fused), ("reranked", scores)):
            orders[system][name] = {ids[n]: value for n, value in zip(numbers, values.tolist(), strict=True)}
    hybrid, reranked = (evaluation(dataset, system, run) for system, run in orders.items())
    difference = compare([hybrid], [reranked])
    return {
        "set": dataset.name,
        "hybrid": hybrid.mean(),
        "reranked": reranked.mean(),
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "wins": difference.wins,
        "losses": difference.losses,
        "ms": 1_000 * seconds / len(queries),
    }


def evaluation(dataset: RetrievalDataset, system: str, run: Run) -> Evaluation:
    values = score_run(run, dataset.qrels, ["nDCG@10"])
    return Evaluation(dataset.name, system, tuple(dataset.qrels), values, run, 0.0)


def write_report(runs: Runs) -> None:
    lines = [
        "# The reranker",
        "",
        "Made by `train/reranker.py`. nDCG@10 of 50 candidates in the hybrid's order and the reranker's; differences",
        "in points with 95 % intervals, paired permutation tests; processor milliseconds a query for reranking.",
        "",
    ]
    for title, rows in (
        ("`peg-mini` and the bundled file", [row for row in runs if row["left_out"] is None]),
        ("Domains that neither the model nor the trees saw", [row for row in runs if row["left_out"] is not None]),
    ):
        lines += [
            f"## {title}",
            "",
            "| set | hybrid | reranked | difference | p | better | worse | ms |",
            "|---|" + "---:|" * 7,
        ]
        lines += [report_row(row) for row in rows]
        hybrid, reranked = (float(np.mean([row[side] for row in rows])) for side in ("hybrid", "reranked"))
        lines += [f"| **mean** | {hybrid:.3f} | {reranked:.3f} | {100 * (reranked - hybrid):+.1f} | | | | |", ""]
    text = "\n".join(lines)
    (RESULTS / "reranker.md").write_text(text, encoding="utf-8")
    print(text)


def report_row(row: Mapping[str, Any]) -> str:
    points = f"{100 * (row['reranked'] - row['hybrid']):+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return (
        f"| {row['set']} | {row['hybrid']:.3f} | {row['reranked']:.3f} | {points} | {row['p']:.4f} "
        f"| {row['wins']} | {row['losses']} | {row['ms']:.1f} |"
    )


# -- texts that stand in no index -------------------------------------------------------------------------------------


def rank_texts(out: Path, data: Path) -> None:
    """BM25's first 50 in the order of each form of the reranker, on the largest source of each domain, left out."""
    runs = Runs(RESULTS / "reranker_texts.jsonl")
    files: dict[str, Path] = {}
    for file in sorted(permitted_files(data), key=lambda file: file.stat().st_size):
        files[domain_of(file.name)] = file
    for domain, file in sorted(files.items()):
        if not runs.has({"domain": domain}):
            source = read_source(file, TEXTS, TEXT_QUERIES)
            folder = blind_half(out, domain)
            (fold,) = [fold for fold in FOLDS if domain in fold]
            runs.add({"domain": domain, "source": source.name, **compare_forms(source, folder, fit(out, folder, fold))})
    for folder in sorted((data / "eval").iterdir()):
        if folder.name not in NOT_CHINESE and not runs.has({"set": folder.name}):
            source = evaluation_source(load_beir(folder))
            runs.add({"set": folder.name, **compare_forms(source, resolve("peg-mini").path, load_reranker("mini"))})
    write_texts_report(runs)


def evaluation_source(dataset: RetrievalDataset) -> Source:
    """The first queries of a set, over their judged passages and others, `TEXTS` in all."""
    judged = list(dataset.qrels.items())[:TEXT_QUERIES]
    names = dict.fromkeys(name for _, judgements in judged for name in judgements) | dict.fromkeys(dataset.corpus)
    numbers = {name: number for number, name in enumerate(list(names)[:TEXTS])}
    relevant = [{numbers[name] for name, grade in judgements.items() if grade > 0} for _, judgements in judged]
    queries = [dataset.queries[query] for query, _ in judged]
    return Source(dataset.name, [dataset.corpus[name] for name in numbers], queries, relevant)


def compare_forms(source: Source, folder: Path, reranker: MiniReranker) -> dict[str, Any]:
    """The mean nDCG@10 of BM25's candidates by each score, with the vectors of the model in the folder."""
    values: dict[str, list[float]] = {}
    with PEGEncoder(folder) as encoder, PEGIndex() as index:
        ids = [str(number) for number in range(len(source.texts))]
        index.upsert(ids, source.texts, np.ones((len(ids), 1), np.float32))  # BM25 looks at no vectors
        hit_lists = index.search_batch(None, source.queries, k=CANDIDATES, mode="lexical")
        vectors = encoder.encode_queries(source.queries)
        for query, vector, relevant, hits in zip(source.queries, vectors, source.relevant, hit_lists, strict=True):
            if hits:
                texts = [hit.text for hit in hits]
                dense = (encoder.encode_documents(texts) @ vector).astype(np.float64)
                lexical = np.array([hit.scores["lexical"] for hit in hits])
                labels = np.array([int(hit.id) in relevant for hit in hits])
                for form, scores in score_forms(reranker, query, texts, dense, lexical).items():
                    values.setdefault(form, []).append(ndcg(labels, scores, len(relevant)))
    return {"queries": len(values["bm25"])} | {form: float(np.mean(gains)) for form, gains in values.items()}


def score_forms(
    reranker: MiniReranker, query: str, texts: Sequence[str], dense: Array, lexical: Array
) -> dict[str, Array]:
    """By form, (texts,) scores; `lexical` are BM25's with the counts of the whole collection."""
    scores = {"bm25": lexical, "cosine": dense}
    sides = {
        "index": lexical,
        "texts": score_terms(query, texts),
        "table": score_terms_by_rarity(query, texts, reranker.maker.rarity),
    }
    for name, side in sides.items():
        candidates = fuse_candidates(texts, dense, side)
        scores[f"fused, {name}"] = candidates.fused
        scores[f"reranked, {name}"] = reranker.score(query, candidates)
    return scores


def score_terms_by_rarity(query: str, texts: Sequence[str], rarity: Rarity) -> Array:
    """(texts,) BM25 scores with the table of rarity in place of inverse document frequencies."""
    tokenizer = get_tokenizer("bigram")
    terms = sorted(set(tokenizer.terms(query)))
    counters = [Counter(tokenizer.terms(text)) for text in texts]
    counts = np.array([[counter[term] for term in terms] for counter in counters], dtype=np.float64)
    counts = counts.reshape(len(texts), len(terms))
    lengths = np.array([counter.total() for counter in counters])
    norm = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1.0))[:, None]
    weights = np.array([rarity_of_term(term, rarity) for term in terms])
    return np.asarray((counts * (K1 + 1) / (counts + norm)) @ weights)


def rarity_of_term(term: str, rarity: Rarity) -> float:
    units = unit_strings(term)
    codes = np.array([unit_code(unit) for unit in units])
    weights = rarity.of_units(codes) if len(units) == 1 else rarity.of_pairs(codes[None, :2])
    return float(weights[0])


def ndcg(labels: Array, scores: Array, relevant: int) -> float:
    """nDCG@10 of one query's candidates, of which so many are relevant in the collection."""
    gains = labels[np.argsort(-scores, kind="stable")][:CUTOFF]
    ideal = np.sum(1 / np.log2(np.arange(2, 2 + min(relevant, CUTOFF))))
    return float(np.sum(gains / np.log2(np.arange(2, 2 + len(gains)))) / ideal)


def write_texts_report(runs: Runs) -> None:
    lines = [
        "# Texts without an index",
        "",
        "Made by `train/reranker.py texts`. nDCG@10 of BM25's first 50 passages in the order of each score, on the",
        f"largest permitted source of each domain ({TEXTS:,} passages at most), with a model, trees and a table of",
        "rarity that never saw the domain. How often a term occurs is counted in the whole collection (*index*) or in",
        "the 50 texts alone (*texts*), or taken from the table of rarity (*table*).",
        "",
        *forms_table("domain", [row for row in runs if "domain" in row]),
        "",
        f"The evaluation sets with `peg-mini` and the bundled file, the first {TEXT_QUERIES} queries of each over",
        f"{TEXTS:,} passages at most, scored once, after the choice:",
        "",
        *forms_table("set", [row for row in runs if "set" in row]),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "reranker_texts.md").write_text(text, encoding="utf-8")
    print(text)


def forms_table(key: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    forms = [name for name in rows[0] if name not in ("domain", "set", "source", "queries")]
    means = " | ".join(f"**{np.mean([row[form] for row in rows]):.3f}**" for form in forms)
    return [
        f"| {key} | queries | {' | '.join(forms)} |",
        "|---|" + "---:|" * (1 + len(forms)),
        *(f"| {row[key]} | {row['queries']} | {' | '.join(f'{row[form]:.3f}' for form in forms)} |" for row in rows),
        f"| **mean** | | {means} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["halves", "candidates", "choose", "fit", "report", "texts"])
    parser.add_argument("--out", type=Path, required=True, help="where models, candidates and features go")
    parser.add_argument("--text-pairs", type=Path, default=Path("runs/text-pairs"), help="made by make_text_pairs.py")
    arguments = parser.parse_args()
    data = data_folder()
    os.environ["PEG_TEXT_PAIRS"] = str(arguments.text_pairs)
    if arguments.step == "halves":
        train_halves(arguments.out)
    elif arguments.step == "candidates":
        make_candidates(arguments.out, data)
    elif arguments.step == "choose":
        choose(arguments.out)
    elif arguments.step == "fit":
        model = resolve("peg-mini")
        reranker = fit(arguments.out, model.path)
        reranker.save(bundled_path(RERANKERS["mini"]), model=f"{model.name}@{model.fingerprint}")
    elif arguments.step == "report":
        report(arguments.out, data)
    else:
        rank_texts(arguments.out, data)


if __name__ == "__main__":
    main()
