"""PEGIndex against a brute-force model, and with every kind of invalid input."""

import math
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_filters import matches

from peg_rag.errors import DamagedIndex, IndexBusy, IndexMismatch, InvalidInput, PegRagError
from peg_rag.index import PEGIndex, compaction, store
from peg_rag.index.database import BLOCK, _FairSemaphore

DIMENSION = 4


def rows(n: int, dimension: int = DIMENSION) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, dimension)).astype(np.float32)


def fill_index(index: PEGIndex, n: int, dimension: int = DIMENSION) -> np.ndarray:
    vectors = rows(n, dimension)
    index.upsert(
        [f"d{i}" for i in range(n)],
        [f"第{i}篇 花呗" for i in range(n)],
        vectors,
        [{"i": i, "even": i % 2 == 0, "tenth": f"t{i % 10}"} for i in range(n)],
    )
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


# -- the index against a model ----------------------------------------------------------------------------------------

IDS = ["a", "b", "c", "d", "文档", "x" * 50]
FILTERS: list[dict[str, Any]] = [{}, {"n": {"$gte": 2}}, {"$not": {"n": 1}}, {"n": {"$in": [0, 3]}}, {"n": 9}]
components = st.integers(-3, 3)
vectors4 = st.lists(components, min_size=DIMENSION, max_size=DIMENSION).filter(any)
texts = st.text(alphabet="花呗还款绑定卡 ab", max_size=6)


class IndexModel(RuleBasedStateMachine):
    """Random writes and reads; the model is a dict in the order of writing."""

    storage: Literal["float32", "float16", "int8"] = "float32"
    path: Path | None = None

    @initialize()
    def open(self) -> None:
        self.index = PEGIndex(storage=self.storage)
        self.model: dict[str, tuple[str, np.ndarray, dict[str, Any]]] = {}

    @rule(rows=st.lists(st.tuples(st.sampled_from(IDS), texts, vectors4, st.integers(0, 3)), max_size=5))
    def upsert(self, rows: list[tuple[str, str, list[int], int]]) -> None:
        self.index.upsert(
            [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows], dtype=float).reshape(-1, 4),
            [{"n": r[3]} for r in rows],
        )  # fmt: skip
        last = {r[0]: place for place, r in enumerate(rows)}
        for place, (name, text, vector, n) in enumerate(rows):
            if last[name] == place:
                self.model.pop(name, None)
                unit = np.array(vector, dtype=np.float64)
                self.model[name] = (text, unit / np.linalg.norm(unit), {"n": n})

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=3))
    def delete(self, ids: list[str]) -> None:
        present = {name for name in ids if name in self.model}
        assert self.index.delete(ids) == len(present)
        for name in present:
            del self.model[name]

    @rule(where=st.sampled_from(FILTERS[1:]))
    def delete_where(self, where: dict[str, Any]) -> None:
        matching = [name for name, (_, _, metadata) in self.model.items() if matches(metadata, where)]
        assert self.index.delete(where=where) == len(matching)
        for name in matching:
            del self.model[name]

    @rule()
    def persist(self) -> None:
        self.index.persist()

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.model = {}

    @rule(vector=vectors4, k=st.integers(0, 8), where=st.sampled_from(FILTERS), least=st.none() | st.floats(-1, 1))
    def search(self, vector: list[int], k: int, where: dict[str, Any], least: float | None) -> None:
        query = np.array(vector, dtype=np.float64) / np.linalg.norm(vector)
        cosines = {
            name: float(unit @ query) for name, (_, unit, metadata) in self.model.items() if matches(metadata, where)
        }
        hits = self.index.search(vector, k=k, where=where)
        best = sorted(cosines.values(), reverse=True)[:k]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)
        for hit in hits:
            text, _, metadata = self.model[hit.id]
            assert (hit.text, hit.metadata) == (text, metadata)
            assert hit.score == pytest.approx(cosines[hit.id], abs=1e-5)
            assert hit.scores == {"dense": hit.score}
        assert len({hit.id for hit in hits}) == len(hits)
        if least is not None:
            above = self.index.search(vector, k=k, where=where, threshold=least)
            assert above == [hit for hit in hits if hit.score >= least]

    @rule(text=texts, where=st.sampled_from(FILTERS))
    def search_text(self, text: str, where: dict[str, Any]) -> None:
        characters = set(text.replace(" ", "")) - set("ab")
        hits = self.index.search(text=text, k=10, where=where)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        hit_ids = {hit.id for hit in hits}
        for name, (body, _, metadata) in self.model.items():
            if not matches(metadata, where):
                assert name not in hit_ids
            elif characters & set(body):
                assert name in hit_ids

    @rule(vector=vectors4, text=texts, k=st.integers(1, 8), where=st.sampled_from(FILTERS))
    def search_hybrid(self, vector: list[int], text: str, k: int, where: dict[str, Any]) -> None:
        hits = self.index.search(vector, text, k=k, where=where)
        passing = [name for name, (_, _, metadata) in self.model.items() if matches(metadata, where)]
        assert len(hits) == min(k, len(passing))
        lexical = {hit.id: hit.score for hit in self.index.search(text=text, k=100)}
        query = np.array(vector, dtype=np.float64) / np.linalg.norm(vector)
        for hit in hits:
            assert set(hit.scores) == {"dense", "lexical", "fused"}
            assert hit.scores["dense"] == pytest.approx(float(self.model[hit.id][1] @ query), abs=1e-5)
            assert hit.scores["lexical"] == pytest.approx(lexical.get(hit.id, 0.0), abs=1e-5)

    @invariant()
    def documents_are_those_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        assert len(self.index) == len(self.model)
        assert self.index.ids() == list(self.model)
        assert [record.text for record in self.index.get(list(self.model))] == [row[0] for row in self.model.values()]
        for where in FILTERS:
            expected = [name for name, row in self.model.items() if matches(row[2], where)]
            assert self.index.ids(where) == expected
            assert self.index.count(where) == len(expected)
            assert [record.id for record in self.index.get(where=where, limit=2)] == expected[:2]

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class EagerCompaction(IndexModel):
    """The same, with a compaction at nearly every write."""

    @initialize()
    def open(self) -> None:
        super().open()
        self.before = compaction.MIN_ROWS
        compaction.MIN_ROWS = 2

    def teardown(self) -> None:
        compaction.MIN_ROWS = self.before
        super().teardown()


TestEagerCompaction = EagerCompaction.TestCase
TestEagerCompaction.settings = TestIndexModel.settings


# -- kinds and storage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_every_kind_agrees_with_brute_force(kind: Any, tmp_path: Path) -> None:
    if kind != "flat":
        pytest.importorskip("faiss")
    n, dimension = 6000, 16
    with PEGIndex(tmp_path / "kb", kind=kind) as index:
        unit = fill_index(index, n, dimension)
        index.persist()
        index.upsert(["new"], ["新"], -unit[:1], [{"i": -1, "even": True}])  # newer than the vector file
        index.delete([f"d{i}" for i in range(500)])
        queries = unit[1000:1020] + 0.2 * rows(20, dimension)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        everything = {f"d{i}": unit[i] for i in range(500, n)} | {"new": -unit[0]}
        for where, passes in (
            (None, lambda i: True),
            ({"even": True}, lambda i: i % 2 == 0),
            ({"i": {"$lt": 530}}, lambda i: i < 530),
        ):
            allowed = {name: v for name, v in everything.items() if passes(int(name[1:]) if name != "new" else -2)}
            names, matrix = list(allowed), np.array(list(allowed.values()))
            correct = 0
            for query, hits in zip(queries, index.search_batch(queries, k=10, where=where), strict=True):
                best = [names[i] for i in np.argsort(-(matrix @ query))[:10]]
                correct += len({hit.id for hit in hits} & set(best))
                for hit in hits:
                    assert hit.score == pytest.approx(float(allowed[hit.id] @ query), abs=1e-4)
            assert correct >= (200 if kind == "flat" else 180)
        (hit,) = index.search(-unit[0], k=1)
        assert hit.id == "new"


@pytest.mark.parametrize(("storage", "error"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 2e-2)])
def test_scores_are_as_accurate_as_the_storage(storage: Any, error: float, tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb", storage=storage) as index:
        unit = fill_index(index, 50, 32)
        before = [[(hit.id, hit.score) for hit in hits] for hits in index.search_batch(unit, k=50)]
        for query, hits in zip(unit, before, strict=True):
            assert [s for _, s in hits] == pytest.approx([float(unit[int(i[1:])] @ query) for i, _ in hits], abs=error)
            assert hits[0][1] == pytest.approx(1.0, abs=error)
        index.persist()
        after = [[(hit.id, hit.score) for hit in hits] for hits in index.search_batch(unit, k=50)]
        for old, new in zip(before, after, strict=True):
            assert dict(old) == pytest.approx(dict(new), abs=1e-6)
    with PEGIndex(tmp_path / "kb") as index:
        assert index.storage == storage


def test_persist_converts_an_index_opened_as_another_kind(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with PEGIndex(tmp_path / "kb") as index:
        unit = fill_index(index, 300)
        index.persist()
    with PEGIndex(tmp_path / "kb", kind="hnsw") as index:
        assert index.search(unit[7], k=1)[0].id == "d7"
        index.persist()
        assert index.search(unit[7], k=1)[0].id == "d7"
    with PEGIndex(tmp_path / "kb") as index:
        assert index.kind == "hnsw"


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_a_faiss_file_is_extended_until_it_has_too_many_tombstones(kind: Any, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    path, n = tmp_path / "kb", 7500
    with PEGIndex(path, kind=kind) as index:
        unit = fill_index(index, n)
        index.persist()
        index.upsert(["late"], ["x"], -unit[:1])
        index.delete([f"d{i}" for i in range(100)])
        index.persist()
        assert faiss.read_index(str(find_vector_file(path))).ntotal == n + 1  # with the tombstones
        assert len(index.search(unit[0], k=10**6, mode="dense")) <= n - 99
        index.persist()
        assert find_vector_file(path).name == "vectors-2"  # no change, no compaction
    with PEGIndex(path) as index:
        assert [hit.id for hit in index.search_batch([-unit[0], unit[5000]], k=1)[0]] == ["late"]
        assert not {"d0", "d99"} & {hit.id for hit in index.search(unit[0], k=500)}
        index.delete(where={"i": {"$lt": 2000}})
        index.persist()
        assert faiss.read_index(str(find_vector_file(path))).ntotal == n - 2000 + 1
        assert index.search(unit[2001], k=1)[0].id == "d2001"


def test_faiss_can_read_the_segment_file(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    with PEGIndex(tmp_path / "kb", kind="hnsw") as index:
        fill_index(index, 300)
        index.persist()
    assert faiss.read_index(str(next((tmp_path / "kb").glob("vectors-*")))).ntotal == 300


# -- valid and invalid input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "kb"])
def test_unusual_documents_are_returned_unchanged(path: str | None, tmp_path: Path) -> None:
    documents = {
        "长" * 3500: "普通文本",  # an id of more than 10 kB
        "👩‍👩‍👧 emoji": "😀🎉",
        "שלום עליכם": "مرحبا بالعالم\u200f",
        "nul\x00id": "nul\x00text",
        "'; DROP TABLE documents; --": "quotes \" ' \\ and\nlines\r\n",
        "../../escape": "",
        " ": " \t ",
    }
    metadata = {"big": "x" * 2**20, "列表": [1, 2.5, None, {"深": ["嵌套"]}], "无": None, 'q"k': True, "int": 2**70}
    with PEGIndex(None if path is None else tmp_path / path) as index:
        index.upsert(list(documents), list(documents.values()), rows(len(documents)), [metadata] * len(documents))
        records = index.get(list(documents))
        assert [(r.id, r.text, r.metadata) for r in records] == [(i, t, metadata) for i, t in documents.items()]
        assert {hit.id for hit in index.search(rows(1)[0], k=100)} == set(documents)
        assert index.count({'q"k': True}) == len(documents)
        assert index.delete(["nul\x00id"]) == 1
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) in ([], ["index.sqlite"])


def test_the_last_document_of_a_repeated_id_is_stored() -> None:
    with PEGIndex() as index:
        index.upsert(["a", "b", "a"], ["1", "2", "3"], rows(3))
        assert [(r.id, r.text) for r in index.get(["a", "b"])] == [("a", "3"), ("b", "2")]
        assert index.delete(["a", "a", "missing"]) == 1


GOOD: dict[str, Any] = {"ids": ["a", "b"], "texts": ["x", "y"], "vectors": np.eye(2), "metadatas": [{}, None]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.array([[1, 0], [0, math.nan]])}, "vector 1 holds NaN"),
        ({"vectors": np.array([[1, math.inf], [0, 1]])}, "vector 0 holds NaN or infinity"),
        ({"vectors": np.array([[1, 0], [0, 0]])}, "vector 1 is all zeros"),
        ({"vectors": np.eye(3)[:2]}, "3 dimensions, the index has 2"),
        ({"vectors": np.eye(2)[:1]}, "1 vectors"),
        ({"vectors": np.ones(2)}, "shape"),
        ({"vectors": [[1, 0], [1]]}, "matrix of numbers"),
        ({"vectors": [["a", "b"], ["c", "d"]]}, "matrix of numbers"),
        ({"vectors": np.empty((2, 0))}, "dimensions"),
        ({"ids": ["a"]}, "1 ids"),
        ({"ids": "ab"}, r"ids is a single str.*\['ab'\]"),
        ({"ids": ["a", ""]}, "id 1 is empty"),
        ({"ids": ["a", 7]}, r"ids\[1\] is of type int \(7\)"),
        ({"ids": ["a", "\ud800"]}, "id 1 holds a lone surrogate"),
        ({"ids": {"a": 1, "b": 2}}, "ids is of type dict, but a list of strings"),
        ({"ids": 7}, "ids is of type int, but a list of strings"),
        ({"texts": "xy"}, "texts is a single str"),
        ({"texts": ["x", None]}, r"texts\[1\] is of type NoneType"),
        ({"texts": ["x\udfff", "y"]}, "text 0 holds a lone surrogate at character 1"),
        ({"metadatas": [{}]}, "1 metadatas"),
        ({"metadatas": [{}, {"x": object()}]}, "metadata 1 cannot be kept as JSON"),
        ({"metadatas": [{}, {"x": math.nan}]}, "metadata 1 cannot be kept as JSON"),
        ({"metadatas": [{1: 2}, {}]}, "metadata 0 must be a dict with string keys"),
        ({"metadatas": [{}, {"x": "\ud800"}]}, "metadata 1 holds a lone surrogate"),
        ({"metadatas": [[], {}]}, "metadata 0 must be a dict"),
    ],
)
def test_invalid_documents_name_the_row_and_write_nothing(change: dict[str, Any], message: str) -> None:
    with PEGIndex(dimension=2) as index:
        with pytest.raises(InvalidInput, match=message):
            index.upsert(**(GOOD | change))
        assert len(index) == 0
        index.upsert(**GOOD)
        assert len(index) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.search(), "a vector .* or both"),
        (lambda i: i.search([1, 0], mode="hybrid"), "text"),
        (lambda i: i.search([1, 0], mode="lexical"), "text"),
        (lambda i: i.search(text="x", mode="dense"), "vector"),
        (lambda i: i.search(text="x", mode="hybrid"), "vector"),
        (lambda i: i.search([1, 0], mode="sparse"), "unknown mode 'sparse'"),
        (lambda i: i.search([1, 0], k=-1), "k is a whole number"),
        (lambda i: i.search([1, 0], k=2.5), "k is a whole number"),
        (lambda i: i.search([1, 0], k=True), "k is a whole number"),
        (lambda i: i.search([1, 0], "x", fetch_k=-1), "fetch_k"),
        (lambda i: i.search([1, 0, 0]), "3 dimensions, the index has 2"),
        (lambda i: i.search([0, 0]), "all zeros"),
        (lambda i: i.search([math.nan, 0]), "NaN"),
        (lambda i: i.search([1, 0], where={"a": {"$near": 1}}), "unknown operator"),
        (lambda i: i.search([1, 0], "x", weights={"sparse": 1}), "sparse"),
        (lambda i: i.search([1, 0], "x", fusion="sum"), "unknown fusion method"),
        (lambda i: i.search_batch([[1, 0], [0, 1]], ["x"]), "2 query vectors but 1 query texts"),
        (lambda i: i.search_batch(texts="x"), "query texts is a single str"),
        (lambda i: i.mmr([1, 0], diversity=2), "between 0 and 1"),
        (lambda i: i.get(), "either ids or a filter"),
        (lambda i: i.get(["a"], where={}), "either ids or a filter"),
        (lambda i: i.get("ab"), "ids is a single str"),
        (lambda i: i.get(where={}, limit=-1), "limit"),
        (lambda i: i.delete(), "either ids or"),
        (lambda i: i.delete(where={}), "clear"),
        (lambda i: i.delete(["a"], where={"a": 1}), "either ids or"),
    ],
)
def test_invalid_calls(call: Any, message: str) -> None:
    with PEGIndex() as index:
        index.upsert(**GOOD)
        with pytest.raises(InvalidInput, match=message):
            call(index)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "annoy"},
        {"storage": "int4"},
        {"dimension": 0},
        {"dimension": 1.5},
        {"tokenizer": "x"},
        {"read_only": True},
    ],
)
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        PEGIndex(**options)


def test_an_empty_index_returns_no_hits(tmp_path: Path) -> None:
    for path in (None, tmp_path / "kb"):
        with PEGIndex(path) as index:
            assert len(index) == 0
            assert index.ids() == []
            assert index.get(["a"]) == []
            assert index.dimension is None
            assert index.search([1, 0, 0]) == index.search(text="花呗") == index.search([1, 0], "花") == []
            assert index.search_batch(np.empty((0, 3))) == []
            assert index.search_batch(texts=[]) == []
            assert index.search_batch(np.eye(3), k=5) == [[], [], []]
            assert index.mmr([1, 0, 0]) == []
            assert index.delete(["a"]) == 0
            assert index.delete(where={"a": 1}) == 0
            index.upsert([], [], [])
            index.persist()
            index.clear()


def test_k_of_zero_and_k_above_the_number_of_documents() -> None:
    with PEGIndex() as index:
        fill_index(index, 5)
        assert index.search(rows(1)[0], k=0) == index.search(text="花呗", k=0) == []
        assert len(index.search(rows(1)[0], k=10**9)) == len(index.search(rows(1)[0], "花呗", k=10**9)) == 5


def test_a_threshold_is_not_rounded() -> None:
    with PEGIndex() as index:
        index.upsert(["a"], ["x"], [[1, 0]])
        assert [hit.score for hit in index.search([0, 1], threshold=0.0)] == [0.0]
        assert index.search([0, 1], threshold=1e-200) == []


def test_equal_scores_are_ordered_by_age() -> None:
    with PEGIndex() as index:
        index.upsert([f"d{i}" for i in range(50)], ["花"] * 50, np.ones((50, 3)))
        for options in ({"vector": [1, 1, 1]}, {"text": "花"}, {"vector": [1, 1, 1], "text": "花"}):
            assert [hit.id for hit in index.search(**options, k=7)] == [f"d{i}" for i in range(7)]


def test_a_batch_equals_single_queries() -> None:
    with PEGIndex() as index:
        unit = fill_index(index, 300)
        queries, words = unit[:20], [f"第{i}篇" for i in range(20)]
        for options in ({"vectors": queries}, {"texts": words}, {"vectors": queries, "texts": words}):
            batch = index.search_batch(**options, k=5, where={"even": True})
            for i, hits in enumerate(batch):
                one = index.search(
                    *(queries[i] if "vectors" in options else None, words[i] if "texts" in options else None),
                    k=5, where={"even": True},
                )  # fmt: skip
                assert [hit.id for hit in one] == [hit.id for hit in hits]
                assert [hit.score for hit in one] == pytest.approx([hit.score for hit in hits], abs=1e-6)


def test_mmr_by_hand() -> None:
    """Two near-duplicates and one other: with diversity the other document comes second."""
    with PEGIndex() as index:
        index.upsert(["best", "twin", "other"], ["", "", ""], [[1, 0.1, 0], [1, 0.11, 0], [0.6, 0, 1]])
        assert [hit.id for hit in index.mmr([1, 0, 0], k=2, diversity=0)] == ["best", "twin"]
        assert [hit.id for hit in index.mmr([1, 0, 0], k=2, diversity=0.7)] == ["best", "other"]
        assert [hit.id for hit in index.mmr([1, 0, 0], k=3, fetch_k=1, diversity=0)] == ["best", "twin", "other"]
        assert [hit.id for hit in index.mmr([1, 0, 0], k=3, threshold=0.9, diversity=0)] == ["best", "twin"]


def test_mmr_equals_its_definition() -> None:
    with PEGIndex() as index:
        unit = fill_index(index, 60, 8)
        query = unit[3] + 0.3 * unit[7]
        query /= np.linalg.norm(query)
        near = [hit.id for hit in index.search(query, k=20)]
        selection: list[str] = []
        while len(selection) < 8:

            def gain(name: str) -> float:
                v = unit[int(name[1:])]
                return 0.5 * float(v @ query) - 0.5 * max((float(v @ unit[int(c[1:])]) for c in selection), default=0.0)

            selection.append(max((name for name in near if name not in selection), key=gain))
        assert [hit.id for hit in index.mmr(query, k=8, fetch_k=20)] == selection


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_compared_on_opening(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "identity": "peg-mini@1/mean/256",
        "dimension": 2,
        "tokenizer": "bigram",
        "storage": "float16",
    }
    with PEGIndex(tmp_path / "kb", **options) as index:
        index.upsert(**GOOD)
    others: dict[str, Any] = {"identity": "TownsWu/PEG", "dimension": 3, "tokenizer": "jieba", "storage": "int8"}
    for name, other in others.items():
        with pytest.raises(IndexMismatch) as error:
            PEGIndex(tmp_path / "kb", **{name: other})
        assert str(options[name]) in str(error.value)
        assert str(other) in str(error.value)
        assert ";" in str(error.value)
    with PEGIndex(tmp_path / "kb") as index:
        assert (index.identity, index.dimension, index.tokenizer, index.storage) == tuple(options.values())
        assert len(index) == 2


def test_an_unnamed_model_stays_unknown(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        assert index.identity == "unknown"
        index.upsert(**GOOD)
    with pytest.raises(IndexMismatch, match="'unknown', not 'peg-mini'"):
        PEGIndex(tmp_path / "kb", identity="peg-mini")


def test_an_empty_index_adopts_the_first_identity(tmp_path: Path) -> None:
    PEGIndex(tmp_path / "kb").close()
    with PEGIndex(tmp_path / "kb", identity="peg-mini", tokenizer="bigram") as index:
        assert index.identity == "peg-mini"
    with pytest.raises(IndexMismatch):
        PEGIndex(tmp_path / "kb", identity="other")


def test_read_only_refuses_writes(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no index"):
        PEGIndex(tmp_path / "kb", read_only=True)
    assert not (tmp_path / "kb").exists()
    with PEGIndex(tmp_path / "kb") as index:
        index.upsert(**GOOD)
        with PEGIndex(tmp_path / "kb", read_only=True) as reader:
            assert len(reader.search([1, 0])) == 2
            for write in (lambda: reader.upsert(**GOOD), lambda: reader.delete(["a"]), reader.persist, reader.clear):
                with pytest.raises(PegRagError, match="read_only"):
                    write()
            index.delete(["a"])
            assert [hit.id for hit in reader.search([1, 0])] == ["b"]


def test_new_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power loss could remove a new index as a whole, with its acknowledged writes."""
    synced: list[Path] = []
    monkeypatch.setattr(store, "sync_folder", synced.append)
    with PEGIndex(tmp_path / "a" / "b" / "kb"):
        assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    with PEGIndex(tmp_path / "a" / "b" / "kb"):
        assert len(synced) == 3


def test_every_write_is_synced_before_it_returns(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        for block in (index._db.reading(), index._db.writing()):
            with block as connection:
                assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
                assert connection.execute("PRAGMA fullfsync").fetchone() == (1,)
                assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_closed_index_raises() -> None:
    index = PEGIndex()
    index.close()
    index.close()
    with pytest.raises(PegRagError, match="closed"):
        index.search([1.0])


def test_a_path_to_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kb").write_text("x")
    with pytest.raises(InvalidInput, match="is a file"):
        PEGIndex(tmp_path / "kb")


# -- compaction -------------------------------------------------------------------------------------------------------


def test_writes_trigger_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MIN_ROWS", 50)
    with PEGIndex(tmp_path / "kb") as index:
        for start in range(0, 300, 30):
            index.upsert([f"d{i}" for i in range(start, start + 30)], ["花"] * 30, rows(300)[start : start + 30])
        files = [p.name for p in (tmp_path / "kb").glob("vectors-*")]
        assert len(files) == 1
        assert int(files[0].split("-")[1]) > 1
        assert index.delete([f"d{i}" for i in range(299)]) == 299
        assert [hit.id for hit in index.search(rows(300)[0], k=5)] == ["d299"]


def test_compaction_merges_sparse_blocks(tmp_path: Path) -> None:
    """After many updates the live keys are far apart; compaction moves the documents together and loses none."""
    n = 3 * BLOCK
    with PEGIndex(tmp_path / "kb") as index:
        unit = fill_index(index, n)
        index.delete(where={"i": {"$gte": 100}})
        before = [(hit.id, hit.score) for hit in index.search(unit[5], "第5篇", k=100)]
        index.persist()
        with index._snapshots.open() as (_, snapshot):
            assert len(snapshot.blocks.numbers) == 1
        after = [(hit.id, hit.score) for hit in index.search(unit[5], "第5篇", k=100)]
        assert len(before) == 100
        assert dict(before) == pytest.approx(dict(after))
        assert index.ids() == [f"d{i}" for i in range(100)]
    with PEGIndex(tmp_path / "kb") as index:
        assert index.search(unit[7], k=1)[0].id == "d7"


# -- damage -----------------------------------------------------------------------------------------------------------


def create_persisted(path: Path, kind: Any = "flat") -> np.ndarray:
    with PEGIndex(path, kind=kind) as index:
        unit = fill_index(index, 300)
        index.persist()
    return unit


def find_vector_file(path: Path) -> Path:
    (file,) = path.glob("vectors-*")
    return file


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "older", "empty"])
def test_a_damaged_vector_file_is_rebuilt(
    harm: str, read_only: bool, kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "hnsw":
        pytest.importorskip("faiss")
    path = tmp_path / "kb"
    unit = create_persisted(path, kind)
    file = find_vector_file(path)
    content = file.read_bytes()
    match harm:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(content[:-100])
        case "flipped":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        case "older":
            with PEGIndex(path) as index:
                index.upsert(["late"], ["x"], -unit[:1])
                index.persist()
            find_vector_file(path).write_bytes(content)
        case "empty":
            file.write_bytes(b"")
    with PEGIndex(path, read_only=read_only) as index:
        hits = index.search_batch(unit[:50], k=1)
        assert [hit.id for (hit,) in hits] == [f"d{i}" for i in range(50)]
        assert len(index.search(unit[0], k=1000)) == 300 + (harm == "older")
    assert caplog.text.count("is rebuilt") == 1
    caplog.clear()
    if not read_only:
        with PEGIndex(path) as index:
            assert index.search(unit[3], k=1)[0].id == "d3"
        assert caplog.text == ""


@pytest.mark.parametrize("harm", ["garbage", "header", "truncated", "middle", "foreign", "empty read-only"])
def test_damage_to_the_sqlite_file_names_it(harm: str, tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "kb"
    create_persisted(path)
    file = path / "index.sqlite"
    content = file.read_bytes()
    match harm:
        case "garbage":
            file.write_bytes(b"not a database" * 1000)
        case "header":
            file.write_bytes(b"\xff" * 100 + content[100:])
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "middle":
            file.write_bytes(content[:8192] + b"\xa5" * (len(content) - 8192))
        case "foreign":
            file.unlink()
            sqlite3.connect(file).execute("CREATE TABLE t (x)").connection.close()
        case _:
            file.write_bytes(b"")

    def use() -> None:
        with PEGIndex(path, read_only=harm == "empty read-only") as index:
            index.search(rows(1)[0], "第5篇", k=300)
            index.persist()

    with pytest.raises(DamagedIndex, match=r"index\.sqlite"):
        use()


def test_a_schema_from_the_future_is_refused(tmp_path: Path) -> None:
    import sqlite3

    create_persisted(tmp_path / "kb")
    connection = sqlite3.connect(tmp_path / "kb" / "index.sqlite")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(IndexMismatch, match="version 99"):
        PEGIndex(tmp_path / "kb")


def test_stray_files_of_a_crash_are_removed(tmp_path: Path) -> None:
    unit = create_persisted(tmp_path / "kb")
    for name in ("vectors-99", "vectors-2.part"):
        (tmp_path / "kb" / name).write_bytes(b"half written")
    with PEGIndex(tmp_path / "kb") as index:
        index.upsert(["late"], ["x"], -unit[:1])
        index.persist()
        assert index.search(-unit[0], k=1)[0].id == "late"
    assert sorted(p.name for p in (tmp_path / "kb").glob("vectors-*")) == ["vectors-2"]


def test_a_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        unit = fill_index(index, 100)
        index._db.timeout_s = 1
        with index._db._borrow_connection() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(OSError, match=r"index is as it was before.*index\.sqlite") as error:
            index.upsert([f"n{i}" for i in range(100)], ["长文" * 500] * 100, rows(100), None)
        assert not isinstance(error.value, PegRagError)
        assert len(index) == 100
        assert index.search(unit[9], k=1)[0].id == "d9"
        assert index.get(["n0"]) == []
        with index._db._borrow_connection() as connection:
            connection.execute("PRAGMA max_page_count=1000000")
        index.upsert(["n0"], ["新"], rows(1))
        assert len(index) == 101


def test_a_second_writer_waits_and_times_out(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb", dimension=2) as first, PEGIndex(tmp_path / "kb", timeout_s=0.2) as second:
        with first._db.writing(), pytest.raises(IndexBusy, match="timeout_s"):
            second.upsert(**GOOD)
        second.upsert(**GOOD)
        assert len(first) == 2


def test_the_semaphore_is_fair_and_times_out() -> None:
    semaphore = _FairSemaphore(1)
    order: list[int] = []
    threads: list[threading.Thread] = []
    assert semaphore.acquire(1)
    assert not semaphore.acquire(0.01)

    def use(number: int) -> None:
        semaphore.acquire(30)
        order.append(number)
        semaphore.release()

    for number in range(5):
        threads.append(threading.Thread(target=use, args=(number,)))
        threads[-1].start()
        while len(semaphore._waiting) < number + 1:
            time.sleep(0.001)
    semaphore.release()
    acquired = semaphore.acquire(30)  # requested last, acquired last
    for thread in threads:
        thread.join(30)
    assert acquired
    assert order == list(range(5))
