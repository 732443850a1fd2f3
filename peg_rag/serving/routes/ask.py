"""`/ask`: answers that cite their sources, quoted from the documents or written by a language model.

Either kind of answer is produced as a series of events. A client receives them as server-sent events, or waits for the
complete answer.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from peg_rag.answer import MAX_HITS, NOT_FOUND, CitedSentence
from peg_rag.answering.retrieval import HITS_OF_FILE, MAX_FILES
from peg_rag.hits import Hit
from peg_rag.serving.access import KnowledgeDep, StateDep, require_read_access
from peg_rag.serving.errors import ApiError, convert_exception, report_unexpected
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.language_model import (
    MAX_ANSWER_CHARACTERS,
    MAX_TURNS,
    LanguageModel,
    LanguageModelError,
    Piece,
    Turn,
    parse_citations,
)
from peg_rag.serving.logs import log
from peg_rag.serving.routes.schemas import AnswerKind, Filter, Query, RequestBody, SearchMode, Text
from peg_rag.serving.routes.search import FoundPassage, SearchAnswer
from peg_rag.serving.state import ServerState, search_knowledge

logger = logging.getLogger(__name__)
T = TypeVar("T")
MAX_HISTORY = 100
WRITTEN_PASSAGES = 5  # sent to a language model
router = APIRouter(tags=["search"], dependencies=[Depends(require_read_access)])


# -- schemas ----------------------------------------------------------------------------------------------------------


class HistoryTurn(RequestBody):
    """An earlier question and its answer."""

    question: Query
    answer: Annotated[Text, Field(max_length=MAX_ANSWER_CHARACTERS)]


class AskRequest(RequestBody):
    question: Query
    history: list[HistoryTurn] = Field(
        default=[],
        max_length=MAX_HISTORY,
        description="The conversation so far, oldest turn first. Where the server has a language model, it rewrites "
        f"the question by the last {MAX_TURNS} turns, so that a follow-up question finds its passages; elsewhere it "
        "is not used.",
    )
    k: int | None = Field(
        None,
        ge=1,
        le=MAX_HITS,
        description=f"Passages to read. If omitted: {WRITTEN_PASSAGES} for a generated answer; for an extractive one "
        f"{MAX_HITS}, plus up to {MAX_FILES * HITS_OF_FILE} found with the files' own terms for what is asked.",
    )
    mode: SearchMode = "hybrid"
    where: Filter | None = None
    threshold: float | None = Field(
        None, ge=0, le=1, description="Minimum confidence for an extractive answer; None for the calibrated one."
    )
    sentences: int = Field(3, ge=1, le=10, description="Maximum number of sentences to quote.")
    answers: AnswerKind | None = Field(
        None,
        description="`extractive`: sentences of the documents; `generated`: written by the server's language model. "
        "None: generated where the server has a language model, else extractive.",
    )
    stream: bool = Field(True, description="Server-sent events; false for one JSON object.")


class AnswerSentence(BaseModel):
    """A sentence of a passage. `citation` numbers the cited passages from 1, in the order they are first cited."""

    text: str
    citation: int
    passage_id: str
    start: int = Field(description="Offset in the passage's text, in characters.")
    spans: list[tuple[int, int]] = Field(
        description="The stretches of the passage's text that are quoted: [start, end), in characters."
    )
    score: float

    @classmethod
    def of(cls, sentence: CitedSentence, sources: tuple[Hit, ...]) -> "AnswerSentence":
        return cls(
            text=sentence.text,
            citation=sentence.citation,
            passage_id=sources[sentence.citation - 1].id,
            start=sentence.start,
            spans=list(sentence.spans),
            score=sentence.score,
        )


class Citation(BaseModel):
    number: int
    passage_id: str
    source: str
    title: str
    page: int | None

    @classmethod
    def of(cls, number: int, hit: Hit) -> "Citation":
        page = hit.metadata.get("page")
        return cls(
            number=number,
            passage_id=hit.id,
            source=str(hit.metadata.get("source") or hit.id),
            title=str(hit.metadata.get("title") or ""),
            page=page if isinstance(page, int) else None,
        )


class AnswerOpening(SearchAnswer):
    """The first event: the passages that were retrieved, and the kind of answer that follows."""

    question: str = Field(description="What was searched for and is answered: the question, or a rewritten follow-up.")
    kind: AnswerKind
    model: str | None = Field(description="The language model, of a generated answer.")

    @classmethod
    def from_hits(
        cls, request: AskRequest, hits: Sequence[Hit], kind: AnswerKind, language_model: LanguageModel | None
    ) -> "AnswerOpening":
        results = SearchAnswer.of(request.question, hits, request.mode)
        name = language_model.settings.model if language_model and kind == "generated" else None
        return cls(hits=results.hits, mode=results.mode, question=request.question, kind=kind, model=name)


class AnswerDelta(BaseModel):
    """A piece of a generated answer. A number in square brackets cites the passage of that rank, from 1."""

    text: str


class AnswerEnd(BaseModel):
    """The last event: the whole answer and its citations."""

    kind: AnswerKind = Field(
        description="`extractive`: the sentences are the documents' own; `generated`: a language model wrote the text."
    )
    model: str | None = Field(description="The language model, of a generated answer.")
    found: bool = Field(description="False: the documents do not answer the question.")
    confidence: float | None = Field(description="Of an extractive answer, 0 to 1; null for a generated one.")
    complete: bool = Field(description="False: the language model reached its length limit.")
    citations: list[Citation]
    text: str = Field(description="The whole answer with citation marks, or a sentence that none was found.")


class AskAnswer(AnswerEnd):
    question: str = Field(description="What was searched for and is answered: the question, or a rewritten follow-up.")
    hits: list[FoundPassage]
    sentences: list[AnswerSentence] = Field(description="Of an extractive answer.")


Event = AnswerSentence | AnswerDelta | AnswerEnd
Events = AsyncGenerator[Event, None]
_EVENT_NAMES: dict[type[BaseModel], str] = {
    AnswerOpening: "hits",
    AnswerSentence: "sentence",
    AnswerDelta: "delta",
    AnswerEnd: "done",
}
_EVENTS_DESCRIPTION = """Server-sent events, in this order: `hits` (the passages with their scores, and who answers); a
`sentence` for each sentence of an extractive answer, or a `delta` for each piece of a generated one; `done` (citations,
the whole text); `error` if the answer cannot be completed."""


# -- the route --------------------------------------------------------------------------------------------------------


@router.post(
    "/ask",
    response_model=None,
    responses={200: {"model": AskAnswer, "description": _EVENTS_DESCRIPTION, "content": {"text/event-stream": {}}}},
)
async def ask(request: AskRequest, state: StateDep, knowledge: KnowledgeDep, http_request: Request) -> Response:
    """An answer that cites its sources: the documents' own sentences, or written by a language model."""
    kind = choose_kind(request.answers, state.language_model)
    request = await run_while_connected(http_request, condense_history(request, state))
    hits = await find_passages(request, kind, state, knowledge)
    opening = AnswerOpening.from_hits(request, hits, kind, state.language_model)
    events = answer_question(request, hits, kind, state, knowledge)
    if request.stream:
        stream = _stream_events(opening, events, http_request.state.request_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    answer = await run_while_connected(http_request, _collect_answer(opening, events))
    return Response(answer.model_dump_json(), media_type="application/json")


def choose_kind(requested: AnswerKind | None, language_model: LanguageModel | None) -> AnswerKind:
    """The requested kind of answer; None: generated if there is a language model, else extractive."""
    if requested == "generated" and language_model is None:
        raise ApiError(400, "this server has no language model; ask for extractive answers", param="answers")
    return requested or ("generated" if language_model else "extractive")


async def find_passages(
    request: AskRequest, kind: AnswerKind, state: ServerState, knowledge: KnowledgeBase
) -> list[Hit]:
    """The passages that are read for an answer."""
    k = request.k or (WRITTEN_PASSAGES if kind == "generated" else MAX_HITS)
    hits = await search_knowledge(state, knowledge, request.question, k=k, mode=request.mode, where=request.where)
    if kind == "extractive" and request.k is None:
        hits += await state.searches.run(
            knowledge.search_by_terms, request.question, hits, mode=request.mode, where=request.where
        )
    return hits


async def condense_history(request: AskRequest, state: ServerState) -> AskRequest:
    """The request with a question that can be understood without its history, as the language model puts it."""
    if not request.history or state.language_model is None:
        return request
    turns = [Turn(turn.question, turn.answer) for turn in request.history]
    try:
        question = await state.language_model.condense_question(request.question, turns)
    except LanguageModelError as error:
        _count_failure(error, state)
        raise
    return request.model_copy(update={"question": question, "history": []})


def answer_question(
    request: AskRequest, hits: list[Hit], kind: AnswerKind, state: ServerState, knowledge: KnowledgeBase
) -> Events:
    """The events of an answer after its opening; the last one is an `AnswerEnd`."""
    if kind == "generated":
        return _generate_answer(request, hits, state)
    return _extract_answer(request, hits, state, knowledge)


async def _extract_answer(request: AskRequest, hits: list[Hit], state: ServerState, knowledge: KnowledgeBase) -> Events:
    answer = await state.searches.run(
        knowledge.answer, request.question, hits, threshold=request.threshold, sentences=request.sentences
    )
    for sentence in answer.sentences:
        yield AnswerSentence.of(sentence, answer.sources)
    yield AnswerEnd(
        kind="extractive",
        model=None,
        found=answer.found,
        confidence=answer.confidence,
        complete=True,
        citations=[Citation.of(number, hit) for number, hit in enumerate(answer.sources, start=1)],
        text=answer.text,
    )


async def _generate_answer(request: AskRequest, hits: list[Hit], state: ServerState) -> Events:
    """The language model's answer. It is not called when no passage was retrieved."""
    language_model = state.language_model
    assert language_model is not None
    text = ""
    piece = Piece("", "not_found")
    if hits:
        try:
            async with aclosing(language_model.write(request.question, hits)) as pieces:
                async for piece in pieces:
                    text += piece.text
                    if piece.text:
                        yield AnswerDelta(text=piece.text)
        except LanguageModelError as error:
            _count_failure(error, state)
            raise
    state.metrics.generated.labels(piece.finish).inc()
    is_answered = piece.finish != "not_found"
    numbers: list[int] = []
    if is_answered:
        numbers = parse_citations(text, len(hits))
    yield AnswerEnd(
        kind="generated",
        model=language_model.settings.model,
        found=is_answered,
        confidence=None,
        complete=piece.finish != "length",
        citations=[Citation.of(number, hits[number - 1]) for number in numbers],
        text=text if is_answered else NOT_FOUND,
    )


def _count_failure(error: LanguageModelError, state: ServerState) -> None:
    state.metrics.generated.labels(error.code).inc()
    log(logger, logging.WARNING, "language model failed", code=error.code)


# -- sending ----------------------------------------------------------------------------------------------------------


async def _stream_events(opening: AnswerOpening, events: Events, request_id: str) -> AsyncIterator[bytes]:
    """The events as they come. The status has been sent by then, so an error becomes the last event."""
    yield _format_event(opening)
    try:
        async with aclosing(events):  # a client that disconnects stops the language model
            async for event in events:
                yield _format_event(event)
    except Exception as error:
        api_error = convert_exception(error) or report_unexpected(error, request_id)
        yield format_sse_event(event="error", data_str=bytes(api_error.to_response().body).decode())


def _format_event(event: BaseModel) -> bytes:
    return format_sse_event(event=_EVENT_NAMES[type(event)], data_str=event.model_dump_json())


async def _collect_answer(opening: AnswerOpening, events: Events) -> AskAnswer:
    """The complete answer, for a client that does not stream."""
    async with aclosing(events):
        history = [event async for event in events]
    end = history[-1]
    assert isinstance(end, AnswerEnd)
    sentences = [event for event in history if isinstance(event, AnswerSentence)]
    return AskAnswer(**end.model_dump(), question=opening.question, hits=opening.hits, sentences=sentences)


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, which is cancelled when the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    work_task = asyncio.create_task(work)
    disconnect_task = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((work_task, disconnect_task), return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            raise ClientDisconnect
        return work_task.result()
    finally:
        work_task.cancel()
        disconnect_task.cancel()
        await asyncio.gather(work_task, disconnect_task, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
