"""The first `peg-mini`: one matrix of word vectors, trained with in-batch negatives on two CPU cores in minutes.

A text's vector is the mean of its words' vectors. There is nothing else to learn, so the norm of a word's vector is its
weight in that mean (what idf is to BM25), and no layer may normalise it away. The words are those that jieba finds in
the training pairs; their log-frequencies make a Unigram tokenizer, which segments as fast as any other and needs no
jieba at run time.

    python train/peg_mini_first.py --data ../shared/data --out peg_rag/assets/peg-mini

Cost: see train/LOG.md. Only sources whose licence allows it are used, for the weights and for the vocabulary alike.
"""

import argparse
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

import jieba
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm

from peg_rag.evaluation import RetrievalDataset, evaluate
from peg_rag.evaluation.datasets import json_rows

# What may go into shipped weights. Left out as research-only: reading-c3, encyclopedia-squad_zh, finance-afqmc,
# general-cinlid, law-lawyer_llama_qa, law-lawyer_llama_article.
SOURCES = (
    "encyclopedia-cmrc2018_trial",
    "film-kdconv",
    "finance-atec",
    "finance-disc_finllm",
    "finance-finese",
    "finance-finna",
    "finance-finqa",
    "general-simclue_pair",
    "general-simclue_rank",
    "general-triclue",
    "insurance-baoxian",
    "law-statutes",
    "medicine-chip_cdn",
    "medicine-chip_sts",
    "medicine-disease_kb",
    "medicine-kuake_qqr",
    "medicine-kuake_qtr",
    "music-kdconv",
    "news-crud_lead",
    "news-xwlb",
    "psychology-smile",
    "realestate-ccf2020",
    "science-csl",
    "tourism-crosswoz",
    "tourism-crosswoz_db",
    "tourism-kdconv",
    "tourism-kdconv_kb",
    "web-qbqtc",
)
NORMALIZER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
MAX_LENGTH = 512  # tokens of a text that count


@dataclass(frozen=True)
class Settings:
    """The dials, all chosen on the validation split.

    Attributes:
        words: entries of the vocabulary.
        dimension: of a vector.
        init: standard deviation of a new vector's entries, before its word's idf scales it.
        idf: power of the idf in that scaling (0: none).
        scale: what cosines are multiplied by in the loss (1 / temperature).
        batch: most queries in a batch.
        steps, learning_rate: of Adam; the rate falls linearly to 0.
        power: a source of n pairs is drawn with weight n^power.
        tokens: of a text that a training step looks at, from a random start.
        drop: share of tokens left out at random in a step.
        negatives: hard negatives a query, where its source gives them.
        seed: of everything random.
    """

    words: int = 40_000
    dimension: int = 256
    init: float = 0.1
    idf: float = 1.0
    scale: float = 25.0
    batch: int = 2_048
    steps: int = 600
    learning_rate: float = 1e-2
    power: float = 0.7
    tokens: int = 160
    drop: float = 0.1
    negatives: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """The pairs of one source; `negatives[i]` may be empty."""

    name: str
    queries: list[str]
    positives: list[str]
    negatives: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: Sequence[int]) -> "Pairs":
        return Pairs(
            self.name, *([column[i] for i in rows] for column in (self.queries, self.positives, self.negatives))
        )


def read_pairs(folder: Path, name: str) -> Pairs:
    rows = [row for _, row in json_rows(folder / "pairs" / f"{name}.jsonl.zst")]
    return Pairs(
        name, [r["query"] for r in rows], [r["positive"] for r in rows], [r.get("negatives", []) for r in rows]
    )


# ---------------------------------------------------------------------------------------------- validation


def split(pairs: Pairs, seed: int, share: float = 0.05, most: int = 300) -> tuple[Pairs, Pairs]:
    """Training and validation pairs that share neither a query nor a positive."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = order[: min(most, int(len(pairs) * share))]
    queries, positives = {pairs.queries[i] for i in held}, {pairs.positives[i] for i in held}
    kept = [i for i in range(len(pairs)) if pairs.queries[i] not in queries and pairs.positives[i] not in positives]
    return pairs.take(kept), pairs.take(sorted(held))


def validation_set(train: Pairs, held: Pairs, most: int = 20_000) -> RetrievalDataset:
    """Each held-out query over the held-out positives and up to `most` training positives of its source."""
    documents = list(dict.fromkeys([*held.positives, *train.positives[:most]]))
    number = {text: f"d{i}" for i, text in enumerate(documents)}
    qrels: dict[str, dict[str, int]] = {}
    for query, positive in zip(held.queries, held.positives, strict=True):
        qrels.setdefault(query, {})[number[positive]] = 1
    corpus = {identifier: text for text, identifier in number.items()}
    return RetrievalDataset(held.name, corpus, {query: query for query in qrels}, qrels)


def validate(model: "WordVectors", sets: Sequence[RetrievalDataset]) -> dict[str, float]:
    """nDCG@10 of each domain (the mean of its sources) and, as `mean`, of the domains."""
    domains: dict[str, list[float]] = {}
    for dataset in sets:
        domains.setdefault(dataset.name.split("-")[0], []).append(evaluate(model, dataset).mean())
    scores = {domain: float(np.mean(values)) for domain, values in domains.items()}
    return scores | {"mean": float(np.mean(list(scores.values())))}


# ---------------------------------------------------------------------------------------------- vocabulary


def count_words(pairs: Pairs, most: int = 30_000) -> Counter[str]:
    """How often jieba finds each word in the first `most` pairs of a source."""
    jieba.setLogLevel(logging.WARNING)
    counts: Counter[str] = Counter()
    for text in dict.fromkeys([*pairs.queries[:most], *pairs.positives[:most]]):
        counts.update(jieba.cut(NORMALIZER.normalize_str(text[:1_000])))
    return counts


def build_tokenizer(sources: Sequence[Pairs], words: int) -> Tokenizer:
    """A Unigram tokenizer of all characters and the most frequent words, scored by their log-frequency."""
    with ProcessPoolExecutor(max_workers=2) as pool:
        counts = sum(pool.map(count_words, sources), Counter())
    counts = Counter({word: n for word, n in counts.items() if not any(c.isspace() for c in word) and len(word) <= 12})
    characters = {character for word in counts for character in word}
    total = sum(counts.values())
    ranked = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    chosen = sorted(characters) + ranked[: words - 1 - len(characters)]
    scored = [("[UNK]", 0.0)] + [(word, math.log(max(counts[word], 0.5) / total)) for word in chosen]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


# ---------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Bags:
    """Texts as token ids: text i is `ids[starts[i] : starts[i] + lengths[i]]`."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> "Bags":
        encodings = (
            encoding.ids
            for start in range(0, len(texts), 10_000)
            for encoding in tokenizer.encode_batch_fast(texts[start : start + 10_000], add_special_tokens=False)
        )
        arrays = [np.array(ids or [0], dtype=np.int32) for ids in encodings]
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        return cls(np.concatenate(arrays or [np.empty(0, np.int32)]), np.cumsum(lengths) - lengths, lengths)

    def take(self, rows: np.ndarray, tokens: int, drop: float, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """Token ids (n_tokens,) and offsets (n_rows,) of `rows`, each cut to `tokens` from a random start."""
        lengths = np.minimum(self.lengths[rows], tokens)
        starts = self.starts[rows] + rng.integers(0, self.lengths[rows] - lengths + 1)
        offsets = np.cumsum(lengths) - lengths
        ids = self.ids[np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())]
        if drop:
            kept = rng.random(len(ids)) >= drop
            kept[offsets] = True  # no text is left empty
            ids, offsets = ids[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]
        return torch.from_numpy(ids), torch.from_numpy(offsets)


class WordVectors(torch.nn.Module):
    """A tokenizer and a matrix (words, dimension); a text is the mean of its words' rows, made a unit vector."""

    def __init__(self, tokenizer: Tokenizer, matrix: torch.Tensor) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.matrix = torch.nn.Parameter(matrix)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.embedding_bag(ids, self.matrix, offsets.to(ids.dtype), mode="mean"), dim=1)

    @torch.no_grad()
    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        bags = Bags.of(self.tokenizer, texts)
        return self(torch.from_numpy(bags.ids), torch.from_numpy(bags.starts)).numpy()

    encode_queries = encode_documents


def start_matrix(tokenizer: Tokenizer, documents: Sequence[Bags], settings: Settings) -> torch.Tensor:
    """Random rows whose length follows the word's idf: before any training, the mean is already a weighted one."""
    frequency = np.zeros(tokenizer.get_vocab_size())
    n_documents = 0
    for bags in documents:
        texts = np.repeat(np.arange(len(bags.lengths)), bags.lengths)
        seen = np.unique(texts * len(frequency) + bags.ids) % len(frequency)  # a word once a text
        frequency += np.bincount(seen, minlength=len(frequency))
        n_documents += len(bags.lengths)
    idf = np.log(1 + n_documents / (1 + frequency))  # (words,)
    generator = torch.Generator().manual_seed(settings.seed)
    matrix = torch.randn(len(idf), settings.dimension, generator=generator)
    return matrix * settings.init * torch.from_numpy((idf / idf.mean()) ** settings.idf).float()[:, None]


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Source:
    """One source ready for training. Equal texts have equal numbers, so that no text is its own negative."""

    name: str
    queries: Bags
    positives: Bags
    negatives: Bags
    query_ids: np.ndarray
    positive_ids: np.ndarray
    negative_ids: np.ndarray  # the number of each negative's text
    first_negative: np.ndarray  # pair i has the negatives first_negative[i] : first_negative[i + 1]

    @classmethod
    def of(cls, tokenizer: Tokenizer, pairs: Pairs) -> "Source":
        number: dict[str, int] = {}
        columns = [pairs.queries, pairs.positives, [text for texts in pairs.negatives for text in texts]]
        numbers = [np.array([number.setdefault(text, len(number)) for text in column], np.int64) for column in columns]
        counts = np.array([len(texts) for texts in pairs.negatives])
        bags = [Bags.of(tokenizer, column) for column in columns]
        return cls(pairs.name, *bags, *numbers, np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return len(self.query_ids)


def batches(
    sources: Sequence[Source], settings: Settings, rng: np.random.Generator
) -> Iterator[tuple[Source, np.ndarray]]:
    """`steps` batches, each from one source drawn with weight n^power; a source is gone through before it repeats."""
    weights = np.array([len(source) ** settings.power for source in sources])
    queues: dict[str, np.ndarray] = {}
    for choice in rng.choice(len(sources), size=settings.steps, p=weights / weights.sum()):
        source = sources[choice]
        queue = queues.get(source.name, np.empty(0, np.int64))
        if len(queue) < min(settings.batch, len(source)):
            queue = rng.permutation(len(source))
        queues[source.name] = queue[settings.batch :]
        yield source, queue[: settings.batch]


def loss_of(
    model: WordVectors, source: Source, rows: np.ndarray, settings: Settings, rng: np.random.Generator
) -> torch.Tensor:
    """Symmetric InfoNCE over the batch, with hard negatives as further candidates of every query."""
    cut = partial(Bags.take, tokens=settings.tokens, drop=settings.drop, rng=rng)
    q = model(*cut(source.queries, rows))  # (batch, dim)
    d = model(*cut(source.positives, rows))  # (batch, dim)
    candidates, texts = d, source.positive_ids[rows]
    if len(hard := pick_negatives(source, rows, settings.negatives, rng)):
        candidates = torch.cat([d, model(*cut(source.negatives, hard))])  # (batch + hard, dim)
        texts = np.concatenate([texts, source.negative_ids[hard]])
    cosines = q @ candidates.T  # (batch, batch + hard)
    # Cosines are bounded: exp(scale * (cosine - 1)) can neither overflow nor vanish, and needs no running maximum.
    weights = torch.exp(settings.scale * (cosines - 1)).masked_fill(torch.from_numpy(same_text(source, rows, texts)), 0)
    positive = settings.scale * (cosines.diagonal() - 1)  # (batch,)
    by_query, by_document = weights.sum(dim=1).log(), weights[:, : len(rows)].sum(dim=0).log()
    return ((by_query + by_document) / 2 - positive).mean()


def pick_negatives(source: Source, rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `most` random negatives of each pair: their positions in `source.negatives`."""
    first, last = source.first_negative[rows], source.first_negative[rows + 1]
    picks = [rng.permutation(np.arange(a, b))[:most] for a, b in zip(first, last, strict=True) if b > a]
    return np.concatenate(picks) if picks and most else np.empty(0, np.int64)


def same_text(source: Source, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(batch, candidates) bool: candidates that are no negatives, being a text or a query met again."""
    same = source.positive_ids[rows][:, None] == texts[None, :]
    queries = source.query_ids[rows]
    same[:, : len(rows)] |= queries[:, None] == queries[None, :]
    np.fill_diagonal(same, False)
    return same


def train(model: WordVectors, sources: Sequence[Source], settings: Settings) -> None:
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=settings.steps)
    progress = tqdm(batches(sources, settings, rng), total=settings.steps, desc="training", mininterval=5)
    for source, rows in progress:
        loss = loss_of(model, source, rows, settings, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", source=source.name, refresh=False)


def save(model: WordVectors, folder: Path) -> None:
    """Write what sentence-transformers calls a StaticEmbedding, in fp16, and what peg_rag reads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    save_file({"embedding.weight": model.matrix.detach().half().contiguous()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    kinds = (("", "StaticEmbedding"), ("1_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    described = {"format": 1, "pooling": "mean", "max_length": MAX_LENGTH, "query_prompt": "", "document_prompt": ""}
    for name, content in (("modules.json", modules), ("peg_rag.json", described)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings, start = Settings(), perf_counter()
    torch.manual_seed(settings.seed)
    splits = [split(read_pairs(arguments.data, name), settings.seed) for name in SOURCES]
    tokenizer = build_tokenizer([kept for kept, _ in splits], settings.words)
    sources = [Source.of(tokenizer, kept) for kept, _ in splits]
    model = WordVectors(tokenizer, start_matrix(tokenizer, [source.positives for source in sources], settings))
    print(f"{sum(map(len, sources)):,} pairs, {tokenizer.get_vocab_size():,} words, {perf_counter() - start:.0f} s")
    train(model, sources, settings)
    save(model, arguments.out)
    print(f"trained after {perf_counter() - start:.0f} s")
    for domain, score in validate(model, [validation_set(*pair) for pair in splits]).items():
        print(f"validation {domain:14} nDCG@10 {score:.3f}")


if __name__ == "__main__":
    main()
