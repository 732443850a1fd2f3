"""Ranking texts that stand in no index: the scores against an index of the same texts, the order, and the errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.errors import InvalidInput
from peg_rag.reranking import load_encoder, load_reranker
from peg_rag.reranking.texts import make_candidates, score_terms

PASSAGES = [
    "八达岭长城的门票旺季40元，淡季35元。",
    "慕田峪长城的门票45元，六十岁以上老人半价。",
    "长城的门票可以在网上预约，也可以现场购买。",
    "故宫的门票旺季60元。",
    "",
]
LETTERS = st.text(alphabet="长城门票abc12 。𠀀ＡｂＣ", max_size=20)


@given(LETTERS, st.lists(LETTERS, min_size=1, max_size=6, unique=True))
@settings(max_examples=60)
def test_scores_of_terms_are_those_of_an_index_that_holds_the_texts_alone(query: str, texts: list[str]) -> None:
    with PEGIndex() as index:
        index.upsert([str(n) for n in range(len(texts))], texts, np.ones((len(texts), 1), np.float32))
        hits = index.search(None, query, k=len(texts), mode="lexical") if query.strip() else []
    expected = np.zeros(len(texts))
    for hit in hits:
        expected[int(hit.id)] = hit.score
    assert score_terms(query, texts) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_order_is_that_of_a_reranked_search_of_the_texts() -> None:
    encoder = load_encoder()
    query = "慕田峪长城门票多少钱"
    ranked = load_reranker("mini").rank(query, PASSAGES)
    with PEGIndex(identity=encoder.identity) as index:
        index.upsert([str(n) for n in range(len(PASSAGES))], PASSAGES, encoder.encode_documents(PASSAGES))
        hits = Retriever(index, encoder, mode="hybrid").retrieve(query)
    assert [each.index for each in ranked] == [int(hit.id) for hit in hits]
    assert [each.score for each in ranked] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert ranked[0].index == 1


def test_every_text_is_ranked_once_with_falling_scores() -> None:
    texts = [f"第{n}条：长城门票{n}元" for n in range(70)]
    ranked = load_reranker("mini").rank("长城门票33元", texts)
    scores = [each.score for each in ranked]
    assert sorted(each.index for each in ranked) == list(range(70))
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] < 1
    assert ranked[0].index == 33


@pytest.mark.parametrize(("texts", "order"), [([], []), (["长城"], [0]), (["", ""], [0, 1]), (["长城"] * 3, [0, 1, 2])])
def test_few_texts_and_equal_ones(texts: list[str], order: list[int]) -> None:
    assert [each.index for each in load_reranker("mini").rank("长城", texts)] == order


def test_candidates_have_the_scores_of_both_sides() -> None:
    candidates = make_candidates("长城", PASSAGES, load_encoder())
    assert candidates.dense.shape == candidates.lexical.shape == candidates.fused.shape == (len(PASSAGES),)
    assert candidates.lexical[4] == 0
    assert int(np.argmax(candidates.lexical)) in (0, 1, 2)


def test_bad_arguments(tiny_bert: str) -> None:
    reranker = load_reranker("mini")
    with pytest.raises(InvalidInput, match="list of strings"):
        reranker.rank("长城", "长城门票")
    with pytest.raises(InvalidInput, match="blank"):
        reranker.rank(" ", PASSAGES)
    with PEGEncoder(tiny_bert) as other, pytest.raises(InvalidInput, match="peg-mini's vectors"):
        reranker.rank("长城", PASSAGES, encoder=other)
