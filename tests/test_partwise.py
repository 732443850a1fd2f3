"""The discriminator over parts: its features against loops, and what it must tell apart."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from peg_rag.errors import DamagedModel, DataError, InvalidInput
from peg_rag.partwise import (
    FEATURES,
    FILE_NAME,
    PART_CHARACTERS,
    PLACES,
    PairCounts,
    PartDiscriminator,
    PartNetwork,
    PartReference,
    TextParts,
    cut_parts,
    hash_pairs,
)
from peg_rag.training import CleaningOptions, clean_pairs
from peg_rag.training.clean.partwise import _leave_out_alike, fit_discriminator

LETTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


class PlaceEncoder:
    """A text is the direction of the mean of its letters, by a fixed random direction for each."""

    identity = "places"

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        table = np.random.default_rng(0).normal(size=(97, 12)).astype(np.float32)
        means = np.stack([table[[ord(letter) % 97 for letter in text] or [0]].mean(0) for text in texts])
        vectors: NDArray[np.float32] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return vectors


def write_passages(count: int, words: str, seed: int, sentences: int = 4) -> list[str]:
    """Passages whose letters come from a few words each: a topic of its own."""
    generator = np.random.default_rng(seed)
    passages = []
    for _ in range(count):
        topic = generator.choice(list(words), size=6)
        lines = ["".join(generator.choice(topic, size=14)) for _ in range(sentences)]
        passages.append("。".join(lines) + "。")
    return passages


@given(st.text(alphabet="天地ab，。！ \n", max_size=200))
def test_parts_hold_the_text_and_keep_to_their_lengths(text: str) -> None:
    parts = cut_parts(text)
    assert parts
    if any(letter in text for letter in "天地ab "):
        assert "".join(parts) == text.lstrip("，。！\n")
    assert all(parts) or parts == [text]
    assert all(len(part) <= sum(PART_CHARACTERS) + len(text) for part in parts)


def test_long_clauses_are_cut_and_short_ones_joined() -> None:
    assert cut_parts("好，好，好，好") == ["好，好，好，好"]
    assert [len(part) for part in cut_parts("天" * 70)] == [32, 38]  # six more would be too short a part
    assert cut_parts("天" * 12 + "。" + "地" * 12) == ["天" * 12 + "。", "地" * 12]
    assert cut_parts("？！") == ["？！"]


@settings(deadline=None)
@given(st.lists(st.text(alphabet=LETTERS + "aB 。", max_size=20), min_size=1, max_size=6))
def test_pairs_are_those_of_neighbouring_letters(texts: list[str]) -> None:
    rows, places = hash_pairs(texts)
    for number, text in enumerate(texts):
        letters = [letter for letter in text.casefold() if letter.isalnum()]
        pairs = {one + other for one, other in itertools.pairwise(letters)}
        expected = {int(hash_pairs([pair])[1][0]) for pair in pairs}
        assert set(places[rows == number].tolist()) == expected
    assert (np.diff(rows) >= 0).all()


def test_features_equal_loops_and_leave_their_own_document_out() -> None:
    documents = write_passages(9, LETTERS, 1)
    foreign = write_passages(5, "甲乙丙丁戊己", 2)
    encoder = PlaceEncoder()
    vectors = encoder.encode_documents(documents)
    reference = PartReference(vectors.astype(np.float16), PairCounts.of(documents), PairCounts.of(foreign))
    parts = TextParts.of(documents)
    part_vectors = encoder.encode_documents(parts.parts)
    features = reference.describe_parts(parts.parts, part_vectors, own_rows=parts.owners, of="documents")
    for place, (part, owner) in enumerate(zip(parts.parts, parts.owners.tolist(), strict=True)):
        others = [row for row in range(9) if row != owner]
        cosines = sorted((part_vectors[place] @ vectors.astype(np.float16).astype(np.float32)[others].T), reverse=True)
        assert features[place, 0] == pytest.approx(cosines[0], abs=1e-5)
        assert features[place, 1] == pytest.approx(np.mean(cosines[:8]), abs=1e-5)
        _, places = hash_pairs([part])
        counts = [sum(p in hash_pairs([documents[row]])[1] for row in others) for p in places]
        assert features[place, 2] == pytest.approx(np.mean([np.log((c + 0.5) / 10) for c in counts]), abs=1e-5)
        assert features[place, 3] == pytest.approx(np.mean([c == 0 for c in counts]), abs=1e-6)
    blank = reference.describe_parts(["。"], encoder.encode_documents(["。"]))
    assert blank[0, 2:].tolist() == [0.0] * 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 99))
def test_the_network_judges_by_mean_and_spread(counts: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    shapes = [(len(FEATURES),), (len(FEATURES),), (len(FEATURES), 3), (3,), (6,), (1,)]
    network = PartNetwork(*(np.abs(generator.normal(size=shape)).astype(np.float32) for shape in shapes))
    features = generator.normal(size=(sum(counts), len(FEATURES))).astype(np.float32)
    owners = np.repeat(np.arange(len(counts)), counts)
    odds = network.judge(features, owners, len(counts))
    for text in range(len(counts)):
        scaled = (features[owners == text] - network.centre) / network.scale
        hidden = np.maximum(scaled @ network.hidden_weights + network.hidden_bias, 0)
        seen = np.concatenate([hidden.mean(0), np.sqrt(hidden.var(0) + 1e-6)])
        assert odds[text] == pytest.approx(seen @ network.output_weights + network.output_bias[0], rel=1e-3, abs=1e-3)


@pytest.fixture(scope="module")
def discriminator() -> PartDiscriminator:
    documents = write_passages(150, LETTERS, 3)
    return fit_discriminator(
        documents, PlaceEncoder(), foreign=write_passages(150, "甲乙丙丁戊己庚辛壬癸", 4), shuffled=0.25
    )


def test_texts_of_other_letters_are_outside(discriminator: PartDiscriminator) -> None:
    inside = write_passages(40, LETTERS, 5)
    outside = write_passages(40, "风花雪月琴棋书画", 6)  # neither the documents' nor the foreign texts'
    for score in (discriminator.score_queries, discriminator.score_documents):
        first, second = score(inside), score(outside)
        assert (first[:, None] > second[None, :]).mean() > 0.95
    questions = [text[:14] for text in inside]
    assert (discriminator.score_queries(questions)[:, None] > discriminator.score_queries(outside)[None]).mean() > 0.95
    assert discriminator.score_queries([]).shape == (0,)
    assert np.isfinite(discriminator.score_queries(["", "？", "天"])).all()


def test_a_score_does_not_depend_on_the_other_texts(discriminator: PartDiscriminator) -> None:
    texts = write_passages(7, LETTERS, 8)
    together = discriminator.score_documents(texts)
    alone = [float(discriminator.score_documents([text])[0]) for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_it_comes_back_from_disk_the_same(discriminator: PartDiscriminator, tmp_path: Path) -> None:
    discriminator.save(tmp_path)
    again = PartDiscriminator.load(tmp_path, PlaceEncoder())
    texts = write_passages(5, LETTERS, 9)
    assert np.array_equal(again.score_queries(texts), discriminator.score_queries(texts))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]

    class OtherEncoder(PlaceEncoder):
        identity = "other"

    with pytest.raises(InvalidInput, match="'places', and the encoder is 'other'"):
        PartDiscriminator.load(tmp_path, OtherEncoder())
    content = (tmp_path / FILE_NAME).read_bytes()
    for damaged in (content[:100], b"", content.replace(b'"format\\": 1', b'"format\\": 9')):
        (tmp_path / FILE_NAME).write_bytes(damaged)
        with pytest.raises(DamagedModel, match="fit it again"):
            PartDiscriminator.load(tmp_path, PlaceEncoder())
    with pytest.raises(DamagedModel):
        PartDiscriminator.load(tmp_path / "nowhere", PlaceEncoder())


def test_a_fit_repeats_and_refuses_what_it_cannot_learn_from() -> None:
    documents, foreign = write_passages(20, LETTERS, 1), write_passages(20, "甲乙丙丁", 2)
    one, other = (fit_discriminator(documents, PlaceEncoder(), foreign=foreign, seed=3) for _ in range(2))
    assert np.array_equal(one.network.output_weights, other.network.output_weights)
    assert one.reference.documents.counts.sum() == hash_pairs(documents)[0].size
    assert one.reference.documents.counts.shape == (PLACES,)
    with pytest.raises(DataError, match="two of each"):
        fit_discriminator(documents[:1], PlaceEncoder(), foreign=foreign)
    with pytest.raises(InvalidInput, match="shuffled=2"):
        fit_discriminator(documents, PlaceEncoder(), shuffled=2)


def test_foreign_texts_like_the_documents_are_left_out() -> None:
    documents = write_passages(60, LETTERS, 1)
    alike, different = write_passages(300, LETTERS, 2), write_passages(300, "甲乙丙丁戊己庚辛", 3)
    vectors = PlaceEncoder().encode_documents(documents)
    kept = set(_leave_out_alike([*alike, *different], vectors, PlaceEncoder()))
    assert len(kept & set(different)) > 250
    assert len(kept & set(alike)) < 150
    assert len(_leave_out_alike(documents, vectors, PlaceEncoder())) == 60  # the farthest stay: there are no others


def test_cleaning_removes_passages_that_do_not_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = write_passages(300, "甲乙丙丁戊己庚辛壬癸", 12)
    monkeypatch.setattr("peg_rag.training.clean.partwise.load_demo_passages", lambda: foreign)
    passages = write_passages(160, LETTERS, 10)
    strays = write_passages(4, "甲乙丙丁戊己庚辛壬癸", 11)
    rows = [{"query": f"第{i}问", "positive": text} for i, text in enumerate([*passages, *strays])]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    options = CleaningOptions(similarity=None, top=None, belonging=0.4)
    clean_pairs(pairs, tmp_path / "out.jsonl", options=options, encoder=PlaceEncoder())
    lines = (tmp_path / "out.jsonl.removed.jsonl").read_text(encoding="utf-8").splitlines()
    removed = [json.loads(line) for line in lines]
    assert {row["reason"] for row in removed} == {"foreign passage"}
    assert {row["positive"] for row in removed} >= set(strays)
    assert len(removed) < len(strays) + 16
    few = CleaningOptions(similarity=None, top=None, belonging=0.4)
    pairs.write_text(json.dumps(rows[0]), encoding="utf-8")
    assert clean_pairs(pairs, tmp_path / "out.jsonl", options=few, encoder=PlaceEncoder()).kept == 1
    with pytest.raises(InvalidInput, match="belonging=1"):
        CleaningOptions(belonging=1.0)
