"""`peg-rag embed`: every input, every broken one, and a kill at any moment that costs nothing but time."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CHARACTERS
from sample_files import static_model

from peg_rag import PEGEncoder
from peg_rag.cli import embed as embedding
from peg_rag.cli.app import run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["北京故宫", "门票六十元", "报销需要发票", "法律合同"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("models") / "small", CHARACTERS))


def write(path: Path, texts: list[str]) -> Path:
    """The texts in the format that the path's suffix names, in a column `text` beside another."""
    if path.suffix == ".txt":
        path.write_text("\n".join(texts), encoding="gb18030")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("id", "text"), *enumerate(texts)])
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_encoder_s_vectors(suffix: str, model: str, tmp_path: Path) -> None:
    texts = [TEXTS[0], "", *TEXTS[1:]]  # a blank text is left out, and its row number with it
    file, out = write(tmp_path / f"in{suffix}", texts), tmp_path / "out.parquet"
    assert run(["embed", str(file), "-o", str(out), "--model", model]) == 0
    table = pq.read_table(out)
    assert table["row"].to_pylist() == [0, 2, 3, 4]
    assert table["text"].to_pylist() == TEXTS
    with PEGEncoder(model) as encoder:
        expected = encoder.encode_documents(TEXTS)
        assert table.schema.metadata[b"peg_rag.identity"].decode() == encoder.identity
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), expected)
    assert not (tmp_path / "out.parquet.parts").exists()


def test_a_column_is_chosen_or_asked_for(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.parquet"
    file.write_text("题,文\n北京,故宫\n", encoding="utf-8")
    arguments = ["embed", str(file), "-o", str(out), "--model", model]
    assert run(arguments) == 2
    assert "one of: 题, 文" in capsys.readouterr().err
    assert run([*arguments, "--column", "正文"]) == 2
    assert "no text column '正文'" in capsys.readouterr().err
    assert run([*arguments, "--column", "文"]) == 0
    assert pq.read_table(out)["text"].to_pylist() == ["故宫"]
    assert run([*arguments, "--column", "文"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*arguments, "--column", "题", "--overwrite"]) == 0
    assert pq.read_table(out)["text"].to_pylist() == ["北京"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("in.txt", b"", "no text"),
        ("in.txt", b"\x00\x01", "binary"),
        ("in.jsonl", b'{"text": "a"}\n{', "line 2 is not JSON"),
        ("in.jsonl", b'{"text": 1}', "row 0: the text is int"),
        ("in.jsonl", b'{"text": "a"}\n{"other": "b"}', "line 2 has no 'text'"),
        ("in.parquet", b"PAR1 not really", "not a complete Parquet file"),
        ("in.csv", "text\n文字文字文字文字文字\n".encode() + b"\xff\xfe", "not valid utf-8"),
        ("in.doc", b"x", "expected a file named"),
    ],
)
def test_broken_input_is_named_and_leaves_no_output(
    name: str, data: bytes, said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(embedding, "_SNIFF_BYTES", 20)
    (tmp_path / name).write_bytes(data)
    assert run(["embed", str(tmp_path / name), "-o", str(tmp_path / "out.parquet"), "--model", model]) in (1, 2)
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_run_continues_and_embeds_nothing_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{a}{b}" for a in CHARACTERS[:20] for b in CHARACTERS[:20]]
    file, out = write(tmp_path / "in.txt", texts), tmp_path / "out.parquet"
    arguments = ["embed", str(file), "-o", str(out), "--model", model]
    monkeypatch.setattr(embedding, "_SLICE_TEXTS", 50)
    monkeypatch.setattr(embedding, "_PART_SECONDS", 0.0)
    seen: list[str] = []
    real = PEGEncoder.encode_documents

    def interrupted(self: PEGEncoder, some: list[str]) -> np.ndarray:
        if len(seen) == 150:
            raise KeyboardInterrupt
        seen.extend(some)
        return real(self, some)

    monkeypatch.setattr(PEGEncoder, "encode_documents", interrupted)
    assert run(arguments) == 130
    assert not out.exists()

    def noted(self: PEGEncoder, some: list[str]) -> np.ndarray:
        seen.extend(some)
        return real(self, some)

    monkeypatch.setattr(PEGEncoder, "encode_documents", noted)
    parts = sorted((tmp_path / "out.parquet.parts").glob("*.parquet"))
    assert len(parts) == 3
    assert run([*arguments, "--role", "query"]) == 2  # another job's parts are not mixed in
    assert "another role" in capsys.readouterr().err
    parts[-1].write_bytes(parts[-1].read_bytes()[:-20])  # and a part that the disk did not keep whole is made again
    assert run(arguments) == 0
    assert seen == texts[:150] + texts[100:]
    assert pq.read_table(out)["text"].to_pylist() == texts


def test_several_devices_give_the_vectors_of_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{a}{b}" for a in CHARACTERS[:20] for b in CHARACTERS[:20]]
    file, out = write(tmp_path / "in.txt", texts), tmp_path / "out.parquet"
    arguments = ["embed", str(file), "-o", str(out), "--model", model, "--devices", "cpu, cpu"]
    monkeypatch.setattr(embedding, "_SLICE_TEXTS", 30)
    assert run(arguments) == 0
    table = pq.read_table(out)
    assert table["text"].to_pylist() == texts
    with PEGEncoder(model) as encoder:
        assert np.array_equal(np.stack(table["embedding"].to_numpy()), encoder.encode_documents(texts))
    assert run([*arguments, "--overwrite", "--device", "cpu"]) == 2
    assert "one of the two" in capsys.readouterr().err
    assert run([*arguments, "--engine", "ray"]) == 2
    assert "--workers" in capsys.readouterr().err


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(model: str, tmp_path: Path) -> None:
    texts = [a + b + c for a in CHARACTERS[:30] for b in CHARACTERS[:30] for c in CHARACTERS[:30]]
    file, out = write(tmp_path / "in.txt", texts), tmp_path / "out.parquet"
    code = (
        "import sys; import peg_rag.cli.embed as e; e._PART_SECONDS = 0.0; e._SLICE_TEXTS = 200;"
        "from peg_rag.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "embed", str(file), "-o", str(out), "--model", model]
    random = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(random.uniform(0.3, 1.2)))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if out.exists():  # killed after its last step: what is there must be whole
            break
    if not out.exists():
        subprocess.run(command, check=True)
    assert kills > 2
    assert pq.read_table(out)["text"].to_pylist() == texts
    assert pq.read_table(out)["row"].to_pylist() == list(range(len(texts)))


def test_a_folder_as_output_is_refused_before_anything_is_embedded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "texts.txt", TEXTS)
    (tmp_path / "out").mkdir()
    assert run(["embed", str(file), "-o", str(tmp_path / "out"), "--model", model, "--overwrite"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]
