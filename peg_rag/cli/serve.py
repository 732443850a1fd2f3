"""`peg-rag serve kb`: embeddings, search and cited answers over HTTP, with a page at `/`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder
    from peg_rag.serving.keys import ApiKeys
    from peg_rag.serving.knowledge import KnowledgeBase
    from peg_rag.serving.settings import LanguageModelSettings, ServerSettings

_LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]
_GIVEN_AS = {
    "base_url": "--llm-url or OPENAI_BASE_URL",
    "model": "--llm-model or OPENAI_MODEL",
    "api_key": "OPENAI_API_KEY",
    "silence_timeout_s": "--llm-timeout",
    "answer_timeout_s": "--llm-timeout and --request-timeout",
}


def serve(
    store: Annotated[
        Path | None,
        typer.Argument(help="A folder made by `peg-rag index`, or a new one. Without it only embeddings are served."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535)] = 8000,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Hub id, folder or peg-mini. Default: the store's, $PEG_RAG_MODEL, TownsWu/PEG."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Keys that may write, one in a line; besides those in $PEG_RAG_API_KEYS, between commas."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name the server goes by, such as rag.example.org; may be repeated. Default: only this "
            "machine's own names when listening on it alone, else any."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Reading needs a key too.")] = False,
    llm_url: Annotated[
        str,
        typer.Option(
            envvar="OPENAI_BASE_URL",
            help="An OpenAI-compatible endpoint whose language model writes the answers of /ask: questions and the "
            "passages found for them are sent there, with the key in $OPENAI_API_KEY if it is set. Without it, or "
            "with '', answers are quoted from the documents.",
        ),
    ] = "",
    llm_model: Annotated[str, typer.Option(envvar="OPENAI_MODEL", help="The language model's name there.")] = "",
    llm_timeout: Annotated[float, typer.Option(min=1, help="Longest silence of the language model, seconds.")] = 60.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests answered at once; more get 429.")] = 256,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload, in MiB.")] = 32,
    request_timeout: Annotated[float, typer.Option(min=1, help="Seconds for a request.")] = 600.0,
    drain_timeout: Annotated[int, typer.Option(min=1, help="Seconds for requests in flight after SIGTERM.")] = 30,
) -> None:
    """Serve a store over HTTP: OpenAI-compatible /v1/embeddings, /search, /ask, /documents, and a page."""
    # Searches run side by side, each in a thread: products that start threads of their own only get in each other's
    # way (four times slower, measured on two cores). Read when numpy is imported, so it is set before.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from peg_rag.encoder import PEGEncoder
    from peg_rag.extras import require
    from peg_rag.ingest import model_of

    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "fastapi_swagger", "httpx_sse"):
        require(module, "serve")
    from peg_rag.serving.api import create_app
    from peg_rag.serving.generate import LanguageModel
    from peg_rag.serving.run import serve as run
    from peg_rag.serving.settings import MIB, ServerSettings

    keys = _keys(key_file, private)
    _check_store(store, keys)
    writer = _language_model(llm_url, llm_model, llm_timeout, request_timeout) if store else None
    settings = ServerSettings(
        private=private,
        max_in_flight=max_in_flight,
        max_upload_bytes=max_upload_mb * MIB,
        request_timeout_s=request_timeout,
        drain_timeout_s=drain_timeout,
    )
    chosen = model or (model_of(store) if store else None)
    with ExitStack() as opened:
        encoder = opened.enter_context(PEGEncoder(chosen, device=device, dtype=dtype))
        knowledge = opened.enter_context(_knowledge(store, encoder, chosen, keys, settings)) if store else None
        _announce(host, port, store, encoder, bool(keys), writer)
        hosts = allowed_host or (_LOOPBACK if host in _LOOPBACK else ["*"])
        language_model = LanguageModel(writer) if writer else None
        app = create_app(encoder, knowledge, keys=keys, language_model=language_model, settings=settings, hosts=hosts)
        run(app, settings, host=host, port=port)


def _keys(file: Path | None, private: bool) -> "ApiKeys":
    from peg_rag.errors import InvalidInput
    from peg_rag.serving.keys import KEYS_VARIABLE, ApiKeys

    keys = ApiKeys.load(file)
    if private and not keys:
        raise InvalidInput(f"--private needs a key, or nobody could read; set {KEYS_VARIABLE} or give --key-file")
    return keys


def _language_model(url: str, model: str, timeout_s: float, request_timeout_s: float) -> "LanguageModelSettings | None":
    """Where answers are written, if anywhere.

    An answer ends before its request does, with time for the search, so that the reader is told what took too long.
    """
    from pydantic import ValidationError

    from peg_rag.errors import InvalidInput
    from peg_rag.serving.settings import LanguageModelSettings

    if not url:
        return None
    if not model:
        raise InvalidInput(
            f"a language model's endpoint is given ({url}) and no model; set OPENAI_MODEL or give --llm-model, "
            "or --llm-url '' to have answers quoted from the documents"
        )
    try:
        return LanguageModelSettings.model_validate(
            {
                "base_url": url,
                "model": model,
                "api_key": os.environ.get("OPENAI_API_KEY", ""),
                "silence_timeout_s": timeout_s,
                "answer_timeout_s": min(max(300.0, 2 * timeout_s), 0.9 * request_timeout_s),
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{_GIVEN_AS[str(first['loc'][0])]}: {message}") from error


def _check_store(store: Path | None, keys: "ApiKeys") -> None:
    from peg_rag.errors import InvalidInput
    from peg_rag.serving.keys import KEYS_VARIABLE

    if store is not None and not store.is_dir() and not keys:
        raise InvalidInput(
            f"{store}: there is no store. Make one with `peg-rag index DOCUMENTS --store {store}`, "
            f"or set {KEYS_VARIABLE} to start with an empty one and upload"
        )


@contextmanager
def _knowledge(
    store: Path, encoder: "PEGEncoder", model: str | None, keys: "ApiKeys", settings: "ServerSettings"
) -> "Iterator[KnowledgeBase]":
    """The store: opened for writing, and made where it is not there, only if somebody may write."""
    from peg_rag.extras import require
    from peg_rag.index import PEGIndex
    from peg_rag.serving.knowledge import KnowledgeBase

    if keys:
        require("trafilatura", "ingest")  # said now rather than at the first upload
    with PEGIndex(store, identity=encoder.identity, dimension=encoder.dimension, read_only=not keys) as index:
        folder = Path(model).expanduser() if model else None
        name = str(folder.resolve()) if folder and folder.is_dir() else model or encoder.spec.name
        yield KnowledgeBase(store, index, encoder, model=name, conversion_timeout_s=settings.conversion_timeout_s)


def _announce(
    host: str,
    port: int,
    store: Path | None,
    encoder: "PEGEncoder",
    writable: bool,
    writer: "LanguageModelSettings | None",
) -> None:
    from peg_rag.cli.console import stderr, warn
    from peg_rag.serving.keys import KEYS_VARIABLE

    shown = f"[{host}]" if ":" in host else host
    what = f"{store} with {encoder.spec.name}" if store else f"embeddings of {encoder.spec.name}"
    stderr.print(f"Serving {what} at http://{shown}:{port} (API: /docs)", style="bold", markup=False, soft_wrap=True)
    if writer:
        where = "on this machine" if writer.local else "which is another machine"
        warn(f"answers are written by {writer.model} at {writer.host}, {where}: questions and passages are sent there")
    if store and not writable:
        warn(f"no key is set, so documents can be read and not written; set {KEYS_VARIABLE} to allow it")
    if host not in _LOOPBACK:
        warn("everybody who reaches this address can read; put TLS before it, or keep it private with --private")
