"""A folder and its index stay in step: after any edits and after a crash at any step, `sync` equals a fresh start."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sample_files import docx, pdf

from peg_rag.errors import DamagedIndex, IndexBusy, InvalidInput
from peg_rag.index import PEGIndex
from peg_rag.ingest import LEDGER_FILE, Chunking, Progress, find_files, model_of, split, sync
from peg_rag.readers import Place, Section


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("# 报销\n\n需要发票。\n\n## 期限\n三十天。\n", encoding="utf-8")
    (folder / "b.txt").write_text("住宿标准每晚四百元。", encoding="gb18030")
    (folder / "sub" / "c.csv").write_text("text,年\n出差要申请。,2023\n", encoding="utf-8")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def index(store: Path) -> Iterator[PEGIndex]:
    with PEGIndex(store) as opened:
        yield opened


def contents(index: PEGIndex) -> dict[str, tuple[str, dict[str, Any]]]:
    return {record.id: (record.text, dict(record.metadata)) for record in index.get(where={})}


def fresh(docs: Path, letters: Any, store: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """What an index holds that has seen nothing but the folder as it is now."""
    with PEGIndex(store) as index:
        sync(docs, index, letters, store)
        return contents(index)


# -- chunks -----------------------------------------------------------------------------------------------------------


def test_chunks_end_at_sentences_and_know_their_place() -> None:
    text = "第一句话说的是检索。第二句话说的是生成！第三句话说的是评测？第四句话，说的是训练；还有数据。"
    chunks = list(split([Section(text, 100, "手册", page=3)], "a.pdf", "v", Chunking(25, 0)))
    assert [c.text.removeprefix("手册\n") for c in chunks] == [
        "第一句话说的是检索。第二句话说的是生成！",
        "第三句话说的是评测？",
        "第四句话，说的是训练；还有数据。",
    ]
    for number, chunk in enumerate(chunks):
        start = chunk.metadata["start"] - 100
        assert text[start:].startswith(chunk.text.removeprefix("手册\n"))
        assert chunk.metadata | {"start": 0} == {
            "source": "a.pdf", "version": "v", "chunk": number, "start": 0, "title": "手册", "page": 3,
        }  # fmt: skip


@given(st.text("检索生成。！？；，、 \nab.…”", max_size=400), st.integers(5, 60), st.integers(0, 4))
@example("aaaa aA", 5, 1)
@example("\n" * 7 + "检检 检检 检检检检", 5, 4)
def test_chunks_cover_the_text_and_keep_their_length(text: str, characters: int, overlap: int) -> None:
    chunks = list(split([Section(text)], "a", "v", Chunking(characters, overlap)))
    assert all(len(chunk.text) <= characters for chunk in chunks)
    covered = set()
    for chunk in chunks:
        start = chunk.metadata["start"]
        assert text[start : start + len(chunk.text)] == chunk.text
        covered |= set(range(start, start + len(chunk.text)))
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_ids_do_not_change_when_text_is_put_before() -> None:
    rest = [Section("甲" * 30), Section("乙" * 30)]
    before = {c.text: c.id for c in split(rest, "a", "v1")}
    after = {c.text: c.id for c in split([Section("新"), *rest], "a", "v2")}
    assert before.items() <= after.items()
    assert not set(before.values()) & {c.id for c in split(rest, "b", "v1")}


def test_a_column_cannot_pass_itself_off_as_a_source() -> None:
    [chunk] = split([Section("甲", fields={"source": "/etc/passwd", "年": 1})], "a.csv", "v")
    assert chunk.metadata["source"] == "a.csv"
    assert chunk.metadata["年"] == 1


@pytest.mark.parametrize(("characters", "overlap"), [(100, 100), (100, -1), (0, 0)])
def test_contradictory_chunking_is_refused(characters: int, overlap: int) -> None:
    with pytest.raises(InvalidInput, match="overlap"):
        Chunking(characters, overlap)


# -- which files ------------------------------------------------------------------------------------------------------


def test_hidden_files_links_and_other_kinds_stay_out(docs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("秘密")
    (docs / "link.txt").symlink_to(secret)
    (docs / "linked").symlink_to(tmp_path, target_is_directory=True)
    (docs / ".hidden.txt").write_text("x")
    (docs / ".git").mkdir()
    (docs / ".git" / "a.txt").write_text("x")
    (docs / "x.exe").write_bytes(b"MZ")
    os.mkfifo(docs / "pipe.txt")
    found, ignored = find_files(docs)
    assert sorted(found) == ["docs/a.md", "docs/b.txt", "docs/sub/c.csv"]
    assert ignored == 1


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses such names")
def test_a_file_name_that_is_no_utf8_can_be_stored(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    Path(os.fsdecode(os.fsencode(docs) + b"/\xff.txt")).write_text("甲乙丙")
    sync(docs, index, letters, store)
    assert index.count({"source": "docs/\\xff.txt"}) == 1


def test_a_missing_folder_is_an_error(tmp_path: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    with pytest.raises(InvalidInput, match="no such file or folder"):
        sync(tmp_path / "gone", index, letters, store)


# -- in step ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_every_kind_is_indexed(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    (docs / "d.docx").write_bytes(docx(["# 标题", "正文。"]))
    (docs / "e.pdf").write_bytes(pdf([["第一页"], ["第二页"]]))
    (docs / "f.html").write_text("<h1>题</h1><p>文字</p>", encoding="utf-8")
    (docs / "g.jsonl").write_text('{"text": "一行"}\n', encoding="utf-8")
    steps: list[Progress] = []
    report = sync(docs, index, letters, store, on_progress=steps.append)
    assert len(report.added) == 7
    assert not report.failed
    assert report.chunks == len(index) == 9
    assert steps[-1] == Progress(7, 7, 9)
    assert {(m["source"], m.get("page"), m.get("title")) for _, m in contents(index).values()} >= {
        ("docs/e.pdf", 2, None),
        ("docs/d.docx", None, "标题"),
        ("docs/a.md", None, "报销 > 期限"),
    }
    assert index.search(text="住宿标准", k=1)[0].metadata["source"] == "docs/b.txt"


def test_only_changed_files_are_embedded_again(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    sync(docs, index, letters, store)
    letters.calls.clear()
    assert sync(docs, index, letters, store).unchanged == ["docs/a.md", "docs/b.txt", "docs/sub/c.csv"]
    os.utime(docs / "b.txt")  # touched, not changed
    assert not sync(docs, index, letters, store).changed
    assert letters.calls == []
    (docs / "a.md").write_text("# 报销\n\n需要发票和审批单。\n", encoding="utf-8")
    report = sync(docs, index, letters, store)
    assert report.changed == ["docs/a.md"]
    assert letters.calls == [("document", 1)]
    texts = {text for text, _ in contents(index).values()}
    assert "报销\n需要发票和审批单。" in texts
    assert not any("三十天" in text or text.endswith("需要发票。") for text in texts)


def test_deleted_files_leave(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    sync(docs, index, letters, store)
    (docs / "a.md").unlink()
    (docs / "b.txt").rename(docs / "b2.txt")
    report = sync(docs, index, letters, store)
    assert (report.removed, report.added) == (["docs/a.md", "docs/b.txt"], ["docs/b2.txt"])
    assert {m["source"] for _, m in contents(index).values()} == {"docs/b2.txt", "docs/sub/c.csv"}


def test_a_broken_file_is_reported_and_the_rest_goes_in(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    (docs / "bad.docx").write_bytes(b"PK\x03\x04")
    (docs / "bad.txt").write_bytes(b"\x00\x01\x02")
    report = sync(docs, index, letters, store)
    assert [failure.source for failure in report.failed] == ["docs/bad.docx", "docs/bad.txt"]
    assert len(report.added) == 3
    (docs / "b.txt").write_bytes(b"")  # was good, is broken now: what was read of it stays
    report = sync(docs, index, letters, store)
    assert "docs/b.txt" in [failure.source for failure in report.failed]
    assert index.count({"source": "docs/b.txt"}) == 1
    (docs / "b.txt").write_text("住宿标准每晚五百元。", encoding="utf-8")
    assert sync(docs, index, letters, store).changed == ["docs/b.txt"]


BAD_ROWS = {"nan": '{"text": "a", "n": NaN}', "digits": '{"text": "a", "n": ' + "9" * 5_000 + "}"}
BAD_ROWS |= {"surrogate": '{"text": "a\\ud800"}', "deep": '{"text": "a", "n": ' + "[" * 100_000}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_stops_no_other_file_and_replaces_nothing(
    docs: Path, store: Path, index: PEGIndex, letters: Any, row: str
) -> None:
    rows = docs / "a.jsonl"
    rows.write_text('{"text": "甲"}\n', encoding="utf-8")
    sync(docs, index, letters, store)
    rows.write_text('{"text": "乙"}\n' + row + "\n", encoding="utf-8")
    (docs / "new.txt").write_text("新文件。", encoding="utf-8")
    report = sync(docs, index, letters, store)
    assert report.added == ["docs/new.txt"]
    [failure] = report.failed
    assert "a.jsonl, line 2" in failure.reason
    assert [r.text for r in index.get(where={"source": "docs/a.jsonl"})] == ["甲"]
    rows.write_text('{"text": "乙"}\n', encoding="utf-8")
    assert sync(docs, index, letters, store).changed == ["docs/a.jsonl"]


def test_chunks_that_no_index_can_hold_are_a_failure_of_their_file_alone(
    docs: Path, store: Path, index: PEGIndex, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(sections: Any, source: str, version: str, chunking: Any) -> Any:
        for chunk in split(sections, source, version, chunking):
            yield replace(chunk, metadata={**chunk.metadata, "n": float("nan")}) if source == "docs/b.txt" else chunk

    monkeypatch.setattr("peg_rag.ingest.split", spoiled)
    report = sync(docs, index, letters, store)
    assert report.added == ["docs/a.md", "docs/sub/c.csv"]
    assert [failure.source for failure in report.failed] == ["docs/b.txt"]
    assert "b.txt" in report.failed[0].reason


def test_every_kind_of_file_has_a_time_limit(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    report = sync(docs, index, letters, store, timeout_s=1e-6)
    assert len(report.failed) == 3
    assert all("could not be read within" in failure.reason for failure in report.failed)
    assert len(sync(docs, index, letters, store).added) == 3


def test_other_chunking_means_reading_everything_again(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    sync(docs, index, letters, store)
    report = sync(docs, index, letters, store, chunking=Chunking(5, 0))
    assert len(report.changed) == 3
    assert all(len(text.split("\n")[-1]) <= 5 for text, _ in contents(index).values())


def test_two_folders_share_a_store_and_two_of_one_name_do_not(
    docs: Path, store: Path, index: PEGIndex, letters: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "a.md").write_text("甲乙丙", encoding="utf-8")
    sync(docs, index, letters, store)
    with pytest.raises(InvalidInput, match="name of its own"):
        sync(other, index, letters, store)
    sync(other, index, letters, store, name="others")
    assert index.count({"source": "others/a.md"}) == 1
    sync(docs / "b.txt", index, letters, store)  # one file is a folder of its own
    assert index.count({"source": "b.txt"}) == 1
    assert len(sync(docs, index, letters, store).unchanged) == 3
    docs.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    assert len(sync(tmp_path / "elsewhere", index, letters, store, name="docs").unchanged) == 3


def test_an_emptied_index_is_filled_again(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    sync(docs, index, letters, store)
    index.clear()
    assert len(sync(docs, index, letters, store).changed) == 3
    index.delete(where={"source": "docs/b.txt"})
    assert sync(docs, index, letters, store).changed == ["docs/b.txt"]
    assert len(index) == 4


def test_the_model_is_remembered(docs: Path, store: Path, index: PEGIndex, letters: Any, tmp_path: Path) -> None:
    assert model_of(store) is None
    sync(docs, index, letters, store, model="peg-mini")
    assert model_of(store) == "peg-mini"


def test_a_damaged_ledger_is_named(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    (store / LEDGER_FILE).write_bytes(b"not a database, " * 100)
    for use in (lambda: sync(docs, index, letters, store), lambda: model_of(store)):
        with pytest.raises(DamagedIndex, match=LEDGER_FILE):
            use()


def test_a_second_sync_waits_its_turn_or_says_so(
    docs: Path, store: Path, index: PEGIndex, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr("peg_rag.ledger.LOCK_TIMEOUT_S", 0.05)
    with FileLock(store / f".{LEDGER_FILE}.lock"), pytest.raises(IndexBusy, match="another process"):
        sync(docs, index, letters, store)


EDITS = st.lists(
    st.tuples(st.sampled_from(["a.txt", "b.md", "sub/c.txt"]), st.sampled_from(["", "甲", "乙。丙。", "# 题\n甲"])),
    max_size=4,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(EDITS, min_size=1, max_size=3))
def test_after_any_edits_the_index_equals_a_fresh_one(
    rounds: list[list[tuple[str, str]]], letters: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("edits")
    docs = base / "docs"
    (docs / "sub").mkdir(parents=True)
    with PEGIndex(base / "kb") as index:
        for number, edits in enumerate(rounds):
            for name, text in edits:  # an empty text deletes the file
                (docs / name).unlink(missing_ok=True)
                if text:
                    (docs / name).write_text(text, encoding="utf-8")
            sync(docs, index, letters, base / "kb")
            assert contents(index) == fresh(docs, letters, base / f"fresh{number}")


# -- crashes ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


def crash_at(step: int) -> Callable[[], None]:
    """A function that raises when it is called for the step-th time."""
    calls = iter(range(step + 1))

    def tick() -> None:
        if next(calls, None) == step:
            raise Crash

    return tick


class FragileIndex:
    """An index that crashes before or after its n-th write."""

    def __init__(self, index: PEGIndex, tick: Callable[[], None]) -> None:
        self._index, self._tick = index, tick

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._index, name)
        if name not in ("upsert", "delete"):
            return method

        def fragile(*args: Any, **kwargs: Any) -> Any:
            self._tick()
            result = method(*args, **kwargs)
            self._tick()
            return result

        return fragile


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_step_is_healed_by_the_next_run(
    step: int, docs: Path, store: Path, index: PEGIndex, letters: Any, tmp_path: Path
) -> None:
    sync(docs, index, letters, store)
    (docs / "a.md").write_text("# 报销\n\n改过了。\n", encoding="utf-8")
    (docs / "new.txt").write_text("新文件。", encoding="utf-8")
    (docs / "b.txt").unlink()
    fragile: Any = FragileIndex(index, crash_at(step))
    with pytest.raises(Crash):
        sync(docs, fragile, letters, store)
    (docs / "new.txt").unlink()  # the hard case: chunks of a file that is gone before the next run
    sync(docs, index, letters, store)
    assert contents(index) == fresh(docs, letters, tmp_path / "fresh")


def test_the_ledger_names_every_source_in_the_index_at_any_time(
    docs: Path, store: Path, index: PEGIndex, letters: Any
) -> None:
    def compare() -> None:
        with sqlite3.connect(store / LEDGER_FILE) as ledger:
            known = {row[0] for row in ledger.execute("SELECT source FROM files")}
        ledger.close()
        assert {m["source"] for _, m in contents(index).values()} <= known

    checked: Any = FragileIndex(index, compare)
    for _ in range(2):
        sync(docs, checked, letters, store)
        (docs / "a.md").write_text("改", encoding="utf-8")
        (docs / "b.txt").unlink(missing_ok=True)


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_store_that_the_next_run_completes(
    store: Path, tmp_path: Path, letters: Any
) -> None:
    """The folder changes between kills, so that additions, changes and removals are all cut short at some point."""
    docs = tmp_path / "docs"
    docs.mkdir()
    random = np.random.default_rng(0)
    code = (
        "import sys; import peg_rag.ingest as i; i._GROUP_CHUNKS = 20\n"
        "from conftest import LetterEncoder; from peg_rag.index import PEGIndex\n"
        "with PEGIndex(sys.argv[2]) as index: i.sync(sys.argv[1], index, LetterEncoder(), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(docs), str(store)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    killed = 0
    for round_number in range(20):
        for name in random.choice(200, 40, replace=False):
            file = docs / f"{name}.txt"
            if file.exists() and random.random() < 0.3:
                file.unlink()
            else:
                file.write_text(f"第{round_number}轮。" * int(random.integers(1, 200)), encoding="utf-8")
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(float(random.uniform(0.3, 2.0)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed > 3
    with PEGIndex(store) as index:
        sync(docs, index, letters, store)
        assert contents(index) == fresh(docs, letters, tmp_path / "fresh")


# -- metadata of chunks, and what a run says of files it could not read whole ------------------------------------------


def test_a_row_is_one_chunk_with_its_cells() -> None:
    cells = {"职级": "P6-P7", "住宿（一线城市）": "600元/晚"}
    row = Section("职级: P6-P7 | 住宿（一线城市）: 600元/晚", 40, "差旅制度 > 三、住宿", 2, 3, kind="row", cells=cells)
    [chunk] = split([row], "a.pdf", "v", Chunking(20, 0))
    assert chunk.text == "差旅制度 > 三、住宿\n职级: P6-P7 | 住宿（一线城市）: 600元/晚"
    assert chunk.metadata == {
        "source": "a.pdf", "version": "v", "chunk": 0, "start": 40, "title": "差旅制度 > 三、住宿", "page": 2, "row": 3,
        "kind": "row", "cells": cells,
    }  # fmt: skip


def test_the_pieces_of_a_long_record_say_whose_they_are() -> None:
    story = "第一步重启设备。" * 30
    cells = {"编号": "F001", "问题": "离线了怎么办", "回答": story}
    record = Section(f"编号: F001 | 问题: 离线了怎么办 | 回答: {story}", row=1, kind="record", cells=cells)
    chunks = list(split([record], "a.csv", "v", Chunking(100, 0)))
    assert len(chunks) > 2
    assert all(chunk.text.startswith("编号: F001 | 问题: 离线了怎么办\n") for chunk in chunks)
    assert all(chunk.metadata["cells"] == {"编号": "F001", "问题": "离线了怎么办"} for chunk in chunks)


def test_chunks_know_their_boxes_on_the_page() -> None:
    text = "第一行的字第二行的字。第三行的字"
    places = (Place(0, 1, (50, 100, 300, 112)), Place(5, 1, (50, 115, 300, 127)), Place(11, 2, (50, 60, 200, 72)))
    chunks = list(split([Section(text, page=1, places=places)], "a.pdf", "v", Chunking(11, 0)))
    assert [(c.metadata["page"], c.metadata["boxes"]) for c in chunks] == [
        (1, [[1, 50, 100, 300, 127]]),
        (2, [[2, 50, 60, 200, 72]]),
    ]


def test_a_long_title_keeps_its_end() -> None:
    [chunk] = split([Section("正文。", title="很长的标题" * 20 + " > 三、住宿标准")], "a.md", "v")
    assert chunk.text == "三、住宿标准\n正文。"


def test_other_kinds_and_half_read_files_are_named(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    (docs / "old.doc").write_bytes(b"\xd0\xcf")
    (docs / "~$open.docx").write_bytes(b"lock")
    report = sync(docs, index, letters, store)
    assert report.other_kinds == ["docs/old.doc"]
    assert report.ignored == 1
    assert report.incomplete == []


def test_progress_counts_the_pages_of_a_long_file(docs: Path, store: Path, index: PEGIndex, letters: Any) -> None:
    (docs / "e.pdf").write_bytes(pdf([[f"这是第{n}页的内容"] for n in "甲乙丙"]))
    steps: list[Progress] = []
    sync(docs, index, letters, store, on_progress=steps.append)
    pages = [(step.source, step.page, step.pages) for step in steps if step.pages]
    assert pages == [("docs/e.pdf", number, 3) for number in (1, 2, 3)]


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(0, 40))
def test_a_text_is_cut_in_steps_that_grow_with_its_length(sentences: int, overlap: int) -> None:
    """Every piece begins after the one before, and no more of it is repeated than the overlap allows."""
    text = "这是一句话。" * sentences
    chunks = list(split([Section(text)], "a", "v", Chunking(60, overlap)))
    starts = [chunk.metadata["start"] for chunk in chunks]
    ends = [start + len(chunk.text) for start, chunk in zip(starts, chunks, strict=True)]
    assert all(after > before for before, after in pairwise(starts))
    assert all(end - start <= overlap for end, start in zip(ends, starts[1:], strict=False))
    assert all(chunk.text.endswith("。") for chunk in chunks)
