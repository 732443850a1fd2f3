"""What is compared: anything that answers a dataset's queries with a ranking.

Why one small protocol: a dense encoder, BM25 of two makes, a hybrid and a reranked list are then scored, tested against
each other and reported by the same code. Cost: that of the system; the in-memory index of a hybrid holds the texts once
more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from peg_rag.evaluation.datasets import RetrievalDataset
from peg_rag.evaluation.metrics import Run
from peg_rag.extras import require
from peg_rag.index.exact import exact_search
from peg_rag.retriever import Encoder, Reranker, Retriever, identity_of

BATCH = 256  # queries searched at a time


@runtime_checkable
class System(Protocol):
    """Ranks the documents of a dataset for each of its queries."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        """At most `k` documents for each query: query id → document id → score, larger is better."""
        ...


@dataclass(frozen=True)
class Dense:
    """The nearest documents by cosine, by exact search."""

    encoder: Encoder
    name: str

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        documents = self.encoder.encode_documents(list(dataset.corpus.values()), show_progress=show_progress)
        queries = self.encoder.encode_queries(query_texts(dataset), show_progress=show_progress)
        nearest = exact_search(np.asarray(queries), np.asarray(documents), k)  # (queries, k)
        return as_run(dataset, nearest.indices.tolist(), nearest.scores.tolist())


@dataclass(frozen=True)
class Candidates:
    """Orders each query's judged documents by cosine and looks at no others: for reranking sets."""

    encoder: Encoder
    name: str

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        documents = self.encoder.encode_documents(list(dataset.corpus.values()), show_progress=show_progress)
        queries = self.encoder.encode_queries(query_texts(dataset), show_progress=show_progress)
        row = {document: i for i, document in enumerate(dataset.corpus)}
        run: Run = {}
        for vector, (query, judged) in zip(queries, dataset.qrels.items(), strict=True):
            scores = documents[[row[document] for document in judged]] @ vector  # (candidates,)
            run[query] = dict(zip(judged, scores.tolist(), strict=True))
        return run


@dataclass(frozen=True)
class BM25s:
    """BM25 as most people run it on Chinese: jieba's words, bm25s with its defaults (k1 1.5, b 0.75, Lucene)."""

    name: str = "bm25s-jieba"

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        bm25s = require("bm25s", "eval")
        documents = [_split_words(text) for text in dataset.corpus.values()]
        model = bm25s.BM25()
        model.index(documents, show_progress=show_progress)
        queries = [_split_words(text) for text in query_texts(dataset)]
        k = min(k, len(documents))
        indices, scores = model.retrieve(queries, k=k, show_progress=show_progress)  # (queries, k) each
        return as_run(dataset, indices.tolist(), scores.tolist())


@dataclass(frozen=True)
class Indexed:
    """`PEGIndex` in memory: its BM25 (`lexical`), or dense and BM25 together (`hybrid`).

    Attributes:
        options: further arguments of `PEGIndex.search_batch`, such as `fusion` and `weights`.
    """

    mode: Literal["lexical", "hybrid"]
    encoder: Encoder | None = None
    name: str = "bm25"
    tokenizer: Literal["bigram", "jieba"] = "bigram"
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        from peg_rag.index import PEGIndex

        texts, queries = list(dataset.corpus.values()), query_texts(dataset)
        documents, vectors = np.ones((len(texts), 1), np.float32), None  # an index wants vectors; BM25 looks at none
        if self.encoder is not None:
            documents = self.encoder.encode_documents(texts, show_progress=show_progress)
            vectors = self.encoder.encode_queries(queries, show_progress=show_progress)
        run: Run = {}
        with PEGIndex(tokenizer=self.tokenizer) as index:
            index.upsert(list(dataset.corpus), texts, documents)
            for start in range(0, len(queries), BATCH):
                rows = slice(start, start + BATCH)
                batch = None if vectors is None else vectors[rows]
                hits = index.search_batch(batch, queries[rows], k=k, mode=self.mode, fetch_k=k, **self.options)
                for query, query_hits in zip(list(dataset.qrels)[rows], hits, strict=True):
                    run[query] = {hit.id: hit.score for hit in query_hits}
        return run


@dataclass(frozen=True)
class RerankedHybrid:
    """Hybrid search as `Retriever` does it by default with `peg-mini`: the index's mix, then the bundled reranker.

    Raises:
        InvalidInput: from `run`: the encoder is of another model than the reranker was trained for.
    """

    encoder: Encoder
    name: str = "reranked"

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        from peg_rag.index import PEGIndex

        texts = list(dataset.corpus.values())
        queries = query_texts(dataset)
        run: Run = {}
        with PEGIndex(identity=identity_of(self.encoder)) as index:
            retriever = Retriever(index, self.encoder, "mini", k=k, mode="hybrid")
            index.upsert(list(dataset.corpus), texts, self.encoder.encode_documents(texts, show_progress=show_progress))
            for start in range(0, len(queries), BATCH):
                rows = slice(start, start + BATCH)
                hit_lists = retriever.retrieve_batch(queries[rows])
                for query, hits in zip(list(dataset.qrels)[rows], hit_lists, strict=True):
                    run[query] = {hit.id: hit.score for hit in hits}
        return run


@dataclass(frozen=True)
class Reranked:
    """The first `candidates` of another system, ordered by a reranker; the rest keep their places behind them."""

    first: System
    reranker: Reranker
    candidates: int = 50

    @property
    def name(self) -> str:
        return f"{self.first.name}+reranker"

    def run(self, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
        first_run = self.first.run(dataset, k, show_progress=show_progress)
        return {query: self._rerank_query(dataset, query, documents) for query, documents in first_run.items()}

    def _rerank_query(self, dataset: RetrievalDataset, query: str, documents: Mapping[str, float]) -> dict[str, float]:
        ranking = sorted(documents, key=lambda document: -documents[document])
        head = ranking[: self.candidates]
        tail = ranking[self.candidates :]
        scores = self.reranker.score([(dataset.queries[query], dataset.corpus[document]) for document in head])
        reranked = dict(zip(head, map(float, scores), strict=True))
        floor = min(reranked.values(), default=0.0)
        return reranked | {document: floor - place for place, document in enumerate(tail, start=1)}


def query_texts(dataset: RetrievalDataset) -> list[str]:
    """The texts of the judged queries, in the order of the judgements."""
    return [dataset.queries[query] for query in dataset.qrels]


def as_run(dataset: RetrievalDataset, indices: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> Run:
    """Rows of document numbers (queries, k) and their scores, by id."""
    ids = list(dataset.corpus)
    return {
        query: {ids[i]: score for i, score in zip(numbers, row, strict=True)}
        for query, numbers, row in zip(dataset.qrels, indices, scores, strict=True)
    }


def _split_words(text: str) -> list[str]:
    jieba = require("jieba", "eval")
    jieba.setLogLevel("WARNING")
    return [word for word in jieba.cut(text.lower()) if any(map(str.isalnum, word))]  # no spaces, no punctuation
