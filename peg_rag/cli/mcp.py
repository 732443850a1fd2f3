"""`peg-rag mcp kb`: a store as tools for assistants and deep-research clients, over the Model Context Protocol."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

if TYPE_CHECKING:
    from peg_rag.mcp_server import KnowledgeReader
    from peg_rag.retriever import Mode
    from peg_rag.serving.keys import ApiKeys

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def mcp(
    store: Annotated[Path, typer.Argument(help="A folder made by `peg-rag index`.")],
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="With --http.")] = 8001,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model the store was made with.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Results of a search.")] = 10,
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Least confidence for an answer of `ask`.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Where the documents are published: links are this and the document's source. Default: the files "
            "themselves, and over HTTP names that open nothing."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="With --http: a name the server goes by, such as rag.example.org; may be repeated. Default: only "
            "this machine's own names when listening on it alone, else any."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --http: reading needs a key of $PEG_RAG_API_KEYS or --key-file.")
    ] = False,
    key_file: Annotated[Path | None, typer.Option(help="Keys that may read, one in a line.")] = None,
) -> None:
    """Give assistants the tools search, fetch and ask over a store, read only (Model Context Protocol)."""
    # As in `serve`: searches run side by side, and threads within a product only get in each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from peg_rag.cli import knowledge
    from peg_rag.errors import InvalidInput
    from peg_rag.extras import require

    require("mcp", "mcp")
    from peg_rag.mcp_server import KnowledgeReader, Links, create_server

    if mode not in knowledge.MODES:
        raise InvalidInput(f"--mode {mode}: one of {', '.join(knowledge.MODES)} is expected")
    keys = _load_keys(key_file) if private else None
    links = Links(None if http else store, base_url)
    with knowledge.open_store(store, model) as (index, encoder):
        reader = KnowledgeReader(index, encoder, links, k=k, mode=cast("Mode", mode), threshold=threshold)
        if http:
            _serve_http(reader, store, host.strip("[]"), port, allowed_host or [], keys)
        else:
            create_server(reader).run("stdio")


def _load_keys(file: Path | None) -> "ApiKeys":
    from peg_rag.errors import InvalidInput
    from peg_rag.serving.keys import KEYS_VARIABLE, ApiKeys

    keys = ApiKeys.load(file)
    if not keys:
        raise InvalidInput(f"--private needs a key, or nobody could read; set {KEYS_VARIABLE} or give --key-file")
    return keys


def _serve_http(
    reader: "KnowledgeReader", store: Path, host: str, port: int, allowed_hosts: list[str], keys: "ApiKeys | None"
) -> None:
    from peg_rag.cli.console import stderr, warn
    from peg_rag.mcp_server import PATH, create_http_app, create_server, listen, serve_http

    app = create_http_app(create_server(reader), host=host, allowed_hosts=allowed_hosts, keys=keys)
    with listen(host, port) as listening:
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{listening.getsockname()[1]}{PATH}"
        stderr.print(f"Serving {store} at {address}", style="bold", markup=False, soft_wrap=True)
        if host not in _LOOPBACK and keys is None:
            warn("everybody who reaches this address can read; ask for a key with --private")
        signal.signal(signal.SIGTERM, _exit_cleanly)  # uvicorn drains on the signal, then hands it on to this
        serve_http(app, listening)


def _exit_cleanly(*_: object) -> NoReturn:
    """Unwind, so that the store is closed, and say that all is well."""
    sys.exit(0)
