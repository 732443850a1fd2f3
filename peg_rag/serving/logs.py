"""Logs as one JSON object in a line, without what a client wrote: no texts, file names, queries or raw paths."""

import json
import logging
import sys
import time
import traceback

_OURS = "fields"


class JsonFormatter(logging.Formatter):
    """A record's time, level, logger and message, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, _OURS, {})
        if record.exc_info and record.exc_info[1] is not None:
            entry |= describe(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False, default=str)


def log(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log a message with fields of its own."""
    logger.log(level, message, extra={_OURS: fields})


def describe(error: BaseException) -> dict[str, object]:
    """Where an exception came from. Its own message may quote a text, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
    return {"error": type(error).__name__, "traceback": where}


def configure() -> None:
    """Send every log line of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("peg_rag").setLevel(logging.INFO)
