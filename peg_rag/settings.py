"""`EncoderSettings`: the dials of the encoder as both frameworks' embedding classes show them, declared once.

A pydantic mixin. Pydantic comes with either framework and not with peg_rag, so only the adapters import this.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from peg_rag.encoder import PEGEncoder
from peg_rag.errors import InvalidInput
from peg_rag.retriever import Encoder, encode_documents_async, encode_queries_async

# What the frameworks' own embedding classes call these settings, and what to write here.
_FOREIGN_SETTINGS = {
    "model_kwargs": "device=, dtype= and revision= are arguments of their own",
    "encode_kwargs": "normalize= and batch_tokens= are arguments of their own, and a query has its own prompt",
    "query_encode_kwargs": "a query has its own prompt, query_prompt=",
    "normalize_embeddings": "it is called normalize= and is on",
    "batch_size": "batches are planned by tokens, batch_tokens=",
    "query_instruction": "it is called query_prompt=",
    "embed_instruction": "it is called document_prompt=",
    "text_instruction": "it is called document_prompt=",
    "cache_folder": "$HF_HOME names the folder of the hub's cache",
    "multi_process": "one call uses all cores of the machine, and devices=['cuda:0', 'cuda:1'] several devices",
    "parallel_process": "one call uses all cores of the machine, and devices=['cuda:0', 'cuda:1'] several devices",
    "trust_remote_code": "code from a model's folder is never run",
}


def refuse_foreign_settings(cls: type, settings: Mapping[str, Any], *, model_argument: str) -> None:
    """Answer settings of other embedding classes with the name that they have here.

    Raises:
        InvalidInput: one of them is among `settings`.
    """
    for name, value in settings.items():
        if name in ("model", "model_name") and name != model_argument:
            raise InvalidInput(f"{name}={value!r}: write {cls.__name__}({model_argument}={value!r})")
        if name in _FOREIGN_SETTINGS:
            raise InvalidInput(f"{name}= is no setting of {cls.__name__}: {_FOREIGN_SETTINGS[name]}")


class EncoderSettings(BaseModel):
    """Keyword arguments of `peg_rag.PEGEncoder`, and the encoder they make.

    What changes the vectors is serialised; what only changes how they are computed is not.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    pooling: str | None = Field(default=None, description="cls, mean, max or lasttoken; None for what the model says.")
    max_length: int | None = Field(default=None, description="Tokens kept of a text; None for the model's limit.")
    normalize: bool = Field(default=True, description="Unit vectors.")
    query_prompt: str | None = Field(default=None, description="Put before each query; None for the model's own.")
    document_prompt: str | None = Field(default=None, description="Put before each document; None for the model's own.")
    truncate_dim: int | None = Field(default=None, description="Keep this many leading dimensions.")
    revision: str | None = Field(default=None, description="A hub branch, tag or commit.")

    device: str | None = Field(default=None, exclude=True, description="cpu, cuda, cuda:1, mps; auto for the best.")
    devices: list[str] | None = Field(
        default=None, exclude=True, description="Several, each with a worker process, in place of device."
    )
    dtype: str = Field(default="auto", exclude=True, description="auto, float32, bfloat16, float16 or int8.")
    backend: str = Field(
        default="auto", exclude=True, description="Inference backend: auto, torch, numpy, openvino or onnx."
    )
    batch_tokens: int | None = Field(default=None, exclude=True, description="Tokens in a batch, padding counted.")
    show_progress: bool = Field(default=False, exclude=True, description="A progress bar over documents.")

    _encoder: Encoder = PrivateAttr()

    def _load_encoder(self, model: str | Path | None) -> PEGEncoder:
        return PEGEncoder(
            model,
            pooling=self.pooling,
            device=self.device,
            devices=self.devices,
            dtype=self.dtype,
            backend=self.backend,
            batch_tokens=self.batch_tokens,
            max_length=self.max_length,
            normalize=self.normalize,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            truncate_dim=self.truncate_dim,
            revision=self.revision,
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder that does the work."""
        return self._encoder

    async def _embed_queries_async(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of queries, in a batch with concurrent calls."""
        vectors: list[list[float]] = (await encode_queries_async(self._encoder, texts)).tolist()
        return vectors

    async def _embed_documents_async(self, texts: Sequence[str], *, show_progress: bool) -> list[list[float]]:
        """Vectors of documents, in batches with concurrent calls; a progress bar is drawn for one call alone."""
        if show_progress:
            vectors = await asyncio.to_thread(self._encoder.encode_documents, texts, show_progress=True)
        else:
            vectors = await encode_documents_async(self._encoder, texts)
        lists: list[list[float]] = await asyncio.to_thread(vectors.tolist)  # seconds for a corpus
        return lists

    @property
    def identity(self) -> str:
        """Names the vector space, for an index to record."""
        return str(getattr(self._encoder, "identity", "unknown"))

    def close(self) -> None:
        """Free the model's memory. Embedding afterwards is an error."""
        close: Any = getattr(self._encoder, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
