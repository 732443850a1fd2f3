"""The server's description, its health checks and its metrics."""

from typing import Literal, get_args

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from peg_rag import __version__
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.serving.access import StateDep, require_read_access
from peg_rag.serving.errors import ApiError
from peg_rag.serving.language_model import LanguageModel
from peg_rag.serving.routes.schemas import AnswerKind, SearchMode
from peg_rag.serving.state import ServerState

router = APIRouter(tags=["server"])


class LanguageModelCard(BaseModel):
    """The language model that writes generated answers, and where questions and passages are sent for that."""

    name: str
    host: str
    local: bool = Field(description="The endpoint is the server's own machine.")

    @classmethod
    def of(cls, language_model: LanguageModel) -> "LanguageModelCard":
        settings = language_model.settings
        return cls(name=settings.model, host=settings.host, local=settings.local)


class ServerInfo(BaseModel):
    """What a page needs to know before it draws itself."""

    version: str
    model: str
    dimension: int
    passages: int | None = Field(description="In the store; null where the server has none.")
    writable: bool = Field(description="Whether documents can be added with a key.")
    private: bool = Field(description="Whether reading needs a key too.")
    suffixes: list[str] = Field(description="File name suffixes that can be uploaded.")
    max_upload_bytes: int
    max_upload_files: int
    modes: list[str]
    answers: list[AnswerKind] = Field(description="Kinds of answers that /ask gives; the first is the default.")
    history: bool = Field(description="Whether /ask reads a follow-up question by the turns before it.")
    language_model: LanguageModelCard | None
    feedback: bool = Field(description="Whether ratings of answers are kept, from clients with a key.")


class Health(BaseModel):
    status: Literal["ok", "stopping"]


@router.get("/info", dependencies=[Depends(require_read_access)])
async def info(state: StateDep) -> ServerInfo:
    """The model, the limits, and the features of this server."""
    knowledge = state.knowledge
    return ServerInfo(
        version=__version__,
        model=state.encoder.spec.name,
        dimension=state.encoder.dimension,
        passages=await state.searches.run(len, knowledge.index) if knowledge else None,
        writable=knowledge is not None and bool(state.keys),
        private=state.settings.private,
        suffixes=list(SUFFIXES),
        max_upload_bytes=state.settings.max_upload_bytes,
        max_upload_files=state.settings.max_upload_files,
        modes=list(get_args(SearchMode)),
        answers=_list_answer_kinds(state),
        history=knowledge is not None and state.language_model is not None,
        language_model=LanguageModelCard.of(state.language_model) if state.language_model else None,
        feedback=knowledge is not None and bool(state.keys) and not knowledge.index.read_only,
    )


def _list_answer_kinds(state: ServerState) -> list[AnswerKind]:
    if state.knowledge is None:
        return []
    if state.language_model is None:
        return ["extractive"]
    return ["generated", "extractive"]


@router.get("/health/live")
async def live() -> Health:
    """Liveness: the process answers."""
    return Health(status="ok")


@router.get("/health/ready")
@router.get("/health", include_in_schema=False)
async def ready(state: StateDep) -> Health:
    """Readiness: 503 while the server shuts down."""
    if state.stopping:
        raise ApiError(503, "the server is stopping", retry_after_s=5)
    if state.knowledge is not None:
        await state.searches.run(len, state.knowledge.index)
    return Health(status="ok")


@router.get("/metrics", dependencies=[Depends(require_read_access)], response_class=PlainTextResponse)
async def metrics(state: StateDep) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
