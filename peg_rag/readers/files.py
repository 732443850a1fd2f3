"""The bytes of a file and what can be said of them before anything is parsed: size, encoding, encryption, zip bombs."""

import codecs
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from peg_rag.errors import DataError, MissingExtra
from peg_rag.extras import require

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 256 * 1024 * 1024

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_COMPOUND = (
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of Office files before 2007, and of encrypted ones since
)
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_Result = TypeVar("_Result")


class PartlyRead(UserWarning):
    """A part of a file could not be read, such as its scanned pages; the message names it and the cure."""


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The file's bytes.

    Raises:
        DataError: it is empty, too large, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path} is empty (0 bytes)")
        if size > max_bytes:
            raise DataError(f"{path} is {size / 1e6:,.0f} MB; the limit is {max_bytes / 1e6:,.0f} MB. Split it first")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


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
        return "gb18030" if _looks_gb18030(data) else _detect_encoding(data, name)


def check_zip(data: bytes, path: Path) -> None:
    """Refuse what is no whole Office or EPUB file, is encrypted, or unpacks to more than memory should hold.

    Raises:
        DataError: names the file and the reason.
    """
    kind = path.suffix.lower().removeprefix(".")
    if data.startswith(_COMPOUND):
        if _ENCRYPTED in data:
            raise encrypted(path)
        raise DataError(f"{path} is a legacy (pre-2007) Office file despite its extension; save it as {kind}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a valid {kind} file (truncated or corrupt: {error}); save it again, or as text"
        ) from error
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_UNPACKED_BYTES:
        raise DataError(f"{path} would unpack to {unpacked / 1e6:,.0f} MB; refused as a possible zip bomb")
    if any(member.flag_bits & 1 for member in members):
        raise encrypted(path)


def encrypted(path: Path) -> DataError:
    return DataError(f"{path} is encrypted (文件已加密); remove its password, then read it again (请先去掉密码)")


def run_parser(path: Path, parse: Callable[[], _Result]) -> _Result:
    """Run a third-party parser: whatever it raises on a damaged file is a `DataError` that names the file."""
    try:
        return parse()
    except (DataError, MissingExtra, MemoryError):
        raise
    except (Exception, RecursionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} cannot be converted: {type(error).__name__}: {reason}") from error


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


def _detect_encoding(data: bytes, name: str) -> str:
    best = require("charset_normalizer", "ingest").from_bytes(data[:200_000]).best()
    if best is None:
        raise DataError(f"{name} is not text in any encoding we know; save it as UTF-8")
    return str(best.encoding)
