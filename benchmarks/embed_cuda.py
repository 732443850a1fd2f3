"""Embedding and training speed of a BERT-large shape on a CUDA device: ours against sentence-transformers, in turns.

Weights and texts are those of `embed.py`. Rates count real tokens, tokenising included; "tokens given" is ours without
it. The share of the matrix rate (MFU) is against the bfloat16 product measured on the same device between the turns,
the best of several. Cosines are the smallest and the mean over texts, to sentence-transformers in float32. A training
step is the forward and backward pass of a contrastive loss over short questions and long passages, without dropout.

    python benchmarks/embed_cuda.py
    python benchmarks/embed_cuda.py --tiny --device cpu    # does it run?
"""

import argparse
import copy
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from embed import build_model, chinese_texts, flops
from numpy.typing import NDArray

from peg_rag import PEGEncoder
from peg_rag.backends import torch_backend
from peg_rag.backends.attention import TextwiseAttention, VarlenAttention
from peg_rag.backends.linear import CublasLinear, PlainLinear
from peg_rag.backends.unpadded import UnpaddedEncoder, can_run_unpadded
from peg_rag.batching import Batch, plan_batches
from peg_rag.encoder import _embed_batches
from peg_rag.training.model.unpadded import compute_unpadded_states

BATCH_SIZES = (32, 64, 128, 256, 512)  # what the peer's best is chosen from

Vectors = NDArray[np.float32]


@dataclass
class System:
    name: str
    embed: Callable[[list[str]], Vectors]
    share: int = 1  # a slow one embeds every share-th text
    seconds: list[float] = field(default_factory=list)
    vectors: Vectors | None = None


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_rate(device: str, size: int = 8_192, runs: int = 10) -> float:
    """FLOP/s of a square bfloat16 product on random data."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    torch.mm(a, b)
    wait_for(device)
    start = time.perf_counter()
    for _ in range(runs):
        torch.mm(a, b)
    wait_for(device)
    return runs * 2 * size**3 / (time.perf_counter() - start)


def pool_first_tokens(folder: Path, width: int) -> None:
    """Have sentence-transformers take the vector of [CLS], as ours does."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}', encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def load_peers(folder: Path, device: str, texts: list[str]) -> list[System]:
    """sentence-transformers with its defaults, as HuggingFaceEmbeddings calls it, and set by hand."""
    from sentence_transformers import SentenceTransformer

    def load(**options: object) -> Any:
        return SentenceTransformer(str(folder), device=device, model_kwargs=options)

    def embed_with(model: Any, size: int) -> Callable[[list[str]], Vectors]:
        return lambda batch: np.asarray(model.encode(batch, batch_size=size, show_progress_bar=False))

    plain = load()
    half = load(dtype=torch.bfloat16, attn_implementation="sdpa")
    seconds = {}
    for size in BATCH_SIZES:
        embed = embed_with(half, size)
        embed(texts[:size])
        start = time.perf_counter()
        embed(texts)
        seconds[size] = time.perf_counter() - start
    best = min(seconds, key=lambda size: seconds[size])
    say("batch sizes of the peer: " + ", ".join(f"{size}: {took:.2f} s" for size, took in seconds.items()))
    return [
        System("sentence-transformers, defaults: float32, batch 32", embed_with(plain, 32), share=8),
        System("sentence-transformers, bfloat16, batch 32", embed_with(half, 32)),
        System(f"sentence-transformers, bfloat16, SDPA, batch {best} (its best)", embed_with(half, best)),
    ]


def load_encoders(folder: Path, device: str, texts: list[str]) -> list[System]:
    """Ours, with padding and without."""
    systems = []
    for name in ("padded", "unpadded"):
        can_run = can_run_unpadded if name == "unpadded" else lambda model: False
        with patch.object(torch_backend, "can_run_unpadded", can_run):
            encoder = PEGEncoder(folder, device=device, dtype="bfloat16")
            backend: Any = encoder._get_model()[1]
        if isinstance(backend._model, UnpaddedEncoder) != (name == "unpadded"):
            sys.exit(f"{name} batches are not run on this device")
        systems.append(System(f"peg-rag, bfloat16, {name}", encoder.encode_documents))
        systems.append(System(f"peg-rag, bfloat16, {name}, tokens given", skip_tokenizing(encoder, texts)))
    return systems


def skip_tokenizing(encoder: PEGEncoder, texts: list[str]) -> Callable[[list[str]], Vectors]:
    """Pooled vectors by the backend alone; the texts are tokenised now."""
    tokenizer, backend = encoder._get_model()
    known = dict(zip(texts, encoder._tokenize_texts(tokenizer, texts), strict=True))

    def embed(batch: list[str]) -> Vectors:
        token_ids = [known[text] for text in batch]
        vectors = np.empty((len(batch), encoder.dimension), dtype=np.float32)
        plan = plan_batches(list(map(len, token_ids)), backend.batch_tokens)
        batches = (Batch(rows, [token_ids[row] for row in rows]) for rows in plan)
        for done, pooled in _embed_batches(backend, batches):
            vectors[done.rows] = pooled
        return vectors

    return embed


def take_turns(systems: list[System], texts: list[str], rounds: int, device: str) -> list[float]:
    """Every system embeds the texts in every round; the order is reversed from one round to the next. → FLOP/s"""
    for system in systems:
        system.embed(texts[:512])
    rates = []
    for turn in range(rounds):
        for system in systems[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            system.vectors = system.embed(texts[:: system.share])
            system.seconds.append(time.perf_counter() - start)
        if device.startswith("cuda"):
            rates.append(matrix_rate(device))
        say(f"round {turn + 1} of {rounds}: " + ", ".join(f"{s.seconds[-1]:.2f} s" for s in systems))
    return rates


def describe_systems(systems: list[System], lengths: list[int], rates: list[float], shape: tuple[int, int]) -> str:
    lines = ["| system | tokens/s | × its defaults | × its best | TFLOP/s | MFU | cosine, min | mean |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    speeds = {s.name: sum(lengths[:: s.share]) / min(s.seconds) for s in systems}
    defaults = speeds[systems[0].name]
    best = max(speed for name, speed in speeds.items() if name.startswith("sentence"))
    for system in systems:
        rate = flops(lengths[:: system.share], *shape) / min(system.seconds)
        share = f"{rate / max(rates):.0%}" if rates else "–"
        cosines = compare_vectors(system, systems[0])
        speed = speeds[system.name]
        lines.append(
            f"| {system.name} | {speed:,.0f} | {speed / defaults:.2f} | {speed / best:.2f} | {rate / 1e12:.1f} "
            f"| {share} | {cosines.min():.5f} | {cosines.mean():.5f} |"
        )
    return "\n".join(lines)


def compare_vectors(system: System, reference: System) -> Vectors:
    """The cosine of each text that both embedded."""
    assert system.vectors is not None
    assert reference.vectors is not None
    ours = system.vectors[:: reference.share // system.share]
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference.vectors, axis=1)
    cosines: Vectors = (ours * reference.vectors).sum(axis=1) / norms
    return cosines


def measure_batch(folder: Path, device: str, lengths: list[int], batch_tokens: int, rates: list[float]) -> str:
    """What one batch takes on the device alone, by layers of transformers and by ours."""
    from transformers import BertModel

    plan = plan_batches(lengths, batch_tokens)
    rows = sorted((lengths[row] for row in plan[len(plan) // 2]), reverse=True)
    counts = torch.tensor(rows)
    mask = (torch.arange(max(rows)) < counts[:, None]).long()
    ids = torch.randint(5, 20_000, mask.shape) * mask
    on_device = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    model: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.bfloat16)
    model = model.to(device).eval()
    attention = VarlenAttention if device.startswith("cuda") else TextwiseAttention
    plain = UnpaddedEncoder(copy.deepcopy(model), PlainLinear, attention)
    fused = UnpaddedEncoder(copy.deepcopy(model), CublasLinear, attention)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "transformers, padded": lambda: model(**on_device).last_hidden_state[:, 0],
        "unpadded": lambda: plain.compute_first_states(ids, counts),
        "unpadded, GELU by cuBLAS": lambda: fused.compute_first_states(ids, counts),
    }
    seconds = dict.fromkeys(runs, float("inf"))
    results = {}
    with torch.inference_mode():
        for _ in range(4):
            for name, run in runs.items():
                results[name] = run().double()
                wait_for(device)
                start = time.perf_counter()
                for _ in range(5):
                    run()
                wait_for(device)
                seconds[name] = min(seconds[name], (time.perf_counter() - start) / 5)
        exact = model.float()(**on_device).last_hidden_state[:, 0].double()
    lines = [f"One batch on the device: {len(rows)} texts, {sum(rows):,} tokens, {mask.numel():,} with padding", ""]
    lines += ["| layers | ms | tokens/s | MFU | 1 − cosine to float32, max |", "|---|---:|---:|---:|---:|"]
    work = flops(rows, model.config.num_hidden_layers, model.config.hidden_size)
    for name, took in seconds.items():
        share = f"{work / took / max(rates):.0%}" if rates else "–"
        distance = (1 - torch.cosine_similarity(results[name], exact, dim=1)).max()
        lines.append(f"| {name} | {took * 1e3:.1f} | {sum(rows) / took:,.0f} | {share} | {distance:.2e} |")
    return "\n".join(lines)


def measure_training(folder: Path, device: str, pairs: int, batch_tokens: int, repeats: int) -> str:
    """Seconds of a step over pairs of a question and a passage, padded and not, as one batch and by length."""
    from transformers import BertModel

    options: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, **options)
    model = model.to(device).train()
    attention = VarlenAttention if device.startswith("cuda") else TextwiseAttention
    random = np.random.default_rng(0)
    questions = np.clip(random.lognormal(np.log(16), 0.5, pairs), 6, 64).astype(int)
    passages = np.clip(random.lognormal(np.log(160), 0.7, pairs), 16, 510).astype(int)
    lengths = np.concatenate([questions, passages])
    rows = [torch.from_numpy(random.integers(5, 20_000, length)) for length in lengths]

    def run_step(unpadded: bool, plan: list[NDArray[np.intp]]) -> torch.Tensor:
        """→ the loss; the gradients are on the model."""
        parts = []
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            for batch in plan:
                ids = torch.nn.utils.rnn.pad_sequence([rows[row] for row in batch], batch_first=True).to(device)
                counts = torch.from_numpy(lengths[batch]).to(device)
                mask = (torch.arange(ids.shape[1], device=device) < counts[:, None]).long()
                if unpadded:
                    states = compute_unpadded_states(model, ids, mask, attention)
                else:
                    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                parts.append(states[:, 0])
        order = torch.from_numpy(np.argsort(np.concatenate(plan))).to(device)
        units = torch.nn.functional.normalize(torch.cat(parts).float()[order], dim=1)
        scores = units[:pairs] @ units[pairs:].T * 20
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(pairs, device=device))
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    plans = {"one batch": [np.arange(2 * pairs)], "by length": plan_batches(lengths, batch_tokens)}
    seconds: dict[tuple[str, bool], float] = {}
    gradients: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for turn in range(repeats + 1):
        for name, plan in plans.items():
            for unpadded in (False, True) if turn % 2 else (True, False):
                wait_for(device)
                start = time.perf_counter()
                run_step(unpadded, plan)
                wait_for(device)
                took = time.perf_counter() - start
                if turn == 0:
                    gradients[name, unpadded] = copy_gradients(model)
                else:
                    seconds[name, unpadded] = min(took, seconds.get((name, unpadded), took))
    lines = ["| training step | tokens | with padding | padded s | unpadded s | ratio | gradients' cosine |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, plan in plans.items():
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in plan)
        slow = seconds[name, False]
        fast = seconds[name, True]
        cosine = cosine_of(gradients[name, False], gradients[name, True])
        lines.append(
            f"| {name} | {lengths.sum():,} | {padded:,} | {slow:.3f} | {fast:.3f} | {slow / fast:.2f} | {cosine:.5f} |"
        )
    return "\n".join(lines)


def copy_gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def cosine_of(ones: list[torch.Tensor], twos: list[torch.Tensor]) -> float:
    """The cosine between two lists of gradients, each taken as one row."""

    def multiply(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
        return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))

    return float(multiply(ones, twos) / (multiply(ones, ones) * multiply(twos, twos)) ** 0.5)


def describe_machine(device: str, rates: list[float]) -> str:
    names = ("torch", "transformers", "sentence-transformers", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    if not rates:
        return f"{device}; {versions}"
    rate = max(rates) / 1e12
    return f"{torch.cuda.get_device_name()}; {versions}; {rate:.0f} TFLOP/s in an 8192³ bfloat16 product"


def say(message: str) -> None:
    print(f"[{time.perf_counter() - STARTED:.0f} s] {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4_096)
    parser.add_argument("--median", type=int, default=120)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=32, help="of a training step")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model and texts that take seconds on a CPU")
    parser.add_argument("--output", type=Path, help="a file for the tables")
    arguments = parser.parse_args()
    batch_tokens = 16_384
    if arguments.tiny:
        arguments.texts = 64
        arguments.median = 30
        arguments.layers = 2
        arguments.width = 128
        arguments.pairs = 6
        batch_tokens = 600
    texts = chinese_texts(arguments.texts, arguments.median)
    lengths = [len(text) + 2 for text in texts]
    shape = (arguments.layers, arguments.width)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder, *shape)
        pool_first_tokens(folder, arguments.width)
        say("model built")
        systems = load_peers(folder, arguments.device, texts[: len(texts) // 2])
        systems += load_encoders(folder, arguments.device, texts)
        say("models loaded")
        rates = take_turns(systems, texts, arguments.rounds, arguments.device)
        tables = [
            f"{describe_machine(arguments.device, rates)}; {len(texts):,} texts, {sum(lengths):,} tokens",
            describe_systems(systems, lengths, rates, shape),
        ]
        write_tables(tables, arguments.output)
        systems.clear()
        if arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()
        tables.append(measure_batch(folder, arguments.device, lengths, 2 * batch_tokens, rates))
        write_tables(tables, arguments.output)
        say("one batch measured")
        tables.append(measure_training(folder, arguments.device, arguments.pairs, batch_tokens, arguments.rounds))
        say("training measured")
    write_tables(tables, arguments.output)
    print("\n\n".join(tables))


def write_tables(tables: list[str], file: Path | None) -> None:
    if file is not None:
        file.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
