"""The layers without padding give what the forward of `transformers` gives, for every model and pooling they take."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag import PEGEncoder
from peg_rag.backends import torch_backend
from peg_rag.backends.linear import (
    CublasLinear,
    FusedLinear,
    Int8Linear,
    Linear,
    PlainLinear,
    can_multiply_int8,
    pick_linear,
)
from peg_rag.backends.torch_backend import pool
from peg_rag.backends.unpadded import UnpaddedEncoder, can_run_unpadded
from peg_rag.errors import InvalidInput

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 400,
    "hidden_dropout_prob": 0.5,  # no vector may depend on chance
}
MODELS = ["Bert", "Roberta", "XLMRoberta", "Ernie"]


def make_model(name: str, dtype: torch.dtype = torch.float32, **changes: object) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype)


def make_batch(lengths: list[int], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(len(lengths))
    ids = torch.full((len(lengths), max(lengths)), pad, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(random.integers(3, 120, length))
    return ids, torch.tensor(lengths)


@torch.inference_mode()
def compute_both(
    name: str, lengths: list[int], dtype: torch.dtype = torch.float32, linear: type[Linear] | None = None
) -> tuple[torch.Tensor, ...]:
    """States by transformers, without padding, and the first tokens' without padding; zero on padding."""
    model = make_model(name, dtype)
    ids, counts = make_batch(lengths, model.config.pad_token_id or 0)
    mask = (torch.arange(ids.shape[1]) < counts[:, None]).long()
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    encoder = UnpaddedEncoder(model, linear or pick_linear(dtype))
    return expected, encoder.compute_states(ids, counts), encoder.compute_first_states(ids, counts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [[1], [7], [5, 5, 5], [9, 4, 1], [330, 12], [330]])
def test_states_equal_those_of_transformers(name: str, lengths: list[int]) -> None:
    expected, states, first = compute_both(name, lengths)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(first, expected[:, 0], atol=2e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_lengths_give_the_same_states(lengths: list[int]) -> None:
    expected, states, first = compute_both("Bert", lengths)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(first, expected[:, 0], atol=2e-5, rtol=1e-4)


def test_plain_products_give_the_same_states() -> None:
    expected, states, first = compute_both("Bert", [9, 4, 1], linear=PlainLinear)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(first, expected[:, 0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_products_of_cublas_give_the_same_states(name: str) -> None:
    """The CPU's own version of the operator that cuBLAS fuses on CUDA."""
    expected, states, first = compute_both(name, [9, 4, 1], linear=CublasLinear)
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(first, expected[:, 0], atol=2e-5, rtol=1e-4)


def test_products_that_answer_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedLinear, "apply_gelu", lambda linear, states: states)
    assert pick_linear(torch.float32) is PlainLinear


def test_products_that_are_not_there_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert pick_linear(torch.float32) is PlainLinear


def test_no_code_leaves_its_byte() -> None:
    """In bfloat16 a rounded scale may carry the largest value above 127, to the code of the smallest."""
    if not can_multiply_int8(torch.bfloat16):
        pytest.skip("the processor has no VNNI")
    states = torch.linspace(0.01, 9, 4096).bfloat16()[:, None] * torch.tensor([[1.0, -1.0]]).bfloat16()
    linear = Int8Linear(torch.eye(2).bfloat16(), torch.zeros(2).bfloat16())
    torch.testing.assert_close(linear(states), states, atol=0.0, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_are_those_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    if not can_multiply_int8(dtype):
        pytest.skip("the processor has no VNNI")
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=random).to(dtype)
    bias = torch.randn(96, generator=random).to(dtype)
    states = torch.randn(7, 64, generator=random).to(dtype)
    states[3] = 0
    scales = weight.float().abs().amax(dim=1) / 127
    codes = (weight.float() / scales[:, None]).round()
    steps = states.abs().amax(dim=1, keepdim=True).float() / 126
    rounded = torch.where(steps > 0, (states.float() / steps).round(), 0)
    expected = (rounded @ codes.T) * scales * steps + bias.float()
    linear = Int8Linear(weight, bias)
    tolerance = 1e-3 if dtype == torch.float32 else 0.15  # a code may differ by one where bfloat16 rounds
    torch.testing.assert_close(linear(states).float(), expected, atol=tolerance, rtol=0.02)
    added = linear.add_to(expected.to(dtype), states).float()
    torch.testing.assert_close(added, 2 * expected, atol=2 * tolerance, rtol=0.02)


def test_int8_says_where_it_runs(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "can_multiply_int8", lambda dtype: False)
    with pytest.raises(InvalidInput, match="VNNI; 'auto'"):
        PEGEncoder(tiny_bert, dtype="int8", backend="torch").encode_queries(["法"])
    monkeypatch.setattr(torch_backend, "can_run_unpadded", lambda model: False)
    with pytest.raises(InvalidInput, match="BERT-shaped models on the CPU"):
        PEGEncoder(tiny_bert, dtype="int8", backend="torch").encode_queries(["法"])


def test_bfloat16_is_as_near_to_float32_as_that_of_transformers() -> None:
    exact, _, _ = compute_both("Bert", [30, 22, 9])
    plain, states, first = compute_both("Bert", [30, 22, 9], torch.bfloat16)
    distance = (plain.float() - exact).norm()
    assert (states.float() - exact).norm() < 1.5 * distance
    assert (first.float() - exact[:, 0]).norm() < 1.5 * (plain.float() - exact)[:, 0].norm()


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_the_backend_pools_what_the_model_gives(tiny_bert: Path, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["法", "差旅报销需要哪些材料", "发票丢失了怎么办，" * 9, "合同生效之后"]
    vectors = PEGEncoder(tiny_bert, pooling=pooling, dtype="float32", backend="torch").encode_documents(texts)
    monkeypatch.setattr(torch_backend, "can_run_unpadded", lambda model: False)
    plain = PEGEncoder(tiny_bert, pooling=pooling, dtype="float32", backend="torch").encode_documents(texts)
    np.testing.assert_allclose(vectors, plain, atol=1e-5)


def test_a_row_without_tokens_disturbs_no_other() -> None:
    model = make_model("Bert")
    encoder = UnpaddedEncoder(model, PlainLinear)
    backend = object.__new__(torch_backend.TorchBackend)
    backend._pooling = "cls"
    ids, lengths = make_batch([6, 3])
    ids = torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)])
    mask = (torch.arange(6) < torch.tensor([6, 3, 0])[:, None]).long()
    with torch.inference_mode():
        vectors = backend._pool_unpadded(encoder, ids, mask).numpy()
        expected = encoder.compute_first_states(ids[:2], lengths).numpy()
    np.testing.assert_allclose(vectors[:2], expected, atol=1e-5)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"is_decoder": True}, {"num_hidden_layers": 0}])
def test_other_layers_are_left_to_transformers(changes: dict[str, object]) -> None:
    assert not can_run_unpadded(make_model("Bert", torch.float32, **changes))


def test_layers_that_multiply_otherwise_are_left_to_transformers() -> None:
    """An adapter or a quantised layer keeps its module's name, and its `weight` is not all of the product."""

    class Adapted(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) + 1

    model = make_model("Bert")
    assert can_run_unpadded(model)
    model.encoder.layer[1].output.dense = Adapted(160, 64)
    assert not can_run_unpadded(model)


def test_a_backend_that_closes_meanwhile_says_so(tiny_bert: Path) -> None:
    backend: Any = PEGEncoder(tiny_bert, backend="torch")._get_model()[1]

    class ClosingLock:
        """A lock that another thread's `close` takes first."""

        def __enter__(self) -> None:
            backend._model = None

        def __exit__(self, *_: object) -> None:
            pass

    backend._lock = ClosingLock()
    with pytest.raises(InvalidInput, match="closed"):
        backend.embed([[1, 2]])


def test_other_models_are_left_to_transformers() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    assert not can_run_unpadded(DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2)))


def test_padding_is_zero_and_pooled_away() -> None:
    _, states, _ = compute_both("Bert", [9, 4])
    assert not states[1, 4:].any()
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    assert torch.equal(pool(states, mask, "lasttoken")[1], states[1, 3])
