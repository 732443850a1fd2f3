"""A file that hangs, crashes or swallows memory is an error; the next file is read."""

import zlib
from pathlib import Path

import pytest
from sample_files import docx, pdf

from peg_rag.errors import DataError
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import read_sections


def test_it_reads_what_read_sections_reads(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([["第一页"], ["第二页"]]))
    (tmp_path / "b.docx").write_bytes(docx(["# 题", "正文。"]))
    (tmp_path / "c.csv").write_text("text,年\n一,2023\n", encoding="utf-8")
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.4 broken")
    with ReaderProcess() as reader:
        for name in ("a.pdf", "b.docx", "c.csv"):
            assert reader.read(tmp_path / name) == read_sections(tmp_path / name)
        with pytest.raises(DataError, match=r"d\.pdf cannot be converted"):
            reader.read(tmp_path / "d.pdf")
        with pytest.raises(DataError, match="no column 'x'"):
            reader.read(tmp_path / "c.csv", text_column="x")
        assert reader.read(tmp_path / "a.pdf")[1].page == 2


def test_a_file_that_takes_too_long_is_given_up_and_the_next_is_read(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 5000 + "深" + "</div>" * 5000, encoding="utf-8")
    (tmp_path / "a.txt").write_text("可以读", encoding="utf-8")
    with ReaderProcess() as reader:
        assert reader.read(tmp_path / "a.txt")[0].text == "可以读"
        reader._timeout_s = 0.01
        with pytest.raises(DataError, match=r"deep\.html could not be read within 0\.01 s"):
            reader.read(tmp_path / "deep.html")
        reader._timeout_s = 60.0
        assert reader.read(tmp_path / "a.txt")[0].text == "可以读"


@pytest.mark.slow
def test_a_pdf_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(b"0" * 2**20) for _ in range(3000)), packer.flush()])
    good = pdf([["好的"]])
    stream = good.rindex(b"<< /Length")
    end = good.index(b"endobj", stream)
    body = b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream\n" % (len(bomb), bomb)
    (tmp_path / "bomb.pdf").write_bytes(good[:stream] + body + good[end:])
    (tmp_path / "good.pdf").write_bytes(good)
    assert (tmp_path / "bomb.pdf").stat().st_size < 4_000_000
    with ReaderProcess(memory_bytes=2 << 30, timeout_s=30) as reader:
        with pytest.raises(DataError, match=r"bomb\.pdf"):
            reader.read(tmp_path / "bomb.pdf")
        assert reader.read(tmp_path / "good.pdf")[0].text == "好的"


def test_closing_twice_is_harmless() -> None:
    reader = ReaderProcess()
    reader.close()
    reader.close()


def test_a_module_in_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pdfminer.py").write_text("open('ran', 'w')")
    (tmp_path / "a.pdf").write_bytes(pdf([["第一页"]]))
    monkeypatch.chdir(tmp_path)
    with ReaderProcess() as reader:
        assert reader.read(tmp_path / "a.pdf")[0].text == "第一页"
    assert not (tmp_path / "ran").exists()
