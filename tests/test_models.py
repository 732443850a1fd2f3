"""Pooling, prompts and limits come from the right place, and a damaged folder is refused by the name of the file."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peg_rag.errors import DamagedModel, InvalidInput, ModelNotAvailable
from peg_rag.models import _MODEL_CARDS, bundled_path, resolve


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def write(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def sentence_transformers_layout(folder: Path, pooling: object) -> None:
    write(
        folder / "modules.json",
        [
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    write(folder / "1_Pooling" / "config.json", pooling)


def test_pooling_has_one_order_of_authority(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve(folder).pooling == "cls"
    assert "does not say how its token vectors are pooled" in caplog.text
    caplog.clear()
    sentence_transformers_layout(folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    assert resolve(folder).pooling == "mean"
    write(folder / "peg_rag.json", {"format": 1, "pooling": "max"})
    assert resolve(folder).pooling == "max"
    assert resolve(folder, pooling="lasttoken").pooling == "lasttoken"
    assert not caplog.records


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({}, "mean"),
    ],
)
def test_both_generations_of_pooling_files_are_read(folder: Path, config: dict[str, Any], pooling: str) -> None:
    sentence_transformers_layout(folder, config)
    assert resolve(folder).pooling == pooling


def test_pooling_that_we_cannot_do_is_refused_not_replaced(folder: Path) -> None:
    sentence_transformers_layout(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(DamagedModel, match=r"cls\+mean"):
        resolve(folder)
    with pytest.raises(InvalidInput, match="pooling='average'"):
        resolve(folder, pooling="average")


def test_a_module_we_do_not_run_is_refused(folder: Path) -> None:
    write(folder / "modules.json", [{"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(DamagedModel, match="Dense"):
        resolve(folder)


def hub_copy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))


@pytest.mark.parametrize(
    ("hub_id", "pooling", "query_prompt", "document_prompt"),
    [
        ("TownsWu/PEG", "cls", "", ""),
        ("BAAI/bge-large-zh-v1.5", "cls", "为这个句子生成表示以用于检索相关文章：", ""),
        ("moka-ai/m3e-base", "mean", "", ""),
        ("thenlper/gte-large-zh", "cls", "", ""),
        ("thenlper/gte-large", "mean", "", ""),
        ("intfloat/multilingual-e5-large", "mean", "query: ", "passage: "),
    ],
)
def test_known_hub_ids(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bert: Path,
    hub_id: str,
    pooling: str,
    query_prompt: str,
    document_prompt: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub_copy(monkeypatch, tiny_bert)
    spec = resolve(hub_id)
    assert (spec.pooling, spec.query_prompt, spec.document_prompt) == (pooling, query_prompt, document_prompt)
    assert resolve(hub_id, query_prompt="").query_prompt == ""
    assert not caplog.records


def test_the_table_of_known_ids_starts_with_peg() -> None:
    assert _MODEL_CARDS[0][0] == "TownsWu/PEG"


def test_the_default_is_peg_and_the_environment_can_change_it(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    hub_copy(monkeypatch, tiny_bert)
    monkeypatch.delenv("PEG_RAG_MODEL", raising=False)
    assert resolve().name == "TownsWu/PEG"
    monkeypatch.setenv("PEG_RAG_MODEL", "peg-mini")
    assert resolve().path == bundled_path("peg-mini")


def test_an_unreachable_hub_is_an_error_that_names_the_ways_out() -> None:
    with pytest.raises(ModelNotAvailable, match="local folder") as caught:
        resolve("TownsWu/PEG-that-is-nowhere")
    assert "peg-mini" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", Path("nowhere")])
def test_a_folder_that_is_not_there_never_becomes_a_hub_id(name: str | Path) -> None:
    with pytest.raises(ModelNotAvailable, match="no such folder"):
        resolve(name)


def test_limits_are_the_smallest_named(folder: Path) -> None:
    assert resolve(folder).max_length == 64
    write(folder / "sentence_bert_config.json", {"max_seq_length": 40})
    assert resolve(folder).max_length == 40
    assert resolve(folder, max_length=16).max_length == 16
    for wrong in (0, 2, 41):
        with pytest.raises(InvalidInput, match="from 3 to 40"):
            resolve(folder, max_length=wrong)


def test_prompts_come_from_the_folder(folder: Path) -> None:
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "问：", "passage": "文："}})
    spec = resolve(folder)
    assert (spec.query_prompt, spec.document_prompt) == ("问：", "文：")


def test_fingerprint_follows_the_weights_not_the_name(folder: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert resolve(same).fingerprint == resolve(folder).fingerprint
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    assert resolve(same).fingerprint != resolve(folder).fingerprint


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]),
            "model.safetensors",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"not a model"), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: write(f / "peg_rag.json", {"format": 99}), "peg_rag.json"),
    ],
)
def test_damage_names_the_file(folder: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(folder)
    with pytest.raises(DamagedModel, match=named):
        resolve(folder)


DEEP = "[" * 200_000


def set_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, **changes})


def shard_elsewhere(folder: Path, shard: object) -> None:
    """The weights in two files, one of which the index says lies at `shard`."""
    shutil.copy(folder / "model.safetensors", folder.parent / "stolen.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors", "b": shard}})


def write_shard_index(folder: Path, index: object) -> None:
    shard_elsewhere(folder, "a")
    write(folder / "model.safetensors.index.json", index)


def pooling_elsewhere(folder: Path, path: object) -> None:
    sentence_transformers_layout(folder, {"pooling_mode": "mean"})
    shutil.copytree(folder / "1_Pooling", folder.parent / "1_Pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    write(folder / "modules.json", modules)


def safetensors_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds a list"),
        (lambda f: (f / "config.json").write_text("null"), r"config\.json holds null"),
        (lambda f: (f / "config.json").write_text(DEEP), r"config\.json .*nested too deeply"),
        (lambda f: (f / "config.json").write_bytes(b" " * (65 << 20)), r"config\.json .*65 MiB"),
        (lambda f: set_config(f, hidden_size="32"), r"config\.json.*hidden_size"),
        (lambda f: set_config(f, hidden_size=0), r"config\.json.*hidden_size"),
        (lambda f: set_config(f, hidden_size=True), r"config\.json.*hidden_size"),
        (lambda f: set_config(f, hidden_size=float("inf")), r"config\.json.*hidden_size"),
        (lambda f: set_config(f, max_position_embeddings="64"), r"config\.json.*max_position_embeddings"),
        (lambda f: set_config(f, max_position_embeddings=10**8), r"config\.json.*max_position_embeddings=100000000"),
        (lambda f: set_config(f, max_position_embeddings=-1), r"config\.json.*max_position_embeddings=-1"),
        (lambda f: set_config(f, num_hidden_layers=-1), r"config\.json.*num_hidden_layers=-1"),
        (lambda f: set_config(f, num_hidden_layers=3), r"config\.json.*num_hidden_layers=3.*weights of 2"),
        (lambda f: set_config(f, num_hidden_layers=10**6), r"config\.json.*num_hidden_layers=1000000"),
        (lambda f: set_config(f, text_config={"n_layers": 10**6}), r"config\.json.*n_layers=1000000"),
        (lambda f: (f / "peg_rag.json").write_text("7"), r"peg_rag\.json holds a number"),
        (lambda f: write(f / "peg_rag.json", {"format": 1, "max_length": "9"}), r"peg_rag\.json.*max_length"),
        (lambda f: write(f / "peg_rag.json", {"format": 1, "pooling": ["cls"]}), r"asks for pooling"),
        (lambda f: write(f / "peg_rag.json", {"format": 1, "query_prompt": 7}), r"prompt.*'query'"),
        (lambda f: write(f / "sentence_bert_config.json", []), r"sentence_bert_config\.json holds a list"),
        (lambda f: write(f / "sentence_bert_config.json", {"max_seq_length": {}}), "max_seq_length"),
        (lambda f: write(f / "tokenizer_config.json", "a"), r"tokenizer_config\.json holds a string"),
        (lambda f: write(f / "config_sentence_transformers.json", {"prompts": [1]}), "prompts"),
        (lambda f: write(f / "config_sentence_transformers.json", {"prompts": {"query": 1}}), r"prompt.*'query'"),
        (lambda f: write(f / "modules.json", {"0": "Transformer"}), r"modules\.json holds an object"),
        (lambda f: write(f / "modules.json", ["Transformer"]), r"modules\.json"),
        (lambda f: (f / "modules.json").write_text(DEEP), r"modules\.json .*nested too deeply"),
        (lambda f: pooling_elsewhere(f, "../1_Pooling"), r"modules\.json.*'\.\./1_Pooling'.*outside"),
        (lambda f: pooling_elsewhere(f, str(f.parent / "1_Pooling")), r"modules\.json.*outside"),
        (lambda f: pooling_elsewhere(f, "..\\1_Pooling"), r"modules\.json.*outside"),
        (lambda f: pooling_elsewhere(f, 1), r"modules\.json"),
        (lambda f: sentence_transformers_layout(f, []), r"1_Pooling/config\.json holds a list"),
        (lambda f: shard_elsewhere(f, "../stolen.safetensors"), r"index\.json.*'\.\./stolen\.safetensors'.*outside"),
        (lambda f: shard_elsewhere(f, str(f.parent / "stolen.safetensors")), r"index\.json.*outside"),
        (lambda f: shard_elsewhere(f, "a/../../stolen.safetensors"), r"index\.json.*outside"),
        (lambda f: shard_elsewhere(f, None), r"index\.json"),
        (lambda f: shard_elsewhere(f, "model-2.safetensors"), r"model-2\.safetensors"),
        (lambda f: write_shard_index(f, {"weight_map": {}}), "index"),
        (lambda f: write_shard_index(f, {"weight_map": []}), "index"),
        (lambda f: write_shard_index(f, []), r"index\.json holds"),
        (lambda f: safetensors_header(f, b"[]"), r"model\.safetensors"),
        (lambda f: safetensors_header(f, DEEP.encode()), r"model\.safetensors"),
        (lambda f: safetensors_header(f, b'{"a": []}'), r"model\.safetensors"),
        (lambda f: safetensors_header(f, b'{"a": {"shape": 1, "data_offsets": [0, 0]}}'), r"model\.safetensors"),
        (lambda f: safetensors_header(f, b'{"a": {"shape": [1], "data_offsets": ["", ""]}}'), r"model\.safetensors"),
    ],
)
def test_hostile_folders_are_refused_by_the_name_of_the_file(
    folder: Path, damage: Callable[[Path], object], named: str
) -> None:
    damage(folder)
    with pytest.raises(DamagedModel, match=named) as caught:
        resolve(folder)
    assert len(str(caught.value)) < 500


def test_links_of_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    """A snapshot of the cache holds links to blobs that lie outside of it."""
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "0123")
    (folder / "model-1.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}})
    assert resolve(folder).dimension == 32


def test_a_model_that_shares_layers_or_names_none_is_not_refused(folder: Path) -> None:
    set_config(folder, num_hidden_layers=1, type_vocab_size=2, layer_norm_eps=1e-12, output_hidden_layers=[1, 2])
    assert resolve(folder).dimension == 32


@pytest.mark.parametrize("name", ["peg_mini", "PEG-mini", "pegmini", "peg-mnii", "PEG_MINI", "peg-min"])
def test_a_misspelt_bundled_name_is_answered_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelNotAvailable, match="Did you mean 'peg-mini'"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PEG", "TownsWu/PEG"),
        ("townswu/peg", "TownsWu/PEG"),
        ("TownWu/PEG", "TownsWu/PEG"),
        ("TownsWu/peg-mini", "peg-mini"),
    ],
)
def test_what_no_hub_has_is_answered_with_what_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(ModelNotAvailable, match=f"Did you mean '{meant}'"):
        resolve(name)


@pytest.mark.parametrize("name", ["BAAI/bge-small-zh-v1.5", "bert-base-chinese", "TownsWu/PEG"])
def test_other_names_are_answered_without_a_guess(name: str) -> None:
    with pytest.raises(ModelNotAvailable) as caught:
        resolve(name)
    assert "Did you mean" not in str(caught.value)
