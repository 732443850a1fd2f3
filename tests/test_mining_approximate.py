"""Approximate mining against exact search, and killed at every stage."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from peg_rag.index.exact import exact_search
from peg_rag.training.mining.approximate import ApproximateOptions, search_approximately
from peg_rag.training.mining.search import Floats, Ranking

DIMENSION, SHARD_ROWS, QUERIES, K = 32, 700, 90, 10
OPTIONS = ApproximateOptions(probes=12, query_rows=32)


def make_vectors(seed: int = 0) -> tuple[list[Floats], list[Floats]]:
    """Queries near documents of some topics, in shards of which the last is shorter."""
    generator = np.random.default_rng(seed)
    topics = generator.normal(size=(40, DIMENSION))
    documents = topics[generator.integers(40, size=2_500)] + 0.7 * generator.normal(size=(2_500, DIMENSION))
    queries = documents[generator.integers(2_500, size=QUERIES)] + 0.3 * generator.normal(size=(QUERIES, DIMENSION))
    unit = [(side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in (queries, documents)]
    shards = [unit[1][start : start + SHARD_ROWS] for start in range(0, 2_500, SHARD_ROWS)]
    return [unit[0][:50], unit[0][50:]], shards


def search(work: Path, searched: int = 2_500) -> Ranking:
    queries, documents = make_vectors()
    return search_approximately(work, queries, documents, searched, K, options=OPTIONS)


def test_most_of_the_nearest_are_there_with_their_exact_cosines(tmp_path: Path) -> None:
    queries, documents = make_vectors()
    for searched in (2_500, 1_500):
        ranking = search(tmp_path / str(searched), searched)
        every = np.concatenate(documents)[:searched]
        exact = exact_search(np.concatenate(queries), every, K)
        share = np.mean([len(set(a) & set(b)) / K for a, b in zip(ranking.rows, exact.indices, strict=True)])
        assert share > 0.9
        assert ranking.rows.max() < searched
        expected = np.einsum("qd,qkd->qk", np.concatenate(queries), every[ranking.rows])
        np.testing.assert_allclose(ranking.scores, expected, atol=1e-5)
        assert (np.diff(ranking.scores, axis=1) <= 0).all()


def test_half_precision_and_fewer_documents_than_wanted(tmp_path: Path) -> None:
    queries, documents = make_vectors()
    half = [shard.astype(np.float16) for shard in documents]
    ranking = search_approximately(tmp_path / "half", queries, half, 2_500, K, options=OPTIONS)  # type: ignore[arg-type]
    assert (ranking.scores[:, 0] > 0.8).mean() > 0.8
    few = search_approximately(tmp_path / "few", queries, [documents[0][:6]], 6, K, options=OPTIONS)
    assert few.rows.shape == (QUERIES, 6)
    assert all(sorted(row) == list(range(6)) for row in few.rows.tolist())


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import peg_rag.files
import peg_rag.training.mining.approximate as approximate
from test_mining_approximate import search

writes = 0
whole = peg_rag.files.open_atomically

def count_writes(file):
    global writes
    writes += 1
    if writes == {kill_at}:
        file.with_name(file.name + ".part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(file)

approximate.open_atomically = count_writes
search(Path({work!r}))
"""


@pytest.mark.parametrize("kill_at", [1, 3, 7, 11])  # while lists are trained, codes, candidates and scores are written
def test_killed_work_goes_on_where_it_stopped(kill_at: int, tmp_path: Path) -> None:
    expected = search(tmp_path / "straight")
    work = tmp_path / "killed"
    child = CHILD.format(tests=str(Path(__file__).parent), kill_at=kill_at, work=str(work))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", child], env=environment, check=False).returncode == -signal.SIGKILL
    finished = {file.name: file.stat().st_mtime_ns for file in work.iterdir() if file.suffix in (".npy", ".faiss")}
    assert len(finished) == kill_at - 1
    ranking = search(work)
    assert np.array_equal(ranking.rows, expected.rows)
    assert np.array_equal(ranking.scores, expected.scores)
    assert all((work / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert len(list(work.glob("*.npy"))) + len(list(work.glob("*.faiss"))) == 1 + 4 + 4 + 4
