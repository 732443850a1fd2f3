"""Runs the application in uvicorn: one process, limits on every connection, graceful shutdown on SIGTERM.

One process holds one model. To scale out, run several behind a load balancer; a store has one writer at a time.
"""

import contextlib
import signal
import sys
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from peg_rag.serving.limits.protocol import create_protocol
from peg_rag.serving.logs import configure_logging
from peg_rag.serving.settings import ServerSettings

MAX_HEADER_BYTES = 32_768
BACKLOG = 512
_OTHER_FILES = 512  # uploads in progress, the index, pipes to reader processes


def create_server(app: FastAPI, settings: ServerSettings, *, host: str, port: int) -> uvicorn.Server:
    """A uvicorn server with the limits of `settings` on every connection; port 0 picks a free port."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=create_protocol(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, settings: ServerSettings, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests in flight.

    If the address is in use, this is logged and the process exits with 1.
    """
    configure_logging()
    _raise_file_limit(settings.max_connections)
    signal.signal(signal.SIGTERM, _exit_cleanly)  # uvicorn shuts down gracefully, then raises the signal again
    create_server(app, settings, host=host, port=port).run()


def _raise_file_limit(connections: int) -> None:
    """Raise the limit on open files to one per connection and some more, as far as the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed_files = connections + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < needed_files:
            limit = needed_files if hard == resource.RLIM_INFINITY else min(needed_files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _exit_cleanly(*_: object) -> NoReturn:
    """Exit with 0 by an exception, so that context managers close the store."""
    sys.exit(0)
