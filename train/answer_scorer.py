"""Train the answer scorer: which statement of the hits answers a question, and whether any does.

    python train/answer_scorer.py --features rows.npz --pack reading.npz      # what train/reader.py learns from
    python train/answer_scorer.py --features rows.npz --reading run           # with what it says of left-out documents
    python train/answer_scorer.py --features rows.npz --reading run --write   # also writes answer_scorer.json

`rows.npz` keeps the features from one run to the next. `train/expected_answers.py --write` comes first: it learns from
the same documents.

Rows are the candidates of `peg_rag.answering.candidates` for written documents and questions as colleagues ask them
(`answer_documents.py`), dealt out to `STORES` stores. The questions of one fold get as many hits as `peg-rag ask`
gives, the others fewer, to save time; so what is printed of the order is too good for these. `--wordings 2` takes at
most two wordings of a question. One question in three is also asked with what answers it taken out: the whole passage,
its line, or the cell or sentence alone. The questions of `tests/data` and `data/eval` are not touched.

* A linear score and boosted trees learn to put the right statement before the others of its question: softmax
  cross-entropy over the candidates, and LambdaRank.
* Which of the few best statements answers, if any, is decided by trees of their own. They learn from the scores and the
  reader's log odds of models that have not seen the document: documents are dealt out to five folds, a scorer is
  trained without each, and the reader without one, whose questions the trees learn from.

What is printed is measured on documents that were left out. What is written is fitted on all that it may learn from.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from answer_documents import WrittenCase, WrittenDocument, occurs, read_documents
from answer_documents import passages as document_passages
from expected_answers import FOLDS, answers_question, fit_folds, fold_of
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.answering.candidates import Candidate, find_candidates
from peg_rag.answering.decision import DECIDED, DECISION, choose_best, decision_rows, part_of
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.expectation import Expectation
from peg_rag.answering.passages import start_of_body
from peg_rag.answering.reading import CONTEXT_TOKENS, READER, STATEMENT_TOKENS, ContextualStatement
from peg_rag.answering.statements import statements_of
from peg_rag.hits import Hit
from peg_rag.models import bundled_path

REPO = Path(__file__).resolve().parent.parent
ASSET = REPO / "peg_rag" / "assets" / "answer_scorer.json"
HITS = 40
HITS_TO_LEARN = 12  # of a question that is not left out; with all its hits, rows would take three times as long
LEFT_OUT = 0  # fold that the reader does not learn from, but the trees that decide
STORES = 12  # that the written documents are dealt out to
TAKEN_OUT_EVERY = 3  # questions
TAKEN_OUT_WEIGHT = 0.5  # for the decision: people ask for what is not there less often than that
RIDGE = 3.0  # of the linear score
STEPS = 80
ROUNDS = 300
READ = 16  # best-scored statements of a question that the reader learns from, more than it reads for an answer
MOST_CANDIDATES = 48  # of a question to train on
TREES = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 10,
    "max_bin": 63,
    "num_leaves": 15,
    "learning_rate": 0.06,
    "min_data_in_leaf": 30,
    "lambda_l2": 1.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "seed": 0,
    "verbose": -1,
}
DECIDING_ROUNDS = 400
DECIDING_TREES = {
    "objective": "binary",
    "max_bin": 63,
    "num_leaves": 7,
    "learning_rate": 0.04,
    "min_data_in_leaf": 60,
    "lambda_l2": 5.0,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "seed": 0,
    "verbose": -1,
}
# What can only speak for a statement, and what can only speak against it.
FOR = {
    "covered", "covered_by_file", "fresh", "telling", "range_match", "right_kind", "column", "unit", "column_words",
    "key_words", "ends", "cosine_lead", "precision", "rank", "like", "like_by_statement", "like_by_passage",
    "like_column", "like_key", "like_heading", "file_share", "pairs", "pairs_by_statement", "pairs_telling",
    "pairs_telling_by_statement", "asked_noun", "phrases", "phrases_by_statement", "synonyms_column", "synonyms_key",
    "synonyms_heading", "source_words", "negation", "column_run", "key_run", "key_run_length", "agreements",
    "agreements_near", "expected_shape", "expected_column", "terms_said",
}  # fmt: skip
AGAINST = {
    "covered_gap", "statement_gap", "telling_gap", "missing", "missing_near", "missing_code", "year_conflict",
    "range_conflict", "wrong_kind", "column_rival", "echo", "cosine_gap", "like_gap", "like_statement_gap",
    "like_missing", "like_column_rival", "like_key_gap", "pairs_gap", "pairs_statement_gap", "pairs_missing", "fit_gap",
    "key_gap", "phrases_gap", "phrases_missing", "synonyms_column_rival", "synonyms_key_gap", "hit_gap", "older_mail",
    "superseded", "negation_conflict", "column_run_rival", "key_run_gap", "conflicts", "conflicts_near",
    "expected_shape_gap", "expected_column_gap", "terms_missing", "terms_beside", "terms_gap",
}  # fmt: skip
_SIGNS = [1 if name in FOR else -1 if name in AGAINST else 0 for name in FEATURES]
_LIKELY = [FEATURES.index(name) for name in ("covered", "like", "telling", "phrases", "pairs_telling")]
_encoder: PEGEncoder
_expectations: list[Expectation]


@dataclass(frozen=True)
class Task:
    """A question with its hits, and what a statement says that answers it; nothing where none does.

    Attributes:
        source: `written`, or `taken out` where the answer was.
        file: the hit's source that the answer stands in.
        fold: 0 to 4; a document's questions are all of one fold.
    """

    source: str
    question: str
    hits: list[Hit]
    fold: int
    must: tuple[str, ...] = ()
    file: str = ""


@dataclass
class Group:
    """The candidates of one question.

    Attributes:
        right: (candidates,) 1 for those that answer, 0 for those that do not.
        parts: see `part_of`.
        described: what the reader reads of each candidate.
    """

    source: str
    question: str
    features: NDArray[np.float32]
    right: NDArray[np.float64]
    parts: list[tuple[int, int]]
    described: list[ContextualStatement]
    fold: int

    @property
    def is_answerable(self) -> bool:
        return bool(self.right.any())


@dataclass(frozen=True)
class Ranker:
    """What puts the candidates of a question in order."""

    linear: NDArray[np.float64]
    trees: lightgbm.Booster

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(candidates,) of features (candidates, len(FEATURES))."""
        return np.asarray(features @ self.linear + self.trees.predict(features), dtype=np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="file to keep the candidates' features in and take them from")
    parser.add_argument("--wordings", type=int, help="of a written question, at most; default all")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--pack", type=Path, help="write what the reader learns from to this file, and stop")
    parser.add_argument("--tokenizer", type=Path, default=bundled_path(READER) / "tokenizer.json")
    parser.add_argument("--reading", type=Path, help="folder of the reader's log odds, left-out.npz")
    options = parser.parse_args()
    groups = read_groups(options.features, options.wordings)
    counts = Counter(group.source for group in groups)
    print(f"{counts['written']} questions, {counts['taken out']} of them also with the answer taken out")
    scores = cross_validate(groups)
    if options.pack:
        pack_reading(groups, scores, Tokenizer.from_file(str(options.tokenizer)), options.pack)
        return
    if not options.reading:
        raise SystemExit("--reading: expected the folder of `train/reader.py score`; see train/README.md")
    decision = fit_decision(groups, scores, load_reading(options.reading, groups))
    if options.write:
        write(train_ranker(groups), decision)


# -- rows -------------------------------------------------------------------------------------------------------------


def read_groups(file: Path | None, wordings: int | None) -> list[Group]:
    """The questions that have candidates; from the file, if it is there, which is written otherwise."""
    if file and file.is_file():
        if wordings is not None:
            raise SystemExit(f"--wordings: {file} is there already; leave the option out, or name another file")
        return load_groups(file)
    groups = make_groups(list(make_tasks(wordings)))
    if file:
        save_groups(file, groups)
    return groups


def make_tasks(wordings: int | None) -> Iterator[Task]:
    """Every so many-th document is of one store; a fold has its own documents."""
    documents = read_documents(wordings)
    with PEGEncoder("peg-mini") as encoder:  # the bundled model; another model's cosines are calibrated apart
        for start in range(STORES):
            yield from _make_tasks_of_store(documents[start::STORES], start, encoder)


def _make_tasks_of_store(documents: list[WrittenDocument], start: int, encoder: PEGEncoder) -> Iterator[Task]:
    cases = [
        (fold_of(start + number * STORES, STORES), case)
        for number, document in enumerate(documents)
        for case in document.cases
    ]
    with make_index(list(document_passages(documents)), encoder) as index:
        retriever = Retriever(index, encoder, mode="hybrid")
        results = retriever.retrieve_batch([case.question for _, case in cases], k=2 * HITS)
    for number, ((fold, case), hits) in enumerate(zip(cases, results, strict=True)):
        yield Task("written", case.question, _choose_hits(hits, case, fold), fold, case.must, case.file)
        if case.must and number % TAKEN_OUT_EVERY == 0:
            take_out = _WAYS[number // TAKEN_OUT_EVERY % len(_WAYS)]
            others = [other for hit in hits if (other := take_out(hit, case)) is not None]
            yield Task("taken out", case.question, _choose_hits(others, case, fold), fold)


def _choose_hits(hits: list[Hit], case: WrittenCase, fold: int) -> list[Hit]:
    """The hits whose statements become rows: of a question that is left out, as many as an answer is chosen from; of
    others the first few, and if none of these answers, the last is replaced by the first hit that does."""
    if fold == LEFT_OUT:
        return hits[:HITS]
    first = hits[:HITS_TO_LEARN]
    answering = next((hit for hit in hits[:HITS] if _is_answered_by(hit, case)), None)
    return first if answering is None or answering in first else [*first[:-1], answering]


def _without_hit(hit: Hit, case: WrittenCase) -> Hit | None:
    """None for a hit that answers."""
    return None if _is_answered_by(hit, case) else hit


def _without_statement(hit: Hit, case: WrittenCase) -> Hit | None:
    """A hit without the cell or sentence that answers; what stands around it stays, as it does where people ask for
    what a document nearly says."""
    if _without_hit(hit, case):
        return hit
    statements = statements_of(hit.text, start_of_body(hit))
    spans = [s.span for s in statements if s.kind != "list" and answers_question(s, case.must)]
    text = hit.text
    for first, last in sorted(set(spans), reverse=True):
        text = text[:first].removesuffix(" | ") + text[last:]
    rest = replace(hit, text=text.replace("\n | ", "\n").removeprefix(" | "))
    return _without_hit(rest, case)


def _without_row(hit: Hit, case: WrittenCase) -> Hit | None:
    """A hit without the lines that answer: of what was asked, nothing is left but what stands beside it."""
    if _without_hit(hit, case):
        return hit
    statements = statements_of(hit.text, start_of_body(hit))
    places = [s.span[0] for s in statements if s.kind != "list" and answers_question(s, case.must)]
    kept = []
    start = 0
    for line in hit.text.splitlines(keepends=True):
        if not any(start <= place < start + len(line) for place in places):
            kept.append(line)
        start += len(line)
    return _without_hit(replace(hit, text="".join(kept)), case)


_WAYS = (_without_statement, _without_row, _without_hit)


def make_index(rows: Sequence[tuple[str, dict[str, Any]]], encoder: PEGEncoder) -> PEGIndex:
    index = PEGIndex(identity=encoder.identity)
    texts = [text for text, _ in rows]
    ids = [str(number) for number in range(len(rows))]
    index.upsert(ids, texts, encoder.encode_documents(texts), [metadata for _, metadata in rows])
    return index


def make_groups(tasks: list[Task]) -> list[Group]:
    with Pool(initializer=_start_worker, initargs=(fit_folds(read_documents(), STORES),)) as pool:
        groups = pool.map(_group_in_worker, tasks, chunksize=20)
    pairs = zip(tasks, groups, strict=True)
    return [group for task, group in pairs if len(group.right) and (group.is_answerable or not _is_in_hits(task))]


def _is_in_hits(task: Task) -> bool:
    """Whether a hit says what answers; where no statement does, the question would teach to decline what is there."""
    return any(_is_answered_by(hit, task) for hit in task.hits)


def _is_answered_by(hit: Hit, asked: Task | WrittenCase) -> bool:
    return bool(asked.must) and asked.file in hit.metadata["source"] and _says(hit.text, asked.must)


def _start_worker(expectations: list[Expectation]) -> None:
    """
    Args:
        expectations: for each fold, what was learned without it.
    """
    global _encoder, _expectations
    _encoder = PEGEncoder("peg-mini")
    _expectations = expectations


def _group_in_worker(task: Task) -> Group:
    candidates = find_candidates(task.question, task.hits, _encoder, _expectations[task.fold])
    right = np.array([float(_answers(candidate, task)) for candidate in candidates])
    features = np.array([c.features for c in candidates], dtype=np.float32).reshape(-1, len(FEATURES))
    parts = [part_of(candidate) for candidate in candidates]
    described = [candidate.describe() for candidate in candidates]
    return Group(task.source, task.question, features, right, parts, described, task.fold)


def _answers(candidate: Candidate, task: Task) -> bool:
    source = str(task.hits[candidate.place].metadata["source"])
    return bool(task.must) and task.file in source and answers_question(candidate.statement, task.must)


def _says(text: str, must: Sequence[str]) -> bool:
    return all(occurs(literal, text) for literal in must)


def save_groups(file: Path, groups: list[Group]) -> None:
    texts: dict[str, int] = {}
    questions = [texts.setdefault(group.question, len(texts)) for group in groups]
    described = [
        [texts.setdefault(text, len(texts)) for text in (statement.question, statement.statement, statement.context)]
        for group in groups
        for statement in group.described
    ]
    np.savez_compressed(
        file,
        names=np.array(FEATURES),
        texts=np.frombuffer("\0".join(texts).encode(), dtype=np.uint8),
        questions=np.array(questions),
        sizes=np.array([len(group.right) for group in groups]),
        sources=np.array([group.source for group in groups]),
        folds=np.array([group.fold for group in groups]),
        features=np.concatenate([group.features for group in groups]),
        right=np.concatenate([group.right for group in groups]),
        parts=np.concatenate([np.array(group.parts) for group in groups]),
        described=np.array(described, dtype=np.int32),
    )


def load_groups(file: Path) -> list[Group]:
    content = np.load(file, allow_pickle=False)
    if tuple(content["names"].tolist()) != FEATURES:
        raise SystemExit(f"{file} holds other features; delete it")
    if content["described"].shape[1] != len(fields(ContextualStatement)):
        raise SystemExit(f"{file} does not hold the questions as files would put them; delete it")
    texts = content["texts"].tobytes().decode().split("\0")
    ends = np.cumsum(content["sizes"])[:-1]
    columns = [np.split(content[name], ends) for name in ("features", "right", "parts", "described")]
    names = zip(content["sources"].tolist(), content["questions"].tolist(), content["folds"].tolist(), strict=True)
    return [
        Group(
            source,
            texts[question],
            features,
            right,
            [tuple(part) for part in parts.tolist()],
            [ContextualStatement(*(texts[text] for text in row)) for row in described.tolist()],
            fold,
        )
        for (source, question, fold), features, right, parts, described in zip(names, *columns, strict=True)
    ]


# -- reading ----------------------------------------------------------------------------------------------------------


def pack_reading(
    groups: Sequence[Group], scores: Sequence[NDArray[np.float64]], tokenizer: Tokenizer, file: Path
) -> None:
    """Writes what `train/reader.py` learns from: of each question the `READ` statements that score best by a model
    which has not seen its document."""
    texts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("questions", "sizes", "statements", "contexts", "right")}
    for group, own_scores in zip(groups, scores, strict=True):
        numbers = np.argsort(-own_scores, kind="stable")[:READ]
        columns["sizes"].append(len(numbers))
        for number in numbers.tolist():
            described = group.described[number]
            columns["questions"].append(texts.setdefault(described.question, len(texts)))
            columns["statements"].append(texts.setdefault(described.statement, len(texts)))
            columns["contexts"].append(texts.setdefault(described.context, len(texts)))
            columns["right"].append(group.right[number] > 0)
    tokenizer.enable_truncation(max(STATEMENT_TOKENS, CONTEXT_TOKENS))
    tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    np.savez_compressed(
        file,
        tokens=np.concatenate([np.array(ids, dtype=np.uint16) for ids in tokens]),
        lengths=np.array([len(ids) for ids in tokens], dtype=np.uint16),
        folds=np.array([group.fold for group in groups], dtype=np.uint8),
        weights=np.array([_weigh_group(group) for group in groups], dtype=np.float32),
        right=np.array(columns.pop("right")),
        **{name: np.array(values, dtype=np.int32) for name, values in columns.items()},  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too
    )
    print(f"{file}: {len(texts):,} texts, {len(columns['statements']):,} rows")


def load_reading(folder: Path, groups: Sequence[Group]) -> dict[int, NDArray[np.float64]]:
    """By the question's number, the log odds of its `DECIDED` best-scored statements, by a reader that has not seen its
    document."""
    content = np.load(folder / "left-out.npz", allow_pickle=False)
    logits = np.split(content["logits"].astype(np.float64), np.cumsum(content["sizes"])[:-1])
    readings = dict(zip(content["questions"].tolist(), logits, strict=True))
    for number, own in readings.items():
        if groups[number].fold != LEFT_OUT or len(own) != min(DECIDED, len(groups[number].right)):
            raise SystemExit(
                f"{folder}: {len(own)} log odds of question {number}, fold {groups[number].fold}; expected {DECIDED} "
                f"of a question of fold {LEFT_OUT}: pack these features, leave it out, and score with --most {DECIDED}"
            )
    return dict(sorted(readings.items()))


def _weigh_group(group: Group) -> float:
    return TAKEN_OUT_WEIGHT if group.source == "taken out" else 1.0


# -- order ------------------------------------------------------------------------------------------------------------


def cross_validate(groups: list[Group]) -> list[NDArray[np.float64]]:
    """The scores that each question's candidates get from a ranker that has not seen its document."""
    scores: list[NDArray[np.float64]] = [np.zeros(0)] * len(groups)
    for fold in range(FOLDS):
        ranker = train_ranker([group for group in groups if group.fold != fold])
        for number, group in enumerate(groups):
            if group.fold == fold:
                scores[number] = ranker.score(group.features)
    answerable = [(group, s) for group, s in zip(groups, scores, strict=True) if group.is_answerable]
    right = sum(group.right[int(np.argmax(s))] for group, s in answerable)
    print(f"the best statement is right for {right / len(answerable):.3f} of {len(answerable)} answerable questions")
    return scores


def train_ranker(groups: list[Group]) -> Ranker:
    answerable = [_keep_hardest(group) for group in groups if group.is_answerable]
    return Ranker(fit_linear(answerable), grow_trees(answerable))


def _keep_hardest(group: Group) -> Group:
    """The right candidates and the most misleading of the others: those that say most of the question."""
    ease = -group.features[:, _LIKELY].sum(axis=1) - 9 * group.right
    kept = np.sort(np.argsort(ease, kind="stable")[:MOST_CANDIDATES])
    return replace(
        group,
        features=group.features[kept],
        right=group.right[kept],
        parts=[group.parts[i] for i in kept],
        described=[group.described[i] for i in kept],
    )


def fit_linear(groups: list[Group]) -> NDArray[np.float64]:
    """(features,) weights: the least softmax cross-entropy of the right statements among each question's candidates."""
    rows = np.concatenate([group.features for group in groups])
    right = np.concatenate([group.right for group in groups])
    sizes = np.array([len(group.right) for group in groups])
    starts = np.cumsum(sizes) - sizes
    scale = rows.std(axis=0) + 1e-3
    rows = (rows - rows.mean(axis=0)) / scale

    def measure_loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = (rows @ weights.astype(np.float32)).astype(np.float64)
        scores -= np.repeat(np.maximum.reduceat(scores, starts), sizes)
        chances = np.exp(scores)
        chances /= np.repeat(np.add.reduceat(chances, starts), sizes)  # (rows,)
        hits = np.add.reduceat(chances * right, starts) + 1e-9  # (questions,)
        errors = chances * (1 - right / np.repeat(hits, sizes))
        gradient = (errors.astype(np.float32) @ rows).astype(np.float64)
        return float(-np.log(hits).sum() + RIDGE / 2 * weights @ weights), gradient + RIDGE * weights

    result = minimize(measure_loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return np.asarray(result.x / scale, dtype=np.float64)


def grow_trees(groups: list[Group]) -> lightgbm.Booster:
    rows = np.concatenate([group.features for group in groups])
    right = np.concatenate([group.right for group in groups])
    data = lightgbm.Dataset(rows, right, group=[len(group.right) for group in groups])
    return lightgbm.train(TREES | {"monotone_constraints": _SIGNS}, data, ROUNDS)


# -- decision ---------------------------------------------------------------------------------------------------------


def fit_decision(
    groups: list[Group], scores: Sequence[NDArray[np.float64]], readings: dict[int, NDArray[np.float64]]
) -> lightgbm.Booster:
    """Which of the best statements is right, if any? What is printed is measured on documents that were left out."""
    read_groups = [groups[number] for number in readings]
    best = [choose_best(scores[number]) for number in readings]
    rows = np.concatenate(
        [
            decision_rows(scores[number], group.features, group.parts, reading)
            for (number, reading), group in zip(readings.items(), read_groups, strict=True)
        ]
    )
    right = np.concatenate([group.right[numbers] for group, numbers in zip(read_groups, best, strict=True)])
    sizes = [len(numbers) for numbers in best]
    weights = np.repeat([_weigh_group(group) for group in read_groups], sizes)
    blocks = np.repeat(np.arange(len(sizes)) * FOLDS // len(sizes), sizes)  # a document's questions are neighbours
    odds = np.empty(len(rows))
    for block in range(FOLDS):
        trained = blocks != block
        booster = _grow_deciding_trees(rows[trained], right[trained], weights[trained])
        odds[~trained] = booster.predict(rows[~trained], raw_score=True)
    _report_decision(read_groups, *_choose_likeliest(odds, right, sizes))
    booster = _grow_deciding_trees(rows, right, weights)
    gains = booster.feature_importance("gain")
    print("what decides: " + ", ".join(DECISION[i] for i in np.argsort(-gains)[:20]))
    return booster


def _choose_likeliest(
    odds: NDArray[np.float64], right: NDArray[np.float64], sizes: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(questions,) the odds of each question's likeliest statement, and whether it is right."""
    ends = np.cumsum(sizes)
    chosen = [start + int(np.argmax(odds[start:end])) for start, end in zip(ends - sizes, ends, strict=True)]
    return odds[chosen], right[chosen]


def _report_decision(groups: list[Group], odds: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    answerable = np.array([group.is_answerable for group in groups])
    print(f"the likeliest statement is right for {right[answerable].mean():.3f} of the answerable questions")
    print(f"area under the curve: {roc_auc_score(right, odds):.3f}")
    print("  log odds from which something is said: right / wrong / declined, and declined where nothing answers")
    for threshold in (-1.0, -0.5, 0.0, 0.5, 1.0):
        is_said = odds >= threshold
        shares = (is_said & (right > 0), is_said & (right == 0), ~is_said)
        text = " / ".join(f"{share[answerable].mean():.3f}" for share in shares)
        print(f"  {threshold:+.1f}: {text}, {(~is_said)[~answerable].mean():.3f}")


def _grow_deciding_trees(
    rows: NDArray[np.float32], right: NDArray[np.float64], weights: NDArray[np.float64]
) -> lightgbm.Booster:
    return lightgbm.train(DECIDING_TREES, lightgbm.Dataset(rows, right, weight=weights), DECIDING_ROUNDS)


# -- file -------------------------------------------------------------------------------------------------------------


def write(ranker: Ranker, decision: lightgbm.Booster) -> None:
    content = {
        "format": 3,
        "features": list(FEATURES),
        "linear": [round(float(weight), 5) for weight in ranker.linear],
        "trees": _list_trees(ranker.trees),
        "decision": _list_trees(decision),
    }
    ASSET.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


def _list_trees(booster: lightgbm.Booster) -> list[dict[str, list[float]]]:
    return [_list_nodes(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]


def _list_nodes(root: dict[str, Any]) -> dict[str, list[float]]:
    """A tree's nodes, each before those under it; a leaf has the feature -1."""
    columns: dict[str, list[float]] = {name: [] for name in ("feature", "threshold", "smaller", "larger", "value")}

    def add_node(node: dict[str, Any]) -> int:
        number = len(columns["feature"])
        is_leaf = "leaf_value" in node
        columns["feature"].append(-1 if is_leaf else node["split_feature"])
        columns["threshold"].append(0.0 if is_leaf else round(node["threshold"], 7))
        columns["value"].append(round(node["leaf_value"], 5) if is_leaf else 0.0)
        columns["smaller"].append(0)
        columns["larger"].append(0)
        if not is_leaf:
            columns["smaller"][number] = add_node(node["left_child"])
            columns["larger"][number] = add_node(node["right_child"])
        return number

    add_node(root)
    return columns


if __name__ == "__main__":
    main()
