"""Lay the repository's pages out for MkDocs: `python docs/site/stage.py build/docs`.

Pages of this repository link to each other, to notebooks and to source files by relative paths, so that they read well
on a code host. MkDocs wants one folder of its own. This copies every page to the same place in such a folder, turns
notebooks into pages, and takes along each file that a page links to; links therefore need no change, and one that
leads nowhere fails the strict build.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parents[2]
PAGES = (
    "*.md",
    "docs/**/*.md",
    "examples/**/*.md",
    "examples/*.ipynb",
    "benchmarks/**/*.md",
    "train/**/*.md",
    "peg_rag/assets/*/README.md",
)
# What the theme calls Chinese, and what its pages are called here.
SITE_CHINESE = ".zh."
PAGE_CHINESE = ".zh-CN."


def stage(target: Path) -> int:
    """Fill `target`, emptied first, with the pages and what they link to; how many pages there are."""
    shutil.rmtree(target, ignore_errors=True)
    pages = sorted({page for pattern in PAGES for page in REPO.glob(pattern)})
    for page in pages:
        _stage_page(page, target)
    shutil.copytree(REPO / "docs" / "site" / "assets", target / "assets")
    return len(pages)


def _stage_page(page: Path, target: Path) -> None:
    if page.suffix == ".ipynb":
        _stage_notebook(page, target)
        return
    text = page.read_text(encoding="utf-8")
    for linked in _linked_files(page, text):
        destination = target / linked.relative_to(REPO)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(linked, destination)
    if PAGE_CHINESE not in page.name:
        text = _without_language_links(text)
    _write(target / _site_name(page.relative_to(REPO)), _without_test_flags(_with_site_links(text)))


def _stage_notebook(notebook: Path, target: Path) -> None:
    """A notebook as a page, its pictures beside it."""
    from nbconvert import MarkdownExporter

    place = target / notebook.relative_to(REPO).with_suffix(".md")
    pictures = f"{notebook.stem}_files"
    text, resources = MarkdownExporter().from_filename(str(notebook), resources={"output_files_dir": pictures})
    _write(place, _with_site_links(text))
    for name, content in resources["outputs"].items():
        (place.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (place.parent / name).write_bytes(content)


def _linked_files(page: Path, text: str) -> Iterator[Path]:
    """Files of the repository, other than pages, that a page links to."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or []:
            link = urlsplit(str(child.attrs.get("href") or child.attrs.get("src") or ""))
            linked = (page.parent / unquote(link.path)).resolve()
            is_page = linked.suffix in (".md", ".ipynb")
            if link.path and not link.scheme and not is_page and linked.is_file() and linked.is_relative_to(REPO):
                yield linked


def _with_site_links(text: str) -> str:
    """Notebooks are pages here, and Chinese pages have another suffix."""
    return re.sub(r"\.ipynb(?=[)#])", ".md", text.replace(PAGE_CHINESE, SITE_CHINESE))


def _without_language_links(text: str) -> str:
    """The site switches languages itself, and builds one at a time: a link to the other one would lead nowhere."""
    return re.sub(rf"\[([^]]+)]\([^)]*{re.escape(PAGE_CHINESE)}md\)", r"\1", text)


def _without_test_flags(text: str) -> str:
    """Fences that say `bash skip=network` or `yaml file=x` talk to the tests; the highlighter wants the language."""
    return re.sub(r"^```(\w+) (?:skip|file)=.*$", r"```\1", text, flags=re.MULTILINE)


def _site_name(page: Path) -> Path:
    return page.with_name(page.name.replace(PAGE_CHINESE, SITE_CHINESE))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    print(f"{stage(Path(sys.argv[1]))} pages in {sys.argv[1]}")
