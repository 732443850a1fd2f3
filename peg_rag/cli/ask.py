"""`peg-rag ask kb "问题"`: what of a store answers a question, in its own words and cited, or "not found"."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peg_rag.answer import Answer


def ask(
    store: Annotated[Path, typer.Argument(help="A folder made by `peg-rag index`.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to read.")] = 20,
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    rerank: Annotated[
        str, typer.Option(help="A second look at 50 hybrid hits: auto (with peg-mini), mini (or an error) or none.")
    ] = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Least confidence for an answer, from 0 (always answer) to 1. Default: 0.5."
        ),
    ] = None,
    sentences: Annotated[int, typer.Option(min=1, help="Most statements to quote.")] = 3,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model the store was made with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a question in the documents' own words: a sentence, a list, a table's cell. Exit code 3: not found."""
    from peg_rag.answer import THRESHOLD, extract_answer
    from peg_rag.cli import knowledge

    limit = THRESHOLD if threshold is None else threshold
    with knowledge.open_store(store, model) as (index, encoder):
        [hits] = knowledge.find(index, encoder, [question], k, mode, rerank)
        answer = extract_answer(question, hits, encoder, threshold=limit, max_sentences=sentences, max_hits=k)
    if as_json:
        print(json.dumps(_as_json(answer), ensure_ascii=False, indent=2))
    else:
        _print(answer)
    if not answer.found:
        raise typer.Exit(3)


def _print(answer: "Answer") -> None:
    from rich.text import Text

    from peg_rag.answer import NOT_FOUND
    from peg_rag.cli.console import note, printable, show
    from peg_rag.cli.knowledge import format_location

    if not answer.found:
        show(NOT_FOUND)
    for sentence in answer.sentences:
        show(Text.assemble(printable(sentence.text), (f" [{sentence.citation}]", "bold cyan")))
    if answer.found:
        show("")
    for number, hit in enumerate(answer.sources, start=1):
        show(Text.assemble((f"[{number}] ", "bold cyan"), (format_location(hit), "dim")))
    note(f"extractive answer, confidence {answer.confidence:.2f}")


def _as_json(answer: "Answer") -> dict[str, object]:
    from dataclasses import asdict

    from peg_rag.cli.knowledge import hit_to_json

    return {
        "question": answer.question,
        "found": answer.found,
        "answer": answer.text,
        "confidence": answer.confidence,
        "sentences": [asdict(sentence) for sentence in answer.sentences],
        "sources": [hit_to_json(hit) for hit in answer.sources],
    }
