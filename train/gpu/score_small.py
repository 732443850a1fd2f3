"""The vectors that `peg_small.py` left, in the hybrid: what context is worth on domains that neither model saw.

    python train/gpu/score_small.py --vectors runs/gpu/out --ids runs/gpu/half-b.json --model runs/reranker/half-b

prints nDCG@10 of the vectors and of the hybrid, for the static model and for the trained one, and what a paired
permutation test says of the difference. Cost: about a minute of one core a set; `--queries` takes the first of each.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import data_folder

from peg_rag import PEGEncoder
from peg_rag.evaluation import Dense, Indexed, RetrievalDataset, compare, evaluate, load_beir
from peg_rag.retriever import Encoder

ORDER = ("law-lawyer_llama", "medical-kuake_qtr", "psychology-smile", "tourism-kdconv")  # of half b's vectors


@dataclass(frozen=True)
class StoredVectors:
    """An encoder that knows the vectors of one evaluation set."""

    documents: dict[str, NDArray[np.float32]]
    queries: dict[str, NDArray[np.float32]]
    identity: str = "stored"

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return np.stack([self.documents[text] for text in texts])

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return np.stack([self.queries[text] for text in texts])


def read_vectors(folder: Path) -> NDArray[np.float32]:
    codes = np.concatenate([np.load(file) for file in sorted(folder.glob("trained-[0-9]*.npy"))])
    vectors = codes * np.load(folder / "trained-scales.npy").astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def stored_encoders(folder: Path, ids: dict[str, Any], data: Path) -> dict[str, StoredVectors]:
    """An encoder for each set; the vectors lie in order, documents before queries."""
    vectors = read_vectors(folder)
    encoders = {}
    start = 0
    for name in ORDER:
        dataset = load_beir(data / "eval" / name)
        sides = []
        for side, texts in (("documents", dataset.corpus), ("queries", dataset.queries)):
            numbers = ids[name][side]
            rows = vectors[start : start + len(numbers)]
            sides.append({texts[number]: row for number, row in zip(numbers, rows, strict=True)})
            start += len(numbers)
        encoders[name] = StoredVectors(sides[0], sides[1])
    assert start == len(vectors)
    return encoders


def first_queries(dataset: RetrievalDataset, count: int) -> RetrievalDataset:
    qrels = dict(list(dataset.qrels.items())[:count])
    queries = {query: dataset.queries[query] for query in qrels}
    return RetrievalDataset(dataset.name, dataset.corpus, queries, qrels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the static model that the encoder started from")
    parser.add_argument("--sets", nargs="+", default=list(ORDER))
    parser.add_argument("--queries", type=int, default=100_000)
    arguments = parser.parse_args()
    data = data_folder()
    trained = stored_encoders(arguments.vectors, json.loads(arguments.ids.read_text(encoding="utf-8")), data)
    with PEGEncoder(arguments.model) as static:
        for name in arguments.sets:
            dataset = first_queries(load_beir(data / "eval" / name), arguments.queries)
            encoders: dict[str, Encoder] = {"static": static, "trained": trained[name]}
            for kind in ("dense", "hybrid"):
                before, after = (
                    evaluate(Dense(e, n) if kind == "dense" else Indexed("hybrid", e, n), dataset)
                    for n, e in encoders.items()
                )
                difference = compare([before], [after])
                print(
                    f"{name} {kind}: {before.mean():.4f} → {after.mean():.4f},"
                    f" {100 * difference.difference:+.2f} points, p {difference.p:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
