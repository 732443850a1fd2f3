"""The command's messages in the reader's language: English, or Chinese where the locale says so.

The English text is the key, so that the code reads as it prints and a text without a translation is still printed. Only
the command line is translated; the library's errors stay English, and the command adds what kind of error it is and the
cure in Chinese.
"""

import json
import os
import re
from functools import cache, wraps
from importlib.resources import files
from typing import Any

_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set counts, as in POSIX


def is_chinese() -> bool:
    """Whether the locale's language is Chinese."""
    locale = next((value for name in _LOCALE_VARIABLES if (value := os.environ.get(name))), "")
    return locale.lower().startswith("zh")


def translate(text: str) -> str:
    """The text in the reader's language; what has no translation stays English."""
    if not is_chinese():
        return text
    texts: dict[str, str] = load_catalogue()["texts"]
    return texts.get(text, text)


def describe_error(error: Exception) -> tuple[str, str] | None:
    """What kind of error it is and the cure, in Chinese; None in English, where the message says both."""
    if not is_chinese():
        return None
    errors: dict[str, list[str]] = load_catalogue()["errors"]
    entry = next((errors[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in errors), None)
    return (entry[0], entry[1]) if entry else None


@cache
def load_catalogue() -> dict[str, Any]:
    """`texts`: English to Chinese. `errors`: the name of an error class to its kind and cure in Chinese.

    `usage`: patterns of typer's messages about arguments to Chinese, with the pattern's groups by number.
    """
    text = (files("peg_rag") / "assets" / "messages.zh.json").read_text(encoding="utf-8")
    catalogue: dict[str, Any] = json.loads(text)
    return catalogue


def translate_help(command: Any) -> None:
    """Translate the help of a command, of its parameters and of its subcommands."""
    if not is_chinese():
        return
    _translate_panels()
    _translate_command(command)


def translate_usage(message: str) -> str:
    """What typer says of arguments that are wrong, in the reader's language; what has no translation stays English."""
    if not is_chinese():
        return message
    patterns: dict[str, str] = load_catalogue()["usage"]
    for pattern, translation in patterns.items():
        match = re.fullmatch(pattern, message, re.DOTALL)
        if match:
            return translation.format(*match.groups())
    return message


def _translate_command(command: Any) -> None:
    import typer

    for name in ("help", "short_help", "epilog"):
        if text := getattr(command, name, None):
            setattr(command, name, translate(text))
    context = typer.Context(command, help_option_names=["-h", "--help"])
    for parameter in command.get_params(context):  # with the option --help, which typer makes and keeps
        if getattr(parameter, "help", None):
            parameter.help = translate(parameter.help)
    for subcommand in getattr(command, "commands", {}).values():
        _translate_command(subcommand)


def _translate_panels() -> None:
    """The headings and marks that typer itself writes."""
    from typer import rich_utils

    for name in (
        "ARGUMENTS_PANEL_TITLE",
        "OPTIONS_PANEL_TITLE",
        "COMMANDS_PANEL_TITLE",
        "ERRORS_PANEL_TITLE",
        "DEFAULT_STRING",
        "ENVVAR_STRING",
        "REQUIRED_LONG_STRING",
        "RICH_HELP",
    ):
        if hasattr(rich_utils, name):  # typer may rename them
            setattr(rich_utils, name, translate(getattr(rich_utils, name)))
    _fold_lines(rich_utils)
    _translate_usage_errors(rich_utils)


def _translate_usage_errors(rich_utils: Any) -> None:
    """Let typer print its errors in Chinese."""
    print_error = getattr(rich_utils, "rich_format_error", None)
    if print_error is None or getattr(print_error, "translates", False):
        return

    @wraps(print_error)
    def print_translated(error: Any) -> None:
        message = translate_usage(error.format_message())
        error.format_message = lambda: message
        print_error(error)

    print_translated.translates = True  # type: ignore[attr-defined]
    rich_utils.rich_format_error = print_translated


def _fold_lines(rich_utils: Any) -> None:
    """Break lines at any character: rich breaks at spaces only, and cuts off the rest of a Chinese sentence."""
    make_text = getattr(rich_utils, "_make_rich_text", None)
    if make_text is None or getattr(make_text, "folds", False):
        return

    @wraps(make_text)
    def make_folding_text(*arguments: Any, **options: Any) -> Any:
        text = make_text(*arguments, **options)
        text.overflow = "fold"
        return text

    make_folding_text.folds = True  # type: ignore[attr-defined]
    rich_utils._make_rich_text = make_folding_text
