"""Sections → chunks of a length that a model embeds well, each with its headings and its place in the document.

A chunk ends at the strongest boundary its length allows: a paragraph's end, a line's, a sentence's, a clause's. Offsets
are exact, so whatever a chunk says can be shown where it stands. Time is linear in the text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peg_rag.errors import InvalidInput
from peg_rag.readers import MAX_FILE_BYTES, Place, Section

CHUNK_CHARACTERS = 400
OVERLAP_CHARACTERS = 80
RESERVED = ("source", "version", "chunk", "start", "title", "page", "row", "sheet", "kind", "cells", "boxes")

_FORMAT = "6"  # raised when reading or chunking changes, so that every file is read again
_TITLE_CHARACTERS = 100
_TITLE_SEPARATOR = " > "
_WHOLE_ROW = 2  # times a chunk's length, up to which a row or record stays in one piece
_SHORT_CELL = 40  # characters that identify a row rather than tell its story
_LINE_GAP = 1.5  # of a line's height, up to which two lines are shown in one box

_CLOSING = r"[”’」』）)\"]*"
# Tried in this order on what is too long: paragraphs, lines, sentences, clauses, phrases, words.
_BOUNDARIES = tuple(
    re.compile(pattern)
    for pattern in (r"\n\n+", r"\n", rf"(?:[。！？!?]|…+|\.(?=\s)){_CLOSING}", r"[；;]", r"[，,、：:]", r"\s")
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file as it is embedded, stored and found.

    Attributes:
        id: the same for the same text in the same file, whatever stands around it.
        text: the section's title, where it has one, in a line of its own, then the piece.
        metadata: `source` (path within the folder, the folder's name first), `version` (of the file), `chunk` (number
            in the file, from 0), `start` (characters into the document's text, see `readers.document_text`) and, where
            known, `title` (the headings, joined by ` > `), `page`, `sheet`, `row`, `kind` (`row` of a table, `record`
            or `heading`; none for text), `cells` (a row's values by column), `boxes` (a list of [page, x0, top, x1,
            bottom] in points from the page's top left corner) and the fields of a record. A field of one of these
            names has a `_` put behind it.
    """

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How files are read and cut; changing any of it makes every file be read again.

    Attributes:
        characters: the longest chunk, its title not counted. A row or record may be twice as long.
        overlap: characters of a chunk that may be repeated at the start of the next, in whole sentences.
        text_column: see `readers.read_sections`.
        max_file_bytes: larger files are refused.
    """

    characters: int = CHUNK_CHARACTERS
    overlap: int = OVERLAP_CHARACTERS
    text_column: str | None = None
    max_file_bytes: int = MAX_FILE_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.characters:
            raise InvalidInput(
                f"chunks of {self.characters} characters with an overlap of {self.overlap}: "
                "the overlap must be 0 or more and smaller than the chunk"
            )

    @property
    def fingerprint(self) -> str:
        """The settings as text; a file whose entry in the ledger has another one is read again."""
        return f"{_FORMAT}/{self.characters}/{self.overlap}/{self.text_column or ''}"


def split(sections: Iterable[Section], source: str, version: str, chunking: Chunking | None = None) -> Iterator[Chunk]:
    """Cut sections into chunks, at the strongest boundary that a chunk's length allows (Chinese ones included)."""
    chunking = chunking or Chunking()
    repeats: dict[str, int] = {}
    number = 0
    for section in sections:
        is_short_row = bool(section.cells) and len(section.text) <= _WHOLE_ROW * chunking.characters
        pieces = [(0, len(section.text))] if is_short_row else list(_split_text(section.text, chunking))
        cells = dict(section.cells) if len(pieces) == 1 else _short_cells(section)
        heading = _fit_title(section, cells, len(pieces))
        for start, end in pieces:
            piece = section.text[start:end]
            text = f"{heading}\n{piece}" if heading else piece
            repeat = repeats[text] = repeats.get(text, -1) + 1
            metadata = _build_metadata(section, start, end) | {"source": source, "version": version, "chunk": number}
            if cells:
                metadata["cells"] = cells
            yield Chunk(digest(source, text, str(repeat))[:32], text, metadata)
            number += 1


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _build_metadata(section: Section, start: int, end: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        f"{name}_" if name in RESERVED else name: value for name, value in section.fields.items()
    }
    metadata["start"] = section.start + start
    metadata |= {name: value for name in ("title", "page", "row", "sheet") if (value := getattr(section, name))}
    if section.kind != "text":
        metadata["kind"] = section.kind
    places = list(_places_between(section.places, start, end))
    if places:
        metadata["page"] = places[0].page
        metadata["boxes"] = [[place.page, *place.box] for place in _merge_boxes(places)]
    return metadata


def _fit_title(section: Section, cells: dict[str, str], pieces: int) -> str:
    """The title, as much of its end as fits; the pieces of a long row also say which row they are of."""
    parts = section.title.split(_TITLE_SEPARATOR)
    while len(parts) > 1 and len(_TITLE_SEPARATOR.join(parts)) > _TITLE_CHARACTERS:
        parts = parts[1:]
    heading = _TITLE_SEPARATOR.join(parts)[:_TITLE_CHARACTERS]
    if pieces == 1 or not cells:
        return heading
    row = " | ".join(f"{name}: {value}" if name else value for name, value in cells.items())[:_TITLE_CHARACTERS]
    return f"{heading}{_TITLE_SEPARATOR}{row}" if heading else row


def _short_cells(section: Section) -> dict[str, str]:
    return {name: value for name, value in section.cells.items() if len(value) <= _SHORT_CELL}


def _split_text(text: str, chunking: Chunking) -> Iterator[tuple[int, int]]:
    """(start, end) of the chunks of a text: units packed one after the other, blanks at both ends left out."""
    units: list[tuple[int, int]] = []
    for unit in _split_units(text, 0, len(text), chunking.characters, 0):
        if units and unit[1] - units[0][0] > chunking.characters:
            yield from _strip_blanks(text, units[0][0], units[-1][1])
            units = _select_overlap(units, unit, chunking)
        units.append(unit)
    if units:
        yield from _strip_blanks(text, units[0][0], units[-1][1])


def _split_units(text: str, start: int, end: int, longest: int, level: int) -> Iterator[tuple[int, int]]:
    """The text in parts of at most so many characters, each as strong a unit as its length allows."""
    if end - start <= longest:
        yield start, end
        return
    if level == len(_BOUNDARIES):
        for place in range(start, end, longest):
            yield place, min(place + longest, end)
        return
    place = start
    for boundary in _BOUNDARIES[level].finditer(text, start, end):
        yield from _split_units(text, place, boundary.end(), longest, level + 1)
        place = boundary.end()
    if place < end:
        yield from _split_units(text, place, end, longest, level + 1)


def _select_overlap(
    units: Sequence[tuple[int, int]], following: tuple[int, int], chunking: Chunking
) -> list[tuple[int, int]]:
    """The last units of a chunk that the next one repeats: as many as the overlap and its length allow."""
    overlap: list[tuple[int, int]] = []
    end = units[-1][1]
    for unit in reversed(units[1:]):
        if end - unit[0] > chunking.overlap or following[1] - unit[0] > chunking.characters:
            break
        overlap.insert(0, unit)
    return overlap


def _strip_blanks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _places_between(places: Sequence[Place], start: int, end: int) -> Iterator[Place]:
    """The places of the lines that a stretch of text touches."""
    for number, place in enumerate(places):
        following = places[number + 1].start if number + 1 < len(places) else None
        if place.start < end and (following is None or following > start):
            yield place


def _merge_boxes(places: Sequence[Place]) -> list[Place]:
    """Lines right below one another in one column as one box."""
    regions: list[Place] = []
    for place in places:
        last = regions[-1] if regions else None
        if last is not None and _is_below(last, place):
            x0, top, x1, bottom = last.box
            box = (min(x0, place.box[0]), min(top, place.box[1]), max(x1, place.box[2]), max(bottom, place.box[3]))
            regions[-1] = Place(last.start, last.page, box)
        else:
            regions.append(place)
    return regions


def _is_below(upper: Place, lower: Place) -> bool:
    overlap = min(upper.box[2], lower.box[2]) - max(upper.box[0], lower.box[0])
    height = lower.box[3] - lower.box[1]
    gap = lower.box[1] - upper.box[3]
    return upper.page == lower.page and overlap > 0 and -height < gap < _LINE_GAP * height
