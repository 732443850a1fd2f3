"""A store as Model Context Protocol tools, so that an assistant on a desk or a deep-research service can read it.

`search` and `fetch` have the form that deep-research clients ask of every server: a search answers with ids, titles
and links, a fetch with the text behind an id. `ask` answers by quoting, or says that the documents do not. Nothing is
written: the tools are marked read-only, and the store is opened so.

A search costs one encoding and one look into the index; a fetch reads at most 23 passages. Needs the `mcp` extra.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self
from urllib.parse import quote, urlsplit

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from peg_rag import __version__
from peg_rag.answer import MAX_HITS, THRESHOLD, extract_answer
from peg_rag.answering.retrieval import retrieve_by_terms
from peg_rag.errors import InvalidInput, PegRagError
from peg_rag.hits import Hit
from peg_rag.index import Record
from peg_rag.ingest import file_of
from peg_rag.passages import place_of
from peg_rag.retriever import Encoder, Mode, Retriever
from peg_rag.stores import Store

Passage = Hit | Record

PATH = "/mcp"
MAX_QUERY_CHARACTERS = 10_000
_AROUND = 10  # passages before and after the one that is fetched
_TITLE_CHARACTERS = 80
_DRAIN_TIMEOUT_S = 10
_BACKLOG = 512
_INTERNAL = ("version", "start", "chunk", "boxes")  # of the index, and of no use to a reader
_READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_INSTRUCTIONS = (
    "The documents of one knowledge base, mostly Chinese. Ask in the language of the documents. `search` finds "
    "passages, `fetch` reads one with what stands around it, `ask` quotes the sentences that answer a question. "
    "Cite what you use by its title and url."
)


class SearchResult(BaseModel):
    """A passage that may answer the query."""

    id: str = Field(description="For `fetch`.")
    title: str = Field(description="File, headings, and page, sheet or row.")
    url: str = Field(description="For citations.")


class SearchResults(BaseModel):
    """What a search found, best first."""

    results: list[SearchResult]


class FetchedDocument(BaseModel):
    """A passage where it stands."""

    id: str
    title: str
    text: str = Field(description="The passage with those before and after it; the whole document where it is short.")
    url: str
    metadata: dict[str, Any] = Field(
        description="`passage`: the passage itself. `source`, `title`, `page`, `sheet`, `row` and the fields of a "
        "record, where known. `previous` and `next`: ids that read on where the text ends."
    )


class QuotedSentence(BaseModel):
    """A sentence of the documents, word for word."""

    text: str
    citation: int = Field(description="The number of its source.")


class NumberedSource(SearchResult):
    """A passage that the answer cites."""

    number: int


class AskAnswer(BaseModel):
    """An answer quoted from the documents."""

    question: str
    found: bool = Field(description="False where the documents do not answer the question.")
    answer: str = Field(description="The sentences with the numbers of their sources.")
    confidence: float = Field(description="0 to 1, how likely the documents answer the question.")
    sentences: list[QuotedSentence]
    sources: list[NumberedSource]


class Links:
    """Where a reader finds a passage.

    A link of the document's own (`url` in its metadata) comes first, then `base_url` followed by the source, then the
    file itself where `store` knows it. Failing these, a `peg-rag:` name that tells passages apart and opens nothing.

    Args:
        store: the folder of the index; None where readers sit at other machines, which should not learn its paths.
        base_url: where the documents are published.

    Raises:
        InvalidInput: `base_url` is no http or https address.
    """

    def __init__(self, store: Path | None = None, base_url: str | None = None) -> None:
        if base_url is not None and not _is_web_address(base_url):
            raise InvalidInput(f"base URL {base_url!r}: an address such as https://docs.example.org/ is expected")
        self._store = store
        self._base_url = base_url.rstrip("/") if base_url else None

    def url_of(self, passage: Passage) -> str:
        """The link of a passage; a page is its fragment, as PDF viewers take it."""
        metadata = passage.metadata
        url = metadata.get("url")
        if isinstance(url, str) and _is_web_address(url):
            return url
        base = self._document_url(metadata.get("source"))
        if base is None:
            return f"peg-rag:passage/{quote(passage.id, safe='')}"
        page = metadata.get("page")
        return f"{base}#page={page}" if page else base

    def _document_url(self, source: Any) -> str | None:
        if not isinstance(source, str):
            return None
        if self._base_url:
            return f"{self._base_url}/{quote(source)}"
        file = file_of(self._store, source) if self._store else None
        return file.as_uri() if file else None


class KnowledgeReader:
    """What the tools do, free of the protocol.

    Args:
        index: opened with `read_only=True`.
        encoder: of the model that the index was made with.
        links: None for links of the documents' own only.
        k: results of a search.
        mode: hybrid, dense or lexical.
        threshold: least confidence for an answer; None for the calibrated one.

    Raises:
        IndexMismatch: the index was made with another model.
        InvalidInput: an unknown mode.
    """

    def __init__(
        self,
        index: Store,
        encoder: Encoder,
        links: Links | None = None,
        *,
        k: int = 10,
        mode: Mode = "hybrid",
        threshold: float | None = None,
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._links = links or Links()
        self._retriever = Retriever(index, encoder, k=k, mode=mode)
        self._threshold = THRESHOLD if threshold is None else threshold

    def search(self, query: str) -> SearchResults:
        """The passages nearest to a query.

        Raises:
            InvalidInput: the query is blank.
        """
        hits = self._retriever.retrieve(query)
        return SearchResults(results=[SearchResult(**self._make_reference(hit)) for hit in hits])

    def fetch(self, passage_id: str) -> FetchedDocument:
        """A passage with those around it.

        Raises:
            InvalidInput: there is no passage of this id.
        """
        records = self._index.get([passage_id])
        if not records:
            raise InvalidInput(
                f"there is no passage {passage_id!r}; its document may have changed since: search again, and fetch "
                "an id from the results"
            )
        passage = records[0]
        neighbours = self._read_neighbours(passage)
        number = _chunk_number(passage)
        inner = [other for other in neighbours if abs(_chunk_number(other) - number) <= _AROUND]
        metadata = {name: value for name, value in passage.metadata.items() if name not in _INTERNAL}
        metadata["passage"] = passage.text
        if neighbours[0] is not inner[0]:
            metadata["previous"] = neighbours[0].id
        if neighbours[-1] is not inner[-1]:
            metadata["next"] = neighbours[-1].id
        return FetchedDocument(**self._make_reference(passage), text=join_passages(inner), metadata=metadata)

    def ask(self, question: str) -> AskAnswer:
        """Sentences of the documents that answer a question.

        Raises:
            InvalidInput: the question is blank.
        """
        hits = self._retriever.retrieve(question, k=MAX_HITS)
        hits += retrieve_by_terms(question, hits, self._retriever)
        answer = extract_answer(question, hits, self._encoder, threshold=self._threshold, max_hits=len(hits))
        return AskAnswer(
            question=question,
            found=answer.found,
            answer=answer.text,
            confidence=answer.confidence,
            sentences=[QuotedSentence(text=s.text, citation=s.citation) for s in answer.sentences],
            sources=[
                NumberedSource(**self._make_reference(hit), number=number)
                for number, hit in enumerate(answer.sources, start=1)
            ],
        )

    def _make_reference(self, passage: Passage) -> dict[str, str]:
        return {"id": passage.id, "title": title_of(passage), "url": self._links.url_of(passage)}

    def _read_neighbours(self, passage: Record) -> list[Record]:
        """The passages of the same version of the document, one further on each side than is shown."""
        metadata = passage.metadata
        number = metadata.get("chunk")
        if not isinstance(metadata.get("source"), str) or not isinstance(number, int):
            return [passage]
        where: dict[str, Any] = {
            "source": metadata["source"],
            "chunk": {"$gte": number - _AROUND - 1, "$lte": number + _AROUND + 1},
        }
        if "version" in metadata:
            where["version"] = metadata["version"]
        records = self._index.get(where=where)
        # Between two reads the document may have been replaced; the passage itself is at hand.
        by_number = {_chunk_number(record): record for record in [*records, passage]}
        return [by_number[key] for key in sorted(by_number)]


def create_server(reader: KnowledgeReader, name: str = "peg-rag") -> MCPServer[Any]:
    """An MCP server with the tools `search`, `fetch` and `ask`.

    An error of ours reaches the client as a failed call with its type and message; of any other, the client learns
    only that the tool failed, and the log has the rest.
    """
    server: MCPServer[Any] = MCPServer(
        name, instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING", subscriptions=False
    )
    text = Field(min_length=1, max_length=MAX_QUERY_CHARACTERS, pattern=r"\S")

    @server.tool(title="Search the documents", annotations=_READ_ONLY)
    def search(query: Annotated[str, text]) -> SearchResults:
        """Find passages of the documents, by meaning and by words. Read one with `fetch`."""
        with _known_errors():
            return reader.search(query)

    @server.tool(title="Read a passage", annotations=_READ_ONLY)
    def fetch(id: Annotated[str, Field(min_length=1, max_length=1000)]) -> FetchedDocument:  # noqa: A002
        """Read a passage that `search` found, with what stands before and after it."""
        with _known_errors():
            return reader.fetch(id)

    @server.tool(title="Ask the documents", annotations=_READ_ONLY)
    def ask(question: Annotated[str, text]) -> AskAnswer:
        """Answer a question with sentences quoted from the documents, each with its source; or say "not found"."""
        with _known_errors():
            return reader.ask(question)

    return server


@contextmanager
def _known_errors() -> Iterator[None]:
    try:
        yield
    except PegRagError as error:
        raise ToolError(f"{type(error).__name__}: {error}") from error


def title_of(passage: Passage) -> str:
    """File, headings, and page, sheet or row; the beginning of a text that has none of these."""
    first_line = passage.text.strip().partition("\n")[0]
    return place_of(passage.metadata) or first_line[:_TITLE_CHARACTERS] or passage.id


def join_passages(passages: Sequence[Passage]) -> str:
    """The passages of one document as one text: a heading once, and once what two neighbours both hold."""
    text = ""
    previous: _Piece | None = None
    for passage in passages:
        piece = _Piece.of(passage)
        text += piece.introduced() if previous is None else piece.after(previous)
        previous = piece
    return text


@dataclass(frozen=True, slots=True)
class _Piece:
    """A passage as a part of its document.

    Attributes:
        heading: of the section it stands in, as the passage's first line has it; may be empty.
        text: the rest of the passage.
        start: offset of the text in the document, in characters; None where it is not known.
    """

    heading: str
    text: str
    start: int | None

    @classmethod
    def of(cls, passage: Passage) -> Self:
        title = str(passage.metadata.get("title") or "")
        start = passage.metadata.get("start")
        first, separator, body = passage.text.partition("\n")
        titled = bool(separator) and first in title
        return cls(first if titled else "", body if titled else passage.text, start if isinstance(start, int) else None)

    def introduced(self) -> str:
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    def after(self, previous: Self) -> str:
        """What this piece adds to the text that ends with the previous one."""
        if self.heading != previous.heading:
            return f"\n\n{self.introduced()}"
        repeated = self._shared_text(previous)
        return f"\n{self.text}" if repeated is None else self.text[len(repeated) :]

    def _shared_text(self, previous: Self) -> str | None:
        """What both pieces hold, empty where one begins at the other's end; None where they do not touch."""
        if self.start is None or previous.start is None:
            return None
        offset = self.start - previous.start
        if not 0 <= offset <= len(previous.text):
            return None
        shared = previous.text[offset:]
        return shared if self.text.startswith(shared) else None


def _chunk_number(passage: Passage) -> int:
    number = passage.metadata.get("chunk")
    return number if isinstance(number, int) else 0


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


class Keys(Protocol):
    """Tells whether a presented key is one of those that may read."""

    def accept(self, presented: str, /) -> bool: ...


class _KeyCheck:
    """Refuses requests that do not carry a key, as `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(Headers(scope=scope)):
            refusal = JSONResponse(
                {"error": "this server needs a key; send it as: Authorization: Bearer KEY"},
                401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, headers: Mapping[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._keys.accept(key.strip())


def create_http_app(
    server: MCPServer[Any], *, host: str = "127.0.0.1", allowed_hosts: Sequence[str] = (), keys: Keys | None = None
) -> ASGIApp:
    """The server over streamable HTTP, at `/mcp`. It keeps no sessions, so any number may stand behind a balancer.

    Args:
        host: the address that will be listened on. On a loopback address only this machine's own names are answered,
            so that no web page can reach the server under a name of its own.
        allowed_hosts: the names that are answered instead; `*` is any.
        keys: who may read; None for everybody.
    """
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        host=host,
        transport_security=_host_check(allowed_hosts),
    )
    return app if keys is None else _KeyCheck(app, keys)


def _host_check(names: Sequence[str]) -> TransportSecuritySettings | None:
    if not names:
        return None  # as the listening address has it
    if "*" in names:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    with_ports = [form for name in names for form in (name, f"{name}:*")]
    origins = [f"{scheme}://{form}" for scheme in ("http", "https") for form in with_ports]
    return TransportSecuritySettings(allowed_hosts=with_ports, allowed_origins=origins)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 for any free one.

    Raises:
        PegRagError: the address is taken, or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise PegRagError(f"cannot listen on {host}, port {port}: {error.strerror}; give another --port") from error


def serve_http(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; requests in flight are then finished first."""
    import uvicorn

    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_TIMEOUT_S,
    )
    uvicorn.Server(config).run(sockets=[listening])
