"""Vectors of words that stand in like places, for the answerer's question words: 酒店 beside 住宿, 签字 beside 盖章.

    python train/word_vectors.py            # PEG_DATA names the data folder, else ../shared/data; ten CPU minutes
    python train/word_vectors.py --write    # also writes peg_rag/assets/word_vectors.npz

Counts of words that stand within six words of each other, as positive pointwise mutual information with smoothed
contexts (Levy and Goldberg 2014), cut down to 128 dimensions by a randomised singular value decomposition. The words
are those that the bundled model's tokenizer cuts; the text is permitted text alone: questions and passages of the pairs
that are not research-only, search queries, and passages of `text/zh.txt.zst` that `make_text_pairs.py` lets through.
The bundled model's own vectors were learnt from pairs of question and passage, and know few words of an office.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from make_text_pairs import PERMITTED, RESEARCH_PASSAGES, known_runs, permitted_domain
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from sources import RESEARCH_ONLY

from peg_rag.answering.words import fold_text, tokens_of
from peg_rag.training.data.files import read_lines

REPO = Path(__file__).resolve().parent.parent
ASSET = REPO / "peg_rag" / "assets" / "word_vectors.npz"
DIMENSION = 128
VOCABULARY = 24_000
LEAST = 12  # occurrences of a word that is counted
SAMPLE = 3e-5  # share of all words from which a word is thinned out
WINDOW = 6  # words to each side
SMOOTHING = 0.75  # power of a context's frequency
SHIFT = 2.0  # times more often than by chance, from which a pair counts
BREAK = 65_535
MOST_PAIRS = 30_000  # of a source
MOST_TEXTS = 194_178  # pairs and queries come first, then passages of plain text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PEG_DATA", REPO.parent / "shared" / "data")))
    parser.add_argument("--corpus", type=Path, help="file to keep the words of the text in and take them from")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.corpus and options.corpus.is_file():
        content = np.load(options.corpus, allow_pickle=False)
        ids, words = content["ids"], content["words"]
    else:
        ids, words = read_corpus(options.data)
        if options.corpus:
            np.savez_compressed(options.corpus, ids=ids, words=words)
    vectors = fit_vectors(count_pairs(ids.astype(np.int32)))
    show_neighbours(words[:VOCABULARY].tolist(), vectors)
    if options.write:
        write(words[:VOCABULARY], vectors)


def read_corpus(data: Path) -> tuple[NDArray[np.uint16], NDArray[np.str_]]:
    """(numbers of the words of all texts one after the other, `BREAK` between two texts; the words, frequent first).

    Frequent words are thinned out.
    """
    token_lists = (tokens_of(fold_text(text)) for text in texts(data))
    lines = list(islice((line for line in token_lists if len(line) > 2), MOST_TEXTS))
    counts = Counter(token for line in lines for token in line)
    words = [word for word, count in counts.most_common(BREAK - 1) if count >= LEAST]
    total = sum(counts.values())
    numbers = {word: number for number, word in enumerate(words)}
    chances = {word: min(1.0, (SAMPLE * total / counts[word]) ** 0.5) for word in words}
    rng = np.random.default_rng(0)
    ids: list[int] = []
    for line in lines:
        draws = rng.random(len(line))
        ids += [numbers[t] for t, draw in zip(line, draws, strict=True) if t in numbers and draw < chances[t]]
        ids.append(BREAK)
    return np.array(ids, dtype=np.uint16), np.array(words)


def texts(data: Path) -> Iterator[str]:
    for path in sorted((data / "pairs").glob("*.jsonl.zst")):
        name = path.name.removesuffix(".jsonl.zst")
        if name not in RESEARCH_ONLY:
            for number, line in enumerate(read_lines(path)):
                if number == MOST_PAIRS:
                    break
                row = json.loads(line)
                yield f"{row['query']}\n{row['positive']}"
    for name in ("queries-ecom", "queries-video"):
        yield from read_lines(data / "text" / f"{name}.txt.zst")
    runs_by_source = {
        name: known_runs(data / "pairs" / f"{name}.jsonl.zst") for name in (*PERMITTED, RESEARCH_PASSAGES)
    }
    for text in read_lines(data / "text" / "zh.txt.zst"):
        if permitted_domain(text, runs_by_source):
            yield text


def count_pairs(ids: NDArray[np.int32]) -> sparse.csr_matrix:
    """(VOCABULARY, VOCABULARY) how often two words stand within `WINDOW` words of each other in one text."""
    text = np.cumsum(ids == BREAK).astype(np.int32)
    counts = sparse.csr_matrix((VOCABULARY, VOCABULARY), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        first, second = ids[:-distance], ids[distance:]  # (pairs,)
        fits = (text[:-distance] == text[distance:]) & (first < VOCABULARY) & (second < VOCABULARY)
        ones = np.ones(int(fits.sum()), dtype=np.float32)
        pair_counts = sparse.coo_matrix((ones, (first[fits], second[fits])), shape=counts.shape).tocsr()
        counts = counts + pair_counts + pair_counts.T
    return counts


def fit_vectors(counts: sparse.csr_matrix) -> NDArray[np.float32]:
    """Unit vectors (words, DIMENSION) of the words whose pairs were counted."""
    totals = np.asarray(counts.sum(axis=1)).ravel()  # (words,)
    contexts = totals**SMOOTHING / (totals**SMOOTHING).sum()
    pairs = counts.tocoo()
    information = np.log(pairs.data / np.maximum(totals[pairs.row] * contexts[pairs.col], 1e-9) / SHIFT)
    mask = information > 0
    matrix = sparse.csr_matrix(
        (information[mask].astype(np.float32), (pairs.row[mask], pairs.col[mask])), shape=counts.shape
    )
    factors, values, _ = randomized_svd(matrix, n_components=DIMENSION, n_iter=3, n_oversamples=12, random_state=0)
    vectors = (factors * np.sqrt(values)).astype(np.float32)
    vectors -= vectors.mean(axis=0)  # what all words share says nothing
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)  # (words, 1)
    return np.asarray(vectors / lengths, dtype=np.float32)


def show_neighbours(words: list[str], vectors: NDArray[np.float32]) -> None:
    numbers = {word: number for number, word in enumerate(words)}
    for word in ("酒店", "签字", "工资", "保修", "早餐", "丢", "去世", "话费", "老婆", "快递", "退货", "审批"):
        if word in numbers:
            scores = vectors @ vectors[numbers[word]]
            nearest = np.argsort(-scores)[1:9]
            print(" ", word, ", ".join(f"{words[i]} {scores[i]:.2f}" for i in nearest))


def write(words: NDArray[np.str_], vectors: NDArray[np.float32]) -> None:
    scaled = np.round(vectors * 127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-6)).astype(np.int8)
    np.savez_compressed(ASSET, words=words, vectors=scaled)
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
