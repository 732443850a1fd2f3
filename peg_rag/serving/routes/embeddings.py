"""`/v1`: embeddings and models in the form of OpenAI's API."""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError, to_json

from peg_rag.serving.access import StateDep, require_read_access
from peg_rag.serving.errors import ApiError
from peg_rag.serving.limits.queues import InputType
from peg_rag.serving.routes.chat import list_chat_models
from peg_rag.serving.routes.schemas import RequestBody, Text
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import ServerState

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], dependencies=[Depends(require_read_access)])


class EmbeddingRequest(RequestBody):
    """OpenAI's request, with `input_type` added: queries and documents may be embedded differently."""

    input: Text | Annotated[list[Text], Field(min_length=1)] = Field(description="One text, or a list of texts.")
    model: str = Field(max_length=200, description="The name of the model that is served; see /v1/models.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64`: little-endian 32-bit floats, a quarter of the size."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep this many leading dimensions, normalised to unit length again."
    )
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    input_type: InputType = Field("document", description="Whether the texts are documents or queries.")

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_tokens(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int | list):
            raise PydanticCustomError(
                "token_array",
                "arrays of tokens come from another model's tokenizer; send strings "
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


class ChatModelCard(BaseModel):
    """OpenAI's model object: a model of `/v1/chat/completions`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "peg-rag"


class EmbeddingModelCard(ChatModelCard):
    """OpenAI's model object, with the dimension, the maximum length and the identity of the vectors added."""

    dimension: int
    max_tokens: int
    identity: str

    @classmethod
    def of(cls, state: ServerState) -> "EmbeddingModelCard":
        encoder = state.encoder
        return cls(
            id=encoder.spec.name,
            created=state.created,
            dimension=encoder.dimension,
            max_tokens=encoder.spec.max_length,
            identity=encoder.identity,
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingModelCard | ChatModelCard]


@router.post("/embeddings", response_model=None, responses={200: {"model": EmbeddingList}})
async def create_embeddings(request: EmbeddingRequest, state: StateDep) -> Response:
    """Unit vectors of texts, in their order."""
    _check_model(request.model, state)
    _check_size(request.texts, state.settings)
    _check_dimensions(request.dimensions, state.encoder.dimension)
    if request.input_type == "query" and not all(text.strip() for text in request.texts):
        raise ApiError(400, "`input` must not be blank when `input_type` is 'query'", param="input")
    embeddings = await state.embedding_queue.embed(request.texts, request.input_type)
    state.metrics.texts.labels(request.input_type).inc(len(request.texts))
    state.metrics.tokens.labels(request.input_type).inc(embeddings.tokens)
    vectors = truncate_vectors(embeddings.vectors, request.dimensions)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_format_vectors(vectors, request.encoding_format))
        ],
        "model": state.encoder.spec.name,
        "usage": {"prompt_tokens": embeddings.tokens, "total_tokens": embeddings.tokens},
    }
    return Response(to_json(body), media_type="application/json")


@router.get("/models")
async def list_models(state: StateDep) -> ModelList:
    """The embedding model, then the models of `/v1/chat/completions`, from which chat clients fill their menus."""
    chat_models = [ChatModelCard(id=name, created=state.created) for name in list_chat_models(state)]
    return ModelList(data=[EmbeddingModelCard.of(state), *chat_models])


@router.get("/models/{model:path}")
async def retrieve_model(model: str, state: StateDep) -> EmbeddingModelCard | ChatModelCard:
    """The model of this name."""
    if _is_embedding_model(model, state):
        return EmbeddingModelCard.of(state)
    chat_models = list_chat_models(state)
    if model in chat_models:
        return ChatModelCard(id=model, created=state.created)
    served_names = ", ".join(map(repr, [state.encoder.spec.name, *chat_models]))
    raise ApiError(
        404, f"unknown model {model!r}; this server serves {served_names}", code="model_not_found", param="model"
    )


def truncate_vectors(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The leading dimensions, (n, dimensions), normalised to unit length."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    leading = vectors[:, :dimensions]
    norms = np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-12)  # (n, 1)
    return np.asarray(leading / norms, dtype=np.float32)


def _format_vectors(vectors: NDArray[np.float32], encoding: str) -> list[str] | list[list[float]]:
    if encoding == "base64":
        return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    rows: list[list[float]] = vectors.tolist()
    return rows


def _is_embedding_model(name: str, state: ServerState) -> bool:
    served_name = state.encoder.spec.name
    return name in (served_name, served_name.rsplit("/", 1)[-1])


def _check_model(name: str, state: ServerState) -> None:
    if not _is_embedding_model(name, state):
        raise ApiError(
            404,
            f"unknown embedding model {name!r}; this server serves {state.encoder.spec.name!r}",
            code="model_not_found",
            param="model",
        )


def _check_size(texts: list[str], settings: ServerSettings) -> None:
    if len(texts) > settings.max_items:
        raise ApiError(413, f"{len(texts):,} texts; at most {settings.max_items:,} in one request", param="input")
    longest = max(map(len, texts))
    if longest > settings.max_text_characters:
        raise ApiError(
            413, f"a text has {longest:,} characters; the limit is {settings.max_text_characters:,}", param="input"
        )
    total = sum(map(len, texts))
    if total > settings.max_total_characters:
        raise ApiError(
            413, f"{total:,} characters; at most {settings.max_total_characters:,} in one request", param="input"
        )


def _check_dimensions(dimensions: int | None, dimension: int) -> None:
    if dimensions is not None and dimensions > dimension:
        raise ApiError(400, f"`dimensions` must be at most {dimension}, got {dimensions}", param="dimensions")
