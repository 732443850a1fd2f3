"""The model that a recipe builds, and what of it a recipe may change."""

from pathlib import Path

import pytest
import torch

from peg_rag.errors import RecipeError
from peg_rag.training.model.encoder import build_encoder, load_encoder
from peg_rag.training.recipe import ModelOptions, StaticOptions, TransformerOptions


def test_a_recipe_sets_the_dropout_of_attention(tiny_bert: Path, tmp_path: Path) -> None:
    assert load_encoder(ModelOptions(path=str(tiny_bert))).body.config.attention_probs_dropout_prob == 0.1
    encoder = load_encoder(ModelOptions(path=str(tiny_bert), attention_dropout=0.0))
    rates = {n: m.p for n, m in encoder.body.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.endswith("self.dropout")} == {0.0}
    assert {rate for name, rate in rates.items() if not name.endswith("self.dropout")} == {0.1}
    encoder.save(tmp_path / "saved")
    saved = load_encoder(ModelOptions(path=str(tmp_path / "saved")))
    assert saved.body.config.attention_probs_dropout_prob == 0.0
    shape = TransformerOptions(hidden_size=16, layers=1, heads=2, tokenizer=str(tiny_bert))
    new = build_encoder(ModelOptions(transformer=shape, attention_dropout=0.05), [], tmp_path)
    assert new.body.encoder.layer[0].attention.self.dropout.p == 0.05
    with pytest.raises(RecipeError, match="EmbeddingBag is not built as BERT is"):
        load_encoder(ModelOptions(path="peg-mini", attention_dropout=0.0))
    with pytest.raises(ValueError, match="no attention"):
        ModelOptions(static=StaticOptions(dimension=8), attention_dropout=0.0)
