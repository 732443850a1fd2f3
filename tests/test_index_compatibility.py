"""An index written by peg_rag 0.1 opens, answers as it did then, and takes writes.

`tests/data/index-0.1/kb` holds 16 documents in the segment file, 9 written after it and 3 deleted ones; `expected.json`
holds what 0.1 answered.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag.hits import Hit
from peg_rag.index import PEGIndex, database

STORED = Path(__file__).parent / "data" / "index-0.1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(STORED / "kb", tmp_path / "kb"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "expected.json").read_text(encoding="utf-8"))
    return content


def search_all_modes(index: PEGIndex, expected: dict[str, Any]) -> dict[str, list[Hit]]:
    query = expected["query"]
    question = expected["question"]
    return {
        "dense": index.search(query, k=6),
        "lexical": index.search(text=question, k=6),
        "hybrid": index.search(query, question, k=6, where=expected["where"]),
        "mmr": index.mmr(query, k=4, fetch_k=10),
    }


def assert_answers(index: PEGIndex, expected: dict[str, Any]) -> None:
    for mode, hits in search_all_modes(index, expected).items():
        assert [hit.id for hit in hits] == [name for name, _, _ in expected["hits"][mode]], mode
        for hit, (_, score, scores) in zip(hits, expected["hits"][mode], strict=True):
            assert hit.score == pytest.approx(score, abs=1e-5)
            assert hit.scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("read_only", [True, False])
def test_an_old_index_answers_as_before(
    read_only: bool, path: Path, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with PEGIndex(path, read_only=read_only) as index:
        assert (index.identity, index.dimension, index.storage) == ("letters@1", 8, "float16")
        assert [[record.id, record.text, record.metadata] for record in index.get(where={})] == expected["documents"]
        assert_answers(index, expected)
    assert caplog.text == ""  # the segment file is used, not rebuilt
    assert (path / "vectors-1").read_bytes() == (STORED / "kb" / "vectors-1").read_bytes()


def test_an_old_index_takes_writes_and_compacts(path: Path, expected: dict[str, Any]) -> None:
    count = len(expected["documents"])
    with PEGIndex(path, identity="letters@1") as index:
        index.upsert(["new"], ["新的文本"], -np.array([expected["query"]]))
        assert index.search(text="新的文本", k=1)[0].id == "new"
        index.delete(["new"])
        index.persist()
        assert_answers(index, expected)
        index.upsert(["d5"], ["再来一次"], [expected["query"]], [{"page": 5}])
    assert [file.name for file in path.glob("vectors-*")] == ["vectors-2"]
    with PEGIndex(path) as index:
        assert len(index) == count + 1
        assert {hit.id for hit in index.search(expected["query"], k=2)} == {"d5", "d7"}


def test_a_file_of_small_pages_is_read_and_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    texts = [f"第{number}条 银行卡" for number in range(300)]
    ids = [str(number) for number in range(300)]
    monkeypatch.setattr(database, "PAGE_BYTES", 4096)
    with PEGIndex(tmp_path / "old") as index:
        index.upsert(ids[:200], texts[:200], vectors[:200])
    monkeypatch.undo()
    answers = []
    for name, pages in {"old": 4096, "new": database.PAGE_BYTES}.items():
        with PEGIndex(tmp_path / name) as index:
            index.upsert(ids, texts, vectors)
            index.persist()
            answers.append(
                [index.search(vector, text, k=20) for vector, text in zip(vectors[:20], texts, strict=False)]
            )
        with closing(sqlite3.connect(tmp_path / name / "index.sqlite")) as connection:
            assert connection.execute("PRAGMA page_size").fetchone() == (pages,)
    assert answers[0] == answers[1]
