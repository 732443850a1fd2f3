"""Measuring backends: every one that can run the model is measured, on the same texts, and its vectors are compared."""

import json
from pathlib import Path

import pytest
import torch

from peg_rag import backend_speed
from peg_rag.backend_speed import measure_backends
from peg_rag.backends import torch_backend
from peg_rag.backends.linear import can_multiply_int8
from peg_rag.cli.app import run
from peg_rag.export import write_variant
from peg_rag.models import ModelSpec

TEXTS = ["如何更换花呗绑定银行卡", "报销需要哪些材料", "合同" * 40]


def test_every_backend_of_a_transformer_is_measured(tiny_bert: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("nncf")
    before = sorted(tiny_bert.rglob("*"))
    notes: list[str] = []
    speeds = measure_backends(tiny_bert, rounds=2, texts=TEXTS, notify=notes.append)
    variants = [(speed.backend, speed.dtype) for speed in speeds if speed.device == "cpu"]
    assert variants[0] == ("torch", "float32")
    assert (("torch", "int8") in variants) == can_multiply_int8(torch.float32)
    assert {("onnx", "float32"), ("onnx", "int8"), ("openvino", "int8")} < set(variants)
    assert len(set(variants)) == len(variants)
    assert speeds[0].min_cosine == pytest.approx(1.0, abs=1e-4)
    assert all(speed.tokens_per_s > 0 and speed.query_ms > 0 for speed in speeds)
    assert all(speed.min_cosine > 0.9 for speed in speeds)
    assert sum("temporary folder" in note for note in notes) == 4
    assert sorted(tiny_bert.rglob("*")) == before


def test_a_backend_that_fails_is_left_out(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")

    def fail_for_openvino(spec: ModelSpec, folder: Path, backend: str, dtype: str) -> None:
        if backend == "openvino":
            raise RuntimeError("no rule for aten::odd\nand a long trace")
        write_variant(spec, folder, backend, dtype)

    monkeypatch.setattr(backend_speed, "write_variant", fail_for_openvino)
    notes: list[str] = []
    speeds = measure_backends(tiny_bert, rounds=1, texts=TEXTS, notify=notes.append)
    assert {"torch", "onnx"} == {speed.backend for speed in speeds}
    assert "openvino (auto) cannot run this model and is left out: no rule for aten::odd" in notes


def test_a_machine_without_int8_products_measures_the_others(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "can_multiply_int8", lambda dtype: False)
    monkeypatch.setattr(backend_speed, "can_export", lambda backend, dtype: False)
    speeds = measure_backends(tiny_bert, rounds=1, texts=TEXTS)
    assert {speed.dtype for speed in speeds} <= {"float32", "bfloat16"}
    assert speeds[0].backend == "torch"


def test_the_command_prints_a_row_for_each_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--model", "peg-mini", "--bench", "--json"]) == 0
    (speed,) = json.loads(capsys.readouterr().out)["backends"]
    assert (speed["backend"], speed["min_cosine"]) == ("static", pytest.approx(1.0, abs=1e-4))
    assert run(["info", "--model", "peg-mini", "--bench"]) == 0
    assert "tokens/s" in capsys.readouterr().out
