"""Hide installed packages from the import system of a fresh process, as if they had never been installed."""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def hide(modules: Iterable[str]) -> None:
    """From now on these top-level modules are not found: `import` fails and `find_spec` gives None."""
    hidden = set(modules)

    class Finder(PathFinder):
        @classmethod
        def find_spec(
            cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]


def hiding_env() -> dict[str, str]:
    """The environment of a process that can `from hiding import hide`."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "HF_HUB_OFFLINE": "1"}
