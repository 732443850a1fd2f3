"""From the text of a recipe and `--set` overrides to a plain tree, and from pydantic's faults to sentences.

YAML is stricter here than by default: a key that stands twice in a mapping would silently lose its first value, and
nesting without end would end in a traceback.
"""

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from peg_rag.errors import RecipeError

MAX_DEPTH = 50  # of lists and mappings within each other; recipes need seven


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in keys:
                line = key.start_mark.line + 1
                raise RecipeError(f"line {line}: the key {key.value!r} is given twice in one mapping; remove one")
            keys.add((key.tag, key.value))
        return node


def parse_yaml(text: str, name: str) -> Any:
    """The tree that a YAML text describes.

    Raises:
        RecipeError: it is not YAML, repeats a key or is nested too deeply; `name` says where it came from.
    """
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{name}, {error}") from None
    except RecursionError:
        raise RecipeError(f"{name} is nested more than {MAX_DEPTH} levels deep; recipes need seven") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the last two from its dates, numbers and keys
        raise RecipeError(f"{name} is not valid YAML: {error}") from error
    check_depth(tree, name)
    return tree


def check_depth(tree: Any, name: str) -> None:
    """Refuse a tree that is nested more than `MAX_DEPTH` levels deep, or within itself."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = list({id(item): item for node in level for item in _child_nodes(node)}.values())
        if not level:
            return
    raise RecipeError(f"{name} is nested more than {MAX_DEPTH} levels deep; recipes need seven")


def _child_nodes(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    if isinstance(node, list):
        return node
    return []


def apply_override(tree: Mapping[str, Any], override: str) -> Mapping[str, Any]:
    """A copy of the tree with `dotted.key=value` applied; a stage goes by its number or its name."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r}: key=value is expected, such as seed=1 or stages.0.steps=100")
    parsed = parse_yaml(value, f"--set {override!r}: the value")
    changed: Mapping[str, Any] = _set_value(tree, key.strip().split("."), parsed, key.strip())
    return changed


def _set_value(node: Any, parts: list[str], value: Any, key: str) -> Any:
    """A copy of the node with the value at this place; missing mappings are made on the way."""
    if not parts:
        return value
    if isinstance(node, list):
        place = _find_item(node, parts[0], key)
        return [_set_value(item, parts[1:], value, key) if i == place else item for i, item in enumerate(node)]
    if node is not None and not isinstance(node, Mapping):
        raise RecipeError(f"--set {key}: there is no {parts[0]!r} in {reprlib.repr(node)}; remove it from the key")
    copy = dict(node or {})
    copy[parts[0]] = _set_value(copy.get(parts[0]), parts[1:], value, key)
    return copy


def _find_item(items: list[Any], part: str, key: str) -> int:
    names = [str(item.get("name")) for item in items if isinstance(item, Mapping) and "name" in item]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    choice = f"0 to {len(items) - 1}"
    if names:
        choice += f" or {', '.join(names)}"
    raise RecipeError(f"--set {key}: {part!r} names no item of that list; {choice} is expected")


def explain_faults(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One sentence for each fault: the path of the key, what is wrong with it, the cure."""
    for fault in error.errors():
        path = _format_path(fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{path} is not a known key; {_suggest_key(root, fault['loc'])}"
        elif fault["type"] == "missing":
            yield f"{path} is missing; add it"
        elif fault["type"] == "value_error":
            yield f"{path or 'recipe'}: {fault['ctx']['error']}"
        else:
            yield f"{path} is {reprlib.repr(fault['input'])}: {fault['msg']}"


def _format_path(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).lstrip(".")


def _suggest_key(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What could have been meant by the last key of this path."""
    parents = [part for part in location[:-1] if isinstance(part, str)]
    names = sorted(_field_names(root, parents))
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


def _field_names(model: type[BaseModel], parents: list[str]) -> list[str]:
    for part in parents:
        field = model.model_fields.get(part)
        classes = _model_classes(field.annotation) if field else []
        if not classes:
            return []
        model = classes[0]
    return list(model.model_fields)


def _model_classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in _model_classes(argument)]
