"""The worker process that runs a model on one device for a `DevicePool`: `python -m peg_rag.backends.worker`.

The first message says what to load. Then each message is a batch of token ids, answered by its vectors or its error.
A thread reads ahead, so that the next batch is here when one is done, and ends the process when the pipe is closed.
"""

import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from peg_rag.backends.base import Backend, name_backend, open_backend
from peg_rag.backends.messages import Header, describe_error, read_message, unpack_rows, write_message
from peg_rag.errors import PegRagError
from peg_rag.models import ModelSpec, resolve
from peg_rag.processes import end_with_parent, take_stdout

Requests = queue.SimpleQueue[tuple[Header, bytearray]]


def serve_batches() -> None:
    """Answer messages until the pipe is closed."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    replies = take_stdout()
    requests: Requests = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    settings, _ = requests.get()
    try:
        backend = _load_backend(settings)
    except Exception as error:
        write_message(replies, {"error": describe_error(error)})
        return
    write_message(
        replies,
        {
            "backend": name_backend(backend),
            "device": backend.device,
            "dtype": backend.dtype,
            "batch_tokens": backend.batch_tokens,
            "vocabulary_size": backend.vocabulary_size,
        },
    )
    while True:
        _, content = requests.get()
        _answer_batch(backend, content, replies)


def _read_requests(requests: Requests) -> None:
    """Hand on messages; end the process as soon as the other end of the pipe is gone, whatever is being computed."""
    try:
        while True:
            requests.put(read_message(sys.stdin.buffer))
    finally:
        os._exit(0)


def _load_backend(settings: dict[str, Any]) -> Backend:
    spec = ModelSpec(**settings["spec"] | {"path": Path(settings["spec"]["path"])})
    if resolve(spec.path, pooling=spec.pooling).fingerprint != spec.fingerprint:
        raise PegRagError(f"the weights in {spec.path} are not those that this encoder began with; make a new encoder")
    return open_backend(settings["backend"], spec, device=settings["device"], dtype=settings["dtype"])


def _answer_batch(backend: Backend, content: bytearray, replies: BinaryIO) -> None:
    try:
        vectors = backend.embed(unpack_rows(content))  # (rows, dimension)
    except Exception as error:
        write_message(replies, {"error": describe_error(error)})
        return
    write_message(replies, {"shape": vectors.shape, "batch_tokens": backend.batch_tokens}, vectors)


if __name__ == "__main__":
    serve_batches()
