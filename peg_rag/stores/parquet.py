"""The Parquet files of `peg-rag embed` as documents: vectors that only have to be put into a store.

Columns: `embedding` and `text`; `id`, or `file` and `row`, from which one is made; `metadata`, as a struct or JSON.
Every other column becomes a field of the metadata. Without `id` and `file`, ids begin with the name of the Parquet
file, so two files of one name need another for one of them; where a document came from stands in its `source`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peg_rag.errors import DataError, IndexMismatch, InvalidInput
from peg_rag.extras import require
from peg_rag.index.encodings import Array
from peg_rag.index.store import UNKNOWN
from peg_rag.index.tables import Documents
from peg_rag.job_file import read_job
from peg_rag.stores.base import Store

_EXTRA = "cli"
_ID_ROWS = 65_536  # read at a time
_SAMPLE_ROWS = 1000  # by which a file is told from another of its name


class ParquetDocuments:
    """Documents in one Parquet file, or in all of a folder, in the order of the names.

    Args:
        path: a file, or a folder that was written with `--engine ray`.
        name: what ids begin with in place of the file's name, and before it in a folder.

    Raises:
        InvalidInput: there is no such file, a folder without Parquet files, or where `--engine ray` has not finished;
            or they are vectors of queries.
        DataError: a file is not complete Parquet, or lacks a column; or two rows have one id, or a row has none.
        IndexMismatch: the files hold vectors of different models.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.files = _list_files(self.path)
        self._names = {file: _choose_name(self.path, file, name) for file in self.files}
        _check_complete(self.path, self.files)
        schemas = {file: _read_schema(file) for file in self.files}
        labels = {file: schema.metadata or {} for file, schema in schemas.items()}
        roles = {label.get(b"peg_rag.role", b"document").decode() for label in labels.values()}
        if roles != {"document"}:
            raise InvalidInput(f"{self.path} holds vectors of queries; embed the documents with --role document")
        identities = {label.get(b"peg_rag.identity", UNKNOWN.encode()).decode() for label in labels.values()}
        if len(identities) > 1:
            raise IndexMismatch(f"{self.path} holds vectors of different models: {', '.join(sorted(identities))}")
        self.identity = identities.pop()
        self._rows = _check_ids(self._names)

    def __len__(self) -> int:
        return self._rows

    def export(self, *, batch_size: int = 1000) -> Iterator[Documents]:
        """All documents with their vectors, some at a time.

        Raises:
            DataError: a row lacks a text or a vector, or its metadata is no object; file and row are named.
        """
        for file, name in self._names.items():
            first = 0
            for batch in _read_batches(file, None, batch_size):
                yield _make_documents(file, name, batch, first)
                first += batch.num_rows

    def refuse_other_files(self, target: Store) -> None:
        """Refuse a store that holds another file under the same name, which would lose documents to this one.

        A file that has moved keeps its name: where the earlier place is gone, it is taken for the same. Rows whose own
        metadata say where they are from tell nothing of their file.

        Raises:
            InvalidInput: the other file is still there.
        """
        for file, name in self._names.items():
            if {"id", "file"} & set(_read_schema(file).names):
                continue
            place = str(file.resolve())
            batch = next(_read_batches(file, None, _SAMPLE_ROWS), None)
            if batch is None:
                continue
            sample = _make_documents(file, name, batch, 0)
            sources = {name: fields["source"] for name, fields in zip(sample.ids, sample.metadatas, strict=True)}
            for record in target.get([name for name, source in sources.items() if source == place]):
                other = record.metadata.get("source")
                if isinstance(other, str) and other != place and Path(other).is_file():
                    raise InvalidInput(
                        f"the store holds {record.id!r} from {other}; give {file} a name of its own (--name)"
                    )


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.parquet")) if path.is_dir() else []
    if not files:
        raise InvalidInput(f"{path}: a Parquet file, or a folder with some, is expected")
    return files


def _choose_name(path: Path, file: Path, name: str | None) -> str:
    if name is None:
        return file.stem
    return name if path.is_file() else f"{name}/{file.stem}"


def _check_complete(path: Path, files: Sequence[Path]) -> None:
    """Refuse what an unfinished run has left, for with `delete` a store would lose all that is not there yet."""
    blocks = read_job(path).get("blocks", 0) if path.is_dir() else 0
    if len(files) < blocks:
        raise InvalidInput(
            f"{path} holds {len(files):,} of {blocks:,} files; the run that makes them has not finished. "
            "Run the same `peg-rag embed` again to complete them"
        )


def _read_schema(file: Path) -> Any:
    pa = require("pyarrow", _EXTRA)
    try:
        schema = require("pyarrow.parquet", _EXTRA).read_schema(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a complete Parquet file: {error}") from error
    missing = {"text", "embedding"} - set(schema.names)
    if missing:
        raise DataError(f"{file} has no column {' and '.join(sorted(missing))}; `peg-rag embed` writes both")
    if not _holds_vectors(schema.field("embedding").type):
        kind = schema.field("embedding").type
        raise DataError(f"{file}: the column embedding is of type {kind}; a list of numbers in each row is expected")
    return schema


def _holds_vectors(column: Any) -> bool:
    types = require("pyarrow", _EXTRA).types
    is_list = types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column)
    return bool(is_list and (types.is_floating(column.value_type) or types.is_integer(column.value_type)))


def _check_ids(names: Mapping[Path, str]) -> int:
    """The number of rows, after verifying that each has an id of its own: of two with one id, a store keeps one."""
    places: dict[str, tuple[Path, int]] = {}
    for file, label in names.items():
        first = 0
        for batch in _read_batches(file, ["id", "file", "row"], _ID_ROWS):
            for position, name in enumerate(_read_ids(file, label, batch, first), start=first):
                earlier = places.setdefault(name, (file, position))
                if earlier != (file, position):
                    raise DataError(
                        f"{file}, row {position}: the id {name!r} is that of {earlier[0]}, row {earlier[1]}, too; "
                        "give each row an id of its own"
                    )
            first += batch.num_rows
    return len(places)


def _read_batches(file: Path, columns: Sequence[str] | None, size: int) -> Iterator[Any]:
    """Record batches with those of the columns that the file has; None for all."""
    parquet = require("pyarrow.parquet", _EXTRA).ParquetFile(file)
    with parquet:
        names = parquet.schema_arrow.names
        yield from parquet.iter_batches(batch_size=size, columns=[name for name in columns or names if name in names])


def _make_documents(file: Path, name: str, batch: Any, first: int) -> Documents:
    columns = {name: batch[name].to_pylist() for name in batch.schema.names if name != "embedding"}
    texts = columns.pop("text")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{file}, row {first + position}: the text is {text!r}; a string is expected")
    ids = _read_ids(file, name, batch, first)
    if not {"id", "file"} & columns.keys():
        columns["file"] = [str(file.resolve())] * len(texts)
    columns.pop("id", None)
    metadatas = columns.pop("metadata", [None] * len(texts))
    fields = [_make_fields(file, first + i, metadata) for i, metadata in enumerate(metadatas)]
    for column, values in columns.items():
        for metadata, value in zip(fields, values, strict=True):
            metadata.setdefault("source" if column == "file" else column, value)
    return Documents(ids, texts, _read_vectors(file, batch, first), fields)


def _read_ids(file: Path, label: str, batch: Any, first: int) -> list[str]:
    """The ids of a batch, whose first row is `first`: of the column `id`, or from file (else `label`) and row."""
    count = batch.num_rows
    columns: dict[str, Sequence[Any]] = {"file": [label] * count, "row": range(first, first + count)}
    columns |= {name: batch[name].to_pylist() for name in ("id", "file", "row") if name in batch.schema.names}
    names = ["id"] if "id" in columns else ["file", "row"]
    for name in names:
        for position, value in enumerate(columns[name], start=first):
            if value is None:
                raise DataError(f"{file}, row {position}: the {name} is null; each row needs an id of its own")
    return ["/".join(map(str, parts)) for parts in zip(*(columns[name] for name in names), strict=True)]


def _make_fields(file: Path, row: int, metadata: Any) -> dict[str, Any]:
    try:
        fields = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError as error:
        raise DataError(f"{file}, row {row}: the metadata is no JSON ({error})") from error
    if not isinstance(fields, Mapping | None):
        raise DataError(f"{file}, row {row}: the metadata is {fields!r}; an object is expected")
    return dict(fields or {})


def _read_vectors(file: Path, batch: Any, first: int) -> Array:
    """(rows, dimension) float32."""
    column = batch["embedding"]
    vectors = column.to_numpy(zero_copy_only=False)
    lengths = {0 if vector is None else len(vector) for vector in vectors}
    if column.null_count or len(lengths) > 1:
        raise DataError(
            f"{file}, rows {first} to {first + batch.num_rows - 1}: vectors are missing or differ in length"
        )
    return np.stack(vectors).astype(np.float32)
