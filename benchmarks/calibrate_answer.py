"""When to say "not found": fit and measure the extractive answerer's confidence.

Each held-out question of the training pairs (the validation split of `train/peg_mini_first.py`, which the bundled model
was not trained on) is asked twice over one corpus: with the passage that answers it, and with that passage taken out.
What is left then are its nearest neighbours, often other facts about the same thing, so the second case is hard on
purpose. The logistic function is fitted on half of the questions; precision and recall are measured on the other half.

    python benchmarks/calibrate_answer.py                    # peg-mini; about a minute on two cores
    python benchmarks/calibrate_answer.py --model TownsWu/PEG

Prints the constants for `peg_rag/answer.py` and what they give. Another model needs its own: pass the threshold that
the table shows as `extract_answer(..., threshold=)`, or put the constants in.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "train"))
from peg_mini_first import read_pairs, split  # noqa: E402

from peg_rag import PEGEncoder, PEGIndex, Retriever  # noqa: E402
from peg_rag.answer import MAX_HITS, THRESHOLD, evidence, extract_answer  # noqa: E402
from peg_rag.hits import Hit  # noqa: E402

# Questions that one passage answers. News and papers (headlines) and psychology (advice) are not of this kind.
SOURCES = (
    "encyclopedia-cmrc2018_trial",
    "film-kdconv",
    "finance-disc_finllm",
    "insurance-baoxian",
    "medicine-disease_kb",
    "music-kdconv",
    "tourism-kdconv",
    "tourism-kdconv_kb",
)
SEED = 0


@dataclass(frozen=True)
class Case:
    """A question, the hits it gets, and whether the passage that answers it is in the corpus."""

    question: str
    passage: str
    hits: list[Hit]
    answerable: bool


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="peg-mini")
    arguments.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data"))
    )
    options = arguments.parse_args()
    with PEGEncoder(options.model) as encoder:
        cases = make_cases(options.data, encoder)
        fitted, measured = halves(cases)
        x, y = features(fitted, encoder), labels(fitted)
        weights = fit(x, y)
        print(f"{encoder.identity}: {len(cases) // 2} questions, each with and without its passage\n")
        print("bias {:.2f}, per cosine {:.2f}, per lead {:.2f}, per coverage {:.2f}".format(*weights))
        confidence = probability(features(measured, encoder), weights)
        for feature, name in enumerate(("cosine", "lead", "coverage")):
            print(f"AUC of {name:<9} alone {auc(features(measured, encoder)[:, feature], labels(measured)):.3f}")
        print(f"AUC of all three      {auc(confidence, labels(measured)):.3f}\n")
        table(confidence, labels(measured))
        shipped(measured, encoder)


def make_cases(data: Path, encoder: PEGEncoder) -> list[Case]:
    """Every held-out question, searched with and without its passage."""
    questions: list[tuple[str, str]] = []
    passages: dict[str, None] = {}
    for name in SOURCES:
        pairs = read_pairs(data, name)
        _, held = split(pairs, SEED)
        questions += zip(held.queries, held.positives, strict=True)
        passages |= dict.fromkeys(pairs.positives)
    texts = list(passages)
    with PEGIndex(identity=encoder.identity) as index:
        index.upsert([str(i) for i in range(len(texts))], texts, encoder.encode_documents(texts, show_progress=True))
        retriever = Retriever(index, encoder, mode="hybrid", k=MAX_HITS + 1)
        found = retriever.retrieve_batch([question for question, _ in questions])
    print(f"{len(texts):,} passages")
    cases = []
    for (question, passage), hits in zip(questions, found, strict=True):
        cases.append(Case(question, passage, hits[:MAX_HITS], True))
        cases.append(Case(question, passage, [hit for hit in hits if hit.text != passage][:MAX_HITS], False))
    return cases


def halves(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Two random halves; both cases of a question, and all questions on a passage, go the same way."""
    passages = sorted({case.passage for case in cases})
    first = {passages[i] for i in np.random.default_rng(SEED).permutation(len(passages))[: len(passages) // 2]}
    return [c for c in cases if c.passage in first], [c for c in cases if c.passage not in first]


def features(cases: Sequence[Case], encoder: PEGEncoder) -> NDArray[np.float64]:
    """(cases, 3)"""
    return np.array([astuple(evidence(case.question, case.hits, encoder)) for case in cases])


def labels(cases: Sequence[Case]) -> NDArray[np.float64]:
    """(cases,) 1 where the answer is among the hits, so that a confident answer could be right; else 0."""
    return np.array([float(any(hit.text == case.passage for hit in case.hits)) for case in cases])


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
    print("threshold  precision  recall     F1   (measured half)")
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
    cited = sum(case.answerable and any(s.text == case.passage for s in a.sources) for case, a in given)
    unanswerable = len(cases) - answerable
    print(f"\nas shipped (threshold {THRESHOLD}), {answerable} answerable and {unanswerable} unanswerable questions:")
    print(f"answered when it should   {kept / answerable:.3f}  (recall)")
    print(f"silent when it should     {1 - (len(given) - kept) / unanswerable:.3f}")
    print(f"answers to answerable     {kept / max(len(given), 1):.3f}  (precision)")
    print(f"… that cite the passage   {cited / max(kept, 1):.3f}")


if __name__ == "__main__":
    main()
