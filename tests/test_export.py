"""Exported models: their vectors are those of torch in float32; what differs is refused and leaves nothing behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag import PEGEncoder, export
from peg_rag.backends.base import backend_names
from peg_rag.backends.exported import RUNTIMES, pool_states
from peg_rag.cache import CachedEncoder
from peg_rag.cli.app import run
from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.export import export_model

pytest.importorskip("onnxscript")
TEXTS = [
    "如何更换花呗绑定银行卡",
    "花呗",
    "北京故宫的门票需要提前多少天预约？",
    "合同" * 40,
    "",
    "a",
    "报销需要哪些材料",
]
VARIANTS = [("onnx", "auto"), ("onnx", "int8"), ("openvino", "auto"), ("openvino", "int8")]
LIMITS = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.1}  # of 1 − cosine; the weights of the tiny model are wild


@pytest.fixture(scope="module")
def exported(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT in all four variants."""
    folder = tmp_path_factory.mktemp("exported") / "all"
    for backend, dtype in VARIANTS:
        export_model(tiny_bert, folder, backend=backend, dtype=dtype, min_cosine=0.5, max_ndcg_loss=1.0)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_every_exported_backend_has_its_tools_and_its_writer() -> None:
    assert set(RUNTIMES) == set(export._TOOLS) == set(export._WRITERS)
    assert set(RUNTIMES) < set(backend_names("transformer"))


def reference(tiny_bert: Path, **settings: Any) -> np.ndarray:
    return PEGEncoder(tiny_bert, backend="torch", dtype="float32", **settings).encode_documents(TEXTS)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8")],
)
def test_vectors_equal_those_of_torch(exported: Path, tiny_bert: Path, backend: str, dtype: str, pooling: str) -> None:
    with PEGEncoder(exported, backend=backend, dtype=dtype, pooling=pooling, batch_tokens=100) as encoder:
        vectors = encoder.encode_documents(TEXTS)
        assert (encoder.backend_name, encoder.dtype, encoder.device) == (backend, dtype, "cpu")
    cosines = (vectors * reference(tiny_bert, pooling=pooling)).sum(axis=1)
    assert 1 - cosines.min() <= LIMITS[dtype]


def test_pooling_in_numpy_equals_pooling_in_torch() -> None:
    import torch

    from peg_rag.backends.torch_backend import pool

    states = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    mask = (np.arange(6) < np.array([[1], [3], [6], [2]])).astype(np.int64)
    for pooling in ("cls", "mean", "max", "lasttoken"):
        expected = pool(torch.tensor(states), torch.tensor(mask), pooling).numpy()
        np.testing.assert_allclose(pool_states(states, mask, pooling), expected, rtol=1e-6)


def test_an_export_keeps_the_identity_and_caches_apart(exported: Path, tiny_bert: Path, tmp_path: Path) -> None:
    plain = PEGEncoder(tiny_bert, backend="torch", dtype="float32")
    encoders = [plain, PEGEncoder(exported, backend="onnx"), PEGEncoder(exported, backend="openvino", dtype="float32")]
    assert {encoder.identity for encoder in encoders} == {plain.identity}
    assert len({encoder.fingerprint for encoder in encoders}) == 3
    for encoder in encoders:
        cached = CachedEncoder(encoder, tmp_path / "cache")
        cached.encode_documents(["花呗"])
        assert cached.misses == 1


def test_auto_takes_what_was_exported(copy: Path, tiny_bert: Path) -> None:
    def chosen(**settings: Any) -> tuple[str, str]:
        with PEGEncoder(copy, device="cpu", **settings) as encoder:
            return encoder.backend_name, encoder.dtype

    assert PEGEncoder(tiny_bert, device="cpu").backend_name == "torch"
    assert chosen()[0] == "openvino"
    assert chosen()[1] in ("float32", "bfloat16")
    assert chosen(dtype="int8") == ("openvino", "int8")
    assert chosen(dtype="float16") == ("torch", "float16")
    assert chosen(backend="torch")[0] == "torch"
    shutil.rmtree(copy / "compiled" / "openvino")
    assert chosen() == ("openvino", "int8")
    shutil.rmtree(copy / "compiled" / "openvino-int8")
    assert chosen() == ("onnx", "float32")
    shutil.rmtree(copy / "compiled")
    assert chosen()[0] == "torch"


def test_weights_that_changed_are_not_answered_for_by_an_old_export(copy: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    for backend in ("onnx", "openvino"):
        with pytest.raises(DamagedModel, match=r"exported from other weights.*peg-rag export"):
            PEGEncoder(copy, backend=backend)


@pytest.mark.parametrize(
    ("backend", "file"), [("onnx", "model.onnx"), ("openvino", "model.xml"), ("openvino", "model.bin")]
)
def test_a_damaged_export_is_named(copy: Path, backend: str, file: str) -> None:
    path = copy / "compiled" / backend / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedModel, match=backend):
        PEGEncoder(copy, backend=backend)
    path.unlink()
    with pytest.raises(DamagedModel, match=backend):
        PEGEncoder(copy, backend=backend)


def test_options_that_cannot_be_are_refused(exported: Path, tiny_bert: Path) -> None:
    for backend in ("onnx", "openvino"):
        with pytest.raises(InvalidInput, match=r"peg-rag export"):
            PEGEncoder(tiny_bert, backend=backend)
        with pytest.raises(InvalidInput, match="device='cuda'"):
            PEGEncoder(exported, backend=backend, device="cuda")
        with pytest.raises(InvalidInput, match="dtype='float16'"):
            PEGEncoder(exported, backend=backend, dtype="float16")


def test_what_differs_too_much_is_refused_and_leaves_nothing(tiny_bert: Path, tmp_path: Path, exported: Path) -> None:
    with pytest.raises(InvalidInput, match=r"int8 gives vectors with a cosine of 0\.9"):
        export_model(tiny_bert, tmp_path / "out", backend="openvino", dtype="int8", min_cosine=0.99999)
    assert not list(tmp_path.iterdir())
    folder = Path(shutil.copytree(exported, tmp_path / "more"))
    shutil.rmtree(folder / "compiled" / "openvino-int8")
    before = sorted(folder.rglob("*"))
    with pytest.raises(InvalidInput, match="nothing was written"):
        export_model(tiny_bert, folder, backend="openvino", dtype="int8", min_cosine=0.99999)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(InvalidInput, match=r"nDCG@10 of 0\.\d+ over 128 queries.*a loss of at most -1"):
        export_model(tiny_bert, folder, backend="openvino", dtype="int8", min_cosine=0.5, max_ndcg_loss=-1.0)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(InvalidInput, match="exists; remove it"):
        export_model(tiny_bert, folder, backend="onnx")
    assert sorted(folder.rglob("*")) == before


def test_the_ndcg_of_an_encoder_is_that_of_the_usual_formula() -> None:
    from peg_rag.evaluation import score_run

    papers = export.read_papers(40)
    with PEGEncoder("peg-mini") as encoder:
        queries = encoder.encode_queries([title for title, _ in papers])
        documents = encoder.encode_documents([abstract[-export._ENDING :] for _, abstract in papers])
        score = export._score_retrieval(encoder, papers)
    run = {str(q): {str(d): float(queries[q] @ documents[d]) for d in range(40)} for q in range(40)}
    expected = score_run(run, {str(q): {str(q): 1} for q in range(40)}, ["nDCG@10"])
    assert 0 < score < 1
    assert score == pytest.approx(expected["nDCG@10"].mean(), abs=1e-6)


def test_wrong_models_and_places_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="static model"):
        export_model("peg-mini", tmp_path / "out", backend="onnx")
    with pytest.raises(InvalidInput, match="backend='tensorrt'"):
        export_model(tiny_bert, tmp_path / "out", backend="tensorrt")
    with pytest.raises(InvalidInput, match="dtype='int4'"):
        export_model(tiny_bert, tmp_path / "out", backend="onnx", dtype="int4")
    (tmp_path / "notes").mkdir()
    with pytest.raises(DamagedModel, match="no model folder"):
        export_model(tiny_bert, tmp_path / "notes", backend="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_command_says_how_near_the_vectors_are(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert run(["export", str(tiny_bert), str(out), "--backend", "openvino"]) == 0
    printed = capsys.readouterr().out
    assert "cosine to float32 over 64 passages" in printed
    record = json.loads((out / "compiled" / "openvino" / "export.json").read_text())
    assert f"worst {record['min_cosine']:.4f}" in printed
    assert record["min_cosine"] > 0.99
    assert f"nDCG@10 over 128 queries {record['ndcg']:.4f}, float32 {record['float32_ndcg']:.4f}" in printed
    assert run(["export", str(tiny_bert), str(out), "--backend", "openvino"]) == 2
    assert "exists" in capsys.readouterr().err
