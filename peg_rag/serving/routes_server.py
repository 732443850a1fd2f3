"""The server about itself: what it is, whether it is well, what it did."""

from typing import get_args

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse

from peg_rag import __version__
from peg_rag.readers import SUFFIXES
from peg_rag.serving.access import Parts, may_read
from peg_rag.serving.problems import ApiError
from peg_rag.serving.schemas import AnswerKind, Health, LanguageModelCard, SearchMode, ServerInfo
from peg_rag.serving.state import State

router = APIRouter(tags=["server"])


@router.get("/info", dependencies=[Depends(may_read)])
async def info(parts: Parts) -> ServerInfo:
    """The model, the limits, and what can be done here."""
    knowledge = parts.knowledge
    return ServerInfo(
        version=__version__,
        model=parts.encoder.spec.name,
        dimension=parts.encoder.dimension,
        passages=await parts.searches.run(len, knowledge.index) if knowledge else None,
        writable=knowledge is not None and bool(parts.keys),
        private=parts.settings.private,
        suffixes=list(SUFFIXES),
        max_upload_bytes=parts.settings.max_upload_bytes,
        max_upload_files=parts.settings.max_upload_files,
        modes=list(get_args(SearchMode)),
        answers=_answers(parts),
        language_model=_language_model(parts),
    )


def _answers(parts: State) -> list[AnswerKind]:
    if parts.knowledge is None:
        return []
    return ["generated", "extractive"] if parts.language_model else ["extractive"]


def _language_model(parts: State) -> LanguageModelCard | None:
    if parts.language_model is None:
        return None
    known = parts.language_model.settings
    return LanguageModelCard(name=known.model, host=known.host, local=known.local)


@router.get("/health/live")
async def live() -> Health:
    """Whether the process answers at all."""
    return Health(status="ok")


@router.get("/health/ready")
@router.get("/health", include_in_schema=False)
async def ready(parts: Parts) -> Health:
    """Whether requests should be sent here: 503 while the server stops."""
    if parts.stopping:
        raise ApiError(503, "the server is stopping", retry_after_s=5)
    if parts.knowledge is not None:
        await parts.searches.run(len, parts.knowledge.index)
    return Health(status="ok")


@router.get("/metrics", dependencies=[Depends(may_read)], response_class=PlainTextResponse)
async def metrics(parts: Parts) -> Response:
    """Counters and gauges, as Prometheus reads them."""
    return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
