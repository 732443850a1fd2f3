"""What callers hand to the index, checked before anything is touched; errors name the row and the cure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from peg_rag.errors import InvalidInput
from peg_rag.index.filters import dumps
from peg_rag.index.vectors import Array, unit_rows

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_DEPTH = 100  # of metadata; SQLite and Python read somewhat deeper JSON, each to a limit of its own


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents to write, each id once. vectors: (n, dimension) float32 unit rows; metadatas: JSON."""

    ids: list[str]
    texts: list[str]
    vectors: Array
    metadatas: list[str]

    @classmethod
    def checked(cls, ids: Any, texts: Any, vectors: Any, metadatas: Any, dimension: int | None) -> "Documents":
        """Raises `InvalidInput` for what cannot be stored. Of an id given twice the last one stays."""
        names, bodies = checked_ids(ids), checked_strings(texts, "text")
        rows = unit_rows(vectors, dimension)
        metas = list(_metadatas([None] * len(names) if metadatas is None else metadatas))
        if not len(names) == len(bodies) == len(rows) == len(metas):
            raise InvalidInput(
                f"{len(names)} ids, {len(bodies)} texts, {len(rows)} vectors and {len(metas)} metadatas were given: "
                "each document needs one of each"
            )
        last = {name: row for row, name in enumerate(names)}
        if len(last) == len(names):
            return cls(names, bodies, rows, metas)
        keep = sorted(last.values())
        return cls([names[i] for i in keep], [bodies[i] for i in keep], rows[keep], [metas[i] for i in keep])


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for. vectors: (queries, dimension) unit rows, None in lexical mode; texts: None in dense mode."""

    mode: Mode
    vectors: Array | None
    texts: Sequence[str] | None
    k: int
    fetch_k: int

    @classmethod
    def checked(
        cls,
        vectors: Any,
        texts: Sequence[str] | None,
        mode: Mode | None,
        k: int,
        fetch_k: int | None,
        dimension: int | None,
    ) -> "Query":
        """Raises `InvalidInput` for a mode without its query, a vector that cannot be used or a negative number."""
        mode = _mode(mode, vectors is not None, texts is not None)
        fetch_k = max(100, 4 * whole_number(k, "k")) if fetch_k is None else whole_number(fetch_k, "fetch_k")
        words = None if mode == "dense" else checked_strings(texts, "query text")
        rows = None if mode == "lexical" else unit_rows(vectors, dimension, what="query vector")
        if rows is not None and words is not None and len(rows) != len(words):
            raise InvalidInput(f"{len(rows)} query vectors but {len(words)} query texts: each query needs both")
        return cls(mode, rows, words, k, max(k, fetch_k))

    def __len__(self) -> int:
        return len(self.texts) if self.texts is not None else len(self.vectors) if self.vectors is not None else 0


def _mode(mode: Mode | None, has_vector: bool, has_text: bool) -> Mode:
    if mode is not None and mode not in MODES:
        raise InvalidInput(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    if not has_vector and not has_text:
        raise InvalidInput("a search needs a vector (dense), a text (lexical) or both (hybrid)")
    if mode is None:
        return "hybrid" if has_vector and has_text else "dense" if has_vector else "lexical"
    if mode != "lexical" and not has_vector:
        raise InvalidInput(f"mode {mode!r} needs a query vector; encode the query, or use mode='lexical'")
    if mode != "dense" and not has_text:
        raise InvalidInput(f"mode {mode!r} needs the query's text; give it, or use mode='dense'")
    return mode


def whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise InvalidInput(f"{what} is a whole number, 0 or more, not {value!r}")
    return int(value.__index__())


def checked_ids(ids: Any) -> list[str]:
    names = checked_strings(ids, "id")
    if "" in names:
        raise InvalidInput(f"id {names.index('')} is empty; an id is a non-empty string")
    return names


def checked_strings(values: Any, what: str) -> list[str]:
    """A list of valid Unicode strings; a single string is refused, as its characters would be taken one by one."""
    if isinstance(values, str | bytes):
        raise InvalidInput(f"{what}s are a list of strings, not the single {values[:80]!r}")
    strings = list(values)
    for row, value in enumerate(strings):
        if not isinstance(value, str):
            raise InvalidInput(f"{what} {row} is {str(value)[:80]!r} ({type(value).__name__}); it must be a string")
        check_unicode(value, f"{what} {row}")
    return strings


def check_unicode(text: str, what: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{what} holds a lone surrogate at character {error.start}, which is not valid Unicode; clean it first"
        ) from error


def _metadatas(metadatas: Any) -> Iterator[str]:
    for row, metadata in enumerate(metadatas):
        if metadata is None:
            yield "{}"
            continue
        if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
            raise InvalidInput(f"metadata {row} must be a dict with string keys, not {str(metadata)[:80]}")
        try:
            written = dumps(dict(metadata))
            is_deep = _is_deeper(metadata, MAX_DEPTH)
        except RecursionError:
            is_deep = True
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"metadata {row} cannot be kept as JSON ({error}); use strings, finite numbers, bools, lists and dicts"
            ) from error
        if is_deep:
            raise InvalidInput(
                f"metadata {row} is nested deeper than {MAX_DEPTH} levels, and might not be readable again; flatten it"
            )
        check_unicode(written, f"metadata {row}")
        yield written


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts lie in each other deeper than so many levels. Only for what holds no circle."""
    layer = [value]
    for _ in range(levels):
        containers = [item for item in layer if isinstance(item, Mapping | list | tuple)]
        layer = [child for item in containers for child in (item.values() if isinstance(item, Mapping) else item)]
    return any(isinstance(item, Mapping | list | tuple) for item in layer)
