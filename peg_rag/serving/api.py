"""`create_app`: the routes, the guard before them and the page behind them, put together."""

import hashlib
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from peg_rag import __version__
from peg_rag.encoder import PEGEncoder
from peg_rag.serving import routes_ask, routes_embeddings, routes_knowledge, routes_server
from peg_rag.serving.generate import LanguageModel
from peg_rag.serving.guard import Guard, Load
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.problems import ApiError, add_handlers
from peg_rag.serving.schemas import ErrorAnswer
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import ModelTokens, State
from peg_rag.serving.work import EmbeddingQueue, Gate

PAGE = Path(__file__).parent / "web" / "dist"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:/@\s]+)(?::\d+)?")  # name or address, port
_ABOUT = """OpenAI-compatible embeddings, search with Chinese terms, and answers that cite their sources.

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
    """The application, to be run by any ASGI server; the encoder and the store stay the caller's to close.

    Args:
        knowledge: the store to search; None to serve embeddings alone.
        keys: who may write; None: nobody.
        language_model: writes the answers of `/ask`, and is closed with the application; None: they are quoted.
        page: a folder of static files, shown at `/` where it exists.
        hosts: names this server goes by. A server for this machine alone should say so: else a web page elsewhere can
            point its own name here and read what the browser may read (DNS rebinding). Health checks are answered
            under any name.
    """
    parts = _parts(encoder, knowledge, language_model, keys or ApiKeys(), settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        parts.queue.start()
        yield
        parts.stopping = True
        await parts.queue.close()
        parts.searches.close()
        parts.writes.close()
        parts.conversions.close()
        if knowledge is not None:
            knowledge.close()
        if language_model is not None:
            await language_model.close()

    app = FastAPI(
        title="peg-rag",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        max_body_size=parts.settings.max_body_bytes,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.parts = parts
    app.add_middleware(_TrustedHosts, hosts=list(hosts))
    app.add_middleware(Guard, settings=parts.settings, metrics=parts.metrics, load=parts.load)
    add_handlers(app)
    app.include_router(routes_embeddings.router)
    app.include_router(routes_server.router)
    if knowledge is not None:
        app.include_router(routes_ask.router)
        app.include_router(routes_knowledge.readers)
        app.include_router(routes_knowledge.writers, max_body_size=parts.settings.max_upload_bytes)
    _add_docs(app)
    _add_page(app, page)
    return app


def _parts(
    encoder: PEGEncoder,
    knowledge: KnowledgeBase | None,
    language_model: LanguageModel | None,
    keys: ApiKeys,
    settings: ServerSettings,
) -> State:
    queue = EmbeddingQueue(
        encoder,
        ModelTokens(encoder),
        max_characters=settings.max_queued_characters,
        max_wait_s=settings.max_wait_s,
    )
    searches = Gate("searches", settings.search_threads, settings.max_waiting_searches)
    wait_s = settings.max_write_wait_s
    writes = Gate("writes", settings.write_threads, settings.max_waiting_writes, max_wait_s=wait_s)
    conversions = Gate("conversions", settings.conversion_threads, settings.max_waiting_conversions, max_wait_s=wait_s)
    metrics, load = Metrics(), Load()
    metrics.watch("requests_in_flight", "Requests being answered.", lambda: load.in_flight)
    metrics.watch("request_bytes_held", "Bytes of request bodies held.", lambda: load.held_bytes)
    metrics.watch("queued_characters", "Characters waiting to be embedded.", lambda: queue.characters)
    metrics.watch("pending_searches", "Searches running or waiting.", lambda: searches.pending)
    metrics.watch("pending_writes", "Writes running or waiting.", lambda: writes.pending)
    metrics.watch("pending_conversions", "Uploads being read or waiting for it.", lambda: conversions.pending)
    if knowledge is not None:
        metrics.watch("passages", "Passages in the store.", lambda: len(knowledge.index))
    if language_model is not None:
        metrics.watch("answers_being_generated", "Answers being written.", lambda: language_model.running)
    now = int(time.time())
    return State(
        encoder, knowledge, language_model, settings, keys, metrics, load, queue, searches, writes, conversions, now
    )


class _TrustedHosts:
    """Answers to the server's names alone, but for health checks: probes come by address, and learn only `ok`."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        names = [host.lower() for host in hosts]
        self._names = {name for name in names if not name.startswith("*")}
        self._endings = tuple(name[1:] for name in names if name.startswith("*"))  # "*" alone ends every name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_trusted(scope):
            raise ApiError(400, "this server goes by another name than the Host header's; its owner can add names")
        await self._app(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        if f"{scope['path']}/".startswith("/health/") or "" in self._endings:
            return True
        header = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
        name = header[1].lower() if header else ""
        return bool(name) and (name in self._names or name.endswith(self._endings))


def _add_docs(app: FastAPI) -> None:
    """Swagger UI at `/docs`, from files of the installation; its one inline script is allowed by its digest."""
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs(_: Request) -> Response:
        html = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="peg-rag API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )
        inline = re.findall(rb"<script>(.*?)</script>", bytes(html.body), re.DOTALL)
        digests = " ".join(f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in inline)
        html.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'self' {digests}; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return html


class _Page(StaticFiles):
    """Files that browsers ask for again each time (a 304 is cheap), so that an upgrade never meets old parts."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _add_page(app: FastAPI, page: Path) -> None:
    """The page at `/`; where it was not built, a few links in JSON.

    Its files have routes of their own: a mount at `/` would answer for every path and method that is none.
    """
    if page.is_dir():
        files = _Page(directory=page)
        app.mount("/assets", _Page(directory=page / "assets"), name="assets")

        @app.api_route("/icon.svg", methods=["GET", "HEAD"], include_in_schema=False)
        async def icon(request: Request) -> Response:
            return await files.get_response("icon.svg", request.scope)

        @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
        async def index(request: Request) -> Response:
            return await files.get_response("index.html", request.scope)

        return

    @app.get("/", include_in_schema=False)
    async def root() -> JSONResponse:
        return JSONResponse({"name": "peg-rag", "version": __version__, "docs": "/docs", "api": "/openapi.json"})
