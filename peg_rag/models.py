"""Which model: a hub id, a folder or a bundled name becomes a `ModelSpec` that says how its vectors are made.

Why this exists: a hub folder without `modules.json` (PEG's own, for one) does not say how to pool, and the usual
wrappers then take the mean although the model was trained with CLS; the vectors are wrong and nothing says so. Here
pooling has one order of authority: the argument, the folder's `peg_rag.json`, sentence-transformers' `modules.json`, a
small table of known ids, and last CLS with a logged warning. Costs a few small JSON reads; neither torch nor
transformers is imported.
"""

import hashlib
import logging
import os
import re
import struct
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from peg_rag.errors import DamagedModel, InvalidInput, ModelNotAvailable
from peg_rag.hub import MODELSCOPE, download_model, ways_out
from peg_rag.model_folder import inside, parse_json, read_number, read_object, read_objects

logger = logging.getLogger(__name__)

Pooling = Literal["cls", "mean", "max", "lasttoken"]
Kind = Literal["transformer", "static"]

DEFAULT_MODEL = "TownsWu/PEG"
BUNDLED = ("peg-mini",)
CONFIG_FILE = "peg_rag.json"
CONFIG_FORMAT = 1
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MAX_LAYERS = 1_000
_MAX_LENGTH = 1 << 21  # positions; the longest known have a million
_MAX_DIMENSION = 1 << 20
_MAX_HEADER_BYTES = 100 << 20  # as in the safetensors library
_UNLIMITED_LENGTH = 1_000_000  # from here on a tokenizer's model_max_length means "not known"
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers")
_LAYER_OF_A_TENSOR = re.compile(r"(?:.*?\.)?(?:layers?|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class ModelSpec:
    """A model on disk and how its vectors are made.

    Attributes:
        name: the hub id, bundled name or folder name it goes by.
        path: the folder that holds configuration, tokenizer and weights.
        kind: `transformer`, or `static` (a tokenizer and one matrix of token vectors).
        pooling: how token vectors become one text vector.
        max_length: tokens kept of a text, special tokens included.
        dimension: length of a text vector before any truncation.
        query_prompt: put before every query.
        document_prompt: put before every document.
        revision: the hub's commit where known, else the branch or tag.
        fingerprint: eight hex digits of the weights, so that two models of one name are told apart.
    """

    name: str
    path: Path
    kind: Kind
    pooling: Pooling
    max_length: int
    dimension: int
    query_prompt: str = ""
    document_prompt: str = ""
    revision: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class _ModelCard:
    """What a model's card says of it and its folder may not."""

    pooling: Pooling
    query_prompt: str = ""
    document_prompt: str = ""


_BGE_ZH = "为这个句子生成表示以用于检索相关文章："
_BGE_EN = "Represent this sentence for searching relevant passages: "
_MODEL_CARDS: list[tuple[str, _ModelCard]] = [
    (r"TownsWu/PEG", _ModelCard("cls")),
    (r"BAAI/bge-(small|base|large)-zh.*", _ModelCard("cls", query_prompt=_BGE_ZH)),
    (r"BAAI/bge-(small|base|large)-en.*", _ModelCard("cls", query_prompt=_BGE_EN)),
    (r"BAAI/bge-.*", _ModelCard("cls")),
    (r"moka-ai/m3e-.*", _ModelCard("mean")),
    (r"thenlper/gte-.*-zh", _ModelCard("cls")),
    (r"thenlper/gte-.*", _ModelCard("mean")),
    (r"intfloat/(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", _ModelCard("mean", "query: ", "passage: ")),
]


def resolve(
    model: str | Path | None = None,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    revision: str | None = None,
) -> ModelSpec:
    """Find a model and how its vectors are made.

    Args:
        model: a hub id (`owner/name`, `modelscope:owner/name`), a folder or a bundled name; None for
            `$PEG_RAG_MODEL`, else `TownsWu/PEG`.
        pooling, max_length, query_prompt, document_prompt: override what the model says of itself.
        revision: a hub branch, tag or commit.

    Raises:
        ModelNotAvailable: no such folder, or the hub cannot be reached. There is never a fall-back to another model.
        MissingExtra: the model is on ModelScope, whose client is not installed.
        DamagedModel: a file of the folder is missing, truncated or of an unknown form.
        InvalidInput: an override is out of range.
    """
    name, path, commit = _locate_folder(model, revision)
    config = _read_config(path)
    if isinstance(config.get("name"), str):
        name = config["name"]  # an exported model keeps the name of the one that it was made from
    modules = _read_modules(path)
    card = next((k for pattern, k in _MODEL_CARDS if re.fullmatch(pattern, name, re.IGNORECASE)), None)
    prompts = _read_prompts(path, config)
    kind = _read_kind(path, modules)
    weights = weight_files(path)
    if kind == "transformer":
        _check_layers(path, weights)
    limit = _find_length_limit(path, config, kind)
    if max_length is not None and not 3 <= max_length <= limit:
        raise InvalidInput(f"max_length={max_length}, but {name} takes from 3 to {limit} tokens")
    return ModelSpec(
        name=name,
        path=path,
        kind=kind,
        pooling=_choose_pooling(name, kind, pooling, config, modules, card, path),
        max_length=max_length or limit,
        dimension=_read_dimension(path, kind),
        query_prompt=_first_given(query_prompt, prompts.get("query"), card.query_prompt if card else None),
        document_prompt=_first_given(
            document_prompt,
            prompts.get("document"),
            prompts.get("passage"),
            card.document_prompt if card else None,
        ),
        revision=commit,
        fingerprint=_hash_weights(weights),
    )


def weight_files(path: Path) -> list[Path]:
    """The files that hold a model folder's weights: safetensors (whole or in shards), else `pytorch_model.bin`.

    Raises:
        DamagedModel: none is there, or a safetensors file is truncated.
    """
    base = path
    for folder in (path, *sorted(path.glob("*_StaticEmbedding"))):
        if (folder / "model.safetensors").is_file():
            base = folder
            break
    single_file = base / "model.safetensors"
    index = base / "model.safetensors.index.json"
    if single_file.is_file():
        weights = [single_file]
    elif index.is_file():
        weights = _read_shards(index)
    elif (base / "pytorch_model.bin").is_file():
        return [base / "pytorch_model.bin"]
    else:
        raise DamagedModel(
            f"{path} holds no weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin is expected"
        )
    for file in weights:
        safetensors_shapes(file)
    return weights


def _read_shards(index: Path) -> list[Path]:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DamagedModel(f"{index} names no shards: an object weight_map, tensor → file, is expected")
    files = {inside(index.parent, shard, index) for shard in shards.values()}
    return sorted(files)


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    Raises:
        DamagedModel: the file is missing, truncated or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (header_size,) = struct.unpack("<Q", stream.read(8))
            if header_size > min(size, _MAX_HEADER_BYTES):
                raise ValueError(f"a header of {header_size} bytes is too long")
            header = parse_json(stream.read(header_size))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        end = 8 + header_size + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes are there, {end} are expected")
        return {key: [int(side) for side in value["shape"]] for key, value in tensors.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise DamagedModel(
            f"{file} is not a whole safetensors file ({error}); copy or download the model again"
        ) from error


def bundled_model_of(identity: str) -> str | None:
    """The bundled model of that identity; None if it is of another model. A wrong one is refused by its identity."""
    name = identity.partition("@")[0]
    return name if name in BUNDLED else None


def bundled_path(name: str) -> Path:
    """Where a bundled model lies in the installed package."""
    return Path(str(files("peg_rag") / "assets" / name))


def _locate_folder(model: str | Path | None, revision: str | None) -> tuple[str, Path, str | None]:
    """→ (name, folder, revision on the hub)."""
    name = str(model) if model is not None else os.environ.get("PEG_RAG_MODEL") or DEFAULT_MODEL
    if name in BUNDLED:
        return name, bundled_path(name), None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve().name, folder, None
    hub_id = name.removeprefix(MODELSCOPE)
    if isinstance(model, Path) or folder.exists() or not _HUB_ID.fullmatch(hub_id) or hub_id.startswith("."):
        raise ModelNotAvailable(f"model {name!r}: there is no such folder. {ways_out()}")
    guess = _guess_name(hub_id)
    if guess is not None and "/" not in hub_id:
        raise ModelNotAvailable(f"model {name!r} is not known. Did you mean {guess!r}? {ways_out()}")
    try:
        path, commit = download_model(name, revision)
    except ModelNotAvailable as error:
        if guess is None:
            raise
        raise ModelNotAvailable(f"Did you mean {guess!r}? {error}") from error
    return hub_id, path, commit


def _guess_name(name: str) -> str | None:
    """The name that a user who wrote this one may have meant, or None."""
    names = {_keep_letters(bundled): bundled for bundled in BUNDLED}
    names |= {_keep_letters(f"TownsWu/{bundled}"): bundled for bundled in BUNDLED}
    names |= {_keep_letters(DEFAULT_MODEL): DEFAULT_MODEL, _keep_letters("PEG"): DEFAULT_MODEL}
    matches = get_close_matches(_keep_letters(name), names, n=1, cutoff=0.8)
    guess = names[matches[0]] if matches else None
    return None if guess == name else guess


def _keep_letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _read_config(path: Path) -> dict[str, Any]:
    config = read_object(path / CONFIG_FILE, missing={})
    if config and config.get("format") != CONFIG_FORMAT:
        raise DamagedModel(
            f"{path / CONFIG_FILE} has format {config.get('format')!r}, this version of peg_rag reads {CONFIG_FORMAT}; "
            "update peg_rag"
        )
    return config


def _read_modules(path: Path) -> list[dict[str, Any]] | None:
    """sentence-transformers' list of modules, or None where the folder has none."""
    file = path / "modules.json"
    modules = read_objects(file, missing=None)
    for module in modules or []:
        inside(path, module.get("path", ""), file)
        if _module_name(module) not in ("Transformer", "Pooling", "Normalize", "StaticEmbedding"):
            raise DamagedModel(
                f"{file} asks for a {_module_name(module)} module, which peg_rag does not run; "
                "Transformer, Pooling, Normalize and StaticEmbedding are known"
            )
    return modules


def _module_name(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _read_kind(path: Path, modules: list[dict[str, Any]] | None) -> Kind:
    if modules is not None:
        return "static" if any(_module_name(m) == "StaticEmbedding" for m in modules) else "transformer"
    if (path / "config.json").is_file():
        return "transformer"
    raise DamagedModel(f"{path} is no model folder: it has neither config.json nor modules.json")


def _choose_pooling(
    name: str,
    kind: Kind,
    override: str | None,
    config: dict[str, Any],
    modules: list[dict[str, Any]] | None,
    card: _ModelCard | None,
    path: Path,
) -> Pooling:
    if override is not None and override not in get_args(Pooling):
        raise InvalidInput(f"pooling={override!r}, but one of {', '.join(get_args(Pooling))} is expected")
    if kind == "static":
        if override not in (None, "mean"):
            raise InvalidInput(f"pooling={override!r}, but {name} is a static model, which always takes the mean")
        return "mean"
    pooling = override or config.get("pooling") or _modules_pooling(path, modules) or (card and card.pooling)
    if pooling is None:
        logger.warning(
            "%s does not say how its token vectors are pooled; CLS is taken, as for PEG. If the model was trained "
            "otherwise, pass pooling='mean' (or what its card says).",
            name,
        )
        return "cls"
    if pooling not in get_args(Pooling):
        raise DamagedModel(f"{path} asks for pooling {pooling!r}; peg_rag knows {', '.join(get_args(Pooling))}")
    return cast(Pooling, pooling)


def _modules_pooling(path: Path, modules: list[dict[str, Any]] | None) -> str | None:
    """The mode in sentence-transformers' pooling folder: `pooling_mode` (newer) or `pooling_mode_*` flags (older)."""
    folder = next((m.get("path", "") for m in modules or [] if _module_name(m) == "Pooling"), None)
    if folder is None:
        return None
    config = read_object(path / folder / "config.json")
    mode = config.get("pooling_mode")
    if mode is None:
        flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        names = [flag.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for flag in flags]
        mode = "+".join(names) or "mean"
    return "+".join(map(str, mode)) if isinstance(mode, list) else str(mode)


def _read_prompts(path: Path, config: dict[str, Any]) -> dict[str, str]:
    file = path / "config_sentence_transformers.json"
    prompts = read_object(file, missing={}).get("prompts") or {}
    if not isinstance(prompts, dict):
        raise DamagedModel(f"{file} has prompts that are no object; role → prompt is expected")
    prompts = {role: text for role, text in prompts.items() if text}
    for role in ("query", "document"):
        if f"{role}_prompt" in config:
            prompts[role] = config[f"{role}_prompt"]
    for role, text in prompts.items():
        if not isinstance(text, str):
            raise DamagedModel(f"{path} has a prompt for {role!r} that is not a string")
    return prompts


def _find_length_limit(path: Path, config: dict[str, Any], kind: Kind) -> int:
    """The smallest of the limits that the folder's files name; 512 where none does."""
    sentence_file = path / "sentence_bert_config.json"
    limits = [
        read_number(config, "max_length", path / CONFIG_FILE, largest=_MAX_LENGTH),
        read_number(read_object(sentence_file, missing={}), "max_seq_length", sentence_file, largest=_MAX_LENGTH),
        _read_tokenizer_limit(path),
        _count_positions(path) if kind == "transformer" else None,
    ]
    return min((limit for limit in limits if limit is not None), default=512)


def _read_tokenizer_limit(path: Path) -> int | None:
    file = path / "tokenizer_config.json"
    settings = read_object(file, missing={})
    limit = settings.get("model_max_length")
    if isinstance(limit, (int, float)) and limit >= _UNLIMITED_LENGTH:
        return None
    return read_number(settings, "model_max_length", file, largest=_MAX_LENGTH)


def _count_positions(path: Path) -> int | None:
    file = path / "config.json"
    config = read_object(file, missing={})
    positions = read_number(config, "max_position_embeddings", file, largest=_MAX_LENGTH)
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return max(1, positions - 2)  # these start counting positions after the padding index
    return positions


def _read_dimension(path: Path, kind: Kind) -> int:
    if kind == "static":
        file = weight_files(path)[0]
        shape = safetensors_shapes(file).get("embedding.weight")
        if shape is None or len(shape) != 2 or 0 in shape:
            raise DamagedModel(f"{file} holds no two-dimensional tensor embedding.weight, which a static model needs")
        return shape[1]
    file = path / "config.json"
    config = read_object(file)
    sizes = (read_number(config, key, file, largest=_MAX_DIMENSION) for key in ("hidden_size", "dim", "d_model"))
    size = next((size for size in sizes if size is not None), None)
    if size is None:
        raise DamagedModel(f"{file} does not say hidden_size; is this a text encoder?")
    return size


def _check_layers(path: Path, weights: list[Path]) -> None:
    """Refuse a count of layers that the weights do not bear out: building them could take minutes and all memory."""
    file = path / "config.json"
    config = read_object(file)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _LAYER_COUNTS:
            read_number(part, key, file, largest=_MAX_LAYERS)
    names = [name for weight in weights if weight.suffix == ".safetensors" for name in safetensors_shapes(weight)]
    layers = [int(match[1]) + 1 for name in names if (match := _LAYER_OF_A_TENSOR.match(name))]
    for key in _LAYER_COUNTS:
        count = config.get(key)
        if layers and count is not None and count > max(layers):
            raise DamagedModel(f"{file} has {key}={count}, but {path} holds weights of {max(layers)} layers")


def _hash_weights(weights: list[Path], samples: int = 64, sample_bytes: int = 4096) -> str:
    """Eight hex digits from sizes and evenly spread samples: changed weights are noticed without reading gigabytes."""
    digest = hashlib.sha256()
    for file in weights:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for i in range(samples):
                stream.seek(size * i // samples)
                digest.update(stream.read(sample_bytes))
    return digest.hexdigest()[:8]


def _first_given(*values: str | None) -> str:
    """The first value that is given; an empty string counts as given."""
    return next((value for value in values if value is not None), "")
