"""Running the application: uvicorn, one process, every socket under the limits, SIGTERM drains.

One process holds one model; for more, run several behind a load balancer (a store takes one writer at a time).
"""

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
    signal.signal(signal.SIGTERM, _leave)  # uvicorn drains on the signal, then hands it on to this
    make_server(app, settings, host=host, port=port).run()


def _leave(*_: object) -> NoReturn:
    """Unwind, so that the store is closed, and say that all is well."""
    sys.exit(0)
