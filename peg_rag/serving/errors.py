"""Errors in the form that OpenAI's clients expect, `{"error": {"message", "type", "param", "code"}}`.

A message may quote what the client sent; it never reveals a path of this machine or details of an internal failure.
"""

import errno
import logging
import math
import sqlite3

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from peg_rag.errors import DataError, IndexBusy, InvalidInput, MissingExtra, PegRagError, UnsupportedSearch
from peg_rag.serving.logs import describe_exception, log

logger = logging.getLogger(__name__)

_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unreadable_document",
    429: "busy",
    500: "internal_error",
    501: "not_installed",
    503: "unavailable",
    507: "disk_full",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An error response. It is an `HTTPException` so that it may be raised while the framework reads a body.

    Args:
        status: the HTTP status.
        message: what was given, what is expected, and the cure, for the client to read.
        code: a machine-readable name; None for the status's own.
        param: the field of the request that is at fault.
        retry_after_s: when to try again, for 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _CODES.get(status, "error")
        self.retry_after_s = retry_after_s

    def to_response(self) -> Response:
        body = {"message": self.message, "type": _error_type(self.status), "param": self.param, "code": self.code}
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:  # the rest of the body will not be read
            headers["Connection"] = "close"
        return Response(to_json({"error": body}), self.status, headers, "application/json")


class Busy(ApiError):
    """429: the server is at one of its limits; the client should retry later."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(429, message, retry_after_s=retry_after_s)


def add_exception_handlers(app: FastAPI) -> None:
    """Answer every exception of a request in the one form."""
    app.add_exception_handler(ApiError, _handle_known)
    app.add_exception_handler(RequestValidationError, _handle_invalid)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(PegRagError, _handle_known)
    app.add_exception_handler(OSError, _handle_known)
    app.add_exception_handler(sqlite3.Error, _handle_known)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)


def convert_exception(error: Exception) -> ApiError | None:
    """The response to an exception that the client or the server's owner can do something about; None for others."""
    match error:
        case ApiError():
            return error
        case DataError():
            return ApiError(422, str(error))
        case MissingExtra():
            return ApiError(501, str(error))
        case InvalidInput() | UnsupportedSearch():
            return ApiError(400, str(error))
        case IndexBusy():
            return _index_busy()
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _disk_full()
    match _sqlite_code(error):
        case sqlite3.SQLITE_FULL:
            return _disk_full()
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return _index_busy()
    return None


def report_unexpected(error: Exception, request_id: str) -> ApiError:
    """Log an exception, and return a response that refers the client to the log."""
    log(logger, logging.ERROR, "unexpected error", request_id=request_id, **describe_exception(error))
    return ApiError(500, f"internal error; the server's log has the details under request id {request_id}")


def _index_busy() -> ApiError:
    return ApiError(429, "the store is being written to by another process", retry_after_s=5)


def _disk_full() -> ApiError:
    return ApiError(507, "the disk is full; nothing was changed")


def _sqlite_code(error: Exception) -> int | None:
    """SQLite's primary result code, if the error or its cause comes from SQLite."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, sqlite3.Error):
            code: int | None = getattr(candidate, "sqlite_errorcode", None)
            return None if code is None else code & 0xFF
    return None


async def _handle_known(_: Request, error: Exception) -> Response:
    api_error = convert_exception(error)
    if api_error is None:
        raise error
    return api_error.to_response()


async def _handle_invalid(_: Request, error: Exception) -> Response:
    """Name the first field that is wrong, without repeating its value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(key) for key in first["loc"] if key != "body")
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return ApiError(400, message, param=param or None).to_response()


async def _handle_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, str(error.detail)).to_response()
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _handle_disconnect(_: Request, __: Exception) -> Response:
    """Nobody reads this response; it keeps the log and the metrics from counting a server error."""
    return ApiError(400, "the client disconnected before its request was complete").to_response()


def _error_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")
