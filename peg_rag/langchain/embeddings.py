"""`PEGEmbeddings`: the encoder as a LangChain `Embeddings`. Loads the model when made; `close()` frees it."""

from pathlib import Path
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from pydantic import Field

from peg_rag.retriever import Encoder
from peg_rag.settings import EncoderSettings, refuse_foreign_settings


class PEGEmbeddings(EncoderSettings, Embeddings):
    """Text embeddings with the model's own pooling and separate prompts for queries and documents.

    `PEGEmbeddings()` is `TownsWu/PEG` (or `$PEG_RAG_MODEL`); `PEGEmbeddings(model="peg-mini")` is the bundled model.
    The async methods never block the event loop, and concurrent calls share batches. It can be pickled: weights are
    loaded again.

    Args:
        model: a hub id, a folder or a bundled name.
        encoder: an encoder that is already loaded, to share it.
        settings: see `peg_rag.PEGEncoder`; `show_progress` draws a bar over documents.

    Raises:
        ModelNotAvailable, DamagedModel: the model cannot be found or opened.
        InvalidInput: what is to be embedded is not a list of strings, or a query is blank; or a setting has another
            name here (`model_name`, `model_kwargs`, …), which the message gives.
    """

    model: str | Path | None = Field(default=None, description="A hub id, a folder or a bundled name.")

    def __init__(self, model: str | Path | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        refuse_foreign_settings(type(self), settings, model_argument="model")
        super().__init__(**{"model": model, **settings})
        # Not in a validator, where pydantic would wrap the error.
        self._encoder = encoder if encoder is not None else self._load_encoder(self.model)

    @classmethod
    def from_encoder(cls, encoder: Encoder, **settings: Any) -> Self:
        """Embeddings over an encoder that is already loaded; several may share one."""
        return cls(encoder=encoder, **settings)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents, one list of floats for each."""
        vectors: list[list[float]] = self._encoder.encode_documents(texts, show_progress=self.show_progress).tolist()
        return vectors

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """Vectors of many queries at once, one list of floats for each."""
        vectors: list[list[float]] = self._encoder.encode_queries(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of one query."""
        return self.embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` off the event loop, in batches with concurrent calls."""
        return await self._embed_documents_async(texts, show_progress=self.show_progress)

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        """`embed_queries` off the event loop, in a batch with concurrent calls."""
        return await self._embed_queries_async(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` off the event loop, in a batch with concurrent calls."""
        return (await self._embed_queries_async([text]))[0]
