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
from peg_rag.readers.html import fragment_blocks, is_contents_page
from peg_rag.readers.normalize import clean_line

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_ITEMS = "//*[local-name()='manifest']/*[local-name()='item']"
_NCX = "application/x-dtbncx+xml"
_NCX_POINTS = "//*[local-name()='navPoint'][*[local-name()='navLabel']]"
_PAGE_LINKS = "//*[local-name()='nav']//*[local-name()='a'][@href]"
_FONTS_ONLY = ("font", ".otf", ".ttf", ".woff")


def read_epub(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    check_zip(data, path)
    yield from run_parser(path, lambda: list(_book_blocks(data, path)))


def _book_blocks(data: bytes, path: Path) -> Iterator[Block]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _has_locked_text(archive):
            raise encrypted(path)
        package, folder = _read_package(archive, path)
        title = clean_line(package.xpath("string(//*[local-name()='metadata']/*[local-name()='title'])"))
        if title:
            yield Heading(title, 0)
        titles = _read_contents(archive, package, folder)
        for name in _read_spine(package, folder):
            try:
                text = decode(archive.read(name), f"{path}: {name}")
            except KeyError as error:
                raise DataError(f"{path} is incomplete: it lists {name} but does not contain it") from error
            if not is_contents_page(text, f"{path}: {name}"):
                yield from _with_title(fragment_blocks(text, f"{path}: {name}"), titles.get(name, ""))


def _with_title(blocks: list[Block], title: str) -> Iterator[Block]:
    """A chapter under its title in the book's contents, where it has no heading to begin with."""
    if title and blocks and not isinstance(blocks[0], Heading):
        yield Heading(title, 1)
        if clean_line(blocks[0].text) == title:  # it stands there as a paragraph
            blocks = blocks[1:]
    yield from blocks


def _read_package(archive: zipfile.ZipFile, path: Path) -> tuple[Any, str]:
    """The book's list of files, and the folder that their names start from."""
    try:
        container = _parse_xml(archive.read(_CONTAINER))
    except KeyError as error:
        raise DataError(f"{path} is not an EPUB book despite its extension: it has no {_CONTAINER}") from error
    package_name = container.xpath("string(//*[local-name()='rootfile']/@full-path)")
    return _parse_xml(archive.read(package_name)), posixpath.dirname(package_name)


def _read_spine(package: Any, folder: str) -> list[str]:
    """The names of the chapters' files, in reading order."""
    items = {item.get("id"): item for item in package.xpath(_ITEMS)}
    chapters = []
    for reference in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
        item = items.get(reference)
        if item is not None and "nav" not in (item.get("properties") or "").split():
            chapters.append(_resolve_name(folder, item.get("href") or ""))
    return chapters


def _read_contents(archive: zipfile.ZipFile, package: Any, folder: str) -> dict[str, str]:
    """The chapters' titles by the names of their files, from the contents of EPUB 3 or else of EPUB 2."""
    titles: dict[str, str] = {}
    names = set(archive.namelist())
    for item in package.xpath(_ITEMS):
        is_page = "nav" in (item.get("properties") or "").split()
        name = _resolve_name(folder, item.get("href") or "")
        if not (is_page or item.get("media-type") == _NCX) or name not in names:
            continue
        tree = _parse_xml(archive.read(name), recover=True)
        if tree is None:
            continue
        for link in tree.xpath(_PAGE_LINKS if is_page else _NCX_POINTS):
            target = link.get("href") if is_page else link.xpath("string(./*[local-name()='content']/@src)")
            label = link if is_page else link.xpath("./*[local-name()='navLabel']")[0]
            chapter = _resolve_name(posixpath.dirname(name), target.partition("#")[0])
            titles.setdefault(chapter, clean_line("".join(label.itertext())))
    return titles


def _resolve_name(folder: str, address: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(address)))


def _has_locked_text(archive: zipfile.ZipFile) -> bool:
    """Whether chapters are encrypted; obfuscated fonts do not count."""
    if _ENCRYPTION not in archive.namelist():
        return False
    names = _parse_xml(archive.read(_ENCRYPTION)).xpath("//*[local-name()='CipherReference']/@URI")
    return any(not any(part in name.lower() for part in _FONTS_ONLY) for name in names)


def _parse_xml(data: bytes, recover: bool = False) -> Any:
    etree = require("lxml.etree", "ingest")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, recover=recover)
    return etree.fromstring(data, parser)
