"""Pack training and evaluation data for an accelerator that has nothing but torch, NumPy and safetensors.

Two files come out: `train.npz.xz` (permitted pairs, BM25 negatives and plain text as uint16 token ids, 55 MiB at most)
and `eval.npz.xz` (the Chinese evaluation sets with BM25's first hundred, scored to report). The tokenizer, characters
and word pieces counted on the permitted sources alone, stays here: the result is joined with it by `unpack.py`.

    python train/gpu/pack.py --out runs/gpu

Cost: about 25 minutes of one core, most of it BM25 and xz; goes on where it was stopped.
"""

import argparse
import io
import json
import lzma
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import NOT_CHINESE, data_folder
from make_text_pairs import PERMITTED, RESEARCH_PASSAGES, known_runs, permitted_domain
from sources import RESEARCH_ONLY

from peg_rag.evaluation import load_beir
from peg_rag.extras import require
from peg_rag.index.tokenizers import BigramTokenizer
from peg_rag.training.data.texts import TextDocument

SAME_AS_TEXT = ("news-crud_lead",)  # the plain text holds these articles: a sentence and its passage teach the same
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 12_000
MAX_TOKENS = 510  # of a text, [CLS] and [SEP] not counted
LARGEST_SOURCES = {"psychology-smile": 16_000}  # pairs drawn from a source that would outweigh all others
VALIDATION_QUERIES = 250  # of a source, never trained on
VALIDATION_CORPUS = 8_000  # passages of a source that validation queries are searched in
CANDIDATES = 50  # of BM25 for a validation query
NEGATIVES = 6  # of BM25 for a training query, besides those that the source gives
RELATIVE_MARGIN = 0.9  # a negative scores at most this share of the positive
EVALUATION_CANDIDATES = 100
SEED = 20

Ids = NDArray[np.uint16]


@dataclass
class Texts:
    """Unique texts, numbered in the order they come."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


@dataclass
class Source:
    """The pairs of one file as numbers of texts."""

    name: str
    queries: list[int] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    negatives: list[list[int]] = field(default_factory=list)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    zstd = require("backports.zstd", "train")
    with zstd.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def pair_files(data: Path) -> list[Path]:
    files = sorted((data / "pairs").glob("*.jsonl.zst"))
    return [file for file in files if file.name.split(".")[0] not in (*RESEARCH_ONLY, *SAME_AS_TEXT)]


def read_source(file: Path, texts: Texts) -> Source:
    """The pairs of a file, a random part of a large one."""
    rows = list(read_rows(file))
    random.Random(SEED).shuffle(rows)
    source = Source(file.name.split(".")[0])
    for row in rows[: LARGEST_SOURCES.get(source.name, len(rows))]:
        source.queries.append(texts.number(row["query"]))
        source.positives.append(texts.number(row["positive"]))
        source.negatives.append([texts.number(text) for text in row.get("negatives", [])])
    return source


def permitted_texts(data: Path) -> Iterator[tuple[str, str]]:
    """Plain text that is known to come from a permitted source, with its domain."""
    names = [*PERMITTED, RESEARCH_PASSAGES]
    runs_by_source = {name: known_runs(data / "pairs" / f"{name}.jsonl.zst") for name in names}
    zstd = require("backports.zstd", "train")
    with zstd.open(data / "text" / "zh.txt.zst", "rt", encoding="utf-8") as lines:
        for line in tqdm(lines, desc="passages", total=108_617, mininterval=10):
            text = line.rstrip("\n")
            if domain := permitted_domain(text, runs_by_source):
                yield domain, text


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Characters of Chinese, single digits, and word pieces of the rest; NFKC and lower case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, min_frequency=3, limit_alphabet=9_000, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], description: str) -> tuple[Ids, NDArray[np.int64]]:
    """Token ids of all texts in one array, and where each ends, without special tokens."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    rows: list[Ids] = []
    for start in tqdm(range(0, len(texts), 4_096), desc=description, mininterval=10):
        batch = tokenizer.encode_batch_fast(list(texts[start : start + 4_096]), add_special_tokens=False)
        rows.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in batch)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.concatenate(rows), np.cumsum(lengths)


class Bm25:
    """bm25s over characters and pairs of characters, the terms of the embedded index."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._tokenizer = BigramTokenizer()
        self._model = require("bm25s", "eval").BM25(k1=1.2, b=0.75)
        self._model.index([self._tokenizer.terms(text) or [""] for text in documents], show_progress=False)
        self._documents = len(documents)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the best `k` documents of each query, (queries, k)."""
        terms = [self._tokenizer.terms(text) or [""] for text in queries]
        k = min(k, self._documents)
        documents, scores = self._model.retrieve(terms, k=k, show_progress=False, n_threads=1)
        return documents, scores


def mine_source(source: Source, texts: list[str], held_out: set[int]) -> dict[str, Any]:
    """BM25 negatives of the training pairs, and the first candidates of the validation queries."""
    chooser = random.Random(SEED)
    corpus = list(dict.fromkeys(source.positives))
    answers: dict[int, set[int]] = defaultdict(set)
    for query, positive in zip(source.queries, source.positives, strict=True):
        answers[query].add(positive)
    validation = [query for query in answers if query in held_out]
    validation_corpus = list(dict.fromkeys(answer for query in validation for answer in answers[query]))
    distractors = [text for text in corpus if text not in set(validation_corpus)]
    chooser.shuffle(distractors)
    validation_corpus += distractors[: max(0, VALIDATION_CORPUS - len(validation_corpus))]
    rows, scores = Bm25([texts[i] for i in validation_corpus]).search([texts[i] for i in validation], CANDIDATES)
    source.negatives = mine_negatives(source, texts, corpus, answers)
    return {
        "queries": np.array(validation, dtype=np.int32),
        "corpus": np.array(validation_corpus, dtype=np.int32),
        "answers": np.array([(q, a) for q in validation for a in answers[q]], dtype=np.int32),
        "rows": rows.astype(np.uint16),
        "scores": scores.astype(np.float16),
    }


def mine_negatives(
    source: Source, texts: list[str], corpus: list[int], answers: dict[int, set[int]]
) -> list[list[int]]:
    index = Bm25([texts[i] for i in corpus])
    row_of = {text: row for row, text in enumerate(corpus)}
    negatives: list[list[int]] = []
    step = 512
    for start in tqdm(range(0, len(source.queries), step), desc=source.name, mininterval=10):
        queries = source.queries[start : start + step]
        rows, scores = index.search([texts[i] for i in queries], 60)
        for offset, query in enumerate(queries):
            positive = source.positives[start + offset]
            of_rows = dict(zip(rows[offset].tolist(), scores[offset].tolist(), strict=True))
            limit = RELATIVE_MARGIN * of_rows.get(row_of[positive], float("inf"))
            source_negatives = [text for text in source.negatives[start + offset] if text not in answers[query]][:2]
            mined = [
                corpus[row]
                for row, score in of_rows.items()
                if 0 < score <= limit and corpus[row] not in answers[query] and corpus[row] != query
            ]
            negatives.append(list(dict.fromkeys([*source_negatives, *mined]))[:NEGATIVES])
    return negatives


def choose_validation(sources: Sequence[Source]) -> set[int]:
    """Queries that no source trains on."""
    held_out: set[int] = set()
    for source in sources:
        queries = sorted(set(source.queries))
        random.Random(SEED + 1).shuffle(queries)
        held_out.update(queries[: min(VALIDATION_QUERIES, len(queries) // 10)])
    return held_out


def write_xz(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26, "lc": 0, "lp": 1, "pb": 1}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(raw.getvalue(), filters=filters))
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB of {len(raw.getvalue()) / 2**20:.1f}")


def pack_training(data: Path, out: Path) -> Tokenizer:
    texts = Texts()
    sources = [read_source(file, texts) for file in pair_files(data)]
    passages: dict[str, list[int]] = defaultdict(list)
    for domain, text in permitted_texts(data):
        passages[domain] += [texts.number(passage) for passage in TextDocument.of(text, characters=480).passages]
    corpus = list(texts.numbers)
    tokenizer_file = out / "tokenizer.json"
    if not tokenizer_file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        train_tokenizer(corpus[::2]).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens, ends = encode(tokenizer, corpus, "tokens")
    arrays: dict[str, NDArray[Any]] = {
        "tokens": tokens,
        "lengths": np.diff(ends, prepend=0).astype(np.uint16),
        "enders": np.array([tokenizer.token_to_id(mark) for mark in "。!?;"], dtype=np.uint16),
    }
    held_out = choose_validation(sources)
    for source in sources:
        validation = mine_source(source, corpus, held_out)
        train = [row for row, query in enumerate(source.queries) if query not in held_out]
        negatives = [source.negatives[row] for row in train]
        arrays[f"{source.name}/queries"] = np.array([source.queries[row] for row in train], dtype=np.int32)
        arrays[f"{source.name}/positives"] = np.array([source.positives[row] for row in train], dtype=np.int32)
        arrays[f"{source.name}/negatives"] = np.array([n for row in negatives for n in row], dtype=np.int32)
        arrays[f"{source.name}/negative_counts"] = np.array([len(row) for row in negatives], dtype=np.uint8)
        arrays |= {f"{source.name}/validation_{name}": value for name, value in validation.items()}
    for domain, numbers in passages.items():
        arrays[f"{domain}-text/passages"] = np.array(numbers, dtype=np.int32)
    np.savez(out / "train.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too
    write_xz(out / "train.npz.xz", arrays)
    print(f"{len(corpus):,} texts, {len(tokens):,} tokens, {sum(len(s.queries) for s in sources):,} pairs")
    return tokenizer


def pack_evaluation(data: Path, out: Path, tokenizer: Tokenizer) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[str, dict[str, list[str]]] = {}
    for folder in sorted(path for path in (data / "eval").iterdir() if path.is_dir()):
        if folder.name in NOT_CHINESE:
            continue
        dataset = load_beir(folder)
        documents = list(dataset.corpus.values())
        query_ids = [query for query in dataset.queries if query in dataset.qrels]
        queries = [dataset.queries[query] for query in query_ids]
        rows, scores = Bm25(documents).search(queries, EVALUATION_CANDIDATES)
        tokens, ends = encode(tokenizer, [*documents, *queries], folder.name)
        arrays[f"{folder.name}/tokens"] = tokens
        arrays[f"{folder.name}/lengths"] = np.diff(ends, prepend=0).astype(np.uint16)
        arrays[f"{folder.name}/documents"] = np.array([len(documents)])
        arrays[f"{folder.name}/rows"] = rows.astype(np.uint16)
        arrays[f"{folder.name}/scores"] = scores.astype(np.float16)
        names[folder.name] = {"documents": list(dataset.corpus), "queries": query_ids}
    (out / "eval_ids.json").write_text(json.dumps(names), encoding="utf-8")
    np.savez(out / "eval.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle` too
    write_xz(out / "eval.npz.xz", arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    arguments = parser.parse_args()
    data = data_folder()
    if not (arguments.out / "train.npz.xz").is_file():
        pack_training(data, arguments.out)
    if not (arguments.out / "eval.npz.xz").is_file():
        pack_evaluation(data, arguments.out, Tokenizer.from_file(str(arguments.out / "tokenizer.json")))


if __name__ == "__main__":
    main()
