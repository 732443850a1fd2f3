"""Optional dependencies: imported when first used, and an error with the install command when they are missing."""

import importlib
import sys
from types import ModuleType

from peg_rag.errors import MissingExtra


def require(module: str, extra: str) -> ModuleType:
    """Import and return `module`, which the extra `extra` of this package installs.

    Raises:
        MissingExtra: when the module, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"'{error.name}' is not installed, and this needs it. Install it with: pip install 'peg-rag[{extra}]'"
        ) from error


def require_zstd(extra: str) -> ModuleType:
    """The standard library's Zstandard, or its backport before Python 3.14; a file that is cut off is an error."""
    return require("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", extra)
