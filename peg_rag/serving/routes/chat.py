"""`/v1/chat/completions`: the answers of `/ask` in the form of OpenAI's chat API, so that any chat client can ask.

The last user message is answered, from the documents alone; where the server has a language model, the turns before it
say what a follow-up question means. The answer ends with a list of its sources, since most
chat clients show nothing but the text; programs find the same sources in the field `citations`.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from peg_rag.answer import MAX_HITS
from peg_rag.serving.access import KnowledgeDep, StateDep, require_read_access
from peg_rag.serving.errors import ApiError, convert_exception, report_unexpected
from peg_rag.serving.language_model import MAX_ANSWER_CHARACTERS, MAX_TURNS
from peg_rag.serving.routes.ask import (
    AnswerDelta,
    AnswerEnd,
    AskRequest,
    Citation,
    Events,
    answer_question,
    choose_kind,
    condense_history,
    find_passages,
    run_while_connected,
)
from peg_rag.serving.routes.schemas import (
    MAX_QUERY_CHARACTERS,
    AnswerKind,
    Filter,
    RequestBody,
    SearchMode,
    Text,
)
from peg_rag.serving.state import ServerState

MAX_MESSAGES = 1_000
_KINDS: dict[str, AnswerKind | None] = {
    "peg-rag": None,
    "peg-rag-extractive": "extractive",
    "peg-rag-generated": "generated",
}

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], dependencies=[Depends(require_read_access)])


# -- schemas ----------------------------------------------------------------------------------------------------------


class TextPart(BaseModel):
    """A part of a message. Other parts than text (images, audio) are refused."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = Field(False, description="Accepted; tokens are not counted here.")


_Unused = Annotated[JsonValue, Field(description="Accepted and not used.")]


class ChatRequest(RequestBody):
    """OpenAI's request, with the options of a search added. Parameters that would change the answer are refused."""

    model: str = Field(
        max_length=200,
        description="`peg-rag`: generated where the server has a language model, else extractive; "
        "`peg-rag-extractive`; `peg-rag-generated`.",
    )
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The last user message is the question. A language model reads a follow-up question by the turns "
        "before it; system messages are not used.",
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    k: int | None = Field(None, ge=1, le=MAX_HITS, description="Passages to read; None as in `/ask`.")
    mode: SearchMode = "hybrid"
    where: Filter | None = None
    temperature: _Unused = None
    top_p: _Unused = None
    max_tokens: _Unused = None
    max_completion_tokens: _Unused = None
    frequency_penalty: _Unused = None
    presence_penalty: _Unused = None
    seed: _Unused = None
    user: _Unused = None

    @model_validator(mode="after")
    def _check_question(self) -> "ChatRequest":
        if not self.question.strip():
            raise PydanticCustomError("question", "the last user message is missing or blank; it is the question")
        if len(self.question) > MAX_QUERY_CHARACTERS:
            raise PydanticCustomError("question", f"the question is longer than {MAX_QUERY_CHARACTERS:,} characters")
        return self

    @property
    def question(self) -> str:
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def history(self) -> list[dict[str, str]]:
        """The last turns before the question: each user message that an assistant message follows, and that answer."""
        turns = []
        for message, reply in pairwise(message for message in self.messages if message.role in ("user", "assistant")):
            if (message.role, reply.role) == ("user", "assistant") and message.text.strip():
                turns.append(
                    {"question": message.text[:MAX_QUERY_CHARACTERS], "answer": reply.text[:MAX_ANSWER_CHARACTERS]}
                )
        return turns[-MAX_TURNS:]

    def to_ask_request(self) -> AskRequest:
        return AskRequest.model_validate(
            {
                "question": self.question,
                "history": self.history,
                "k": self.k,
                "mode": self.mode,
                "where": self.where,
            }
        )


class ChatAnswer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: Literal[0] = 0
    message: ChatAnswer
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """OpenAI's chat completion, with the citations added."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    citations: list[Citation] = Field(description="The passages that the numbers in the answer refer to.")


_STREAM_DESCRIPTION = """A completion, or with `stream` server-sent events: OpenAI's chunks, the last one with
`citations`, then `[DONE]`; an object with `error` if the answer cannot be completed."""


# -- the route --------------------------------------------------------------------------------------------------------


@router.post(
    "/chat/completions",
    response_model=None,
    responses={
        200: {"model": ChatCompletion, "description": _STREAM_DESCRIPTION, "content": {"text/event-stream": {}}}
    },
)
async def create_chat_completion(
    request: ChatRequest, state: StateDep, knowledge: KnowledgeDep, http_request: Request
) -> Response:
    """Answer the last user message from the documents, with citations."""
    kind = _choose_kind(request.model, state)
    question = await run_while_connected(http_request, condense_history(request.to_ask_request(), state))
    hits = await find_passages(question, kind, state, knowledge)
    events = answer_question(question, hits, kind, state, knowledge)
    request_id = http_request.state.request_id
    header = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": request.model}
    if request.stream:
        stream = _stream_chunks(header, events, request_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    completion = await run_while_connected(http_request, _collect_completion(header, events))
    return Response(completion.model_dump_json(), media_type="application/json")


def list_chat_models(state: ServerState) -> list[str]:
    """The names that `model` of a chat completion may have on this server; none where there are no documents."""
    if state.knowledge is None:
        return []
    return [name for name, kind in _KINDS.items() if kind != "generated" or state.language_model is not None]


def _choose_kind(model: str, state: ServerState) -> AnswerKind:
    if model not in _KINDS:
        raise ApiError(
            404, f"the chat models of this server are {', '.join(_KINDS)}", code="model_not_found", param="model"
        )
    if _KINDS[model] == "generated" and state.language_model is None:
        raise ApiError(400, "this server has no language model; choose peg-rag-extractive", param="model")
    return choose_kind(_KINDS[model], state.language_model)


async def _stream_texts(events: Events) -> AsyncGenerator[str | AnswerEnd, None]:
    """The texts of an answer and of its list of sources, then its end."""
    is_empty = True
    async with aclosing(events):  # a client that disconnects stops the language model
        async for event in events:
            if isinstance(event, AnswerDelta):
                is_empty = False
                yield event.text
            elif isinstance(event, AnswerEnd):
                if is_empty:  # extractive, or not found
                    yield event.text
                if event.citations:
                    yield _list_sources(event.citations)
                yield event


async def _collect_completion(header: dict[str, Any], events: Events) -> ChatCompletion:
    async with aclosing(_stream_texts(events)) as pieces:
        *texts, end = [piece async for piece in pieces]
    assert isinstance(end, AnswerEnd)
    choice = ChatChoice(message=ChatAnswer(content="".join(map(str, texts))), finish_reason=_finish_reason(end))
    return ChatCompletion(**header, choices=[choice], citations=end.citations)


async def _stream_chunks(header: dict[str, Any], events: Events, request_id: str) -> AsyncIterator[bytes]:
    """The chunks as server-sent events. The status has been sent by then, so an error becomes the last event."""
    yield _format_chunk(header, {"role": "assistant", "content": ""})
    try:
        async with aclosing(_stream_texts(events)) as pieces:
            async for piece in pieces:
                if isinstance(piece, AnswerEnd):
                    yield _format_chunk(header, {}, piece)
                else:
                    yield _format_chunk(header, {"content": piece})
        yield format_sse_event(data_str="[DONE]")
    except Exception as error:
        api_error = convert_exception(error) or report_unexpected(error, request_id)
        yield format_sse_event(data_str=bytes(api_error.to_response().body).decode())


def _format_chunk(header: dict[str, Any], delta: dict[str, str], end: AnswerEnd | None = None) -> bytes:
    finish_reason = _finish_reason(end) if end else None
    chunk: dict[str, Any] = {
        **header,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    if end:
        chunk["citations"] = [citation.model_dump() for citation in end.citations]
    return format_sse_event(data_str=json.dumps(chunk, ensure_ascii=False))


def _list_sources(citations: Sequence[Citation]) -> str:
    """The sources as the last paragraph of an answer, one per line."""
    lines = []
    for citation in citations:
        page = f"p. {citation.page}" if citation.page is not None else ""
        lines.append(f"[{citation.number}] " + " · ".join(filter(None, [citation.source, citation.title, page])))
    return "\n\n" + "\n".join(lines)


def _finish_reason(end: AnswerEnd) -> Literal["stop", "length"]:
    return "stop" if end.complete else "length"
