"""`KnowledgeBase`: searching and changing a store, independent of HTTP. Its methods block; routes call them in threads.

Uploaded files are kept in the store's folder `uploads`; `peg_rag.serving.uploads` says how they are written. Files
indexed from other folders are listed and searched, but must be deleted in their own folder.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from peg_rag.answer import THRESHOLD, Answer, extract_answer
from peg_rag.answering.retrieval import retrieve_by_terms
from peg_rag.encoder import PEGEncoder
from peg_rag.feedback import FeedbackStore, Rating
from peg_rag.hits import Hit
from peg_rag.index import PEGIndex, Record
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.retriever import Mode, RerankChoice, Retriever, check_same_model
from peg_rag.serving.errors import ApiError
from peg_rag.serving.filenames import sanitize_filename
from peg_rag.serving.originals import Original, OriginalFiles
from peg_rag.serving.uploads import UPLOADS, OnStep, UploadFolder, ignore_step

__all__ = ["UPLOADS", "Addition", "Document", "KnowledgeBase", "Passage"]


@dataclass(frozen=True, slots=True)
class Document:
    """A file in the store.

    Attributes:
        id: opaque, URL-safe.
        name: the name to show: `manual.pdf`, or `folder/manual.pdf` for a file that was not uploaded.
        source: the `source` in the metadata of its passages.
        title: the title of the first passage, or empty.
        uploaded: whether it was uploaded, and so can be deleted by the server.
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
    """A passage in its context: its document, and the texts of the passages before and after it."""

    record: Record
    document: Document | None
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Addition:
    """The result of adding a file: its document, the number of its passages, and whether it replaced another."""

    document: Document
    passages: int
    replaced: bool


class KnowledgeBase:
    """A store: its index, the encoder of its vectors, and the folder of its uploads.

    Args:
        store: the folder of the index.
        index: the index in that folder; `read_only` if nothing may be written.
        model: the name or folder of the model, saved in the store for the next time it is opened.
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
        check_same_model(index, encoder)
        self._originals = OriginalFiles(store)
        self.feedback = FeedbackStore(store)
        if not index.read_only:
            self._uploads.recover()

    def close(self) -> None:
        """Stop the processes that read uploads. The caller closes the index and the encoder."""
        self._uploads.close()

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        k: int,
        mode: Mode,
        where: Mapping[str, Any] | None = None,
        rerank: RerankChoice = "auto",
        vectors: NDArray[np.float32] | None = None,
    ) -> list[Hit]:
        """The k best passages. `vectors`: the query's (1, dimension), where it is encoded already.

        Raises:
            InvalidInput: `mini` in another mode than hybrid, or for another model than peg-mini.
        """
        retriever = Retriever(self.index, self.encoder, rerank, mode=mode)
        return retriever.retrieve_batch([query], k=k, where=where or {}, vectors=vectors)[0]

    def search_by_terms(
        self, question: str, hits: list[Hit], *, mode: Mode, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Further passages that are found by the files' own terms for what the question says."""
        return retrieve_by_terms(question, hits, Retriever(self.index, self.encoder, mode=mode), where)

    def answer(self, question: str, hits: list[Hit], *, threshold: float | None, sentences: int) -> Answer:
        """Sentences of the hits that answer the question, cited; none if the documents do not answer it."""
        limit = THRESHOLD if threshold is None else threshold
        return extract_answer(
            question, hits, self.encoder, threshold=limit, max_sentences=sentences, max_hits=len(hits)
        )

    # -- listing ------------------------------------------------------------------------------------------------------

    def list_documents(self) -> list[Document]:
        """Every document, the newest first."""
        firsts = self.index.get(where={"chunk": 0})
        return [
            self._create_document(str(first.metadata["source"]), first)
            for first in reversed(firsts)
            if "source" in first.metadata
        ]

    def get_document(self, document_id: str) -> tuple[Document, int]:
        """A document and the number of its passages.

        Raises:
            ApiError: 404, there is no such document.
        """
        source = _decode_id(document_id)
        first = self.index.get(where={"source": source, "chunk": 0}, limit=1)
        if not first:
            raise _document_not_found()
        return self._create_document(source, first[0]), self.index.count({"source": source})

    def list_passages(self, document_id: str, *, offset: int, limit: int) -> list[Record]:
        """A document's passages in their order.

        Raises:
            ApiError: 404, there is no such document.
        """
        source = _decode_id(document_id)
        records = self.index.get(where={"source": source, "chunk": {"$gte": offset, "$lt": offset + limit}})
        if not records:
            self.get_document(document_id)  # raises if there is none; else the offset is past the end
        return sorted(records, key=lambda record: int(record.metadata["chunk"]))

    def get_original(self, document_id: str) -> Original:
        """The file that a document was read from.

        Raises:
            ApiError: 404, there is no such document, or its file is gone; 409, the file has changed since.
        """
        document, _ = self.get_document(document_id)
        return self._originals.find(document.source, self._uploads.path_of(document.source))

    def get_passage(self, passage_id: str) -> Passage:
        """The passage that a citation refers to.

        Raises:
            ApiError: 404, there is no such passage.
        """
        records = self.index.get([passage_id])
        if not records:
            raise ApiError(404, "there is no such passage; its document may have been changed or deleted since")
        record = records[0]
        source = record.metadata.get("source")
        number = record.metadata.get("chunk")
        if not isinstance(source, str) or not isinstance(number, int):
            return Passage(record, None, "", "")
        neighbours = self.index.get(where={"source": source, "chunk": {"$in": [0, number - 1, number + 1]}})
        by_number = {neighbour.metadata["chunk"]: neighbour for neighbour in [*neighbours, record]}
        texts = {n: neighbour.text for n, neighbour in by_number.items()}
        document = self._create_document(source, by_number.get(0, record))
        return Passage(record, document, texts.get(number - 1, ""), texts.get(number + 1, ""))

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, name: str, content: BinaryIO, on_step: OnStep = ignore_step) -> Addition:
        """Store and index a file, in place of one of the same name. An error changes nothing.

        Concurrent calls read and embed their files in parallel, and write to the index one after the other.

        Args:
            on_step: told how far the work is; what it raises ends it.

        Raises:
            ApiError: 415, unsupported file type.
            DataError: the file cannot be read, or the index does not accept its content.
            IndexBusy: another process writes to the store.
        """
        name = sanitize_filename(name)
        if Path(name).suffix.lower() not in SUFFIXES:
            raise ApiError(415, f"{name!r} is of an unsupported type; expected one of {', '.join(SUFFIXES)}")
        upload = self._uploads.stage(name, content, on_step)
        try:
            replaced = self._uploads.commit(upload)
        finally:
            self._uploads.discard(upload)
        first = upload.chunks[0]
        document = self._create_document(upload.source, Record(first.id, first.text, first.metadata))
        return Addition(document, len(upload.chunks), replaced)

    def rate(self, rating: Rating) -> bool:
        """Keep a reader's rating of an answer, in place of an earlier one with its id.

        Returns:
            Whether there was an earlier one.

        Raises:
            ApiError: 400, one of its passages is not in the store; 409, the store is open for reading only.
            IndexBusy: another process holds the ratings for long.
        """
        if self.index.read_only:
            raise ApiError(409, "the store is open for reading only, so no rating can be kept", code="read_only")
        sources = {
            record.id: str(record.metadata.get("source") or "")
            for record in self.index.get([passage.passage_id for passage in rating.passages])
        }
        unknown = [passage.passage_id for passage in rating.passages if passage.passage_id not in sources]
        if unknown:
            raise ApiError(400, f"there is no passage {unknown[0]!r}; it may have been deleted since", param="passages")
        passages = tuple(replace(passage, source=sources[passage.passage_id]) for passage in rating.passages)
        return self.feedback.put(replace(rating, passages=passages))

    def delete(self, document_id: str) -> Document:
        """Delete an uploaded document, its file and its passages. An error changes nothing.

        Raises:
            ApiError: 404, there is no such document; 409, it was not uploaded.
            IndexBusy: another process writes to the store.
        """
        document, _ = self.get_document(document_id)
        if not self._uploads.delete(document.source):
            self.get_document(document_id)  # another request may have deleted it meanwhile
            raise ApiError(
                409,
                f"{document.name!r} was indexed from a folder; delete the file there and run `peg-rag index` again",
            )
        return document

    def _create_document(self, source: str, first: Record) -> Document:
        name = self._uploads.name_of(source)
        title = str(first.metadata.get("title") or "")
        size = self._uploads.size_of(name) if name else None
        return Document(encode_id(source), name or source, source, title, name is not None, size)


def encode_id(source: str) -> str:
    """The id of a document: its source in unpadded URL-safe Base64."""
    return base64.urlsafe_b64encode(source.encode()).decode().rstrip("=")


def _decode_id(document_id: str) -> str:
    try:
        padded = document_id + "=" * (-len(document_id) % 4)
        source = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _document_not_found() from error
    if "\x00" in source or not source:
        raise _document_not_found()
    return source


def _document_not_found() -> ApiError:
    return ApiError(404, "there is no such document")
