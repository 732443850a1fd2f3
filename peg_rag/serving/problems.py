"""Every error as OpenAI's clients expect it: `{"error": {"message", "type", "param", "code"}}` with a fitting status.

A message may name what the client sent; it never names a path of this machine or what went wrong inside.
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
from peg_rag.serving.logs import describe, log

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


class ApiError(HTTPException):
    """An answer other than success. (As an `HTTPException`, it may be raised while the framework reads a body.)

    Args:
        status: the HTTP status.
        message: for the client's eyes: what was given, what is expected, the cure.
        code: a word for programs; None for the status's own.
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
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status, "error")
        self.retry_after_s = retry_after_s

    def response(self) -> Response:
        body = {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:  # the rest of the body is not waited for
            headers["Connection"] = "close"
        return Response(to_json({"error": body}), self.status, headers, "application/json")


class Busy(ApiError):
    """The server has as much to do as it takes on; the client is to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(429, message, retry_after_s=retry_after_s)


def add_handlers(app: FastAPI) -> None:
    """Have every exception of a request answered in the one form."""
    app.add_exception_handler(ApiError, _answer_known)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(PegRagError, _answer_known)
    app.add_exception_handler(OSError, _answer_known)
    app.add_exception_handler(sqlite3.Error, _answer_known)
    app.add_exception_handler(ClientDisconnect, _answer_gone)


def known_problem(error: Exception) -> ApiError | None:
    """What a client is told of an error that it or the server's owner can do something about; None for any other."""
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
            return ApiError(429, "the store is being written to by another process", retry_after_s=5)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ApiError(507, "the disk is full; nothing was changed")
        case _ if _sqlite_code(error) == sqlite3.SQLITE_FULL:
            return ApiError(507, "the disk is full; nothing was changed")
        case _ if _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return ApiError(429, "the store is being written to by another process", retry_after_s=5)
        case _:
            return None


def _sqlite_code(error: Exception) -> int | None:
    """SQLite's primary result code, where an error or its cause is SQLite's."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, sqlite3.Error):
            code: int | None = getattr(candidate, "sqlite_errorcode", None)
            return None if code is None else code & 0xFF
    return None


def unexpected_problem(error: Exception, request_id: str) -> ApiError:
    """Log any other error, and have the client told where the log has it."""
    log(logger, logging.ERROR, "unexpected error", request_id=request_id, **describe(error))
    return ApiError(500, f"something went wrong inside; the log knows it as {request_id}")


async def _answer_known(_: Request, error: Exception) -> Response:
    problem = known_problem(error)
    if problem is None:
        raise error
    return problem.response()


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    where = f"{param}: " if param else ""
    return ApiError(400, f"{where}{first['msg']}", param=param).response()


async def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = ApiError(error.status_code, str(error.detail)).response()
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _answer_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; it keeps the log and the metrics from blaming the server."""
    return ApiError(400, "the client went away before its request was complete").response()


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )
