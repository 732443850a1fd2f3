"""What travels: requests, checked strictly and with unknown fields refused, and answers. OpenAPI is made of these."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic_core import PydanticCustomError

from peg_rag.answer import CitedSentence
from peg_rag.hits import Hit
from peg_rag.index import Record
from peg_rag.serving import knowledge as kb
from peg_rag.serving.matches import Matcher

MAX_QUERY_CHARACTERS = 10_000
MAX_FILTER_CHARACTERS = 8_192
MAX_K = 100


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("lone_surrogate", "the text holds a lone surrogate and is not Unicode") from error
    return text


def _filter(where: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        size = len(_unicode(json.dumps(where, ensure_ascii=False, allow_nan=False)))
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("filter", "the filter holds a number that is not finite, or is too deep") from error
    if size > MAX_FILTER_CHARACTERS:
        raise PydanticCustomError("filter", f"the filter is longer than {MAX_FILTER_CHARACTERS:,} characters")
    return where


Text = Annotated[str, AfterValidator(_unicode)]
Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS, pattern=r"\S"), AfterValidator(_unicode)]
Filter = Annotated[dict[str, JsonValue], AfterValidator(_filter)]
SearchMode = Literal["hybrid", "dense", "lexical", "mmr"]
AnswerKind = Literal["extractive", "generated"]
InputType = Literal["document", "query"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# -- embeddings -------------------------------------------------------------------------------------------------------


class EmbeddingRequest(_Request):
    """As OpenAI's, with `input_type` besides: queries and documents may be embedded differently."""

    input: Text | Annotated[list[Text], Field(min_length=1)] = Field(description="One text, or a list of texts.")
    model: str = Field(max_length=200, description="The name of the model that is served; see /v1/models.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: little-endian 32-bit floats, a quarter of the size."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep this many leading dimensions, brought to length 1 again."
    )
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    input_type: InputType = Field("document", description="What the texts are.")

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int | list):
            raise PydanticCustomError(
                "token_array",
                "arrays of tokens are those of another model's tokenizer; send strings "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            )
        return value

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens as the model sees them, after truncation."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """As OpenAI's, with what a client of this server needs besides."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "peg-rag"
    dimension: int
    max_tokens: int
    identity: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


# -- searching --------------------------------------------------------------------------------------------------------


class SearchRequest(_Request):
    query: Query
    k: int = Field(10, ge=1, le=MAX_K, description="Passages wanted.")
    mode: SearchMode = "hybrid"
    where: Filter | None = Field(None, description='A filter on the metadata, such as `{"page": {"$gte": 3}}`.')


class FoundPassage(BaseModel):
    """A passage that was found. `score` is what the list is ordered by; `scores` are its components."""

    id: str
    text: str
    score: float
    scores: dict[str, float]
    matches: list[tuple[int, int]] = Field(
        description="Where words of the question stand in the text: [start, end), in characters."
    )
    metadata: dict[str, Any]

    @classmethod
    def of(cls, hit: Hit, matcher: Matcher) -> "FoundPassage":
        return cls(
            id=hit.id,
            text=hit.text,
            score=hit.score,
            scores=dict(hit.scores),
            matches=matcher.spans(hit.text),
            metadata=dict(hit.metadata),
        )


class SearchAnswer(BaseModel):
    hits: list[FoundPassage]
    mode: SearchMode

    @classmethod
    def of(cls, query: str, hits: Sequence[Hit], mode: SearchMode) -> "SearchAnswer":
        matcher = Matcher(query)
        return cls(hits=[FoundPassage.of(hit, matcher) for hit in hits], mode=mode)


class AskRequest(_Request):
    question: Query
    k: int = Field(5, ge=1, le=20, description="Passages to read.")
    mode: SearchMode = "hybrid"
    where: Filter | None = None
    threshold: float | None = Field(
        None, ge=0, le=1, description="Least confidence for an extractive answer; None for the calibrated one."
    )
    sentences: int = Field(3, ge=1, le=10, description="Most sentences to quote.")
    answers: AnswerKind | None = Field(
        None,
        description="`extractive`: sentences of the documents; `generated`: written by the server's language model. "
        "None: generated where the server has a language model, else extractive.",
    )
    stream: bool = Field(True, description="Server-sent events; false for one JSON object.")


class AnswerSentence(BaseModel):
    """A sentence of a passage. `citation` counts the cited passages from 1, in the order they are first cited."""

    text: str
    citation: int
    passage_id: str
    start: int = Field(description="Offset in the passage's text, in characters.")
    score: float

    @classmethod
    def of(cls, sentence: CitedSentence, sources: tuple[Hit, ...]) -> "AnswerSentence":
        return cls(
            text=sentence.text,
            citation=sentence.citation,
            passage_id=sources[sentence.citation - 1].id,
            start=sentence.start,
            score=sentence.score,
        )


class Citation(BaseModel):
    number: int
    passage_id: str
    source: str
    title: str
    page: int | None

    @classmethod
    def of(cls, number: int, hit: Hit) -> "Citation":
        known: Mapping[str, Any] = hit.metadata
        page = known.get("page")
        return cls(
            number=number,
            passage_id=hit.id,
            source=str(known.get("source") or hit.id),
            title=str(known.get("title") or ""),
            page=page if isinstance(page, int) else None,
        )


class AnswerOpening(SearchAnswer):
    """What opens an answer: the passages that were found, and who answers from them."""

    kind: AnswerKind
    model: str | None = Field(description="The language model, of a generated answer.")


class AnswerDelta(BaseModel):
    """A piece of a generated answer. A number in square brackets cites the passage of that rank, from 1."""

    text: str


class AnswerEnd(BaseModel):
    """What closes an answer."""

    kind: AnswerKind = Field(
        description="`extractive`: the sentences are the documents' own; `generated`: a language model wrote the text."
    )
    model: str | None = Field(description="The language model, of a generated answer.")
    found: bool = Field(description="False: the documents do not say.")
    confidence: float | None = Field(description="Of an extractive answer, 0 to 1; null for a generated one.")
    complete: bool = Field(description="False: the language model stopped at its limit of length.")
    citations: list[Citation]
    text: str = Field(description="The whole answer with citation marks, or that none was found.")


class AskAnswer(AnswerEnd):
    hits: list[FoundPassage]
    sentences: list[AnswerSentence] = Field(description="Of an extractive answer.")


# -- documents --------------------------------------------------------------------------------------------------------


class DocumentCard(BaseModel):
    id: str
    name: str
    source: str = Field(description="The documents' `source` in the passages' metadata; use it in filters.")
    title: str
    uploaded: bool = Field(description="Whether it came through this server, and can be deleted through it.")
    size_bytes: int | None

    @classmethod
    def of(cls, document: kb.Document) -> "DocumentCard":
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


class NewText(_Request):
    name: str = Field(min_length=1, max_length=200, description="A file name; `.txt` is added where no kind is given.")
    text: Text = Field(min_length=1)


class AddedDocument(DocumentDetail):
    replaced: bool = Field(description="Whether a document of this name was there before.")


class Rejected(BaseModel):
    """A file of an upload that was not taken."""

    name: str
    status: int
    message: str


class UploadAnswer(BaseModel):
    added: list[AddedDocument]
    rejected: list[Rejected]


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


# -- the server -------------------------------------------------------------------------------------------------------


class LanguageModelCard(BaseModel):
    """Who writes generated answers, and where questions and passages are sent for that."""

    name: str
    host: str
    local: bool = Field(description="The endpoint is the server's own machine.")


class ServerInfo(BaseModel):
    """What a page needs to know before it draws itself."""

    version: str
    model: str
    dimension: int
    passages: int | None = Field(description="In the store; null where the server has none.")
    writable: bool = Field(description="Whether documents can be added, given a key.")
    private: bool = Field(description="Whether reading needs a key too.")
    suffixes: list[str] = Field(description="Kinds of files that can be uploaded.")
    max_upload_bytes: int
    max_upload_files: int
    modes: list[str]
    answers: list[AnswerKind] = Field(description="Kinds of answers that /ask gives; the first is the default.")
    language_model: LanguageModelCard | None


class Health(BaseModel):
    status: Literal["ok", "stopping"]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorBody
