"""The documentation is true: its code runs, offline; its links lead somewhere; every error has its cure."""

import inspect
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from doc_pages import REASONS, REPO, RUN, WRITTEN, anchors_of, blocks_of, links_of, run_page

from peg_rag import errors

DOCS = sorted((REPO / "docs").glob("*.md"))
CHINESE = ".zh-CN"
PAGES = [
    *REPO.glob("*.md"),
    *(
        page
        for name in ("docs", "benchmarks", "examples", "train", "peg_rag/assets", ".github")
        for page in (REPO / name).rglob("*.md")
    ),
]
RUNNABLE = [page for page in DOCS if any(b.language in RUN and not b.skip for b in blocks_of(page))]
SLOW = ("evaluate-and-mine", "fine-tune", "train")  # many commands, each of which starts Python and torch
NEEDS_PEG = ("migrate-from-huggingface-embeddings",)


def topic(page: Path) -> str:
    """A page's name, whatever its language."""
    return page.stem.removesuffix(CHINESE)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A hub cache with a small random BERT in the place, and the layout, of TownsWu/PEG."""
    folder = tmp_path_factory.mktemp("hub")
    model = folder / "models--TownsWu--PEG"
    commit = "0123456789" * 4
    shutil.copytree(tiny_bert, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if topic(page) in SLOW else page for page in RUNNABLE],
    ids=[page.stem for page in RUNNABLE],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run_page(page, tmp_path, request.getfixturevalue("hub") if topic(page) in NEEDS_PEG else tmp_path / "empty")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_what_does_not_run_says_why(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in (*RUN, *WRITTEN, "diff", "json"), f"{page.name}, line {block.line}: which language?"
        assert block.skip is None or block.skip in REASONS, f"{page.name}, line {block.line}: skip={block.skip}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("http", "https"), link
            assert re.fullmatch(r"[\w.-]+\.\w+(:\d+)?", parts.netloc), link
            continue
        target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
        assert target.is_relative_to(REPO), f"{link} leads out of the repository"
        assert target.exists(), f"{link}: there is no such file"
        if parts.fragment:
            assert unquote(parts.fragment) in anchors_of(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("index", ["README.md", "README.zh-CN.md"])
def test_every_page_is_in_the_index(index: str) -> None:
    names = {page.name for page in DOCS}
    chinese = {name for name in names if CHINESE in name}
    english = names - chinese
    if CHINESE in index:  # the Chinese index names the English page where there is no other
        english -= {name.replace(CHINESE, "") for name in chinese}
    expected = english | chinese if CHINESE in index else english
    assert expected - {index} - set(links_of(REPO / "docs" / index)) == set()


@pytest.mark.parametrize("page", [page for page in DOCS if CHINESE in page.name], ids=lambda page: page.stem)
def test_a_chinese_page_has_the_code_of_the_english_one(page: Path) -> None:
    """Remarks are in Chinese, and what a block prints is the same."""

    def code(side: Path) -> list[str]:
        lines = [line for block in blocks_of(side) for line in block.code.splitlines()]
        return [line if "# → " in line else re.sub(r"\s+#.*", "", line) for line in lines]

    english, chinese = code(page.with_name(page.name.replace(CHINESE, ""))), code(page)
    assert english == chinese


def test_every_page_of_the_site_is_there() -> None:
    """What `mkdocs.yml` names exists, notebooks under the name of their page; `make docs` checks the links."""
    nav = (REPO / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = [REPO / name for name in re.findall(r"([\w./-]+\.md)$", nav, re.MULTILINE)]
    assert len(pages) > 30
    assert [page for page in pages if not page.exists() and not page.with_suffix(".ipynb").exists()] == []


def test_every_error_has_its_cure() -> None:
    text = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    names = [
        name for name, member in inspect.getmembers(errors, inspect.isclass) if member.__module__ == errors.__name__
    ]
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_checkers_see_what_they_check(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# 一个 `Title`, here\n\n[a](#一个-title-here) ![b](b.png)\n\n```python skip=network\nx\n```\n\n"
        "| [c](c.md) |\n|---|\n| [d](d.md#e) |\n\n## Twice\n\n## Twice\n",
        encoding="utf-8",
    )
    assert anchors_of(page) == {"一个-title-here", "twice", "twice-1"}
    assert [unquote(link) for link in links_of(page)] == ["#一个-title-here", "b.png", "c.md", "d.md#e"]
    (block,) = blocks_of(page)
    assert (block.language, block.skip, block.line, block.code) == ("python", "network", 5, "x\n")


def test_a_wrong_page_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for code in ("print(1)  # → 2", "raise SystemExit(1)"):
        page.write_text(f"```python\n{code}\n```\n", encoding="utf-8")
        with pytest.raises(AssertionError):
            run_page(page, tmp_path / str(len(code)), tmp_path)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_contributors_are_sent_to_exist(page: str) -> None:
    """A page that sends a newcomer to a file that has moved is worse than none."""
    text = (REPO / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:peg_rag|tests|docs|benchmarks|web|\.github)/[\w./-]+\.\w+)`", text))
    names = {path for path in paths if not re.search(r"[A-Z]{4}", path)}  # NAME stands for one's own
    assert len(names) >= 2
    assert sorted(name for name in names if not (REPO / name).exists()) == []
