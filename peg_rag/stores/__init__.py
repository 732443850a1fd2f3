"""Where documents can be kept: the embedded index, or a server that many machines share, behind one protocol."""

from peg_rag.stores.base import Store
from peg_rag.stores.opening import is_url, open_store

__all__ = ["Store", "is_url", "open_store"]
