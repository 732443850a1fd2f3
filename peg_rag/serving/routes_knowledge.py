"""Searching, asking, and the documents of the store."""

import io
from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from peg_rag.answer import Answer
from peg_rag.errors import DataError
from peg_rag.hits import Hit
from peg_rag.serving.access import Parts, may_read, may_write
from peg_rag.serving.knowledge import Added, KnowledgeBase
from peg_rag.serving.names import safe_name
from peg_rag.serving.problems import ApiError
from peg_rag.serving.schemas import (
    AddedDocument,
    AnswerEnd,
    AnswerSentence,
    AskAnswer,
    AskRequest,
    Citation,
    Deleted,
    DocumentCard,
    DocumentDetail,
    DocumentList,
    FoundPassage,
    NewText,
    PassageCard,
    PassageDetail,
    PassageList,
    Rejected,
    SearchAnswer,
    SearchRequest,
    UploadAnswer,
)
from peg_rag.serving.state import State

_EVENTS = """Server-sent events, in this order: `hits` (the passages with their scores), a `sentence` for each sentence
of the answer, `done` (confidence, citations, the whole text); `error` where it cannot be finished."""
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                    },
                }
            }
        },
    }
}


def knowledge_of(parts: Parts) -> KnowledgeBase:
    """The store behind the routes of this module, which are there only where there is one."""
    assert parts.knowledge is not None
    return parts.knowledge


Knowledge = Annotated[KnowledgeBase, Depends(knowledge_of)]
readers = APIRouter(dependencies=[Depends(may_read)])
writers = APIRouter(dependencies=[Depends(may_write)])


# -- asking -----------------------------------------------------------------------------------------------------------


@readers.post("/search", tags=["search"])
async def search(request: SearchRequest, parts: Parts, knowledge: Knowledge) -> SearchAnswer:
    """The passages nearest to a query, best first, with their component scores."""
    hits = await parts.searches.run(
        knowledge.search, request.query, k=request.k, mode=request.mode, where=request.where
    )
    return SearchAnswer(hits=[FoundPassage.of(hit) for hit in hits], mode=request.mode)


@readers.post(
    "/ask",
    tags=["search"],
    response_model=None,
    responses={200: {"model": AskAnswer, "description": _EVENTS, "content": {"text/event-stream": {}}}},
)
async def ask(request: AskRequest, parts: Parts, knowledge: Knowledge) -> Response:
    """An answer made of the documents' own sentences, each with its source; or that they do not say."""
    hits = await parts.searches.run(
        knowledge.search, request.question, k=request.k, mode=request.mode, where=request.where
    )
    if request.stream:
        events = _stream(request, hits, parts, knowledge)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    answer = await _answer(request, hits, parts, knowledge)
    whole = AskAnswer(
        **_end(answer).model_dump(),
        hits=[FoundPassage.of(hit) for hit in hits],
        sentences=[AnswerSentence.of(sentence, answer.sources) for sentence in answer.sentences],
    )
    return Response(whole.model_dump_json(), media_type="application/json")


async def _stream(request: AskRequest, hits: list[Hit], parts: State, knowledge: KnowledgeBase) -> AsyncIterator[bytes]:
    yield _event("hits", SearchAnswer(hits=[FoundPassage.of(hit) for hit in hits], mode=request.mode))
    try:
        answer = await _answer(request, hits, parts, knowledge)
    except ApiError as error:
        yield format_sse_event(event="error", data_str=bytes(error.response().body).decode())
        return
    for sentence in answer.sentences:
        yield _event("sentence", AnswerSentence.of(sentence, answer.sources))
    yield _event("done", _end(answer))


async def _answer(request: AskRequest, hits: list[Hit], parts: State, knowledge: KnowledgeBase) -> Answer:
    return await parts.searches.run(
        knowledge.answer, request.question, hits, threshold=request.threshold, sentences=request.sentences
    )


def _end(answer: Answer) -> AnswerEnd:
    return AnswerEnd(
        found=answer.found,
        confidence=answer.confidence,
        citations=[Citation.of(number, hit) for number, hit in enumerate(answer.sources, start=1)],
        text=answer.text,
    )


def _event(name: Literal["hits", "sentence", "done"], data: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json())


# -- documents --------------------------------------------------------------------------------------------------------


@readers.get("/documents", tags=["documents"])
async def list_documents(
    parts: Parts,
    knowledge: Knowledge,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DocumentList:
    """The documents of the store, the newest first."""
    found = await parts.searches.run(knowledge.documents)
    shown = found[offset : offset + limit]
    return DocumentList(documents=[DocumentCard.of(document) for document in shown], total=len(found))


@readers.get("/documents/{document_id}", tags=["documents"])
async def get_document(document_id: str, parts: Parts, knowledge: Knowledge) -> DocumentDetail:
    """One document, and the number of its passages."""
    document, passages = await parts.searches.run(knowledge.document, document_id)
    return DocumentDetail(**DocumentCard.of(document).model_dump(), passages=passages)


@readers.get("/documents/{document_id}/passages", tags=["documents"])
async def list_passages(
    document_id: str,
    parts: Parts,
    knowledge: Knowledge,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> PassageList:
    """A document's passages in their order."""
    found = await parts.searches.run(knowledge.passages, document_id, offset=offset, limit=limit)
    return PassageList(passages=[PassageCard.of(record) for record in found])


@readers.get("/passages/{passage_id:path}", tags=["documents"])
async def get_passage(passage_id: str, parts: Parts, knowledge: Knowledge) -> PassageDetail:
    """A passage as a citation names it, with its document and its neighbours."""
    found = await parts.searches.run(knowledge.passage, passage_id)
    card = DocumentCard.of(found.document) if found.document else None
    return PassageDetail(
        **PassageCard.of(found.record).model_dump(), document=card, before=found.before, after=found.after
    )


@writers.post("/documents", tags=["documents"], openapi_extra=_UPLOAD)
async def upload_documents(request: Request, parts: Parts, knowledge: Knowledge) -> UploadAnswer:
    """Add files, or replace those of the same name. Each is taken or rejected by itself."""
    answer = UploadAnswer(added=[], rejected=[])
    async with request.form(
        max_files=parts.settings.max_upload_files, max_fields=0, max_part_size=parts.settings.max_upload_bytes
    ) as form:
        files = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
        if not files:
            raise ApiError(400, "no file; send files as multipart/form-data in the field `files`", param="files")
        for file in files:
            try:
                answer.added.append(await _add(parts, knowledge, file.filename or "", file.file))
            except (ApiError, DataError) as error:
                status = error.status if isinstance(error, ApiError) else 422
                if len(files) == 1:
                    raise
                answer.rejected.append(Rejected(name=safe_name(file.filename or ""), status=status, message=str(error)))
    return answer


@writers.post("/documents/text", tags=["documents"])
async def add_text(request: NewText, parts: Parts, knowledge: Knowledge) -> AddedDocument:
    """Add a text as a document, or replace the one of the same name."""
    name = safe_name(request.name)
    if not name.lower().endswith((".txt", ".md")):
        name += ".txt"
    return await _add(parts, knowledge, name, io.BytesIO(request.text.encode()))


@writers.delete("/documents/{document_id}", tags=["documents"])
async def delete_document(document_id: str, parts: Parts, knowledge: Knowledge) -> Deleted:
    """Delete an uploaded document and its passages."""
    document = await parts.writes.run(knowledge.delete, document_id)
    return Deleted(id=document.id)


async def _add(parts: State, knowledge: KnowledgeBase, name: str, content: BinaryIO) -> AddedDocument:
    added: Added = await parts.writes.run(knowledge.add, name, content)
    card: dict[str, Any] = DocumentCard.of(added.document).model_dump()
    return AddedDocument(**card, passages=added.passages, replaced=added.replaced)
