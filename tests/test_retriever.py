"""The framework-free retriever: over the index, over fakes whose answers can be worked out by hand, and its errors."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder

from peg_rag import Hit, PEGIndex, Retriever
from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch

TEXTS = ["花呗还款", "花呗逾期还款", "银行卡绑定", "理财", "abc"]


@pytest.fixture
def index(letters: LetterEncoder) -> PEGIndex:
    index = PEGIndex(identity=letters.identity)
    metadatas = [{"number": number} for number in range(len(TEXTS))]
    index.upsert([f"id{number}" for number in range(len(TEXTS))], TEXTS, letters.encode_documents(TEXTS), metadatas)
    letters.calls.clear()
    return index


class LengthReranker:
    """Prefers long documents; a score is a length."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def score(self, text_pairs: list[tuple[str, str]]) -> Sequence[float]:
        self.pairs += text_pairs
        return [float(len(document)) for _, document in text_pairs]


def test_hits_are_the_nearest_by_brute_force(index: PEGIndex, letters: LetterEncoder) -> None:
    hits = Retriever(index, letters, k=3).retrieve("还款")
    cosines = letters.encode_documents(TEXTS) @ letters.encode_queries(["还款"])[0]  # (documents,)
    assert [hit.text for hit in hits] == [TEXTS[i] for i in np.argsort(-cosines, kind="stable")[:3]]
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:3], abs=1e-6)
    assert all(isinstance(hit, Hit) and hit.scores["dense"] == hit.score for hit in hits)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid", "mmr"])
def test_a_batch_is_its_queries_one_by_one(index: PEGIndex, letters: LetterEncoder, mode: Any) -> None:
    retriever = Retriever(index, letters, k=2, mode=mode)
    queries = ["花呗", "银行卡", "abc"]
    together = retriever.retrieve_batch(queries)
    assert letters.calls == ([] if mode == "lexical" else [("query", 3)])
    for hits, query in zip(together, queries, strict=True):
        alone = retriever.retrieve(query)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-6)


def test_hybrid_keeps_the_component_scores(index: PEGIndex, letters: LetterEncoder) -> None:
    best = Retriever(index, letters, mode="hybrid").retrieve("花呗逾期")[0]
    assert best.text == "花呗逾期还款"
    assert set(best.scores) >= {"dense", "lexical", "fused"}
    assert best.score == best.scores["fused"]


def test_hybrid_weights(index: PEGIndex, letters: LetterEncoder) -> None:
    only_lexical = Retriever(index, letters, mode="hybrid", weights={"dense": 0, "lexical": 1}, k=1)
    assert only_lexical.retrieve("理")[0].text == "理财"


def test_what_is_asked_changes_one_call_only(index: PEGIndex, letters: LetterEncoder) -> None:
    retriever = Retriever(index, letters, k=1, where={"number": {"$lt": 3}})
    assert [hit.text for hit in retriever.retrieve("理财")] != ["理财"]
    assert [hit.text for hit in retriever.retrieve("理财", where={"number": 3})] == ["理财"]
    assert [hit.text for hit in retriever.retrieve("理财", where={})] == ["理财"]
    assert len(retriever.retrieve("理财", k=2)) == 2
    assert [hit.text for hit in retriever.retrieve("理", mode="lexical", where={})] == ["理财"]
    assert len(retriever.retrieve("理财")) == 1


def test_threshold(index: PEGIndex, letters: LetterEncoder) -> None:
    assert [hit.text for hit in Retriever(index, letters, threshold=0.99).retrieve("abc")] == ["abc"]


def test_mmr_trades_likeness_for_difference(index: PEGIndex, letters: LetterEncoder) -> None:
    same = Retriever(index, letters, k=2, mode="mmr", diversity=0).retrieve("花呗还款")
    assert [hit.text for hit in same] == ["花呗还款", "花呗逾期还款"]
    different = Retriever(index, letters, k=2, mode="mmr", diversity=0.9).retrieve("花呗还款")
    assert different[0].text == "花呗还款"
    assert different[1].text != "花呗逾期还款"


def test_reranker_chooses_from_more_candidates(index: PEGIndex, letters: LetterEncoder) -> None:
    reranker = LengthReranker()
    retriever = Retriever(index, letters, reranker, k=1)
    first, second = retriever.retrieve_batch(["abc", "理财"])
    assert [hit.text for hit in (*first, *second)] == ["花呗逾期还款"] * 2
    assert first[0].score == first[0].scores["rerank"] == 6.0
    assert isinstance(first[0].score, float)
    assert "dense" in first[0].scores
    assert len(reranker.pairs) == 2 * len(TEXTS)
    assert retriever.retrieve("abc", k=0) == []


def test_a_reranker_that_loses_scores_is_refused(index: PEGIndex, letters: LetterEncoder) -> None:
    class Forgetful(LengthReranker):
        def score(self, text_pairs: list[tuple[str, str]]) -> Sequence[float]:
            return [1.0]

    with pytest.raises(InvalidInput, match="1 scores for 5 pairs"):
        Retriever(index, letters, Forgetful()).retrieve("abc")


def test_nothing_asked_nothing_found(index: PEGIndex, letters: LetterEncoder) -> None:
    assert Retriever(index, letters).retrieve_batch([]) == []
    assert Retriever(PEGIndex(), letters).retrieve_batch(["a", "b"]) == [[], []]
    assert Retriever(PEGIndex(), letters, LengthReranker()).retrieve("a") == []


def test_bad_queries(index: PEGIndex, letters: LetterEncoder) -> None:
    retriever = Retriever(index, letters)
    with pytest.raises(InvalidInput, match="list of strings"):
        retriever.retrieve_batch("花呗")
    with pytest.raises(InvalidInput, match=r"queries\[0\]"):
        retriever.retrieve(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="sideways"):
        retriever.retrieve("花呗", mode="sideways")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="k is"):
        retriever.retrieve("花呗", k=-1)


class DenseOnly:
    """A searcher with nothing but the one method, and no lexical side."""

    def search_batch(self, vectors: Any = None, texts: Any = None, *, mode: Any = "dense", **settings: Any) -> Any:
        if mode != "dense":
            raise UnsupportedSearch("dense only")
        return [[Hit("1", "花呗", 1.0)] for _ in vectors]


def test_any_searcher_with_the_one_method(letters: LetterEncoder) -> None:
    retriever = Retriever(DenseOnly(), letters)
    assert retriever.retrieve("花呗") == [Hit("1", "花呗", 1.0)]
    for mode in ("hybrid", "lexical", "mmr"):
        with pytest.raises(UnsupportedSearch):
            retriever.retrieve("花呗", mode=mode)


def test_another_models_index_is_refused(letters: LetterEncoder) -> None:
    with pytest.raises(IndexMismatch, match=r"other-model.*letters"):
        Retriever(PEGIndex(identity="other-model"), letters)


def test_importing_it_brings_no_framework_and_no_torch() -> None:
    heavy = ("torch", "langchain_core", "llama_index")
    code = f"import sys, peg_rag.retriever; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
