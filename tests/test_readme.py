"""Every Python snippet of the README runs as it stands, offline, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: re.search(r"from (\S+)", s)[1])
def test_snippet_runs(snippet, tmp_path):
    env = {**os.environ, "PEG_RAG_MODEL": "peg-mini"}
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "花呗" in done.stdout or "1." in done.stdout


def test_links_to_files_lead_somewhere():
    root = Path(__file__).resolve().parent.parent
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert all((root / target).exists() for target in targets), targets
