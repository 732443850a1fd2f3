"""Field types that several routes share, the base class of request bodies, and the error body."""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

MAX_QUERY_CHARACTERS = 10_000
MAX_FILTER_CHARACTERS = 8_192


def check_text(text: str) -> str:
    """Refuse lone surrogates, which JSON can escape and UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("lone_surrogate", "the text holds a lone surrogate and is not Unicode") from error
    return text


def check_filter(where: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse filters that are too long or too deep, or hold NaN or infinity; the index checks their operators."""
    try:
        size = len(check_text(json.dumps(where, ensure_ascii=False, allow_nan=False)))
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("filter", "the filter holds a number that is not finite, or is too deep") from error
    if size > MAX_FILTER_CHARACTERS:
        raise PydanticCustomError("filter", f"the filter is longer than {MAX_FILTER_CHARACTERS:,} characters")
    return where


Text = Annotated[str, AfterValidator(check_text)]
Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS, pattern=r"\S"), AfterValidator(check_text)]
Filter = Annotated[dict[str, JsonValue], AfterValidator(check_filter)]
SearchMode = Literal["hybrid", "dense", "lexical", "mmr"]
AnswerKind = Literal["extractive", "generated"]


class RequestBody(BaseModel):
    """A JSON body: types are not coerced, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorBody
