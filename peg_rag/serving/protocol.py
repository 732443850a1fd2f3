"""uvicorn's HTTP protocol with the limits it lacks: on slow headers, on slow readers, on open connections.

A client that sends a header a minute (slow-loris), or never reads its answer, would keep a socket and its buffers for
ever; h11 itself bounds the headers' size. Such connections never reach, or have left, the application, so this cannot
be a middleware. Where no connection is left for a newcomer, one makes room that never sent a whole request, or else the
one that has been idle longest, so that clients that keep theirs shut nobody out.
"""

import asyncio
import itertools

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from peg_rag.serving.settings import ServerSettings

_ERROR = b'{"error":{"message":"%b","type":"%b","param":null,"code":"%b"}}'
_TOO_MANY = _ERROR % (b"too many open connections; try again later", b"rate_limit_error", b"busy")
_MALFORMED = _ERROR % (b"this is not a valid HTTP request", b"invalid_request_error", b"invalid_request")
_LATE = _ERROR % (b"the request's headers came too slowly", b"invalid_request_error", b"timeout")


def guarded_protocol(settings: ServerSettings) -> type[H11Protocol]:
    """A protocol class with these limits, for `uvicorn.Config(http=…)`."""
    order = itertools.count(1)

    class GuardedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None
        _unsent = 0  # bytes, when the writing timer was set
        # Places in the order of events, as a clock is too coarse to tell two connections apart; None: it is otherwise.
        _mute_since: int | None = None  # opened, and no whole request so far
        _idle_since: int | None = None  # answered, and no further request so far
        _has_sent = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections and not self._make_room():
                self._refuse(b"429 Too Many Requests", _TOO_MANY, b"Retry-After: 1\r\n")
            else:
                self._mute_since = next(order)
                self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():  # refused, or too late
                return
            self._idle_since = None
            self._has_sent = True
            super().data_received(data)
            if self.cycle is not None:
                self._mute_since = None
            if self._answering():
                self._stop("_reading")
            elif self._reading is None:
                self._expect_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._answering():  # no pipelined request was waiting: the keep-alive timer runs now
                self._stop("_reading")
                self._idle_since = next(order)
            self._expect_progress()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_progress()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("_writing")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("_reading", "_writing")
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Answer what h11 cannot read, in the form of all errors; an answer that has begun is broken off."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._refuse(b"400 Bad Request", _MALFORMED)
            else:
                self.transport.close()

        def _make_room(self) -> bool:
            """Close a connection that does nothing, if there is one: first those that never sent a whole request."""
            open_ones = [c for c in self.connections if isinstance(c, GuardedProtocol) and c is not self]
            mute = [c for c in open_ones if c._mute_since is not None]
            idle = [c for c in open_ones if c._idle_since is not None]
            if mute:
                longest = min(mute, key=lambda c: (c._has_sent, c._mute_since))
                longest._refuse(b"429 Too Many Requests", _TOO_MANY, b"Retry-After: 1\r\n")
            elif idle:
                longest = min(idle, key=lambda c: c._idle_since or 0)
                longest.transport.close()
            else:
                return False
            longest._mute_since = None
            longest._idle_since = None
            return True

        def _stop(self, *timers: str) -> None:
            for name in timers:
                timer: asyncio.TimerHandle | None = getattr(self, name)
                if timer is not None:
                    timer.cancel()
                    setattr(self, name, None)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _expect_headers(self) -> None:
            self._reading = self.loop.call_later(settings.header_timeout_s, self._too_late)

        def _too_late(self) -> None:
            self._reading = None
            if self._answering() or self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE:
                self._refuse(b"408 Request Timeout", _LATE)
            else:  # the rest of a body whose answer is out already
                self.transport.close()

        def _expect_progress(self) -> None:
            """Give the client time to take what is unsent; it must take `slowest_bytes_per_s` of it, or all."""
            self._unsent = self.transport.get_write_buffer_size()
            if self._unsent and self._writing is None:
                self._writing = self.loop.call_later(settings.write_timeout_s, self._check_progress)

        def _check_progress(self) -> None:
            self._writing = None
            left = self.transport.get_write_buffer_size()
            if left > max(0, self._unsent - settings.slowest_bytes_per_s * settings.write_timeout_s):
                self.transport.abort()
            else:
                self._expect_progress()

        def _refuse(self, status: bytes, body: bytes, more: bytes = b"") -> None:
            head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(body))
            self.transport.write(head + more + b"Connection: close\r\n\r\n" + body)
            self.transport.close()

    return GuardedProtocol
