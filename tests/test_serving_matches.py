"""Where a question's words stand in a text, against a slow search by every pair of neighbours."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.serving.matches import Matcher


def marked(question: str, text: str) -> list[str]:
    return [text[start:end] for start, end in Matcher(question).find_spans(text)]


@pytest.mark.parametrize(
    ("question", "text", "words"),
    [
        ("花呗怎么绑定银行卡", "为花呗绑定银行卡，先解绑旧卡", ["花呗绑定银行卡"]),
        ("门票多少钱？", "门票六十元，学生门票半价", ["门票", "门票"]),
        ("What is LangChain?", "langchain and LangChains, LANGCHAIN.", ["langchain", "LANGCHAIN"]),
        ("猫", "一只猫和一条狗", ["猫"]),
        ("GB2312是什么", "GB2312编码", ["GB2312"]),
        ("什么", "什么都有", ["什么"]),
        ("花呗", "", []),
        ("😀花呗", "😀😀花呗", ["花呗"]),
    ],
)
def test_words_are_found(question: str, text: str, words: list[str]) -> None:
    assert marked(question, text) == words


@given(st.text("花呗银行卡a b，。", min_size=1, max_size=12), st.text("花呗银行卡aB b，。\n", max_size=40))
def test_spans_are_sorted_disjoint_and_cover_every_shared_bigram(question: str, text: str) -> None:
    spans = Matcher(question).find_spans(text)
    assert all(start < end for start, end in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert not spans or spans[-1][1] <= len(text)
    covered = {at for start, end in spans for at in range(start, end)}
    chinese = set("花呗银行卡")
    pairs = {question[i : i + 2] for i in range(len(question) - 1) if set(question[i : i + 2]) <= chinese}
    for at in range(len(text) - 1):
        if text[at : at + 2] in pairs:
            assert {at, at + 1} <= covered
    assert all(text[at] in chinese or text[at].isalpha() for at in covered)
