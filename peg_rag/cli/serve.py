"""`peg-rag serve kb`: embeddings, search and cited answers over HTTP, and a web page at `/`."""

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

_LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "::1", "[::1]"]
_OPTION_NAMES = {
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
        typer.Option(
            help="A file of keys that may write, one per line, in addition to the comma-separated $PEG_RAG_API_KEYS."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name of the server, such as rag.example.org; may be repeated. Default: localhost's names "
            "when listening on a loopback address, else any name."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Require a key for reading too.")] = False,
    llm_url: Annotated[
        str,
        typer.Option(
            envvar="OPENAI_BASE_URL",
            help="An OpenAI-compatible endpoint whose language model writes the answers of /ask: questions and the "
            "retrieved passages are sent there, with the key in $OPENAI_API_KEY if it is set. Without this option, "
            "or with '', answers are quoted from the documents.",
        ),
    ] = "",
    llm_model: Annotated[str, typer.Option(envvar="OPENAI_MODEL", help="The name of the language model.")] = "",
    llm_timeout: Annotated[
        float, typer.Option(min=1, help="Longest wait for the next piece of its answer, in seconds.")
    ] = 60.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Maximum number of requests in flight; further ones get 429.")
    ] = 256,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Maximum size of an upload, in MiB.")] = 32,
    request_timeout: Annotated[float, typer.Option(min=1, help="Maximum time for a request, in seconds.")] = 600.0,
    drain_timeout: Annotated[
        int, typer.Option(min=1, help="Time for requests in flight to finish after SIGTERM, in seconds.")
    ] = 30,
) -> None:
    """Serve a store over HTTP: OpenAI-compatible /v1/embeddings, /search, /ask, /documents, and a page."""
    # Searches run in parallel threads. Matrix products that start more threads only compete for the cores (four times
    # slower, measured on two cores). NumPy reads the variable when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from peg_rag.encoder import PEGEncoder
    from peg_rag.extras import require
    from peg_rag.ingest import model_of

    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "fastapi_swagger", "httpx_sse"):
        require(module, "serve")
    from peg_rag.serving.app import create_app
    from peg_rag.serving.language_model import LanguageModel
    from peg_rag.serving.launch import serve as run_server
    from peg_rag.serving.settings import MIB, ServerSettings

    keys = _load_keys(key_file, private)
    _check_store(store, keys)
    llm_settings = _read_llm_settings(llm_url, llm_model, llm_timeout, request_timeout) if store else None
    settings = ServerSettings(
        private=private,
        max_in_flight=max_in_flight,
        max_upload_bytes=max_upload_mb * MIB,
        request_timeout_s=request_timeout,
        drain_timeout_s=drain_timeout,
    )
    if model is None and store is not None:
        model = model_of(store)
    with ExitStack() as stack:
        encoder = stack.enter_context(PEGEncoder(model, device=device, dtype=dtype))
        knowledge = stack.enter_context(_open_knowledge(store, encoder, model, keys, settings)) if store else None
        _announce_server(host, port, store, encoder, bool(keys), llm_settings)
        hosts = allowed_host or (_LOOPBACK_HOSTS if host in _LOOPBACK_HOSTS else ["*"])
        language_model = LanguageModel(llm_settings) if llm_settings else None
        app = create_app(encoder, knowledge, keys=keys, language_model=language_model, settings=settings, hosts=hosts)
        run_server(app, settings, host=host, port=port)


def _load_keys(file: Path | None, private: bool) -> "ApiKeys":
    from peg_rag.errors import InvalidInput
    from peg_rag.serving.keys import KEYS_VARIABLE, ApiKeys

    keys = ApiKeys.load(file)
    if private and not keys:
        raise InvalidInput(f"--private needs a key, or nobody could read; set {KEYS_VARIABLE} or pass --key-file")
    return keys


def _read_llm_settings(
    url: str, model: str, timeout_s: float, request_timeout_s: float
) -> "LanguageModelSettings | None":
    """The settings of the language model; None if answers are quoted.

    An answer times out before its request, with time left for the search, so that the client learns what took too long.
    """
    from peg_rag.cli.language_model import check_settings
    from peg_rag.errors import InvalidInput

    if not url:
        return None
    if not model:
        raise InvalidInput(
            f"a language model's endpoint is given ({url}) but no model; set OPENAI_MODEL or pass --llm-model, "
            "or pass --llm-url '' to have answers quoted from the documents"
        )
    values = {
        "base_url": url,
        "model": model,
        "api_key": os.environ.get("OPENAI_API_KEY", ""),
        "silence_timeout_s": timeout_s,
        "answer_timeout_s": min(max(300.0, 2 * timeout_s), 0.9 * request_timeout_s),
    }
    return check_settings(values, _OPTION_NAMES)


def _check_store(store: Path | None, keys: "ApiKeys") -> None:
    from peg_rag.errors import InvalidInput
    from peg_rag.serving.keys import KEYS_VARIABLE

    if store is not None and not store.is_dir() and not keys:
        raise InvalidInput(
            f"{store}: there is no store. Create one with `peg-rag index DOCUMENTS --store {store}`, "
            f"or set {KEYS_VARIABLE} to start with an empty one and upload"
        )


@contextmanager
def _open_knowledge(
    store: Path, encoder: "PEGEncoder", model: str | None, keys: "ApiKeys", settings: "ServerSettings"
) -> "Iterator[KnowledgeBase]":
    """Open the store: read-only without keys; else for writing, and created if there is none."""
    from peg_rag.cli.knowledge import absolute_model
    from peg_rag.extras import require
    from peg_rag.index import PEGIndex
    from peg_rag.serving.knowledge import KnowledgeBase

    if keys:
        require("trafilatura", "ingest")  # fail now rather than at the first upload
    with PEGIndex(store, identity=encoder.identity, dimension=encoder.dimension, read_only=not keys) as index:
        yield KnowledgeBase(
            store,
            index,
            encoder,
            model=absolute_model(model, encoder.spec.name),
            conversion_timeout_s=settings.conversion_timeout_s,
        )


def _announce_server(
    host: str,
    port: int,
    store: Path | None,
    encoder: "PEGEncoder",
    writable: bool,
    llm: "LanguageModelSettings | None",
) -> None:
    from peg_rag.cli.console import stderr, warn
    from peg_rag.serving.keys import KEYS_VARIABLE

    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    service = f"{store} with {encoder.spec.name}" if store else f"embeddings of {encoder.spec.name}"
    stderr.print(f"Serving {service} at {url} (API: /docs)", style="bold", markup=False, soft_wrap=True)
    if llm:
        place = "on this machine" if llm.local else "which is another machine"
        warn(f"answers are written by {llm.model} at {llm.host}, {place}: questions and passages are sent there")
    if store and not writable:
        warn(f"no key is set, so documents can be read but not changed; set {KEYS_VARIABLE} to allow it")
    if host not in _LOOPBACK_HOSTS:
        warn("everyone who can reach this address can read; put a TLS proxy before it, or require a key with --private")
