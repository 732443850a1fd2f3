"""What a store was made with, compared with what it is opened with."""

from collections.abc import Mapping
from typing import Any

from peg_rag.errors import IndexMismatch, InvalidInput
from peg_rag.index.store import UNKNOWN
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.index.validation import validate_count

DEFAULTS = {"identity": UNKNOWN, "tokenizer": "bigram", "kind": "flat"}
_CURES = {
    "identity": "open it with the model that made it, or load the documents into another collection",
    "dimension": "use the model that made it, or load the documents into another collection",
    "tokenizer": "leave tokenizer out to use the stored one, or load the documents into another collection",
}


def reconcile_settings(stored: Mapping[str, str], options: Mapping[str, Any], name: str) -> dict[str, str]:
    """The settings of a store, after comparing them with the options that are not None.

    A new store adopts the options, and so does one that is still empty and without a named model.

    Args:
        name: of the store, for messages.

    Raises:
        IndexMismatch: an option differs from what is stored.
        InvalidInput: an unknown tokenizer, or a dimension below 1.
    """
    requested = {option: str(value) for option, value in options.items() if value is not None}
    if "dimension" in requested and validate_count(options["dimension"], "dimension") < 1:
        raise InvalidInput(f"dimension is a whole number, 1 or more, not {options['dimension']!r}")
    get_tokenizer(requested.get("tokenizer", DEFAULTS["tokenizer"]))
    is_undecided = not stored or ("dimension" not in stored and stored["identity"] == UNKNOWN)
    if is_undecided:
        return DEFAULTS | dict(stored) | requested
    for option, cure in _CURES.items():
        if option in requested and option in stored and requested[option] != stored[option]:
            raise IndexMismatch(f"{name} was made with {option} {stored[option]!r}, not {requested[option]!r}; {cure}")
    return dict(stored)
