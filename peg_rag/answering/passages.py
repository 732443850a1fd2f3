"""Hits with what their statements are read with: file, sheet, headings, and what else is known of the file.

Why this exists: 10天 in a row answers nothing until it is known to stand in the handbook, under 年休假. A form states a
field in each line and says only once whose fields they are; a rule says somewhere what it calls a 一线城市.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from peg_rag.answering.definitions import find_definitions
from peg_rag.answering.question import Question
from peg_rag.answering.statements import Cell, row_cells
from peg_rag.answering.words import fold_text
from peg_rag.hits import Hit

_TITLE_SEPARATOR = " > "
_TELLING_TITLE = 20  # characters from which a line is known as a part of the title, which is cut where it is too long
_MEMBERS = re.compile(
    r"([\u3400-\u9fffA-Za-z0-9]{2,10}?)(?:是指|指的是|指|包括|包含)[：:]?([^。；;：:\n指]{1,30}(?:、[^。；;：:\n、]{1,20})+)"
)

# 旺季（4月至10月）, 淡季(11月-次年3月)
_SEASON = re.compile(
    r"([\u3400-\u9fff]{2,4})[（(]\s*(\d{1,2})月[^）)\n]{0,4}?[-~～—至到](?:次年|翌年)?\s*(\d{1,2})月[^）)\n]{0,4}[）)]"
)

# Names that documents use without saying what they cover; a document's own definition comes first.
COMMON_NAMES = {
    "一线城市": "北京、上海、广州、深圳",
    "直辖市": "北京、上海、天津、重庆",
    "省会": "石家庄、太原、沈阳、长春、哈尔滨、南京、杭州、合肥、福州、南昌、济南、郑州、武汉、长沙、广州、海口、成都、"
    "贵阳、昆明、西安、兰州、西宁、呼和浩特、南宁、拉萨、银川、乌鲁木齐",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A hit with what its statements are read with.

    Attributes:
        rank: its place in the list of hits, from 0.
        context: its file, sheet and headings, folded.
        file_text: all hits of its file, folded.
        last_heading: the nearest heading.
        definitions: names that the file gives to several things, with these: 一线城市 for 北京、上海.
        form: the fields of its file that hits state one by one; a form says of whom in one of them only.
        text: the hit's text, folded.
        file_share: of the hits, each weighed by its rank, those of its file: 0 to 1.
        score_gap: how much better the best hit scores, of the difference between the best and the worst: 0 to 1.
        names: the file's name, the sheet and the headings, as they are written.
        meanings: (name, meaning) of what hits of its file define, as it is written.
    """

    hit: Hit
    rank: int
    context: str
    file_text: str
    last_heading: str
    definitions: tuple[tuple[str, str], ...] = ()
    form: tuple[Cell, ...] = ()
    text: str = ""
    file_share: float = 0.0
    score_gap: float = 0.0
    names: tuple[str, ...] = ()
    meanings: tuple[tuple[str, str], ...] = ()


def passages_of(hits: Sequence[Hit]) -> list[Passage]:
    """The hits, best first, each with its context."""
    texts: dict[str, list[str]] = {}
    forms: dict[str, list[Cell]] = {}
    shares: dict[str, float] = {}
    total = sum(1.0 / (1 + rank) for rank in range(len(hits)))
    best = max((hit.score for hit in hits), default=0.0)
    spread = best - min((hit.score for hit in hits), default=0.0) or 1.0
    for rank, hit in enumerate(hits):
        shares[source_of_hit(hit)] = shares.get(source_of_hit(hit), 0.0) + 1.0 / (1 + rank) / total
        texts.setdefault(source_of_hit(hit), []).append(hit.text)
        forms.setdefault(source_of_hit(hit), []).extend(_lone_fields(hit))
    return [
        Passage(
            hit,
            rank,
            fold_text(context_of(hit)),
            fold_text("\n".join(texts[source_of_hit(hit)])),
            str(hit.metadata.get("title") or "").rsplit(_TITLE_SEPARATOR, 1)[-1],
            _find_members("\n".join(texts[source_of_hit(hit)])),
            tuple(forms[source_of_hit(hit)]) if _lone_fields(hit) else (),
            fold_text(hit.text),
            shares[source_of_hit(hit)],
            (best - hit.score) / spread,
            tuple(names_of(hit)),
            find_definitions("\n".join(texts[source_of_hit(hit)])),
        )
        for rank, hit in enumerate(hits)
    ]


def context_of(hit: Hit) -> str:
    """The file's name without its suffix, the sheet and the headings."""
    metadata = hit.metadata
    parts = [_name_of_file(hit), metadata.get("sheet"), metadata.get("title")]
    return "\n".join(str(part) for part in parts if part)


def names_of(hit: Hit) -> list[str]:
    """The file's name without its suffix, the sheet, and each of the headings."""
    metadata = hit.metadata
    parts = [_name_of_file(hit), metadata.get("sheet"), *str(metadata.get("title") or "").split(_TITLE_SEPARATOR)]
    return [str(part) for part in parts if part]


def table_of(hit: Hit) -> tuple[str, str, str]:
    """The file, sheet and headings that a hit is of; the rows of a table have them in common."""
    return source_of_hit(hit), str(hit.metadata.get("sheet") or ""), str(hit.metadata.get("title") or "")


def start_of_body(hit: Hit) -> int:
    """Where a hit's text begins, after the title that ingestion puts in its first line."""
    return find_body(hit.text, str(hit.metadata.get("title") or ""))


def find_body(text: str, title: str) -> int:
    """Where a chunk's text begins, after the line of its title."""
    first, newline, _ = text.partition("\n")
    is_cut = len(first) >= _TELLING_TITLE and first in title
    is_title = first == title or first.startswith(f"{title}{_TITLE_SEPARATOR}") or is_cut
    return len(first) + 1 if title and newline and is_title else 0


def _name_of_file(hit: Hit) -> str:
    return PurePosixPath(source_of_hit(hit)).stem if hit.metadata.get("source") else ""


def defined_words(question: Question, passage: Passage) -> dict[str, str]:
    """The words of a question that the passage's file has another name for, with that name."""
    return {
        word.text: name
        for name, members in passage.definitions
        for word in question.words
        if len(word.text) > 1 and word.text in members.split("、")
    }


@lru_cache(maxsize=256)
def _find_members(text: str) -> tuple[tuple[str, str], ...]:
    """(name, folded list) of sentences such as 一线城市指北京、上海、广州, and of names that need no definition."""
    definitions = {fold_text(match[1]): fold_text(match[2]) for match in _MEMBERS.finditer(text)}
    common = {name: members for name, members in COMMON_NAMES.items() if name in text}
    seasons = {match[1]: _list_months(int(match[2]), int(match[3])) for match in _SEASON.finditer(text)}
    return tuple((common | seasons | definitions).items())


def _list_months(first: int, last: int) -> str:
    """The months of a season, which may go on into the next year, as a definition lists them."""
    count = (last - first) % 12 + 1
    return "、".join(f"{(first - 1 + number) % 12 + 1}月" for number in range(count))


def _lone_fields(hit: Hit) -> tuple[Cell, ...]:
    """The field of a hit that is nothing but one field."""
    start = start_of_body(hit)
    if "\n" in hit.text[start:].strip():
        return ()
    cells = row_cells(hit.text, (start, len(hit.text)))
    return cells if len(cells) == 1 else ()


def source_of_hit(hit: Hit) -> str:
    """The file that a hit is of; its id, if it names none."""
    return str(hit.metadata.get("source") or hit.id)
