"""The folder where an adaptation works until its model is saved: locked, resumable, and gone at the end.

Nothing that a user made is ever emptied or replaced: the work folder must be ours, and only a folder that holds a model
makes room for a new one. A kill between the two renames of a replacement is undone by the next call.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peg_rag.errors import IndexBusy, InvalidInput
from peg_rag.files import write_atomically
from peg_rag.models import CONFIG_FILE
from peg_rag.training.adapt.split import Lesson

logger = logging.getLogger(__name__)

MODEL_FILES = (CONFIG_FILE, "modules.json")  # either of them makes a folder a model, which may be replaced


def check_apart(outputs: Sequence[Path], inputs: Mapping[str, Path | None]) -> None:
    """What is read must not lie where the work is emptied and the model replaced.

    Raises:
        InvalidInput: it does.
    """
    for name, path in inputs.items():
        for place in outputs:
            if path is not None and path.resolve().is_relative_to(place):
                raise InvalidInput(f"the {name} ({path}) would be lost in {place}; name another place for the model")


def check_free(folder: Path, overwrite: bool) -> None:
    """A model may go to `folder`: it is empty, or holds a model and may be overwritten.

    Raises:
        InvalidInput: otherwise.
    """
    if not folder.is_file() and not _holds_files(folder):
        return
    if not overwrite:
        raise InvalidInput(
            f"{folder} already exists; name another place for the model, or replace a model there (--overwrite)"
        )
    if not any((folder / name).is_file() for name in MODEL_FILES):
        raise InvalidInput(
            f"{folder} already exists and is no model (it holds neither {' nor '.join(MODEL_FILES)}), so it is not "
            "replaced; name another place for the model"
        )


class WorkFolder:
    """`<model folder>.adapting`."""

    def __init__(self, model_folder: Path) -> None:
        self.model_folder = model_folder
        self.path = Path(f"{model_folder}.adapting")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For this call alone; the lock lies beside the folder, which is itself emptied and removed.

        Raises:
            IndexBusy: another process holds it.
        """
        from filelock import FileLock, Timeout

        file = self.path.with_name(f".{self.path.name}.lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(file, timeout=0).acquire()
        except Timeout as error:
            raise IndexBusy(
                f"another process is at work in {self.path}; wait for it to finish, or name another place"
            ) from error
        with lock:
            try:
                yield
            finally:
                with suppress(OSError):  # where an open file cannot be removed, it stays
                    file.unlink()

    def undo_replacement(self) -> None:
        """A kill may have come after the old model was moved away and before the new one came."""
        replaced = self.path / "replaced"
        if not replaced.is_dir() or not self._is_ours:
            return
        if not _holds_files(self.model_folder):
            replaced.rename(self.model_folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def prepare(self, identity: str, lesson: Lesson, options: Mapping[str, Any]) -> None:
        """Make the folder, or empty it where it is of another call.

        Raises:
            InvalidInput: a folder of that name exists and is not ours.
        """
        content = hashlib.blake2b(digest_size=12)
        for name, pairs in lesson.pairs.items():
            content.update(json.dumps([name, [[pair.query, pair.positive] for pair in pairs]]).encode())
        call = [identity, dict(options), content.hexdigest()]
        if self._is_ours and self._read_call().get("call") == call:
            logger.info("going on with %s", self.path)
            return
        if self.path.exists() and not self._is_ours:
            raise InvalidInput(f"{self.path} is in the way: the work would lie there, and peg-rag did not make it")
        shutil.rmtree(self.path, ignore_errors=True)
        self._write_call({"call": call})

    @property
    def measured_steps(self) -> int | None:
        """Steps that an earlier call found to fit into its minutes: a resumed run must keep its step count."""
        return self._read_call().get("steps")

    @measured_steps.setter
    def measured_steps(self, steps: int) -> None:
        self._write_call({**self._read_call(), "steps": steps})

    def install_model(self) -> None:
        """Put the work's `model` into its place, and take the work away."""
        if self.model_folder.exists():
            self.model_folder.rename(self.path / "replaced")
        (self.path / "model").rename(self.model_folder)
        shutil.rmtree(self.path)

    @property
    def _is_ours(self) -> bool:
        return self._call_file.is_file()

    @property
    def _call_file(self) -> Path:
        return self.path / "call.json"

    def _read_call(self) -> dict[str, Any]:
        content = json.loads(self._call_file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}

    def _write_call(self, content: Mapping[str, Any]) -> None:
        write_atomically(self._call_file, json.dumps(content).encode())


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
