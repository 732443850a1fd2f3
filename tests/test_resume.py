"""Twenty steps straight are ten steps, `kill -9`, and ten more: weights and optimiser to the last bit."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from peg_rag.training import Recipe, train
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.model.encoder import load_encoder
from peg_rag.training.recipe import ModelOptions, OptimizerOptions
from peg_rag.training.run.checkpoint import Progress, TrainingState, last_checkpoint, list_checkpoints, load_checkpoint
from peg_rag.training.run.grad_cache import CachedStep
from peg_rag.training.run.optimizer import build_optimizer

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    characters = "的一是了我不人在他有这上们来到时大地为子中你说生国年着就那和要"
    for name, shift in (("first", 0), ("second", 7)):
        rows = []
        for i in range(90):
            text = "".join(characters[(i * 5 + shift + j * (i % 9 + 1)) % len(characters)] for j in range(4 + i % 13))
            row = {"query": f"问{i}{text}", "positive": f"{text}答{i}", "negatives": [f"{text[:3]}错{i}{shift}"]}
            rows.append({**row, "title": text[:2], "place": f"{i % 7}"})
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def recipe(tmp_path: Path, pairs: Path, model: Path, output: str, order: str = "") -> Path:
    """Dropout, curricular t, a queue, momentum of AdamW: everything that has to survive.

    Args:
        order: of batches; with one, all other components are in it, too.
    """
    tree: dict[str, Any] = {
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
                "loss": {
                    "symmetric": True,
                    "progressive": {"strategy": "curricular"},
                    "candidates": [{"kind": "queue", "size": 40}],
                },
                "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3, "weight_decay": 0.01},
                "memory": {"chunk_tokens": 128},
            }
        ],
        "validation": {"share": 0.05, "distractors": 10},
        "evaluation": {"every_steps": 5},
        "checkpoints": {"every_steps": 10, "keep": 3},
        "logging": {"every_steps": 2},
    }
    if order:
        add_components(tree["stages"][0], order)
    file = tmp_path / f"{output}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


ORDERS = {
    "neighbours": {"kind": "neighbours", "nearest": 2, "random": 2, "among": 8, "group_epochs": 1},
    "clusters": {"kind": "clusters"},
}


def add_components(stage: dict[str, Any], order: str) -> None:
    """All that a recipe can name besides; the second round begins at the step of the first checkpoint."""
    stage["rounds"] = 2
    stage["data"] |= {
        "mixing": "one_source",
        "mining": {"negatives": 2, "relative_margin": None},
        "order": ORDERS[order],
        "transforms": [{"kind": "shared_documents", "documents": 6, "anchor": True}, {"kind": "soft_augmentation"}],
    }
    stage["data"]["sources"][0]["columns"] = {"anchor": "title", "group": "place"}
    stage["loss"] |= {
        "trust": {"start": 0.2},
        "masks": [{"kind": "guide", "model": "peg-mini", "compare": ["query_document", "query_query"]}],
        "candidates": [
            {"kind": "queue", "size": 40},
            {"kind": "momentum", "documents": 40, "queries": 20, "half_life": 0.2},
            {"kind": "mixing", "nearest": 4, "pairs": 2, "with_query": 2, "warmup": 0.2},
        ],
    }


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
    assert process.stderr
    process.stderr.close()


@pytest.mark.parametrize(
    ("ranks", "order"),
    [
        (1, ""),
        *((1, order) for order in ORDERS),
        *(pytest.param(2, order, marks=pytest.mark.slow) for order in ("", *ORDERS)),
    ],
)
def test_killed_and_resumed_run_has_the_same_bits(
    ranks: int, order: str, tmp_path: Path, pairs: Path, tiny_bert: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(launch(ranks, str(recipe(tmp_path, pairs, tiny_bert, "straight", order))))
    file = str(recipe(tmp_path, pairs, tiny_bert, "broken", order))
    kill_after(launch(ranks, file), broken / "stages" / "1-main" / "checkpoint-10")
    assert not (broken / "model.safetensors").exists(), "it was meant to be killed half-way"
    finish(launch(ranks, file, "--resume"))

    weights = [load_file(folder / "model.safetensors") for folder in (straight, broken)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first, second = (folder / "stages" / "1-main" / "checkpoint-20" for folder in (straight, broken))
    for name in ("optimizer", "objective", *(f"random-{rank}" for rank in range(ranks))):
        one, other = (load_file(checkpoint / f"{name}.safetensors") for checkpoint in (first, second))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    states = [json.loads((checkpoint / "step_state.json").read_text()) for checkpoint in (first, second)]
    assert states[0]["step"] == states[1]["step"] == 20
    assert states[0]["cached_step"]["objective"] == states[1]["cached_step"]["objective"]
    assert states[0]["cached_step"]["objective"]["t"] > 0
    assert states[0]["cached_step"]["objective"]["sources"][0]["steps"] == 20


OLD_RUN = Path(__file__).parent / "data" / "training-0.1"


def test_a_run_of_version_0_1_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint was written by transformers' Trainer; `expected` is what the same version ended with."""
    shutil.copytree(OLD_RUN, tmp_path / "old")
    monkeypatch.setenv("OLD_RUN", str(tmp_path / "old"))
    recipe = Recipe.load(tmp_path / "old" / "run" / "recipe.yaml")
    result = train(recipe, resume=True)
    weights = load_file(result.folder / "model.safetensors")["embedding.weight"]
    expected = load_file(tmp_path / "old" / "expected.safetensors")["embedding.weight"]
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    history = json.loads((result.folder / "stages" / "1-main" / "history.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4, 6, 8]


def test_the_state_of_a_version_0_1_checkpoint_is_taken_whole() -> None:
    checkpoint = OLD_RUN / "run" / "stages" / "1-main" / "checkpoint-4"
    encoder = load_encoder(ModelOptions(path=str(checkpoint)))
    options = OptimizerOptions(learning_rate=0.01, weight_decay=0.01)
    trained = TrainingState(
        encoder,
        build_optimizer(encoder, options),
        CachedStep(encoder, ContrastiveObjective(), batch_tokens=100),
        Progress(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(99)
        other = torch.get_rng_state()
        load_checkpoint(checkpoint, trained)
        assert not torch.equal(torch.get_rng_state(), other)
    saved = json.loads((checkpoint / "step_state.json").read_text())
    moments = trained.optimizer.state_dict()["state"][0]
    assert trained.progress.step == 4
    assert moments["step"].item() == 4
    assert moments["exp_avg_sq"].max() > 0
    assert trained.cached_step.state_dict()["objective"] == saved["step"]["objective"]


@pytest.fixture
def checkpoints(tmp_path: Path, pairs: Path, tiny_bert: Path) -> Path:
    """A stage's folder with the checkpoints of steps 5, 10, 15 and 20."""
    file = recipe(tmp_path, pairs, tiny_bert, "run")
    train(Recipe.load(file, ["checkpoints.every_steps=5", "checkpoints.keep=4", "evaluation.every_steps=null"]))
    return tmp_path / "run" / "stages" / "1-main"


def test_damaged_checkpoints_are_passed_over(checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["model.safetensors", "optimizer.safetensors", "step_state.json"]
    for step, name in zip((20, 15, 10), names, strict=True):
        assert last_checkpoint(checkpoints) == checkpoints / f"checkpoint-{step}"
        content = bytearray((checkpoints / f"checkpoint-{step}" / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (checkpoints / f"checkpoint-{step}" / name).write_bytes(content)
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-5"
    (checkpoints / "checkpoint-5" / "random-0.safetensors").unlink()
    assert last_checkpoint(checkpoints) is None
    assert "random-0.safetensors is not as it was written" in caplog.text


def test_old_checkpoints_make_room_for_new_ones(tmp_path: Path, pairs: Path, tiny_bert: Path) -> None:
    file = recipe(tmp_path, pairs, tiny_bert, "run")
    train(Recipe.load(file, ["checkpoints.every_steps=3", "checkpoints.keep=2", "evaluation.every_steps=null"]))
    stage = tmp_path / "run" / "stages" / "1-main"
    assert [path.name for path in list_checkpoints(stage)] == ["checkpoint-15", "checkpoint-18"]
    assert not (stage / ".saving").exists()


def test_nothing_in_a_checkpoint_is_a_pickle(checkpoints: Path) -> None:
    suffixes = {path.suffix for path in checkpoints.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt"}
