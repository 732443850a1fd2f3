"""What runs a model: each backend turns token ids into vectors, and the encoder does everything else."""

from peg_rag.backends.base import Backend, open_backend

__all__ = ["Backend", "open_backend"]
