"""The published model through the real clients of the hubs, against a hub on this machine that also misbehaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, running_hub

from peg_rag import PEGEncoder

MEBIBYTE = 1 << 20
PEG = "TownsWu/PEG"

RESOLVE = """
import json
from peg_rag.errors import PegRagError
from peg_rag.models import resolve
try:
    spec = resolve({arguments})
    print(json.dumps({{"name": spec.name, "pooling": spec.pooling, "revision": spec.revision, "path": str(spec.path),
                      "fingerprint": spec.fingerprint}}))
except PegRagError as error:
    print(json.dumps({{"error": type(error).__name__, "message": str(error)}}))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as started:
        yield started


@pytest.fixture(scope="session")
def peg_files(tiny_bert: Path) -> dict[str, bytes]:
    """A small BERT in the layout of PEG's repository: no `modules.json`, and files that are not for us."""
    files = {file.name: file.read_bytes() for file in tiny_bert.iterdir()}
    return {**files, "README.md": b"# PEG", ".gitattributes": b"*.bin lfs", "training_args.bin": b"a" * 100_000}


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Resolve a model in a fresh process that knows only this hub, with a cache that is empty at first."""

    def run(arguments: str = "", code: str = RESOLVE, **variables: str) -> dict[str, Any]:
        environment = {
            **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hugging-face"),
            "HF_HUB_OFFLINE": "0",
            "MODELSCOPE_ENDPOINT": hub.url,
            "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
            "MODELSCOPE_HOME": str(tmp_path / "modelscope-home"),
            "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0",
            "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
            **variables,
        }
        if "PEG_RAG_MODEL" not in variables:
            environment.pop("PEG_RAG_MODEL", None)
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run


def assert_two_ways_out(answer: dict[str, Any]) -> None:
    assert answer["error"] == "ModelNotAvailable"
    assert "local folder" in answer["message"]
    assert "peg-mini" in answer["message"]
    assert "Traceback" not in answer["message"]


def with_padding(weights: bytes, size: int) -> bytes:
    """The same weights and a tensor of `size` bytes that the model does not know."""
    from safetensors.numpy import load, save

    noise = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    return save({**load(weights), "padding": noise}, metadata={"format": "pt"})


# -- Hugging Face -----------------------------------------------------------------------------------------------------


def test_the_default_model_embeds_with_cls(hub: Hub, fetch: Any, peg_files: dict[str, bytes], tiny_bert: Path) -> None:
    """`PEGEmbeddings()` as a user writes it: from the hub to vectors."""
    hub.push(PEG, peg_files)
    code = (
        "import json; from peg_rag import PEGEmbeddings\n"
        "with PEGEmbeddings() as embeddings:\n"
        "    vectors = embeddings.embed_documents(['花呗', '故宫门票'])\n"
        "    print(json.dumps({{'vectors': vectors, 'name': embeddings.identity}}))"
    )
    answer = fetch(code=code)
    expected = PEGEncoder(tiny_bert, pooling="cls").encode_documents(["花呗", "故宫门票"])
    np.testing.assert_allclose(answer["vectors"], expected, atol=1e-6)
    assert answer["name"].startswith("PEG@")
    assert "/cls/" in answer["name"]


def test_only_what_is_needed_is_fetched_once(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    commit = hub.push(PEG, peg_files)
    answer = fetch()
    assert (answer["name"], answer["pooling"], answer["revision"]) == (PEG, "cls", commit)
    assert sorted(hub.served) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert any(path.startswith("/store/") for _, path, _ in hub.requests)  # the redirect was followed
    hub.repair()
    assert fetch() == answer
    assert hub.served == []


def test_a_new_commit_costs_only_the_files_that_changed(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    first = fetch_first(hub, fetch, peg_files)
    changed = {**peg_files, "tokenizer_config.json": peg_files["tokenizer_config.json"] + b"\n"}
    second = hub.push(PEG, changed)
    hub.repair()
    answer = fetch()
    assert (answer["revision"], answer["fingerprint"]) == (second, first["fingerprint"])
    assert not [path for method, path, _ in hub.requests if method == "GET" and "/store/" in path]  # the ETag is known


def fetch_first(hub: Hub, fetch: Any, files: dict[str, bytes], **variables: str) -> dict[str, Any]:
    hub.push(PEG, files)
    answer: dict[str, Any] = fetch(**variables)
    assert "error" not in answer
    return answer


def test_a_revision_is_what_it_was(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    old = hub.push(PEG, peg_files, branch="v1")
    new = hub.push(PEG, {**peg_files, "peg_rag.json": b'{"format": 1, "pooling": "mean"}'})
    tag = fetch("revision='v1'")
    assert (tag["revision"], tag["pooling"]) == (old, "cls")
    assert fetch(f"revision='{old}'") == tag
    newest = fetch()
    assert (newest["revision"], newest["pooling"]) == (new, "mean")
    missing = fetch("revision='v9'")
    assert_two_ways_out(missing)
    assert "v9" in missing["message"]


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.cut_after = 13 * MEBIBYTE  # the client writes ten at a time
    weights = with_padding(peg_files["model.safetensors"], 24 * MEBIBYTE)
    answer = fetch_first(hub, fetch, {**peg_files, "model.safetensors": weights})
    assert Path(answer["path"], "model.safetensors").read_bytes() == weights
    starts = [int(given.removeprefix("bytes=").rstrip("-")) for _, path, given in hub.requests if given]
    assert len(starts) == 1
    assert 0 < starts[0] <= 13 * MEBIBYTE


@pytest.mark.parametrize("offline", ["0", "1"], ids=["hub down", "HF_HUB_OFFLINE"])
def test_what_is_in_the_cache_needs_no_hub(hub: Hub, fetch: Any, peg_files: dict[str, bytes], offline: str) -> None:
    answer = fetch_first(hub, fetch, peg_files)
    nowhere = "http://127.0.0.1:9"
    assert fetch(HF_ENDPOINT=nowhere, HF_HUB_OFFLINE=offline) == answer
    assert_two_ways_out(fetch("'TownsWu/another'", HF_ENDPOINT=nowhere, HF_HUB_OFFLINE=offline))


@pytest.mark.parametrize(
    ("failure", "served"),
    [(503, 0), (503, 2), (404, 2), pytest.param(0, 2, marks=pytest.mark.slow)],  # the client tries the last for long
)
def test_a_mirror_that_fails_half_way(
    hub: Hub, fetch: Any, peg_files: dict[str, bytes], failure: int, served: int
) -> None:
    hub.push(PEG, peg_files)
    hub.files_left = served
    hub.failure = failure
    assert_two_ways_out(fetch())
    assert_two_ways_out(fetch(HF_HUB_OFFLINE="1"))  # half a model is none
    hub.repair()
    answer = fetch()
    assert answer["pooling"] == "cls"
    assert len(hub.served) <= 4 - served


def test_what_is_no_hub_is_told_from_one(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.push(PEG, peg_files)
    hub.portal = True
    assert_two_ways_out(fetch())
    hub.repair()
    hub.without_commit = True
    assert_two_ways_out(fetch())
    assert_two_ways_out(fetch(HF_ENDPOINT="no address"))
    assert_two_ways_out(fetch("'TownsWu/private'"))


def test_a_repository_without_weights_is_no_model(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.push(PEG, {name: content for name, content in peg_files.items() if name != "model.safetensors"})
    answer = fetch()
    assert_two_ways_out(answer)
    assert "model.safetensors" in answer["message"]


def test_shards_and_old_weights_are_fetched(hub: Hub, fetch: Any, peg_files: dict[str, bytes], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    files = dict(peg_files)
    weights = files.pop("model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    shards = {"model-00001-of-00001.safetensors": weights, "model.safetensors.index.json": json.dumps(index).encode()}
    hub.push("a/sharded", {**files, **shards})
    torch.save(load(weights), tmp_path / "old.bin")
    hub.push("a/old", {**files, "pytorch_model.bin": (tmp_path / "old.bin").read_bytes()})
    assert fetch("'a/sharded', pooling='cls'")["pooling"] == "cls"
    assert fetch("'a/old', pooling='cls'")["pooling"] == "cls"
    assert "pytorch_model.bin" in hub.served


# -- ModelScope -------------------------------------------------------------------------------------------------------


def test_modelscope_gives_the_same_model(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.push(PEG, peg_files)
    hub.push(PEG, peg_files, branch="master")
    theirs = fetch()
    hub.repair()
    ours = fetch(PEG_RAG_MODEL=f"modelscope:{PEG}")
    for key in ("name", "pooling", "fingerprint"):
        assert ours[key] == theirs[key]
    assert sorted(hub.served) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    hub.repair()
    assert fetch(f"'modelscope:{PEG}'") == ours
    assert hub.served == []
    assert fetch(f"'modelscope:{PEG}'", MODELSCOPE_ENDPOINT="http://127.0.0.1:9") == ours  # from its cache


def test_modelscope_takes_a_revision_and_old_weights(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.push(PEG, {**peg_files, "peg_rag.json": b'{"format": 1, "pooling": "max"}'}, branch="v2")
    answer = fetch(f"'modelscope:{PEG}', revision='v2'")
    assert (answer["pooling"], answer["revision"]) == ("max", "v2")
    assert_two_ways_out(fetch(f"'modelscope:{PEG}', revision='v3'"))
    assert_two_ways_out(fetch("'modelscope:TownsWu/another'"))
    assert_two_ways_out(fetch("'modelscope:no id'"))


def test_a_modelscope_that_fails_half_way(hub: Hub, fetch: Any, peg_files: dict[str, bytes]) -> None:
    hub.push(PEG, peg_files, branch="master")
    hub.files_left = 2
    assert_two_ways_out(fetch(f"'modelscope:{PEG}'"))
    assert_two_ways_out(fetch(f"'modelscope:{PEG}'", MODELSCOPE_ENDPOINT="http://127.0.0.1:9"))
    hub.repair()
    assert fetch(f"'modelscope:{PEG}'")["pooling"] == "cls"
    assert len(hub.served) == 2


def test_a_hub_cannot_write_outside_of_the_cache(
    hub: Hub, fetch: Any, peg_files: dict[str, bytes], tmp_path: Path
) -> None:
    escapes = {"../../../../escaped.json": b"{}", str(tmp_path / "absolute.json"): b"{}"}
    hub.push(PEG, {**peg_files, **escapes}, branch="master")
    assert_two_ways_out(fetch(f"'modelscope:{PEG}'"))
    hub.push(PEG, {**peg_files, **escapes})
    assert_two_ways_out(fetch())
    assert not list(tmp_path.rglob("*escaped.json"))
    assert not list(tmp_path.glob("absolute.json"))


def test_without_its_client_modelscope_says_how_to_get_it(fetch: Any) -> None:
    code = "import sys; sys.modules['modelscope_hub'] = None\n" + RESOLVE
    answer = fetch(f"'modelscope:{PEG}'", code=code)
    assert answer["error"] == "MissingExtra"
    assert "pip install 'peg-rag[modelscope]'" in answer["message"]
