"""`/v1`: embeddings and models, as OpenAI's clients know them."""

import base64

import numpy as np
from fastapi import APIRouter, Depends, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from peg_rag.serving.access import Parts, may_read
from peg_rag.serving.problems import ApiError
from peg_rag.serving.schemas import EmbeddingList, EmbeddingRequest, ModelCard, ModelList
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import State

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], dependencies=[Depends(may_read)])


@router.post("/embeddings", response_model=None, responses={200: {"model": EmbeddingList}})
async def create_embeddings(request: EmbeddingRequest, parts: Parts) -> Response:
    """Unit vectors of texts, in their order."""
    texts = request.texts
    _check_model(request.model, parts)
    _check_size(texts, parts.settings)
    dimension = parts.encoder.dimension
    if request.dimensions is not None and request.dimensions > dimension:
        raise ApiError(400, f"the model has {dimension} dimensions, not {request.dimensions}", param="dimensions")
    if request.input_type == "query" and not all(text.strip() for text in texts):
        raise ApiError(400, "a query is blank; a query must say something", param="input")
    embedded = await parts.queue.embed(texts, request.input_type)
    parts.metrics.texts.labels(request.input_type).inc(len(texts))
    parts.metrics.tokens.labels(request.input_type).inc(embedded.tokens)
    vectors = shortened(embedded.vectors, request.dimensions)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_written(vectors, request.encoding_format))
        ],
        "model": parts.encoder.spec.name,
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    }
    return Response(to_json(body), media_type="application/json")


@router.get("/models")
async def list_models(parts: Parts) -> ModelList:
    """The model that is served."""
    return ModelList(data=[_card(parts)])


@router.get("/models/{model:path}")
async def retrieve_model(model: str, parts: Parts) -> ModelCard:
    """The model of this name."""
    _check_model(model, parts)
    return _card(parts)


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The leading dimensions, (n, dimensions), of length 1 again."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    norms = np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)  # (n, 1)
    return np.asarray(cut / norms, dtype=np.float32)


def _written(vectors: NDArray[np.float32], encoding: str) -> list[str] | list[list[float]]:
    if encoding == "base64":
        return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    rows: list[list[float]] = vectors.tolist()
    return rows


def _check_model(name: str, parts: State) -> None:
    served = parts.encoder.spec.name
    if name not in (served, served.rsplit("/", 1)[-1]):
        raise ApiError(
            404, f"this server serves the model {served!r}, and no other", code="model_not_found", param="model"
        )


def _check_size(texts: list[str], settings: ServerSettings) -> None:
    if len(texts) > settings.max_items:
        raise ApiError(413, f"{len(texts):,} texts; at most {settings.max_items:,} in one request", param="input")
    longest, total = max(map(len, texts)), sum(map(len, texts))
    if longest > settings.max_text_characters:
        raise ApiError(
            413, f"a text has {longest:,} characters; the limit is {settings.max_text_characters:,}", param="input"
        )
    if total > settings.max_total_characters:
        raise ApiError(
            413, f"{total:,} characters; at most {settings.max_total_characters:,} in one request", param="input"
        )


def _card(parts: State) -> ModelCard:
    encoder = parts.encoder
    return ModelCard(
        id=encoder.spec.name,
        created=parts.created,
        dimension=encoder.dimension,
        max_tokens=encoder.spec.max_length,
        identity=encoder.identity,
    )
