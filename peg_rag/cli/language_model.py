"""Shared by the commands that may have answers written by a language model: its settings, checked.

The endpoint, the model and the key come from options and environment variables, which differ by command, so a message
about a wrong value names the option that held it.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peg_rag.errors import InvalidInput

if TYPE_CHECKING:
    from peg_rag.serving.settings import LanguageModelSettings


def check_settings(values: Mapping[str, Any], option_names: Mapping[str, str]) -> "LanguageModelSettings":
    """The settings with these values; an error names the option and never repeats the value, which may be a key.

    Raises:
        InvalidInput: a value cannot be used.
    """
    from pydantic import ValidationError

    from peg_rag.serving.settings import LanguageModelSettings

    try:
        return LanguageModelSettings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{option_names[str(first['loc'][0])]}: {message}") from error


def read_key(variable: str | None) -> str:
    """The key in an environment variable: a variable that was named must be set; $OPENAI_API_KEY may be.

    Raises:
        InvalidInput: the variable is not set.
    """
    if variable is None:
        return os.environ.get("OPENAI_API_KEY", "")
    if variable not in os.environ:
        raise InvalidInput(
            f"--llm-key-env names ${variable}, which is not set; export the key in that variable, or leave the option "
            "out for an endpoint without keys"
        )
    return os.environ[variable]
