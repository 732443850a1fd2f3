"""Access control, as FastAPI dependencies: anyone may read unless the server is private; writing needs an API key."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from peg_rag.serving.errors import ApiError
from peg_rag.serving.keys import KEYS_VARIABLE
from peg_rag.serving.knowledge import KnowledgeBase
from peg_rag.serving.state import ServerState

_bearer = HTTPBearer(auto_error=False, description="A key of the server. Needed for writing.")
CredentialsDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def get_state(request: Request) -> ServerState:
    """The state of the application that answers this request."""
    state: ServerState = request.app.state.server
    return state


StateDep = Annotated[ServerState, Depends(get_state)]


def get_knowledge(state: StateDep) -> KnowledgeBase:
    """The knowledge base, for routes that are registered only where there is one."""
    assert state.knowledge is not None
    return state.knowledge


KnowledgeDep = Annotated[KnowledgeBase, Depends(get_knowledge)]


def require_read_access(state: StateDep, credentials: CredentialsDep) -> None:
    """Let everyone read; on a private server, only clients with a key."""
    if state.settings.private:
        _check_key(state, credentials)


def require_write_access(state: StateDep, credentials: CredentialsDep) -> None:
    """Let clients with a key write; on a server without keys, nobody."""
    if not state.keys:
        raise ApiError(403, f"this server was started without a key, so nothing can be written; set {KEYS_VARIABLE}")
    _check_key(state, credentials)


def _check_key(state: ServerState, credentials: HTTPAuthorizationCredentials | None) -> None:
    if credentials is None:
        raise ApiError(401, "API key required; send it as: Authorization: Bearer KEY")
    if not state.keys.accept(credentials.credentials):
        raise ApiError(401, "invalid API key")
