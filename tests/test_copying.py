"""Copies of stores and loads of vectors: complete, idempotent, and going on where they were cut short."""

import datetime
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LetterEncoder
from postgres_server import PostgresServer
from store_fixtures import postgres  # noqa: F401

from peg_rag import PEGIndex
from peg_rag.cli.app import run
from peg_rag.errors import DataError, IndexMismatch, InvalidInput, StoreError
from peg_rag.index.tables import Documents
from peg_rag.stores import Store, open_store
from peg_rag.stores.copying import copy_documents
from peg_rag.stores.parquet import ParquetDocuments

SERVERS = ["embedded", "postgres"]
_numbers = itertools.count()


@pytest.fixture(params=SERVERS)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the copy goes."""
    if request.param == "embedded":
        return str(tmp_path / "copy")
    url: str = request.getfixturevalue(request.param).url(f"copy_{next(_numbers)}")
    return url


def make_source(**options: Any) -> PEGIndex:
    index = PEGIndex(identity=LetterEncoder.identity, **options)
    texts = [f"花呗 {i} 银行卡" for i in range(25)]
    ids = [f"d{i}" for i in range(25)]
    index.upsert(ids, texts, LetterEncoder().encode_documents(texts), [{"n": i, "f": 1e300} for i in range(25)])
    return index


def read_all(store: Store) -> dict[str, tuple[str, str, list[float]]]:
    return {
        name: (batch.texts[row], json.dumps(batch.metadatas[row]), batch.vectors[row].round(4).tolist())
        for batch in store.export()
        for row, name in enumerate(batch.ids)
    }


def test_a_copy_is_complete_and_in_order(location: str) -> None:
    source = make_source()
    steps: list[int] = []
    with open_store(location, identity=source.identity) as target:
        report = copy_documents(source, target, batch_size=10, on_progress=steps.append)
        assert (report.documents, report.written, report.deleted, report.others) == (25, 25, 0, 0)
        assert steps == [10, 20, 25]
        assert read_all(target) == read_all(source)
        assert target.ids() == source.ids()
        again = copy_documents(source, target)
        assert (again.documents, again.written) == (25, 0)


def test_a_copy_brings_changes_and_deletions(location: str) -> None:
    source = make_source()
    with open_store(location) as target:
        copy_documents(source, target)
        vector = LetterEncoder().encode_documents(["x"])
        source.upsert(["d3"], ["花呗 3 银行卡"], vector, [{"n": 3, "f": 1e300}])  # another vector only
        source.upsert(["d4"], ["花呗 4 银行卡"], vector, [{"n": 4}])
        source.upsert(["new"], ["new"], vector)
        source.delete(["d0", "d1"])
        report = copy_documents(source, target)
        assert (report.documents, report.written, report.deleted, report.others) == (24, 3, 0, 2)
        report = copy_documents(source, target, delete=True)
        assert (report.written, report.deleted, report.others) == (0, 2, 0)
        assert read_all(target) == read_all(source)


def test_a_cut_copy_goes_on(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source()
    with open_store(location) as target:
        steps: list[int] = []

        def stop(done: int) -> None:
            steps.append(done)
            if done == 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy_documents(source, target, batch_size=5, on_progress=stop)
        assert len(target) == 10
        report = copy_documents(source, target, batch_size=5)
        assert (report.documents, report.written) == (25, 15)
        assert read_all(target) == read_all(source)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_rounded_vectors_count_as_the_same(storage: Any) -> None:
    source = make_source()
    with PEGIndex(storage=storage) as target:
        assert copy_documents(source, target).written == 25
        assert copy_documents(source, target).written == 0


def test_a_copy_refuses_another_model_and_an_empty_source() -> None:
    source = make_source()
    with PEGIndex(identity="other") as target, pytest.raises(IndexMismatch, match=r"letters/.*other"):
        copy_documents(source, target)
    with pytest.raises(InvalidInput, match="empty the target"):
        copy_documents(PEGIndex(), source, delete=True)
    assert len(source) == 25
    assert copy_documents(PEGIndex(), source).others == 25


def test_a_copy_counts_what_arrived() -> None:
    class Forgetful(PEGIndex):
        def persist(self) -> None:
            self.delete(["d7"])

    with Forgetful() as target, pytest.raises(StoreError, match=r"1 of 25 documents are missing.*'d7'"):
        copy_documents(make_source(), target)


# -- files of vectors -------------------------------------------------------------------------------------------------


def write_parquet(target: Path, /, identity: str | None = "m@1", role: str = "document", **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = {"peg_rag.role": role} | ({"peg_rag.identity": identity} if identity else {})
    vectors = columns.pop("embedding", [[1.0, 0.0], [0.0, 1.0]])
    kind = pa.string() if isinstance(vectors[0], str) else pa.list_(pa.float32())
    table = {"text": ["一", "二"], "embedding": pa.array(vectors, kind), **columns}
    target.parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({name: values for name, values in table.items() if values is not None}, metadata=labels), target
    )
    return target


def read_documents(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (batch.ids[row], batch.texts[row], dict(batch.metadatas[row]))
        for batch in ParquetDocuments(path).export(batch_size=1)
        for row in range(len(batch))
    ]


def test_files_of_vectors_are_documents(tmp_path: Path) -> None:
    single = write_parquet(tmp_path / "a.parquet", row=[0, 5])
    place = {"source": str(single.resolve())}
    assert read_documents(single) == [("a/0", "一", {"row": 0} | place), ("a/5", "二", {"row": 5} | place)]
    write_parquet(tmp_path / "out" / "00000-0.parquet", file=["/c/x.parquet"] * 2, row=[0, 1])
    write_parquet(tmp_path / "out" / "00001-0.parquet", file=["/c/y.parquet"] * 2, row=[0, 1])
    documents = ParquetDocuments(tmp_path / "out")
    assert (documents.identity, len(documents)) == ("m@1", 4)
    assert [name for name, _, _ in read_documents(tmp_path / "out")] == [
        f"/c/{x}.parquet/{row}" for x in "xy" for row in (0, 1)
    ]
    assert read_documents(tmp_path / "out")[0][2] == {"source": "/c/x.parquet", "row": 0}
    own = write_parquet(
        tmp_path / "own.parquet", identity=None, id=["p", "q"], metadata=['{"a": [1]}', None], year=[1999, None]
    )
    assert read_documents(own) == [("p", "一", {"a": [1], "year": 1999}), ("q", "二", {"year": None})]
    assert ParquetDocuments(own).identity == "unknown"


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"text": None, "body": ["a", "b"]}, DataError, "no column text"),
        ({"text": ["a", None]}, DataError, "row 1: the text is None"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, DataError, "rows 0 to 1"),
        ({"embedding": [[1.0], None]}, DataError, "rows 0 to 1"),
        ({"metadata": ["[]", "{}"]}, DataError, "row 0: the metadata is"),
        ({"metadata": ["{}", "{"]}, DataError, "row 1: the metadata is no JSON"),
        ({"role": "query"}, InvalidInput, "vectors of queries"),
        ({"id": ["a", None]}, DataError, "row 1: the id is null"),
        ({"id": ["a", "a"]}, DataError, r"row 1: the id 'a' is that of .*a\.parquet, row 0"),
        ({"file": ["x", "x"], "row": [7, 7]}, DataError, "row 1: the id 'x/7' is that of"),
        ({"file": ["x", None], "row": [7, 7]}, DataError, "row 1: the file is null"),
        ({"embedding": ["x", "y"]}, DataError, "a list of numbers in each row is expected"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(error, match=message):
        list(ParquetDocuments(file).export())


def test_an_id_in_two_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_parquet(tmp_path / "out" / "a.parquet", id=["p", "q"])
    write_parquet(tmp_path / "out" / "b.parquet", id=["r", "q"])
    assert run(["load", str(tmp_path / "out"), "--store", str(tmp_path / "kb")]) == 1
    assert not (tmp_path / "kb").exists()


def test_a_document_that_comes_twice_is_counted_once() -> None:
    """As it does when it is replaced during an export."""
    source = make_source()
    batch = next(iter(source.export()))

    class Repeating:
        identity = source.identity

        def __len__(self) -> int:
            return len(batch)

        def export(self, *, batch_size: int = 1000) -> Iterator[Documents]:
            yield batch
            yield batch

    with PEGIndex() as target:
        report = copy_documents(Repeating(), target)
    assert (report.documents, report.written) == (25, 25)


def test_metadata_that_is_no_json_is_the_same_once_it_is_stored(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, 1), None]
    documents = ParquetDocuments(write_parquet(tmp_path / "a.parquet", identity=None, day=days))
    with PEGIndex() as target:
        assert [copy_documents(documents, target).written for _ in range(2)] == [2, 0]


def test_files_must_be_there_and_of_one_model(tmp_path: Path) -> None:
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(InvalidInput, match="Parquet file, or a folder"):
            ParquetDocuments(path)
    write_parquet(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", identity="m@2")
    with pytest.raises(IndexMismatch, match="m@1, m@2"):
        ParquetDocuments(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"b\.parquet is not a complete Parquet file"):
        ParquetDocuments(tmp_path)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def knowledge(tmp_path: Path) -> Path:
    """A store made by `peg-rag index`."""
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "a.txt").write_text("花呗可以更换绑定的银行卡。", encoding="utf-8")
    (documents / "b.txt").write_text("故宫博物院周一闭馆。", encoding="utf-8")
    assert run(["index", str(documents), "--store", str(tmp_path / "kb"), "--model", "peg-mini"]) == 0
    return tmp_path / "kb"


def test_the_commands_search_a_copy(
    knowledge: Path,
    postgres: PostgresServer,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = postgres.url(f"copy_{next(_numbers)}")
    assert run(["copy", str(knowledge), url]) == 0
    assert "2 documents in postgresql:///postgres?collection=copy_" in capsys.readouterr().err
    assert run(["copy", str(knowledge), url, "--delete", "--kind", "hnsw"]) == 0
    assert "0 written, 2 unchanged, 0 deleted" in capsys.readouterr().err
    outputs = []
    for store in (str(knowledge), url):
        assert run(["search", store, "花呗换银行卡", "--json"]) == 0
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    ours, theirs = outputs
    assert [hit["id"] for hit in ours] == [hit["id"] for hit in theirs]
    assert [hit["score"] for hit in ours] == pytest.approx([hit["score"] for hit in theirs], abs=1e-3)
    assert run(["ask", url, "故宫周几闭馆？", "--threshold", "0"]) == 0
    assert "周一" in capsys.readouterr().out
    assert run(["search", postgres.url("never_made"), "花呗"]) == 2
    assert "there is no store at postgresql:///postgres?collection=never_made" in capsys.readouterr().err


def test_the_commands_load_what_they_embedded(
    tmp_path: Path, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("花呗可以更换绑定的银行卡。\n故宫博物院周一闭馆。\n", encoding="utf-8")
    out = tmp_path / "texts.parquet"
    assert run(["embed", str(tmp_path / "texts.txt"), "-o", str(out), "--model", "peg-mini"]) == 0
    for written in (2, 0):
        capsys.readouterr()
        assert run(["load", str(out), "--store", location]) == 0
        assert f"{written} written" in capsys.readouterr().err
    with open_store(location, read_only=True) as store:
        assert store.identity.startswith("peg-mini@")
        assert [hit.id for hit in store.search(text="花呗")] == ["texts/0"]


def test_a_copy_in_a_folder_is_searched_with_the_model_that_made_it(
    knowledge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEG_RAG_MODEL", str(tmp_path / "no model here"))
    assert run(["copy", str(knowledge), str(tmp_path / "copy")]) == 0
    capsys.readouterr()
    assert run(["search", str(tmp_path / "copy"), "花呗换银行卡", "-k", "1", "--json"]) == 0
    assert "花呗" in json.loads(capsys.readouterr().out)["text"]


def test_a_copy_onto_itself_is_refused() -> None:
    assert run(["copy", "kb", "kb"]) == 2


def test_two_files_of_one_name_need_names_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "kb")
    first = write_parquet(tmp_path / "first" / "part.parquet", row=[0, 1])
    second = write_parquet(tmp_path / "second" / "part.parquet", row=[1, 2], text=["三", "四"])
    assert run(["load", str(first), "--store", store]) == 0
    capsys.readouterr()
    assert run(["load", str(second), "--store", store]) == 2
    assert "--name" in capsys.readouterr().err
    with open_store(store, read_only=True) as opened:
        assert [record.text for record in opened.get(where={})] == ["一", "二"]
    assert run(["load", str(second), "--store", store, "--name", "second"]) == 0
    assert run(["load", str(first), "--store", store]) == 0
    with open_store(store, read_only=True) as opened:
        assert opened.ids() == ["part/0", "part/1", "second/1", "second/2"]


def test_a_file_that_moved_keeps_its_ids(tmp_path: Path) -> None:
    store = str(tmp_path / "kb")
    file = write_parquet(tmp_path / "here" / "part.parquet", row=[0, 1])
    assert run(["load", str(file), "--store", store]) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(["load", str(tmp_path / "there"), "--store", store]) == 0
    assert run(["load", str(tmp_path / "there"), "--store", store, "--name", "other"]) == 0
    with open_store(store, read_only=True) as opened:
        assert opened.ids() == ["part/0", "part/1", "other/part/0", "other/part/1"]


def test_a_file_whose_rows_name_their_sources_is_loaded_again(tmp_path: Path) -> None:
    document = tmp_path / "handbook.txt"
    document.write_text("花呗", encoding="utf-8")
    file = write_parquet(tmp_path / "part.parquet", row=[0, 1], source=[str(document)] * 2)
    for _ in range(2):
        assert run(["load", str(file), "--store", str(tmp_path / "kb")]) == 0
