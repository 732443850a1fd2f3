"""`/documents` and `/passages`: listing, reading, uploading and deleting the documents of the store.

An upload may take minutes to be read. A client that accepts server-sent events learns meanwhile how far it is, and one
that leaves stops it.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field
from starlette.datastructures import FormData, UploadFile

from peg_rag.errors import DataError
from peg_rag.index import Record
from peg_rag.readers.kinds import PLAIN_TEXT
from peg_rag.serving.access import KnowledgeDep, StateDep, require_read_access, require_write_access
from peg_rag.serving.errors import ApiError, convert_exception, report_unexpected
from peg_rag.serving.filenames import sanitize_filename
from peg_rag.serving.knowledge import Document, KnowledgeBase
from peg_rag.serving.routes.schemas import RequestBody, Text
from peg_rag.serving.state import ServerState
from peg_rag.serving.uploads import OnStep, ignore_step

# FastAPI cannot derive the schema: the route parses the form itself, to apply this server's limits.
_UPLOAD_SCHEMA = {
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

read_router = APIRouter(tags=["documents"], dependencies=[Depends(require_read_access)])
write_router = APIRouter(tags=["documents"], dependencies=[Depends(require_write_access)])


# -- schemas ----------------------------------------------------------------------------------------------------------


class DocumentCard(BaseModel):
    id: str
    name: str
    source: str = Field(description="The documents' `source` in the passages' metadata; use it in filters.")
    title: str
    uploaded: bool = Field(description="Whether it was uploaded to this server, and can be deleted through it.")
    size_bytes: int | None

    @classmethod
    def of(cls, document: Document) -> "DocumentCard":
        return cls(
            id=document.id,
            name=document.name,
            source=document.source,
            title=document.title,
            uploaded=document.uploaded,
            size_bytes=document.size_bytes,
        )


class DocumentList(BaseModel):
    documents: list[DocumentCard]
    total: int


class DocumentDetail(DocumentCard):
    passages: int


class PassageCard(BaseModel):
    id: str
    text: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, record: Record) -> "PassageCard":
        return cls(id=record.id, text=record.text, metadata=dict(record.metadata))


class PassageList(BaseModel):
    passages: list[PassageCard]


class PassageDetail(PassageCard):
    """A passage, its document where known, and the neighbouring passages' texts (empty at either end)."""

    document: DocumentCard | None
    before: str
    after: str


class NewText(RequestBody):
    name: str = Field(min_length=1, max_length=200, description="A file name; `.txt` is added if it has no suffix.")
    text: Text = Field(min_length=1)


class AddedDocument(DocumentDetail):
    replaced: bool = Field(description="Whether a document of this name was replaced.")


class Rejected(BaseModel):
    """A file of an upload that was not added."""

    name: str
    status: int
    message: str


class UploadAnswer(BaseModel):
    added: list[AddedDocument]
    rejected: list[Rejected]


class UploadStep(BaseModel):
    """How far the file of an upload is."""

    name: str
    step: str = Field(description="`reading` (in pages) or `indexing` (in passages).")
    done: int
    total: int = Field(description="0 where it is not known.")


_EVENTS_DESCRIPTION = """One object, or for a client that accepts `text/event-stream` server-sent events: `step` for
each page that is read and when a file is embedded, then `done` with that object, or `error`. A client that leaves
before `done` stops what is not yet part of the store."""


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


# -- reading ----------------------------------------------------------------------------------------------------------


@read_router.get("/documents")
async def list_documents(
    state: StateDep,
    knowledge: KnowledgeDep,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DocumentList:
    """The documents of the store, the newest first."""
    documents = await state.searches.run(knowledge.list_documents)
    page = documents[offset : offset + limit]
    return DocumentList(documents=[DocumentCard.of(document) for document in page], total=len(documents))


@read_router.get("/documents/{document_id}")
async def get_document(document_id: str, state: StateDep, knowledge: KnowledgeDep) -> DocumentDetail:
    """One document, and the number of its passages."""
    document, passages = await state.searches.run(knowledge.get_document, document_id)
    return DocumentDetail(**DocumentCard.of(document).model_dump(), passages=passages)


@read_router.get("/documents/{document_id}/passages")
async def list_passages(
    document_id: str,
    state: StateDep,
    knowledge: KnowledgeDep,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> PassageList:
    """A document's passages in their order."""
    records = await state.searches.run(knowledge.list_passages, document_id, offset=offset, limit=limit)
    return PassageList(passages=[PassageCard.of(record) for record in records])


@read_router.get(
    "/documents/{document_id}/original",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file, or a range of it."}},
)
async def get_original(document_id: str, state: StateDep, knowledge: KnowledgeDep) -> Response:
    """The file that a document was read from, byte for byte as it was indexed; else 404 or 409.

    It is sent as an attachment that no browser opens or runs.
    """
    original = await state.searches.run(knowledge.get_original, document_id)
    return FileResponse(
        original.path,
        media_type=original.media_type,
        filename=original.name,
        headers={"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "no-store"},
    )


@read_router.get("/passages/{passage_id:path}")
async def get_passage(passage_id: str, state: StateDep, knowledge: KnowledgeDep) -> PassageDetail:
    """The passage that a citation refers to, with its document and its neighbours."""
    passage = await state.searches.run(knowledge.get_passage, passage_id)
    return PassageDetail(
        **PassageCard.of(passage.record).model_dump(),
        document=DocumentCard.of(passage.document) if passage.document else None,
        before=passage.before,
        after=passage.after,
    )


# -- writing ----------------------------------------------------------------------------------------------------------


@write_router.post(
    "/documents",
    openapi_extra=_UPLOAD_SCHEMA,
    response_model=None,
    responses={200: {"model": UploadAnswer, "description": _EVENTS_DESCRIPTION, "content": {"text/event-stream": {}}}},
)
async def upload_documents(request: Request, state: StateDep, knowledge: KnowledgeDep) -> Response:
    """Add files, or replace those of the same name. Each file is accepted or rejected by itself."""
    settings = state.settings
    form = await request.form(
        max_files=settings.max_upload_files, max_fields=0, max_part_size=settings.max_upload_bytes
    )
    try:
        files = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
        if not files:
            raise ApiError(400, "no file; send files as multipart/form-data in the field `files`", param="files")
        if "text/event-stream" not in request.headers.get("accept", ""):
            answer = await _add_files(state, knowledge, files)
            _close_files(form)
            return Response(answer.model_dump_json(), media_type="application/json")
    except BaseException:
        _close_files(form)
        raise
    stream = _stream_upload(state, knowledge, form, files, request.state.request_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@write_router.post("/documents/text")
async def add_text(request: NewText, state: StateDep, knowledge: KnowledgeDep) -> AddedDocument:
    """Add a text as a document, or replace the one of the same name."""
    name = sanitize_filename(request.name)
    if not name.lower().endswith((".txt", ".md")):
        name += ".txt"
    content = request.text.encode()
    return await _add_file(state, knowledge, name, io.BytesIO(content), len(content))


@write_router.delete("/documents/{document_id}")
async def delete_document(document_id: str, state: StateDep, knowledge: KnowledgeDep) -> Deleted:
    """Delete an uploaded document and its passages."""
    document = await state.writes.run(knowledge.delete, document_id)
    return Deleted(id=document.id)


async def _add_files(
    state: ServerState, knowledge: KnowledgeBase, files: list[UploadFile], steps: "_Steps | None" = None
) -> UploadAnswer:
    answer = UploadAnswer(added=[], rejected=[])
    for file in files:
        name = file.filename or ""
        on_step = steps.follow(sanitize_filename(name)) if steps else ignore_step
        try:
            answer.added.append(await _add_file(state, knowledge, name, file.file, file.size or 0, on_step))
        except (ApiError, DataError) as error:
            if len(files) == 1:
                raise
            api_error = error if isinstance(error, ApiError) else ApiError(422, str(error))
            answer.rejected.append(
                Rejected(name=sanitize_filename(name), status=api_error.status, message=api_error.message)
            )
    return answer


async def _add_file(
    state: ServerState,
    knowledge: KnowledgeBase,
    name: str,
    content: BinaryIO,
    size: int,
    on_step: OnStep = ignore_step,
) -> AddedDocument:
    pool = state.writes if _is_small_text(name, size, state) else state.conversions
    addition = await pool.run(knowledge.add, name, content, on_step)
    card = DocumentCard.of(addition.document)
    return AddedDocument(**card.model_dump(), passages=addition.passages, replaced=addition.replaced)


class _UploadStopped(Exception):
    """The client has left, so its files need not be read any further."""


class _Steps:
    """Carries how far an upload is from the thread that reads to the response, and back that nobody waits for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[UploadStep | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stopped = False

    def follow(self, name: str) -> OnStep:
        """What is to be called, from any thread, at each step of this file."""

        def report(step: str, done: int, total: int) -> None:
            if self._stopped:
                raise _UploadStopped
            event = UploadStep(name=name, step=step, done=done, total=total)
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

        return report

    def stop(self) -> None:
        """Raise in the thread at its next step."""
        self._stopped = True

    def end(self, work: "asyncio.Task[UploadAnswer]") -> None:
        """Let the response stop waiting for steps."""
        if not work.cancelled():
            work.exception()  # the client may have left before it could be told
        self.events.put_nowait(None)


async def _stream_upload(
    state: ServerState, knowledge: KnowledgeBase, form: FormData, files: list[UploadFile], request_id: str
) -> AsyncIterator[bytes]:
    """The steps as they are taken, then the answer or the error."""
    steps = _Steps()
    work = asyncio.create_task(_add_files(state, knowledge, files, steps))
    work.add_done_callback(steps.end)
    try:
        while (step := await steps.events.get()) is not None:
            yield format_sse_event(event="step", data_str=step.model_dump_json())
        yield format_sse_event(event="done", data_str=work.result().model_dump_json())
    except Exception as error:
        api_error = convert_exception(error) or report_unexpected(error, request_id)
        yield format_sse_event(event="error", data_str=bytes(api_error.to_response().body).decode())
    finally:
        steps.stop()
        work.cancel()
        _close_files(form)


def _close_files(form: FormData) -> None:
    """Close at once, where the response is being cancelled and nothing more can be awaited."""
    for _, item in form.multi_items():
        if isinstance(item, UploadFile):
            item.file.close()


def _is_small_text(name: str, size: int, state: ServerState) -> bool:
    """Whether a file is read and embedded so quickly that it need not wait behind conversions."""
    return size <= state.settings.small_upload_bytes and name.lower().endswith(PLAIN_TEXT)
