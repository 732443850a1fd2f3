"""When to say "not found": fit and measure the extractive answerer's confidence for an embedding model.

The log odds of an answer depend a little on the model's cosines, so every model has two numbers of its own, a slope and
an intercept, that turn them into a confidence. They are fitted here on questions that nothing was trained on:

* about office files, the open questions of `tests/data/documents/office` and `documents-2` to `documents-18`, with
  which answering was developed; each counts six times. An answer is right if `answers.py` judges it so;
* about made-up tables, records and rules (`train/answer_questions.py`), some of them. The right cell or sentence is
  known;
* about encyclopedia passages, with and without the one that answers, among all passages and among 50. The right passage
  is known.

Each half of the questions is measured with the numbers fitted on the other half; what is written is fitted on all.

    python benchmarks/calibrate_answer.py                     # peg-mini; a quarter of an hour on two cores
    python benchmarks/calibrate_answer.py --parts documents-17 documents-18   # on some of the questions
    python benchmarks/calibrate_answer.py --model TownsWu/PEG
    python benchmarks/calibrate_answer.py --model FOLDER --write   # writes answer.json beside the model's weights
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from answers import SETS, Reply, judge, read_questions
from numpy.typing import NDArray

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.answer import MAX_HITS, THRESHOLD, score_candidates
from peg_rag.answering.candidates import find_candidates
from peg_rag.answering.retrieval import retrieve_by_terms
from peg_rag.answering.scorer import CALIBRATION_FILE
from peg_rag.chunking import split
from peg_rag.hits import Hit
from peg_rag.readers import read_sections
from peg_rag.training.data.files import read_rows

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "train"))

SOURCE = "encyclopedia-squad_zh"  # research-only, so neither the bundled model nor the scorer was trained on it
QUESTIONS = 80
SMALL = 50  # passages of a small corpus
SEEDS = (9001,)  # of made-up documents
SEED = 0
MADE_UP = 400  # questions about made-up documents
OPEN_SETS = ("office", *(f"documents-{number}" for number in range(2, 23)))
PARTS = (*OPEN_SETS, "made up", "encyclopedia")
OFFICE_WEIGHT = 6.0  # of a question about office files, beside others
_encoder: PEGEncoder
_data: Path


@dataclass(frozen=True)
class Case:
    """The surest statement for a question: its score, whether it is right, and whether the hits hold an answer."""

    source: str
    half: bool
    score: float
    right: bool
    answerable: bool


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="peg-mini")
    arguments.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data"))
    )
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    arguments.add_argument("--write", action="store_true", help=f"write {CALIBRATION_FILE} into the model's folder")
    options = arguments.parse_args()
    cases = ask(options.model, options.data, options.parts)
    print(f"\n{options.model}: {len(cases)} questions, {sum(case.answerable for case in cases)} with an answer\n")
    for source in dict.fromkeys(case.source for case in cases):
        table(source, [case for case in cases if case.source == source], cases)
    slope, intercept = fit(cases)
    print(f"slope {slope:.3f}, intercept {intercept:.3f}: an answer from {THRESHOLD} on")
    if options.write:
        content = {"slope": round(slope, 4), "intercept": round(intercept, 4)}
        with PEGEncoder(options.model) as encoder:
            file = Path(encoder.spec.path) / CALIBRATION_FILE
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(f"wrote {file}")


def ask(model: str, data: Path, parts: Sequence[str]) -> list[Case]:
    """The questions of some parts, a part in each process; says how far it is."""
    cases: dict[str, list[Case]] = {}
    with Pool(initializer=_start_worker, initargs=(model, data)) as pool:
        for part, own in pool.imap_unordered(_ask_part, parts):
            cases[part] = own
            print(f"{len(cases)} of {len(parts)} parts: {part}, {len(own)} questions", flush=True)
    return [case for part in parts for case in cases[part]]


def _start_worker(model: str, data: Path) -> None:
    global _encoder, _data
    torch.set_num_threads(1)
    _encoder = PEGEncoder(model)
    _data = data


def _ask_part(part: str) -> tuple[str, list[Case]]:
    if part == "made up":
        return part, list(made_up(_encoder))
    if part == "encyclopedia":
        return part, list(encyclopedia(_data, _encoder))
    return part, list(office(part, _encoder))


def office(name: str, encoder: PEGEncoder) -> Iterator[Case]:
    """What people ask of office files, judged as in `answers.py`."""
    questions = [question for question in read_questions(SETS[name]) if question.split == "open"]
    files = sorted((SETS[name] / "files").iterdir())
    chunks = [chunk for file in files for chunk in split(read_sections(file), file.name, "")]
    texts = [chunk.text for chunk in chunks]
    with PEGIndex(identity=encoder.identity) as index:
        vectors = encoder.encode_documents(texts)
        index.upsert([chunk.id for chunk in chunks], texts, vectors, [chunk.metadata for chunk in chunks])
        retriever = Retriever(index, encoder, mode="hybrid")
        results = retriever.retrieve_batch([question.question for question in questions], k=MAX_HITS)
        for question, hits in zip(questions, results, strict=True):
            hits += retrieve_by_terms(question.question, hits, retriever)
    for number, (question, hits) in enumerate(zip(questions, results, strict=True)):
        score, hit, text = surest(question.question, hits, encoder)
        reply = Reply(text, str(hit.metadata["source"])) if hit else Reply("")
        answerable = question.kind != "unanswerable"
        right = answerable and judge(question, reply) in ("right", "exact")
        yield Case("office files", number % 2 == 0, score, right, answerable)


def made_up(encoder: PEGEncoder) -> Iterator[Case]:
    """Made-up tables, records and rules, on which nothing was trained."""
    from answer_questions import corpus, make_cases

    for seed in SEEDS:
        documents, questions = make_cases(seed)
        questions = random.Random(seed).sample(questions, min(MADE_UP, len(questions)))
        rows = list(corpus(documents))
        texts = [text for text, _ in rows]
        with PEGIndex(identity=encoder.identity) as index:
            ids = [str(number) for number in range(len(rows))]
            index.upsert(ids, texts, encoder.encode_documents(texts), [metadata for _, metadata in rows])
            retriever = Retriever(index, encoder, mode="hybrid")
            results = retriever.retrieve_batch([question.question for question in questions], k=MAX_HITS)
            for number, (question, hits) in enumerate(zip(questions, results, strict=True)):
                score, hit, text = surest(question.question, hits, encoder)
                here = hit is not None and question.document in str(hit.metadata["source"])
                right = here and text in question.answers
                yield Case("made-up documents", number % 2 == 0, score, right, bool(question.answers))


def encyclopedia(data: Path, encoder: PEGEncoder) -> Iterator[Case]:
    """Passages with and without the one that answers, over all and over few."""
    rows = [row for _, row in read_rows(data / "pairs" / f"{SOURCE}.jsonl.zst") if not isinstance(row, str)]
    answers = {row["query"]: row["positive"] for row in rows}
    texts = sorted({row["positive"] for row in rows})
    rng = np.random.default_rng(SEED)
    questions = [str(question) for question in rng.choice(sorted(answers), QUESTIONS, replace=False)]
    with PEGIndex(identity=encoder.identity) as index:
        ids = [str(number) for number in range(len(texts))]
        index.upsert(ids, texts, encoder.encode_documents(texts), [{"text": text} for text in texts])
        retriever = Retriever(index, encoder, mode="hybrid")
        for number, question in enumerate(questions):
            right = answers[question]
            few = {*rng.choice(texts, SMALL).tolist(), right}
            wide = retriever.retrieve(question, k=MAX_HITS + 1)
            narrow = retriever.retrieve(question, k=MAX_HITS + 1, where={"text": {"$in": sorted(few)}})
            for source, hits in (("all passages", wide), ("50 passages", narrow)):
                for with_answer in (True, False):
                    shown_hits = [hit for hit in hits if with_answer or hit.text != right][:MAX_HITS]
                    score, hit, _ = surest(question, shown_hits, encoder)
                    yield Case(source, number % 2 == 0, score, hit is not None and hit.text == right, with_answer)


def surest(question: str, hits: list[Hit], encoder: PEGEncoder) -> tuple[float, Hit | None, str]:
    """(log odds, hit, text) of the likeliest statement."""
    candidates = find_candidates(question, hits, encoder)
    if not candidates:
        return -10.0, None, ""
    odds = score_candidates(candidates)
    best = candidates[int(np.argmax(odds))]
    return float(odds.max()), hits[best.place], best.statement.text


def fit(cases: list[Case], steps: int = 50) -> tuple[float, float]:
    """(slope, intercept) of the probability that the surest statement is right, by Newton's method."""
    x = np.column_stack([[case.score for case in cases], np.ones(len(cases))])  # (cases, 2)
    y = np.array([float(case.right) for case in cases])
    counts = np.array([OFFICE_WEIGHT if case.source == "office files" else 1.0 for case in cases])
    weights = np.zeros(2)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = x.T @ (x * (counts * p * (1 - p))[:, None]) + 1e-3 * np.eye(2)
        weights -= np.linalg.solve(hessian, x.T @ (counts * (p - y)))
    return float(weights[0]), float(weights[1])


def table(source: str, cases: list[Case], every: list[Case]) -> None:
    """Each half is measured with the numbers fitted on the other half of all questions."""
    confidence = np.empty(len(cases))
    for half in (True, False):
        slope, intercept = fit([case for case in every if case.half != half])
        for i, case in enumerate(cases):
            if case.half == half:
                confidence[i] = 1 / (1 + np.exp(-(slope * case.score + intercept)))
    right = np.array([case.right for case in cases])
    answerable = np.array([case.answerable for case in cases])
    print(f"{source}: {len(cases)} questions\nthreshold  right  wrong  declined  silent where there is no answer")
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        is_answered = confidence >= threshold
        shares = [rate(is_answered & right, answerable), rate(is_answered & ~right & answerable, answerable)]
        shares += [rate(~is_answered & answerable, answerable), rate(~is_answered & ~answerable, ~answerable)]
        print(f"{threshold:>9.1f}  " + "  ".join(f"{share:>5.3f}" for share in shares))
    print()


def rate(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return float(hits.sum()) / max(float(of.sum()), 1.0)


if __name__ == "__main__":
    main()
