"""When to say "not found": fit and measure the extractive answerer's confidence.

Questions of training pairs that the bundled model was not trained on (the validation split of
`train/recipes/peg_mini.yaml`, and a source that it does without) are asked twice over a corpus: with the passages that
answer them, and with them taken out. Taken out
are all answers that the pairs give to the question; of a question about a sight, everything about that sight, unless
nothing else about it speaks of what was asked: those are the hard cases. Precision and recall are measured on each half
of the questions with the function fitted on the other half; what is shipped is fitted on all. All of it is done over a
large corpus and, question by question, over a small one of 50 passages: where little is said, the best hit stands out
more easily.

    python benchmarks/calibrate_answer.py                    # peg-mini; about a minute on two cores
    python benchmarks/calibrate_answer.py --model TownsWu/PEG

Prints the constants for `peg_rag/answer.py` and what they give. Another model needs its own: pass the threshold that
the table shows as `extract_answer(..., threshold=)`, or put the constants in.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.answer import MAX_HITS, THRESHOLD, evidence, extract_answer
from peg_rag.hits import Hit
from peg_rag.training.data.files import read_rows
from peg_rag.training.data.sampler import in_validation
from peg_rag.training.data.texts import text_key

REPO = Path(__file__).resolve().parent.parent

# Questions that one passage answers and that are unanswered without it. Headlines (news, papers), advice (psychology)
# and chat (film, music) are no such questions; insurance and diseases have many passages that answer the same.
SOURCES = ("encyclopedia-cmrc2018_trial", "finance-disc_finllm", "tourism-kdconv_kb", "encyclopedia-squad_zh")
UNTRAINED = "encyclopedia-squad_zh"  # research-only, so not in the bundled model: any of its questions will do
UNTRAINED_QUESTIONS = 160
HELD_OUT = 0.02  # the share that train/recipes/peg_mini.yaml holds out
DISTRACTORS = ("film-kdconv", "music-kdconv", "science-csl", "finance-finna", "news-xwlb")
SIGHTS = "tourism-kdconv_kb"  # a passage is "<sight> <attribute>：<value>"
# What a passage that answers a question about this attribute would have to hold at the least.
SIGNS = {"门票": "票元费", "开放时间": "开放闭:：时点"}
SMALL = 50  # passages of a small corpus, all of the question's own source
SEED = 0


@dataclass(frozen=True)
class Pairs:
    """Questions and the passages that answer them, row by row."""

    queries: list[str]
    positives: list[str]


@dataclass(frozen=True)
class Case:
    """A question, the hits it gets, and whether what answers it (`passages`) is in the corpus."""

    source: str
    question: str
    passages: frozenset[str]
    hits: list[Hit]
    answerable: bool
    small: bool

    @property
    def reachable(self) -> bool:
        """An answer is among the hits, so that answering can be right."""
        return any(hit.text in self.passages for hit in self.hits)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="peg-mini")
    arguments.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data"))
    )
    options = arguments.parse_args()
    with PEGEncoder(options.model) as encoder:
        cases = make_cases(options.data, encoder)
        x, y = features(cases, encoder), labels(cases)
        confidence = cross_fitted(x, y, halves(cases))
        print(f"{encoder.identity}: {len(cases) // 4} questions, each with and without what answers it\n")
        print("bias {:.2f}, per cosine {:.2f}, per lead {:.2f}, per coverage {:.2f}\n".format(*fit(x, y)))
        for small in (False, True):
            some = np.array([case.small == small for case in cases])
            print(f"over {'50 passages' if small else 'the large corpus'}")
            table(confidence[some], y[some])
            shipped([case for case in cases if case.small == small], encoder)


def make_cases(data: Path, encoder: PEGEncoder) -> list[Case]:
    """Every held-out question, searched with and without what answers it."""
    everything = {name: read_pairs(data, name) for name in (*SOURCES, *DISTRACTORS)}
    texts = list(dict.fromkeys(text for pairs in everything.values() for text in pairs.positives))
    number = {text: str(i) for i, text in enumerate(texts)}
    cases = []
    with PEGIndex(identity=encoder.identity) as index:
        vectors = encoder.encode_documents(texts)
        index.upsert(list(number.values()), texts, vectors, [{"text": text} for text in texts])
        print(f"{len(texts):,} passages")
        for name in SOURCES:
            cases += cases_of(name, everything[name], Retriever(index, encoder, mode="hybrid"))
    return cases


def read_pairs(data: Path, name: str) -> Pairs:
    rows = [row for _, row in read_rows(data / "pairs" / f"{name}.jsonl.zst") if not isinstance(row, str)]
    return Pairs([row["query"] for row in rows], [row["positive"] for row in rows])


def cases_of(name: str, pairs: Pairs, retriever: Retriever) -> list[Case]:
    """The cases of one source."""
    answers: dict[str, set[str]] = {}
    about: dict[str, set[str]] = {}
    for question, passage in zip(pairs.queries, pairs.positives, strict=True):
        answers.setdefault(question, set()).add(passage)
        about.setdefault(passage.split(" ")[0], set()).add(passage)
    questions = held_out(name, pairs)
    passages, rng = sorted(set(pairs.positives)), np.random.default_rng(SEED)
    cases = []
    for question, hits in zip(questions, retriever.retrieve_batch(questions, k=MAX_HITS + 30), strict=True):
        right = frozenset(answers[question])
        gone = right | related(min(right), about) if name == SIGHTS else right
        few = {*rng.choice(passages, SMALL).tolist(), *right}
        near = retriever.retrieve(question, k=len(few), where={"text": {"$in": sorted(few)}})
        for found, small in ((hits, False), (near, True)):
            without = [hit for hit in found if hit.text not in gone]
            cases.append(Case(name, question, right, found[:MAX_HITS], True, small))
            cases.append(Case(name, question, right, without[:MAX_HITS], False, small))
    return cases


def held_out(name: str, pairs: Pairs) -> list[str]:
    """Questions that the bundled model was not trained on."""
    questions = sorted(set(pairs.queries))
    if name == UNTRAINED:
        return [str(q) for q in np.random.default_rng(SEED).choice(questions, UNTRAINED_QUESTIONS, replace=False)]
    held = in_validation(np.array([text_key(question) for question in questions], dtype=np.int64), HELD_OUT)
    return [question for question, out in zip(questions, held, strict=True) if out]


def related(passage: str, about: dict[str, set[str]]) -> set[str]:
    """What must go with a fact about a sight: nothing, if nothing else speaks of its attribute; else all about it."""
    sight, _, fact = passage.partition(" ")
    signs = SIGNS.get(fact.split("：")[0])
    others = about[sight] - {passage}
    hard = signs is not None and not any(sign in text.partition(" ")[2] for text in others for sign in signs)
    return set() if hard else others


def halves(cases: Sequence[Case]) -> NDArray[np.bool_]:
    """(cases,) a random half of the questions; all questions that one passage answers go the same way."""
    passages = sorted({min(case.passages) for case in cases})
    first = {passages[i] for i in np.random.default_rng(SEED).permutation(len(passages))[: len(passages) // 2]}
    return np.array([min(case.passages) in first for case in cases])


def cross_fitted(x: NDArray[np.float64], y: NDArray[np.float64], half: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(cases,) confidence in each case by the function that was fitted without its half."""
    confidence = np.empty(len(y))
    for part in (half, ~half):
        confidence[part] = probability(x[part], fit(x[~part], y[~part]))
    return confidence


def features(cases: Sequence[Case], encoder: PEGEncoder) -> NDArray[np.float64]:
    """(cases, 3)"""
    return np.array([astuple(evidence(case.question, case.hits, encoder)) for case in cases])


def labels(cases: Sequence[Case]) -> NDArray[np.float64]:
    """(cases,) 1 where an answer is among the hits, else 0."""
    return np.array([float(case.reachable) for case in cases])


def fit(x: NDArray[np.float64], y: NDArray[np.float64], steps: int = 50) -> NDArray[np.float64]:
    """Logistic regression by Newton's method, with a touch of ridge: (1 + features,), the bias first."""
    x = np.column_stack([np.ones(len(x)), x])
    weights = np.zeros(x.shape[1])
    ridge = 1e-3 * np.eye(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + ridge
        weights -= np.linalg.solve(hessian, x.T @ (p - y) + ridge @ weights)
    return weights


def probability(x: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-(weights[0] + x @ weights[1:])))


def auc(scores: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The chance that a random answerable case scores above a random unanswerable one."""
    positive, negative = scores[y == 1], scores[y == 0]
    return float(np.mean(positive[:, None] > negative) + 0.5 * np.mean(positive[:, None] == negative))


def table(confidence: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    print(f"AUC {auc(confidence, y):.3f}\nthreshold  precision  recall     F1   (cross-fitted)")
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        precision, recall = precision_recall(confidence >= threshold, y == 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        print(f"{threshold:>9.1f}  {precision:>9.3f}  {recall:>6.3f}  {f1:>5.3f}")


def precision_recall(answered: NDArray[np.bool_], answerable: NDArray[np.bool_]) -> tuple[float, float]:
    right = float(np.sum(answered & answerable))
    return right / max(float(answered.sum()), 1.0), right / max(float(answerable.sum()), 1.0)


def shipped(cases: Sequence[Case], encoder: PEGEncoder) -> None:
    """What `extract_answer` does as it is shipped, end to end: a right answer quotes the passage known to be right."""
    answers = [extract_answer(case.question, case.hits, encoder) for case in cases]
    given = [(case, answer) for case, answer in zip(cases, answers, strict=True) if answer.found]
    answerable = sum(case.answerable for case in cases)
    kept = sum(case.answerable for case, _ in given)
    cited = sum(case.answerable and any(hit.text in case.passages for hit in a.sources) for case, a in given)
    unanswerable = len(cases) - answerable
    silent = 1 - (len(given) - kept) / unanswerable
    print(f"as shipped, threshold {THRESHOLD}, {answerable} questions with and {unanswerable} without their answer:")
    print(f"  answered where there is an answer {kept / answerable:.3f}, silent where there is none {silent:.3f},")
    print(f"  answers that quote the passage known to be right {cited / max(kept, 1):.3f}\n")


if __name__ == "__main__":
    main()
