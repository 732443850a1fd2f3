"""Embedding speed on a BERT-large shape: ours against LangChain's HuggingFaceEmbeddings, in one run.

Weights are random (speed does not depend on them), texts are Chinese of log-normal length, and the systems take turns
on slices of the same texts, so a noisy machine hurts all alike. Rates count real tokens, never padding. FLOPs are those
of the matrix products a text needs (2 × weights × tokens, plus attention); their share is of the machine's own GEMM
rate in the same type, measured in the same run.

    python benchmarks/embed.py                  # 256 texts, BERT-large
    python benchmarks/embed.py --texts 64 --layers 4 --rounds 2
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Embed = Callable[[list[str]], object]


@dataclass
class System:
    name: str
    configuration: dict[str, object]
    embed: Embed
    dtype: str
    seconds: list[float] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)


def build_model(folder: Path, layers: int, width: int) -> None:
    """A BERT of random weights over 21,128 pieces (as bert-base-chinese has), in PEG's hub layout: no modules.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(chr(0x4E00 + i) for i in range(20_000))]
    words += [f"[unused{i}]" for i in range(21_128 - len(words))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    BertModel(config).save_pretrained(folder)


def chinese_texts(count: int, median: int = 64, seed: int = 0) -> list[str]:
    """Random Chinese of log-normal length (σ 0.7), 8 to 510 characters."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(median), 0.7, count), 8, 510).astype(int)
    return ["".join(map(chr, 0x4E00 + rng.integers(0, 20_000, n))) for n in lengths]


def gemm_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """GFLOP/s of a (1024, 1024) × (1024, 4096) product, as in BERT-large's feed-forward."""
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    for _ in range(3):
        a @ b
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        runs += 1
    return runs * 2 * 1024 * 1024 * 4096 / (time.perf_counter() - start) / 1e9


def flops(lengths: list[int], layers: int, width: int) -> float:
    """Multiply-adds × 2 of the matrix products over texts of these token lengths."""
    return sum(layers * (24 * width**2 * n + 4 * width * n**2) for n in lengths)


def systems(folder: Path) -> list[System]:
    from langchain_huggingface import HuggingFaceEmbeddings

    from peg_rag import PEGEncoder

    def peer(name: str, **model_kwargs: object) -> System:
        embeddings = HuggingFaceEmbeddings(model_name=str(folder), model_kwargs={"device": "cpu", **model_kwargs})
        inner = embeddings._client
        configuration = {
            "model_kwargs": embeddings.model_kwargs,
            "encode_kwargs": embeddings.encode_kwargs,
            "batch_size": 32,
        }
        configuration |= {"pooling": inner[1].pooling_mode, "dtype": str(next(inner.parameters()).dtype)}
        dtype = str(configuration["dtype"]).removeprefix("torch.")
        return System(name, configuration, embeddings.embed_documents, dtype)

    def ours(name: str, **options: Any) -> System:
        encoder = PEGEncoder(folder, **options)
        configuration: dict[str, object] = {
            "dtype": encoder.dtype,
            "pooling": encoder.spec.pooling,
            "backend": encoder.backend_name,
        }
        configuration |= {"batch_tokens": encoder._get_model()[1].batch_tokens, "normalize": encoder.normalize}
        return System(name, configuration, encoder.encode_documents, encoder.dtype)

    return [
        peer("HuggingFaceEmbeddings, defaults"),
        peer("HuggingFaceEmbeddings, bfloat16", model_kwargs={"dtype": "bfloat16"}),
        ours("peg-rag, float32", dtype="float32"),
        ours("peg-rag, defaults"),
    ]


def take_turns(entrants: list[System], texts: list[str], rounds: int) -> None:
    """Every system embeds every slice; the order is reversed from one slice to the next."""
    for system in entrants:
        system.embed(texts[:2])
    for turn in range(rounds):
        part = texts[turn::rounds]
        for system in entrants[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            system.vectors.append(np.asarray(system.embed(part), dtype=np.float32))
            system.seconds.append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--median", type=int, default=64, help="median length of a text in characters")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    texts = chinese_texts(args.texts, args.median)
    lengths = [len(text) + 2 for text in texts]
    with tempfile.TemporaryDirectory() as name:
        build_model(Path(name), args.layers, args.width)
        entrants = systems(Path(name))
        rates = {str(d).removeprefix("torch."): gemm_rate(d) for d in (torch.float32, torch.bfloat16)}
        take_turns(entrants, texts, args.rounds)
        report(entrants, sum(lengths), flops(lengths, args.layers, args.width), rates, args)


def report(entrants: list[System], tokens: int, work: float, rates: dict[str, float], args: argparse.Namespace) -> None:
    shape = f"{args.layers} layers × {args.width}"
    print(
        f"\n{args.texts} texts, {tokens} tokens, BERT {shape}; {torch.get_num_threads()} threads, {platform.machine()}"
    )
    print("GEMM ceiling: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    print("\n| system | tokens/s | × its defaults | × at equal type | GFLOP/s | of GEMM rate | min cosine to float32 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    reference = np.concatenate(entrants[2].vectors)
    for system in entrants:
        seconds = sum(system.seconds)
        equal = next(s for s in entrants if s.dtype == system.dtype)
        cosine = (
            (np.concatenate(system.vectors) * reference).sum(axis=1).min() if "peg" in system.name else float("nan")
        )
        print(
            f"| {system.name} | {tokens / seconds:.0f} | {sum(entrants[0].seconds) / seconds:.2f} "
            f"| {sum(equal.seconds) / seconds:.2f} | {work / seconds / 1e9:.0f} "
            f"| {work / seconds / 1e9 / rates[system.dtype]:.0%} | {cosine:.5f} |"
        )
    for system in entrants:
        print(
            f"\n{system.name}: {json.dumps(system.configuration, default=str)}; seconds {np.round(system.seconds, 1)}"
        )


if __name__ == "__main__":
    main()
