"""The embedded index, for one machine: SQLite is the source of truth, a file of vectors makes it fast."""

from peg_rag.index.fusion import fuse
from peg_rag.index.store import PEGIndex
from peg_rag.index.tables import Documents, Record

__all__ = ["Documents", "PEGIndex", "Record", "fuse"]
