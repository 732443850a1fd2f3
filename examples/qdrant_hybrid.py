"""Hybrid search in Chinese over Qdrant, with peg-rag's vectors, terms and fusion: a recipe to adapt.

python examples/qdrant_hybrid.py            # needs: pip install qdrant-client

A document has two vectors in Qdrant: PEG's, and a sparse one of its Chinese terms with their saturated counts. Qdrant
multiplies the sparse one with the inverse document frequency (`Modifier.IDF`), which makes its score that of BM25. Here
Qdrant runs inside the program; `QdrantClient("http://qdrant:6333")` is a server. As Qdrant cannot tell one model's
vectors from another's, the collection is named after the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from peg_rag import Hit, PEGEncoder, Retriever
from peg_rag.index import fuse
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.stores.milvus_terms import choose_average, count_terms, weigh_document

FOLDER = Path(__file__).parent / "data"
QUERIES = ("想脱单应该去拜哪座庙？", "Tallentyre 写过什么书？")
CANDIDATES = 100  # of each side


class QdrantDocuments:
    """Documents in a collection, as `peg_rag.Retriever` searches them."""

    def __init__(self, client: QdrantClient, identity: str, dimension: int) -> None:
        self.identity = identity
        self._client = client
        self._name = identity.replace("/", "-")
        self._tokenizer = get_tokenizer("bigram")
        if not client.collection_exists(self._name):
            client.create_collection(
                self._name,
                vectors_config={"dense": models.VectorParams(size=dimension, distance=models.Distance.DOT)},
                sparse_vectors_config={"terms": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            )

    def add(self, texts: Sequence[str], vectors: np.ndarray, metadatas: Sequence[dict[str, Any]]) -> None:
        """Add documents. The average length of the first ones should stay that of all later ones: keep it."""
        counts = [count_terms(self._tokenizer, text) for text in texts]
        average = choose_average([sum(terms.values()) for terms in counts])
        points = []
        first = self._client.count(self._name).count  # where documents are deleted, take ids of your own
        rows = zip(texts, vectors, metadatas, counts, strict=True)
        for number, (text, vector, metadata, terms) in enumerate(rows, start=first):
            weights = weigh_document(terms, average)
            sparse = models.SparseVector(indices=list(weights), values=list(weights.values()))
            payload = {"text": text, "metadata": metadata}
            points.append(
                models.PointStruct(id=number, vector={"dense": vector.tolist(), "terms": sparse}, payload=payload)
            )
        self._client.upsert(self._name, points)

    def search_batch(
        self,
        vectors: np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Any = "hybrid",
        where: Any = None,
        **_: Any,
    ) -> list[list[Hit]]:
        """The k best documents of each query that pass a filter of Qdrant's, by `mode`: dense, lexical or hybrid."""
        queries: dict[str, list[Any]] = {}
        if mode != "lexical" and vectors is not None:
            queries["dense"] = vectors.tolist()
        if mode != "dense" and texts is not None:
            queries["terms"] = [self._make_terms(text) for text in texts]
        rows = zip(*queries.values(), strict=True)
        return [self._search(dict(zip(queries, row, strict=True)), k, where) for row in rows]

    def _make_terms(self, text: str) -> models.SparseVector:
        terms = count_terms(self._tokenizer, text)
        return models.SparseVector(indices=list(terms), values=[float(count) for count in terms.values()])

    def _search(self, query: dict[str, Any], k: int, where: models.Filter | None) -> list[Hit]:
        scores = {name: self._score(name, vector, where) for name, vector in query.items()}
        if len(scores) > 1:  # what only one side has found is scored by the other, too
            both = models.Filter(must=[models.HasIdCondition(has_id=sorted(set().union(*scores.values())))])
            scores = {name: self._score(name, vector, both, 2 * CANDIDATES) for name, vector in query.items()}
            numbers = scores["dense"]
            scores["terms"] = {number: scores["terms"].get(number, 0.0) for number in numbers}
            best = fuse({"dense": scores["dense"], "lexical": scores["terms"]})
        else:
            best = next(iter(scores.values()))
        payloads = {point.id: point.payload for point in self._client.retrieve(self._name, list(best)[:k])}
        hits = []
        for number in list(best)[:k]:
            payload = payloads[number] or {}
            hits.append(Hit(str(number), payload["text"], best[number], metadata=payload["metadata"]))
        return hits

    def _score(self, name: str, vector: Any, where: models.Filter | None, limit: int = CANDIDATES) -> dict[int, float]:
        points = self._client.query_points(
            self._name, vector, using=name, query_filter=where, limit=limit, with_payload=False
        ).points
        return {int(point.id): point.score for point in points}


def main() -> None:
    files = sorted(FOLDER.glob("*/*.*"))
    texts = [file.read_text("utf-8") for file in files]
    with PEGEncoder("peg-mini") as encoder:  # the small bundled model; PEGEncoder() is PEG itself
        documents = QdrantDocuments(QdrantClient(":memory:"), encoder.identity, encoder.dimension)
        documents.add(texts, encoder.encode_documents(texts), [{"source": file.name} for file in files])
        retriever = Retriever(documents, encoder, mode="hybrid", k=3)
        for query in QUERIES:
            print(query)
            for mode in ("dense", "lexical", "hybrid"):
                hits = retriever.retrieve(query, mode=mode)
                print(f"  {mode:12}", "  ".join(f"{hit.metadata['source']} {hit.score:.3f}" for hit in hits))
            print()


if __name__ == "__main__":
    main()
