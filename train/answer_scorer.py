"""Train the answer scorer: which statement of the hits answers a question, and whether any does.

    python train/answer_scorer.py             # PEG_DATA names the data folder, else ../shared/data; about ten minutes
    python train/answer_scorer.py --write     # also writes peg_rag/assets/answer_scorer.json

Rows are the candidates of `peg_rag.answering.candidates` for

* written documents and questions as colleagues ask them (`answer_documents.py`);
* questions about made-up tables, records and sentences (`answer_questions.py`; another seed for every corpus);
* KdConv's questions about sights, films and music, whose facts are put together into a record for each (Apache-2.0);
* CMRC 2018's trial questions (CC BY-SA 4.0). Their pairs name the passage, not the sentence, so the sentence is learnt
  along: the one that the scorer of the round before prefers.

Every question is also asked with what answers it taken out of the corpus. The questions of `tests/data/documents` and
`data/eval` are not touched. A fifth of each source is kept for validation; the table that is printed is about it, and
the weights of `peg_rag.answering.decision` are fitted on it. The trees that are written have seen all.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from answer_documents import WrittenDocument, occurs, read_documents
from answer_documents import passages as document_passages
from answer_questions import corpus, make_cases
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.answering.candidates import Candidate, find_candidates
from peg_rag.answering.decision import DECISION, decision_row, part_of
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.scorer import with_linear_score
from peg_rag.hits import Hit
from peg_rag.training.data.files import read_rows

REPO = Path(__file__).resolve().parent.parent
ASSET = REPO / "peg_rag" / "assets" / "answer_scorer.json"
HITS = 20
SEEDS = 2  # made-up corpora
KDCONV = ("tourism-kdconv", "film-kdconv", "music-kdconv")
KDCONV_QUESTIONS = 200  # of each
CMRC_QUESTIONS = 500
CMRC = "encyclopedia-cmrc2018_trial"
ROUNDS = 2
TAKEN_OUT_WEIGHT = 0.4  # people ask for what is not there less often than that
GROUPS = 6  # stores that the written documents are dealt out to
WRITTEN_WEIGHT = 3.0  # of a written question, as people ask, beside a made-up one
# What can only speak for a statement, and what can only speak against it.
FOR = {
    "covered", "covered_by_file", "fresh", "telling", "range_match", "looks", "column", "unit", "column_words",
    "key_words", "ends", "cosine_lead", "precision", "rank", "like", "like_by_statement", "like_by_passage",
    "like_column", "like_key", "like_heading", "file_share", "pairs", "pairs_by_statement", "pairs_telling",
    "pairs_told", "asked_noun",
}  # fmt: skip
AGAINST = {
    "covered_gap", "statement_gap", "telling_gap", "missing", "missing_code", "year_conflict", "range_conflict",
    "looks_wrong", "column_rival", "echo", "cosine_gap", "like_gap", "like_statement_gap", "like_missing",
    "like_column_rival", "like_key_gap", "pairs_gap", "pairs_told_gap", "pairs_missing", "fit_gap", "key_gap",
}  # fmt: skip
_encoder: PEGEncoder
MOST_STATEMENTS = 20  # of a question to train on
_ASKS = re.compile(r"[?？]|什么|谁|多少|哪|几|吗|怎么|多久|何时|多大")


@dataclass(frozen=True)
class Task:
    """A question with its hits, and which statements of them answer it.

    Attributes:
        answers: texts of statements that answer; what is in the statement's text where `is_part`.
        file: the hit's source that the answer stands in, or a part of it.
        needed: what the hit says.
        passage: the text of the hit that holds the answer, where the sentence is not known.
        fold: 0 to 4; 0 is for validation.
    """

    source: str
    question: str
    hits: list[Hit]
    fold: int
    answers: tuple[str, ...] = ()
    is_part: bool = False
    file: str = ""
    needed: str = ""
    passage: str = ""


@dataclass
class Group:
    """The candidates of one question.

    Attributes:
        right: (candidates,) 1 for those that answer, 0 for those that do not.
        parts: see `part_of`.
        loose: the answer is one of those marked, it is not known which.
        fold: 0 to 4; 0 is for validation.
    """

    source: str
    question: str
    features: NDArray[np.float32]
    right: NDArray[np.float64]
    parts: list[tuple[int, int]]
    loose: bool
    fold: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--cache", type=Path, help="file to keep the questions with their hits in and take them from")
    parser.add_argument("--features", type=Path, help="file to keep the candidates' features in and take them from")
    options = parser.parse_args()
    groups = read_groups(options)
    train = [group for group in groups if group.fold]
    held_out = [group for group in groups if not group.fold]
    statements = sum(len(group.right) for group in groups)
    print(f"{len(train)} questions to train on, {len(held_out)} held out, {statements:,} statements")
    logistic = fit_logistic(train)
    print("\nlogistic regression")
    report(held_out, lambda x: logistic[0] + x @ logistic[1:])
    for name, weight in zip(("bias", *FEATURES), logistic, strict=True):
        print(f"  {name:<22}{weight:>8.2f}")
    boosted = fit_boosted(train, logistic)
    print("\ngradient-boosted trees")
    report(held_out, lambda x: boosted.decision_function(with_linear_score(x, logistic)))
    decision = fit_decision(held_out, lambda x: boosted.decision_function(with_linear_score(x, logistic)))
    if options.write:
        write(fit_boosted(groups, logistic), logistic, decision)  # what was held out is learnt from too in the end


def read_groups(options: argparse.Namespace) -> list[Group]:
    if options.features and options.features.is_file():
        return list(np.load(options.features, allow_pickle=True))
    groups = make_groups(read_tasks(options))
    if options.features:
        np.save(options.features, np.array(groups, dtype=object), allow_pickle=True)
    return groups


def read_tasks(options: argparse.Namespace) -> list[Task]:
    if options.cache and options.cache.is_file():
        return list(np.load(options.cache, allow_pickle=True))
    tasks = list(make_tasks(options.data, options.seeds))
    if options.cache:
        with options.cache.open("wb") as file:
            np.save(file, np.array(tasks, dtype=object), allow_pickle=True)
    return tasks


def make_tasks(data: Path, seeds: int) -> Iterator[Task]:
    with PEGEncoder("peg-mini") as encoder:  # the bundled model; another model's cosines are calibrated apart
        yield from written(encoder)
        for seed in range(seeds):
            yield from made_up(seed, encoder)
        for name in KDCONV:
            yield from records(data, name, encoder)
        yield from encyclopedia(data, encoder)


def make_groups(tasks: list[Task]) -> list[Group]:
    with Pool(initializer=_open_encoder) as pool:
        return pool.map(_group_in_worker, tasks, chunksize=20)


def _open_encoder() -> None:
    global _encoder
    _encoder = PEGEncoder("peg-mini")


def _group_in_worker(task: Task) -> Group:
    return group_of(task, _encoder)


def made_up(seed: int, encoder: PEGEncoder) -> Iterator[Task]:
    """Made-up documents and their questions, each also with its answer's document taken away."""
    documents, cases = make_cases(seed)
    fold = seed % 5
    with make_index(list(corpus(documents)), encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        results = retriever.retrieve_batch([case.question for case in cases], k=3 * HITS)
        for number, (case, hits) in enumerate(zip(cases, results, strict=True)):
            yield Task("made up", case.question, hits[:HITS], fold, case.answers, file=case.document)
            if case.answers and number % 2:
                left = [hit for hit in hits if not _holds(hit, case.answers, case.document)]
                yield Task("made up, taken out", case.question, left[:HITS], fold)


def written(encoder: PEGEncoder) -> Iterator[Task]:
    """Written documents and questions; `GROUPS` stores with every so many-th document, a fold has its own documents."""
    documents = read_documents()
    for start in range(GROUPS):
        yield from _written_in_group(documents[start::GROUPS], start, encoder)


def _written_in_group(documents: list[WrittenDocument], start: int, encoder: PEGEncoder) -> Iterator[Task]:
    cases = [((start + number) % 5, case) for number, document in enumerate(documents) for case in document.cases]
    with make_index(list(document_passages(documents)), encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        results = retriever.retrieve_batch([case.question for _, case in cases], k=2 * HITS)
        for (fold, case), hits in zip(cases, results, strict=True):
            yield Task("written", case.question, hits[:HITS], fold, case.must, is_part=True, file=case.file)
            if case.must:
                left = [hit for hit in hits if not (case.file in hit.metadata["source"] and _says(hit.text, case.must))]
                yield Task("written, taken out", case.question, left[:HITS], fold)


def records(data: Path, name: str, encoder: PEGEncoder) -> Iterator[Task]:
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
        results = retriever.retrieve_batch([question for question, _, _ in chosen], k=HITS + 1)
        for (question, thing, attribute), hits in zip(chosen, results, strict=True):
            fold = sum(map(ord, thing)) % 5
            values = "、".join(facts[thing][attribute])
            answers = (f"{attribute}: {values}", f"{thing}的{attribute}是{values}。")
            yield Task(name, question, hits[:HITS], fold, answers, needed=thing)
            left = [hit for hit in hits if hit.text != texts[thing]]
            yield Task(f"{name}, taken out", question, left[:HITS], fold)


def encyclopedia(data: Path, encoder: PEGEncoder) -> Iterator[Task]:
    """CMRC: any sentence of the passage may be the one."""
    pairs = read_pairs(data, CMRC)
    texts = list(dict.fromkeys(passage for _, passage in pairs))
    with make_index([(text, {"source": f"{i}.txt"}) for i, text in enumerate(texts)], encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        chosen = pairs[:CMRC_QUESTIONS]
        results = retriever.retrieve_batch([question for question, _ in chosen], k=6)
        for (question, passage), hits in zip(chosen, results, strict=True):
            fold = texts.index(passage) % 5
            yield Task("cmrc", question, hits[:5], fold, passage=passage)
            left = [hit for hit in hits if hit.text != passage]
            yield Task("cmrc, taken out", question, left[:5], fold)


def make_index(rows: Sequence[tuple[str, dict[str, Any]]], encoder: PEGEncoder) -> PEGIndex:
    index = PEGIndex(identity=encoder.identity)
    texts = [text for text, _ in rows]
    ids = [str(number) for number in range(len(rows))]
    index.upsert(ids, texts, encoder.encode_documents(texts), [metadata for _, metadata in rows])
    return index


def group_of(task: Task, encoder: PEGEncoder) -> Group:
    """The candidates of a question, marked."""
    candidates = find_candidates(task.question, task.hits, encoder)
    marks = [float(_answers(candidate, task)) for candidate in candidates]
    features = np.array([c.features for c in candidates], dtype=np.float32).reshape(-1, len(FEATURES))
    parts = [part_of(candidate) for candidate in candidates]
    return Group(task.source, task.question, features, np.array(marks), parts, bool(task.passage), task.fold)


def _answers(candidate: Candidate, task: Task) -> bool:
    hit = task.hits[candidate.place]
    if task.passage:
        return hit.text == task.passage
    if not task.answers or task.file not in str(hit.metadata["source"]) or task.needed not in hit.text:
        return False
    text = candidate.statement.text
    return _says(text, task.answers) if task.is_part else text in task.answers


def _says(text: str, answers: Sequence[str]) -> bool:
    return all(occurs(answer, text) for answer in answers)


def read_pairs(data: Path, name: str) -> list[tuple[str, str]]:
    rows = [row for _, row in read_rows(data / "pairs" / f"{name}.jsonl.zst") if not isinstance(row, str)]
    return [(row["query"], row["positive"]) for row in rows]


def _record(thing: str, facts: dict[str, list[str]], as_row: bool) -> str:
    known = {attribute: "、".join(values) for attribute, values in facts.items()}
    if as_row:
        return " | ".join([f"名称: {thing}", *(f"{attribute}: {value}" for attribute, value in known.items())])
    return "".join(f"{thing}的{attribute}是{value}。" for attribute, value in known.items())


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


def fit_boosted(groups: list[Group], linear: NDArray[np.float64]) -> HistGradientBoostingClassifier:
    """Trees over the features and their linear score, which also says which sentence of a passage answers."""
    x, y, w = rows_of(groups, lambda f: linear[0] + f @ linear[1:])
    return HistGradientBoostingClassifier(
        monotonic_cst=[*(1 if name in FOR else -1 if name in AGAINST else 0 for name in FEATURES), 1],
        max_iter=150,
        early_stopping=False,
        max_leaf_nodes=16,
        learning_rate=0.06,
        min_samples_leaf=40,
        l2_regularization=1.0,
        random_state=0,
    ).fit(with_linear_score(x, linear), y, sample_weight=w)


def fit_decision(groups: list[Group], score: Any) -> NDArray[np.float64]:
    """(1 + len(DECISION),) of questions that the scorer was not trained on: is the best statement right?

    What is printed is measured on half of the questions after fitting on the other half.
    """
    x, y, w, sources = [], [], [], []
    for one in (group for group in groups if len(group.right)):
        scores = score(one.features)
        x.append(decision_row(scores, one.features, one.parts))
        y.append(one.right[int(np.argmax(scores))])
        weight = WRITTEN_WEIGHT if one.source.startswith("written") else 1.0
        w.append(weight * (TAKEN_OUT_WEIGHT if "taken out" in one.source else 1.0))
        sources.append(one.source)
    rows, marks, weights = np.array(x), np.array(y), np.array(w)
    halves = np.arange(len(rows)) // 2 % 2
    odds = np.empty(len(rows))
    for half in (0, 1):
        model = LogisticRegression(C=0.3, max_iter=5000).fit(
            rows[halves != half], marks[halves != half], sample_weight=weights[halves != half]
        )
        odds[halves == half] = model.decision_function(rows[halves == half])
    is_written = np.array([source.startswith("written") for source in sources])
    print("\ndecision, of written questions: threshold, said and right, said and wrong, of all")
    for threshold in (-1.0, -0.5, 0.0, 0.5, 1.0):
        said = is_written & (odds >= threshold)
        print(f"  {threshold:+.1f} {said @ marks / is_written.sum():.3f} {said @ (1 - marks) / is_written.sum():.3f}")
        said = is_written & (rows[:, 0] >= threshold)
        print(f"   by score alone {said @ marks / is_written.sum():.3f} {said @ (1 - marks) / is_written.sum():.3f}")
    model = LogisticRegression(C=0.3, max_iter=5000).fit(rows, marks, sample_weight=weights)
    weights_ = np.concatenate([model.intercept_, model.coef_[0]])
    for name, weight in zip(("bias", *DECISION), weights_, strict=True):
        print(f"  {name:<22}{weight:>8.2f}")
    return weights_


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
        weight = WRITTEN_WEIGHT if one.source.startswith("written") else 1.0
        w.append(weight * np.where(marks[keep] > 0, 1.0, 4.0 / max(keep.sum(), 1)))
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
    for name in ("written", "made up", "kdconv", "cmrc"):
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


def write(model: HistGradientBoostingClassifier, linear: NDArray[np.float64], decision: NDArray[np.float64]) -> None:
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
    content = {
        "format": 2,
        "features": list(FEATURES),
        "bias": bias,
        "linear": [round(float(weight), 5) for weight in linear],
        "decision": [round(float(weight), 5) for weight in decision],
        "trees": trees,
    }
    ASSET.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
