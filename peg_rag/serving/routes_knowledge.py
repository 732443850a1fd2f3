"""Searching, and the documents of the store."""

import io
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import UploadFile

from peg_rag.errors import DataError
from peg_rag.serving.access import Parts, may_read, may_write
from peg_rag.serving.knowledge import Added, KnowledgeBase
from peg_rag.serving.names import safe_name
from peg_rag.serving.problems import ApiError
from peg_rag.serving.schemas import (
    AddedDocument,
    Deleted,
    DocumentCard,
    DocumentDetail,
    DocumentList,
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

_PLAIN = (".txt", ".md", ".markdown", ".csv", ".tsv", ".jsonl")  # read without a converter
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


# -- searching --------------------------------------------------------------------------------------------------------


@readers.post("/search", tags=["search"])
async def search(request: SearchRequest, parts: Parts, knowledge: Knowledge) -> SearchAnswer:
    """The passages nearest to a query, best first, with their component scores."""
    hits = await parts.searches.run(
        knowledge.search, request.query, k=request.k, mode=request.mode, where=request.where
    )
    return SearchAnswer.of(request.query, hits, request.mode)


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
                added = await _add(parts, knowledge, file.filename or "", file.file, file.size or 0)
                answer.added.append(added)
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
    content = request.text.encode()
    return await _add(parts, knowledge, name, io.BytesIO(content), len(content))


@writers.delete("/documents/{document_id}", tags=["documents"])
async def delete_document(document_id: str, parts: Parts, knowledge: Knowledge) -> Deleted:
    """Delete an uploaded document and its passages."""
    document = await parts.writes.run(knowledge.delete, document_id)
    return Deleted(id=document.id)


async def _add(parts: State, knowledge: KnowledgeBase, name: str, content: BinaryIO, size: int) -> AddedDocument:
    gate = parts.writes if _is_small_text(name, size, parts) else parts.conversions
    added: Added = await gate.run(knowledge.add, name, content)
    card: dict[str, Any] = DocumentCard.of(added.document).model_dump()
    return AddedDocument(**card, passages=added.passages, replaced=added.replaced)


def _is_small_text(name: str, size: int, parts: State) -> bool:
    """Whether a file is read and embedded quickly enough to be taken among the deletions."""
    return size <= parts.settings.small_upload_bytes and name.lower().endswith(_PLAIN)
