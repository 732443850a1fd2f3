"""A random two-layer BERT with one score on top: a real cross-encoder, small enough to be made in a test."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification


def build(tiny_bert: Path, folder: Path) -> str:
    """Write one to `folder`, with the tokenizer of `tiny_bert`."""
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(tiny_bert, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)
