"""What runs a model: each backend turns token ids into vectors, and the encoder does everything else."""

from peg_rag.backends.base import Backend, name_backend, open_backend

__all__ = ["Backend", "name_backend", "open_backend"]
