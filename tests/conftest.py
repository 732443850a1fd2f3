"""Shared fixtures: encoders whose answers can be worked out by hand, and tiny real models built in code."""

import os
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # its handlers may crash a forked child
os.environ["LC_ALL"] = "C.UTF-8"  # the command line speaks the reader's language

# What depends on the clock fails on a busy machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

REPO = Path(__file__).resolve().parent.parent
ALPHABET = string.ascii_lowercase + "花呗银行卡绑定借款理财还逾期"


class LetterEncoder:
    """Maps a text to the unit vector of its letter counts: every cosine can be worked out by hand."""

    identity = f"letters/{len(ALPHABET)}"
    dimension = len(ALPHABET)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []  # (role, number of texts)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[t.lower().count(c) for c in ALPHABET] for t in texts], dtype=np.float32)
        counts = counts.reshape(len(texts), self.dimension) + 1e-3
        vectors: np.ndarray = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return vectors

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        self.calls.append(("query", len(texts)))
        return self._encode(texts)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        self.calls.append(("document", len(texts)))
        return self._encode(texts)


@pytest.fixture
def letters() -> LetterEncoder:
    return LetterEncoder()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The training and evaluation data; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set PEG_DATA to a folder of the same layout")
    return folder


CHARACTERS = (
    "的一是了我不人在他有这上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看起"
    "发当没成只如事把还用第样道想作种开花呗银行卡绑定更换借款理财逾期北京故宫门票医院报销材料需哪些公司法律合同"
)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT in PEG's hub layout: config, vocabulary and weights, and no `modules.json`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *string.ascii_lowercase,
        *(f"##{c}" for c in string.ascii_lowercase),
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*words, *string.digits, *"，。？！、", *CHARACTERS]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder
