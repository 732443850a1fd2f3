import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.training.data.texts import KINDS, TextDocument, pairs_from, sentences

BODY = "花呗是一种消费信贷产品，由蚂蚁集团推出。用户可以先消费后付款，每月定期还款。逾期会产生利息，并影响信用记录！"


def test_each_kind_of_pair() -> None:
    document = TextDocument.of(BODY, title="什么是花呗", characters=40)
    assert document.passages == [BODY[:38], BODY[38:]]
    [title] = pairs_from([document], ["title"])
    assert (title.query, title.positive) == ("什么是花呗", BODY[:38])
    [cloze] = pairs_from([TextDocument.of(BODY)], ["sentence"])
    assert cloze.query in BODY
    assert cloze.query not in cloze.positive
    assert set(sentences(cloze.positive)) < set(sentences(BODY))
    [next_one] = pairs_from([document], ["neighbour"])
    assert (next_one.query, next_one.positive) == ("用户可以先消费后付款，每月定期还款", BODY[38:])


def test_a_title_that_the_text_repeats_is_taken_out() -> None:
    [pair] = pairs_from([TextDocument.of("北京下雨。" + BODY, title="北京下雨")], ["title"])
    assert pair.positive == BODY


@given(st.text("甲乙丙，。！？；”\n a", max_size=300), st.integers(5, 80))
def test_passages_hold_every_sentence_and_keep_their_length(text: str, characters: int) -> None:
    document = TextDocument.of(text, characters=characters)
    assert "".join(document.passages) == "".join(sentences(text))
    for passage in document.passages:
        assert len(passage) <= max(characters, *map(len, sentences(text)))


@given(st.lists(st.text("甲乙丙，。！？；”\n a", max_size=300), max_size=4), st.integers(0, 9))
def test_pairs_are_never_empty_and_are_made_again_alike(texts: list[str], seed: int) -> None:
    documents = [TextDocument.of(text, "标题标题", 50) for text in texts]
    pairs = list(pairs_from(documents, seed=seed))
    assert pairs == list(pairs_from(documents, seed=seed))
    assert all(pair.query.strip() and pair.positive.strip() and pair.kind in KINDS for pair in pairs)


def test_an_unknown_kind_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="heading"):
        pairs_from([], ["heading"])  # type: ignore[list-item]
