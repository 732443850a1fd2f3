"""A small OpenAI-compatible chat server for the tests, on 127.0.0.1, in the real wire format.

It answers with the first sentences of the passages it was given, cited, and puts the question before it in front of a
follow-up question. The model's name says how it misbehaves.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

KEY = "sk-a-key-of-the-language-model"


class ChatServer:
    """The application, and what it was asked."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)
        self.requests: list[dict[str, Any]] = []
        self.hung_up = threading.Event()  # a client left in the middle of an answer
        self.url = ""

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        model = body["model"]
        if request.headers.get("authorization") != f"Bearer {KEY}":
            message = f"Incorrect API key provided for: {body['messages'][-1]['content']}"
            return JSONResponse({"error": {"message": message, "code": "invalid_api_key"}}, 401)
        if model == "busy":
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": "7"})
        if model in ("404", "500", "302"):
            headers = {"Location": "http://127.0.0.1:1/"} if model == "302" else {}
            return JSONResponse({"error": {"message": model}}, int(model), headers)
        if model == "html":
            return Response("<html>not an API</html>", media_type="text/html")
        return StreamingResponse(self.stream(model, body), media_type="text/event-stream")

    async def stream(self, model: str, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            yield chunk(model, {"role": "assistant", "content": ""})
            for piece in pieces_of(model, body):
                yield chunk(model, {"content": piece})
                await asyncio.sleep(5 if model == "slow" else 0.02)
            if model == "broken JSON":
                yield 'data: {"choices": [{"delta": {"cont\n\n'
            if model == "another JSON":
                yield 'data: {"choices": "none"}\n\n'
            if model == "error":
                yield 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
            if model == "cut":
                return
            yield chunk(model, {}, {"long": "length", "filtered": "content_filter"}.get(model, "stop"))
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            yield f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up.set()
            raise


def chunk(model: str, delta: dict[str, str], finish: str | None = None) -> str:
    data = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return f"data: {json.dumps(data)}\n\n"


def pieces_of(model: str, body: dict[str, Any]) -> list[str]:
    """The answer in pieces of three characters, as a tokenizer might cut it."""
    follow_up = re.search(r"(?s)Conversation:\n(\[.*\])\n\nLast question: (.*)", body["messages"][-1]["content"])
    if follow_up:
        return cut(model, rewrite(model, json.loads(follow_up[1]), follow_up[2]))
    match = re.search(r"(?s)Passages:\n(\[.*\])\n\nQuestion:", body["messages"][-1]["content"])
    assert match
    passages = json.loads(match[1])
    quoted = [f"{re.split('(?<=。)', p['text'].splitlines()[-1])[0]}[{p['number']}]" for p in passages[:2]]
    text = {
        "unknowing": "NOT_FOUND",
        "chatty unknowing": "NOT_FOUND\n\nThe passages do not say.",
        "uncited": "就是这样。",
        "odd citations": "一【1】，二[1, 2]，三[99]，四[x]。",
        "silent": "",
        "only thinks": "<think>让我想想",
        "endless": "很长" * 12_000,
    }.get(model, "".join(quoted))
    if model == "thinks":
        text = f"<think>\nNOT_FOUND? 让我想想。</think>\n\n{text}"
    return cut(model, text)


def rewrite(model: str, turns: list[dict[str, str]], question: str) -> str:
    """A follow-up question that can be understood on its own."""
    return {
        "thinks": f"<think>什么意思？</think>\n“{turns[-1]['question']} {question}”",
        "rambling": "好的，" * 1_000,
        "silent": "",
        "unknowing": "NOT_FOUND",
    }.get(model, f"{turns[-1]['question']} {question}")


def cut(model: str, text: str) -> list[str]:
    size = 1000 if model == "endless" else 3
    return [text[start : start + size] for start in range(0, len(text), size)]


@contextmanager
def chatting() -> Iterator[ChatServer]:
    """The server, running in a thread on a free port."""
    chat = ChatServer()
    server = uvicorn.Server(uvicorn.Config(chat.app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 60
    while not server.started and time.monotonic() < give_up:
        time.sleep(0.01)
    chat.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield chat
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
