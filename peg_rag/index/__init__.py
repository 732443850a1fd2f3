"""The embedded index: SQLite holds the truth, a vector file makes it fast. For one machine, and it says so."""

from peg_rag.index.fusion import fuse
from peg_rag.index.rows import Record
from peg_rag.index.store import PEGIndex

__all__ = ["PEGIndex", "Record", "fuse"]
