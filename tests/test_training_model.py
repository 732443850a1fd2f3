"""The model that a recipe builds, and what of it a recipe may change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from peg_rag.backends.attention import TextwiseAttention
from peg_rag.errors import RecipeError
from peg_rag.training.model.encoder import build_encoder, load_encoder
from peg_rag.training.model.unpadded import compute_unpadded_states
from peg_rag.training.recipe import ModelOptions, StaticOptions, TransformerOptions


def test_a_recipe_asks_for_unpadded_batches(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they work is tested on CUDA; here the slow twin takes the kernel's place."""
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    features = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    padded = load_encoder(ModelOptions(path=str(tiny_bert))).eval()
    unpadded = load_encoder(ModelOptions(path=str(tiny_bert), unpadded=True)).eval()
    expected = padded(features)
    torch.testing.assert_close(unpadded(features), expected)
    assert unpadded.states(features)[1, 2].any()
    monkeypatch.setattr("peg_rag.training.model.encoder.can_train_unpadded", lambda body, device: True)
    monkeypatch.setattr(
        "peg_rag.training.model.encoder.compute_unpadded_states",
        lambda body, ids, mask: compute_unpadded_states(body, ids, mask, TextwiseAttention),
    )
    torch.testing.assert_close(unpadded(features), expected)
    torch.testing.assert_close(padded(features), expected)
    assert not unpadded.states(features)[1, 2].any()
    assert padded.states(features)[1, 2].any()
    with pytest.raises(ValueError, match="no padding"):
        ModelOptions(static=StaticOptions(dimension=8), unpadded=True)


def read_attention_dropout(encoder: Any) -> float:
    return float(encoder.body.config.attention_probs_dropout_prob)


def test_a_recipe_sets_the_dropout_of_attention(tiny_bert: Path, tmp_path: Path) -> None:
    assert read_attention_dropout(load_encoder(ModelOptions(path=str(tiny_bert)))) == 0.1
    encoder = load_encoder(ModelOptions(path=str(tiny_bert), attention_dropout=0.0))
    rates = {n: m.p for n, m in encoder.body.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.endswith("self.dropout")} == {0.0}
    assert {rate for name, rate in rates.items() if not name.endswith("self.dropout")} == {0.1}
    encoder.save(tmp_path / "saved")
    saved = load_encoder(ModelOptions(path=str(tmp_path / "saved")))
    assert read_attention_dropout(saved) == 0.0
    shape = TransformerOptions(hidden_size=16, layers=1, heads=2, tokenizer=str(tiny_bert))
    new: Any = build_encoder(ModelOptions(transformer=shape, attention_dropout=0.05), [], tmp_path)
    assert new.body.encoder.layer[0].attention.self.dropout.p == 0.05
    with pytest.raises(RecipeError, match="EmbeddingBag is not built as BERT is"):
        load_encoder(ModelOptions(path="peg-mini", attention_dropout=0.0))
    with pytest.raises(ValueError, match="no attention"):
        ModelOptions(static=StaticOptions(dimension=8), attention_dropout=0.0)
