"""What is found by a file's own terms for a question, and the question itself does not find."""

from collections.abc import Iterator
from typing import Any

import pytest

from peg_rag import PEGIndex, Retriever
from peg_rag.answering.retrieval import HITS_OF_FILE, retrieve_by_terms

RULE = "生活能力61分以上的为“轻助”，41至60分的为“中助”，40分以下的为“重助”。"
ROW = "患者: 重助 | 探视时间: 11:30-13:00"
QUESTION = "婆婆评了38分，啥时段能去看她"


@pytest.fixture
def retriever(letters: Any) -> Iterator[Retriever]:
    """A hospital's rule and rows, many texts between them, and a row of the same words in another file."""
    texts = [RULE, ROW, ROW.replace("11:30", "9:00"), *(f"婆婆评了第{number}号，看她时段" for number in range(60))]
    sources = ["须知.pdf", "须知.pdf", "别处.pdf", *["信件.txt"] * 60]
    with PEGIndex(identity=letters.identity) as index:
        metadatas = [{"source": source, "title": ""} for source in sources]
        index.upsert([str(n) for n in range(len(texts))], texts, letters.encode_documents(texts), metadatas)
        yield Retriever(index, letters, "none", mode="lexical")


def test_a_row_of_the_term_is_found(retriever: Retriever) -> None:
    hits = [*retriever.retrieve(QUESTION, k=5), *retriever.retrieve("生活能力", k=1)]
    assert ROW not in [hit.text for hit in hits]
    more = retrieve_by_terms(QUESTION, hits, retriever)
    assert ROW in [hit.text for hit in more]
    assert {hit.metadata["source"] for hit in more} == {"须知.pdf"}
    assert not {hit.id for hit in more} & {hit.id for hit in hits}
    assert len(more) <= HITS_OF_FILE
    assert max(hit.score for hit in more) <= min(hit.score for hit in hits)


def test_nothing_more_is_found_where_no_file_has_a_term(retriever: Retriever) -> None:
    assert retrieve_by_terms(QUESTION, [], retriever) == []
    hits = retriever.retrieve("婆婆", k=5)
    assert retrieve_by_terms("婆婆怎么了", hits, retriever) == []


def test_the_filter_of_a_search_holds_for_what_is_found_by_terms(retriever: Retriever) -> None:
    hits = retriever.retrieve("生活能力", k=1)
    assert retrieve_by_terms(QUESTION, hits, retriever, {"title": "另一个"}) == []
    assert retrieve_by_terms(QUESTION, hits, retriever, {"source": {"$in": ["须知.pdf"]}})


def test_the_definition_of_a_number_is_found_without_a_word_in_common(letters: Any) -> None:
    rule = "本须知所称“公开组”是指满18周岁、未满50周岁的，“常青组”是指满50周岁、未满65周岁的。"
    rows = [f"组: {name} | 单打: {games}" for name, games in (("公开组", "七局四胜"), ("常青组", "五局三胜"))]
    texts = [rule, *rows, *(f"报单打打几局，第{number}号" for number in range(30))]
    with PEGIndex(identity=letters.identity) as index:
        metadatas = [{"source": "手册.pdf", "title": ""}] * len(texts)
        index.upsert([str(n) for n in range(len(texts))], texts, letters.encode_documents(texts), metadatas)
        retriever = Retriever(index, letters, "none", mode="lexical")
        question = "我爸今年六十一，报单打是打几局"
        hits = [hit for hit in retriever.retrieve(question, k=4) if hit.text != rule]
        more = [hit.text for hit in retrieve_by_terms(question, hits, retriever)]
        assert rule in more
        assert rows[1] in [*more, *(hit.text for hit in hits)]
        assert rule not in [hit.text for hit in retrieve_by_terms("报单打是打几局", hits, retriever)]
