"""The small files of a model folder, read as what they are: somebody else's.

A folder comes from the hub, a colleague or a disk that failed, and its JSON decides which files are opened next and how
much memory a model takes. So every file is checked for its form here, every number for its range and every path for
staying inside the folder, before anything is built from them. What is wrong is refused by the name of the file, in
milliseconds.
"""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from peg_rag.errors import DamagedModel

_CURE = "copy or download the model again"
_MAX_JSON_MIB = 64  # the largest honest file, the index of a model's shards, has a few
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
REQUIRED: Any = object()


def read_object(file: Path, missing: Any = REQUIRED) -> dict[str, Any]:
    """The JSON object in `file`; `missing` where there is no such file.

    Raises:
        DamagedModel: the file is not there and has to be, is not JSON, or holds something else than an object.
    """
    return cast(dict[str, Any], _read_json(file, dict, missing))


def read_objects(file: Path, missing: Any = REQUIRED) -> list[dict[str, Any]]:
    """The JSON list of objects in `file`; `missing` where there is no such file.

    Raises:
        DamagedModel: as `read_object`.
    """
    objects = _read_json(file, list, missing)
    for item in objects or []:
        if not isinstance(item, dict):
            raise DamagedModel(f"{file} lists {_kind_of(item)}, but only objects are expected; {_CURE}")
    return cast(list[dict[str, Any]], objects)


def read_number(settings: dict[str, Any], key: str, file: Path, *, largest: int) -> int | None:
    """The whole number from 1 to `largest` under `key`, or None where the key is missing or null.

    Raises:
        DamagedModel: it is something else.
    """
    value = settings.get(key)
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not 1 <= value <= largest:
        raise DamagedModel(f"{file} has {key}={_quote_value(value)}; a whole number from 1 to {largest} is expected")
    return int(value)


def inside(folder: Path, name: Any, named_by: Path) -> Path:
    """The file or folder `name` of `folder`. Links are followed: the hub's cache consists of them.

    Raises:
        DamagedModel: `name`, which the file `named_by` gives, is no relative path or leads out of the folder.
    """
    if not isinstance(name, str):
        raise DamagedModel(f"{named_by} names {_kind_of(name)} as a file of the model; a path is expected")
    for path in (PurePosixPath(name), PureWindowsPath(name)):  # a folder may be read on another system than it was made
        if path.is_absolute() or path.drive or ".." in path.parts or "\0" in name:
            raise DamagedModel(f"{named_by} names {_quote_value(name)}, outside of the model folder {folder}")
    return folder / name


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, where nesting that is too deep is a ValueError like any other mistake."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_json(file: Path, expected: type, missing: Any) -> Any:
    try:
        if file.stat().st_size > _MAX_JSON_MIB << 20:
            raise ValueError(f"it has {file.stat().st_size >> 20} MiB, of {_MAX_JSON_MIB} at most")
        content = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        if missing is not REQUIRED:
            return missing
        raise DamagedModel(f"{file} is missing; {_CURE}") from error
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{file} is not readable JSON ({error}); {_CURE}") from error
    if not isinstance(content, expected):
        raise DamagedModel(f"{file} holds {_kind_of(content)}, but {_KINDS[expected]} is expected; {_CURE}")
    return content


def _kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _quote_value(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
