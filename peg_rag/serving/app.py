"""`create_app`: assembles the routes, the middleware in front of them and the shared state into one application."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from peg_rag import __version__
from peg_rag.encoder import PEGEncoder
from peg_rag.serving.errors import add_exception_handlers
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.language_model import LanguageModel
from peg_rag.serving.limits.middleware import AllowedHostsMiddleware, LimitsMiddleware, Load
from peg_rag.serving.limits.queues import EmbeddingQueue, WorkerPool
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.routes import ask, chat, documents, embeddings, feedback, rerank, search, server
from peg_rag.serving.routes.pages import PAGE, add_docs, add_page
from peg_rag.serving.routes.schemas import ErrorAnswer
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import ModelTokenCounter, ServerState

_DESCRIPTION = """OpenAI-compatible embeddings, search with Chinese terms, and answers that cite their sources.

Point any OpenAI client at `/v1`; queries and documents can be told apart with `input_type`."""


def create_app(
    encoder: PEGEncoder,
    knowledge: KnowledgeBase | None = None,
    *,
    keys: ApiKeys | None = None,
    language_model: LanguageModel | None = None,
    settings: ServerSettings | None = None,
    page: Path = PAGE,
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """Create the application, to be run by any ASGI server. The caller closes the encoder and the index.

    Args:
        knowledge: the store to search; None to serve embeddings alone.
        keys: the keys that may write; None: nobody may.
        language_model: writes the answers of `/ask`, and is closed with the application; None: answers are quoted.
        page: a folder of static files, served at `/` if it exists.
        hosts: host names that this server answers to. A server for this machine alone should set them, or a web page
            elsewhere can point its own name here and read what the browser may read (DNS rebinding). Health checks are
            answered under any name.
    """
    state = _create_state(encoder, knowledge, language_model, keys or ApiKeys(), settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await _shut_down(state)

    app = FastAPI(
        title="peg-rag",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        max_body_size=state.settings.max_body_bytes,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.server = state
    app.add_middleware(AllowedHostsMiddleware, hosts=list(hosts))
    app.add_middleware(LimitsMiddleware, settings=state.settings, metrics=state.metrics, load=state.load)
    add_exception_handlers(app)
    app.include_router(embeddings.router)
    app.include_router(rerank.router)
    app.include_router(server.router)
    if knowledge is not None:
        app.include_router(ask.router)
        app.include_router(chat.router)
        app.include_router(search.router)
        app.include_router(feedback.router)
        app.include_router(documents.read_router)
        app.include_router(documents.write_router, max_body_size=state.settings.max_upload_bytes)
    add_docs(app)
    add_page(app, page)
    return app


def _create_state(
    encoder: PEGEncoder,
    knowledge: KnowledgeBase | None,
    language_model: LanguageModel | None,
    keys: ApiKeys,
    settings: ServerSettings,
) -> ServerState:
    state = ServerState(
        encoder=encoder,
        knowledge=knowledge,
        language_model=language_model,
        settings=settings,
        keys=keys,
        metrics=Metrics(),
        load=Load(),
        embedding_queue=EmbeddingQueue(
            encoder,
            ModelTokenCounter(encoder),
            max_characters=settings.max_queued_characters,
            max_wait_s=settings.max_wait_s,
        ),
        searches=WorkerPool("searches", settings.search_threads, settings.max_waiting_searches),
        writes=WorkerPool(
            "writes", settings.write_threads, settings.max_waiting_writes, max_wait_s=settings.max_write_wait_s
        ),
        conversions=WorkerPool(
            "conversions",
            settings.conversion_threads,
            settings.max_waiting_conversions,
            max_wait_s=settings.max_write_wait_s,
        ),
        created=int(time.time()),
    )
    _add_gauges(state)
    return state


def _add_gauges(state: ServerState) -> None:
    add_gauge = state.metrics.add_gauge
    add_gauge("requests_in_flight", "Requests being answered.", lambda: state.load.in_flight)
    add_gauge("request_bytes_held", "Bytes of request bodies held.", lambda: state.load.held_bytes)
    add_gauge("queued_characters", "Characters waiting to be embedded.", lambda: state.embedding_queue.characters)
    add_gauge("pending_searches", "Searches running or waiting.", lambda: state.searches.pending)
    add_gauge("pending_writes", "Writes running or waiting.", lambda: state.writes.pending)
    add_gauge("pending_conversions", "Uploads being read or waiting for it.", lambda: state.conversions.pending)
    knowledge = state.knowledge
    if knowledge is not None:
        add_gauge("passages", "Passages in the store.", lambda: len(knowledge.index))
    language_model = state.language_model
    if language_model is not None:
        add_gauge("answers_being_generated", "Answers being written.", lambda: language_model.running)


async def _shut_down(state: ServerState) -> None:
    """Finish the work in progress, then close what the application owns."""
    state.stopping = True
    await state.embedding_queue.close()
    state.searches.close()
    state.writes.close()
    state.conversions.close()
    if state.knowledge is not None:
        state.knowledge.close()
    if state.language_model is not None:
        await state.language_model.close()
