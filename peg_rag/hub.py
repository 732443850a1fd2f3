"""Fetching a model: from Hugging Face or any mirror of it, or from ModelScope, which users in China reach more easily.

The hubs' own clients do the work (caching, ETags, going on after a cut, revisions), so their variables hold here too:
`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`; `MODELSCOPE_ENDPOINT`, `MODELSCOPE_CACHE`. What is in their cache needs no
network. Whatever goes wrong on the way ends in one error that names the ways out, and half a model is never opened.
"""

import json
import os
from fnmatch import fnmatch
from pathlib import Path

from peg_rag.errors import DamagedModel, MissingExtra, ModelNotAvailable
from peg_rag.extras import require
from peg_rag.files import write_atomically
from peg_rag.model_folder import inside, read_object

MODELSCOPE = "modelscope:"
_SMALL_FILES = ["*.json", "vocab.txt", "*.model", "merges.txt", "1_Pooling/*", "*_StaticEmbedding/*"]
_SAFETENSORS = "model*.safetensors"
_OLD_WEIGHTS = "pytorch_model.bin"
_LISTING = ".peg_rag_files.json"  # written beside a snapshot of ModelScope once all its files are there


def download_model(hub_id: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model in the cache of its hub, fetched first where it is not there yet, and its revision.

    Args:
        hub_id: `owner/name` on Hugging Face, or `modelscope:owner/name`.
        revision: a branch, tag or commit.

    Raises:
        ModelNotAvailable: the hub cannot be reached, fails, or does not have the whole model.
        MissingExtra: ModelScope's client is not installed.
    """
    from_modelscope = hub_id.startswith(MODELSCOPE)
    download = _download_from_modelscope if from_modelscope else _download_from_hugging_face
    hub = "ModelScope" if from_modelscope else "the hub"
    try:
        folder = download(hub_id.removeprefix(MODELSCOPE), revision)
        missing_file = _find_missing_file(folder)
    except MissingExtra:
        raise
    except Exception as error:  # the clients and what stands in for a hub raise errors of many kinds
        raise ModelNotAvailable(
            f"model {hub_id!r} is no folder here, is not in the local hub cache and could not be fetched from {hub} "
            f"({_describe_error(error)}). {ways_out()}"
        ) from error
    if missing_file is not None:
        raise ModelNotAvailable(
            f"model {hub_id!r} is incomplete: {missing_file} is neither in {folder} nor offered by {hub}. {ways_out()}"
        )
    if from_modelscope:
        return folder, revision
    return folder, folder.name if folder.parent.name == "snapshots" else revision


def ways_out() -> str:
    """What a user can do who has no model: the end of every `ModelNotAvailable`."""
    return (
        "Two ways out: give the path of a local folder that holds the model (PEGEmbeddings(model='path/to/PEG') or "
        "$PEG_RAG_MODEL), or use the small model that is bundled and needs no network (model='peg-mini'). "
        "Vectors of different models do not mix: an index made with one cannot be searched with the other."
    )


def _download_from_hugging_face(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(weights: str) -> Path:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_SMALL_FILES, weights]))

    folder = fetch(_SAFETENSORS)
    return folder if list(folder.glob(_SAFETENSORS)) else fetch(_OLD_WEIGHTS)


def _download_from_modelscope(hub_id: str, revision: str | None) -> Path:
    client = require("modelscope_hub", "modelscope")
    # A token that is given, if only an empty one, keeps the client from unpickling the cookies of an earlier login.
    api = client.HubApi(config=client.HubConfig(token=os.environ.get("MODELSCOPE_API_TOKEN", "")))
    try:
        files = api.list_repo_files(hub_id, "model", revision=revision)
    except client.NetworkError as error:
        folder = Path(api.download_repo(hub_id, "model", revision=revision, local_files_only=True))
        _check_listing(folder, error)
        return folder
    names = _choose_files([file.path for file in files if file.type != "tree"])
    entries = [{"Path": file.path, "Size": file.size, "Sha256": file.sha256} for file in files if file.path in names]
    for path in names:
        inside(Path(hub_id), path, Path(f"{MODELSCOPE}{hub_id}"))
    folder = Path(api.download_repo(hub_id, "model", revision=revision, file_list=entries))
    write_atomically(folder / _LISTING, json.dumps({"files": sorted(names)}).encode())
    return folder


def _check_listing(folder: Path, error: Exception) -> None:
    """Refuse a snapshot without the network that was not fetched to its end: the client keeps no record of that."""
    names = read_object(folder / _LISTING, missing={}).get("files")
    if not isinstance(names, list) or not all((folder / str(name)).is_file() for name in names):
        raise FileNotFoundError(f"{folder} holds a part of the model, and the rest cannot be fetched: {error}")


def _choose_files(paths: list[str]) -> set[str]:
    """The small files, and the weights as safetensors where there are any."""
    weights = _SAFETENSORS if any(fnmatch(path, _SAFETENSORS) for path in paths) else _OLD_WEIGHTS
    patterns = [*_SMALL_FILES, weights]
    return {path for path in paths if any(fnmatch(path, pattern) for pattern in patterns)}


def _find_missing_file(folder: Path) -> str | None:
    """A file without which the folder is no model, or None: a download that was cut leaves some of them."""
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        return "config.json"
    tokenizers = ("tokenizer.json", "*_StaticEmbedding/tokenizer.json", "vocab.txt", "vocab.json", "*.model")
    if not any(any(folder.glob(pattern)) for pattern in tokenizers):
        return "tokenizer.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            shards = read_object(index).get("weight_map") or {}
            return next((name for name in shards.values() if not inside(folder, name, index).is_file()), None)
        except DamagedModel:
            return None  # whoever opens the model says what is wrong with it
    patterns = (_SAFETENSORS, f"*_StaticEmbedding/{_SAFETENSORS}", _OLD_WEIGHTS)
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        return "model.safetensors"
    return None


def _describe_error(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else words[:299] + "…"
