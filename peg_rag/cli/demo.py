"""`peg-rag demo`: embeds and indexes a few thousand Chinese passages, then answers twelve questions, all offline.

It does what `index` and `ask` do, on the corpus in `peg_rag/assets/demo` (its README lists sources and licences).
Answers are the passages' own words with their sources; a tick marks passages labelled as relevant beforehand.
"""

import gzip
import json
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peg_rag.cli.messages import translate
from peg_rag.hits import Hit

if TYPE_CHECKING:
    from peg_rag.answer import Answer
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex

_SLICE_TEXTS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the ids of its relevant passages, and words that a right answer contains."""

    text: str
    relevant: frozenset[str]
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """The duration of each step, in seconds."""

    load_s: float
    embed_s: float
    index_s: float
    search_s: float
    answer_s: float


def demo(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, folder or peg-mini.")] = "peg-mini",
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    k: Annotated[int, typer.Option("-k", min=0, help="Hits to show under each answer.")] = 0,
) -> None:
    """Embed the bundled Chinese passages and answer twelve questions (offline, seconds)."""
    from rich.rule import Rule
    from rich.text import Text

    from peg_rag.answer import MAX_HITS, extract_answer
    from peg_rag.cli.console import progress, show
    from peg_rag.cli.knowledge import find_hits
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex

    passages, questions = load_passages(), load_questions()
    start = time.perf_counter()
    with PEGEncoder(model) as encoder, PEGIndex(identity=encoder.identity) as index:
        load_s = time.perf_counter() - start
        spec = encoder.spec
        description = translate("{name} ({kind}, {pooling} pooling, {dimension} dimensions) on {device}").format(
            name=spec.name, kind=spec.kind, pooling=spec.pooling, dimension=encoder.dimension, device=encoder.device
        )
        heading = translate("{passages:,} Chinese passages · {model}").format(passages=len(passages), model=description)
        show(Text.assemble(("peg-rag demo  ", "bold cyan"), heading))
        with progress() as bars:
            embed_s, index_s = _fill_index(index, encoder, passages, bars)
        start = time.perf_counter()
        results = find_hits(index, encoder, [question.text for question in questions], max(k, MAX_HITS), mode)
        search_s = time.perf_counter() - start
        answers = []
        answer_s = 0.0
        for number, (question, hits) in enumerate(zip(questions, results, strict=True), start=1):
            start = time.perf_counter()
            answers.append(extract_answer(question.text, hits, encoder))
            answer_s += time.perf_counter() - start
            _print_answer(number, question, answers[-1], hits[:k])
    show(Rule(style="dim"))
    timing = Timing(load_s, embed_s, index_s, search_s, answer_s)
    show(format_summary(questions, answers, results, len(passages), mode, timing))


def load_passages() -> list[dict[str, str]]:
    """The demo corpus: `id`, `topic`, `text` and, for some, `title`."""
    archive = files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(archive.read_bytes()).decode("utf-8").splitlines()]


def load_questions() -> list[Question]:
    """The demo's questions."""
    lines = (files("peg_rag") / "assets" / "demo" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [Question(row["question"], frozenset(row["relevant"]), row["answer"]) for row in rows]


def _fill_index(
    index: "PEGIndex", encoder: "PEGEncoder", passages: list[dict[str, str]], bars: Any
) -> tuple[float, float]:
    """Embed and index the passages.

    Returns:
        The seconds that embedding and indexing took.
    """
    import numpy as np

    texts = [passage["text"] for passage in passages]
    task = bars.add_task(translate("embed"), total=len(texts), unit="texts")
    started_at = time.perf_counter()
    batches = []
    for start in range(0, len(texts), _SLICE_TEXTS):
        batches.append(encoder.encode_documents(texts[start : start + _SLICE_TEXTS]))
        bars.advance(task, len(batches[-1]))
    vectors = np.concatenate(batches)  # (passages, dimension)
    embed_s = time.perf_counter() - started_at
    started_at = time.perf_counter()
    task = bars.add_task(translate("index"), total=len(texts), unit="texts")
    metadatas = [{"source": f"{p['topic']}/{p['id']}", "title": p.get("title", "")} for p in passages]
    ids = [p["id"] for p in passages]
    for start in range(0, len(texts), 4 * _SLICE_TEXTS):
        part = slice(start, start + 4 * _SLICE_TEXTS)
        index.upsert(ids[part], texts[part], vectors[part], metadatas[part])
        bars.advance(task, len(ids[part]))
    return embed_s, time.perf_counter() - started_at


def count_successes(k: int, questions: list[Question], results: list[list[Hit]]) -> int:
    """The number of questions with a relevant passage among their first k hits (success@k)."""
    pairs = zip(questions, results, strict=True)
    return sum(any(hit.id in question.relevant for hit in hits[:k]) for question, hits in pairs)


def count_right_answers(questions: list[Question], answers: "list[Answer]") -> int:
    """The number of questions whose answer is quoted from a relevant passage, first of all."""
    pairs = zip(questions, answers, strict=True)
    return sum(answer.found and answer.sources[0].id in question.relevant for question, answer in pairs)


def _print_answer(number: int, question: Question, answer: "Answer", hits: list[Hit]) -> None:
    """A question, its answer, and where that stands; then the hits."""
    from rich.text import Text

    from peg_rag.answer import NOT_FOUND
    from peg_rag.cli.console import fold_text, printable, show, stdout
    from peg_rag.cli.knowledge import format_location, render_hit

    def show_indented(line: Text) -> None:
        lines = fold_text(line, stdout.width - len(margin)).split("\n") if stdout.is_terminal else [line]
        for part in lines:
            show(Text(margin) + part)

    margin = " " * 4
    stdout.print()
    show(Text(f"{number:>2}. {question.text}", style="bold green"))
    if not answer.found:
        show_indented(Text(NOT_FOUND, "yellow"))
    for sentence in answer.sentences:
        show_indented(Text.assemble(printable(sentence.text), (f" [{sentence.citation}]", "bold cyan")))
    for citation, hit in enumerate(answer.sources, start=1):
        tick = " ✓" if hit.id in question.relevant else ""
        show_indented(Text.assemble((f"[{citation}] ", "bold cyan"), (format_location(hit), "dim"), (tick, "green")))
    for rank, hit in enumerate(hits, start=1):
        show(render_hit(rank, hit, question.text, marked=hit.id in question.relevant))


def format_summary(
    questions: list[Question],
    answers: "list[Answer]",
    results: list[list[Hit]],
    passages: int,
    mode: str,
    timing: Timing,
) -> Any:
    """The last lines: how many questions were answered, and the time it took."""
    from rich.text import Text

    right = translate("✓ {right} of {questions} questions answered from a passage labelled as right beforehand\n")
    ranks = translate("a relevant passage came first for {first}, among the first three for {third}\n")
    times = translate(
        "model loaded in {load_s:.1f} s · {passages:,} passages embedded in {embed_s:.1f} s ({rate:,.0f}/s), indexed "
        "in {index_s:.1f} s · {mode} search {search_ms:.1f} ms and answer {answer_ms:.0f} ms a question\n"
    )
    hint = translate('Your own documents: peg-rag index docs/ --store kb --model peg-mini && peg-rag ask kb "…"')
    return Text.assemble(
        (right.format(right=count_right_answers(questions, answers), questions=len(questions)), "bold"),
        ranks.format(
            first=count_successes(1, questions, results),
            third=count_successes(3, questions, results),
        ),
        times.format(
            load_s=timing.load_s,
            passages=passages,
            embed_s=timing.embed_s,
            rate=passages / timing.embed_s,
            index_s=timing.index_s,
            mode=mode,
            search_ms=1000 * timing.search_s / len(questions),
            answer_ms=1000 * timing.answer_s / len(questions),
        ),
        (hint, "dim"),
    )
