import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag.cache import CachedEncoder
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DamagedIndex, InvalidInput

TEXTS = ["如何更换花呗绑定银行卡", "北京故宫的门票", "法律合同", "a\ud800b", "如何更换花呗绑定银行卡"]


@pytest.fixture
def encoder(tiny_bert: Path) -> PEGEncoder:
    return PEGEncoder(tiny_bert, dtype="float32", query_prompt="问")


def test_a_cached_vector_is_the_vector_and_is_computed_once(encoder: PEGEncoder, tmp_path: Path) -> None:
    plain_queries, plain_documents = encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)
    computed = encoder.stats.texts
    cached = CachedEncoder(encoder, tmp_path / "vectors.sqlite")
    for _ in range(2):
        np.testing.assert_array_equal(cached.encode_queries(TEXTS), plain_queries)
        np.testing.assert_array_equal(cached.encode_documents(TEXTS), plain_documents)
    assert encoder.stats.texts == 2 * computed
    assert cached.misses == 8
    reopened = CachedEncoder(encoder, tmp_path / "vectors.sqlite")
    np.testing.assert_array_equal(reopened.encode_documents(TEXTS[::-1]), plain_documents[::-1])
    assert (reopened.hits, reopened.misses) == (5, 0)
    assert reopened.encode_documents([]).shape == (0, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "mean"},
        {"query_prompt": "查"},
        {"document_prompt": "文"},
        {"max_length": 8},
        {"normalize": False},
        {"truncate_dim": 8},
        {"dtype": "bfloat16"},
    ],
)
def test_whatever_changes_a_vector_changes_its_key(tiny_bert: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"dtype": "float32", "query_prompt": "问"}
    CachedEncoder(PEGEncoder(tiny_bert, **base), tmp_path / "c").encode_queries(TEXTS)
    other = PEGEncoder(tiny_bert, **{**base, **change})
    cached = CachedEncoder(other, tmp_path / "c")
    np.testing.assert_array_equal(cached.encode_queries(TEXTS), other.encode_queries(TEXTS))
    assert cached.misses == 4


def test_other_weights_in_the_same_folder_are_other_vectors(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    CachedEncoder(PEGEncoder(folder), tmp_path / "c").encode_documents(TEXTS)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    cached = CachedEncoder(PEGEncoder(folder), tmp_path / "c")
    cached.encode_documents(TEXTS)
    assert cached.misses == 4


def test_threads_and_pickles(encoder: PEGEncoder, tmp_path: Path) -> None:
    cached = CachedEncoder(encoder, tmp_path / "c")
    expected = encoder.encode_documents(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: cached.encode_documents(TEXTS), range(16)):
            np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cached)).encode_documents(TEXTS), expected)


def test_bad_input_and_damage(encoder: PEGEncoder, tmp_path: Path) -> None:
    cached = CachedEncoder(encoder, tmp_path / "c")
    with pytest.raises(InvalidInput, match="single str"):
        cached.encode_documents("花呗")
    with pytest.raises(InvalidInput, match="blank"):
        cached.encode_queries([" "])
    (tmp_path / "junk").write_bytes(b"no database" * 100)
    with pytest.raises(DamagedIndex, match="junk"):
        CachedEncoder(encoder, tmp_path / "junk")
