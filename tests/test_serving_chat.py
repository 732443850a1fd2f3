"""`/v1/chat/completions`, as OpenAI's client and LangChain's `ChatOpenAI` meet it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from language_model_server import KEY, ChatServer, chatting
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import SecretStr
from serving_fixtures import served_model, store, threaded

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.answer import NOT_FOUND
from peg_rag.serving.app import create_app
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.language_model import LanguageModel
from peg_rag.serving.settings import LanguageModelSettings, ServerSettings

Running = AbstractContextManager[tuple[str, uvicorn.Server]]
Serve = Callable[..., Running]
__all__ = ["served_model", "store"]
QUESTION = "花呗怎么绑定银行卡"
MESSAGES: list[Any] = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
]


@pytest.fixture(scope="module")
def openai(store: Path, served_model: str) -> Iterator[tuple[OpenAI, str]]:
    """OpenAI's client of a server without a language model, and the server's address."""
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder))
        with threaded(app, ServerSettings()) as (url, _), OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            yield client, url


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatServer]:
    """An OpenAI-compatible endpoint with models that answer, fail or stall."""
    with chatting() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def generating(chat: ChatServer, store: Path, served_model: str) -> Iterator[Serve]:
    """A function that serves the store with one of these models: its address and server."""
    with (
        PEGEncoder(served_model) as encoder,
        PEGIndex(store, identity=encoder.identity, read_only=True) as index,
    ):
        knowledge = KnowledgeBase(store, index, encoder)

        def serve(model: str) -> Running:
            settings = LanguageModelSettings.model_validate(
                {"base_url": chat.url, "model": model, "api_key": KEY, "silence_timeout_s": 60.0}
            )
            return threaded(create_app(encoder, knowledge, language_model=LanguageModel(settings)), ServerSettings())

        yield serve


def ask(url: str, **options: Any) -> Any:
    return httpx.post(f"{url}/ask", json={"question": QUESTION, "stream": False, **options}, timeout=30).json()


def citations_of(answer: ChatCompletion | ChatCompletionChunk) -> Any:
    """The field that OpenAI's own answers do not have."""
    return (answer.model_extra or {})["citations"]


def test_the_openai_client_gets_the_answer_of_ask_with_its_sources(openai: tuple[OpenAI, str]) -> None:
    client, url = openai
    body = {"question": QUESTION, "stream": False, "threshold": None}
    answer = httpx.post(f"{url}/ask", json=body, timeout=30).json()
    completion = client.chat.completions.create(model="peg-rag", messages=MESSAGES, temperature=0.2)
    text, _, sources = (completion.choices[0].message.content or "").partition("\n\n[")
    assert completion.object == "chat.completion"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.role == "assistant"
    assert text == answer["text"]
    assert citations_of(completion) == answer["citations"]
    assert sources.count("\n") + bool(sources) == len(answer["citations"])
    assert all(citation["source"] in sources for citation in answer["citations"])


def test_a_stream_adds_up_to_the_whole_answer(openai: tuple[OpenAI, str]) -> None:
    client, _ = openai
    whole = client.chat.completions.create(model="peg-rag-extractive", messages=MESSAGES)
    chunks = list(
        client.chat.completions.create(
            model="peg-rag-extractive", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert citations_of(chunks[-1]) == citations_of(whole)
    assert len({chunk.id for chunk in chunks}) == 1


def test_search_options_reach_the_search(openai: tuple[OpenAI, str]) -> None:
    client, _ = openai
    completion = client.chat.completions.create(
        model="peg-rag", messages=MESSAGES, extra_body={"where": {"source": "nowhere"}, "k": 1, "mode": "dense"}
    )
    assert completion.choices[0].message.content == NOT_FOUND
    assert citations_of(completion) == []


async def test_langchain_gets_whole_and_streamed_answers(openai: tuple[OpenAI, str]) -> None:
    from langchain_openai import ChatOpenAI

    client, url = openai
    expected = client.chat.completions.create(model="peg-rag", messages=MESSAGES).choices[0].message.content
    chat = ChatOpenAI(model="peg-rag", base_url=f"{url}/v1", api_key=SecretStr(KEY), max_retries=0)
    assert chat.invoke(QUESTION).content == expected
    assert (await chat.ainvoke([("system", "简短回答"), ("user", QUESTION)])).content == expected
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == expected


def test_the_turns_before_a_follow_up_question_say_what_it_means(generating: Serve, chat: ChatServer) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "故宫周一开门吗"},
        {"role": "assistant", "content": "周一闭馆。[1]\n\n[1] 故宫.txt"},
        {"role": "user", "content": "没有答复的问题"},
        {"role": "user", "content": "那门票呢"},
    ]
    with generating("good") as (url, _), OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        whole = client.chat.completions.create(model="peg-rag", messages=messages)
        asked = chat.requests[-1]["messages"][-1]["content"]
        chunks = list(client.chat.completions.create(model="peg-rag", messages=messages, stream=True))
        quoted = client.chat.completions.create(model="peg-rag-extractive", messages=messages[:1])
    assert asked.endswith("Question: 故宫周一开门吗 那门票呢")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert quoted.choices[0].message.content


def test_generated_answers_are_streamed_with_their_sources(generating: Serve) -> None:
    with generating("good") as (url, _), OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        history = [{"question": "你好", "answer": "你好！"}]  # as MESSAGES
        answer = ask(url, history=history)
        chunks = list(client.chat.completions.create(model="peg-rag-generated", messages=MESSAGES, stream=True))
        quotes = client.chat.completions.create(model="peg-rag-extractive", messages=MESSAGES)
        extractive = ask(url, answers="extractive", history=history)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(chunks) > 4  # pieces as they come, not the whole at once
    assert text.startswith(answer["text"] + "\n\n[1] ")
    assert citations_of(chunks[-1]) == answer["citations"]
    assert (quotes.choices[0].message.content or "").startswith(extractive["text"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_of_the_language_model_is_an_error_of_the_client(generating: Serve, stream: bool) -> None:
    with (
        generating("busy") as (url, _),
        OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
        pytest.raises(APIError, match="busy"),
    ):
        list(client.chat.completions.create(model="peg-rag", messages=MESSAGES, stream=stream))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "gpt-4o"}, NotFoundError, "peg-rag-extractive"),
        ({"model": "peg-rag-generated"}, BadRequestError, "no language model"),
        ({"messages": [{"role": "system", "content": "a"}]}, BadRequestError, "last user message"),
        ({"messages": [{"role": "user", "content": " "}]}, BadRequestError, "last user message"),
        ({"messages": [{"role": "user", "content": "长" * 10_001}]}, BadRequestError, "10,000 characters"),
        ({"messages": []}, BadRequestError, "messages"),
        ({"n": 2}, BadRequestError, "n: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, BadRequestError, "tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
            BadRequestError,
            "messages",
        ),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(
    openai: tuple[OpenAI, str], changes: dict[str, Any], error: type[APIError], message: str
) -> None:
    client, _ = openai
    with pytest.raises(error, match=message):
        client.chat.completions.create(**{"model": "peg-rag", "messages": MESSAGES, **changes})


def test_the_list_of_models_names_those_that_can_be_asked(openai: tuple[OpenAI, str], generating: Serve) -> None:
    client, _ = openai
    names = [model.id for model in client.models.list()]
    assert names[1:] == ["peg-rag", "peg-rag-extractive"]
    for name in names[1:]:
        assert client.chat.completions.create(model=name, messages=MESSAGES).choices
        assert client.models.retrieve(name).owned_by == "peg-rag"
    with pytest.raises(NotFoundError, match="unknown model 'peg-rag-generated'"):
        client.models.retrieve("peg-rag-generated")
    with generating("good") as (url, _), OpenAI(base_url=f"{url}/v1", api_key=KEY) as other:
        assert [model.id for model in other.models.list()][1:] == ["peg-rag", "peg-rag-extractive", "peg-rag-generated"]


def test_a_server_of_embeddings_alone_lists_no_chat_model(served_model: str) -> None:
    with PEGEncoder(served_model) as encoder, threaded(create_app(encoder), ServerSettings()) as (url, _):
        assert len(httpx.get(f"{url}/v1/models").json()["data"]) == 1
        assert httpx.get(f"{url}/v1/models/peg-rag").status_code == 404


def test_a_disconnected_client_stops_the_language_model(generating: Serve, chat: ChatServer) -> None:
    with generating("slow") as (url, _), OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        chat.hung_up.clear()
        with client.chat.completions.create(model="peg-rag", messages=MESSAGES, stream=True) as stream:
            assert any(chunk.choices[0].delta.content for chunk in stream)
        assert chat.hung_up.wait(30)  # before the server's own timeout of 60 seconds


def test_a_private_server_requires_a_key(store: Path, served_model: str) -> None:
    with PEGEncoder(served_model) as encoder, PEGIndex(store, identity=encoder.identity, read_only=True) as index:
        app = create_app(encoder, KnowledgeBase(store, index, encoder), settings=ServerSettings(private=True))
        with threaded(app, ServerSettings()) as (url, _):
            body = {"model": "peg-rag", "messages": MESSAGES}
            assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401
