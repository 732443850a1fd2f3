"""ASGI middleware: limits on time and number, response headers, the request log and the request metrics.

Pure ASGI, because Starlette's `BaseHTTPMiddleware` buffers streams. Each request is counted, given an id, and held to a
deadline while its body arrives, so that a deliberately slow client costs a bounded time. FastAPI limits the size of one
body; the middleware limits the bytes that all requests hold together.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peg_rag.serving.errors import ApiError, Busy, report_unexpected
from peg_rag.serving.logs import log
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
_UNLIMITED_PATHS = ("/health", "/metrics")  # answered however busy the server is
_HOST_HEADER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:/@\s]+)(?::\d+)?")  # (host name or address), port


@dataclass(slots=True)
class Load:
    """What all requests together use at this moment."""

    in_flight: int = 0
    held_bytes: int = 0


class LimitsMiddleware:
    """Applies the limits to every request, then records it in the log and the metrics."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, load: Load) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.settings, self.load, receive, send, close=_has_two_lengths(scope))
        scope.setdefault("state", {})["request_id"] = exchange.id
        self.load.in_flight += 1
        try:
            await self._send_response(scope, exchange)
        finally:
            self.load.in_flight -= 1
            self.load.held_bytes -= exchange.bytes_in
            self._record_request(scope, exchange)

    async def _send_response(self, scope: Scope, exchange: "_Exchange") -> None:
        """Send the application's response, or an error response in its place."""
        api_error: ApiError
        try:
            if self._is_overloaded() and not scope["path"].startswith(_UNLIMITED_PATHS):
                raise Busy("too many requests are in flight; try again later")
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self.app(scope, exchange.receive, exchange.send)
            return
        except ApiError as error:
            api_error = error
        except TimeoutError:
            message = f"the request timed out after {self.settings.request_timeout_s:g} s; send less at once"
            api_error = ApiError(503, message, code="timeout", retry_after_s=5)
        except Exception as error:
            api_error = report_unexpected(error, exchange.id)
        if exchange.status:  # the response has started, so the connection can only be broken off
            raise _ResponseAborted(api_error.message)
        await api_error.to_response()(scope, exchange.receive, exchange.send)

    def _is_overloaded(self) -> bool:
        return self.load.in_flight > self.settings.max_in_flight

    def _record_request(self, scope: Scope, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", None) or "(other)"
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        seconds = time.perf_counter() - exchange.started_at
        self.metrics.requests.labels(method, route, str(exchange.status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        log(
            logger,
            logging.INFO,
            "request",
            request_id=exchange.id,
            method=method,
            route=route,
            status=exchange.status,
            milliseconds=round(1000 * seconds, 1),
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
        )


def _has_two_lengths(scope: Scope) -> bool:
    """Whether Content-Length and Transfer-Encoding are both present (RFC 9112, 6.1).

    Where such a body ends is ambiguous, so the connection is closed after the response.
    """
    names = {name for name, _ in scope["headers"]}
    return {b"content-length", b"transfer-encoding"} <= names


class _ResponseAborted(Exception):
    """A response that had started cannot be completed."""


class _Exchange:
    """The `receive` and `send` of one request, timed and counted."""

    def __init__(self, settings: ServerSettings, load: Load, receive: Receive, send: Send, *, close: bool) -> None:
        self._settings = settings
        self._load = load
        self._receive = receive
        self._send = send
        self._close = close
        self._body_complete = False
        self.id = uuid.uuid4().hex[:16]
        self.started_at = time.perf_counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.status = 0  # 0 until the response starts

    async def receive(self) -> Message:
        """The next message, which must arrive in time and fit into what all requests may hold."""
        if self._body_complete:  # from here on, only a disconnect is awaited
            return await self._receive()
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes_in += size
            self._load.held_bytes += size
            self._body_complete = not message.get("more_body", False)
            if self._load.held_bytes > self._settings.max_held_bytes:
                raise Busy("the request bodies in flight are too large together; try again later")
        return message

    async def _receive_in_time(self) -> Message:
        timeout = self._settings.body_timeout_s
        deadline = self.started_at + timeout + self.bytes_in / self._settings.slowest_bytes_per_s
        try:
            async with asyncio.timeout(min(deadline - time.perf_counter(), timeout / 2)):
                return await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "the request body arrived too slowly") from error

    async def send(self, message: Message) -> None:
        """Pass a message on, with the security headers and the request id added to the response's start."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            if self._close:
                headers["Connection"] = "close"
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        self.bytes_out += len(message.get("body", b""))
        await self._send(message)


class AllowedHostsMiddleware:
    """Refuses requests whose Host header names another server, in the API's error form.

    Health checks are answered under any name: probes connect by address, and learn only `ok`.

    Args:
        hosts: host names; `*.example.org` allows every subdomain, `*` every name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        names = [host.lower() for host in hosts]
        self._names = {name for name in names if not name.startswith("*")}
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*"))  # "*" becomes "", which ends all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            raise ApiError(
                400, "the Host header does not name this server; if the name is yours, add it with --allowed-host"
            )
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if f"{scope['path']}/".startswith("/health/") or "" in self._suffixes:
            return True
        match = _HOST_HEADER.fullmatch(Headers(scope=scope).get("host", ""))
        if match is None:
            return False
        name = match[1].lower()
        return name in self._names or name.endswith(self._suffixes)
