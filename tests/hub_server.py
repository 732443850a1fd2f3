"""A model hub on 127.0.0.1 that the real clients of Hugging Face and ModelScope talk to, and that can fail on purpose.

It speaks what those clients need: commits and branches, a listing of files, ETags, small files behind a relative
redirect and large ones behind a redirect to another address, ranges. Every request is kept in `requests`.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 1 << 16  # from here on a file lies in the object store


class Hub:
    """What the hub holds, and how it is to misbehave."""

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}  # (model, commit) → files
        self.branches: dict[tuple[str, str], str] = {}  # (model, branch) → commit
        self.requests: list[tuple[str, str, str]] = []  # (method, path and query, Range)
        self.served: list[str] = []  # names of the files that were sent
        self.cut_after: int | None = None  # the next large file ends after so many bytes
        self.files_left: int | None = None  # so many files are served before the hub fails
        self.failure = 503  # an HTTP status, or 0 to hang up
        self.portal = False  # everything is answered with a page of HTML
        self.without_commit = False  # as proxies do that drop headers they do not know

    def push(self, model: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files and let the branch point at it."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[model, digest] = files
        self.branches[model, branch] = digest
        return digest

    def repair(self) -> None:
        """Serve everything again, and forget the requests so far."""
        self.cut_after = None
        self.files_left = None
        self.portal = False
        self.without_commit = False
        self.requests.clear()
        self.served.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.describe_model),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.list_tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve_file),
            (r"/(?:cached|store)/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", self.send_file),
        ]
        if self.hub.portal:
            self.answer(200, b"<html>Please log in to the network</html>", {"Content-Type": "text/html"})
            return
        if path.startswith("/api/v1/models/"):
            self.answer_modelscope(path, query)
            return
        for pattern, respond in routes:
            if match := re.fullmatch(pattern, path):
                respond(*match.groups())
                return
        self.answer(404)

    # -- Hugging Face -------------------------------------------------------------------------------------------------

    def find_commit(self, model: str, revision: str | None) -> str | None:
        """The commit of a branch, tag or commit; answers with the hub's errors where there is none."""
        if not any(name == model for name, _ in self.hub.branches):
            self.answer(401, b'{"error": "Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.branches.get((model, revision or "main"), revision or "")
        if (model, commit) not in self.hub.commits:
            self.answer(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def describe_model(self, model: str, revision: str | None) -> None:
        commit = self.find_commit(model, revision)
        if commit is not None:
            siblings = [{"rfilename": name} for name in self.hub.commits[model, commit]]
            self.answer_json({"id": model, "modelId": model, "sha": commit, "private": False, "siblings": siblings})

    def list_tree(self, model: str, revision: str) -> None:
        commit = self.find_commit(model, revision)
        if commit is None:
            return
        entries = []
        for name, content in self.hub.commits[model, commit].items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"oid": etag_of(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self.answer_json(entries)

    def resolve_file(self, model: str, revision: str, name: str) -> None:
        commit = self.find_commit(model, revision)
        if commit is None:
            return
        content = self.hub.commits[model, commit].get(name)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {} if self.hub.without_commit else {"X-Repo-Commit": commit}
        if len(content) >= LARGE_BYTES:
            address = self.server.server_address
            assert isinstance(address, tuple)
            port = address[1]
            headers["Location"] = f"http://localhost:{port}/store/{model}/{commit}/{name}?Signature=a%2Bb"
            headers["X-Linked-Size"] = str(len(content))
            headers["X-Linked-ETag"] = f'"{etag_of(content)}"'
            self.answer(302, b"", headers)
        else:
            self.answer(307, b"", {**headers, "Location": f"/cached/{model}/{commit}/{name}"})

    def send_file(self, model: str, commit: str, name: str) -> None:
        if self.fails(name):
            return
        content = self.hub.commits[model, commit][name]
        headers = {"ETag": f'"{etag_of(content)}"', "Accept-Ranges": "bytes"}
        if not self.hub.without_commit:
            headers["X-Repo-Commit"] = commit
        self.send_content(content, headers)

    # -- ModelScope ---------------------------------------------------------------------------------------------------

    def answer_modelscope(self, path: str, query: dict[str, str]) -> None:
        match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path)
        model = match[1] if match else ""
        commit = self.hub.branches.get((model, query.get("Revision", "master")))
        if match is None or commit is None:
            self.answer_json({"Code": 10010205001, "Success": False, "Message": "not found", "Data": None}, 404)
            return
        files = self.hub.commits[model, commit]
        if match[2]:
            entries = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Sha256": etag_of(content)}
                for name, content in files.items()
            ]
            self.answer_json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        elif not self.fails(query["FilePath"]):
            content = files[query["FilePath"]]
            self.send_content(content, {"ETag": f'"{etag_of(content)}"'})

    # -- answers ------------------------------------------------------------------------------------------------------

    def fails(self, name: str) -> bool:
        """Count a file that is to be sent; once all that may be served are, answer with the failure."""
        if self.command == "HEAD":
            return False
        if self.hub.files_left is None or self.hub.files_left > 0:
            self.hub.served.append(name)
            self.hub.files_left = None if self.hub.files_left is None else self.hub.files_left - 1
            return False
        if self.hub.failure:
            self.answer(self.hub.failure, b"the mirror is out of order")
        else:
            self.hang_up()
        return True

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self.answer(200, content, headers)
            return
        start = int(match[1])
        end = int(match[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], headers)

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_after is not None and len(body) > self.hub.cut_after:
            self.wfile.write(body[: self.hub.cut_after])
            self.hub.cut_after = None
            self.hang_up()
        else:
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def etag_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves in a thread on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
