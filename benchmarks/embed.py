"""Embedding speed on a BERT-large shape: ours against LangChain's HuggingFaceEmbeddings, in one run.

Weights are random (speed does not depend on them), texts are Chinese of log-normal length, and the systems take turns
on slices of the same texts, so a noisy machine hurts all alike. Rates count real tokens, never padding. FLOPs are those
of the matrix products a text needs (2 × weights × tokens, plus attention); their share is of the machine's own GEMM
rate in the same type and on as many threads, the best of what was measured before every slice.

    python benchmarks/embed.py                  # 256 texts, BERT-large
    python benchmarks/embed.py --texts 64 --layers 4 --rounds 2
    python benchmarks/embed.py --openvino       # also an export for OpenVINO
    python benchmarks/embed.py --peer-backends onnx/bin/python openvino/bin/python    # see peer_backends.py
"""

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_backends import PeerProcess

from peg_rag.backends.linear import pick_linear

BATCH_SIZES = (1, 4, 8, 16)  # what a peer's best is chosen from

Embed = Callable[[list[str]], object]
Clock = Callable[[], float]


@dataclass
class System:
    name: str
    configuration: dict[str, object]
    embed: Embed
    dtype: str
    seconds: list[float] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)

    def measure(self, texts: list[str], clock: Clock) -> float:
        """Embed the texts, keep the vectors and return the seconds."""
        started = clock()
        vectors = self.embed(texts)
        seconds = clock() - started
        self.vectors.append(np.asarray(vectors, dtype=np.float32))
        return seconds


class RemoteSystem(System):
    """A system in another process, which has its own clock; `embed` returns the vectors and the seconds."""

    def measure(self, texts: list[str], clock: Clock) -> float:
        answer: Any = self.embed(texts)
        self.vectors.append(answer[0])
        return float(answer[1])


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


class GemmCeiling:
    """The GFLOP/s of a (1024, 1024) × (1024, 4096) product, as in BERT-large's feed-forward, by type; the best so far.

    `rates` are of the fastest product that torch has, `plain_rates` those of `a @ b`, which on some processors another
    library computes. Measured in turns with the work: the clock of a busy or warm machine changes during a run.
    """

    def __init__(self, clock: Clock, seconds: float = 0.5) -> None:
        self.clock = clock
        self.seconds = seconds
        self.plain_rates = {"float32": 0.0, "bfloat16": 0.0}
        self.rates = dict(self.plain_rates)

    def measure(self) -> None:
        for name in self.rates:
            dtype = getattr(torch, name)
            a = torch.randn(1024, 1024).to(dtype)
            b = torch.randn(1024, 4096).to(dtype)
            linear = pick_linear(dtype)(b.t().contiguous(), torch.zeros(4096, dtype=dtype))
            self.plain_rates[name] = max(self.plain_rates[name], self._measure_product(partial(torch.matmul, a, b)))
            packed_rate = self._measure_product(partial(linear, a))
            self.rates[name] = max(self.rates[name], self.plain_rates[name], packed_rate)

    @torch.inference_mode()
    def _measure_product(self, multiply: Callable[[], object]) -> float:
        multiply()
        fastest = float("inf")
        finish = self.clock() + self.seconds / 2
        while self.clock() < finish:
            started = self.clock()
            multiply()
            fastest = min(fastest, self.clock() - started)
        return 2 * 1024 * 1024 * 4096 / fastest / 1e9


def flops(lengths: list[int], layers: int, width: int) -> float:
    """Multiply-adds × 2 of the matrix products over texts of these token lengths."""
    return sum(layers * (24 * width**2 * n + 4 * width * n**2) for n in lengths)


def systems(folder: Path, clock: Clock, *, openvino: bool) -> list[System]:
    from langchain_huggingface import HuggingFaceEmbeddings

    from peg_rag import PEGEncoder

    def peer(name: str, batch_size: int = 32, **model_kwargs: object) -> System:
        embeddings = HuggingFaceEmbeddings(
            model_name=str(folder),
            model_kwargs={"device": "cpu", **model_kwargs},
            encode_kwargs={} if batch_size == 32 else {"batch_size": batch_size},
        )
        inner = embeddings._client
        configuration: dict[str, object] = {"model_kwargs": embeddings.model_kwargs, "batch_size": batch_size}
        configuration |= {"pooling": inner[1].pooling_mode, "dtype": str(next(inner.parameters()).dtype)}
        return System(
            name, configuration, embeddings.embed_documents, str(configuration["dtype"]).removeprefix("torch.")
        )

    def ours(name: str, **options: Any) -> System:
        encoder = PEGEncoder(folder, **options)
        configuration: dict[str, object] = {
            "dtype": encoder.dtype,
            "pooling": encoder.spec.pooling,
            "backend": encoder.backend_name,
        }
        configuration |= {"batch_tokens": encoder._get_model()[1].batch_tokens, "normalize": encoder.normalize}
        return System(name, configuration, encoder.encode_documents, encoder.dtype)

    entrants = [
        peer("HuggingFaceEmbeddings, defaults"),
        peer("HuggingFaceEmbeddings, bfloat16", model_kwargs={"dtype": "bfloat16"}),
        ours("peg-rag, float32", backend="torch", dtype="float32"),
        ours("peg-rag, defaults", backend="torch"),
        ours("peg-rag, int8", backend="torch", dtype="int8"),
    ]
    entrants.append(peer_of_best_batches(peer, clock))
    if openvino:
        from peg_rag.export import export_model

        export_model(folder, folder, backend="openvino", max_ndcg_loss=1.0)
        entrants.append(ours("peg-rag, OpenVINO", backend="openvino"))
        export_model(folder, folder, backend="openvino", dtype="int8", min_cosine=-1.0, max_ndcg_loss=1.0)
        entrants.append(ours("peg-rag, OpenVINO, int8", backend="openvino", dtype="int8"))
    return entrants


def peer_of_best_batches(peer: Callable[..., System], clock: Clock) -> System:
    """sentence-transformers in bfloat16 with the batch size that embeds some texts fastest."""
    candidates = {
        batch_size: peer(f"bfloat16, batch {batch_size}", batch_size, model_kwargs={"dtype": "bfloat16"})
        for batch_size in BATCH_SIZES
    }

    def embed(batch_size: int, texts: list[str]) -> float:
        return candidates[batch_size].measure(texts, clock)

    best = candidates[choose_batch_size(embed)]
    best.name = f"sentence-transformers, {best.name}"
    best.vectors.clear()  # of the trials
    return best


def choose_batch_size(embed: Callable[[int, list[str]], float]) -> int:
    """The batch size with the fewest seconds for some texts."""
    texts = chinese_texts(24, 32, seed=1)
    seconds: dict[int, float] = {}
    for batch_size in BATCH_SIZES:
        embed(batch_size, texts[:2])
        seconds[batch_size] = embed(batch_size, texts)
    return min(seconds, key=lambda batch_size: seconds[batch_size])


@contextlib.contextmanager
def start_peers(pythons: Sequence[str], model: Path, clock: Clock) -> Iterator[list[System]]:
    """sentence-transformers' compiled backends, each with its best batch size; what cannot be loaded is printed."""
    entrants: list[System] = []
    reasons: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for python in pythons:
            exports = stack.enter_context(tempfile.TemporaryDirectory())
            calibration = chinese_texts(24, 32, seed=2)
            process = PeerProcess(python, model, Path(exports), calibration, torch.get_num_threads(), clock)
            stack.callback(process.close)
            for name, description in process.backends.items():
                if "skipped" in description:
                    reasons[name] = description["skipped"]
                elif all(entrant.name != name for entrant in entrants):
                    entrants.append(make_remote(process, name, description))
        for name in reasons.keys() - {entrant.name for entrant in entrants}:
            print(f"{name} is left out: {reasons[name]}", file=sys.stderr, flush=True)
        for entrant in entrants:
            entrant.name = f"sentence-transformers, {entrant.name}"
        yield entrants


def make_remote(process: PeerProcess, name: str, description: dict[str, Any]) -> System:
    batch_size = choose_batch_size(lambda size, texts: process.embed(name, size, texts)[1])
    configuration = {**description["configuration"], "batch_size": batch_size}
    return RemoteSystem(name, configuration, partial(process.embed, name, batch_size), description["dtype"])


def take_turns(entrants: list[System], texts: list[str], rounds: int, ceiling: GemmCeiling, clock: Clock) -> None:
    """Every system embeds every slice; the order is reversed from one slice to the next."""
    for system in entrants:
        system.embed(texts[:2])
    for turn in range(rounds):
        part = texts[turn::rounds]
        for system in entrants[:: 1 if turn % 2 == 0 else -1]:
            ceiling.measure()
            system.seconds.append(system.measure(part, clock))
            print(
                f"{system.name}: slice {turn + 1} of {rounds}, {system.seconds[-1]:.1f} s", file=sys.stderr, flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--median", type=int, default=64, help="median length of a text in characters")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--openvino", action="store_true", help="also OpenVINO, in bfloat16 where the CPU has it")
    parser.add_argument(
        "--peer-backends",
        nargs="+",
        default=[],
        metavar="PYTHON",
        help="also sentence-transformers with ONNX Runtime and OpenVINO, in the environments of these interpreters",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of the processor, for a busy machine; set OMP_NUM_THREADS=1, since threads that wait count too",
    )
    args = parser.parse_args()
    clock: Clock = time.process_time if args.processor_time else time.perf_counter
    texts = chinese_texts(args.texts, args.median)
    lengths = [len(text) + 2 for text in texts]
    with tempfile.TemporaryDirectory() as name:
        build_model(Path(name), args.layers, args.width)
        ceiling = GemmCeiling(clock)
        with start_peers(args.peer_backends, Path(name), clock) as peers:
            entrants = [*systems(Path(name), clock, openvino=args.openvino), *peers]
            take_turns(entrants, texts, args.rounds, ceiling, clock)
        report(entrants, sum(lengths), flops(lengths, args.layers, args.width), ceiling, args)


def report(entrants: list[System], tokens: int, work: float, ceiling: GemmCeiling, args: argparse.Namespace) -> None:
    shape = f"{args.layers} layers × {args.width}"
    kind = "of the processor" if args.processor_time else "by the clock"
    threads = torch.get_num_threads()
    print(
        f"\n{args.texts} texts, {tokens} tokens, BERT {shape}; {platform.machine()}, threads: {threads}; seconds {kind}"
    )
    for kind, rates in (("a @ b", ceiling.plain_rates), ("the fastest product", ceiling.rates)):
        print(f"GEMM, {kind}: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    print("\n| system | tokens/s | × its defaults | × at equal type | GFLOP/s | of GEMM rate | min cosine to float32 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for system in entrants:
        seconds = sum(system.seconds)
        equal = next(s for s in entrants if s.dtype == system.dtype)
        reference = next(s for s in entrants if s.dtype == "float32" and is_ours(s) == is_ours(system))
        print(
            f"| {system.name} | {tokens / seconds:.0f} | {sum(entrants[0].seconds) / seconds:.2f} "
            f"| {sum(equal.seconds) / seconds:.2f} | {work / seconds / 1e9:.0f} "
            f"| {describe_share(work / seconds / 1e9, ceiling.rates.get(system.dtype))} "
            f"| {smallest_cosine(system, reference):.5f} |"
        )
    print()
    for dtype in ("float32", "bfloat16", "int8"):
        equals = [s for s in entrants if s.dtype == dtype]
        fastest = min((s for s in equals if is_ours(s)), key=lambda s: sum(s.seconds))
        if rivals := [s for s in equals if not is_ours(s)]:
            rival = min(rivals, key=lambda s: sum(s.seconds))
            ratio = sum(rival.seconds) / sum(fastest.seconds)
            print(f"{dtype}: {fastest.name} is {ratio:.2f} times as fast as the fastest peer ({rival.name})")
    for system in entrants:
        print(
            f"\n{system.name}: {json.dumps(system.configuration, default=str)}; seconds {np.round(system.seconds, 1)}"
        )


def is_ours(system: System) -> bool:
    return system.name.startswith("peg-rag")


def smallest_cosine(system: System, reference: System) -> float:
    """Of a text's vectors by two systems with the same pooling."""
    vectors = np.concatenate(system.vectors)
    expected = np.concatenate(reference.vectors)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(axis=1) / norms).min())


def describe_share(rate: float, ceiling: float | None) -> str:
    """The part of the GEMM rate; no int8 product is measured."""
    return "–" if ceiling is None else f"{rate / ceiling:.0%}"


if __name__ == "__main__":
    main()
