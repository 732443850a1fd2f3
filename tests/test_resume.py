"""Twenty steps straight are ten steps, `kill -9`, and ten more: weights and optimiser to the last bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    characters = "的一是了我不人在他有这上们来到时大地为子中你说生国年着就那和要"
    for name, shift in (("first", 0), ("second", 7)):
        rows = []
        for i in range(90):
            text = "".join(characters[(i * 5 + shift + j * (i % 9 + 1)) % len(characters)] for j in range(4 + i % 13))
            rows.append({"query": f"问{i}{text}", "positive": f"{text}答{i}", "negatives": [f"{text[:3]}错{i}{shift}"]})
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def recipe(tmp_path: Path, pairs: Path, model: Path, output: str) -> Path:
    """Dropout, curricular t, momentum of AdamW: everything that has to survive."""
    tree = {
        "output_dir": str(tmp_path / output),
        "cache_dir": str(tmp_path / "cache"),
        "seed": 3,
        "device": "cpu",
        "model": {"path": str(model), "pooling": "cls"},
        "stages": [
            {
                "name": "main",
                "steps": 20,
                "batch": {"queries": 12, "negatives": 1},
                "data": {"sources": [{"path": f"{pairs}/*.jsonl"}], "mixing": "mixed"},
                "loss": {"symmetric": True, "progressive": {"strategy": "curricular"}},
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3, "weight_decay": 0.01},
                "memory": {"chunk_tokens": 128},
            }
        ],
        "validation": {"share": 0.05, "distractors": 10},
        "evaluation": {"every_steps": 5},
        "checkpoints": {"every_steps": 10, "keep": 3},
        "logging": {"every_steps": 2},
    }
    file = tmp_path / f"{output}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def launch(ranks: int, *arguments: str) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port)]
    start = torchrun if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *start, "-m", "peg_rag.training", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors.decode()[-2000:]


def kill_after(process: subprocess.Popen[bytes], checkpoint: Path) -> None:
    """`kill -9` to every process of the run as soon as the checkpoint is whole."""
    end = time.monotonic() + 250
    while not checkpoint.is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"no {checkpoint} in time"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_run_has_the_same_bits(ranks: int, tmp_path: Path, pairs: Path, tiny_bert: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(launch(ranks, str(recipe(tmp_path, pairs, tiny_bert, "straight"))))
    file = str(recipe(tmp_path, pairs, tiny_bert, "broken"))
    kill_after(launch(ranks, file), broken / "stages" / "1-main" / "checkpoint-10")
    assert not (broken / "model.safetensors").exists(), "it was meant to be killed half-way"
    finish(launch(ranks, file, "--resume"))

    mine, theirs = (load_file(folder / "model.safetensors") for folder in (straight, broken))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (
            torch.load(folder / "stages" / "1-main" / "checkpoint-20" / name, weights_only=True)
            for folder in (straight, broken)
        )
        assert_same(one, other)
    states = [
        json.loads((folder / "stages" / "1-main" / "checkpoint-20" / "step_state.json").read_text())
        for folder in (straight, broken)
    ]
    assert states[0]["step"]["objective"] == states[1]["step"]["objective"]
    assert states[0]["step"]["objective"]["t"] > 0


def assert_same(one: object, other: object) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    else:
        assert one == other
