"""The command line in Chinese: every text of the help and of the commands has a translation, and so has every error."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import typer

import peg_rag.cli
from peg_rag import errors
from peg_rag.cli import messages
from peg_rag.cli.app import VERBS, app, run

CHINESE = re.compile("[\u4e00-\u9fff]")
TEXTS: dict[str, str] = messages.load_catalogue()["texts"]


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def untouched_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a translation changes in typer is undone afterwards."""
    from typer import rich_utils

    for name in dir(rich_utils):
        if name.isupper() or name == "_make_rich_text":
            monkeypatch.setattr(rich_utils, name, getattr(rich_utils, name))


def help_texts(command: Any) -> Iterator[str]:
    if command.help:
        yield command.help
    for parameter in command.params:
        if getattr(parameter, "help", None):
            yield parameter.help
    for subcommand in getattr(command, "commands", {}).values():
        yield from help_texts(subcommand)


def translated_texts() -> Iterator[str]:
    """The texts that the commands hand to `translate`."""
    for file in Path(peg_rag.cli.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="translate"), args=[ast.Constant(value=str(text))]):
                    yield text


def test_every_text_of_the_help_has_a_translation() -> None:
    texts = set(help_texts(typer.main.get_command(app)))
    assert len(texts) > 100
    assert sorted(texts - set(TEXTS)) == []


def test_every_text_of_the_commands_has_a_translation() -> None:
    texts = set(translated_texts())
    assert len(texts) > 30
    assert sorted(texts - set(TEXTS)) == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_translation_is_chinese_and_keeps_the_fields(text: str) -> None:
    translation = TEXTS[text]
    names = re.fullmatch(r"[a-z0-9:, .]+ or [a-z0-9:]+\.|(?:[a-z0-9]+, )+mps\.", text)  # nothing but values
    assert CHINESE.search(translation) or names
    assert fields(translation) == fields(text)
    assert sorted(re.findall(r"--[a-z-]+|\$[A-Z_]+", translation)) == sorted(re.findall(r"--[a-z-]+|\$[A-Z_]+", text))


def fields(text: str) -> list[tuple[str, str | None]]:
    return sorted((name, spec) for _, name, spec, _ in Formatter().parse(text) if name is not None)


def error_classes() -> list[type[Exception]]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [*classes, OSError]


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_has_a_kind_and_a_cure_in_chinese(cls: type[Exception], chinese: None) -> None:
    description = messages.describe_error(cls("what happened"))
    assert description is not None
    assert all(CHINESE.search(text) for text in description)
    assert cls.__name__ in messages.load_catalogue()["errors"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh"}, True),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, False),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_US"}, True),
        ({"LC_ALL": "", "LANG": "zh_CN"}, True),
        ({"LANG": "C.UTF-8"}, False),
        ({}, False),
    ],
)
def test_the_locale_chooses_the_language(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert messages.is_chinese() is expected
    assert messages.translate("Print JSON.") == ("以 JSON 格式打印。" if expected else "Print JSON.")
    assert messages.translate("no such text") == "no such text"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_is_chinese_and_whole(verb: str, chinese: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich breaks lines at spaces, and used to cut the end of Chinese sentences off."""
    assert run([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "选项" in printed
    assert "…" not in printed.replace("……", "")
    shown = re.sub(r"[\s│]", "", printed)
    assert "显示本说明并退出。" in shown


def test_errors_are_chinese(chinese: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["search", str(tmp_path / "无"), "问"]) == 2
    printed = capsys.readouterr().err.replace("\n", "")
    assert printed.startswith("错误：")
    assert "先建一个：peg-rag index" in printed
    assert "输入的内容用不了" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch", "a"], "没有 'serch' 这个命令，是不是想用 'search', 'serve'？"),
        (["nonsense"], "没有 'nonsense' 这个命令。"),
        (["ask"], "缺少参数 'store'。"),
        (["search", "kb", "q", "-k", "x"], "'-k' 的值不对，应该是整数。"),
        (["search", "kb", "q", "-k", "0"], "'-k' 的值不对，不能小于 1。"),
        (["ask", "kb", "q", "--threshold", "3"], "'--threshold' 的值不对，不能大于 1。"),
        (["search", "kb", "q", "more"], "多出了参数：more。带空格的内容要加引号。"),
        (
            ["ask", "kb", "q", "--llm-ur", "x"],
            "没有 --llm-ur 这个选项，是不是想用：--llm-model, --llm-timeout, --llm-url？",
        ),
        (["index", "--store"], "选项 '--store' 后面要写一个值。"),
        (["index", "a", "--debug=1"], "没有 --debug 这个选项。"),
    ],
)
def test_wrong_arguments_are_answered_in_chinese(
    arguments: list[str], message: str, chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    printed = re.sub(r"[│\s]", "", capsys.readouterr().err)
    assert re.sub(r"\s", "", message) in printed


def test_english_stays_the_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert run(["ask", "--help"]) == 0
    assert run(["search", "/nowhere", "x"]) == 2
    out, err = capsys.readouterr()
    assert not CHINESE.search(out + err)
    assert err.startswith("Error: ")
