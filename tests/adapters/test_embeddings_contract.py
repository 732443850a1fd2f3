"""What both adapters promise, asserted once for both: the same encoder behind them, so the same answers from them."""

import asyncio
import gc
import os
import pickle
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder

from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DamagedModel, InvalidInput, ModelNotAvailable, PegRagError
from peg_rag.langchain import PEGEmbeddings
from peg_rag.llama_index import PEGEmbedding

TEXTS = ["如何更换花呗绑定银行卡", "花呗更改绑定银行卡", "北京故宫门票", "a", "逾期还款" * 9]


class Adapter:
    """One vocabulary over the two frameworks' method names."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        langchain = cls is PEGEmbeddings
        self.model_argument = "model" if langchain else "model_name"
        self.documents = "embed_documents" if langchain else "get_text_embedding_batch"
        self.query = "embed_query" if langchain else "get_query_embedding"

    def open(self, model: Path | str, **settings: Any) -> Any:
        return self.cls(**{self.model_argument: model, **settings})

    def embed_documents(self, embedding: Any, texts: Any) -> Any:
        return getattr(embedding, self.documents)(texts)

    def embed_query(self, embedding: Any, text: Any) -> Any:
        return getattr(embedding, self.query)(text)

    async def aembed_documents(self, embedding: Any, texts: Any) -> Any:
        return await getattr(embedding, "a" + self.documents)(texts)

    async def aembed_query(self, embedding: Any, text: Any) -> Any:
        return await getattr(embedding, "a" + self.query)(text)


@pytest.fixture(params=[PEGEmbeddings, PEGEmbedding], ids=["langchain", "llama_index"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return Adapter(request.param)


@pytest.fixture
def embedding(adapter: Adapter, tiny_bert: Path) -> Any:
    return adapter.open(tiny_bert, dtype="float32")


def test_embed_query(adapter: Adapter, embedding: Any) -> None:
    first, second = adapter.embed_query(embedding, "foo"), adapter.embed_query(embedding, "bar")
    assert isinstance(first, list)
    assert type(first[0]) is float
    assert len(first) == len(second) == 32


def test_embed_documents(adapter: Adapter, embedding: Any) -> None:
    vectors = adapter.embed_documents(embedding, TEXTS)
    assert len(vectors) == len(TEXTS)
    assert all(type(value) is float for vector in vectors for value in vector)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_async_twins_agree(adapter: Adapter, embedding: Any) -> None:
    assert await adapter.aembed_query(embedding, "foo") == adapter.embed_query(embedding, "foo")
    assert await adapter.aembed_documents(embedding, TEXTS) == adapter.embed_documents(embedding, TEXTS)


def test_vectors_are_the_encoders(adapter: Adapter, embedding: Any, tiny_bert: Path) -> None:
    with PEGEncoder(tiny_bert, dtype="float32") as encoder:
        assert np.array_equal(adapter.embed_documents(embedding, TEXTS), encoder.encode_documents(TEXTS))
        assert np.array_equal([adapter.embed_query(embedding, TEXTS[0])], encoder.encode_queries(TEXTS[:1]))


def test_pooling_is_cls_where_other_wrappers_take_the_mean(adapter: Adapter, embedding: Any, tiny_bert: Path) -> None:
    import torch
    from langchain_huggingface import HuggingFaceEmbeddings
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from transformers import AutoModel, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(tiny_bert)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        first_token = AutoModel.from_pretrained(tiny_bert)(**batch).last_hidden_state[:, 0]  # (texts, 32)
    expected = torch.nn.functional.normalize(first_token, dim=1).numpy()
    wrapper = HuggingFaceEmbeddings if adapter.cls is PEGEmbeddings else HuggingFaceEmbedding
    theirs = np.array(adapter.embed_documents(wrapper(model_name=str(tiny_bert)), TEXTS))
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    ours = np.array(adapter.embed_documents(embedding, TEXTS))
    assert np.abs(ours - expected).max() < 1e-5
    assert (ours * theirs).sum(axis=1).max() < 0.99


def test_nothing_gives_nothing(adapter: Adapter, embedding: Any) -> None:
    assert adapter.embed_documents(embedding, []) == []


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["nested"]], ids=["none", "number", "bytes", "list"])
def test_a_bad_item_is_named_at_once(adapter: Adapter, embedding: Any, bad: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"\[1\] is of type {type(bad).__name__}"):
        adapter.embed_documents(embedding, ["good", bad])
    with pytest.raises(InvalidInput, match=type(bad).__name__):
        adapter.embed_query(embedding, bad)
    assert embedding.encoder.stats.texts == 0  # nothing was embedded before the refusal


@pytest.mark.parametrize("bad", ["a bare string", b"bytes", None, 7])
def test_a_list_is_due(adapter: Adapter, embedding: Any, bad: Any) -> None:
    with pytest.raises(InvalidInput, match=type(bad).__name__):
        adapter.embed_documents(embedding, bad)


async def test_bad_input_is_refused_in_async_too(adapter: Adapter, embedding: Any) -> None:
    with pytest.raises(InvalidInput, match=r"\[0\] is of type NoneType"):
        await adapter.aembed_documents(embedding, [None])
    with pytest.raises(InvalidInput, match="bare"):
        await adapter.aembed_documents(embedding, "bare")


def test_blank_query_is_an_error_and_blank_document_has_a_vector(adapter: Adapter, embedding: Any) -> None:
    with pytest.raises(InvalidInput, match="blank"):
        adapter.embed_query(embedding, "  ")
    empty, blank = adapter.embed_documents(embedding, ["", " \n"])
    assert np.allclose(empty, blank)
    assert np.isclose(np.linalg.norm(empty), 1)


def test_lone_surrogates_and_nul_are_embedded(adapter: Adapter, embedding: Any) -> None:
    vectors = adapter.embed_documents(embedding, ["花呗\ud800", "花呗\x00"])
    assert np.isfinite(vectors).all()
    assert embedding.encoder.stats.replaced == 2


def test_truncation_is_counted_and_cheap(adapter: Adapter, embedding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer gets as many characters of a book as of a long page."""
    lengths: list[int] = []
    tokenize = PEGEncoder._tokenize_texts

    def count(self: PEGEncoder, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return tokenize(self, tokenizer, texts)

    monkeypatch.setattr(PEGEncoder, "_tokenize_texts", count)
    for length in (10_000, 1_000_000):
        adapter.embed_documents(embedding, ["花呗" * (length // 2)])
    assert lengths[1] == lengths[0] < 10_000
    assert embedding.encoder.stats.tokens == 2 * embedding.encoder.spec.max_length
    assert embedding.encoder.stats.truncated == 2


def test_prompts_are_separate(adapter: Adapter, tiny_bert: Path) -> None:
    prompted = adapter.open(tiny_bert, dtype="float32", query_prompt="如何", document_prompt="的")
    plain = adapter.open(tiny_bert, dtype="float32")
    assert adapter.embed_query(prompted, "花呗") == adapter.embed_query(plain, "如何花呗")
    assert adapter.embed_documents(prompted, ["花呗"]) == adapter.embed_documents(plain, ["的花呗"])


def test_settings_reach_the_encoder(adapter: Adapter, tiny_bert: Path) -> None:
    raw = adapter.open(tiny_bert, dtype="float32", normalize=False)
    assert not np.isclose(np.linalg.norm(adapter.embed_query(raw, "花呗")), 1, atol=1e-2)
    short = adapter.open(tiny_bert, truncate_dim=8, max_length=16, batch_tokens=64, dtype="bfloat16", device="cpu")
    assert len(adapter.embed_query(short, "花呗")) == 8
    assert short.encoder.spec.max_length == 16
    assert short.encoder.dtype == "bfloat16"


def test_unknown_settings_are_refused(adapter: Adapter, tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="modle_kwargs"):
        adapter.open(tiny_bert, modle_kwargs={})


def test_a_missing_model_is_an_error_not_another_model(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ModelNotAvailable, match="nowhere"):
        adapter.open(tmp_path / "nowhere")


def test_a_damaged_model_and_a_bad_setting_are_typed(adapter: Adapter, tiny_bert: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bert, damaged)
    os.truncate(damaged / "model.safetensors", 1_000)
    with pytest.raises(DamagedModel, match=r"model\.safetensors"):
        adapter.open(damaged)
    with pytest.raises(InvalidInput, match="max_length=1"):
        adapter.open(tiny_bert, max_length=1)


def test_the_environment_names_the_default_model(
    adapter: Adapter, embedding: Any, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEG_RAG_MODEL", str(tiny_bert))
    assert adapter.cls().identity == embedding.identity


def test_pickle_carries_no_weights(adapter: Adapter, embedding: Any) -> None:
    frozen = pickle.dumps(embedding)
    assert len(frozen) < 10_000
    assert adapter.embed_documents(pickle.loads(frozen), TEXTS) == adapter.embed_documents(embedding, TEXTS)


def test_close_frees_the_model(adapter: Adapter, tiny_bert: Path) -> None:
    with adapter.open(tiny_bert) as embedding:
        adapter.embed_query(embedding, "花呗")
        backend = weakref.ref(embedding.encoder._model[1])
    gc.collect()
    assert backend() is None
    with pytest.raises(PegRagError, match="closed"):
        adapter.embed_query(embedding, "花呗")


def test_many_threads_get_the_same_vectors(adapter: Adapter, embedding: Any) -> None:
    alone = [adapter.embed_query(embedding, text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda i: adapter.embed_query(embedding, TEXTS[i % 5]), range(80)))
    assert together == [alone[i % 5] for i in range(80)]


def test_progress_bar_on_request(adapter: Adapter, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter.embed_documents(adapter.open(tiny_bert), TEXTS)
    assert "embed documents" not in capsys.readouterr().err
    adapter.embed_documents(adapter.open(tiny_bert, show_progress=True), TEXTS)
    assert "embed documents: 100%" in capsys.readouterr().err


def test_encoders_can_be_shared(adapter: Adapter, letters: LetterEncoder) -> None:
    embedding = adapter.cls.from_encoder(letters)
    adapter.embed_documents(embedding, ["a", "b"])
    adapter.embed_query(embedding, "c")
    assert letters.calls == [("document", 2), ("query", 1)]
    assert embedding.identity == letters.identity


class SlowEncoder(LetterEncoder):
    """Holds whatever thread it is called on for a fifth of a second."""

    def _encode(self, texts: Any) -> np.ndarray:
        self.thread = threading.current_thread()
        time.sleep(0.2)
        return super()._encode(texts)


@pytest.mark.parametrize("what", ["query", "documents"])
async def test_the_event_loop_keeps_turning(adapter: Adapter, what: str) -> None:
    encoder = SlowEncoder()
    embedding = adapter.cls.from_encoder(encoder)
    call: Callable[..., Any] = adapter.aembed_query if what == "query" else adapter.aembed_documents
    task = asyncio.ensure_future(call(embedding, "a" if what == "query" else ["a"]))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await task
    assert ticks >= 5
    assert encoder.thread is not threading.main_thread()


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("model_kwargs", {"device": "cpu"}, "device="),
        ("encode_kwargs", {"normalize_embeddings": True}, "normalize="),
        ("query_instruction", "问：", "query_prompt="),
        ("embed_instruction", "文：", "document_prompt="),
        ("text_instruction", "文：", "document_prompt="),
        ("cache_folder", "models", "HF_HOME"),
        ("trust_remote_code", True, "never"),
    ],
)
def test_habits_from_other_embeddings_are_answered_with_a_hint(
    adapter: Adapter, setting: str, value: Any, hint: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"{setting}.*{hint}"):
        adapter.open("peg-mini", **{setting: value})


def test_the_other_framework_s_name_of_the_model_is_answered_with_a_hint(adapter: Adapter) -> None:
    other = "model_name" if adapter.model_argument == "model" else "model"
    with pytest.raises(
        InvalidInput, match=rf"{other}='peg-mini'.*{adapter.cls.__name__}\({adapter.model_argument}='peg-mini'\)"
    ):
        adapter.cls(**{other: "peg-mini"})


@pytest.mark.parametrize("device", ["auto", None])
def test_the_device_may_be_auto(adapter: Adapter, tiny_bert: Path, device: str | None) -> None:
    for model in ("peg-mini", tiny_bert):
        with adapter.open(model, device=device) as opened:
            assert opened.encoder.device in ("cpu", "cuda", "mps")
            assert len(adapter.embed_documents(opened, ["花呗"])) == 1


def test_several_devices_give_the_vectors_of_one(adapter: Adapter) -> None:
    with adapter.open("peg-mini", devices=["cpu", "cpu"]) as opened, adapter.open("peg-mini") as one:
        assert opened.encoder.device == "cpu,cpu"
        assert adapter.embed_documents(opened, TEXTS) == adapter.embed_documents(one, TEXTS)
        assert opened.identity == one.identity
        assert "devices" not in opened.model_dump()  # they change no vector
