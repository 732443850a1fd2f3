"""PEGIndex on files altered by something else: whatever they contain, the error is `DamagedIndex`."""

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.errors import DamagedIndex, InvalidInput
from peg_rag.index import PEGIndex, database, tables, validation
from peg_rag.index.encodings import from_blobs, to_blobs, unit_rows
from peg_rag.index.validation import DocumentBatch

DIMENSION = 64
COUNT = 60
PAGE = database.PAGE_BYTES


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, DIMENSION)).astype(np.float32)


def make(path: Path, kind: Any = "flat") -> Path:
    """An index of many small and a few large rows, part of it in the vector file."""
    with PEGIndex(path, kind=kind) as index:
        names = [f"d{n}" for n in range(COUNT)]
        texts = [f"第{n}篇 花呗账单" + "长" * (3000 if n % 20 == 0 else n) for n in range(COUNT)]
        index.upsert(names[:40], texts[:40], rows(COUNT)[:40], [{"n": n, "city": "北京"} for n in range(40)])
        index.persist()
        index.upsert(names[40:], texts[40:], rows(COUNT)[40:], [{"n": n} for n in range(40, COUNT)])
        index.delete(["d3", "d44"])
    return path


CALLS: dict[str, Callable[[PEGIndex], Any]] = {
    "len": len,
    "ids": lambda index: index.ids(),
    "count": lambda index: index.count({"n": {"$gte": 5}, "city": "北京"}),
    "get": lambda index: index.get(where={}),
    "get one": lambda index: index.get([f"d{n}" for n in range(COUNT)]),
    "dense": lambda index: index.search(rows(COUNT)[7], k=COUNT),
    "lexical": lambda index: index.search(text="第5篇 花呗", k=COUNT),
    "hybrid": lambda index: index.search(rows(COUNT)[50], "第5篇 花呗 长", k=COUNT, where={"n": {"$lt": 55}}),
    "mmr": lambda index: index.mmr(rows(COUNT)[7], k=10, fetch_k=COUNT),
    "upsert": lambda index: index.upsert(["d5", "new"], ["新", "旧"], rows(2)),
    "delete": lambda index: index.delete(["d7"]),
    "delete where": lambda index: index.delete(where={"n": 9}),
    "persist": lambda index: index.persist(),
    "clear": lambda index: index.clear(),
}


def call_everything(path: Path) -> list[str]:
    """Open the index and make every call; the messages of all `DamagedIndex` errors. Any other error propagates."""
    messages = []
    try:
        index = PEGIndex(path)
    except DamagedIndex as error:
        return [str(error)]
    with index:
        for call in CALLS.values():
            try:
                call(index)
            except DamagedIndex as error:
                messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def intact_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make(tmp_path_factory.mktemp("sound") / "kb")
    assert call_everything(Path(shutil.copytree(path, path.with_name("used")))) == []
    return path


def replace_pages(content: bytes, change: Callable[[int, bytes], bytes], pages: list[int]) -> bytes:
    for page in pages:
        start = page * PAGE
        content = content[:start] + change(page, content[start : start + PAGE]) + content[start + PAGE :]
    return content


def copy_with_content(path: Path, target: Path, content: bytes) -> Path:
    """A copy of the index with another SQLite file."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in path.glob("vectors-*"):
        shutil.copy(file, target / file.name)
    (target / "index.sqlite").write_bytes(content)
    return target


def zero_page(_: int, page: bytes) -> bytes:
    return bytes(len(page))


def test_zeroed_pages(intact_index: Path, tmp_path: Path) -> None:
    content = (intact_index / "index.sqlite").read_bytes()
    detected = 0
    for page in range(len(content) // PAGE):
        copy = copy_with_content(intact_index, tmp_path / "kb", replace_pages(content, zero_page, [page]))
        messages = call_everything(copy)
        assert all("restore" in message or "index the documents again" in message for message in messages), messages
        detected += bool(messages)
    assert detected > 0.8 * (len(content) // PAGE)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["garbage", "swapped", "flipped", "text"])
def test_randomly_damaged_pages(harm: str, intact_index: Path, tmp_path: Path) -> None:
    content = (intact_index / "index.sqlite").read_bytes()
    chance = np.random.default_rng(5)
    pages = len(content) // PAGE

    def change(number: int, page: bytes) -> bytes:
        match harm:
            case "garbage":
                return page[:8] + chance.bytes(len(page) - 8)
            case "swapped":
                other = int(chance.integers(1, pages)) * PAGE
                return content[other : other + PAGE]
            case "flipped":
                bits = bytearray(page)
                for place in chance.integers(100 if number == 0 else 0, len(page), 20):
                    bits[place] ^= 1 << int(chance.integers(8))
                return bytes(bits)
            case _:
                return page.replace("长".encode(), b"\xff\xfe\xfd").replace(b'{"n"', b'{n""')

    for _ in range(150):
        call_everything(
            copy_with_content(
                intact_index, tmp_path / "kb", replace_pages(content, change, [int(chance.integers(0, pages))])
            )
        )


# -- invalid rows -----------------------------------------------------------------------------------------------------


def copy_with_statements(path: Path, target: Path, *statements: str) -> Path:
    copy = copy_with_content(path, target, (path / "index.sqlite").read_bytes())
    with contextlib.closing(sqlite3.connect(copy / "index.sqlite")) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return copy


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE meta SET value = 'int4' WHERE name = 'storage'", "storage 'int4'.*float32, float16, int8"),
        ("UPDATE meta SET value = 'annoy' WHERE name = 'kind'", "kind 'annoy'.*flat, hnsw, ivfpq"),
        ("UPDATE meta SET value = 'x' WHERE name = 'dimension'", "dimension 'x'"),
        ("UPDATE meta SET value = '0' WHERE name = 'dimension'", "dimension '0'"),
        ("UPDATE meta SET value = '-3' WHERE name = 'dimension'", "dimension '-3'"),
        ("UPDATE meta SET value = '1e3' WHERE name = 'dimension'", "dimension '1e3'"),
        (f"UPDATE meta SET value = '{'9' * 5000}' WHERE name = 'dimension'", "dimension"),
        ("UPDATE meta SET value = x'00ff' WHERE name = 'dimension'", "dimension"),
        ("UPDATE meta SET value = 'klingon' WHERE name = 'tokenizer'", "tokenizer 'klingon'"),
        ("UPDATE meta SET value = '{' WHERE name = 'storage'", "storage '{'"),
        ("UPDATE meta SET value = 5 WHERE name = 'identity'", None),
        ("UPDATE meta SET value = x'ff' WHERE name = 'identity'", "identity"),
        ("DELETE FROM meta WHERE name = 'storage'", "storage"),
        ("DELETE FROM meta WHERE name = 'identity'", "identity"),
        ("DELETE FROM meta", "settings"),
        ("DELETE FROM state", "state"),
        ("UPDATE state SET sequence = 'x'", "state"),
        ("UPDATE state SET next_key = -1", "state"),
        ("UPDATE state SET generation = 2.5", "state"),
        ("DELETE FROM base", "vector file"),
        ("UPDATE base SET kind = 'annoy'", "vector file"),
        ("UPDATE base SET keys = x'0102'", "vector file"),
        ("UPDATE base SET size = 'x'", "vector file"),
        ("DELETE FROM bodies WHERE key = 5", "5"),
        ("DELETE FROM documents WHERE key = 5", "5"),
        ("DELETE FROM bodies WHERE key = 50", "50"),
        ("UPDATE bodies SET vector = x'00' WHERE key = 50", "vector"),
        ("UPDATE bodies SET vector = 'text' WHERE key = 50", "vector"),
        ("UPDATE bodies SET vector = CAST(x'0000c07f' || substr(vector, 5) AS BLOB) WHERE key = 50", "NaN"),
        ("UPDATE bodies SET text = x'00ff' WHERE key = 50", "text"),
        ("UPDATE documents SET metadata = '{\"n\": ' WHERE key = 50", "JSON"),
        ("UPDATE documents SET metadata = '[1]' WHERE key = 50", "metadata"),
        ("UPDATE documents SET metadata = x'00' WHERE key = 50", "metadata"),
        ("UPDATE documents SET id = x'00' WHERE key = 50", "id"),
        ("DELETE FROM blocks", None),
        ("UPDATE blocks SET lengths = x'0102'", "lengths"),
        ("UPDATE blocks SET lengths = 'text'", "lengths"),
        ("UPDATE blocks SET lengths = NULL", None),
        ("UPDATE postings SET entries = x'01'", "postings"),
        ("UPDATE postings SET entries = x'0000ffff01'", "postings"),
        ("UPDATE postings SET entries = 'text'", "postings"),
        ("UPDATE postings SET head = x'00' WHERE head = '花'", None),
        ("DROP TABLE postings", "postings"),
    ],
)
def test_invalid_rows(statement: str, message: str | None, intact_index: Path, tmp_path: Path) -> None:
    """Where `message` is None, SQLite refuses the statement or the index still works."""
    try:
        path = copy_with_statements(intact_index, tmp_path / "kb", statement)
    except sqlite3.IntegrityError:
        assert message is None
        return
    messages = call_everything(path)
    if message is not None:
        assert any(re.search(message, text) for text in messages), messages


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_the_stored_kind_is_used(kind: str, intact_index: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    path = copy_with_statements(intact_index, tmp_path / "kb", f"UPDATE meta SET value = '{kind}' WHERE name = 'kind'")
    assert call_everything(path) == []


# -- metadata that could not be read back -----------------------------------------------------------------------------


def nest(depth: int, container: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if container is list else {"a": value}
    return value


@pytest.mark.parametrize("container", [list, dict])
@pytest.mark.parametrize("depth", [101, 500, 990, 3000, 200_000])
def test_deep_metadata_is_refused_before_any_write(depth: int, container: type) -> None:
    with PEGIndex() as index:
        with pytest.raises(InvalidInput, match="metadata 1 is nested deeper than 100 levels"):
            index.upsert(["a", "b"], ["x", "y"], np.eye(2), [{}, {"deep": nest(depth, container)}])
        assert len(index) == 0


@pytest.mark.parametrize("container", [list, dict])
def test_metadata_of_the_largest_depth_can_be_read_and_filtered(container: type) -> None:
    metadata = {"deep": nest(99, container), "n": 1}
    with PEGIndex() as index:
        index.upsert(["a"], ["x"], np.eye(1), [metadata])
        assert index.get(["a"])[0].metadata == metadata
        assert index.ids({"n": 1}) == ["a"]
        assert json.dumps(index.search([1])[0].metadata) == json.dumps(metadata)


METADATA = st.dictionaries(
    st.text("a[{"),
    st.recursive(
        st.text("a[{"),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text("a["), inner),
    ),
)


def measure_depth(value: Any) -> int:
    if not isinstance(value, dict | list | tuple):
        return 0
    return 1 + max(map(measure_depth, value.values() if isinstance(value, dict) else value), default=0)


@given(METADATA)
def test_metadata_is_refused_exactly_when_it_is_nested_too_deep(metadata: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "MAX_DEPTH", 3)
        try:
            DocumentBatch.validate(["a"], ["x"], [[1.0]], [metadata], 1)
            is_refused = False
        except InvalidInput:
            is_refused = True
    assert is_refused == (measure_depth(metadata) > 3)


def test_shallow_metadata_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Any] = []
    monkeypatch.setattr(validation, "_is_deeper", lambda value, _: walks.append(value))
    metadatas = [{"source": "a.txt", "page": 1, "tags": ["x", "y"]}, None]
    DocumentBatch.validate(["a", "b"], ["x", "y"], np.eye(2), metadatas, 2)
    assert walks == []


@given(
    st.sampled_from(["", " ", "\n", "\ufeff", "{", "x"]),
    METADATA | st.integers(),
    st.sampled_from(["", " ", "}", "{}", "\x00"]),
)
def test_stored_metadata_is_read_as_json_reads_it(before: str, value: Any, after: str) -> None:
    text = before + json.dumps(value) + after

    def read(function: Callable[[str], Any]) -> Any:
        try:
            return function(text)
        except ValueError as error:
            return str(error)

    assert read(tables._parse_json) == read(json.loads)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1e-45, 1.0, -3.4e38, np.nan, np.inf, -np.inf]), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_the_first_row_without_a_direction_is_named(vectors: list[list[float]]) -> None:
    rows = np.array(vectors, dtype=np.float32)
    infinite = [row for row in range(len(rows)) if not np.isfinite(rows[row]).all()]
    zero = [row for row in range(len(rows)) if not rows[row].any()]
    if infinite:
        with pytest.raises(InvalidInput, match=f"vector {infinite[0]} holds NaN or infinity"):
            unit_rows(rows, 3)
    elif zero:
        with pytest.raises(InvalidInput, match=f"vector {zero[0]} is all zeros"):
            unit_rows(rows, 3)
    else:
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(unit_rows(rows, 3), rows / lengths, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-35, 1e-6, 1.0, 1e6, 1e30])
def test_unit_rows_are_as_precise_at_every_length(scale: float) -> None:
    vectors = (rows(200) * scale).astype(np.float32)
    exact = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    assert np.abs(unit_rows(vectors, DIMENSION) - exact).max() < 1e-7


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_blobs_are_the_bytes_of_the_rows(storage: Any) -> None:
    vectors = rows(20)
    vectors[3, 5:] = 0
    vectors[7, :5] = 0
    encoded = vectors.astype("<f4" if storage == "float32" else "<f2")
    assert to_blobs(vectors, storage) == [row.tobytes() for row in encoded]
    np.testing.assert_array_equal(from_blobs(to_blobs(vectors, "float32"), DIMENSION, "float32"), vectors)


@pytest.mark.parametrize("row", [0, 2, 3, 9])
def test_a_lone_surrogate_is_named_among_many_texts(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "STRINGS_AT_ONCE", 3)
    texts = ["中😀"] * 10
    texts[row] = "中\ud83d"
    with pytest.raises(InvalidInput, match=f"text {row} holds a lone surrogate at character 1"):
        validation.validate_strings(texts, "text")


def test_two_halves_of_a_character_in_two_texts_are_refused() -> None:
    with pytest.raises(InvalidInput, match="text 0 holds a lone surrogate at character 0"):
        validation.validate_strings(["\ud83d", "\ude00"], "text")


def test_metadata_that_contains_itself_is_refused() -> None:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    with PEGIndex() as index, pytest.raises(InvalidInput, match="metadata 0"):
        index.upsert(["a"], ["x"], np.eye(1), [metadata])


def test_a_number_of_5000_digits_is_refused() -> None:
    with PEGIndex() as index, pytest.raises(InvalidInput, match="metadata 0"):
        index.upsert(["a"], ["x"], np.eye(1), [{"n": 10**5000}])
