"""The README is true: every Python snippet runs, offline, in an empty folder; and the Chinese one says the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import REPO, Block, blocks_of

ENGLISH, CHINESE = REPO / "README.md", REPO / "README.zh-CN.md"
SNIPPETS = [block for block in blocks_of(ENGLISH) if block.language == "python"]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"{block.page}:{block.line}")
def test_snippet_runs(block: Block, tmp_path: Path) -> None:
    env = {**os.environ, "PEG_RAG_MODEL": "peg-mini"}
    done = subprocess.run([sys.executable, "-c", block.code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "花呗" in done.stdout or "1." in done.stdout


def code(page: Path, language: str) -> list[str]:
    """The page's lines of code, without remarks."""
    blocks = (block.code for block in blocks_of(page) if block.language == language)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


def numbers(page: Path) -> set[str]:
    """Numbers with a decimal point or a thousands comma: what was measured."""
    return set(re.findall(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.])", page.read_text(encoding="utf-8")))


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    assert set(code(ENGLISH, "bash")) - set(code(CHINESE, "bash")) == set()


def test_the_chinese_readme_has_the_snippets_of_the_english_one() -> None:
    assert code(ENGLISH, "python") == code(CHINESE, "python")


def test_the_chinese_readme_has_the_numbers_of_the_english_one() -> None:
    measured = {number for number in numbers(ENGLISH) if "." in number or "," in number}
    assert len(measured) > 30
    assert measured - numbers(CHINESE) == set()
