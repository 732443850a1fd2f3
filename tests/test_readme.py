"""Both READMEs are true: every Python snippet runs as it stands, offline, in an empty folder; and they say the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import REPO, Block, blocks_of

ENGLISH, CHINESE = REPO / "README.md", REPO / "README.zh-CN.md"
SNIPPETS = [block for page in (ENGLISH, CHINESE) for block in blocks_of(page) if block.language == "python"]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"{block.page}:{block.line}")
def test_snippet_runs(block: Block, tmp_path: Path) -> None:
    env = {**os.environ, "PEG_RAG_MODEL": "peg-mini"}
    done = subprocess.run([sys.executable, "-c", block.code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "花呗" in done.stdout or "1." in done.stdout


def commands(page: Path) -> set[str]:
    """Lines of the page's bash blocks, without remarks."""
    lines = (line for block in blocks_of(page) if block.language == "bash" for line in block.code.splitlines())
    return {re.sub(r"\s+#.*", "", line) for line in lines}


def numbers(page: Path) -> set[str]:
    """Numbers with a decimal point or a thousands comma: what was measured."""
    return set(re.findall(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.])", page.read_text(encoding="utf-8")))


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    assert commands(ENGLISH) - commands(CHINESE) == set()


def test_the_chinese_readme_has_the_numbers_of_the_english_one() -> None:
    measured = {number for number in numbers(ENGLISH) if "." in number or "," in number}
    assert len(measured) > 30
    assert measured - numbers(CHINESE) == set()
