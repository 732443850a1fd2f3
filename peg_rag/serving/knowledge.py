"""`KnowledgeBase`: what the server does with a store, free of HTTP. Its methods block; the routes run them in threads.

Uploaded files are kept in the store's folder `uploads`; `peg_rag.serving.uploads` says how they are written. Files of
other folders are listed and searched, but deleted where they lie.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from peg_rag.answer import THRESHOLD, Answer, extract_answer
from peg_rag.encoder import PEGEncoder
from peg_rag.hits import Hit
from peg_rag.index import PEGIndex, Record
from peg_rag.readers import SUFFIXES
from peg_rag.retriever import Mode, Retriever
from peg_rag.serving.names import safe_name
from peg_rag.serving.problems import ApiError
from peg_rag.serving.uploads import UPLOADS, UploadFolder

__all__ = ["UPLOADS", "Added", "Document", "KnowledgeBase", "Passage"]


@dataclass(frozen=True, slots=True)
class Document:
    """A file of the store.

    Attributes:
        id: opaque, safe in a URL.
        name: as a reader knows it: `manual.pdf`, or `folder/manual.pdf` for a file that was not uploaded.
        source: as the passages' metadata has it.
        title: the first passage's, where it has one.
        uploaded: whether it came through the server, and so can be deleted here.
        size_bytes: of an uploaded file.
    """

    id: str
    name: str
    source: str
    title: str
    uploaded: bool
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage where it stands: its document, and the texts before and after it there."""

    record: Record
    document: Document | None
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Added:
    """What became of an upload."""

    document: Document
    passages: int
    replaced: bool


class KnowledgeBase:
    """A store, the encoder of its vectors, and the folder of its uploads.

    Args:
        store: the folder of the index.
        index: opened there; `read_only` where nothing may be written.
        model: remembered with the store, for whoever opens it next.
    """

    def __init__(
        self,
        store: Path,
        index: PEGIndex,
        encoder: PEGEncoder,
        *,
        model: str | None = None,
        conversion_timeout_s: float = 60.0,
    ) -> None:
        self.index = index
        self.encoder = encoder
        self._uploads = UploadFolder(store, index, encoder, model, conversion_timeout_s)
        self._retriever = Retriever(index, encoder)
        if not index.read_only:
            self._uploads.recover()

    def close(self) -> None:
        """End the processes that read uploads; the index and the encoder stay the caller's to close."""
        self._uploads.close()

    # -- asking -------------------------------------------------------------------------------------------------------

    def search(self, query: str, *, k: int, mode: Mode, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """The k best passages."""
        return self._retriever.retrieve(query, k=k, mode=mode, where=where or {})

    def answer(self, question: str, hits: list[Hit], *, threshold: float | None, sentences: int) -> Answer:
        """Sentences of the hits that answer the question, cited; none where the documents do not say."""
        limit = THRESHOLD if threshold is None else threshold
        return extract_answer(
            question, hits, self.encoder, threshold=limit, max_sentences=sentences, max_hits=len(hits)
        )

    # -- looking ------------------------------------------------------------------------------------------------------

    def documents(self) -> list[Document]:
        """Every document, the newest first."""
        firsts = self.index.get(where={"chunk": 0})
        known = [(str(first.metadata["source"]), first) for first in firsts if "source" in first.metadata]
        return [self._document(source, first) for source, first in reversed(known)]

    def document(self, document_id: str) -> tuple[Document, int]:
        """A document and the number of its passages.

        Raises:
            ApiError: 404, there is none of this id.
        """
        source = _source_of(document_id)
        first = self.index.get(where={"source": source, "chunk": 0}, limit=1)
        if not first:
            raise _no_document()
        return self._document(source, first[0]), self.index.count({"source": source})

    def passages(self, document_id: str, *, offset: int, limit: int) -> list[Record]:
        """A document's passages in their order.

        Raises:
            ApiError: 404, there is none of this id.
        """
        wanted = {"source": _source_of(document_id), "chunk": {"$gte": offset, "$lt": offset + limit}}
        found = self.index.get(where=wanted)
        if not found:
            self.document(document_id)
        return sorted(found, key=lambda record: int(record.metadata["chunk"]))

    def passage(self, passage_id: str) -> Passage:
        """A passage, as a citation names it.

        Raises:
            ApiError: 404, there is none of this id.
        """
        found = self.index.get([passage_id])
        if not found:
            raise ApiError(404, "there is no such passage; its document may have been changed or deleted since")
        source, number = found[0].metadata.get("source"), found[0].metadata.get("chunk")
        if not isinstance(source, str) or not isinstance(number, int):
            return Passage(found[0], None, "", "")
        around = self.index.get(where={"source": source, "chunk": {"$in": [0, number - 1, number + 1]}})
        by_number = {record.metadata["chunk"]: record for record in [*around, found[0]]}
        texts = [by_number[n].text if n in by_number else "" for n in (number - 1, number + 1)]
        return Passage(found[0], self._document(source, by_number.get(0, found[0])), *texts)

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, name: str, content: BinaryIO) -> Added:
        """Keep a file and index it; one of that name is replaced. After an error everything is as it was.

        Several may be added at once: they are read and embedded side by side, and stored one after the other.

        Raises:
            ApiError: 415, a kind of file that is not read.
            DataError: the file cannot be read, or holds what the index does not take.
            IndexBusy: another process writes to the store.
        """
        name = safe_name(name)
        if Path(name).suffix.lower() not in SUFFIXES:
            raise ApiError(415, f"{name!r} is of a kind that is not read; expected one of {', '.join(SUFFIXES)}")
        upload = self._uploads.stage(name, content)
        try:
            replaced = self._uploads.commit(upload)
        finally:
            self._uploads.discard(upload)
        first = upload.chunks[0]
        document = self._document(upload.source, Record(first.id, first.text, first.metadata))
        return Added(document, len(upload.chunks), replaced)

    def delete(self, document_id: str) -> Document:
        """Delete an uploaded document: its file and its passages. After an error everything is as it was.

        Raises:
            ApiError: 404, there is none of this id; 409, it was not uploaded.
            IndexBusy: another process writes to the store.
        """
        document, _ = self.document(document_id)
        if not self._uploads.delete(document.source):
            self.document(document_id)  # another request may have deleted it meanwhile
            raise ApiError(
                409,
                f"{document.name!r} was indexed from a folder; delete the file there and run `peg-rag index` again",
            )
        return document

    def _document(self, source: str, first: Record) -> Document:
        name = self._uploads.name_of(source)
        title = str(first.metadata.get("title") or "")
        size = self._uploads.size_of(name) if name else None
        return Document(_id_of(source), name or source, source, title, name is not None, size)


def _id_of(source: str) -> str:
    return base64.urlsafe_b64encode(source.encode()).decode().rstrip("=")


def _source_of(document_id: str) -> str:
    try:
        padded = document_id + "=" * (-len(document_id) % 4)
        source = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _no_document() from error
    if "\x00" in source or not source:
        raise _no_document()
    return source


def _no_document() -> ApiError:
    return ApiError(404, "there is no such document")
