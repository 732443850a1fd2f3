"""`peg-rag ask` with a language model, a real OpenAI-compatible server on 127.0.0.1: one question, conversations."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from language_model_server import KEY, ChatServer, chatting
from serving_fixtures import served_model, store

from peg_rag.answer import NOT_FOUND
from peg_rag.cli.app import run

__all__ = ["served_model", "store"]
QUESTION = "花呗怎么绑定银行卡"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_MODEL", raising=False)


def options(endpoint: ChatServer, model: str = "good") -> list[str]:
    return ["--llm-url", endpoint.url, "--llm-model", model, "--llm-key-env", "A_KEY"]


def passages_of(endpoint: ChatServer) -> list[dict[str, str]]:
    content = endpoint.requests[-1]["messages"][-1]["content"]
    sent: list[dict[str, str]] = json.loads(content.removeprefix("Passages:\n").rpartition("\n\nQuestion: ")[0])
    return sent


def test_a_written_answer_is_printed_with_its_sources(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(store), QUESTION, *options(endpoint)]) == 0
    out, err = capsys.readouterr()
    answer, _, sources = out.partition("\n\n")
    assert "[1]" in answer
    assert "[2]" in answer
    places = [line[4:] for line in sources.splitlines()]
    sent = passages_of(endpoint)
    assert [place.split(" · ")[0] for place in places] == [passage["place"].split(" · ")[0] for passage in sent[:2]]
    assert any("绑定银行卡" in passage["place"] for passage in sent)
    assert "written by good at 127.0.0.1" in err
    assert KEY not in out + err


def test_json_holds_the_answer_and_the_passages_it_cites(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(store), QUESTION, "--json", "-k", "2", *options(endpoint)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["found"], answer["complete"], answer["model"]) == (True, True, "good")
    assert [source["number"] for source in answer["sources"]] == [1, 2]
    assert [source["text"] for source in answer["sources"]] == [passage["text"] for passage in passages_of(endpoint)]


def test_not_found_has_the_exit_code_of_quoted_answers(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(store), QUESTION, *options(endpoint, "unknowing")]) == 3
    assert capsys.readouterr().out.strip() == NOT_FOUND


@pytest.mark.parametrize(("model", "message"), [("500", "status 500"), ("cut", "broke off"), ("busy", "busy")])
def test_a_failing_endpoint_is_one_message(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert run(["ask", str(store), QUESTION, *options(endpoint, model)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_conversation_keeps_its_history(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = len(endpoint.requests)
    monkeypatch.setattr("sys.stdin", io.StringIO("花呗怎么还款\n\n那利率呢\n/new\n故宫周一开门吗\n"))
    assert run(["ask", str(store), "--chat", *options(endpoint)]) == 0
    contents = [request["messages"][-1]["content"] for request in endpoint.requests[calls:]]
    assert [content.split("\n")[0] for content in contents] == ["Passages:", "Conversation:", "Passages:", "Passages:"]
    assert [content.rpartition("uestion: ")[2] for content in contents] == [
        "花呗怎么还款",
        "那利率呢",
        "花呗怎么还款 那利率呢",
        "故宫周一开门吗",
    ]
    out, err = capsys.readouterr()
    assert out.count("[1] ") == 3
    assert "searched for: 花呗怎么还款 那利率呢" in err


def test_a_failed_turn_does_not_end_a_conversation(
    endpoint: ChatServer, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("故宫\n"))
    assert run(["ask", str(store), "--chat", *options(endpoint, "500")]) == 0
    assert "Error: the language model's endpoint answered with status 500" in capsys.readouterr().err


def test_a_conversation_works_without_a_language_model(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("故宫周一闭馆吗\n"))
    assert run(["ask", str(store), QUESTION, "--chat", "--threshold", "0"]) == 0
    assert capsys.readouterr().err.count("extractive answer") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--chat"),
        ([QUESTION, "--chat", "--json"], "--json"),
        ([QUESTION, "--llm-url", "http://127.0.0.1:1/v1"], "--llm-model"),
        ([QUESTION, "--llm-url", "no address", "--llm-model", "a"], "--llm-url: "),
        ([QUESTION, "--llm-url", "http://a/v1", "--llm-model", "a", "--llm-key-env", "NO_KEY"], r"$NO_KEY"),
        ([QUESTION, "--llm-url", "http://a/v1", "--llm-model", "a", "--llm-key-env", "BAD_KEY"], "--llm-key-env"),
    ],
)
def test_wrong_usage_names_the_option(
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk-密钥")
    assert run(["ask", str(store), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "sk-密钥" not in err


@pytest.mark.parametrize("typed", [None, b"\xff\xfe\n" + QUESTION.encode() + b"\n"])
def test_a_conversation_without_input_or_with_broken_input_ends_in_order(store: Path, typed: bytes | None) -> None:
    script = "import sys; from peg_rag.cli.app import run; sys.exit(run(['ask', sys.argv[1], '--chat']))"
    command = [sys.executable, "-c", script, str(store)]
    if typed is None:  # a service may be started without a standard input
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, input=typed, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert ("银行卡" in result.stdout.decode()) == (typed is not None)
