"""E-mail: .eml by the standard library, Outlook's .msg by its streams. Sender, date and subject stand with the text."""

import email
import email.policy
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError, MissingExtra
from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Record, Row
from peg_rag.readers.files import PartlyRead, run_parser
from peg_rag.readers.html import fragment_blocks
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.readers.normalize import clean, clean_line
from peg_rag.readers.text import plain_blocks

_NAMES = {"From": "发件人", "To": "收件人", "Cc": "抄送", "Date": "日期", "Subject": "主题"}
_DEEPEST_ATTACHMENT = 3  # messages attached to messages
# The line above a quoted message, as mail programs write it.
_QUOTATION = re.compile(
    r"(>\s*)?[-—_ ]*(原始邮件|邮件原件|转发邮件|转发的邮件|Original Message|Forwarded message)[-—_ ]*$|"
    r"(>\s*)?(On|Am|Le)\s[^\n]{6,150}(wrote|schrieb|a écrit)\s*:$|"
    r"(>\s*)?(在\s?)?[^\n]{0,20}\d{4}[-年/.][^\n]{3,120}(写道|wrote)\s*[:：]$",
    re.IGNORECASE | re.MULTILINE,
)
# Sender and time of a quoted message, where nothing else stands above it.
_HEAD = re.compile(
    r">?\s?\*?(发件人|寄件者|From)\*?\s*[:：][^\n]+\n"
    r">?\s?\*?(发送时间|发送日期|日期|寄件日期|Sent|Date)\*?\s*[:：]",
    re.IGNORECASE,
)
_QUOTE_MARKS = re.compile(r"^(>\s?)+")
_QUOTATION_LEVEL = 2  # below the subject
_NO_SUBJECT = "（无主题）"
# Names of streams in a .msg: property and type (001F: Unicode text, 001E: text in the local code page).
_MSG_STREAMS = {"Subject": "0037", "From": "0C1A", "To": "0E04", "Cc": "0E03"}
_MSG_BODY = "1000"
_MSG_ADDRESSES = ("5D01", "0C1F")


def read_eml(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from run_parser(path, lambda: list(_message_blocks(data, path)))


def read_msg(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from run_parser(path, lambda: list(_outlook_blocks(data, path)))


def _message_blocks(data: bytes, path: Path) -> Iterator[Block]:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if not any(message[name] for name in _NAMES):
        raise DataError(f"{path} is not an e-mail: it has no From, To, Date or Subject")
    yield from _read_message(message, path, 0)


def _read_message(message: EmailMessage, path: Path, depth: int) -> Iterator[Block]:
    """A message and what is attached to it; `depth`: how many messages it is attached to."""
    headers = {name: clean_line(str(message[name])) for name in _NAMES if message[name]}
    if "Date" in headers:
        headers["Date"] = _local_date(headers["Date"])
    attachments = [clean_line(part.get_filename() or "") for part in message.iter_attachments()]
    yield from _head_blocks(headers, [name for name in attachments if name])
    yield from _body_blocks(message, path)
    for part in message.iter_attachments():
        yield from _attachment_blocks(part, path, depth)


def _body_blocks(message: EmailMessage, path: Path) -> Iterator[Block]:
    """The plain text; the page where there is none, or where it has tables, which plain text has lost."""
    plain = message.get_body(("plain",))
    page = message.get_body(("html",))
    if page is not None:
        blocks = list(_part_quotations(fragment_blocks(_part_text(page), str(path))))
        if plain is None or any(isinstance(block, Row) for block in blocks):
            yield from blocks
            return
    if plain is not None:
        yield from _plain_body(clean(_part_text(plain)))


def _plain_body(text: str) -> Iterator[Block]:
    """The text of a message, then the messages that it quotes, each under the line that says so."""
    lines = text.split("\n")
    starts: list[int] = []
    for number, line in enumerate(lines):
        is_head = _HEAD.match("\n".join(lines[number : number + 2])) is not None and starts[-1:] != [number - 1]
        if is_head or _QUOTATION.match(line.strip()):
            starts.append(number)
    yield from plain_blocks("\n".join(lines[: starts[0]] if starts else lines))
    for start, end in pairwise([*starts, len(lines)]):
        yield _quotation_heading(lines[start])
        quoted = clean("\n".join(_QUOTE_MARKS.sub("", line) for line in lines[start + 1 : end]))
        yield from _nest(plain_blocks(quoted))


def _part_quotations(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks of a page, in which a paragraph that begins a quoted message is a heading."""
    is_quoted = False
    is_marked = False  # whether the block before was the line above a quoted message
    for block in blocks:
        match = None
        if isinstance(block, Paragraph):
            match = _QUOTATION.match(block.text) or (None if is_marked else _HEAD.match(block.text))
        is_marked = match is not None
        if match is None:
            yield from _nest([block]) if is_quoted else [block]
            continue
        is_quoted = True
        line, _, rest = block.text.partition("\n")
        yield _quotation_heading(line)
        if rest:
            yield Paragraph(rest)


def _quotation_heading(line: str) -> Heading:
    return Heading(clean_line(line).strip("-—_ >"), _QUOTATION_LEVEL)


def _nest(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks whose headings stand below that of a quoted message."""
    for block in blocks:
        yield replace(block, level=block.level + _QUOTATION_LEVEL) if isinstance(block, Heading) else block


def _attachment_blocks(part: Any, path: Path, depth: int) -> Iterator[Block]:
    """An attached file or message under its name, without the pages that it has and the message has not."""
    name = Path(clean_line(part.get_filename() or "")).name
    try:
        blocks = run_parser(path / name, lambda: _read_attachment(part, name, path, depth))
    except (DataError, MissingExtra) as error:
        warnings.warn(PartlyRead(f"{path}: an attachment is not read: {error}"), stacklevel=2)
        return
    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            yield replace(block, level=block.level + (1 if number == 0 else 2), page=None, places=())
        elif isinstance(block, Record):
            yield block
        else:
            yield replace(block, page=None, places=())


def _read_attachment(part: Any, name: str, path: Path, depth: int) -> list[Block]:
    """What an attachment holds, its title first; nothing of a kind that is not read."""
    if part.get_content_type() == "message/rfc822":
        return list(_read_message(part.get_content(), path, depth + 1)) if depth < _DEEPEST_ATTACHMENT else []
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        return []
    module, function = SUFFIXES[suffix].split(":")
    read = getattr(import_module(f"peg_rag.readers.{module}"), function)
    return [Heading(name, 1), *read(part.get_payload(decode=True) or b"", path / name, None)]


def _part_text(part: Any) -> str:
    """A part's text, also where it names an encoding that it is not in, or one that nobody knows."""
    try:
        return str(part.get_content())
    except (LookupError, UnicodeError):
        return bytes(part.get_payload(decode=True) or b"").decode("gb18030", "replace")


def _local_date(text: str) -> str:
    """The date in the sender's own time, or as it is written where it is no date."""
    try:
        return f"{parsedate_to_datetime(text):%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return text


def _outlook_blocks(data: bytes, path: Path) -> Iterator[Block]:
    olefile = require("olefile", "ingest")
    if not data.startswith(olefile.MAGIC):
        raise DataError(f"{path} is not an Outlook message despite its extension")
    with olefile.OleFileIO(io.BytesIO(data)) as archive:
        headers = {name: clean_line(_read_stream(archive, code)) for name, code in _MSG_STREAMS.items()}
        address = next(filter(None, (_read_stream(archive, code) for code in _MSG_ADDRESSES)), "")
        if address and address not in headers["From"]:
            headers["From"] = f"{headers['From']} <{clean_line(address)}>".strip()
        date = _format_date(archive)
        if date:
            headers["Date"] = date
        body = clean(_read_stream(archive, _MSG_BODY))
    yield from _head_blocks({name: headers[name] for name in _NAMES if headers.get(name)}, [])
    if body:
        yield from _plain_body(body)


def _read_stream(archive: Any, code: str) -> str:
    for kind, encoding in (("001F", "utf-16-le"), ("001E", "gb18030")):
        name = f"__substg1.0_{code}{kind}"
        if archive.exists(name):
            return str(archive.openstream(name).read().decode(encoding, "replace"))
    return ""


def _format_date(archive: Any) -> str:
    """When it was sent: property 0039 of type 0040, 100 nanoseconds since 1601, among the fixed-size properties."""
    name = "__properties_version1.0"
    if not archive.exists(name):
        return ""
    properties = archive.openstream(name).read()
    for start in range(32, len(properties) - 15, 16):
        if properties[start : start + 4] == b"\x40\x00\x39\x00":
            ticks = int.from_bytes(properties[start + 8 : start + 16], "little")
            seconds = ticks / 1e7 - 11_644_473_600
            return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" if seconds > 0 else ""
    return ""


def _head_blocks(headers: dict[str, str], attachments: list[str]) -> Iterator[Block]:
    """The subject as the title; who wrote to whom, and when, as one record."""
    yield Heading(headers.get("Subject") or _NO_SUBJECT, 1)
    cells = [(_NAMES[name], value) for name, value in headers.items()]
    if attachments:
        cells.append(("附件", "、".join(attachments)))
    yield Record(" | ".join(f"{name}: {value}" for name, value in cells), cells=tuple(cells))
