"""Markdown pages as tests see them: their code blocks, links and anchors; and a page's code run from top to bottom.

A block runs unless the line that opens it says why it cannot: `bash skip=network`. A block with `file=name` is written
to that file before the page is run. What a block says it prints (`# → …`) must be in what it prints.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPO = Path(__file__).resolve().parent.parent
REASONS = {"network", "data", "devices", "hours", "install", "server", "yours"}
RUN, WRITTEN = ("python", "bash"), ("yaml", "json", "jsonl", "tsv", "text")

_RUNNER = """
import contextlib, io, json, re, subprocess, sys
scope = {"__name__": "__main__"}
for block in json.load(sys.stdin):
    where = f"{block['page']}, line {block['line']}"
    if block["language"] == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\\n" * block["line"] + block["code"], block["page"], "exec"), scope)
        printed = printed.getvalue()
    else:
        command = ["bash", "-euo", "pipefail", "-c", block["code"]]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        printed = done.stdout
        assert done.returncode == 0, f"{where}: exit code {done.returncode}: {printed}"
    for said in re.findall(r"# → (.+)", block["code"]):
        assert said.strip() in printed, f"{where}: {said!r} is not in what was printed: {printed}"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    file: str | None
    skip: str | None
    code: str


def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks_of(page: Path) -> Iterator[Block]:
    for token in tokens_of(page):
        if token.type == "fence":
            language, *flags = token.info.split() or [""]
            options = dict(flag.split("=", 1) for flag in flags)
            line = (token.map or [0])[0] + 1
            yield Block(page.name, line, language, options.get("file"), options.get("skip"), token.content)


def run_page(page: Path, folder: Path, hub: Path) -> None:
    """Run a page's blocks in order, in one process, in a folder that holds the examples' documents as `文档`.

    `hub` is the hub's cache, all there is of the hub.
    """
    shutil.copytree(REPO / "examples" / "data", folder / "文档")
    blocks = [block for block in blocks_of(page) if not block.skip]
    for block in blocks:
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code, encoding="utf-8")
    runnable = [vars(block) for block in blocks if block.language in RUN and not block.file]
    unset = ("PEG_RAG_MODEL", "PEG_DATA", "OPENAI_BASE_URL")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "HF_HUB_OFFLINE": "1"}
    env |= {"HF_HUB_CACHE": str(hub), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER], input=json.dumps(runnable), cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def links_of(page: Path) -> Iterator[str]:
    """Targets of links and images."""
    for token in tokens_of(page):
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield str(target)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    tokens = tokens_of(page)
    found: set[str] = set()
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            plain = "".join(child.content for child in text.children or [])
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.add(next(s for n in range(100) if (s := f"{slug}-{n}" if n else slug) not in found))
    written = re.findall(r'<a id="([^"]+)"></a>', page.read_text(encoding="utf-8"))
    return found | set(written)
