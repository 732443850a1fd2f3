"""The folder of a run: its recipe, a folder for each stage, and what says that a stage is done."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peg_rag.errors import TrainingError
from peg_rag.files import write_atomically
from peg_rag.training.data.guide import hash_array
from peg_rag.training.data.pairs import KeyedFile
from peg_rag.training.recipe import Recipe, expand_path
from peg_rag.training.run.model_card import CardFacts

RECIPE_FILE = "recipe.yaml"
DONE_FILE = "done.json"
HISTORY_FILE = "history.json"
DATA_FILE = "data.json"
_HARMLESS = ("output_dir", "cache_dir", "device", "data_workers", "logging", "checkpoints", "evaluation")


class RunFolder:
    """Where a run lies. Only the first rank writes to it, but for checkpoints."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.path = expand_path(recipe.output_dir)

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to mix two runs; write the recipe down.

        Raises:
            TrainingError: the folder holds a run that is not to be resumed, or one of another recipe.
        """
        file = self.path / RECIPE_FILE
        if overwrite and file.is_file():
            shutil.rmtree(self.path)
        if file.is_file():
            if not resume:
                raise TrainingError(
                    f"{self.path} already holds a run; go on with it (--resume), replace it (--overwrite), "
                    "or name another output_dir"
                )
            _check_same_recipe(Recipe.load(file), self._recipe, file)
        write_atomically(file, self._recipe.dump().encode())

    def stage(self, number: int) -> Path:
        """The folder of stage `number`, from 0."""
        return self.path / "stages" / f"{number + 1}-{self._recipe.stages[number].name}"

    def finished_stage(self, number: int) -> CardFacts | None:
        """What is known of a stage that is done; None where it is not."""
        return read_facts(self.stage(number))

    def finish_stage(self, number: int, facts: CardFacts) -> None:
        """Mark a stage as done, once its model is saved."""
        content = {"scores": facts.scores, "facts": asdict(facts)}
        text = json.dumps(content, ensure_ascii=False, indent=2)
        write_atomically(self.stage(number) / DONE_FILE, text.encode())

    def write_data(self, number: int, files: Sequence[KeyedFile]) -> None:
        """Write down which rows stage `number` is about to train on."""
        text = json.dumps(_describe_data(files), ensure_ascii=False, indent=2)
        write_atomically(self.stage(number) / DATA_FILE, text.encode())

    def check_data(self, number: int, files: Sequence[KeyedFile]) -> None:
        """Refuse to go on with other rows than the stage began with: its batches would be others.

        Raises:
            TrainingError: a file was changed, added or taken away since.
        """
        file = self.stage(number) / DATA_FILE
        if not file.is_file():  # the run is of a version that wrote none
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        now = _describe_data(files)
        if before == now:
            return
        changed = sorted({row["name"] for row in [*before, *now] if row not in before or row not in now})
        raise TrainingError(
            f"stage {self._recipe.stages[number].name} began with other rows ({', '.join(changed) or 'the order'} "
            "changed); a resumed run must keep its data. Put the files back as they were, or start anew (--overwrite)"
        )


def _describe_data(files: Sequence[KeyedFile]) -> list[dict[str, Any]]:
    """Each file's name, its number of rows in use, and digests of their texts."""
    return [
        {
            "name": file.name,
            "rows": len(file.usable),
            "queries": hash_array(file.query_keys[file.usable]),
            "positives": hash_array(file.positive_keys[file.usable]),
        }
        for file in files
    ]


def read_facts(stage_folder: Path) -> CardFacts | None:
    """What a finished stage says of itself."""
    file = stage_folder / DONE_FILE
    if not file.is_file():
        return None
    return CardFacts(**json.loads(file.read_text(encoding="utf-8"))["facts"])


def _check_same_recipe(saved: Recipe, recipe: Recipe, file: Path) -> None:
    old, new = (one.model_dump(exclude=set(_HARMLESS)) for one in (saved, recipe))
    for path, (before, now) in _find_differences(old, new):
        raise TrainingError(
            f"{file} was made with {path} = {before!r}, and now it is {now!r}; a resumed run must keep its recipe. "
            "Set it back, or name another output_dir"
        )


def _find_differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            yield from _find_differences(old[key], new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _find_differences(before, now, f"{path}[{i}]")
    elif old != new:
        yield path, (old, new)
