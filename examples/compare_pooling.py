"""Why pooling matters: the same model folder gives other vectors, and no error, when it is pooled in the wrong way.

python examples/compare_pooling.py
python examples/compare_pooling.py path/to/PEG

PEG was trained with the vector of its first token, CLS. Its folder does not say so (it has no `modules.json`), and
then sentence-transformers, which stands behind `HuggingFaceEmbeddings`, takes the mean of all tokens. Without an
argument the folder is a small random BERT of the same layout, made here: the mistake is not in the weights.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from langchain_huggingface import HuggingFaceEmbeddings
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer
from transformers.utils import logging

from peg_rag.langchain import PEGEmbeddings

TEXTS = ["花呗更改绑定银行卡", "北京故宫的门票多少钱？", "怎样让红葡萄酒变得更清澈？"]


def random_bert(folder: Path) -> None:
    """A model folder like PEG's: configuration, vocabulary and weights."""
    characters = sorted(set("".join(TEXTS)))
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters])}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    )
    BertModel(config).save_pretrained(folder)


def right_vectors(folder: str) -> NDArray[np.float32]:
    """CLS of the last layer, by hand: (texts, dimension)."""
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state  # (texts, tokens, dimension)
    vectors: NDArray[np.float32] = states[:, 0].float().numpy()
    return vectors


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    cosine: NDArray[np.floating] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def compare(folder: str) -> None:
    right = right_vectors(folder)
    embeddings = {
        "HuggingFaceEmbeddings": HuggingFaceEmbeddings(model_name=folder),
        "PEGEmbeddings": PEGEmbeddings(model=folder, pooling="cls"),  # for TownsWu/PEG, CLS is known
    }
    print("Cosine to the right vector, for three texts:")
    for name, embedding in embeddings.items():
        vectors = np.array(embedding.embed_documents(TEXTS))  # (texts, dimension)
        print(f"  {name:22}", "  ".join(f"{cosine:.3f}" for cosine in cosines(vectors, right)))


def main() -> None:
    logging.disable_progress_bar()
    if len(sys.argv) > 1:
        compare(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        random_bert(Path(folder))
        compare(folder)


if __name__ == "__main__":
    main()
