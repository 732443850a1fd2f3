"""Shared by the commands that use a store: opening it with its own model, searching it, and printing hits."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.text import Text

from peg_rag.answer import subject_of
from peg_rag.cli.console import excerpt, fold_text, note, printable, progress, stdout, warn
from peg_rag.cli.messages import translate
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder
    from peg_rag.retriever import Mode, Retriever
    from peg_rag.stores import Store
    from peg_rag.stores.copying import Source

MODES = ("hybrid", "dense", "lexical")


@contextmanager
def open_store(store: str | Path, model: str | None) -> Iterator["tuple[Store, PEGEncoder]"]:
    """Open a store read-only, with the encoder it was made with unless `model` names another."""
    from peg_rag.encoder import PEGEncoder
    from peg_rag.ingest import model_of
    from peg_rag.models import bundled_model_of
    from peg_rag.retriever import check_same_model
    from peg_rag.stores import is_url
    from peg_rag.stores import open_store as open_at

    if is_url(store):
        with (
            open_at(store, read_only=True) as present,
            PEGEncoder(model or bundled_model_of(present.identity)) as encoder,
        ):
            check_same_model(present, encoder)
            yield present, encoder
        return
    if not Path(store).is_dir():
        message = translate("{store}: there is no store; create one with: peg-rag index DOCUMENTS --store {store}")
        raise InvalidInput(message.format(store=store))
    with (
        PEGEncoder(model or model_of(store)) as encoder,
        open_at(store, identity=encoder.identity, read_only=True) as index,
    ):
        yield index, encoder


def locate_ledger(store: str, folder: Path | None = None) -> Path:
    """The folder that notes which files a store holds: its own, or for a store on a server `folder` or one of the user.

    Raises:
        InvalidInput: `folder` was given for a store that is a folder, or is such a store.
    """
    from peg_rag.index.store import FILE_NAME
    from peg_rag.stores import is_url
    from peg_rag.stores.urls import StoreUrl

    if not is_url(store):
        if folder is not None:
            raise InvalidInput(translate("--ledger is for a store on a server; that of a folder lies in it"))
        return Path(store)
    if folder is not None:
        if (folder / FILE_NAME).exists():
            message = translate("--ledger {folder} holds a store of its own; choose another folder")
            raise InvalidInput(message.format(folder=folder))
        return folder
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "peg-rag", "ledgers", StoreUrl.parse(store).digest)


def show_location(store: str) -> str:
    """A store's folder, or its URL without a password."""
    from peg_rag.stores import is_url
    from peg_rag.stores.urls import StoreUrl

    return StoreUrl.parse(store).shown if is_url(store) else store


def copy_with_progress(source: "Source", target: "Store", name: str, *, delete: bool, batch_size: int) -> None:
    """Copy documents into a store, with a progress bar, and print what was done."""
    from peg_rag.stores.copying import copy_documents

    started = time.perf_counter()
    with progress() as bars:
        task = bars.add_task(translate("copy"), total=len(source), unit="texts")
        report = copy_documents(
            source,
            target,
            delete=delete,
            batch_size=batch_size,
            on_progress=lambda done: bars.update(task, completed=done),
        )
    message = translate(
        "{documents:,} documents in {store}: {written:,} written, {same:,} unchanged, {deleted:,} deleted"
    )
    note(
        message.format(
            documents=report.documents,
            store=show_location(name),
            written=report.written,
            same=report.documents - report.written,
            deleted=report.deleted,
        )
        + f" ({time.perf_counter() - started:.1f} s)"
    )
    if report.others:
        message = translate("{others:,} documents of the store are not in the source; --delete removes them")
        warn(message.format(others=report.others))


def find_hits(
    index: "Store", encoder: "PEGEncoder", queries: list[str], k: int, mode: str, rerank: str = "auto"
) -> list[list[Hit]]:
    """The k best hits of each query."""
    return create_retriever(index, encoder, k, mode, rerank).retrieve_batch(queries)


def create_retriever(index: "Store", encoder: "PEGEncoder", k: int, mode: str, rerank: str = "auto") -> "Retriever":
    """The retriever that a command's options describe.

    Raises:
        InvalidInput: the options do not go together.
    """
    from peg_rag.retriever import RERANK_CHOICES, Retriever

    if mode not in MODES:
        message = translate("--mode {mode}: one of {modes} is expected")
        raise InvalidInput(message.format(mode=mode, modes=", ".join(MODES)))
    if rerank not in RERANK_CHOICES:
        raise InvalidInput(f"--rerank {rerank}: one of {', '.join(RERANK_CHOICES)} is expected")
    if rerank == "mini" and mode != "hybrid":
        raise InvalidInput(f"--rerank mini needs --mode hybrid, not {mode}")
    return Retriever(index, encoder, rerank, k=k, mode=cast("Mode", mode))


def absolute_model(model: str | None, name: str) -> str:
    """The model's name as saved in a store: a folder as an absolute path, so that any working directory finds it."""
    folder = Path(model).expanduser() if model else None
    if folder and folder.is_dir():
        return str(folder.resolve())
    return model or name


def format_location(hit: Hit) -> str:
    """Where a hit is from: file, heading, page or row."""
    metadata = hit.metadata
    parts = [str(metadata.get("source") or hit.id), str(metadata.get("title") or "")]
    if metadata.get("page"):
        parts.append(translate("p. {page}").format(page=metadata["page"]))
    if metadata.get("row"):
        parts.append(translate("row {row}").format(row=metadata["row"]))
    return printable(" · ".join(part for part in parts if part))


def format_scores(hit: Hit) -> str:
    """The component scores by name, or the hit's score if it has none."""
    return "  ".join(f"{name} {value:.3g}" for name, value in (hit.scores or {"score": hit.score}).items())


def common_terms(query: str, text: str, min_length: int = 2) -> tuple[str, ...]:
    """The longest substrings of the query, of at least `min_length` characters, that the text contains."""
    query = query.lower()
    text = text.lower()
    terms = []
    start = 0
    while start < len(query):
        end = _find_longest_match(query, text, start, min_length)
        if end is None:
            start += 1
        else:
            terms.append(query[start:end].strip())
            start = end
    return tuple(term for term in terms if len(term) >= min_length)


def _find_longest_match(query: str, text: str, start: int, min_length: int) -> int | None:
    """The end of the longest substring of the query from `start` on that the text contains."""
    for end in range(len(query), start + min_length - 1, -1):
        if query[start:end] in text and query[start:end].strip():
            return end
    return None


def render_hit(rank: int, hit: Hit, query: str, lines: int = 2, marked: bool = False) -> Text:
    """Rank, tick, location and scores, with an excerpt of `lines` lines below, within the terminal's width."""
    prefix = Text.assemble((f"{rank:>2} ", "bold"), ("✓ " if marked else "  ", "bold green"))
    width = stdout.width - prefix.cell_len
    location = Text(format_location(hit), "bold")
    scores = Text(format_scores(hit), "dim")
    body = hit.text.removeprefix(f"{hit.metadata.get('title', '')}\n")
    body_excerpt = excerpt(body, common_terms(subject_of(query), body), lines * width)
    header = Text("  ").join([location, scores])
    if not stdout.is_terminal:  # piped output keeps an excerpt on one line, however long
        rows = [header, body_excerpt]
    elif header.cell_len <= width:
        rows = [header, fold_text(body_excerpt, width)]
    else:
        rows = [fold_text(location, width), scores, fold_text(body_excerpt, width)]
    margin = Text("\n" + " " * prefix.cell_len)
    return prefix + margin.join(line for row in rows for line in row.split("\n"))


def hit_to_json(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "score": hit.score,
        "scores": dict(hit.scores),
        "text": hit.text,
        "metadata": dict(hit.metadata),
    }
