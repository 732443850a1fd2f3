"""Terms, postings and BM25: each fast path beside a plain one."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.index import PEGIndex, lexical, tokenizers
from peg_rag.index.database import BLOCK
from peg_rag.index.lexical import ENTRY, build_postings
from peg_rag.index.tokenizers import MAX_TAIL, TAIL_BITS, HeadNumbers, get_tokenizer, normalize_text

BIGRAM = get_tokenizer("bigram")
texts = st.lists(
    st.text(alphabet="中国北京的花呗abZ １Ａ,。\n𠀀𠀁か한é_-😀\u0301\u3099ΣİΑ㎏ﷺ①", max_size=12), max_size=6
)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("花呗还款", ["花", "呗", "还", "款", "花呗", "呗还", "还款"]),
        ("查API接口", ["查", "api", "接", "口", "接口"]),
        ("ＩＰｈｏｎｅ１５", ["iphone15"]),
        ("Über 2024-05", ["über", "2024", "05"]),
        ("，。 !?", []),
        ("", []),
        ("𠀀中", ["𠀀", "中", "𠀀中"]),
        ("snake_case", ["snake", "case"]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert BIGRAM.terms(text) == terms


def test_jieba_cuts_words() -> None:
    pytest.importorskip("jieba")
    assert {"北京", "大学", "北京大学"} <= set(get_tokenizer("jieba").terms("我在北京大学读书。"))


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'bigram' and 'jieba'"):
        get_tokenizer("mecab")


def test_skipping_nfkc_changes_no_term() -> None:
    """`_UNCHANGED` may only hold characters whose NFKC form has the same terms and which never combine."""
    import unicodedata

    for code in range(0x20000):
        char = chr(code)
        if not 0xD800 <= code < 0xE000 and tokenizers._is_unchanged(char):
            assert unicodedata.combining(char) == 0
            normal_form = unicodedata.normalize("NFKC", char)
            assert tokenizers._PIECES.findall(normal_form) == tokenizers._PIECES.findall(char), char


@pytest.mark.parametrize("name", ["bigram", "jieba"])
@settings(max_examples=100, deadline=None)
@given(
    texts=texts,
    first=st.integers(0, 100),
    texts_at_once=st.sampled_from([1, 2, 256]),
    entries_at_once=st.sampled_from([1, 3, 65_536]),
    first_word=st.sampled_from([0x40000, 1 << 20]),  # the second does not fit into 32 bits with a row
)
def test_postings_count_the_terms(
    name: str, texts: list[str], first: int, texts_at_once: int, entries_at_once: int, first_word: int
) -> None:
    if name == "jieba":
        pytest.importorskip("jieba")
    tokenizer = get_tokenizer(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "TEXTS_AT_ONCE", texts_at_once)
        patch.setattr(tokenizers, "_FIRST_WORD", first_word)
        patch.setattr(lexical, "ENTRIES_AT_ONCE", entries_at_once)
        postings = build_postings(tokenizer, texts, first)
    rows = dict(zip(postings.heads, postings.pack_entries(), strict=True))
    assert len(rows) == len(postings.heads)
    plain: Counter[tuple[str, int, int]] = Counter()
    for row, text in enumerate(texts):
        for term in tokenizer.terms(text):
            plain[(*tokenizer.address(term), first + row)] += 1
    counts = {
        (head, int(entry["tail"]), int(entry["offset"])): int(entry["count"])
        for head, raw in rows.items()
        for entry in np.frombuffer(raw, dtype=ENTRY)
    }
    assert counts == dict(plain)
    assert postings.lengths.tolist() == [len(tokenizer.terms(text)) for text in texts]


@settings(max_examples=100, deadline=None)
@given(texts=texts, texts_at_once=st.sampled_from([1, 2, 256]))
def test_occurrences_are_the_terms(texts: list[str], texts_at_once: int) -> None:
    heads = HeadNumbers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "TEXTS_AT_ONCE", texts_at_once)
        occurrences = BIGRAM.find_occurrences(texts, heads)
    names = heads.spell(occurrences.codes >> TAIL_BITS)
    tails = [chr(tail) if tail else "" for tail in (occurrences.codes & MAX_TAIL).tolist()]
    rows = occurrences.rows.tolist()
    assert Counter(zip(rows, map(str.__add__, names, tails), strict=True)) == Counter(
        (row, term) for row, text in enumerate(texts) for term in BIGRAM.terms(text)
    )


@settings(max_examples=200)
@given(st.text(max_size=20), st.text(max_size=20))
def test_two_terms_never_share_an_address(a: str, b: str) -> None:
    terms = {*BIGRAM.terms(a), *BIGRAM.terms(b)}
    assert len({BIGRAM.address(term) for term in terms}) == len(terms)


def test_counts_are_capped_at_255() -> None:
    (raw,) = build_postings(BIGRAM, ["a " * 1000]).pack_entries()
    assert np.frombuffer(raw, dtype=ENTRY)["count"].tolist() == [255]


def plain_bm25(documents: dict[str, str], query: str, k1: float, b: float) -> dict[str, float]:
    """BM25 from its definition, over terms as strings."""
    terms = {name: Counter(BIGRAM.terms(text)) for name, text in documents.items()}
    average = sum(sum(t.values()) for t in terms.values()) / len(terms)
    scores = {}
    for name, counts in terms.items():
        score, norm = 0.0, k1 * (1 - b + b * sum(counts.values()) / max(average, 1.0))
        for term, weight in lexical.term_weights(BIGRAM.terms(query)).items():
            n = sum(term in other for other in terms.values())
            idf = math.log(1 + (len(terms) - n + 0.5) / (n + 0.5))
            score += weight * idf * counts[term] * (k1 + 1) / (counts[term] + norm)
        if score > 0:
            scores[name] = score
    return scores


def bm25_of(index: PEGIndex, query: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.search(text=query, k=10**6)}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(alphabet="花呗还款绑定银行卡 abc", max_size=15), min_size=1, max_size=12),
    st.text(alphabet="花呗还款绑定银行卡 abc", max_size=8),
    st.sets(st.integers(0, 11)),
)
def test_scores_equal_bm25_by_definition(texts: list[str], query: str, deleted: set[int]) -> None:
    documents = {str(i): text for i, text in enumerate(texts)}
    with PEGIndex() as index:
        index.upsert(list(documents), list(documents.values()), np.ones((len(documents), 2)))
        index.delete([str(i) for i in deleted])
        for i in deleted:
            documents.pop(str(i), None)
        expected = plain_bm25(documents, query, lexical.K1, lexical.B) if documents else {}
        assert bm25_of(index, query) == pytest.approx(expected, rel=1e-4)


def test_postings_span_blocks_and_appends() -> None:
    """Written in several parts or all at once, across blocks: the same scores."""
    texts = [f"第{i}条 花呗{'还款' if i % 3 else '绑定'} {i % 97}" for i in range(BLOCK + 300)]
    ids, vectors = [str(i) for i in range(len(texts))], np.ones((len(texts), 2))
    with PEGIndex() as single, PEGIndex() as parts:
        single.upsert(ids, texts, vectors)
        for part in (slice(0, 5), slice(5, BLOCK - 1), slice(BLOCK - 1, None)):
            parts.upsert(ids[part], texts[part], vectors[part])
        for query in ("花呗绑定 42", "第4300条"):
            assert bm25_of(single, query) == pytest.approx(bm25_of(parts, query))
        assert single.search(text=f"第{BLOCK + 7}条", k=1)[0].id == str(BLOCK + 7)


def test_only_matching_documents_are_found() -> None:
    with PEGIndex() as index:
        index.upsert(["a", "b"], ["花呗还款", "北京故宫"], np.ones((2, 2)))
        assert [hit.id for hit in index.search(text="怎么还花呗")] == ["a"]
        assert index.search(text="") == index.search(text="？！") == index.search(text="xyz") == []


def test_the_stored_text_is_not_normalised() -> None:
    text = "ＡＢＣ  Ｆｕｌｌ\u3000width\n é"
    with PEGIndex() as index:
        index.upsert(["a"], [text], np.ones((1, 2)))
        assert index.search(text="abc full")[0].text == text
        assert normalize_text(text) != text
