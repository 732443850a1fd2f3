"""What counts as a passage in a prompt, and that an answer cites the prompt's own numbers."""

from hypothesis import given
from hypothesis import strategies as st

from peg_rag.answer import Answer, CitedSentence
from peg_rag.extractive import cited_sentences, numbered_passages, paragraphs
from peg_rag.passages import NO_PASSAGES, write_numbered_passages

TEXT = st.text(alphabet="花呗银行卡。\n [1]3", min_size=1).map(str.strip).filter(bool)


def test_passages_begin_at_their_numbers_and_instructions_are_left_out() -> None:
    hits = numbered_passages("用[1]注明出处。\n\n[1] 花呗。\n[2]银行卡\n可以换。\n\nSource 3:\n借款。\n")
    assert [(hit.id, hit.text) for hit in hits] == [("1", "花呗。"), ("2", "银行卡\n可以换。"), ("3", "借款。")]


def test_a_number_out_of_order_belongs_to_the_passage() -> None:
    hits = numbered_passages("[1] 见\n[7] 和\n[1] 二处。\n[2] 完。")
    assert [hit.text for hit in hits] == ["见\n[7] 和\n[1] 二处。", "完。"]


def test_text_without_numbers_has_no_numbered_passage_but_paragraphs() -> None:
    text = "花呗。\n还款。\n\n \n银行卡。"
    assert numbered_passages(text) == []
    assert [(hit.id, hit.text) for hit in paragraphs(text)] == [("", "花呗。\n还款。"), ("", "银行卡。")]


def test_a_first_line_that_is_no_sentence_is_the_title() -> None:
    titles = [hit.metadata.get("title") for hit in paragraphs("# 花呗\n可以换。\n\n可以换。\n好。\n\n只有一行")]
    assert titles == ["# 花呗", None, None]


@given(st.lists(st.text(alphabet="花呗银行卡。，", min_size=1), max_size=6))
def test_what_is_numbered_comes_back(texts: list[str]) -> None:
    prompt = "资料：\n" + "\n\n".join(f"[{n}] {text}" for n, text in enumerate(texts, 1))
    assert [(hit.id, hit.text) for hit in numbered_passages(prompt)] == [
        (str(n), text) for n, text in enumerate(texts, 1)
    ]


@given(st.lists(st.tuples(st.booleans(), st.text(alphabet="花呗银行卡。，()", min_size=1)), min_size=1, max_size=6))
def test_what_a_tool_shows_comes_back_without_its_places(passages: list[tuple[bool, str]]) -> None:
    metadata = {"source": "花呗\n(1).pdf", "title": "还款 > 逾期", "page": 3}
    shown = write_numbered_passages((metadata if placed else {}, text) for placed, text in passages)
    assert [hit.text for hit in numbered_passages(shown)] == [text for _, text in passages]
    assert shown.count("(source: 花呗 (1).pdf · 还款 > 逾期 · page 3)") == sum(placed for placed, _ in passages)


def test_a_tool_that_has_nothing_to_show_says_so() -> None:
    assert write_numbered_passages([]) == NO_PASSAGES
    assert numbered_passages(NO_PASSAGES) == []


@given(TEXT)
def test_any_text_is_read_and_nothing_is_made_up(text: str) -> None:
    for hit in [*numbered_passages(text), *paragraphs(text)]:
        assert hit.text in text


def test_citations_are_the_numbers_of_the_prompt() -> None:
    hits = numbered_passages("[1] 甲。\n[2] 乙。\n[3] 丙。")
    sentences = (CitedSentence("丙。", 1, 0, 1.0), CitedSentence("甲。", 2, 0, 0.9))
    answer = Answer("?", sentences, (hits[2], hits[0]), 1.0)
    assert list(cited_sentences(answer)) == ["丙。[3]", "甲。[1]"]
    (loose,) = paragraphs("丙。")
    assert list(cited_sentences(Answer("?", sentences[:1], (loose,), 1.0))) == ["丙。"]
