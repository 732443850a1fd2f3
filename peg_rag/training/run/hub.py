"""Checkpoints on the hub: the repository is opened before the first step, and each checkpoint's model goes there."""

import logging
from pathlib import Path

from huggingface_hub import HfApi

from peg_rag.errors import TrainingError

logger = logging.getLogger(__name__)

_STATE = ["optimizer.safetensors", "objective.safetensors", "random-*.safetensors", "step_state.json"]


def open_repository(name: str) -> None:
    """Make sure that the repository is there and may be written.

    Raises:
        TrainingError: it cannot be reached or opened.
    """
    try:
        HfApi().create_repo(name, exist_ok=True)
    except Exception as error:  # the client's own, those of its transport, and those of names
        raise TrainingError(
            f"logging.push_to_hub: {name} cannot be opened on the hub ({error}). "
            "Log in with `hf auth login` or HF_TOKEN, or leave push_to_hub out"
        ) from error


def push_checkpoint(name: str, checkpoint: Path) -> None:
    """Upload the model of a checkpoint; training goes on where that fails."""
    try:
        HfApi().upload_folder(
            repo_id=name, folder_path=checkpoint, ignore_patterns=_STATE, commit_message=checkpoint.name
        )
    except Exception as error:
        logger.warning("%s was not pushed to %s (%s); the next checkpoint is tried again", checkpoint, name, error)
