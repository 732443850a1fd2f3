"""Servers for the tests of stores; a test that needs one is skipped, with the reason, where it cannot be had."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import NO_SERVER, PostgresServer, find_binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL with pgvector, shared by all tests of the session."""
    pytest.importorskip("psycopg_pool")
    pytest.importorskip("pgvector")
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(NO_SERVER)
    folder = make_folder()
    server = PostgresServer(binaries, folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def make_folder() -> Path:
    """A folder with a short path, as a socket's may have 107 characters, which any user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="peg-"))
    folder.chmod(0o755)
    return folder


class MilvusFile:
    """A file of Milvus Lite."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "milvus.db"

    def url(self, collection: str) -> str:
        """The URL of a collection."""
        return f"milvus://{self.file}?collection={collection}"


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> MilvusFile:
    """A file of Milvus Lite, shared by all tests of the session."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return MilvusFile(tmp_path_factory.mktemp("milvus"))
