"""`/v1/rerank`: the client's own texts, ordered by how well they answer a query, as Cohere's and Jina's APIs do it.

The texts stand in no index; the bundled reranker looks at them and at `peg-mini`'s vectors, whatever model is served.
"""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from peg_rag.reranking import RankedText, load_encoder, load_reranker, model_of_reranker
from peg_rag.serving.access import StateDep, require_read_access
from peg_rag.serving.errors import ApiError
from peg_rag.serving.routes.schemas import Query, RequestBody, Text
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import ModelTokenCounter, ServerState

MODEL = "reranker-mini"

router = APIRouter(prefix="/v1", tags=["Cohere- and Jina-compatible"], dependencies=[Depends(require_read_access)])


class TextDocument(BaseModel):
    """A document as an object; fields besides `text` are not looked at."""

    model_config = ConfigDict(strict=True)

    text: Text


class RerankRequest(RequestBody):
    query: Query
    documents: Annotated[list[Text | TextDocument], Field(min_length=1)] = Field(
        description="The texts, as strings or as objects with `text`."
    )
    model: str | None = Field(None, max_length=200, description=f"`{MODEL}`, the one that is served, or left out.")
    top_n: int | None = Field(None, ge=1, description="How many results; all if left out.")
    return_documents: bool = Field(False, description="Put the texts into the results.")
    max_chunks_per_doc: int | None = Field(None, description="Accepted and not used.")
    max_tokens_per_doc: int | None = Field(None, description="Accepted and not used.")
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(BaseModel):
    """A document by its place in the request. Scores are 0 to 1, and compare within one request only."""

    index: int
    relevance_score: float
    document: TextDocument | None = Field(None, description="With `return_documents`.")

    @model_serializer(mode="wrap")
    def _leave_out_document(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return fields if self.document else {name: value for name, value in fields.items() if name != "document"}


class RerankUsage(BaseModel):
    """Tokens of the query and the documents, after truncation."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(BaseModel):
    id: str
    model: str
    results: list[RerankResult] = Field(description="Best first.")
    usage: RerankUsage


@router.post("/rerank")
async def rerank(request: RerankRequest, state: StateDep) -> RerankAnswer:
    """Documents of the request, best first, each with its index and a score."""
    texts = request.texts
    _check_model(request.model)
    _check_size(texts, state.settings)
    ranking, tokens = await state.searches.run(_rank_texts, state, request.query, texts)
    results = [
        RerankResult(
            index=each.index,
            relevance_score=each.score,
            document=TextDocument(text=texts[each.index]) if request.return_documents else None,
        )
        for each in ranking[: request.top_n]
    ]
    usage = RerankUsage(prompt_tokens=tokens, total_tokens=tokens)
    return RerankAnswer(id=str(uuid.uuid4()), model=MODEL, results=results, usage=usage)


def _rank_texts(state: ServerState, query: str, texts: list[str]) -> tuple[list[RankedText], int]:
    """The texts in their order, and the tokens of query and texts. Blocks."""
    is_served = state.encoder.identity.partition("/")[0] == model_of_reranker("mini")
    encoder = state.encoder if is_served else load_encoder()
    counter = ModelTokenCounter(encoder)
    tokens = sum(counter.count(texts, "document")) + sum(counter.count([query], "query"))
    return load_reranker("mini").rank(query, texts, encoder=encoder), tokens


def _check_model(name: str | None) -> None:
    if name not in (None, MODEL):
        raise ApiError(
            404,
            f"unknown reranking model {name!r}; this server serves {MODEL!r}",
            code="model_not_found",
            param="model",
        )


def _check_size(texts: list[str], settings: ServerSettings) -> None:
    if len(texts) > settings.max_items:
        raise ApiError(
            413, f"{len(texts):,} documents; at most {settings.max_items:,} in one request", param="documents"
        )
    longest = max(map(len, texts))
    if longest > settings.max_text_characters:
        raise ApiError(
            413,
            f"a document has {longest:,} characters; the limit is {settings.max_text_characters:,}",
            param="documents",
        )
    total = sum(map(len, texts))
    if total > settings.max_total_characters:
        raise ApiError(
            413, f"{total:,} characters; at most {settings.max_total_characters:,} in one request", param="documents"
        )
