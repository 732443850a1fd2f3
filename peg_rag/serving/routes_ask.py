"""Asking: passages are found, then quoted, or handed to a language model where the server has one.

Both kinds of answers are made as a series of events. A client takes them as they come, or waits for the whole.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from peg_rag.answer import NOT_FOUND
from peg_rag.hits import Hit
from peg_rag.serving.access import Parts, may_read
from peg_rag.serving.generate import LanguageModel, LanguageModelError, Part, cited_numbers
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.logs import log
from peg_rag.serving.problems import ApiError, known_problem, unexpected_problem
from peg_rag.serving.routes_knowledge import Knowledge
from peg_rag.serving.schemas import (
    AnswerDelta,
    AnswerEnd,
    AnswerKind,
    AnswerOpening,
    AnswerSentence,
    AskAnswer,
    AskRequest,
    Citation,
    SearchAnswer,
)
from peg_rag.serving.state import State

logger = logging.getLogger(__name__)
T = TypeVar("T")
router = APIRouter(dependencies=[Depends(may_read)])

Event = AnswerSentence | AnswerDelta | AnswerEnd
Events = AsyncGenerator[Event, None]
_NAMES: dict[type[BaseModel], str] = {
    AnswerOpening: "hits",
    AnswerSentence: "sentence",
    AnswerDelta: "delta",
    AnswerEnd: "done",
}
_EVENTS = """Server-sent events, in this order: `hits` (the passages with their scores, and who answers); a `sentence`
for each sentence of an extractive answer, or a `delta` for each piece of a generated one; `done` (citations, the whole
text); `error` where it cannot be finished."""


@router.post(
    "/ask",
    tags=["search"],
    response_model=None,
    responses={200: {"model": AskAnswer, "description": _EVENTS, "content": {"text/event-stream": {}}}},
)
async def ask(request: AskRequest, parts: Parts, knowledge: Knowledge, exchange: Request) -> Response:
    """An answer that cites its sources: the documents' own sentences, or written by a language model."""
    kind = _kind(request, parts.language_model)
    hits = await parts.searches.run(
        knowledge.search, request.question, k=request.k, mode=request.mode, where=request.where
    )
    events = _generated(request, hits, parts) if kind == "generated" else _extracted(request, hits, parts, knowledge)
    opening = _opening(kind, request, hits, parts.language_model)
    if request.stream:
        stream = _stream(opening, events, exchange.state.request_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    answer = await _while_connected(exchange, _whole(opening, events))
    return Response(answer.model_dump_json(), media_type="application/json")


def _kind(request: AskRequest, model: LanguageModel | None) -> AnswerKind:
    if request.answers == "generated" and model is None:
        raise ApiError(400, "this server has no language model; ask for extractive answers", param="answers")
    return request.answers or ("generated" if model else "extractive")


def _opening(kind: AnswerKind, request: AskRequest, hits: list[Hit], model: LanguageModel | None) -> AnswerOpening:
    found = SearchAnswer.of(request.question, hits, request.mode)
    name = model.settings.model if model and kind == "generated" else None
    return AnswerOpening(hits=found.hits, mode=found.mode, kind=kind, model=name)


async def _stream(opening: AnswerOpening, events: Events, request_id: str) -> AsyncIterator[bytes]:
    """The events as they come. The status is sent by then, so whatever goes wrong becomes the last of them."""
    yield _written(opening)
    try:
        async with aclosing(events):  # when the client goes, so does what is asked for it
            async for event in events:
                yield _written(event)
    except Exception as error:
        problem = known_problem(error) or unexpected_problem(error, request_id)
        yield format_sse_event(event="error", data_str=bytes(problem.response().body).decode())


def _written(event: BaseModel) -> bytes:
    return format_sse_event(event=_NAMES[type(event)], data_str=event.model_dump_json())


async def _while_connected(exchange: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; when the client leaves, the work is cancelled, and with it what is asked for it elsewhere.

    Raises:
        ClientDisconnect: the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_until_gone(exchange))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_until_gone(exchange: Request) -> None:
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


async def _whole(opening: AnswerOpening, events: Events) -> AskAnswer:
    async with aclosing(events):
        told = [event async for event in events]
    sentences = [event for event in told if isinstance(event, AnswerSentence)]
    end = told[-1]
    assert isinstance(end, AnswerEnd)
    return AskAnswer(**end.model_dump(), hits=opening.hits, sentences=sentences)


async def _extracted(request: AskRequest, hits: list[Hit], parts: State, knowledge: KnowledgeBase) -> Events:
    answer = await parts.searches.run(
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


async def _generated(request: AskRequest, hits: list[Hit], parts: State) -> Events:
    """What the language model writes; without any passage it is not asked."""
    model = parts.language_model
    assert model is not None
    text, last = "", Part("", "not_found")
    if hits:
        try:
            async with aclosing(model.write(request.question, [hit.text for hit in hits])) as written:
                async for last in written:
                    text += last.text
                    if last.text:
                        yield AnswerDelta(text=last.text)
        except LanguageModelError as error:
            parts.metrics.generated.labels(error.code).inc()
            log(logger, logging.WARNING, "language model failed", code=error.code)
            raise
    parts.metrics.generated.labels(last.finish).inc()
    yield _end(model, text, last, hits)


def _end(model: LanguageModel, text: str, last: Part, hits: Sequence[Hit]) -> AnswerEnd:
    found = last.finish != "not_found"
    numbers = cited_numbers(text, len(hits)) if found else []
    return AnswerEnd(
        kind="generated",
        model=model.settings.model,
        found=found,
        confidence=None,
        complete=last.finish != "length",
        citations=[Citation.of(number, hits[number - 1]) for number in numbers],
        text=text if found else NOT_FOUND,
    )
