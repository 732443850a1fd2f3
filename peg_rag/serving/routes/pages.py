"""What a browser sees: the page at `/` and the API's documentation at `/docs`, both from files of the installation."""

import hashlib
import re
from base64 import b64encode
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from peg_rag import __version__

PAGE = Path(__file__).parents[1] / "web" / "dist"


class RevalidatedFiles(StaticFiles):
    """Static files that browsers revalidate each time (a 304 is cheap), so that an upgrade never mixes versions."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI at `/docs`; the content security policy allows its one inline script by its digest."""
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
        scripts = re.findall(rb"<script>(.*?)</script>", bytes(html.body), re.DOTALL)
        digests = " ".join(f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
        html.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'self' {digests}; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return html


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve the page at `/`; if it was not built, a few links as JSON.

    Each file has a route of its own: a mount at `/` would answer every unknown path and method.
    """
    if not folder.is_dir():

        @app.get("/", include_in_schema=False)
        async def root() -> JSONResponse:
            return JSONResponse({"name": "peg-rag", "version": __version__, "docs": "/docs", "api": "/openapi.json"})

        return

    files = RevalidatedFiles(directory=folder)
    app.mount("/assets", RevalidatedFiles(directory=folder / "assets"), name="assets")

    @app.api_route("/icon.svg", methods=["GET", "HEAD"], include_in_schema=False)
    async def icon(request: Request) -> Response:
        return await files.get_response("icon.svg", request.scope)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)
