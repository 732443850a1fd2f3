"""`/documents` and `/passages`: listing, uploading and deleting the documents of the store."""

import io
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from peg_rag.errors import DataError
from peg_rag.index import Record
from peg_rag.readers.kinds import PLAIN_TEXT
from peg_rag.serving.access import KnowledgeDep, StateDep, require_read_access, require_write_access
from peg_rag.serving.errors import ApiError
from peg_rag.serving.filenames import sanitize_filename
from peg_rag.serving.knowledge import Document, KnowledgeBase
from peg_rag.serving.routes.schemas import RequestBody, Text
from peg_rag.serving.state import ServerState

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


@write_router.post("/documents", openapi_extra=_UPLOAD_SCHEMA)
async def upload_documents(request: Request, state: StateDep, knowledge: KnowledgeDep) -> UploadAnswer:
    """Add files, or replace those of the same name. Each file is accepted or rejected by itself."""
    settings = state.settings
    answer = UploadAnswer(added=[], rejected=[])
    async with request.form(
        max_files=settings.max_upload_files, max_fields=0, max_part_size=settings.max_upload_bytes
    ) as form:
        files = [item for item in form.getlist("files") if isinstance(item, UploadFile)]
        if not files:
            raise ApiError(400, "no file; send files as multipart/form-data in the field `files`", param="files")
        for file in files:
            name = file.filename or ""
            try:
                answer.added.append(await _add_file(state, knowledge, name, file.file, file.size or 0))
            except (ApiError, DataError) as error:
                if len(files) == 1:
                    raise
                status = error.status if isinstance(error, ApiError) else 422
                answer.rejected.append(Rejected(name=sanitize_filename(name), status=status, message=str(error)))
    return answer


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


async def _add_file(
    state: ServerState, knowledge: KnowledgeBase, name: str, content: BinaryIO, size: int
) -> AddedDocument:
    pool = state.writes if _is_small_text(name, size, state) else state.conversions
    addition = await pool.run(knowledge.add, name, content)
    card = DocumentCard.of(addition.document)
    return AddedDocument(**card.model_dump(), passages=addition.passages, replaced=addition.replaced)


def _is_small_text(name: str, size: int, state: ServerState) -> bool:
    """Whether a file is read and embedded so quickly that it need not wait behind conversions."""
    return size <= state.settings.small_upload_bytes and name.lower().endswith(PLAIN_TEXT)
