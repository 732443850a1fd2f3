"""`PEGVectorStore`: the embedded index as a LlamaIndex vector store that keeps text, with no docstore beside it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import ConfigDict, Field, PrivateAttr

from peg_rag.errors import InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.index.filters import plain_metadata
from peg_rag.llama_index.filters import Where, all_of, to_where
from peg_rag.retriever import RERANKED, Mode, RerankChoice, choose_bundled, identity_of
from peg_rag.stores import Store, is_url, open_store

MODES: dict[VectorStoreQueryMode, Mode] = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.MMR: "mmr",
}
_NODE_ID = "_node_id"  # in the metadata, so that a search can be confined to nodes


class PEGVectorStore(BasePydanticVectorStore):
    """A persistent, incremental store of nodes, with filters before the search, hybrid and MMR search.

    Similarities are cosines (default and MMR), fused scores or the reranker's (hybrid) or BM25 scores (text search),
    larger is better. A node whose id is there is replaced; what was added is on disk when the call returns. `query`
    takes, beside the query's own fields, `threshold`, `weights`, `fusion`, `fetch_k` and `rerank`. The async methods
    run in a thread.

    Args:
        path: the folder of the index, or the URL of a store on a server (`postgresql://…`, `milvus://…`); None for
            memory.
        embed_model: the model whose vectors are stored, so that another's are refused; None takes any.
        identity: the name of the model's vectors, where the model itself is not at hand.
        rerank: what orders hybrid hits anew: `auto` (the bundled reranker, where the vectors are of `peg-mini` and
            neither `alpha` nor weights mix the sides), `mini` (the same, or an error) or `none`.
        settings: `kind`, `storage` (of the embedded index only), `tokenizer`, `read_only`, `timeout_s`; see
            `peg_rag.stores.open_store`.

    Raises:
        IndexMismatch: the index was made by another model (an embedding of another make counts as "unknown").
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    stores_text: bool = True
    is_embedding_query: bool = True
    path: str | None = Field(default=None, description="The folder of the index or a URL; None for memory.")
    identity: str | None = Field(default=None, description="Names the model that made the vectors.")
    tokenizer: str | None = Field(default=None, description="How texts become terms: bigram or jieba.")
    kind: Any = Field(default=None, description="How vectors are searched: flat, hnsw or ivfpq.")
    storage: Any = Field(default=None, description="How vectors are kept: float32, float16 or int8.")
    rerank: RerankChoice = Field(default="auto", description="Whether hybrid hits are reranked: auto, mini or none.")
    read_only: bool = Field(default=False, description="Refuse to write.")
    timeout_s: float = Field(default=10.0, description="How long to wait for another writer.")

    _index: Store = PrivateAttr()

    def __init__(
        self, path: str | Path | None = None, *, embed_model: BaseEmbedding | None = None, **settings: Any
    ) -> None:
        if embed_model is not None:
            settings["identity"] = identity_of(embed_model)
        super().__init__(**{"path": None if path is None else str(path), **settings})
        own_options = {} if is_url(path) and self.storage is None else {"storage": self.storage}
        self._index = open_store(
            path,
            identity=self.identity,
            tokenizer=self.tokenizer,
            kind=self.kind,
            read_only=self.read_only,
            timeout_s=self.timeout_s,
            **own_options,
        )
        self.identity = self._index.identity

    @classmethod
    def class_name(cls) -> str:
        return "PEGVectorStore"

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            raise InvalidInput("a store in memory cannot be pickled, its documents would be lost; give it a path")
        return {**super().__getstate__(), "__pydantic_private__": None}  # the index is opened again from the path

    @property
    def client(self) -> Store:
        """The index itself."""
        return self._index

    def close(self) -> None:
        """Close the index's files."""
        self._index.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes that have embeddings, replacing those whose id is there; all or, on an error, none. Returns ids.

        Raises:
            InvalidInput: a node has no embedding, or one of another dimension.
        """
        for node in nodes:
            if node.embedding is None:
                raise InvalidInput(f"node {node.node_id!r} has no embedding; embed nodes before adding them")
        ids = [node.node_id for node in nodes]
        texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        metadatas = [_dump_node(node) for node in nodes]
        self._index.upsert(ids, texts, [node.get_embedding() for node in nodes], metadatas)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that were made from a document, and the document itself if it was added as a node."""
        self._index.delete(where={"$or": [{"ref_doc_id": ref_doc_id}, {_NODE_ID: ref_doc_id}]})

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id, by filter, or those of the ids that match the filter.

        Raises:
            InvalidInput: neither was given; `clear` deletes everything.
        """
        if node_ids is None and not to_where(filters):
            raise InvalidInput("delete_nodes takes node ids or a filter; clear() deletes everything")
        self._index.delete(where=_restrict_to_nodes(filters, node_ids=node_ids))

    def clear(self) -> None:
        """Delete every node; the model and the dimension stay."""
        self._index.clear()

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Fold what was written into the vector file; what was written is on disk already, in the store's own folder.

        Raises:
            InvalidInput: the store is in memory.
        """
        if self.path is None:
            raise InvalidInput(
                "this store is in memory and cannot be persisted; make it with a path: PEGVectorStore('kb')"
            )
        self._index.persist()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, by filter, those of the ids that match the filter, or all; missing ids are left out."""
        if node_ids is not None and not to_where(filters):
            records = self._index.get(node_ids)
        else:
            records = self._index.get(where=_restrict_to_nodes(filters, node_ids=node_ids))
        return [metadata_dict_to_node(dict(record.metadata), text=record.text) for record in records]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes for a query in default, hybrid, text search (or sparse) and MMR mode.

        Raises:
            UnsupportedSearch: another mode, or a filter operator the index does not have.
            InvalidInput: the mode needs an embedding or a text that the query does not have.
        """
        hits = self._search_index(query, **kwargs)
        return VectorStoreQueryResult(
            nodes=[metadata_dict_to_node(dict(hit.metadata), text=hit.text) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def _search_index(self, query: VectorStoreQuery, **settings: Any) -> list[Hit]:
        if query.mode not in MODES:
            supported_modes = ", ".join(mode.value for mode in MODES)
            raise UnsupportedSearch(f"PEGVectorStore cannot do {query.mode.value} search; there are {supported_modes}")
        mode = MODES[query.mode]
        k = query.similarity_top_k
        where = _restrict_to_nodes(query.filters, node_ids=query.node_ids or None, doc_ids=query.doc_ids or None)
        if mode == "mmr":
            relevance = query.mmr_threshold if query.mmr_threshold is not None else settings.pop("mmr_threshold", 0.5)
            embedding = _require_embedding(query.query_embedding, mode)
            return self._index.mmr(embedding, k=k, where=where, diversity=1 - relevance, **settings)
        if mode == "hybrid":
            k = query.hybrid_top_k or k
            if query.alpha is not None:
                settings.setdefault("weights", {"dense": query.alpha, "lexical": 1 - query.alpha})
            if query.sparse_top_k is not None:
                settings.setdefault("fetch_k", max(query.sparse_top_k, query.similarity_top_k))
        vector = None if mode == "lexical" else _require_embedding(query.query_embedding, mode)
        text = None if mode == "dense" else query.query_str
        rerank = settings.pop("rerank", self.rerank)
        if mode == "hybrid" and k > 0:
            mix = {name: settings.get(name) for name in ("weights", "fusion")}
            bundled = choose_bundled(rerank, identity_of(self), **mix)
            if bundled is not None:
                candidates = settings.get("fetch_k") or RERANKED
                threshold = settings.pop("threshold", None)
                hits = self._index.search(vector, text, k=max(k, candidates), mode=mode, where=where, **settings)
                return bundled.rerank_hits(text or "", hits, candidates=candidates, threshold=threshold)[:k]
        return self._index.search(vector, text, k=k, mode=mode, where=where, **settings)

    # -- async twins, off the event loop ------------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)


def _dump_node(node: BaseNode) -> dict[str, Any]:
    # LlamaIndex writes times in more than one form and refuses NumPy scalars, so both are replaced first.
    plain = node.model_copy(update={"metadata": plain_metadata(node.metadata)})
    return {**node_to_metadata_dict(plain, remove_text=True), _NODE_ID: node.node_id}


def _restrict_to_nodes(
    filters: MetadataFilters | None, *, node_ids: list[str] | None = None, doc_ids: list[str] | None = None
) -> Where:
    """The filter, confined to some nodes or to the nodes of some documents."""
    confines: list[Where] = [
        {field: {"$in": ids}} for field, ids in ((_NODE_ID, node_ids), ("ref_doc_id", doc_ids)) if ids is not None
    ]
    return all_of([part for part in (to_where(filters), *confines) if part])


def _require_embedding(embedding: list[float] | None, mode: str) -> list[float]:
    if embedding is None:
        raise InvalidInput(f"{mode} search needs the query's embedding; embed the query first")
    return embedding
