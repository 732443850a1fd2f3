"""API keys, kept as digests and compared in constant time."""

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
    """The keys that give write access and, on a private server, read access. Falsy if there are none.

    Args:
        keys: any number of keys, each of at least 16 printable ASCII characters.

    Raises:
        InvalidInput: a key is too short, or cannot be sent in an HTTP header.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        unique_keys = list(dict.fromkeys(keys))
        for key in unique_keys:
            _check_key(key)
        self._digests = tuple(_hash_key(key) for key in unique_keys)

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Read keys from `$PEG_RAG_API_KEYS` (separated by commas) and a file (one per line, `#` starts a comment).

        Raises:
            InvalidInput: the file cannot be read or holds no key, or a key is invalid.
        """
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
        if file is not None:
            try:
                lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"the key file {file} cannot be read: {error}") from error
            file_keys = [line for line in lines if line and not line.startswith("#")]
            if not file_keys:
                raise InvalidInput(f"the key file {file} holds no key; one key per line is expected")
            keys += file_keys
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: str) -> bool:
        """Whether this is one of the keys. Every key is compared, so that the time tells nothing about them."""
        key_digest = _hash_key(key)
        is_valid = False
        for digest in self._digests:
            is_valid |= hmac.compare_digest(key_digest, digest)
        return is_valid


def _hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _check_key(key: str) -> None:
    if len(key) < MIN_CHARACTERS or not all("!" <= c <= "~" for c in key):
        raise InvalidInput(
            f"an API key has {len(key)} characters; at least {MIN_CHARACTERS} printable ASCII characters without "
            'spaces are expected. Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
