"""Attention among packed tokens: the slow twin on the CPU, torch's kernel on CUDA, both against transformers."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unpadded import MODELS, make_batch, make_model

from peg_rag import PEGEncoder
from peg_rag.backends import attention, torch_backend
from peg_rag.backends.attention import (
    Attention,
    PaddedAttention,
    TextwiseAttention,
    TokenPlaces,
    VarlenAttention,
    can_attend_varlen,
)
from peg_rag.backends.linear import CublasLinear, Linear, PlainLinear
from peg_rag.backends.unpadded import UnpaddedEncoder
from peg_rag.training.model.unpadded import can_train_unpadded, compute_unpadded_states

BATCHES = [[1], [7], [5, 5, 5], [9, 4, 1], [330, 12]]
needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and can_attend_varlen(torch.device("cuda:0"), torch.bfloat16, 64)),
    reason="torch's attention for texts of unlike lengths needs CUDA from Ampere on and torch 2.10 or later",
)


def make_mask(lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_padded_attention_equals_that_of_single_texts(lengths: list[int]) -> None:
    places = TokenPlaces(torch.tensor(lengths), max(lengths))
    random = torch.Generator().manual_seed(sum(lengths))
    query = torch.randn(sum(lengths), 32, generator=random)
    key_value = torch.randn(sum(lengths), 64, generator=random)
    padded = PaddedAttention(places, 4, torch.float32)
    exact = TextwiseAttention(places, 4, torch.float32)
    torch.testing.assert_close(padded.attend(query, key_value), exact.attend(query, key_value))
    first = query[places.firsts]
    torch.testing.assert_close(padded.attend_first(first, key_value), exact.attend_first(first, key_value))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_comes_and_goes(lengths: list[int]) -> None:
    places = TokenPlaces(torch.tensor(lengths), max(lengths))
    states = torch.arange(1.0, 2 * sum(lengths) + 1).view(-1, 2)
    padded = places.pad(states)
    assert padded.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(places.drop_padding(padded), states)
    assert not padded[places.padding].any()
    assert torch.equal(states[places.firsts], padded[:, 0])
    assert places.bounds.tolist() == [0, *np.cumsum(lengths)]
    assert places.bounds.dtype == torch.int32


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", BATCHES)
def test_the_slow_twin_gives_the_states_of_transformers(name: str, lengths: list[int]) -> None:
    model = make_model(name)
    ids, counts = make_batch(lengths, model.config.pad_token_id or 0)
    mask = make_mask(counts)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
        encoder = UnpaddedEncoder(model, PlainLinear, TextwiseAttention)
        torch.testing.assert_close(encoder.compute_states(ids, counts), expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.compute_first_states(ids, counts), expected[:, 0], atol=2e-5, rtol=1e-4)


def test_the_kernel_is_not_used_where_it_cannot_run() -> None:
    assert not can_attend_varlen(torch.device("cpu"), torch.bfloat16, 64)
    assert not can_attend_varlen(torch.device("cuda:0"), torch.float32, 64)
    assert not can_train_unpadded(make_model("Bert"), torch.device("cpu"))


def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an old torch, a device without the kernel or a width of heads that it does not take."""

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel")

    probe = attention.can_attend_varlen.__wrapped__
    on_cpu: Any = type("Device", (), {"type": "cuda", "__str__": lambda device: "cpu"})()
    monkeypatch.setattr(attention, "TokenPlaces", lambda lengths, longest, device: TokenPlaces(lengths, longest))
    monkeypatch.setattr(torch, "linspace", _linspace_on_cpu)
    monkeypatch.setattr(attention, "VarlenAttention", TextwiseAttention)
    assert probe(on_cpu, torch.bfloat16, 16)
    monkeypatch.setattr(attention, "VarlenAttention", type("Wrong", (PaddedAttention,), {"attend": lambda _, q, k: q}))
    assert not probe(on_cpu, torch.bfloat16, 16)
    monkeypatch.setattr(attention, "VarlenAttention", type("Broken", (PaddedAttention,), {"attend": refuse}))
    assert not probe(on_cpu, torch.bfloat16, 16)


def _linspace_on_cpu(start: float, stop: float, steps: int, device: object) -> torch.Tensor:
    return torch.arange(steps) / (steps - 1) * (stop - start) + start


def compute_gradient(model: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of a fixed sum over the states of real tokens, for all weights in one row."""
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states.device)
    (states.double() * weights * mask[:, :, None]).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def train_three(
    name: str, kind: type[Attention], device: str, dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """States and gradient in the weights' precision, in `dtype` with padding, and in `dtype` without padding."""
    model = make_model(name, torch.float64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)  # so that no attention is all on one token, where gradients vanish
    model.to(device, torch.float64 if dtype == torch.float64 else torch.float32).train()
    ids, lengths = make_batch([33, 7, 1, 20], model.config.pad_token_id or 0)
    mask = make_mask(lengths).to(device)
    ids = ids.to(device)
    results = []
    for padded, enabled in ((True, False), (True, True), (False, True)):
        one = copy.deepcopy(model)
        with torch.autocast(device, dtype, enabled=enabled and dtype != torch.float64):
            if padded:
                states = one(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
            else:
                one.gradient_checkpointing_enable()
                states = compute_unpadded_states(one, ids, mask, kind)
        results.append((states.detach(), compute_gradient(one, states, mask)))
    return results


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", MODELS)
def test_training_without_padding_has_the_same_gradients(name: str) -> None:
    exact, _, unpadded = train_three(name, TextwiseAttention, "cpu", torch.float64)
    torch.testing.assert_close(unpadded[0], exact[0])
    torch.testing.assert_close(unpadded[1], exact[1])
    assert exact[1].norm() > 1


def test_after_training_without_padding_the_model_still_takes_padded_batches(tmp_path: Path) -> None:
    model = make_model("Bert")
    ids, lengths = make_batch([9, 4])
    mask = make_mask(lengths)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        compute_unpadded_states(model, ids, mask, TextwiseAttention)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    assert "peg_rag" not in (tmp_path / "config.json").read_text()


@needs_cuda
@pytest.mark.parametrize("linear", [PlainLinear, CublasLinear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", BATCHES)
def test_on_cuda_the_kernel_gives_the_states_of_transformers(
    lengths: list[int], dtype: torch.dtype, linear: type[Linear]
) -> None:
    model = make_model("Bert").cuda()
    ids, counts = make_batch(lengths)
    mask = make_mask(counts)
    with torch.inference_mode():
        inputs = {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}
        exact = model(**inputs).last_hidden_state.cpu() * mask[:, :, None]
        rounded = model.to(dtype)(**inputs).last_hidden_state.float().cpu() * mask[:, :, None]
        encoder = UnpaddedEncoder(model, linear, VarlenAttention)
        states = encoder.compute_states(ids, counts).float().cpu()
        first = encoder.compute_first_states(ids, counts).float().cpu()
    assert (states - exact).norm() < 2 * (rounded - exact).norm()
    assert (first - exact[:, 0]).norm() < 3 * (rounded - exact)[:, 0].norm()


@needs_cuda
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", MODELS)
def test_on_cuda_gradients_are_as_near_to_float32_as_with_padding(name: str) -> None:
    exact, padded, unpadded = train_three(name, VarlenAttention, "cuda", torch.bfloat16)
    for place in (0, 1):
        distance = (padded[place] - exact[place]).norm()
        assert (unpadded[place] - exact[place]).norm() < 1.5 * distance


@needs_cuda
def test_on_cuda_training_skips_padding_in_half_precision_without_dropout() -> None:
    device = torch.device("cuda:0")
    model = make_model("Bert", attention_probs_dropout_prob=0.1).cuda()
    assert not can_train_unpadded(model, device)
    with torch.autocast("cuda", torch.bfloat16):
        assert can_train_unpadded(model, device)
        assert not can_train_unpadded(model.train(), device)


@needs_cuda
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_on_cuda_vectors_are_those_of_float32(tiny_bert: Path, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["法", "差旅报销需要哪些材料", "发票丢失了怎么办，" * 9, "合同生效之后"]
    with PEGEncoder(tiny_bert, pooling=pooling, dtype="float32", device="cuda") as encoder:
        exact = encoder.encode_documents(texts)
    with PEGEncoder(tiny_bert, pooling=pooling, dtype="bfloat16", device="cuda") as encoder:
        backend: Any = encoder._get_model()[1]
        assert isinstance(backend._model, UnpaddedEncoder)
        vectors = encoder.encode_documents(texts)
    monkeypatch.setattr(torch_backend, "can_run_unpadded", lambda model: False)
    with PEGEncoder(tiny_bert, pooling=pooling, dtype="bfloat16", device="cuda") as encoder:
        padded = encoder.encode_documents(texts)
    assert (vectors * exact).sum(axis=1).min() > 0.999
    assert (vectors * padded).sum(axis=1).min() > 0.999


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cuda_many_batches_on_their_way_keep_their_places(tiny_bert: Path, dtype: str) -> None:
    texts = [f"第{number}条" + "合同生效之后" * (number % 9) for number in range(1_500)]
    with PEGEncoder(tiny_bert, dtype=dtype, device="cuda", batch_tokens=512) as encoder:
        vectors = encoder.encode_documents(texts)
    with PEGEncoder(tiny_bert, dtype="float32", device="cpu", backend="torch") as encoder:
        exact = encoder.encode_documents(texts)
    assert (vectors * exact).sum(axis=1).min() > 0.999


def test_the_kernel_is_there_where_it_has_to_be() -> None:
    """On the machine that measures, a test that is skipped has shown nothing."""
    if not os.environ.get("PEG_RAG_NEEDS_CUDA"):
        pytest.skip("set PEG_RAG_NEEDS_CUDA=1 where the tests on CUDA have to run")
    assert can_attend_varlen(torch.device("cuda:0"), torch.bfloat16, 64)
