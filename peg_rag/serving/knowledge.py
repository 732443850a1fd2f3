"""`KnowledgeBase`: what the server does with a store, free of HTTP. Its methods block; the routes run them in threads.

Uploaded files are kept in the store's folder `uploads`, and the index is brought in step with that folder exactly as
`peg-rag index` does with any other: adding is a rename, deleting an unlink, and a crash in between is made good by the
next one. Files of other folders are listed and searched, but deleted where they lie.
"""

import base64
import binascii
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from peg_rag.answer import THRESHOLD, Answer, extract_answer
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DataError
from peg_rag.hits import Hit
from peg_rag.index import PEGIndex, Record
from peg_rag.ingest import SyncReport, sync
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import SUFFIXES
from peg_rag.retriever import Mode, Retriever
from peg_rag.serving.names import safe_name
from peg_rag.serving.problems import ApiError

UPLOADS = "uploads"
_UNFINISHED = ".upload-"  # hidden, so that a sync passes them over


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
        self.index, self.encoder = index, encoder
        self._store, self._model, self._timeout_s = store, model, conversion_timeout_s
        self._uploads = store / UPLOADS
        self._retriever = Retriever(index, encoder)
        if not index.read_only:
            for left_over in self._uploads.glob(_UNFINISHED + "*"):
                left_over.unlink(missing_ok=True)

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
        """Keep a file and index it; one of that name is replaced. Of a file that cannot be read nothing remains.

        Raises:
            ApiError: 415, a kind of file that is not read.
            DataError: the file cannot be read.
        """
        name = safe_name(name)
        if Path(name).suffix.lower() not in SUFFIXES:
            raise ApiError(415, f"{name!r} is of a kind that is not read; expected one of {', '.join(SUFFIXES)}")
        self._uploads.mkdir(parents=True, exist_ok=True)
        part = self._uploads / f"{_UNFINISHED}{secrets.token_hex(8)}{Path(name).suffix.lower()}"
        target = self._uploads / name
        try:
            _write(part, content)
            self._check(part, name)
            replaced = target.exists()
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        source = f"{UPLOADS}/{name}"
        failure = next((f for f in self._sync().failed if f.source == source), None)
        if failure is not None:
            target.unlink(missing_ok=True)
            raise DataError(failure.reason.replace(str(target), name))
        document, passages = self.document(_id_of(source))
        return Added(document, passages, replaced)

    def delete(self, document_id: str) -> Document:
        """Delete an uploaded document: its file and its passages.

        Raises:
            ApiError: 404, there is none of this id; 409, it was not uploaded.
        """
        document, _ = self.document(document_id)
        folder, _, name = document.source.partition("/")
        if folder != UPLOADS or name != safe_name(name):
            raise ApiError(
                409,
                f"{document.name!r} was indexed from a folder; delete the file there and run `peg-rag index` again",
            )
        (self._uploads / name).unlink(missing_ok=True)
        self._sync()
        return document

    def _check(self, part: Path, name: str) -> None:
        """Read a file where it can do no harm, whatever its kind, before it takes the place of another."""
        try:
            with ReaderProcess(timeout_s=self._timeout_s) as reader:
                reader.read(part)
        except DataError as error:
            raise DataError(str(error).replace(str(part), name)) from error

    def _sync(self) -> SyncReport:
        return sync(self._uploads, self.index, self.encoder, self._store, name=UPLOADS, model=self._model)

    def _document(self, source: str, first: Record) -> Document:
        folder, _, name = source.partition("/")
        uploaded = folder == UPLOADS and name == safe_name(name)
        size = None
        if uploaded:
            file = self._uploads / name
            size = file.stat().st_size if file.is_file() else None
        title = str(first.metadata.get("title") or "")
        return Document(_id_of(source), name if uploaded else source, source, title, uploaded, size)


def _write(file: Path, content: BinaryIO) -> None:
    with file.open("xb") as out:
        shutil.copyfileobj(content, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())


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
