"""What the experiments share: a log of finished runs, and quick scoring of many static models of one vocabulary.

Why: an experiment is dozens of short runs, and must go on where it was stopped. Tokenising the evaluation sets costs
more than scoring a static model on them, so it is done once for all models that share their words.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from peg_rag.evaluation import RetrievalDataset, evaluate, load_beir

NOT_CHINESE = ("english-xquad", "crosslingual-xquad_zh_en")
RESULTS = Path(__file__).parent / "results"


def data_folder() -> Path:
    """`$PEG_DATA`, or the folder beside the project; recipes find it by the same variable."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.setdefault("PEG_DATA", str(default)))


def chinese_sets(data: Path) -> list[RetrievalDataset]:
    """The ten Chinese evaluation sets: scored to report, never to choose."""
    folders = sorted(path for path in (data / "eval").iterdir() if path.is_dir() and path.name not in NOT_CHINESE)
    return [load_beir(folder) for folder in folders]


class Runs:
    """Finished runs, one JSON object a line; a run whose key is there is not made again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def has(self, key: Mapping[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self._rows)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


class Words:
    """Token ids of texts by one vocabulary, each text tokenised once."""

    def __init__(self, tokenizer_file: Path, length: int = 512) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)
        self._known: dict[str, NDArray[np.int32]] = {}

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        new_texts = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new_texts), 5_000):
            batch = new_texts[start : start + 5_000]
            for text, encoding in zip(batch, self._tokenizer.encode_batch_fast(batch, False), strict=True):
                self._known[text] = np.array(encoding.ids or [0], dtype=np.int32)
        return [self._known[text] for text in texts]


@dataclass
class StaticModel:
    """An encoder: the mean of word vectors, (words, dim), with its token ids shared among models."""

    words: Words
    table: torch.Tensor

    @classmethod
    def load(cls, folder: Path, words: Words) -> "StaticModel":
        return cls(words, load_file(folder / "model.safetensors")["embedding.weight"].float())

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        rows = self.words.ids(texts)
        lengths = np.array([len(row) for row in rows])
        starts = torch.from_numpy(np.cumsum(lengths) - lengths)
        with torch.no_grad():
            ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
            means = torch.nn.functional.embedding_bag(ids, self.table, starts, mode="mean")  # (n, dim)
            unit: NDArray[np.float32] = torch.nn.functional.normalize(means).numpy()
        return unit

    encode_queries = encode_documents


def scores(model: StaticModel, sets: Sequence[RetrievalDataset]) -> dict[str, float]:
    """nDCG@10 of each set."""
    return {dataset.name: evaluate(model, dataset).mean() for dataset in sets}
