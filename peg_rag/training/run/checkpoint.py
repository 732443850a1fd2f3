"""A checkpoint: all that makes a resumed run the same run, to the last bit.

It is a folder `checkpoint-<step>` that opens as a model, with three things more: the optimiser's moments, the random
state of every rank, and `step_state.json`, which holds the rest (step, log, state of the loss) and the digest of every
other file. The folder is written beside its place, flushed and renamed, so it is there as a whole or not at all; the
digests tell a file that was damaged later. Data need no state, for batches are a function of the step.

Costs three times the weights on disk. Tensors are safetensors and everything else is JSON: nothing is unpickled.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peg_rag.errors import TrainingError
from peg_rag.files import sync_folder, sync_tree, write_atomically
from peg_rag.training.data.files import file_digest
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.model.encoder import TrainableEncoder
from peg_rag.training.run.grad_cache import CachedStep
from peg_rag.training.run.masked_step import MaskedStep

logger = logging.getLogger(__name__)

FORMAT = 2  # 1 was written by transformers' Trainer, up to version 0.1
STATE_FILE = "step_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
OBJECTIVE_FILE = "objective.safetensors"
STAGING = ".saving"

LogEntry = dict[str, float]


@dataclass
class Progress:
    """How far a stage has come: optimiser steps taken, and what was logged on the way."""

    step: int = 0
    log: list[LogEntry] = field(default_factory=list)


@dataclass
class TrainingState:
    """What a checkpoint holds the state of."""

    encoder: TrainableEncoder
    optimizer: torch.optim.Optimizer
    cached_step: CachedStep | MaskedStep
    progress: Progress


def save_checkpoint(folder: Path, training: TrainingState, *, keep: int) -> Path:
    """Write `checkpoint-<step>` into a stage's folder and remove the oldest beyond `keep`. Every rank calls this.

    Raises:
        TrainingError: the folder cannot be written, on any rank; earlier checkpoints are as they were.
    """
    ranks = Ranks()
    staging = folder / STAGING
    place = folder / f"checkpoint-{training.progress.step}"

    def write_shared_files() -> None:
        shutil.rmtree(staging, ignore_errors=True)
        training.encoder.save(staging)
        save_file(_optimizer_tensors(training.optimizer), staging / OPTIMIZER_FILE)

    def write_random_state() -> None:
        save_file(_random_state(training.cached_step.device), staging / _random_file(ranks.rank))

    def finish() -> None:
        _write_state(staging, training)
        sync_tree(staging)
        shutil.rmtree(place, ignore_errors=True)
        staging.rename(place)
        sync_folder(folder)

    for part, everywhere in ((write_shared_files, False), (write_random_state, True), (finish, False)):
        error = _catch_error(part) if everywhere or ranks.rank == 0 else None
        if ranks.any(error is not None, training.cached_step.device):
            if ranks.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {training.progress.step} cannot be written to {folder} "
                f"({error or 'on another rank'}); the last whole one is {last_checkpoint(folder) or 'none'}. "
                "Free space there, then resume"
            ) from error
    if ranks.rank == 0:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return place


def load_checkpoint(checkpoint: Path, training: TrainingState) -> None:
    """Take up what `save_checkpoint` wrote, or a checkpoint of version 0.1. Every rank calls this.

    Raises:
        TrainingError: it was written by another version, or by another number of ranks.
        DamagedModel: the weights do not fit.
    """
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    training.encoder.load_weights(checkpoint)
    device = training.cached_step.device
    if state.get("format", 1) == 1:
        _load_first_format(checkpoint, state, training)
        return
    if state["format"] != FORMAT:
        raise TrainingError(f"{checkpoint} has format {state['format']}; this version reads 1 and {FORMAT}")
    random_file = checkpoint / _random_file(Ranks().rank)
    if not random_file.is_file():
        raise TrainingError(f"{checkpoint} was written by fewer ranks than resume from it; start as many as before")
    _load_optimizer(training.optimizer, load_file(checkpoint / OPTIMIZER_FILE))
    tensors = {}
    if (checkpoint / OBJECTIVE_FILE).is_file():
        tensors = load_file(checkpoint / OBJECTIVE_FILE)
    training.cached_step.load_state_dict(_join_tensors(state["cached_step"], tensors, device))
    training.progress.step = state["step"]
    training.progress.log = state["log"]
    _set_random_state(load_file(random_file), device)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage, the oldest first; half-written ones lie elsewhere."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps whose files are as they were written."""
    for checkpoint in reversed(list_checkpoints(folder)):
        damaged = find_damage(checkpoint)
        if damaged is None:
            return checkpoint
        logger.warning("%s is not used: %s is not as it was written", checkpoint, damaged)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """The name of a file that is missing or has other content than was written; None where all is well."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return STATE_FILE
    for name, digest in state.get("files", {}).items():
        if not (checkpoint / name).is_file() or file_digest(checkpoint / name) != digest:
            return str(name)
    return None


def _catch_error(write: Callable[[], None]) -> Exception | None:
    """The error of a write, so that all ranks can learn of it before anyone raises."""
    try:
        write()
    except Exception as error:  # safetensors has errors of its own
        return error
    return None


def _write_state(staging: Path, training: TrainingState) -> None:
    """The tensors of the loss, and the file that makes the folder a checkpoint."""
    plain, tensors = _split_tensors(training.cached_step.state_dict())
    if tensors:
        save_file(tensors, staging / OBJECTIVE_FILE)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    state = {
        "format": FORMAT,
        "step": training.progress.step,
        "cached_step": plain,
        "log": training.progress.log,
        "files": {path.relative_to(staging).as_posix(): file_digest(path) for path in files},
    }
    write_atomically(staging / STATE_FILE, json.dumps(state).encode())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter number>.<name>` → moments and step counts. Rates and the like are the recipe's."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, tensors in state.items() for name, tensor in tensors.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_file(rank: int) -> str:
    return f"random-{rank}.safetensors"


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _split_tensors(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state with a name in the place of each tensor, and the tensors by name."""
    if isinstance(state, Tensor):
        return {"tensor": path}, {path: state.detach().cpu().contiguous()}
    if isinstance(state, Mapping):
        parts = {key: _split_tensors(value, f"{path}.{key}".lstrip(".")) for key, value in state.items()}
        tensors = {name: tensor for _, inner in parts.values() for name, tensor in inner.items()}
        return {key: plain for key, (plain, _) in parts.items()}, tensors
    if isinstance(state, list):
        plain, tensors = _split_tensors(dict(enumerate(state)), path)
        return list(plain.values()), tensors
    return state, {}


def _join_tensors(plain: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(plain, dict) and plain.keys() == {"tensor"}:
        return tensors[plain["tensor"]].to(device)
    if isinstance(plain, dict):
        return {key: _join_tensors(value, tensors, device) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_join_tensors(value, tensors, device) for value in plain]
    return plain


def _load_first_format(checkpoint: Path, state: Mapping[str, Any], training: TrainingState) -> None:
    """What transformers' Trainer left; its random state held the generators of NumPy and Python besides."""
    if state.get("log_scale") is not None:
        raise TrainingError(f"{checkpoint} has a learned temperature, an option that was removed; start anew")
    training.optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu"))
    training.cached_step.load_state_dict(state["step"])
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    training.progress.step = history["global_step"]
    training.progress.log = history["log_history"]
    ranks = Ranks()
    name = f"rng_state_{ranks.rank}.pth" if ranks.size > 1 else "rng_state.pth"
    with torch.serialization.safe_globals(_numpy_globals()):
        random_state = torch.load(checkpoint / name, weights_only=True, map_location="cpu")
    _set_random_state(random_state, training.cached_step.device)


def _numpy_globals() -> list[Any]:
    """What the first format's random state of NumPy is made of: arrays of numbers, and nothing that runs."""
    import numpy as np
    from numpy._core.multiarray import _reconstruct

    return [_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
