"""Structured logs: one JSON object per line, with nothing that a client wrote (texts, file names, queries, paths)."""

import json
import logging
import sys
import time
import traceback

_FIELDS = "fields"
_MAX_FRAMES = 12


class JsonFormatter(logging.Formatter):
    """Formats a record's time, level, logger, message and fields as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, _FIELDS, {})
        if record.exc_info and record.exc_info[1] is not None:
            entry |= describe_exception(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False, default=str)


def log(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log a message with structured fields."""
    logger.log(level, message, extra={_FIELDS: fields})


def describe_exception(error: BaseException) -> dict[str, object]:
    """An exception's type and traceback as log fields. Its message is left out, since it may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-_MAX_FRAMES:]]
    return {"error": type(error).__name__, "traceback": lines}


def configure_logging() -> None:
    """Send every log record of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("peg_rag").setLevel(logging.INFO)
