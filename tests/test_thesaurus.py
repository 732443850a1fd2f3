"""The list of what people say and documents write: each line well formed, and none that says what others have said."""

from collections.abc import Iterator
from importlib.resources import files

import pytest

from peg_rag.answering.thesaurus import _LONGEST_PHRASE, _read_thesaurus, find_phrases
from peg_rag.answering.words import fold_text


def read_groups() -> Iterator[tuple[str, list[str], list[str]]]:
    """(line, question's phrases, words that answer them), folded one by one."""
    lines = (files("peg_rag") / "assets" / "thesaurus.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            asked, _, said = line.partition(" : ")
            yield line, [fold_text(phrase) for phrase in asked.split()], [fold_text(word) for word in said.split()]


def test_each_line_has_two_sides_of_phrases_that_can_be_found() -> None:
    for line, asked, said in read_groups():
        assert line.count(" : ") == 1, line
        assert line == " ".join(line.split()), line
        assert asked, line
        assert said, line
        assert not [phrase for phrase in asked if len(phrase) > _LONGEST_PHRASE], line


def test_no_line_names_a_phrase_twice() -> None:
    for line, asked, said in read_groups():
        assert len(set(asked)) == len(asked), line
        assert len(set(said)) == len(said), line


def test_no_two_lines_ask_with_the_same_phrases() -> None:
    lines: dict[frozenset[str], str] = {}
    for line, asked, _ in read_groups():
        assert frozenset(asked) not in lines, (line, lines[frozenset(asked)])
        lines[frozenset(asked)] = line


def test_each_line_says_something_that_no_line_above_has_said() -> None:
    pairs: set[tuple[str, str]] = set()
    for line, asked, said in read_groups():
        words = [*asked, *said]
        new = {(phrase, word) for phrase in asked for word in words} - pairs
        new |= {(word, phrase) for word in said if len(word) > 1 for phrase in asked} - pairs
        assert new, line
        pairs |= new


def test_the_list_is_read_as_if_each_phrase_were_folded_by_itself() -> None:
    table: dict[str, set[str]] = {}
    for _, asked, said in read_groups():
        for phrase in asked:
            table.setdefault(phrase, set()).update({*asked, *said} - {phrase})
        for word in said:
            if len(word) > 1:
                table.setdefault(word, set()).update({*asked} - {word})
    assert {phrase: set(synonyms) for phrase, synonyms in _read_thesaurus().items()} == table


@pytest.mark.parametrize(
    ("question", "phrase", "word"),
    [
        ("剩菜能打包吗", "打包", "打包盒"),
        ("这条鱼又叫什么", "又叫", "别名"),
        ("他哪里人", "哪里人", "籍贯"),
        ("孩子谁带药去园里", "带药", "服药委托"),
        ("冷静期之后还要去民政局吗", "民政局", "民政部门"),
        ("车跑了多少公里了", "跑了多少公里", "里程"),
        ("这台机器归谁", "归谁", "owner"),
        ("一个多少钱", "多少钱", "unit_price"),
        ("what is the deadline", "deadline", "截止"),
        ("怀孕被炒鱿鱼怎么办", "炒鱿鱼", "解除劳动合同"),
        ("借了钱还不上被叫老赖", "老赖", "失信被执行人"),
        ("外校的能来听吗", "外校", "校外"),
        ("押车的是谁", "押车", "押运"),
        ("上礼拜交的", "上星期", "上周"),
        ("停车费封顶吗", "封顶", "不超过"),
    ],
)
def test_what_people_say_is_found_with_what_documents_write(question: str, phrase: str, word: str) -> None:
    synonyms = {hit.text: hit.synonyms for hit in find_phrases(fold_text(question))}
    assert word in synonyms[phrase]


def test_a_latin_phrase_is_found_only_as_a_whole_word() -> None:
    assert "id" in [hit.text for hit in find_phrases(fold_text("这单的ID是啥"))]
    assert "id" not in [hit.text for hit in find_phrases(fold_text("android手机的video怎么导"))]


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("listening on port 8080", True),
        ("http_port=8080", True),
        ("all ports are closed", True),
        ("the report and its support", False),
    ],
)
def test_a_latin_word_of_a_document_is_matched_whole(text: str, is_there: bool) -> None:
    [phrase] = find_phrases("端口")
    assert phrase.is_in(text) is is_there
