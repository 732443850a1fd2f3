"""Texts as they come in: checked at once, never altered silently.

A wrong item is refused with its index and type before anything is computed. The only change ever made to a text is
that characters no tokenizer can take (lone surrogates, NUL) become U+FFFD, and the caller is told how many had any.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peg_rag.errors import InvalidInput

_UNENCODABLE = re.compile("[\ud800-\udfff\x00]")


def check_texts(texts: Any, *, what: str = "texts") -> list[str]:
    """Return `texts` as a list of str.

    Raises:
        InvalidInput: for a bare string, bytes, a mapping, something that is not iterable, or an item that is not a str.
    """
    if isinstance(texts, (str, bytes, bytearray)):
        raise InvalidInput(
            f"{what} is a single {type(texts).__name__}, but a list of strings is expected; "
            f"wrap it in a list: [{_preview_value(texts)}]"
        )
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise InvalidInput(f"{what} is of type {type(texts).__name__}, but a list of strings is expected")
    items = list(texts)
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInput(
                f"{what}[{i}] is of type {type(item).__name__} ({_preview_value(item)}), but a string is expected; "
                f"leave out {what} that are missing"
            )
    return items


def replace_unencodable(text: str) -> str:
    """The text with lone surrogates and NUL replaced by U+FFFD; a valid surrogate pair becomes its character."""
    if _UNENCODABLE.search(text) is None:
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\x00", "\ufffd")


def _preview_value(value: Any, limit: int = 40) -> str:
    shown = ascii(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
