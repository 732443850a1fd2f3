"""`peg-rag ask kb "问题"`: what of a store answers a question, in its own words and cited, or "not found".

With `--llm-url` a language model writes the answer from the passages, through the client that the server uses; with
`--chat` one question follows another, and the model reads each by the turns before it.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peg_rag.cli.messages import translate

if TYPE_CHECKING:
    from peg_rag.answer import Answer
    from peg_rag.encoder import PEGEncoder
    from peg_rag.hits import Hit
    from peg_rag.retriever import Retriever
    from peg_rag.serving.language_model import LanguageModel, Turn
    from peg_rag.serving.settings import LanguageModelSettings
    from peg_rag.stores import Store

_WRITTEN_PASSAGES = 5  # sent to a language model
_OPTION_NAMES = {
    "base_url": "--llm-url",
    "model": "--llm-model or OPENAI_MODEL",
    "api_key": "the key of --llm-key-env or OPENAI_API_KEY",
    "silence_timeout_s": "--llm-timeout",
    "answer_timeout_s": "--llm-timeout",
}


def ask(
    store: Annotated[str, typer.Argument(help="A folder made by `peg-rag index`, or the URL of a store.")],
    question: Annotated[str | None, typer.Argument(help="The question; may be left out with --chat.")] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            min=1,
            help="Passages to read. Default: 40 and those found by the files' own terms, or 5 for a language model.",
        ),
    ] = None,
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
    chat: Annotated[bool, typer.Option("--chat", help="Go on with questions from the keyboard.")] = False,
    llm_url: Annotated[
        str,
        typer.Option(
            help="An OpenAI-compatible endpoint, such as http://localhost:11434/v1, whose language model writes the "
            "answer: the question and the passages are sent there. Without it, answers are quoted."
        ),
    ] = "",
    llm_model: Annotated[str, typer.Option(envvar="OPENAI_MODEL", help="The name of the language model.")] = "",
    llm_key_env: Annotated[
        str | None,
        typer.Option(help="The environment variable that holds the endpoint's key. Default: OPENAI_API_KEY."),
    ] = None,
    llm_timeout: Annotated[
        float, typer.Option(min=1, help="Longest wait for the next piece of its answer, in seconds.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a question in the documents' own words: a sentence, a list, a table's cell. Exit code 3: not found."""
    from peg_rag.answer import THRESHOLD
    from peg_rag.cli.knowledge import open_store
    from peg_rag.errors import InvalidInput

    if question is None and not chat:
        raise InvalidInput(
            translate("there is no question; write one behind the store, or pass --chat to type questions")
        )
    if as_json and chat:
        raise InvalidInput(translate("--json prints one answer and --chat holds a conversation; leave one of them out"))
    settings = _read_settings(llm_url, llm_model, llm_key_env, llm_timeout)
    limit = THRESHOLD if threshold is None else threshold
    with open_store(store, model) as (index, encoder), _open_writer(settings) as writer:
        desk = _Desk(index, encoder, writer, k, mode, rerank, limit, sentences)
        is_found = question is None or desk.answer(question, as_json=as_json)
        if chat:
            _hold_conversation(desk)
            return
    if not is_found:
        raise typer.Exit(3)


def _read_settings(url: str, model: str, key_variable: str | None, timeout_s: float) -> "LanguageModelSettings | None":
    """The settings of the language model; None if answers are quoted."""
    from peg_rag.cli.language_model import check_settings, read_key
    from peg_rag.errors import InvalidInput
    from peg_rag.extras import require

    if not url:
        return None
    if not model:
        message = translate("a language model's endpoint is given ({url}) but no model; pass --llm-model")
        raise InvalidInput(message.format(url=url))
    for module in ("fastapi", "httpx_sse"):
        require(module, "serve")
    values = {
        "base_url": url,
        "model": model,
        "api_key": read_key(key_variable),
        "silence_timeout_s": timeout_s,
        "answer_timeout_s": max(300.0, 2 * timeout_s),
    }
    return check_settings(values, _OPTION_NAMES)


@contextmanager
def _open_writer(settings: "LanguageModelSettings | None") -> Iterator["_Writer | None"]:
    if settings is None:
        yield None
        return
    from peg_rag.serving.language_model import LanguageModel

    with asyncio.Runner() as runner:
        client = LanguageModel(settings)
        try:
            yield _Writer(client, runner)
        finally:
            runner.run(client.close())


@dataclass(frozen=True, slots=True)
class _WrittenAnswer:
    text: str
    is_found: bool
    complete: bool
    numbers: list[int]  # of the passages it cites, from 1


@dataclass(frozen=True, slots=True)
class _Writer:
    """The language model, and the event loop that its client lives in."""

    client: "LanguageModel"
    runner: asyncio.Runner

    def condense(self, question: str, history: "Sequence[Turn]") -> str:
        """A question that can be understood without the turns before it."""
        with _convert_errors():
            return self.runner.run(self.client.condense_question(question, history))

    def write(self, question: str, hits: "list[Hit]", *, streamed: bool) -> _WrittenAnswer:
        """The model's answer, printed as it comes if it is `streamed`."""
        with _convert_errors():
            return self.runner.run(self._collect_pieces(question, hits, streamed))

    async def _collect_pieces(self, question: str, hits: "list[Hit]", streamed: bool) -> _WrittenAnswer:
        from contextlib import aclosing

        from peg_rag.cli.console import show_piece
        from peg_rag.serving.language_model import parse_citations

        text = ""
        finish = None
        async with aclosing(self.client.write(question, hits)) as pieces:
            async for piece in pieces:
                text += piece.text
                finish = piece.finish
                if streamed:
                    show_piece(piece.text)
        is_found = finish != "not_found"
        numbers: list[int] = []
        if is_found:
            numbers = parse_citations(text, len(hits))
        return _WrittenAnswer(text, is_found, finish != "length", numbers)


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Convert the server's errors, which are responses, to one that this command prints."""
    from peg_rag.errors import PegRagError
    from peg_rag.serving.errors import ApiError

    try:
        yield
    except ApiError as error:
        raise PegRagError(str(error.detail)) from error


@dataclass
class _Desk:
    """Answers questions about one store, and remembers the turns for those that follow.

    Attributes:
        passages: how many are read; None for the default of the kind of answer.
    """

    index: "Store"
    encoder: "PEGEncoder"
    writer: _Writer | None
    passages: int | None
    mode: str
    rerank: str
    threshold: float
    sentences: int
    history: "list[Turn]" = field(default_factory=list)

    def answer(self, question: str, *, as_json: bool = False) -> bool:
        """Print the answer to a question, and return whether there is one."""
        if self.writer is None:
            return self._quote_sentences(question, as_json)
        return self._write_answer(self.writer, question, as_json)

    def _create_retriever(self, default_passages: int) -> "Retriever":
        from peg_rag.cli.knowledge import create_retriever

        return create_retriever(self.index, self.encoder, self.passages or default_passages, self.mode, self.rerank)

    def _quote_sentences(self, question: str, as_json: bool) -> bool:
        from peg_rag.answer import MAX_HITS, extract_answer
        from peg_rag.answering.retrieval import retrieve_by_terms

        retriever = self._create_retriever(MAX_HITS)
        hits = retriever.retrieve(question)
        if self.passages is None:
            hits += retrieve_by_terms(question, hits, retriever)
        answer = extract_answer(
            question,
            hits,
            self.encoder,
            threshold=self.threshold,
            max_sentences=self.sentences,
            max_hits=len(hits),
        )
        if as_json:
            _print_json(_describe_answer(answer))
        else:
            _print_answer(answer)
        return answer.found

    def _write_answer(self, writer: _Writer, question: str, as_json: bool) -> bool:
        from peg_rag.cli.console import note
        from peg_rag.serving.language_model import Turn

        standalone = writer.condense(question, self.history)
        if standalone != question:
            note(translate("searched for: {question}").format(question=standalone))
        hits = self._create_retriever(_WRITTEN_PASSAGES).retrieve(standalone)
        answer = _WrittenAnswer("", is_found=False, complete=True, numbers=[])
        if hits:
            answer = writer.write(standalone, hits, streamed=not as_json)
        if as_json:
            _print_json(_describe_written(standalone, answer, hits, writer.client.settings.model))
        else:
            _print_sources(answer, hits, writer.client.settings)
        if answer.is_found:
            self.history.append(Turn(question, answer.text))
        return answer.is_found


def _hold_conversation(desk: _Desk) -> None:
    """Answer questions from the keyboard until there are no more. An error ends a turn, not the conversation."""
    from peg_rag.cli.console import error as print_error
    from peg_rag.cli.console import note, prompt
    from peg_rag.errors import PegRagError

    note(translate("Ask your questions. /new forgets the conversation, Ctrl-D ends it."))
    with suppress(EOFError):
        while True:
            question = prompt("› ").strip()
            if question == "/new":
                desk.history.clear()
            elif question:
                try:
                    desk.answer(question)
                except PegRagError as error:
                    print_error(str(error))


def _print_answer(answer: "Answer") -> None:
    from rich.text import Text

    from peg_rag.answer import NOT_FOUND
    from peg_rag.cli.console import note, printable, show

    if not answer.found:
        show(NOT_FOUND)
    for sentence in answer.sentences:
        show(Text.assemble(printable(sentence.text), (f" [{sentence.citation}]", "bold cyan")))
    if answer.found:
        show("")
    for number, hit in enumerate(answer.sources, start=1):
        _print_source(number, hit)
    note(translate("extractive answer, confidence {confidence:.2f}").format(confidence=answer.confidence))


def _print_sources(answer: _WrittenAnswer, hits: "list[Hit]", settings: "LanguageModelSettings") -> None:
    from peg_rag.answer import NOT_FOUND
    from peg_rag.cli.console import note, show

    show("\n" if answer.is_found else NOT_FOUND)
    for number in answer.numbers:
        _print_source(number, hits[number - 1])
    if not answer.complete:
        note(translate("the language model reached its length limit, so the answer is cut off"))
    note(translate("written by {model} at {host}").format(model=settings.model, host=settings.host))


def _print_source(number: int, hit: "Hit") -> None:
    from rich.text import Text

    from peg_rag.cli.console import show
    from peg_rag.cli.knowledge import format_location

    show(Text.assemble((f"[{number}] ", "bold cyan"), (format_location(hit), "dim")))


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _describe_answer(answer: "Answer") -> dict[str, Any]:
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


def _describe_written(question: str, answer: _WrittenAnswer, hits: "list[Hit]", model: str) -> dict[str, Any]:
    from peg_rag.answer import NOT_FOUND
    from peg_rag.cli.knowledge import hit_to_json

    return {
        "question": question,
        "found": answer.is_found,
        "answer": answer.text if answer.is_found else NOT_FOUND,
        "model": model,
        "complete": answer.complete,
        "sources": [{"number": number, **hit_to_json(hits[number - 1])} for number in answer.numbers],
    }
