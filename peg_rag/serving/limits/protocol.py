"""uvicorn's HTTP/1.1 protocol with the limits it lacks: on slow headers, slow readers and open connections.

A client that sends one header a minute (Slowloris), or never reads its response, would hold a socket and its buffers
for ever. Such connections have not reached the application yet, or have already left it, so no middleware sees them;
h11 limits only the size of the headers. When all connections are taken, a new one displaces a connection that never
sent a whole request, or else the one that has been idle longest, so that keep-alive clients lock nobody out.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from peg_rag.serving.settings import ServerSettings

_ERROR = b'{"error":{"message":"%b","type":"%b","param":null,"code":"%b"}}'
_TOO_MANY = _ERROR % (b"too many open connections; try again later", b"rate_limit_error", b"busy")
_MALFORMED = _ERROR % (b"this is not a valid HTTP request", b"invalid_request_error", b"invalid_request")
_TOO_SLOW = _ERROR % (b"the request headers arrived too slowly", b"invalid_request_error", b"timeout")
_RETRY_AFTER = b"Retry-After: 1\r\n"


class LimitedProtocol(H11Protocol):
    """One connection, held to the limits of `settings`; made by the class that `create_protocol` returns."""

    settings: ClassVar[ServerSettings]
    # Numbers the events of all connections: a clock is too coarse to tell which of two came first.
    event_numbers: ClassVar[Iterator[int]]

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _unsent_bytes = 0  # when the write timer was started
    _silent_since: int | None = None  # the event since when the connection is open without a whole request
    _idle_since: int | None = None  # the event since when it is kept alive without a further request
    _has_sent_data = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections and not self._close_inactive_connection():
            self._refuse_connection()
        else:
            self._silent_since = next(self.event_numbers)
            self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # refused, or timed out
            return
        self._idle_since = None
        self._has_sent_data = True
        super().data_received(data)
        if self.cycle is not None:
            self._silent_since = None
        if self._is_responding():
            self._cancel_header_timer()
        elif self._header_timer is None:
            self._start_header_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_responding():  # no pipelined request was waiting: the keep-alive timer runs now
            self._cancel_header_timer()
            self._idle_since = next(self.event_numbers)
        self._start_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_header_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 cannot parse in the API's error form; close a connection whose response has started."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_error(b"400 Bad Request", _MALFORMED)
        else:
            self.transport.close()

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # -- the number of connections ------------------------------------------------------------------------------------

    def _close_inactive_connection(self) -> bool:
        """Close one connection that does nothing, first those that never sent a whole request; whether there was one.

        Of the silent ones, those that never sent a byte go first.
        """
        connections = [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]
        silent = [c for c in connections if c._silent_since is not None]
        if silent:
            oldest = min(silent, key=lambda c: (c._has_sent_data, c._silent_since))
            oldest._refuse_connection()
            return True
        idle = [c for c in connections if c._idle_since is not None]
        if idle:
            oldest = min(idle, key=lambda c: c._idle_since or 0)
            oldest._idle_since = None
            oldest.transport.close()
            return True
        return False

    def _refuse_connection(self) -> None:
        self._silent_since = None
        self._idle_since = None
        self._send_error(b"429 Too Many Requests", _TOO_MANY, _RETRY_AFTER)

    # -- slow headers -------------------------------------------------------------------------------------------------

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._on_header_timeout)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if self._is_responding() or self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._send_error(b"408 Request Timeout", _TOO_SLOW)
        else:  # the rest of a body whose response has been sent already
            self.transport.close()

    # -- slow readers -------------------------------------------------------------------------------------------------

    def _start_write_timer(self) -> None:
        """Give the client time to read what is unsent: at `slowest_bytes_per_s`, or all of it."""
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if self._unsent_bytes and self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout_s, self._on_write_timeout)

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        expected_bytes = self.settings.slowest_bytes_per_s * self.settings.write_timeout_s
        if self.transport.get_write_buffer_size() > max(0, self._unsent_bytes - expected_bytes):
            self.transport.abort()
        else:
            self._start_write_timer()

    def _send_error(self, status: bytes, body: bytes, headers: bytes = b"") -> None:
        """Write an error response past h11, and close the connection."""
        start = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(body))
        self.transport.write(start + headers + b"Connection: close\r\n\r\n" + body)
        self.transport.close()


def create_protocol(settings: ServerSettings) -> type[LimitedProtocol]:
    """A protocol class with these limits, for `uvicorn.Config(http=...)`, which makes the instances itself."""

    class ServerProtocol(LimitedProtocol):
        pass

    ServerProtocol.settings = settings
    ServerProtocol.event_numbers = itertools.count(1)
    return ServerProtocol
