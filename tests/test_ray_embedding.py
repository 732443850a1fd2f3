"""`peg-rag embed --engine ray`: every row exactly once, whatever dies, and a run that goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHARACTERS
from sample_files import static_model

from peg_rag import PEGEncoder, ray_embedding
from peg_rag.cli.app import run
from peg_rag.errors import DataError, InvalidInput
from peg_rag.ray_embedding import EncoderSettings, embed_corpus
from peg_rag.stores.parquet import ParquetDocuments

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ray = pytest.importorskip("ray", reason="needs peg-rag[ray]")

TEXTS = tuple(f"第{i}条：门票{i}元" for i in range(1000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("models") / "small", CHARACTERS))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, the folder and the worker as they are, without the cluster between them, which takes long to start."""

    def embed_blocks(
        pending: list[Any],
        folder: Path,
        settings: EncoderSettings,
        role: str,
        identity: str,
        pool: object,
        progress: Any,
    ) -> None:
        worker = ray_embedding._Worker(str(folder), settings, role, identity)
        results = worker(pa.Table.from_pylist([asdict(block) for block in pending])).to_pylist()
        ray_embedding._report_results(results, folder, progress)

    monkeypatch.setattr(ray_embedding, "_embed_blocks", embed_blocks)
    monkeypatch.setattr(ray_embedding, "_connect", nullcontext)


def write_corpus(folder: Path, texts: Sequence[str | None] = TEXTS, files: int = 3, group: int = 100) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(files):
        table = pa.table(
            {"text": pa.array(texts[number::files], pa.string()), "n": list(range(len(texts[number::files])))}
        )
        paths.append(folder / f"{number}.parquet")
        pq.write_table(table, paths[-1], row_group_size=group)
    return paths


def read_rows(out: Path) -> list[tuple[str, int, str]]:
    rows = []
    for file in sorted(out.glob("*.parquet")):
        table = pq.read_table(file)
        names = [Path(name).name for name in table["file"].to_pylist()]
        rows += list(zip(names, table["row"].to_pylist(), table["text"].to_pylist(), strict=True))
    return rows


def expected_rows(texts: Sequence[str] = TEXTS, files: int = 3) -> list[tuple[str, int, str]]:
    return [(f"{n}.parquet", row, text) for n in range(files) for row, text in enumerate(texts[n::files])]


def test_every_row_is_embedded_once_as_in_one_process(one_process: None, model: str, tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "corpus")
    calls: list[tuple[int, int]] = []
    report = embed_corpus(
        files,
        tmp_path / "out",
        settings=EncoderSettings(model),
        block_rows=130,  # across the row groups of 100
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert (report.texts, report.bad_rows, report.new_texts, report.blocks) == (1000, 0, 1000, 9)
    assert read_rows(tmp_path / "out") == expected_rows()
    assert calls[0] == (0, 1000)
    assert calls[-1] == (1000, 1000)
    table = pq.read_table(tmp_path / "out" / "00001-000000000130.parquet")
    assert table["row"].to_pylist()[0] == 130
    with PEGEncoder(model) as encoder:
        assert np.array_equal(
            np.stack(table["embedding"].to_numpy()), encoder.encode_documents(table["text"].to_pylist())
        )
        assert table.schema.metadata[b"peg_rag.identity"].decode() == encoder.identity


def test_rows_without_a_text_go_into_a_file_of_their_own(one_process: None, model: str, tmp_path: Path) -> None:
    texts: list[str | None] = ["故宫", None, " ", "长城"]
    report = embed_corpus(
        write_corpus(tmp_path / "corpus", texts, files=1), tmp_path / "out", settings=EncoderSettings(model)
    )
    assert (report.texts, report.bad_rows) == (2, 2)
    assert [row[1:] for row in read_rows(tmp_path / "out")] == [(0, "故宫"), (3, "长城")]
    [listing] = (tmp_path / "out" / "bad-rows").iterdir()
    lines = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    assert [(line["row"], line["problem"]) for line in lines] == [(1, "null"), (2, "blank")]


def test_what_an_unfinished_run_left_is_not_loaded(one_process: None, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_corpus(write_corpus(tmp_path / "corpus"), out, settings=EncoderSettings(model), block_rows=130)
    assert len(ParquetDocuments(out)) == 1000
    (out / "00001-000000000130.parquet").unlink()
    with pytest.raises(InvalidInput, match="8 of 9 files"):
        ParquetDocuments(out)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_manifest_takes_overwriting(one_process: None, model: str, tmp_path: Path, content: str) -> None:
    files, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    embed_corpus(files, out, settings=EncoderSettings(model))
    (out / "job.json").write_text(content)
    with pytest.raises(InvalidInput, match="start over with overwrite"):
        embed_corpus(files, out, settings=EncoderSettings(model))
    assert embed_corpus(files, out, settings=EncoderSettings(model), overwrite=True).new_texts == 1000


def test_only_missing_blocks_are_embedded_again(one_process: None, model: str, tmp_path: Path) -> None:
    files, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100)
    (out / "00000-000000000100.parquet").unlink()
    (out / "00001-000000000200.parquet").write_bytes(b"PAR1 cut off")
    (out / "00002-000000000000.parquet.77.part").write_bytes(b"of a killed worker")
    untouched = (out / "00002-000000000000.parquet").stat().st_mtime_ns
    report = embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100)
    assert report.new_texts == 200
    assert read_rows(out) == expected_rows()
    assert (out / "00002-000000000000.parquet").stat().st_mtime_ns == untouched
    assert not list(out.glob("*.part"))


def test_another_job_is_refused_and_changes_nothing(one_process: None, model: str, tmp_path: Path) -> None:
    files, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    settings = EncoderSettings(model)
    embed_corpus(files[:2], out, settings=settings)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InvalidInput, match="another files"):
        embed_corpus(files, out, settings=settings)
    with pytest.raises(InvalidInput, match="another role"):
        embed_corpus(files[:2], out, settings=settings, role="query")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    embed_corpus(files[2:], out, settings=settings, overwrite=True)
    assert {row[0] for row in read_rows(out)} == {"2.parquet"}


def test_a_damaged_block_is_named_and_the_others_are_embedded(one_process: None, model: str, tmp_path: Path) -> None:
    files, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    content = bytearray(files[1].read_bytes())
    good = bytes(content)
    group = pq.read_metadata(files[1]).row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + 60] = b"\xff" * 60
    files[1].write_bytes(content)
    with pytest.raises(DataError, match=r"1\.parquet, rows 100 to 199 cannot be read"):
        embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100)
    assert len(read_rows(out)) == 900
    files[1].write_bytes(good)
    assert embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100).new_texts == 333  # the whole file
    assert read_rows(out) == expected_rows()


def test_the_blocks_of_a_changed_file_are_made_again(one_process: None, model: str, tmp_path: Path) -> None:
    files, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100)
    pq.write_table(pa.table({"text": ["故宫", ""]}), files[1])
    untouched = (out / "00002-000000000000.parquet").stat().st_mtime_ns
    report = embed_corpus(files, out, settings=EncoderSettings(model), block_rows=100)
    assert (report.texts, report.bad_rows) == (668, 1)
    assert [row for row in read_rows(out) if row[0] == "1.parquet"] == [("1.parquet", 0, "故宫")]
    assert (out / "00002-000000000000.parquet").stat().st_mtime_ns == untouched


@pytest.mark.slow
def test_a_cluster_gives_the_same_as_one_process(model: str, tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "corpus")
    report = embed_corpus(files, tmp_path / "out", settings=EncoderSettings(model), block_rows=130, workers=2)
    assert report.new_texts == 1000
    assert read_rows(tmp_path / "out") == expected_rows()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt", "--engine", "ray"], "parquet"),
        (["none.parquet", "--engine", "ray"], "no such file"),
        (["a.txt", "a.txt"], "--engine ray embeds several"),
        (["a.txt", "--engine", "spark"], "local or ray"),
        (["a.txt", "--workers", "2"], "--devices names local devices"),
        (["a.txt", "--num-gpus", "1"], "are for --engine ray"),
    ],
)
def test_what_cannot_be_embedded_is_said(
    arguments: list[str], message: str, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("故宫\n", encoding="utf-8")
    paths = [str(tmp_path / a) if a.startswith(("a.", "none")) else a for a in arguments]
    assert run(["embed", *paths, "-o", str(tmp_path / "out"), "--model", model]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_cpus", "num_gpus", "has_room"),
    [(1, 0, True), (4, 0, True), (5, 0, False), (0, 1, True), (2, 1, False), (0, 1.5, False), (0, 0, True)],
)
def test_workers_that_fit_on_no_machine_are_refused(
    num_cpus: float, num_gpus: float, has_room: bool, caplog: pytest.LogCaptureFixture
) -> None:
    machines = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 1.0, "GPU": 1.0}]
    pool = ray_embedding._Pool(None, num_cpus, num_gpus)
    with nullcontext() if has_room else pytest.raises(InvalidInput, match="the most that one has: 4 CPUs, 1 GPUs"):
        ray_embedding._check_room(machines, pool, may_grow=False)
    ray_embedding._check_room(machines, pool, may_grow=True)
    assert ("Waiting for a larger one" in caplog.text) is not has_room


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_not_waited_for(model: str, tmp_path: Path) -> None:
    files = write_corpus(tmp_path / "corpus")
    with pytest.raises(InvalidInput, match="GPUs"):
        embed_corpus(files, tmp_path / "out", settings=EncoderSettings(model), num_gpus=64)


@pytest.mark.slow
def test_a_killed_worker_loses_no_row(model: str, tmp_path: Path) -> None:
    texts = [f"{text}，{'很长的说明' * 60}" for text in TEXTS * 40]
    files, out = write_corpus(tmp_path / "corpus", texts, group=2000), tmp_path / "out"
    killed: list[int] = []

    def kill_two_workers() -> None:
        while len(killed) < 2:
            time.sleep(0.3)
            if len(list(out.glob("*.parquet"))) < 4 * (1 + len(killed)):
                continue
            pids = subprocess.run(["pgrep", "-f", "ray::.*MapWorker"], capture_output=True, text=True).stdout.split()
            if pids:
                killed.append(int(pids[0]))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill_two_workers, daemon=True)
    killer.start()
    ray.shutdown()
    report = embed_corpus(files, out, settings=EncoderSettings(model), block_rows=1000, workers=2)
    killer.join(timeout=10)
    assert len(killed) == 2
    assert report.texts == len(texts)
    assert read_rows(out) == expected_rows(texts)


@pytest.mark.slow
def test_the_whole_command_killed_goes_on_where_it_stopped(model: str, tmp_path: Path) -> None:
    texts = [f"{text}，{'很长的说明' * 60}" for text in TEXTS * 40]
    files, out = write_corpus(tmp_path / "corpus", texts, group=2000), tmp_path / "out"
    command = [sys.executable, "-m", "peg_rag.cli", "embed", *map(str, files), "-o", str(out), "--model", model]
    command += ["--engine", "ray", "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    while not list(out.glob("*.parquet")):
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert read_rows(out) == expected_rows(texts)
