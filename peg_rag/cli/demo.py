"""`peg-rag demo`: a few thousand real Chinese passages are embedded, indexed and asked twelve questions, offline.

What it shows is what `index` and `search` do, on the corpus in `peg_rag/assets/demo` (see the README there for sources
and licences). A tick marks the passage that was known to answer the question before the search was run.
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
    """A question and the ids of the passages known to answer it."""

    question: str
    relevant: frozenset[str]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that the steps took."""

    load_s: float
    embed_s: float
    index_s: float
    search_s: float


def demo(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, folder or peg-mini.")] = "peg-mini",
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    k: Annotated[int, typer.Option("-k", min=1, help="Hits shown for each question.")] = 3,
) -> None:
    """Embed the bundled Chinese passages and answer twelve questions (offline, seconds)."""
    from rich.rule import Rule
    from rich.text import Text

    from peg_rag.cli.console import progress, show, stdout
    from peg_rag.cli.knowledge import find, shown_hit
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex

    passages, questions = load_passages(), load_questions()
    started = time.perf_counter()
    with PEGEncoder(model) as encoder, PEGIndex(identity=encoder.identity) as index:
        load_s = time.perf_counter() - started
        spec = encoder.spec
        head = f"{spec.name} ({spec.kind}, {spec.pooling} pooling, {encoder.dimension} dimensions) on {encoder.device}"
        show(Text.assemble(("peg-rag demo  ", "bold cyan"), f"{len(passages):,} Chinese passages · {head}"))
        with progress() as bars:
            embed_s, index_s = _fill(index, encoder, passages, bars)
        started = time.perf_counter()
        answers = find(index, encoder, [asked.question for asked in questions], max(k, 3), mode)
        search_s = time.perf_counter() - started
    for asked, hits in zip(questions, answers, strict=True):
        stdout.print()
        show(Text(asked.question, style="bold green"))
        for rank, hit in enumerate(hits[:k], start=1):
            show(shown_hit(rank, hit, asked.question, marked=hit.id in asked.relevant))
    show(Rule(style="dim"))
    show(summary(questions, answers, len(passages), mode, Timing(load_s, embed_s, index_s, search_s)))


def load_passages() -> list[dict[str, str]]:
    """The demo corpus: `id`, `topic`, `text` and, for some, `title`."""
    packed = files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()]


def load_questions() -> list[Question]:
    """The demo's questions."""
    lines = (files("peg_rag") / "assets" / "demo" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(row["question"], frozenset(row["relevant"])) for row in map(json.loads, lines)]


def _fill(index: "PEGIndex", encoder: "PEGEncoder", passages: list[dict[str, str]], bars: Any) -> tuple[float, float]:
    """Embed and index the passages; → seconds for each."""
    import numpy as np

    texts = [passage["text"] for passage in passages]
    task = bars.add_task("embed", total=len(texts), unit="texts")
    started = time.perf_counter()
    parts = []
    for start in range(0, len(texts), _SLICE_TEXTS):
        parts.append(encoder.encode_documents(texts[start : start + _SLICE_TEXTS]))
        bars.advance(task, len(parts[-1]))
    vectors = np.concatenate(parts)  # (passages, dimension)
    embedded = time.perf_counter()
    task = bars.add_task("index", total=len(texts), unit="texts")
    metadatas = [{"source": f"{p['topic']}/{p['id']}", "title": p.get("title", "")} for p in passages]
    ids = [p["id"] for p in passages]
    for start in range(0, len(texts), 4 * _SLICE_TEXTS):
        part = slice(start, start + 4 * _SLICE_TEXTS)
        index.upsert(ids[part], texts[part], vectors[part], metadatas[part])
        bars.advance(task, len(ids[part]))
    return embedded - started, time.perf_counter() - embedded


def found_within(rank: int, questions: list[Question], answers: list[list[Hit]]) -> int:
    """How many questions have a known right passage among their first `rank` hits."""
    pairs = zip(questions, answers, strict=True)
    return sum(any(hit.id in asked.relevant for hit in hits[:rank]) for asked, hits in pairs)


def summary(questions: list[Question], answers: list[list[Hit]], passages: int, mode: str, timing: Timing) -> Any:
    """The last lines: how many questions were answered, and what it took."""
    from rich.text import Text

    first, third = found_within(1, questions, answers), found_within(3, questions, answers)
    per_query_ms = 1000 * timing.search_s / len(questions)
    return Text.assemble(
        (f"✓ the passage known to be right came first for {first} of {len(questions)} questions, ", "bold"),
        (f"among the first three for {third}\n", "bold"),
        f"model loaded in {timing.load_s:.1f} s · {passages:,} passages embedded in {timing.embed_s:.1f} s "
        f"({passages / timing.embed_s:,.0f}/s), indexed in {timing.index_s:.1f} s · "
        f"{mode} search {per_query_ms:.1f} ms a question\n",
        ('Your own documents: peg-rag index docs/ --store kb --model peg-mini && peg-rag ask kb "…"', "dim"),
    )
