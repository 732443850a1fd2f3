"""Adapting a model to a folder of documents that nobody has labelled."""

from peg_rag.training.adapt.adapt import AdaptOptions, adapt
from peg_rag.training.adapt.report import Adaptation, Judgement

__all__ = ["AdaptOptions", "Adaptation", "Judgement", "adapt"]
