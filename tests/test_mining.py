"""Mined negatives: worked out by hand on letter counts, and against brute force; known answers never among them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peg_rag.errors import DataError, InvalidInput
from peg_rag.extras import require_zstd
from peg_rag.training.mining.mine import MiningOptions, mine_hard_negatives

zstd = require_zstd("train")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mined(
    folder: Path, pairs: list[dict[str, Any]], corpus: list[str] | None = None, **options: Any
) -> list[dict[str, Any]]:
    files = None if corpus is None else write(folder / "corpus.jsonl", [{"text": text} for text in corpus])
    shard_rows = options.pop("shard_rows", 100)
    mine_hard_negatives(
        write(folder / "pairs.jsonl", pairs),
        folder / "out.jsonl",
        LetterEncoder(),
        corpus=files,
        options=MiningOptions(**options),
        shard_rows=shard_rows,
    )
    return read(folder / "out.jsonl")


def test_the_nearest_that_answer_nothing_come_hardest_first(tmp_path: Path) -> None:
    pairs = [{"query": "aab", "positive": "ab"}]
    rows = mined(tmp_path, pairs, ["abc", "abb", "aabc", "xyz", "ab"], negatives=3, relative_margin=None)
    # cosines to a²b: aabc 5/√30=.91, abb 4/5=.80, abc 3/√15=.77, xyz 0
    assert rows == [{"query": "aab", "positive": "ab", "negatives": ["aabc", "abb", "abc"]}]


def test_known_answers_of_the_same_query_are_never_mined(tmp_path: Path) -> None:
    pairs = [
        {"query": "aab", "positive": "ab"},
        {"query": "AAB!", "positive": "aabc"},
        {"query": "zzz", "positive": "zz y"},
    ]
    rows = mined(tmp_path, pairs, negatives=5, relative_margin=None)
    assert rows[0]["negatives"] == ["zz y"]
    assert rows[1]["negatives"] == ["zz y"]
    assert set(rows[2]["negatives"]) == {"ab", "aabc"}


def test_the_query_itself_is_no_negative(tmp_path: Path) -> None:
    rows = mined(tmp_path, [{"query": "aab", "positive": "ab"}], ["AAB。", "aabc"], relative_margin=None)
    assert rows[0]["negatives"] == ["aabc"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"relative_margin": None}, ["aabc", "abb", "abc", "xyz"]),
        ({"relative_margin": 0.95}, ["abb", "abc", "xyz"]),  # the positive's cosine is 3/√10 = .949: below .901
        ({"relative_margin": None, "margin": 0.16}, ["abc", "xyz"]),  # below .789
        ({"relative_margin": 0.95, "margin": 0.5}, ["xyz"]),
        ({"relative_margin": None, "first_rank": 2, "last_rank": 3}, ["abb", "abc"]),
    ],
)
def test_margins_and_ranks_leave_out_what_is_too_close(
    options: dict[str, Any], kept: list[str], tmp_path: Path
) -> None:
    rows = mined(tmp_path, [{"query": "aab", "positive": "ab"}], ["abc", "abb", "aabc", "xyz"], **options)
    assert rows[0]["negatives"] == kept


def test_given_negatives_stay_first_and_are_not_mined_again(tmp_path: Path) -> None:
    pairs = [{"query": "aab", "positive": "ab", "negatives": ["xyz", "ab"]}]
    options: dict[str, Any] = {"negatives": 2, "relative_margin": None}
    assert mined(tmp_path, pairs, ["xyz", "aabc", "abb"], **options)[0]["negatives"] == ["xyz", "aabc"]
    assert mined(tmp_path, pairs, ["xyz", "aabc", "abb"], keep=False, **options)[0]["negatives"] == ["aabc", "abb"]


def test_a_random_draw_is_from_the_range_and_repeatable(tmp_path: Path) -> None:
    corpus = [f"a{'b' * i}" for i in range(1, 30)]
    draw = {"negatives": 4, "random": True, "relative_margin": None, "last_rank": 20}
    first, again, other = (
        mined(tmp_path, [{"query": "a", "positive": "aa"}], corpus, seed=s, **draw) for s in (1, 1, 2)
    )
    assert first == again != other
    assert set(first[0]["negatives"]) <= set(corpus[:20])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=3, max_size=40, unique=True),
    shard_rows=st.integers(1, 9),
)
def test_shards_give_what_brute_force_gives(texts: list[str], shard_rows: int, tmp_path: Path) -> None:
    pairs = [{"query": f"{text}g", "positive": text} for text in texts]
    rows = mined(tmp_path, pairs, negatives=3, relative_margin=0.9, shard_rows=shard_rows)
    encoder = LetterEncoder()
    cosines = encoder.encode_queries([p["query"] for p in pairs]) @ encoder.encode_documents(texts).T
    for i, row in enumerate(rows):
        limit = 0.9 * cosines[i, i]
        best = sorted((c for j, c in enumerate(cosines[i]) if j != i and c < limit - 1e-6), reverse=True)[:3]
        found = [cosines[i, texts.index(text)] for text in row["negatives"]]
        assert np.allclose(found[: len(best)], best, atol=1e-5)
        assert len(found) >= len(best)


def test_bm25_candidates_take_turns_with_the_encoders(tmp_path: Path) -> None:
    """The encoder puts 花呗花呗 first, BM25 the passage that shares rarer words with the query."""
    pairs = [{"query": "花呗逾期了怎么办", "positive": "花呗逾期还款"}]
    corpus = ["银行卡", "花呗花呗", "逾期怎么办理延期", "借款理财", "故宫"]
    rows = mined(tmp_path, pairs, corpus, negatives=2, relative_margin=None, bm25=True)
    assert set(rows[0]["negatives"]) == {"花呗花呗", "逾期怎么办理延期"}


def test_approximate_mining_finds_what_exact_mining_does_where_it_looks_everywhere(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefghijklmnop"), size=30)) for _ in range(150)]
    pairs = [{"query": text[3:], "positive": text} for text in texts[:40]]
    options = {"last_rank": 20, "relative_margin": None, "shard_rows": 60}
    exact = mined(tmp_path, pairs, corpus=texts, **options)
    approximate = mined(tmp_path, pairs, corpus=texts, **options, approximate=True)
    shares = [
        len(set(one["negatives"]) & set(other["negatives"])) / 5 for one, other in zip(exact, approximate, strict=True)
    ]
    assert np.mean(shares) > 0.98  # equal counts of letters make ties


def test_interrupted_mining_goes_on_from_its_shards(tmp_path: Path) -> None:
    class Stops(LetterEncoder):
        left = 3

        def encode_documents(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().encode_documents(texts)

    texts = [f"{'a' * i}{'b' * (9 - i)}{c}" for i in range(9) for c in "cdefg"]
    pairs = write(tmp_path / "pairs.jsonl", [{"query": f"{text}x", "positive": text} for text in texts])
    out, straight = tmp_path / "out.jsonl", tmp_path / "straight.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mine_hard_negatives(pairs, out, Stops(), shard_rows=10)
    assert not out.exists()
    resumed = LetterEncoder()
    mine_hard_negatives(pairs, out, resumed, shard_rows=10)
    assert sum(n for role, n in resumed.calls if role == "document") == len(texts) - 30
    assert not [n for role, n in resumed.calls if role == "query"]
    mine_hard_negatives(pairs, straight, LetterEncoder(), shard_rows=10)
    assert read(out) == read(straight)
    assert not list(tmp_path.glob("*.mining"))


def test_other_arguments_do_not_take_up_old_shards(tmp_path: Path) -> None:
    work = tmp_path / "out.jsonl.mining"
    work.mkdir()
    (work / "call").write_text("another call")
    (work / "documents-0.npy").write_bytes(b"broken")
    assert mined(tmp_path, [{"query": "aab", "positive": "ab"}], ["abc"], relative_margin=None)[0]["negatives"] == [
        "abc"
    ]


def test_packed_output_and_titles(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", [{"title": "a", "text": "bc"}, {"passage": "xyz"}])
    pairs = write(tmp_path / "pairs.jsonl", [{"query": "aab", "positive": "ab"}])
    report = mine_hard_negatives(
        pairs, tmp_path / "o.jsonl.zst", LetterEncoder(), corpus=corpus, options=MiningOptions(relative_margin=None)
    )
    row = json.loads(zstd.decompress((tmp_path / "o.jsonl.zst").read_bytes()))
    assert row["negatives"] == ["a bc", "xyz"]
    assert (report.pairs, report.corpus, report.negatives, report.short) == (1, 2, 2, 1)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"query": "aab", "positive": "ab"}])
    with pytest.raises(DataError, match="corpus has no text"):
        mine_hard_negatives(
            pairs, tmp_path / "o.jsonl", LetterEncoder(), corpus=write(tmp_path / "c.jsonl", [{"x": "y"}])
        )
    with pytest.raises(DataError, match=r"wrong\.jsonl has no row with texts in 'query'"):
        mine_hard_negatives(write(tmp_path / "wrong.jsonl", [{"q": "y"}]), tmp_path / "o.jsonl", LetterEncoder())
    with pytest.raises(DataError, match=r"nothing\.jsonl does not exist"):
        mine_hard_negatives(tmp_path / "nothing.jsonl", tmp_path / "o.jsonl", LetterEncoder())
    with pytest.raises(InvalidInput, match="ranks 5 to 2"):
        MiningOptions(first_rank=5, last_rank=2)
    with pytest.raises(InvalidInput, match="negatives=0"):
        MiningOptions(negatives=0)
