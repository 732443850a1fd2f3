"""Train the answer scorer: which statement of the hits answers a question, and whether any does.

    python train/answer_scorer.py             # PEG_DATA names the data folder, else ../shared/data; about ten minutes
    python train/answer_scorer.py --write     # also writes peg_rag/assets/answer_scorer.json

Rows are the candidates of `peg_rag.answering.candidates` for

* questions about made-up tables, records and sentences (`answer_questions.py`; another seed for every corpus);
* KdConv's questions about sights, films and music, whose facts are put together into a record for each (Apache-2.0);
* CMRC 2018's trial questions (CC BY-SA 4.0). Their pairs name the passage, not the sentence, so the sentence is learnt
  along: the one that the scorer of the round before prefers.

Every question is also asked with what answers it taken out of the corpus. The questions of `tests/data/documents` and
`data/eval` are not touched. A fifth of each source is kept for validation; the table that is printed is about it.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from answer_questions import corpus, make_cases
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.answering.candidates import Candidate, find_candidates
from peg_rag.answering.evidence import FEATURES
from peg_rag.hits import Hit
from peg_rag.training.data.files import read_rows

REPO = Path(__file__).resolve().parent.parent
ASSET = REPO / "peg_rag" / "assets" / "answer_scorer.json"
HITS = 20
SEEDS = 6  # made-up corpora
KDCONV = ("tourism-kdconv", "film-kdconv", "music-kdconv")
KDCONV_QUESTIONS = 200  # of each
CMRC_QUESTIONS = 500
CMRC = "encyclopedia-cmrc2018_trial"
ROUNDS = 2
# What can only speak for a statement, and what can only speak against it.
FOR = {
    "covered", "covered_by_file", "fresh", "telling", "range_match", "looks", "column", "unit", "column_words",
    "key_words", "ends", "cosine_lead", "precision", "rank",
}  # fmt: skip
AGAINST = {
    "covered_gap", "statement_gap", "telling_gap", "missing", "missing_code", "year_conflict", "range_conflict",
    "looks_wrong", "column_rival", "echo", "cosine_gap",
}  # fmt: skip
MOST_STATEMENTS = 20  # of a question to train on
_ASKS = re.compile(r"[?？]|什么|谁|多少|哪|几|吗|怎么|多久|何时|多大")


@dataclass
class Group:
    """The candidates of one question.

    Attributes:
        right: (candidates,) 1 for those that answer, 0 for those that do not.
        loose: the answer is one of those marked, it is not known which.
        fold: 0 to 4; 0 is for validation.
    """

    source: str
    question: str
    features: NDArray[np.float32]
    right: NDArray[np.float64]
    loose: bool
    fold: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--cache", type=Path, help="file to keep the features in and take them from")
    options = parser.parse_args()
    groups = _cached(options.cache) or list(make_groups(options.data, options.seeds))
    if options.cache:
        np.save(options.cache, np.array(groups, dtype=object), allow_pickle=True)
    train = [group for group in groups if group.fold]
    held_out = [group for group in groups if not group.fold]
    statements = sum(len(group.right) for group in groups)
    print(f"{len(train)} questions to train on, {len(held_out)} held out, {statements:,} statements")
    logistic = fit_logistic(train)
    print("\nlogistic regression")
    report(held_out, lambda x: logistic[0] + x @ logistic[1:])
    for name, weight in zip(("bias", *FEATURES), logistic, strict=True):
        print(f"  {name:<22}{weight:>8.2f}")
    boosted = fit_boosted(train)
    print("\ngradient-boosted trees")
    report(held_out, boosted.decision_function)
    if options.write:
        write(boosted)


def _cached(path: Path | None) -> list[Group]:
    return list(np.load(path, allow_pickle=True)) if path and path.is_file() else []


def make_groups(data: Path, seeds: int) -> Iterator[Group]:
    with PEGEncoder("peg-mini") as encoder:  # the bundled model; another model's cosines are calibrated apart
        for seed in range(seeds):
            yield from made_up(seed, encoder)
        for name in KDCONV:
            yield from records(data, name, encoder)
        yield from passages(data, encoder)


def made_up(seed: int, encoder: PEGEncoder) -> Iterator[Group]:
    """Made-up documents and their questions, each also with its answer's document taken away."""
    documents, cases = make_cases(seed)
    rows = list(corpus(documents))
    fold = seed % 5
    with make_index(rows, encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        found = retriever.retrieve_batch([case.question for case in cases], k=3 * HITS)
        for number, (case, hits) in enumerate(zip(cases, found, strict=True)):
            yield group("made up", case.question, hits[:HITS], case.answers, encoder, fold, file=case.document)
            if case.answers and number % 2:
                left = [hit for hit in hits if not _holds(hit, case.answers, case.document)]
                yield group("made up, taken out", case.question, left[:HITS], (), encoder, fold)


def records(data: Path, name: str, encoder: PEGEncoder) -> Iterator[Group]:
    """KdConv: the facts about one thing are a record or sentences; the question asks for one of them."""
    facts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    questions = []
    rows = read_pairs(data, name) + (read_pairs(data, "tourism-kdconv_kb") if name.startswith("tourism") else [])
    for question, fact in rows:
        thing, _, rest = fact.partition(" ")
        attribute, _, value = rest.partition("：")
        if value and len(value) < 120 and value not in facts[thing][attribute]:
            facts[thing][attribute].append(value)
        if value and len(value) < 120 and _ASKS.search(question) and len(question) < 60:
            questions.append((question, thing, attribute))
    rng = np.random.default_rng(len(name))
    texts = {thing: _record(thing, known, bool(rng.random() < 0.7)) for thing, known in facts.items()}
    index_rows = [(text, {"source": f"{name}.csv", "row": i}) for i, text in enumerate(texts.values(), start=1)]
    chosen = [questions[i] for i in rng.permutation(len(questions))[:KDCONV_QUESTIONS]]
    with make_index(index_rows, encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        found = retriever.retrieve_batch([question for question, _, _ in chosen], k=HITS + 1)
        for (question, thing, attribute), hits in zip(chosen, found, strict=True):
            fold = sum(map(ord, thing)) % 5
            values = "、".join(facts[thing][attribute])
            answers = (f"{attribute}: {values}", f"{thing}的{attribute}是{values}。")
            yield group(name, question, hits[:HITS], answers, encoder, fold, needed=thing)
            left = [hit for hit in hits if hit.text != texts[thing]]
            yield group(f"{name}, taken out", question, left[:HITS], (), encoder, fold)


def passages(data: Path, encoder: PEGEncoder) -> Iterator[Group]:
    """CMRC: any sentence of the passage may be the one."""
    pairs = read_pairs(data, CMRC)
    texts = list(dict.fromkeys(passage for _, passage in pairs))
    with make_index([(text, {"source": f"{i}.txt"}) for i, text in enumerate(texts)], encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        chosen = pairs[:CMRC_QUESTIONS]
        found = retriever.retrieve_batch([question for question, _ in chosen], k=6)
        for (question, passage), hits in zip(chosen, found, strict=True):
            fold = texts.index(passage) % 5
            yield group("cmrc", question, hits[:5], (), encoder, fold, passage=passage)
            left = [hit for hit in hits if hit.text != passage]
            yield group("cmrc, taken out", question, left[:5], (), encoder, fold)


def make_index(rows: Sequence[tuple[str, dict[str, Any]]], encoder: PEGEncoder) -> PEGIndex:
    index = PEGIndex(identity=encoder.identity)
    texts = [text for text, _ in rows]
    ids = [str(number) for number in range(len(rows))]
    index.upsert(ids, texts, encoder.encode_documents(texts), [metadata for _, metadata in rows])
    return index


def group(
    source: str,
    question: str,
    hits: list[Hit],
    answers: Sequence[str],
    encoder: PEGEncoder,
    fold: int,
    *,
    file: str = "",
    needed: str = "",
    passage: str = "",
) -> Group:
    """The candidates of a question, marked: equal to an answer, in the right file or record, or in the passage."""
    candidates = find_candidates(question, hits, encoder)
    marks = []
    for candidate in candidates:
        hit = hits[candidate.place]
        here = file in str(hit.metadata["source"]) and needed in hit.text
        marks.append(float(hit.text == passage if passage else here and _equals(candidate, answers)))
    features = np.array([c.features for c in candidates], dtype=np.float32).reshape(-1, len(FEATURES))
    return Group(source, question, features, np.array(marks), bool(passage), fold)


def read_pairs(data: Path, name: str) -> list[tuple[str, str]]:
    rows = [row for _, row in read_rows(data / "pairs" / f"{name}.jsonl.zst") if not isinstance(row, str)]
    return [(row["query"], row["positive"]) for row in rows]


def _record(thing: str, facts: dict[str, list[str]], as_row: bool) -> str:
    known = {attribute: "、".join(values) for attribute, values in facts.items()}
    if as_row:
        return " | ".join([f"名称: {thing}", *(f"{attribute}: {value}" for attribute, value in known.items())])
    return "".join(f"{thing}的{attribute}是{value}。" for attribute, value in known.items())


def _equals(candidate: Candidate, answers: Sequence[str]) -> bool:
    return candidate.statement.text in answers


def _holds(hit: Hit, answers: Sequence[str], file: str) -> bool:
    return file in str(hit.metadata["source"]) and any(answer in hit.text for answer in answers)


def fit_logistic(groups: list[Group]) -> NDArray[np.float64]:
    """(1 + features,) bias first."""
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]] | None = None
    for _ in range(ROUNDS):
        x, y, w = rows_of(groups, score)
        model = LogisticRegression(C=1.0, max_iter=2000).fit(x, y, sample_weight=w)
        score = model.decision_function
    return np.concatenate([model.intercept_, model.coef_[0]])


def fit_boosted(groups: list[Group]) -> HistGradientBoostingClassifier:
    model: HistGradientBoostingClassifier | None = None
    for _ in range(ROUNDS):
        x, y, w = rows_of(groups, model.decision_function if model else None)
        model = HistGradientBoostingClassifier(
            monotonic_cst=[1 if name in FOR else -1 if name in AGAINST else 0 for name in FEATURES],
            max_iter=220,
            max_leaf_nodes=16,
            learning_rate=0.07,
            min_samples_leaf=40,
            l2_regularization=1.0,
            random_state=0,
        ).fit(x, y, sample_weight=w)
    return model


def rows_of(groups: list[Group], score: Any) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Features, marks and weights; a question weighs the same however many statements it has."""
    x, y, w = [], [], []
    for one in groups:
        if not len(one.right):
            continue
        marks = one.right
        keep = np.ones(len(marks), dtype=bool)
        if one.loose and marks.any():
            scores = score(one.features) if score else one.features[:, FEATURES.index("covered_by_statement")]
            best = int(np.argmax(np.where(marks > 0, scores, -np.inf)))
            keep = marks == 0  # its passage's other sentences may answer as well
            keep[best] = True
        if keep.sum() > MOST_STATEMENTS:  # the most misleading wrong ones are enough
            ease = np.where(keep, -2 * marks - one.features[:, :4].sum(axis=1), np.inf)
            keep[np.argsort(ease, kind="stable")[MOST_STATEMENTS:]] = False
        x.append(one.features[keep])
        y.append(marks[keep])
        w.append(np.where(marks[keep] > 0, 1.0, 4.0 / max(keep.sum(), 1)))
    return np.concatenate(x), np.concatenate(y), np.concatenate(w)


def report(groups: list[Group], score: Any) -> None:
    """Of the held-out questions: is the best statement right, and does its score tell answered from not?"""
    by_source: dict[str, list[tuple[float, bool, bool]]] = defaultdict(list)
    for one in groups:
        if not len(one.right):
            by_source[one.source].append((-99.0, False, False))
            continue
        scores = score(one.features)
        best = int(np.argmax(scores))
        by_source[one.source].append((float(scores[best]), bool(one.right[best]), bool(one.right.any())))
    print(f"{'source':<28}{'questions':>10}{'reachable':>10}{'right':>7}")
    for source, outcomes in sorted(by_source.items()):
        reachable = sum(r for _, _, r in outcomes)
        print(
            f"{source:<28}{len(outcomes):>10}{reachable:>10}{sum(r for _, r, _ in outcomes) / max(reachable, 1):>7.3f}"
        )
    for name in ("made up", "kdconv", "cmrc"):
        every = [outcome for source, outcomes in by_source.items() if name in source for outcome in outcomes]
        print(
            f"  {name}: " + ", ".join(f"{t:+.1f}: {_rates(every, t)}" for t in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0))
        )


def _rates(outcomes: list[tuple[float, bool, bool]], threshold: float) -> str:
    """Right answers of the reachable ones, and silence of the others."""
    reachable = [(s, r) for s, r, known in outcomes if known]
    others = [s for s, _, known in outcomes if not known]
    right = sum(r and s >= threshold for s, r in reachable) / max(len(reachable), 1)
    silent = sum(s < threshold for s in others) / max(len(others), 1)
    return f"{right:.2f}/{silent:.2f}"


def write(model: HistGradientBoostingClassifier) -> None:
    trees = []
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        leaf = nodes["is_leaf"].astype(bool)
        trees.append(
            {
                "feature": np.where(leaf, -1, nodes["feature_idx"]).tolist(),
                "threshold": [
                    round(float(t), 5) if not end else 0.0 for t, end in zip(nodes["num_threshold"], leaf, strict=True)
                ],
                "left": nodes["left"].tolist(),
                "right": nodes["right"].tolist(),
                "value": [round(float(v), 5) if end else 0.0 for v, end in zip(nodes["value"], leaf, strict=True)],
            }
        )
    bias = round(float(model._baseline_prediction.ravel()[0]), 5)
    content = {"format": 1, "features": list(FEATURES), "bias": bias, "trees": trees}
    ASSET.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
