"""Reads files in a process of its own, which may hang, crash or eat memory without taking anything with it.

Files come from strangers, and a converter can be made to loop for ever or to unpack a few kilobytes into gigabytes.
Here a file has a time limit, the process a memory limit (where the system has such limits), and a file that breaks
either is a `DataError` like any other broken file. The process does not outlive the one that started it: it watches
the pipe between them, on Linux the kernel ends it too, and an alarm ends it where a library holds the interpreter.

Costs about a second for the process to start, once, and a copy of each file's text through a pipe.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from peg_rag.errors import DataError, MissingExtra
from peg_rag.processes import end_with_parent, start_module, take_stdout
from peg_rag.readers import MAX_FILE_BYTES, PartlyRead, Section, read_sections

TIMEOUT_S = 120.0
_LONGEST = 10  # times the limit, for a file whose pages each keep within it
MEMORY_BYTES = 4 << 30
_ALARM_GRACE_S = 10.0  # past the time limit, in which the parent ends the process itself


class ReaderProcess:
    """`read_sections` at arm's length. The process starts with the first file and ends with `close()`.

    Args:
        timeout_s: a file that takes longer is given up; one with pages, where a page takes longer, or all of them ten
            times as long.
        memory_bytes: address space that the process may have (not on Windows).
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._starter: threading.Thread | None = None
        self._lock = threading.Lock()

    def read(
        self,
        path: Path,
        *,
        text_column: str | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        on_page: Callable[[int, int], None] = lambda page, pages: None,
        on_remark: Callable[[str], None] = lambda remark: None,
    ) -> list[Section]:
        """As `read_sections`, whose errors it raises; one file at a time.

        Args:
            on_page: told how many pages of how many are read.
            on_remark: told what part of the file could not be read, and the cure.

        Raises:
            DataError: also when the file took too long, or the process died of it.
        """
        request = {"path": str(path), "text_column": text_column, "max_bytes": max_bytes, "limit_s": self._timeout_s}
        with self._lock:
            reply = self._send_request(json.dumps(request).encode("utf-8") + b"\n", on_page)
        if reply is None:
            raise DataError(
                f"{path} could not be read within {self._timeout_s:g} s and {self._memory_bytes / 1e9:.0f} GB of "
                "memory; save it again, or as text"
            )
        if "missing" in reply:
            raise MissingExtra(reply["missing"])
        if "error" in reply:
            raise DataError(reply["error"])
        for remark in reply["remarks"]:
            on_remark(remark)
        return [Section.from_json(section) for section in reply["sections"]]

    def close(self) -> None:
        """End the process."""
        process = self._process
        self._process = None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_request(self, request: bytes, on_page: Callable[[int, int], None]) -> dict[str, Any] | None:
        """The reply; None when there is none in time, and then the process is ended."""
        process = self._ready_process()
        assert process.stdin is not None
        assert process.stdout is not None
        total_timer = _start_timer(_LONGEST * self._timeout_s, process)
        page_timer = _start_timer(self._timeout_s, process)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            while (line := process.stdout.readline()).endswith(b"\n"):
                message: dict[str, Any] = json.loads(line)
                if "page" not in message:
                    return message
                page_timer.cancel()
                page_timer = _start_timer(self._timeout_s, process)
                on_page(message["page"], message["pages"])
        finally:
            page_timer.cancel()
            total_timer.cancel()
        self.close()
        return None

    def _ready_process(self) -> "subprocess.Popen[bytes]":
        """The process, started by this very thread: on Linux it ends with the thread that started it."""
        if self._process is not None and self._starter is not threading.current_thread():
            self.close()
        if self._process is None:
            self._process = self._start_process()
            self._starter = threading.current_thread()
        return self._process

    def _start_process(self) -> "subprocess.Popen[bytes]":
        return start_module("peg_rag.reader_process", str(self._memory_bytes), stderr=subprocess.DEVNULL)


def _start_timer(seconds: float, process: "subprocess.Popen[bytes]") -> threading.Timer:
    """A timer that ends the process, started."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True
    alarm.start()
    return alarm


def _serve_requests(memory_bytes: int) -> None:
    """Answer requests, a line each, until the pipe is closed. Whatever a library prints goes to stderr."""
    end_with_parent()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    replies = take_stdout()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_watch_pipe, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        limit_s = request["limit_s"] + _ALARM_GRACE_S

        def send(message: dict[str, Any], limit_s: float = limit_s) -> None:
            _limit_time(limit_s)
            replies.write(json.dumps(message).encode("utf-8") + b"\n")
            replies.flush()

        _limit_time(limit_s)
        send(_answer_request(request, lambda page, pages: send({"page": page, "pages": pages})))
        _limit_time(0)


def _watch_pipe(requests: "queue.SimpleQueue[bytes]") -> None:
    """Hand on requests; end the process as soon as the other end of the pipe is gone, whatever is being read."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _limit_time(seconds: float) -> None:
    """Have the kernel end this process after so many seconds (0: never), where it has alarms.

    The signal's default action needs no interpreter, which a regular expression may hold for hours.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer_request(request: dict[str, Any], on_page: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    path = Path(request["path"])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sections = read_sections(
                path, text_column=request["text_column"], max_bytes=request["max_bytes"], on_page=on_page
            )
    except DataError as error:
        return {"error": str(error)}
    except MissingExtra as error:
        return {"missing": str(error)}
    except MemoryError:
        return {"error": f"{path} needs more memory than it may have; save it again, or as text"}
    except Exception as error:  # a fault of a reader must not take the other files with it
        return {"error": f"{path} cannot be read: {type(error).__name__}: {error}"}
    remarks = [str(warning.message) for warning in caught if issubclass(warning.category, PartlyRead)]
    return {"sections": [section.to_json() for section in sections], "remarks": remarks}


if __name__ == "__main__":
    _serve_requests(int(sys.argv[1]))
