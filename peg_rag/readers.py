"""Files as they are found in the world → clean text in sections that know where they stand.

Why this exists: retrieval is only as good as the text it is given, and folders hold GB18030 text without a byte-order
mark, PDFs that break Chinese lines in mid-sentence, spreadsheets saved as CSV and files whose name lies. Every reader
here gives sections (a page, a heading's text, a row) or a `DataError` that names the file and the cure. Conversion is
left to markitdown (docx, html) and pdfminer (pdf), imported when first needed (about a second).
"""

import codecs
import csv
import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from peg_rag.errors import DataError
from peg_rag.extras import require

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
TEXT_COLUMNS = ("text", "content", "passage", "document", "body", "正文", "内容", "文本")
TITLE_COLUMNS = ("title", "标题", "name", "名称")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_HEADING = re.compile(r"(#{1,6})\s")
_BLANKS = " \t\u3000"
_FENCE = re.compile(r"\s*(```|~~~)")
# Pictures and the rule under a table's header. No part can match across another's start, so a search is linear.
_MARKUP = re.compile(r"!\[[^\[\]]*\]\([^()]*\)|^\|[ \t|:-]+\|$\n?", re.MULTILINE)
_CJK = r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
# A line break between two Chinese characters is the page's, not the sentence's, unless a sentence ends there.
_WRAPPED_CJK = re.compile(rf"(?<={_CJK})(?<![。！？；：…])\n(?={_CJK})")
_SPACED_CJK = re.compile(rf"^([^\n]*{_CJK})(?<![。！？；：…])\n\n(?={_CJK})", re.MULTILINE)
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_WRAPPED_LATIN = re.compile(r"(?<=[^\s。！？；：….!?:;])\n(?=[^\s•·\-*\d])")
_FULL_LINE = 30  # half-widths that a line of running text has at the least


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file's text and where it stands.

    Attributes:
        text: clean text, never blank.
        start: characters of the file's clean text before this section.
        title: the headings it stands under, joined by ` > `, or a row's title.
        page: page of a PDF, from 1.
        row: line of a JSONL file or record of a CSV file, from 1 (a CSV's header is not counted).
        fields: the other columns of a row, where they are strings, numbers or booleans.
    """

    text: str
    start: int = 0
    title: str = ""
    page: int | None = None
    row: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_sections(path: Path, *, text_column: str | None = None, max_bytes: int = MAX_FILE_BYTES) -> list[Section]:
    """The sections of one file, chosen by its suffix (see `SUFFIXES`).

    Args:
        text_column: the column of a CSV or key of a JSONL file that holds the text; None for the first of
            `TEXT_COLUMNS` that is there, else all columns as `name：value` lines.
        max_bytes: larger files are refused.

    Raises:
        DataError: the file cannot be read, is empty, too large, damaged, or not what its name says.
        MissingExtra: a library for this kind of file is not installed.
    """
    reader = SUFFIXES.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files named *{path.suffix} are not read; expected one of {', '.join(SUFFIXES)}")
    data = _read_bytes(path, max_bytes)
    sections = [section for section in reader(data, path, text_column) if section.text.strip()]
    if not sections:
        raise DataError(f"{path} holds no text")
    return sections


def decode(data: bytes, name: str) -> str:
    """Text of bytes in UTF-8, UTF-16 with a mark, GB18030, or what charset-normalizer makes of them.

    Raises:
        DataError: the bytes are no text.
    """
    encoding = encoding_of(data, name)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not valid {encoding} text (byte {error.start}); save it as UTF-8") from error
    if sum(map(len, _CONTROL.findall(text[:10_000]))) > 0.02 * len(text[:10_000]):
        raise DataError(f"{name} is binary, not text (it is full of control characters)")
    return text


def encoding_of(data: bytes, name: str) -> str:
    """The encoding of a file's bytes, or of the first many of them.

    Raises:
        DataError: the bytes are no text.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return encoding
    if b"\x00" in data:
        raise DataError(f"{name} is binary, not text (it holds NUL bytes)")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)  # incremental: the last character may be cut
        return "utf-8"
    except UnicodeDecodeError:
        return "gb18030" if _looks_gb18030(data) else _detect(data, name)


def clean(text: str) -> str:
    """One kind of line break, no control characters, no trailing blanks, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n").replace("\xa0", " ")
    text = "\n".join(line.rstrip(_BLANKS) for line in _CONTROL.sub("", text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path} is empty (0 bytes)")
        if size > max_bytes:
            raise DataError(f"{path} has {size / 1e6:,.0f} MB; the limit is {max_bytes / 1e6:,.0f} MB. Split it first")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _looks_gb18030(data: bytes) -> bool:
    """Whether most characters beyond ASCII are the 3,755 common ones of GB 2312, its punctuation or its letters.

    Nearly any bytes *decode* as GB18030; only Chinese text has its characters where the common ones are.
    """
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data[:20_000])
    except UnicodeDecodeError:
        return False
    foreign = [c.encode("gb18030") for c in text if ord(c) > 127]
    common = sum(len(c) == 2 and (0xB0 <= c[0] <= 0xD7 or 0xA1 <= c[0] <= 0xA3) and c[1] >= 0xA1 for c in foreign)
    return bool(foreign) and common >= 0.8 * len(foreign)


def _detect(data: bytes, name: str) -> str:
    best = require("charset_normalizer", "ingest").from_bytes(data[:200_000]).best()
    if best is None:
        raise DataError(f"{name} is not text in any encoding we know; save it as UTF-8")
    return str(best.encoding)


def _read_plain(data: bytes, path: Path, _: str | None) -> Iterator[Section]:
    yield Section(clean(decode(data, str(path))))


def _read_markdown(data: bytes, path: Path, _: str | None) -> Iterator[Section]:
    yield from markdown_sections(clean(without_markup(decode(data, str(path)))))


def without_markup(text: str) -> str:
    """Markdown less what nobody searches for: comments, pictures, the rule under a table's header. Linear in time."""
    kept, position = [], 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[position:start])
        position = end + 3
    return _MARKUP.sub("", "".join([*kept, text[position:]]))


def markdown_sections(text: str) -> Iterator[Section]:
    """One section for every heading, titled by the headings it stands under."""
    headings = [_Heading(0, 0, 0, ""), *_headings(text)]
    trail: list[_Heading] = []
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        trail = [above for above in trail if above.level < heading.level] + [heading]
        body = text[heading.end : following.start if following else len(text)]
        if body.strip():
            start = heading.end + len(body) - len(body.lstrip("\n"))
            yield Section(body.strip("\n"), start, " > ".join(h.title for h in trail if h.title))


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int  # 0 for the document itself
    start: int
    end: int
    title: str


def _headings(text: str) -> Iterator[_Heading]:
    """The ATX headings of a Markdown text; a `#` inside a code fence is none."""
    fenced, start = False, 0
    for line in text.splitlines(keepends=True):
        fenced ^= bool(_FENCE.match(line))
        mark = None if fenced else _HEADING.match(line)
        if mark:
            title = line[mark.end() :].strip().rstrip("#").strip("*_ \t")
            yield _Heading(len(mark[1]), start, start + len(line), title)
        start += len(line)


def _read_html(data: bytes, path: Path, _: str | None) -> Iterator[Section]:
    converters = require("markitdown.converters", "ingest")
    result = _convert(
        path, lambda: converters.HtmlConverter().convert_string(decode(data, str(path)), strip=["a", "img"])
    )
    yield from _titled(markdown_sections(clean(without_markup(result.markdown))), clean(result.title or ""))


def _read_docx(data: bytes, path: Path, _: str | None) -> Iterator[Section]:
    _check_zip(data, path)
    converters, markitdown = require("markitdown.converters", "ingest"), require("markitdown", "ingest")
    kind = markitdown.StreamInfo(extension=".docx")
    result = _convert(path, lambda: converters.DocxConverter().convert(io.BytesIO(data), kind, strip=["a", "img"]))
    yield from markdown_sections(clean(without_markup(result.markdown)))


def _read_pdf(data: bytes, path: Path, _: str | None) -> Iterator[Section]:
    extract = require("pdfminer.high_level", "ingest").extract_text
    logging.getLogger("pdfminer").setLevel(logging.CRITICAL)  # it remarks on every odd font
    if not data.lstrip().startswith(b"%PDF"):
        raise DataError(f"{path} is not a PDF, whatever its name says")
    text = _convert(path, lambda: extract(io.BytesIO(data)))
    if not text.strip():
        raise DataError(f"{path} holds no text, only pictures of it perhaps; run it through OCR first")
    start = 0
    for number, page in enumerate(text.split("\f"), start=1):
        body = unwrap(clean(page))
        yield Section(body, start, page=number)
        start += len(body) + 1


def unwrap(text: str) -> str:
    """Undo a page's line breaks inside sentences: Chinese lines join as they are, Latin ones with a space.

    Lines that are spaced widely, as in most Chinese documents, come with an empty line between them. There only a line
    as wide as the page's widest goes on in the next: a narrower one is a heading, or a paragraph's end.
    """
    full = max(_FULL_LINE, 0.9 * max(map(_width, text.split("\n"))))
    text = _SPACED_CJK.sub(lambda found: found[1] if _width(found[1]) >= full else found[0], text)
    text = _HYPHENATED.sub("", _WRAPPED_CJK.sub("", text))
    return _WRAPPED_LATIN.sub(" ", text)


def _width(line: str) -> int:
    """Half-widths: a Chinese character takes two."""
    return sum(2 if character > "\u2e7f" else 1 for character in line)


def _read_csv(data: bytes, path: Path, text_column: str | None) -> Iterator[Section]:
    text = decode(data, str(path))
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        for number, row in enumerate(rows, start=1):
            if None in row:
                raise DataError(f"{path}, line {rows.line_num}: {len(row[None])} more fields than the header has")
            yield _row(row, number, path, text_column)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def _read_jsonl(data: bytes, path: Path, text_column: str | None) -> Iterator[Section]:
    for number, line in enumerate(decode(data, str(path)).split("\n"), start=1):
        if not line.strip():
            continue
        row = _load_json(line, f"{path}, line {number}")
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is a JSON {type(row).__name__}; an object or a string is expected")
        yield _row(row, number, path, text_column)


def _load_json(line: str, place: str) -> Any:
    """One line's value, refused where it holds what no JSON may: NaN, infinite numbers, lone surrogates.

    Raises:
        DataError: begins with `place`.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_number, parse_float=_parse_float)
        if "\\u" in line:  # an escape may stand for half a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise DataError(f"{place} is not JSON that can be read: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds a lone surrogate, which is no character; write the text as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    except ValueError as error:  # a number of NaN, of infinite size or of thousands of digits
        raise DataError(f"{place} holds a number that cannot be kept: {error}") from error
    return value


def _parse_float(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        _refuse_number(literal)
    return number


def _refuse_number(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]} is not a finite number")


def _row(row: Mapping[str, Any], number: int, path: Path, text_column: str | None) -> Section:
    """A record as a section: its text column is the text, its title column the title, the rest are fields."""
    if text_column is not None and text_column not in row:
        raise DataError(f"{path}, record {number} has no column {text_column!r}; it has {', '.join(map(str, row))}")
    column = text_column or next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    if column is None:
        lines = [
            f"{name}：{value}" for name, value in row.items() if isinstance(value, str | int | float) and value != ""
        ]
        return Section(clean("\n".join(lines)), row=number)
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise DataError(f"{path}, record {number}: {column!r} is a {type(value).__name__}; a string is expected")
    title = next((name for name in TITLE_COLUMNS if name != column and isinstance(row.get(name), str)), None)
    fields = {
        str(name): item
        for name, item in row.items()
        if name not in (column, title) and isinstance(item, str | int | float | bool) and item != ""
    }
    return Section(clean(value or ""), title=clean(row[title]) if title else "", row=number, fields=fields)


def _titled(sections: Iterator[Section], title: str) -> Iterator[Section]:
    """Sections that stand under no heading get the document's title."""
    for section in sections:
        yield section if section.title else Section(section.text, section.start, title)


def _check_zip(data: bytes, path: Path) -> None:
    """Refuse what is no zip archive, or unpacks to more than memory should hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole docx file ({error}); save it again, or as text") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise DataError(f"{path} would unpack to {unpacked / 1e6:,.0f} MB; refused as a possible zip bomb")


def _convert(path: Path, conversion: Callable[[], Any]) -> Any:
    """Run somebody else's converter: whatever it raises on a damaged file is a `DataError` that names the file."""
    try:
        return conversion()
    except DataError:
        raise
    except (Exception, RecursionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} cannot be converted: {type(error).__name__}: {reason}") from error


_Reader = Callable[[bytes, Path, str | None], Iterator[Section]]
SUFFIXES: dict[str, _Reader] = {
    ".txt": _read_plain,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
}
