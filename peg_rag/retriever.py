"""`Retriever`: query in, `list[Hit]` out, over two small protocols and with no framework in sight."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Texts to vectors, queries and documents apart, as `PEGEncoder`. An `identity`, if any, names the vector space."""

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of queries."""
        ...

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of documents."""
        ...
