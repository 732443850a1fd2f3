"""The files that documents were read from, given out only as they were when they were indexed.

A citation is worth the page it can be checked against. What may be read is decided by the ledger beside the index,
never by a path of the client: a file that the ledger does not list is not there, one that changed since would show its
passages in the wrong place, and one that a link now leads to lies elsewhere. Costs a `stat` a request, and one reading
of a file whose time of modification differs from the ledger's, as in a store that was copied.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from peg_rag.ledger import select_column
from peg_rag.serving.errors import ApiError

# Given by the suffix and not by the system's table, which differs from machine to machine.
_MEDIA_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".jsonl": "application/jsonl",
    ".eml": "message/rfc822",
    ".msg": "application/vnd.ms-outlook",
    ".epub": "application/epub+zip",
}
_LEDGER_QUERY = (
    "SELECT json_array(roots.path, roots.name, files.size, files.mtime_ns, files.sha256) "
    "FROM files JOIN roots ON roots.name = files.root WHERE files.source = ?"
)


@dataclass(frozen=True, slots=True)
class Original:
    """A file as it was indexed.

    Attributes:
        path: on this machine; not for the client.
        name: to save it under.
        media_type: by its suffix; `application/octet-stream` for a suffix that is not known.
    """

    path: Path
    name: str
    media_type: str


class OriginalFiles:
    """Finds the files of a store's documents.

    Args:
        store: the folder of the index and the ledger.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._verified: dict[Path, tuple[int, int, str]] = {}  # path → size, mtime_ns, sha256

    def find(self, source: str, uploaded_file: Path | None = None) -> Original:
        """The file of a document, if it is still as it was indexed.

        Args:
            source: of the document.
            uploaded_file: where it lies, for an upload: in a store that was copied, the ledger names the old place.

        Raises:
            ApiError: 404 `original_missing`, the store has no such file; 409 `original_changed`, it is another by now.
            IndexBusy: the ledger is being written to.
            DamagedIndex: the ledger cannot be read.
        """
        entry = self._read_entry(source)
        if entry is None:
            raise _missing_file()
        root_path, root, size, mtime_ns, sha256 = entry
        root_folder = Path(root_path)
        path = uploaded_file or Path(root_path + source[len(root) :])
        self._check_place(path, uploaded_file.parent if uploaded_file else root_folder)
        self._check_content(path, size, mtime_ns, sha256)
        return Original(path, path.name, _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"))

    def _read_entry(self, source: str) -> tuple[str, str, int, int, str] | None:
        """(path of the root, name of the root, size, time of modification in ns, digest); None if it is not listed."""
        rows = select_column(self._store, _LEDGER_QUERY, source)
        if not rows:
            return None
        path, name, size, mtime_ns, sha256 = json.loads(rows[0])
        return path, name, size, mtime_ns, sha256

    def _check_place(self, path: Path, root: Path) -> None:
        """Refuse what is no file any more, and what a link leads out of its folder."""
        try:
            real_path = path.resolve(strict=True)
            real_root = root.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise _missing_file() from error
        if path.is_symlink() or not real_path.is_file() or not real_path.is_relative_to(real_root):
            raise _missing_file()

    def _check_content(self, path: Path, size: int, mtime_ns: int, sha256: str) -> None:
        try:
            state = path.stat()
            if not sha256:  # its indexing was begun and not finished
                raise _changed_file()
            if (state.st_size, state.st_mtime_ns) == (size, mtime_ns):
                return
            if state.st_size != size:
                raise _changed_file()
            verified = (size, state.st_mtime_ns, sha256)
            if self._verified.get(path) == verified:
                return
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                    raise _changed_file()
        except OSError as error:
            raise _missing_file() from error
        self._verified[path] = verified


def _missing_file() -> ApiError:
    return ApiError(404, "the original file is no longer there", code="original_missing")


def _changed_file() -> ApiError:
    return ApiError(
        409,
        "the original file has changed since it was indexed; run `peg-rag index` again, or upload it again",
        code="original_changed",
    )
