"""EPUB books: the chapters in the order of the spine, as the HTML they are."""

import io
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading
from peg_rag.readers.files import check_zip, decode, encrypted, run_parser
from peg_rag.readers.html import fragment_blocks
from peg_rag.readers.normalize import clean_line

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONTS_ONLY = ("font", ".otf", ".ttf", ".woff")


def read_epub(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    check_zip(data, path)
    yield from run_parser(path, lambda: list(_book_blocks(data, path)))


def _book_blocks(data: bytes, path: Path) -> Iterator[Block]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _has_locked_text(archive):
            raise encrypted(path)
        title, chapters = _read_spine(archive, path)
        if title:
            yield Heading(title, 0)
        for name in chapters:
            try:
                text = decode(archive.read(name), f"{path}: {name}")
            except KeyError as error:
                raise DataError(f"{path} is incomplete: it lists {name} but does not contain it") from error
            yield from fragment_blocks(text, f"{path}: {name}")


def _read_spine(archive: zipfile.ZipFile, path: Path) -> tuple[str, list[str]]:
    """The book's title and the names of its chapters' files, in reading order."""
    try:
        container = _parse_xml(archive.read(_CONTAINER))
    except KeyError as error:
        raise DataError(f"{path} is not an EPUB book despite its extension: it has no {_CONTAINER}") from error
    package_name = container.xpath("string(//*[local-name()='rootfile']/@full-path)")
    package = _parse_xml(archive.read(package_name))
    folder = posixpath.dirname(package_name)
    title = clean_line(package.xpath("string(//*[local-name()='metadata']/*[local-name()='title'])"))
    items = {item.get("id"): item for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    chapters = []
    for reference in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
        item = items.get(reference)
        if item is not None and "nav" not in (item.get("properties") or "").split():
            chapters.append(posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or ""))))
    return title, chapters


def _has_locked_text(archive: zipfile.ZipFile) -> bool:
    """Whether chapters are encrypted; obfuscated fonts do not count."""
    if _ENCRYPTION not in archive.namelist():
        return False
    names = _parse_xml(archive.read(_ENCRYPTION)).xpath("//*[local-name()='CipherReference']/@URI")
    return any(not any(part in name.lower() for part in _FONTS_ONLY) for name in names)


def _parse_xml(data: bytes) -> Any:
    etree = require("lxml.etree", "ingest")
    return etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
