"""What `search` and `ask` share: opening a store with its own model, and printing a hit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.text import Text

from peg_rag.answer import subject_of
from peg_rag.cli.console import excerpt, folded, printable, stdout
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex
    from peg_rag.retriever import Mode

MODES = ("hybrid", "dense", "lexical")


@contextmanager
def open_store(store: Path, model: str | None) -> Iterator["tuple[PEGIndex, PEGEncoder]"]:
    """The store, read only, and the encoder of its vectors: the one it was made with, unless another is named."""
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex
    from peg_rag.ingest import model_of

    if not store.is_dir():
        raise InvalidInput(f"{store}: there is no store; make one with: peg-rag index DOCUMENTS --store {store}")
    with (
        PEGEncoder(model or model_of(store)) as encoder,
        PEGIndex(store, identity=encoder.identity, read_only=True) as index,
    ):
        yield index, encoder


def find(
    index: "PEGIndex", encoder: "PEGEncoder", queries: list[str], k: int, mode: str, rerank: str | None = None
) -> list[list[Hit]]:
    """The k best hits of each query."""
    from peg_rag.retriever import BUNDLED_RERANKERS, Retriever

    if mode not in MODES:
        raise InvalidInput(f"--mode {mode}: one of {', '.join(MODES)} is expected")
    if rerank is not None and rerank not in BUNDLED_RERANKERS:
        raise InvalidInput(f"--rerank {rerank}: {' or '.join(BUNDLED_RERANKERS)} is expected")
    if rerank is not None and mode != "hybrid":
        raise InvalidInput(f"--rerank {rerank} needs --mode hybrid, not {mode}")
    retriever = Retriever(index, encoder, k=k, mode=cast("Mode", mode), rerank=rerank)
    return retriever.retrieve_batch(queries)


def place(hit: Hit) -> str:
    """Where a hit stands: file, heading, page or row."""
    known = hit.metadata
    parts = [str(known.get("source") or hit.id), str(known.get("title") or "")]
    parts += [f"p. {known['page']}"] if known.get("page") else []
    parts += [f"row {known['row']}"] if known.get("row") else []
    return printable(" · ".join(part for part in parts if part))


def scores(hit: Hit) -> str:
    """Every score that is known, by name; the hit's own where none has a name."""
    return "  ".join(f"{name} {value:.3g}" for name, value in (hit.scores or {"score": hit.score}).items())


def common_terms(query: str, text: str, least: int = 2) -> tuple[str, ...]:
    """The longest stretches of the query, of at least `least` characters, that the text contains."""
    low, found, at = text.lower(), [], 0
    query = query.lower()
    while at < len(query):
        end = next((e for e in range(len(query), at + least - 1, -1) if query[at:e] in low and query[at:e].strip()), 0)
        if end:
            found.append(query[at:end].strip())
        at = end or at + 1
    return tuple(term for term in found if len(term) >= least)


def shown_hit(rank: int, hit: Hit, query: str, lines: int = 2, marked: bool = False) -> Text:
    """Rank, tick, place and scores, and an excerpt of so many lines below, all within the terminal's width."""
    start = Text.assemble((f"{rank:>2} ", "bold"), ("✓ " if marked else "  ", "bold green"))
    width = stdout.width - start.cell_len
    where, how = Text(place(hit), "bold"), Text(scores(hit), "dim")
    body = hit.text.removeprefix(f"{hit.metadata.get('title', '')}\n")
    shown = excerpt(body, common_terms(subject_of(query), body), lines * width)
    head = Text("  ").join([where, how])
    if not stdout.is_terminal:  # piped: an excerpt is one line, however long
        rows = [head, shown]
    elif head.cell_len <= width:
        rows = [head, folded(shown, width)]
    else:
        rows = [folded(where, width), how, folded(shown, width)]
    margin = Text("\n" + " " * start.cell_len)
    return start + margin.join(line for row in rows for line in row.split("\n"))


def as_json(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "score": hit.score,
        "scores": dict(hit.scores),
        "text": hit.text,
        "metadata": dict(hit.metadata),
    }
