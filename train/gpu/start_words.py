"""Vectors of the reader's vocabulary to begin with, from the bundled model: (12,032, 320) float16.

A first network, which began with random vectors, had learned no more than how frequent tokens are after a hundred
million of them. These vectors begin with what `peg-mini` knows of words. Other things were changed with them, so what
they gain alone was not measured (`train/LOG.md`).

    python train/gpu/start_words.py --tokenizer runs/gpu/tokenizer.json --out runs/gpu/words.npy
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from peg_rag import PEGEncoder

SPECIAL = 5  # tokens that are no words
VOCABULARY = 12_032
WIDTH = 320
SPREAD = 0.02  # standard deviation of each number, as of random weights


def read_words(tokenizer: Tokenizer) -> list[str]:
    """The text of each token, without the mark of a word's continuation."""
    words = [""] * VOCABULARY
    for token, number in tokenizer.get_vocab().items():
        words[number] = token.removeprefix("##")
    return words


def make_vectors(words: list[str], encoder: PEGEncoder) -> NDArray[np.float16]:
    """The words' vectors in their `WIDTH` principal directions, the widest of which are damped."""
    vectors = encoder.encode_documents([word or "。" for word in words]).astype(np.float32)
    vectors -= vectors[SPECIAL:].mean(axis=0)
    _, spreads, directions = np.linalg.svd(vectors[SPECIAL:], full_matrices=False)
    table: NDArray[np.float32] = vectors @ directions[:WIDTH].T / np.sqrt(spreads[:WIDTH])
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)
    table *= SPREAD * WIDTH**0.5
    table[:SPECIAL] = np.random.default_rng(0).normal(size=(SPECIAL, WIDTH)) * SPREAD
    return table.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with PEGEncoder("peg-mini") as encoder:
        table = make_vectors(read_words(Tokenizer.from_file(str(arguments.tokenizer))), encoder)
    np.save(arguments.out, table)


if __name__ == "__main__":
    main()
