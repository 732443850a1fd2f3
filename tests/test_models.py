"""Pooling, prompts and limits come from the right place, and a damaged folder is refused by the name of the file."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from peg_rag.errors import DamagedModel, InvalidInput, ModelNotAvailable
from peg_rag.models import _KNOWN, bundled_path, resolve


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def write(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def sentence_transformers_layout(folder: Path, pooling: dict[str, object]) -> None:
    write(
        folder / "modules.json",
        [
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    write(folder / "1_Pooling" / "config.json", pooling)


def test_pooling_has_one_order_of_authority(folder, caplog):
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
def test_both_generations_of_pooling_files_are_read(folder, config, pooling):
    sentence_transformers_layout(folder, config)
    assert resolve(folder).pooling == pooling


def test_pooling_that_we_cannot_do_is_refused_not_replaced(folder):
    sentence_transformers_layout(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(DamagedModel, match=r"cls\+mean"):
        resolve(folder)
    with pytest.raises(InvalidInput, match="pooling='average'"):
        resolve(folder, pooling="average")


def test_a_module_we_do_not_run_is_refused(folder):
    write(folder / "modules.json", [{"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(DamagedModel, match="Dense"):
        resolve(folder)


def hub_copy(monkeypatch, folder):
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
def test_known_hub_ids(monkeypatch, tiny_bert, hub_id, pooling, query_prompt, document_prompt, caplog):
    hub_copy(monkeypatch, tiny_bert)
    spec = resolve(hub_id)
    assert (spec.pooling, spec.query_prompt, spec.document_prompt) == (pooling, query_prompt, document_prompt)
    assert resolve(hub_id, query_prompt="").query_prompt == ""
    assert not caplog.records


def test_the_table_of_known_ids_starts_with_peg():
    assert _KNOWN[0][0] == "TownsWu/PEG"


def test_the_default_is_peg_and_the_environment_can_change_it(monkeypatch, tiny_bert):
    hub_copy(monkeypatch, tiny_bert)
    monkeypatch.delenv("PEG_RAG_MODEL", raising=False)
    assert resolve().name == "TownsWu/PEG"
    monkeypatch.setenv("PEG_RAG_MODEL", "peg-mini")
    assert resolve().path == bundled_path("peg-mini")


def test_an_unreachable_hub_is_an_error_that_names_the_ways_out():
    with pytest.raises(ModelNotAvailable, match="local folder") as caught:
        resolve("TownsWu/PEG-that-is-nowhere")
    assert "peg-mini" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", Path("nowhere")])
def test_a_folder_that_is_not_there_never_becomes_a_hub_id(name):
    with pytest.raises(ModelNotAvailable, match="no such folder"):
        resolve(name)


def test_limits_are_the_smallest_named(folder):
    assert resolve(folder).max_length == 64
    write(folder / "sentence_bert_config.json", {"max_seq_length": 40})
    assert resolve(folder).max_length == 40
    assert resolve(folder, max_length=16).max_length == 16
    for wrong in (0, 2, 41):
        with pytest.raises(InvalidInput, match="from 3 to 40"):
            resolve(folder, max_length=wrong)


def test_prompts_come_from_the_folder(folder):
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "问：", "passage": "文："}})
    spec = resolve(folder)
    assert (spec.query_prompt, spec.document_prompt) == ("问：", "文：")


def test_fingerprint_follows_the_weights_not_the_name(folder, tmp_path):
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
def test_damage_names_the_file(folder, damage, named):
    damage(folder)
    with pytest.raises(DamagedModel, match=named):
        resolve(folder)
