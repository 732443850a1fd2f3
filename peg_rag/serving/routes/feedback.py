"""`/feedback`: readers' ratings of answers, kept in the store."""

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from peg_rag.feedback import RatedPassage, Rating
from peg_rag.serving.access import KnowledgeDep, StateDep, require_write_access
from peg_rag.serving.routes.schemas import Query, RequestBody, Text

MAX_REASON_CHARACTERS = 2_000
MAX_PASSAGES = 20

router = APIRouter(tags=["feedback"], dependencies=[Depends(require_write_access)])


class PassageRating(RequestBody):
    """A passage that the answer showed."""

    passage_id: Text = Field(min_length=1, max_length=512)
    cited: bool = Field(description="Whether the answer cited it.")
    useful: bool = Field(False, description="Whether the reader chose it as what answers the question.")


def _check_distinct(passages: list[PassageRating]) -> list[PassageRating]:
    if len({passage.passage_id for passage in passages}) < len(passages):
        raise PydanticCustomError("repeated_passage", "a passage is named twice")
    return passages


class FeedbackRequest(RequestBody):
    id: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="32 hexadecimal digits of the client's choice. A rating with the id of an earlier one replaces it.",
    )
    question: Query
    vote: Literal["up", "down"]
    reason: Text = Field("", max_length=MAX_REASON_CHARACTERS)
    passages: Annotated[list[PassageRating], AfterValidator(_check_distinct)] = Field(
        [], max_length=MAX_PASSAGES, description="Those that the answer showed; each is in the store."
    )


class FeedbackAnswer(BaseModel):
    id: str
    replaced: bool = Field(description="Whether an earlier rating was replaced.")


@router.post("/feedback")
async def rate_answer(request: FeedbackRequest, state: StateDep, knowledge: KnowledgeDep) -> FeedbackAnswer:
    """Keep a reader's rating of an answer. `peg-rag feedback export` makes an evaluation set of them."""
    rating = Rating(
        id=request.id or uuid.uuid4().hex,
        question=request.question,
        vote=request.vote,
        reason=request.reason,
        passages=tuple(RatedPassage(p.passage_id, p.cited, p.useful) for p in request.passages),
        model=state.encoder.identity,
    )
    replaced = await state.writes.run(knowledge.rate, rating)
    return FeedbackAnswer(id=rating.id, replaced=replaced)
