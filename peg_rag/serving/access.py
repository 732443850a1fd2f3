"""Who may do what: reading is open unless the server is private, writing always needs a key."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from peg_rag.serving.keys import KEYS_VARIABLE
from peg_rag.serving.problems import ApiError
from peg_rag.serving.state import State

_bearer = HTTPBearer(auto_error=False, description="A key of the server. Needed for writing.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def state_of(request: Request) -> State:
    """The server's parts, for a route."""
    state: State = request.app.state.parts
    return state


Parts = Annotated[State, Depends(state_of)]


def may_read(parts: Parts, credentials: Credentials) -> None:
    """Let everybody read, or on a private server those with a key."""
    if parts.settings.private:
        _check(parts, credentials)


def may_write(parts: Parts, credentials: Credentials) -> None:
    """Let those with a key write; on a server without keys nobody."""
    if not parts.keys:
        raise ApiError(403, f"this server was started without a key, so nothing can be written; set {KEYS_VARIABLE}")
    _check(parts, credentials)


def _check(parts: State, credentials: HTTPAuthorizationCredentials | None) -> None:
    if credentials is None:
        raise ApiError(401, "this needs a key of the server; send it as: Authorization: Bearer KEY")
    if not parts.keys.accept(credentials.credentials):
        raise ApiError(401, "this is not a key of this server")
