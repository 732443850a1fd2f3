"""`PEGEmbedding`: the encoder as a LlamaIndex `BaseEmbedding`. Loads the model when made; `close()` frees it.

The base class cuts a corpus into slices of `embed_batch_size` before it calls a model, so sorting by length would help
only inside a slice, and it keys its cache by the raw text, so a cached query can be answered with a document's vector.
Both are done here instead, with the same events and callbacks: one call is one pair of events, and a cache entry is
keyed by model, role, prompt and text.
"""

import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field

from peg_rag.errors import IndexMismatch
from peg_rag.models import DEFAULT_MODEL
from peg_rag.retriever import Encoder
from peg_rag.settings import EncoderSettings, refuse_foreign_settings
from peg_rag.texts import check_texts

dispatcher = get_dispatcher(__name__)
Role = Literal["query", "document"]
_COLLECTION = "embeddings"  # where LlamaIndex's embedding caches keep their entries


class PEGEmbedding(EncoderSettings, BaseEmbedding):
    """Text embeddings with the model's own pooling and separate prompts for queries and documents.

    `PEGEmbedding("peg-mini")` is the bundled small model; `PEGEmbedding()` is `TownsWu/PEG` (or `$PEG_RAG_MODEL`).
    The async methods never block the event loop, and concurrent calls share batches. It can be pickled (weights are
    loaded again), and `from_dict(to_dict())` gives an equal one; what only changes how vectors are computed (device,
    batch size, cache) stays out of `to_dict()`, because that is what the ingestion cache hashes.

    Args:
        model_name: a hub id, a folder or a bundled name.
        encoder: an encoder that is already loaded, to share it; `model_name` is then only its label.
        settings: see `peg_rag.PEGEncoder`; and `callback_manager`, `embeddings_cache` as everywhere in LlamaIndex.

    Raises:
        ModelNotAvailable, DamagedModel: the model cannot be cached or opened.
        InvalidInput: what is to be embedded is not a list of strings, or a query is blank; or a setting has another
            name here (`model`, `query_instruction`, …), which the message gives.
    """

    embed_batch_size: int = Field(
        default=2048, gt=0, exclude=True, description="Not used: batches are planned by tokens, see batch_tokens."
    )
    num_workers: int | None = Field(default=None, exclude=True, description="Not used: one call embeds all its texts.")
    embeddings_cache: Any | None = Field(default=None, exclude=True, description="A key-value store of vectors.")

    def __init__(
        self, model_name: str | Path | None = None, *, encoder: Encoder | None = None, **settings: Any
    ) -> None:
        refuse_foreign_settings(type(self), settings, model_argument="model_name")
        name = model_name
        if model_name is None and encoder is not None:
            name = getattr(encoder, "identity", "unknown")
        settings["model_name"] = str(name or os.environ.get("PEG_RAG_MODEL") or DEFAULT_MODEL)
        super().__init__(**settings)
        self._encoder = encoder if encoder is not None else self._load_encoder(self.model_name)

    @classmethod
    def from_encoder(cls, encoder: Encoder, **settings: Any) -> Self:
        """An embedding over an encoder that is already loaded; several may share one."""
        return cls(encoder=encoder, **settings)

    @classmethod
    def class_name(cls) -> str:
        return "PEGEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Settings, and the identity of the vectors: a retrained model in the same folder hashes differently."""
        return {**super().to_dict(**kwargs), "identity": self.identity}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The inverse of `to_dict`.

        Raises:
            IndexMismatch: the name now leads to another model than the one that was saved.
        """
        settings = {**data, **kwargs}
        saved_identity = settings.pop("identity", None)
        self: Self = super().from_dict(settings)
        if saved_identity not in (None, self.identity):
            raise IndexMismatch(
                f"{self.model_name} was saved as {saved_identity}, but what is there now is {self.identity}"
            )
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # Not BaseComponent's, which calls __init__ and would load the weights although the encoder is in the state.
        state["__dict__"].setdefault("callback_manager", CallbackManager([]))
        BaseModel.__setstate__(self, state)

    def get_query_embedding(self, query: str) -> Embedding:
        """The vector of one query."""
        return self._embed_texts([query], "query")[0]

    async def aget_query_embedding(self, query: str) -> Embedding:
        """`get_query_embedding` off the event loop."""
        return (await self._aembed_texts([query], "query"))[0]

    def get_text_embedding(self, text: str) -> Embedding:
        """The vector of one document."""
        return self._embed_texts([text], "document")[0]

    async def aget_text_embedding(self, text: str) -> Embedding:
        """`get_text_embedding` off the event loop."""
        return (await self._aembed_texts([text], "document"))[0]

    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **kwargs: Any) -> list[Embedding]:
        """Vectors of documents, sorted by length over the whole list while they are computed."""
        return self._embed_texts(texts, "document", show_progress=show_progress)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """`get_text_embedding_batch` off the event loop."""
        return await self._aembed_texts(texts, "document", show_progress=show_progress)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._encode_texts([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aencode_texts([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._encode_texts([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aencode_texts([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._encode_texts(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aencode_texts(texts, "document")

    def _encode_texts(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        if not texts:
            return []
        encode = self._encoder.encode_queries if role == "query" else self._encoder.encode_documents
        vectors: list[Embedding] = encode(texts, show_progress=show_progress or self.show_progress).tolist()
        return vectors

    async def _aencode_texts(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        if not texts:
            return []
        if role == "query":
            return await self._embed_queries_async(texts)
        return await self._embed_documents_async(texts, show_progress=show_progress or self.show_progress)

    def _embed_texts(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        texts = check_texts(texts)
        if not texts:
            return []
        with self._dispatch_events(texts) as vectors:
            if self.rate_limiter is not None:
                self.rate_limiter.acquire()
            if self.embeddings_cache is None:
                vectors += self._encode_texts(texts, role, show_progress)
            else:
                vectors += self._encode_cached(self.embeddings_cache, texts, role, show_progress)
        return vectors

    async def _aembed_texts(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        texts = check_texts(texts)
        if not texts:
            return []
        with self._dispatch_events(texts) as vectors:
            if self.rate_limiter is not None:
                await self.rate_limiter.async_acquire()
            if self.embeddings_cache is None:
                vectors += await self._aencode_texts(texts, role, show_progress)
            else:
                vectors += await self._aencode_cached(self.embeddings_cache, texts, role, show_progress)
        return vectors

    @contextmanager
    def _dispatch_events(self, texts: list[str]) -> Generator[list[Embedding], None, None]:
        """The base class's events and callbacks around the work; the work puts its vectors into the list given."""
        payload = self.to_payload()
        vectors: list[Embedding] = []
        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}) as event:
            yield vectors
            event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors})
        dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=vectors))

    def _encode_cached(self, cache: BaseKVStore, texts: list[str], role: Role, show_progress: bool) -> list[Embedding]:
        keys = {text: self._cache_key(text, role) for text in texts}
        entries = {text: cache.get(key, collection=_COLLECTION) for text, key in keys.items()}
        cached = {text: entry["embedding"] for text, entry in entries.items() if entry is not None}
        missing_texts = [text for text in keys if text not in cached]
        for text, vector in zip(missing_texts, self._encode_texts(missing_texts, role, show_progress), strict=True):
            cache.put(keys[text], {"embedding": vector}, collection=_COLLECTION)
            cached[text] = vector
        return [cached[text] for text in texts]

    async def _aencode_cached(
        self, cache: BaseKVStore, texts: list[str], role: Role, show_progress: bool
    ) -> list[Embedding]:
        keys = {text: self._cache_key(text, role) for text in texts}
        entries = {text: await cache.aget(key, collection=_COLLECTION) for text, key in keys.items()}
        cached = {text: entry["embedding"] for text, entry in entries.items() if entry is not None}
        missing_texts = [text for text in keys if text not in cached]
        vectors = await self._aencode_texts(missing_texts, role, show_progress)
        for text, vector in zip(missing_texts, vectors, strict=True):
            await cache.aput(keys[text], {"embedding": vector}, collection=_COLLECTION)
            cached[text] = vector
        return [cached[text] for text in texts]

    def _cache_key(self, text: str, role: Role) -> str:
        """Names everything the vector depends on; the identity covers weights, pooling, dimension and prompts."""
        parts = [self.identity, self.max_length, self.normalize, self.query_prompt, self.document_prompt, role, text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
