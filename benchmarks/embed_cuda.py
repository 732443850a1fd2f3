"""Embedding speed of a BERT-large shape on a CUDA device: ours against sentence-transformers, in turns, in one run.

Weights and texts are those of `embed.py`. The share of the matrix rate (MFU) is against the bfloat16 product measured
on the same device between the turns, the best of several.

    python benchmarks/embed_cuda.py --texts 8192
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from embed import build_model, chinese_texts, flops

from peg_rag import PEGEncoder

Embed = Callable[[list[str]], object]


def matrix_rate(device: str, size: int = 8_192, runs: int = 10) -> float:
    """FLOP/s of a square bfloat16 product on random data."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    torch.mm(a, b)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        torch.mm(a, b)
    torch.cuda.synchronize()
    return runs * 2 * size**3 / (time.perf_counter() - start)


def load_systems(folder: Path, device: str) -> dict[str, Embed]:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": torch.bfloat16})
    encoder = PEGEncoder(folder, device=device, dtype="bfloat16")

    def embed_with_peer(size: int) -> Embed:
        return lambda texts: peer.encode(texts, batch_size=size, show_progress_bar=False)

    return {
        "peg-rag, bfloat16": encoder.encode_documents,
        "sentence-transformers, bfloat16, batch 32": embed_with_peer(32),
        "sentence-transformers, bfloat16, batch 128": embed_with_peer(128),
        "sentence-transformers, bfloat16, batch 512": embed_with_peer(512),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8_192)
    parser.add_argument("--median", type=int, default=120)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    texts = chinese_texts(arguments.texts, arguments.median)
    lengths = [len(text) + 2 for text in texts]
    seconds: dict[str, list[float]] = {}
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), arguments.layers, arguments.width)
        systems = load_systems(Path(folder), arguments.device)
        for embed in systems.values():
            embed(texts[:256])
        for turn in range(arguments.rounds):
            for name in list(systems)[:: 1 if turn % 2 == 0 else -1]:
                start = time.perf_counter()
                np.asarray(systems[name](texts))
                seconds.setdefault(name, []).append(time.perf_counter() - start)
            if arguments.device == "cuda":
                rates.append(matrix_rate(arguments.device))
    work = flops(lengths, arguments.layers, arguments.width)
    if rates:
        print(f"{torch.cuda.get_device_name()}, {max(rates) / 1e12:.0f} TFLOP/s in an 8192³ bfloat16 product")
    print(f"{len(texts):,} texts, {sum(lengths):,} tokens")
    print("| system | tokens/s | TFLOP/s | MFU |\n|---|---:|---:|---:|")
    for name, times in seconds.items():
        rate = work / min(times)
        share = f"{rate / max(rates):.0%}" if rates else "–"
        print(f"| {name} | {sum(lengths) / min(times):,.0f} | {rate / 1e12:.1f} | {share} |")


if __name__ == "__main__":
    main()
