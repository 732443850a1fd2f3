"""From the text of a recipe and `--set` overrides to a plain tree, and from pydantic's faults to sentences.

YAML is stricter here than by default: a key that stands twice in a mapping would silently lose its first value, and
nesting without end would end in a traceback.
"""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

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
        place = _locate_fault(root, fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{place.path} is not a known key; {_suggest_key(place, str(fault['loc'][-1]))}"
        elif fault["type"] == "missing":
            yield f"{place.path} is missing; add it"
        elif fault["type"] == "value_error":
            yield f"{place.path or 'recipe'}: {fault['ctx']['error']}"
        elif fault["type"] == "union_tag_not_found":
            yield f"{place.path}.kind is missing; it is one of {', '.join(sorted(place.kinds))}"
        elif fault["type"] == "union_tag_invalid":
            yield f"{place.path}.kind is {fault['ctx']['tag']!r}; it is one of {', '.join(sorted(place.kinds))}"
        else:
            message = _EXPECTED.get(fault["type"], fault["msg"])
            yield f"{place.path} is {reprlib.repr(fault['input'])}: {message}"


_EXPECTED = {
    "list_type": "a list is expected, such as [a, b]",
    "tuple_type": "a list is expected, such as [a, b]",
    "dict_type": "a mapping of keys and values is expected",
    "model_type": "a mapping of keys and values is expected; {} takes the defaults",
    "model_attributes_type": "a mapping of keys and values is expected, such as {kind: …}",
}


@dataclass(frozen=True)
class _Place:
    """Where a fault is: its path as the recipe has it, the model that its last key is in, and the kinds to choose from.

    The kinds stand where the last key names one of several components.
    """

    path: str
    owner: type[BaseModel] | None
    kinds: Mapping[str, type[BaseModel]]


def _locate_fault(root: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's location, in which the kind of a component is a step of its own, as the path has none."""
    path = ""
    owner: type[BaseModel] | None = None
    model: type[BaseModel] | None = root
    kinds: dict[str, type[BaseModel]] = {}
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in kinds:
            model = kinds[part]
            kinds = {}
        else:
            path += f".{part}"
            owner = model
            field = model.model_fields.get(part) if model is not None else None
            classes = _model_classes(field.annotation) if field is not None else []
            model = classes[0] if len(classes) == 1 else None
            kinds = {_kind_of(option): option for option in classes} if len(classes) > 1 else {}
    return _Place(path.lstrip("."), owner, kinds)


def _kind_of(model: type[BaseModel]) -> str:
    """The name of a component in recipes: the one value of its `kind`."""
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _suggest_key(place: _Place, key: str) -> str:
    """What could have been meant by the last key of this path."""
    names = sorted(place.owner.model_fields) if place.owner is not None else []
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


def _model_classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _model_classes(argument)]
