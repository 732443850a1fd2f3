"""API keys: held as digests, compared in constant time, and without any nothing can be written."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from peg_rag.errors import InvalidInput

KEYS_VARIABLE = "PEG_RAG_API_KEYS"
MIN_CHARACTERS = 16


class ApiKeys:
    """The keys that may write (and, on a private server, read).

    Args:
        keys: any number of keys of at least 16 printable ASCII characters.

    Raises:
        InvalidInput: a key is too short to be a secret, or cannot travel in a header.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        checked = [_checked(key) for key in keys]
        self._digests = tuple(_digest(key) for key in dict.fromkeys(checked))

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Keys of `$PEG_RAG_API_KEYS` (separated by commas) and of a file (one in a line, `#` begins a remark).

        Raises:
            InvalidInput: the file cannot be read or holds no key, or a key is unusable.
        """
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
        if file is not None:
            try:
                lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"the key file {file} cannot be read: {error}") from error
            listed = [line for line in lines if line and not line.startswith("#")]
            if not listed:
                raise InvalidInput(f"the key file {file} holds no key; one key in a line is expected")
            keys += listed
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, presented: str) -> bool:
        """Whether this is one of the keys. Takes the same time for every answer: all keys are looked at, by digest."""
        digest = _digest(presented)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _checked(key: str) -> str:
    if len(key) < MIN_CHARACTERS or not all("!" <= c <= "~" for c in key):
        raise InvalidInput(
            f"an API key has {len(key)} characters; at least {MIN_CHARACTERS} printable ASCII characters without "
            'spaces are expected. Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return key
