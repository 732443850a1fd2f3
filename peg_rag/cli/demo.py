"""`peg-rag demo`: embeds and indexes a few thousand Chinese passages, then answers twelve questions, all offline.

It does what `index` and `search` do, on the corpus in `peg_rag/assets/demo` (its README lists sources and licences). A
tick marks the passages that were labelled as relevant beforehand.
"""

import gzip
import json
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peg_rag.hits import Hit

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex

_SLICE_TEXTS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of its relevant passages."""

    text: str
    relevant: frozenset[str]


@dataclass(frozen=True, slots=True)
class Timing:
    """The duration of each step, in seconds."""

    load_s: float
    embed_s: float
    index_s: float
    search_s: float


def demo(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, folder or peg-mini.")] = "peg-mini",
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    k: Annotated[int, typer.Option("-k", min=1, help="Hits to show for each question.")] = 3,
) -> None:
    """Embed the bundled Chinese passages and answer twelve questions (offline, seconds)."""
    from rich.rule import Rule
    from rich.text import Text

    from peg_rag.cli.console import progress, show, stdout
    from peg_rag.cli.knowledge import find, render_hit
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex

    passages, questions = load_passages(), load_questions()
    started = time.perf_counter()
    with PEGEncoder(model) as encoder, PEGIndex(identity=encoder.identity) as index:
        load_s = time.perf_counter() - started
        spec = encoder.spec
        description = (
            f"{spec.name} ({spec.kind}, {spec.pooling} pooling, {encoder.dimension} dimensions) on {encoder.device}"
        )
        show(Text.assemble(("peg-rag demo  ", "bold cyan"), f"{len(passages):,} Chinese passages · {description}"))
        with progress() as bars:
            embed_s, index_s = _fill_index(index, encoder, passages, bars)
        started = time.perf_counter()
        results = find(index, encoder, [question.text for question in questions], max(k, 3), mode)
        search_s = time.perf_counter() - started
    for question, hits in zip(questions, results, strict=True):
        stdout.print()
        show(Text(question.text, style="bold green"))
        for rank, hit in enumerate(hits[:k], start=1):
            show(render_hit(rank, hit, question.text, marked=hit.id in question.relevant))
    show(Rule(style="dim"))
    show(format_summary(questions, results, len(passages), mode, Timing(load_s, embed_s, index_s, search_s)))


def load_passages() -> list[dict[str, str]]:
    """The demo corpus: `id`, `topic`, `text` and, for some, `title`."""
    packed = files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()]


def load_questions() -> list[Question]:
    """The demo's questions."""
    lines = (files("peg_rag") / "assets" / "demo" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(row["question"], frozenset(row["relevant"])) for row in map(json.loads, lines)]


def _fill_index(
    index: "PEGIndex", encoder: "PEGEncoder", passages: list[dict[str, str]], bars: Any
) -> tuple[float, float]:
    """Embed and index the passages.

    Returns:
        The seconds that embedding and indexing took.
    """
    import numpy as np

    texts = [passage["text"] for passage in passages]
    task = bars.add_task("embed", total=len(texts), unit="texts")
    started = time.perf_counter()
    batches = []
    for start in range(0, len(texts), _SLICE_TEXTS):
        batches.append(encoder.encode_documents(texts[start : start + _SLICE_TEXTS]))
        bars.advance(task, len(batches[-1]))
    vectors = np.concatenate(batches)  # (passages, dimension)
    embed_s = time.perf_counter() - started
    started = time.perf_counter()
    task = bars.add_task("index", total=len(texts), unit="texts")
    metadatas = [{"source": f"{p['topic']}/{p['id']}", "title": p.get("title", "")} for p in passages]
    ids = [p["id"] for p in passages]
    for start in range(0, len(texts), 4 * _SLICE_TEXTS):
        part = slice(start, start + 4 * _SLICE_TEXTS)
        index.upsert(ids[part], texts[part], vectors[part], metadatas[part])
        bars.advance(task, len(ids[part]))
    return embed_s, time.perf_counter() - started


def count_successes(k: int, questions: list[Question], results: list[list[Hit]]) -> int:
    """The number of questions with a relevant passage among their first k hits (success@k)."""
    pairs = zip(questions, results, strict=True)
    return sum(any(hit.id in question.relevant for hit in hits[:k]) for question, hits in pairs)


def format_summary(
    questions: list[Question], results: list[list[Hit]], passages: int, mode: str, timing: Timing
) -> Any:
    """The last lines: how many questions were answered, and the time it took."""
    from rich.text import Text

    first = count_successes(1, questions, results)
    third = count_successes(3, questions, results)
    per_query_ms = 1000 * timing.search_s / len(questions)
    return Text.assemble(
        (f"✓ a relevant passage came first for {first} of {len(questions)} questions, ", "bold"),
        (f"among the first three for {third}\n", "bold"),
        f"model loaded in {timing.load_s:.1f} s · {passages:,} passages embedded in {timing.embed_s:.1f} s "
        f"({passages / timing.embed_s:,.0f}/s), indexed in {timing.index_s:.1f} s · "
        f"{mode} search {per_query_ms:.1f} ms a question\n",
        ('Your own documents: peg-rag index docs/ --store kb --model peg-mini && peg-rag ask kb "…"', "dim"),
    )
