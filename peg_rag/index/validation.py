"""Validation of documents and queries before anything is changed; errors name the row and the cure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from peg_rag.errors import InvalidInput
from peg_rag.index.encodings import Array, unit_rows
from peg_rag.index.filters import dumps
from peg_rag.texts import check_texts

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)
STRINGS_AT_ONCE = 1024
MAX_DEPTH = 100  # of metadata; SQLite and Python read somewhat deeper JSON, each to a limit of its own
_MAPPINGS = (dict, Mapping)  # `dict` first, for isinstance is slower with an abstract class
_CONTAINERS = (*_MAPPINGS, list, tuple)


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Valid documents with distinct ids. vectors: (n, dimension) float32 unit rows; metadatas: JSON."""

    ids: list[str]
    texts: list[str]
    vectors: Array
    metadatas: list[str]

    @classmethod
    def validate(cls, ids: Any, texts: Any, vectors: Any, metadatas: Any, dimension: int | None) -> "DocumentBatch":
        """Check documents and keep the last one of a repeated id.

        Raises:
            InvalidInput: a document that cannot be stored.
        """
        ids = validate_ids(ids)
        texts = validate_strings(texts, "text")
        rows = unit_rows(vectors, dimension)
        metadatas = _dump_metadatas([None] * len(ids) if metadatas is None else metadatas)
        if not len(ids) == len(texts) == len(rows) == len(metadatas):
            raise InvalidInput(
                f"{len(ids)} ids, {len(texts)} texts, {len(rows)} vectors and {len(metadatas)} metadatas were given: "
                "each document needs one of each"
            )
        last_row = {name: row for row, name in enumerate(ids)}
        if len(last_row) == len(ids):
            return cls(ids, texts, rows, metadatas)
        keep = sorted(last_row.values())
        return cls([ids[i] for i in keep], [texts[i] for i in keep], rows[keep], [metadatas[i] for i in keep])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Valid queries. vectors: (queries, dimension) unit rows, None in lexical mode; texts: None in dense mode."""

    mode: Mode
    vectors: Array | None
    texts: Sequence[str] | None
    k: int
    fetch_k: int

    @classmethod
    def validate(
        cls,
        vectors: Any,
        texts: Sequence[str] | None,
        mode: Mode | None,
        k: int,
        fetch_k: int | None,
        dimension: int | None,
    ) -> "QueryBatch":
        """Check queries and choose the mode where it is None.

        Raises:
            InvalidInput: a mode without its query, an invalid vector or a negative number.
        """
        mode = _choose_mode(mode, vectors is not None, texts is not None)
        fetch_k = max(100, 4 * validate_count(k, "k")) if fetch_k is None else validate_count(fetch_k, "fetch_k")
        texts = None if mode == "dense" else validate_strings(texts, "query text")
        rows = None if mode == "lexical" else unit_rows(vectors, dimension, what="query vector")
        if rows is not None and texts is not None and len(rows) != len(texts):
            raise InvalidInput(f"{len(rows)} query vectors but {len(texts)} query texts: each query needs both")
        return cls(mode, rows, texts, k, max(k, fetch_k))

    def __len__(self) -> int:
        if self.texts is not None:
            return len(self.texts)
        return 0 if self.vectors is None else len(self.vectors)


def _choose_mode(mode: Mode | None, has_vector: bool, has_text: bool) -> Mode:
    if mode is not None and mode not in MODES:
        raise InvalidInput(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    if not has_vector and not has_text:
        raise InvalidInput("a search needs a vector (dense), a text (lexical) or both (hybrid)")
    if mode is None and has_vector and has_text:
        return "hybrid"
    if mode is None:
        return "dense" if has_vector else "lexical"
    if mode != "lexical" and not has_vector:
        raise InvalidInput(f"mode {mode!r} needs a query vector; encode the query, or use mode='lexical'")
    if mode != "dense" and not has_text:
        raise InvalidInput(f"mode {mode!r} needs the query's text; give it, or use mode='dense'")
    return mode


def validate_count(value: Any, what: str) -> int:
    """A whole number, 0 or more."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise InvalidInput(f"{what} is a whole number, 0 or more, not {value!r}")
    return int(value.__index__())


def validate_ids(ids: Any) -> list[str]:
    """A list of non-empty strings."""
    names = validate_strings(ids, "id")
    if "" in names:
        raise InvalidInput(f"id {names.index('')} is empty; an id is a non-empty string")
    return names


def validate_strings(values: Any, what: str) -> list[str]:
    """A list of valid Unicode strings."""
    strings = check_texts(values, what=f"{what}s")
    check_unicode(strings, what)
    return strings


def check_unicode(strings: Sequence[str], what: str) -> None:
    """Refuse lone surrogates."""
    for start in range(0, len(strings), STRINGS_AT_ONCE):
        part = strings[start : start + STRINGS_AT_ONCE]
        try:
            "".join(part).encode("utf-16-le")  # the fastest encoding that refuses them
        except UnicodeEncodeError:
            _name_surrogate(part, start, what)


def _name_surrogate(strings: Sequence[str], first_row: int, what: str) -> None:
    for row, text in enumerate(strings, start=first_row):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{what} {row} holds a lone surrogate at character {error.start}, which is not valid Unicode; "
                "clean it first"
            ) from error


def _dump_metadatas(metadatas: Iterable[Any]) -> list[str]:
    """The JSON of each metadata."""
    texts = ["{}" if metadata is None else _dump_metadata(row, metadata) for row, metadata in enumerate(metadatas)]
    check_unicode(texts, "metadata")
    return texts


def _dump_metadata(row: int, metadata: Any) -> str:
    if not isinstance(metadata, _MAPPINGS) or not {type(key) for key in metadata} <= {str}:
        _check_keys(row, metadata)
    try:
        text = dumps(metadata if isinstance(metadata, dict) else dict(metadata))
        # Every level has two brackets in the text: its length or counting them spares most metadata the walk.
        is_too_deep = (
            len(text) > 2 * MAX_DEPTH
            and text.count("{") + text.count("[") > MAX_DEPTH
            and _is_deeper(metadata, MAX_DEPTH)
        )
    except RecursionError:
        is_too_deep = True
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"metadata {row} cannot be kept as JSON ({error}); use strings, finite numbers, bools, lists and dicts"
        ) from error
    if is_too_deep:
        raise InvalidInput(
            f"metadata {row} is nested deeper than {MAX_DEPTH} levels, too deep to be read back safely; flatten it"
        )
    return text


def _check_keys(row: int, metadata: Any) -> None:
    if not isinstance(metadata, _MAPPINGS) or not all(isinstance(key, str) for key in metadata):
        raise InvalidInput(f"metadata {row} must be a dict with string keys, not {str(metadata)[:80]}")


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts are nested deeper than `levels`; `value` must not contain itself."""
    containers = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(levels):
        if not containers:
            return False
        children = [child for item in containers for child in (item.values() if isinstance(item, Mapping) else item)]
        containers = [child for child in children if isinstance(child, _CONTAINERS)]
    return bool(containers)
