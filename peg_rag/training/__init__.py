"""Training text-embedding models: recipes in YAML, contrastive steps over very large batches, mined hard negatives.

The names are resolved when first touched: a recipe can be read and checked without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from peg_rag.extras import require

if TYPE_CHECKING:
    from peg_rag.training.clean.clean import CleaningOptions as CleaningOptions
    from peg_rag.training.clean.clean import CleaningReport as CleaningReport
    from peg_rag.training.clean.clean import clean_pairs as clean_pairs
    from peg_rag.training.mining.mine import MiningOptions as MiningOptions
    from peg_rag.training.mining.mine import MiningReport as MiningReport
    from peg_rag.training.mining.mine import mine_hard_negatives as mine_hard_negatives
    from peg_rag.training.recipe import Recipe as Recipe
    from peg_rag.training.run.train import TrainingResult as TrainingResult
    from peg_rag.training.run.train import train as train

_HOMES = {
    "CleaningOptions": "peg_rag.training.clean.clean",
    "CleaningReport": "peg_rag.training.clean.clean",
    "clean_pairs": "peg_rag.training.clean.clean",
    "MiningOptions": "peg_rag.training.mining.mine",
    "MiningReport": "peg_rag.training.mining.mine",
    "mine_hard_negatives": "peg_rag.training.mining.mine",
    "Recipe": "peg_rag.training.recipe",
    "TrainingResult": "peg_rag.training.run.train",
    "train": "peg_rag.training.run.train",
}
__all__ = [
    "CleaningOptions",
    "CleaningReport",
    "MiningOptions",
    "MiningReport",
    "Recipe",
    "TrainingResult",
    "clean_pairs",
    "mine_hard_negatives",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peg_rag.training' has no attribute {name!r}")
    if _HOMES[name] == "peg_rag.training.run.train":
        require("accelerate", "train")  # transformers asks for it late and without saying how to get it
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
