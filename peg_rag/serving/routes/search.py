"""`/search`: the passages nearest to a query, with what a page needs to show why they match."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from peg_rag.hits import Hit
from peg_rag.retriever import RerankChoice
from peg_rag.serving.access import KnowledgeDep, StateDep, require_read_access
from peg_rag.serving.matches import Matcher
from peg_rag.serving.routes.schemas import Filter, Query, RequestBody, SearchMode
from peg_rag.serving.state import search_knowledge

MAX_K = 100

router = APIRouter(tags=["search"], dependencies=[Depends(require_read_access)])


class SearchRequest(RequestBody):
    query: Query
    k: int = Field(10, ge=1, le=MAX_K, description="Number of passages.")
    mode: SearchMode = "hybrid"
    where: Filter | None = Field(None, description='A filter on the metadata, such as `{"page": {"$gte": 3}}`.')
    rerank: RerankChoice = Field(
        "auto",
        description="A second look at 50 hybrid hits by the bundled reranker: `auto` (where the model is peg-mini), "
        "`mini` (the same, or an error) or `none`.",
    )


class FoundPassage(BaseModel):
    """A passage in the result list. `score` is what the list is ordered by; `scores` are its components."""

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
            matches=matcher.find_spans(hit.text),
            metadata=dict(hit.metadata),
        )


class SearchAnswer(BaseModel):
    hits: list[FoundPassage]
    mode: SearchMode

    @classmethod
    def of(cls, query: str, hits: Sequence[Hit], mode: SearchMode) -> "SearchAnswer":
        matcher = Matcher(query)
        return cls(hits=[FoundPassage.of(hit, matcher) for hit in hits], mode=mode)


@router.post("/search")
async def search(request: SearchRequest, state: StateDep, knowledge: KnowledgeDep) -> SearchAnswer:
    """The passages nearest to a query, best first, with their component scores."""
    hits = await search_knowledge(
        state,
        knowledge,
        request.query,
        k=request.k,
        mode=request.mode,
        where=request.where,
        rerank=request.rerank,
    )
    return SearchAnswer.of(request.query, hits, request.mode)
