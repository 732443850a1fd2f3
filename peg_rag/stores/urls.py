"""Store URLs: which server, which collection, and nothing of a password in a message."""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from peg_rag.errors import InvalidInput

DEFAULT_COLLECTION = "peg_rag"
_MALFORMED = (
    "the store's URL is malformed; expected postgresql://user:password@host:5432/database?collection=name, "
    "with / ? # @ : of a password as %2F %3F %23 %40 %3A"
)
_PLACES = ("host", "hostaddr", "port", "dbname")  # PostgreSQL takes these as options, too
_COLLECTION = re.compile(r"[a-z_][a-z0-9_]{0,39}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A URL taken apart.

    Attributes:
        server: the URL without the collection.
        collection: letters, digits and underscores, so that it can be part of a table's name.
        shown: the URL without its password, for messages.
        digest: names the collection in files; the same for any user and password.
    """

    server: str
    collection: str
    shown: str
    digest: str

    @classmethod
    def parse(cls, url: str) -> "StoreUrl":
        """Take a URL apart.

        Raises:
            InvalidInput: the collection's name cannot be used, or the URL is malformed.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its message may show a part of the password
            raise InvalidInput(_MALFORMED) from None
        if parts.fragment:
            raise InvalidInput(_MALFORMED)
        pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
        names = [unquote(value) for name, _, value in pairs if name == "collection"]
        collection = names[-1] if names else DEFAULT_COLLECTION
        if not _COLLECTION.fullmatch(collection):
            raise InvalidInput(
                f"collection={collection!r} in the store's URL: lower-case letters, digits and underscores are "
                "expected, at most 40 and no digit first"
            )
        options = "&".join("".join(pair) for pair in pairs if pair[0] != "collection")
        server = f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if options else ''}{options}"
        host = f"{parts.hostname or ''}{f':{port}' if port else ''}"
        shown = f"{parts.scheme}://{host}{parts.path}?collection={collection}"
        places = [f"{name}={unquote(value)}" for name, _, value in pairs if name in _PLACES]
        return cls(server, collection, shown, hashlib.sha256("\0".join([shown, *places]).encode()).hexdigest()[:16])
