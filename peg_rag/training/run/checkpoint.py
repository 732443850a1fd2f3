"""What a checkpoint is, and which of them is the last whole one."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RECIPE_FILE = "recipe.yaml"
STATE_FILE = "step_state.json"
DONE_FILE = "done.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps; half-written ones lie elsewhere."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def sync_folder(folder: Path) -> None:
    """Have the disk hold every file of a folder before it gets its name."""
    paths: Iterable[Path] = [*folder.rglob("*"), folder]
    for path in paths:
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
