"""What stands before the application, for every request: limits on time and number, headers, a log line, metrics.

Plain ASGI, because the framework's own middleware classes buffer streams. A request is counted, given an id, and held
to a deadline while its body arrives, so that a client that is slow on purpose costs a bounded time. Body *size* is the
framework's own limit; here only the bytes held by all requests together are bounded.
"""

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peg_rag.serving.logs import log
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.problems import ApiError, Busy, unexpected_problem
from peg_rag.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
_ALWAYS = ("/health", "/metrics")  # answered however busy the server is


@dataclass(slots=True)
class Load:
    """What all requests together use at this moment."""

    in_flight: int = 0
    held_bytes: int = 0


class Guard:
    """Holds requests to the limits, and tells the log and the metrics what became of them."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, load: Load) -> None:
        self.app, self.settings, self.metrics, self.load = app, settings, metrics, load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.settings, self.load, receive, send, close=_has_two_lengths(scope))
        scope.setdefault("state", {})["request_id"] = exchange.id
        self.load.in_flight += 1
        try:
            await self._answer(scope, exchange)
        finally:
            self.load.in_flight -= 1
            self.load.held_bytes -= exchange.bytes_in
            self._record(scope, exchange)

    async def _answer(self, scope: Scope, exchange: "_Exchange") -> None:
        """The application's answer, or an error in its form; whatever it raises ends here."""
        problem: ApiError
        try:
            if self.load.in_flight > self.settings.max_in_flight and not scope["path"].startswith(_ALWAYS):
                raise Busy("the server is answering as many requests as it takes on; try again later")
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self.app(scope, exchange.receive, exchange.send)
            return
        except ApiError as error:
            problem = error
        except TimeoutError:
            problem = ApiError(503, "the request took too long; send less at once", code="timeout", retry_after_s=5)
        except Exception as error:
            problem = unexpected_problem(error, exchange.id)
        if exchange.status:  # the answer has begun: all that is left is to break it off
            raise _BrokenOff(problem.message)
        await problem.response()(scope, exchange.receive, exchange.send)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", None) or "(other)"
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        seconds = time.perf_counter() - exchange.started
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
    """Whether a body's length is given twice (RFC 9112, 6.1): where it ends is in doubt, so the connection closes."""
    names = {name for name, _ in scope["headers"]}
    return {b"content-length", b"transfer-encoding"} <= names


class _BrokenOff(Exception):
    """An answer that had begun cannot be finished."""


class _Exchange:
    """One request's `receive` and `send`, timed and counted."""

    def __init__(self, settings: ServerSettings, load: Load, receive: Receive, send: Send, *, close: bool) -> None:
        self._settings, self._load, self._receive, self._send = settings, load, receive, send
        self._close = close
        self.id = uuid.uuid4().hex[:16]
        self.started = time.perf_counter()
        self.bytes_in = self.bytes_out = 0
        self.status = 0  # 0 until the answer begins
        self._body_complete = False

    async def receive(self) -> Message:
        """The next piece of the body, in time and within what all requests may hold."""
        if self._body_complete:  # what is waited for now is the client going away
            return await self._receive()
        message = await self._next_piece()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes_in += size
            self._load.held_bytes += size
            self._body_complete = not message.get("more_body", False)
            if self._load.held_bytes > self._settings.max_held_bytes:
                raise Busy("the server holds as much of request bodies as it takes on; try again later")
        return message

    async def _next_piece(self) -> Message:
        allowed = self._settings.body_timeout_s
        left = allowed + self.bytes_in / self._settings.slowest_bytes_per_s - (time.perf_counter() - self.started)
        try:
            async with asyncio.timeout(min(left, allowed / 2)):
                return await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "the request's body came too slowly") from error

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on, its headers completed."""
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
