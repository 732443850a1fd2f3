"""A file that hangs, crashes or swallows memory is an error; the next file is read."""

import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from sample_files import docx, pdf

from peg_rag import reader_process
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
    (tmp_path / "long.html").write_text("<p>很长的一页。</p>" * 100_000, encoding="utf-8")  # takes seconds
    (tmp_path / "a.txt").write_text("可以读", encoding="utf-8")
    with ReaderProcess() as reader:
        assert reader.read(tmp_path / "a.txt")[0].text == "可以读"
        reader._timeout_s = 0.01
        with pytest.raises(DataError, match=r"long\.html could not be read within 0\.01 s"):
            reader.read(tmp_path / "long.html")
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


def test_an_error_that_nobody_expected_is_named_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("可以读", encoding="utf-8")
    reply = reader_process._answer_request(
        {"path": str(tmp_path / "a.txt"), "text_column": None, "max_bytes": "no number"}
    )
    assert "a.txt" in reply["error"]
    assert "TypeError" in reply["error"]


BUSY = r"""
import os, re, sys
from peg_rag.processes import end_with_parent
from peg_rag.reader_process import _limit_time
end_with_parent()
_limit_time(float(sys.argv[2]))
os.write(int(sys.argv[1]), b"ready")
re.match("(a+)+b", "a" * 1000)  # holds the interpreter for ever: no thread of Python's runs beside it
"""
PARENT = r"""
import subprocess, sys
pipe, limit, code = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", code, pipe, limit], pass_fds=[int(pipe)], start_new_session=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_a_converter_ends_with_its_parent_even_when_it_hangs() -> None:
    ends, busy = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(busy), "0", BUSY], pass_fds=[busy])
    os.close(busy)
    assert os.read(ends, 100) == b"ready"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert os.read(ends, 100) == b""  # the child held the other end of the pipe until it died
    os.close(ends)


@pytest.mark.skipif(sys.platform == "win32", reason="no alarms")
def test_a_converter_that_hangs_is_ended_by_its_own_alarm() -> None:
    ends, busy = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", BUSY, str(busy), "0.1"], pass_fds=[busy])
    os.close(busy)
    assert os.read(ends, 100) == b"ready"
    assert os.read(ends, 100) == b""
    assert child.wait() == -signal.SIGALRM
    os.close(ends)


def test_a_reader_may_be_used_by_one_thread_after_another(tmp_path: Path) -> None:
    """The parent-death signal comes when the *thread* ends that started the process."""
    (tmp_path / "a.txt").write_text("可以读", encoding="utf-8")
    with ReaderProcess() as reader:
        for _ in range(3):
            texts: list[str] = []
            thread = threading.Thread(target=lambda into=texts: into.append(reader.read(tmp_path / "a.txt")[0].text))
            thread.start()
            thread.join()
            assert texts == ["可以读"]
        assert reader.read(tmp_path / "a.txt")[0].text == "可以读"
