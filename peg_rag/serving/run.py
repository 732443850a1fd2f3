"""Running the application: uvicorn, one process, every socket under the limits, SIGTERM drains.

One process holds one model; for more, run several behind a load balancer (a store takes one writer at a time).
"""

import contextlib
import signal
import sys
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from peg_rag.serving import logs
from peg_rag.serving.protocol import guarded_protocol
from peg_rag.serving.settings import ServerSettings

MAX_HEADER_BYTES = 32_768
BACKLOG = 512
_OTHER_FILES = 512  # uploads in the making, the index, pipes to reader processes


def make_server(app: FastAPI, settings: ServerSettings, *, host: str, port: int) -> uvicorn.Server:
    """A uvicorn server that holds every connection to the limits; port 0 for any free one."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=guarded_protocol(settings),
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
    """Answer requests until SIGTERM or Ctrl-C; requests in flight are then finished first.

    An address that is taken is logged, and the process exits with 1.
    """
    logs.configure()
    _allow_files(settings.max_connections)
    signal.signal(signal.SIGTERM, _leave)  # uvicorn drains on the signal, then hands it on to this
    make_server(app, settings, host=host, port=port).run()


def _allow_files(connections: int) -> None:
    """Let the process hold a file for each connection and some more, as far as the system lets it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _leave(*_: object) -> NoReturn:
    """Unwind, so that the store is closed, and say that all is well."""
    sys.exit(0)
