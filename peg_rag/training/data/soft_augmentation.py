"""Soft augmentation: in every step other tokens of a text are masked or replaced (CoCoSoDa, arXiv 2204.03293).

A text that never looks the same twice cannot be learned by heart. The choice depends on the seed, the step and the text
alone, not on the rank or the worker. For transformers: it needs a mask token, and to a mean of word vectors a missing
token means little. Costs some ten operations a token.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from peg_rag.errors import RecipeError
from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peg_rag.training.data.batches import RankBatch
    from peg_rag.training.data.tokens import Ints, TokenRows

MASK_TOKENS = ("[MASK]", "<mask>")
SPECIAL_TOKENS = (*MASK_TOKENS, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "<pad>", "<unk>", "<s>", "</s>")
_SALT = 21


class SoftAugmentationOptions(Options):
    """Tokens that are masked or replaced, anew in every step."""

    kind: Literal["soft_augmentation"]
    share: float = Field(default=0.1, gt=0, le=1)
    """Probability of a token to be changed."""
    replaced: float = Field(default=0.2, ge=0, le=1)
    """Share of the changed tokens that become a random token; the others become the mask token."""
    sides: Literal["queries", "documents", "both"] = "both"

    def build(self, stage: StageContext) -> "SoftAugmentation":
        """The transform of a stage.

        Raises:
            RecipeError: the tokenizer has no mask token.
        """
        return SoftAugmentation(self, stage.tokenizer, stage.seed)


class SoftAugmentation:
    """Masks and replaces tokens. A `BatchTransform`."""

    def __init__(self, options: SoftAugmentationOptions, tokenizer: "Tokenizer", seed: int) -> None:
        mask_id = mask_token(tokenizer)
        if mask_id is None:
            raise RecipeError(
                f"soft_augmentation needs a tokenizer with a mask token ({' or '.join(MASK_TOKENS)}); this one has "
                "none. Remove the transform, or train a transformer"
            )
        self._options = options
        self._seed = seed
        self._mask_id = mask_id
        self._special = special_tokens(tokenizer)
        self._ordinary = np.setdiff1d(np.arange(tokenizer.get_vocab_size(), dtype=np.int32), self._special)

    def __call__(self, batch: "RankBatch", step: int) -> "RankBatch":
        """The batch with other tokens; lengths and keys stay."""
        queries = batch.queries
        documents = batch.documents
        if self._options.sides != "documents":
            queries = self._change_tokens(queries, batch.query_keys, step)
        if self._options.sides != "queries":
            documents = self._change_tokens(documents, batch.document_keys, step)
        return replace(batch, queries=queries, documents=documents)

    def _change_tokens(self, rows: "TokenRows", keys: "Ints", step: int) -> "TokenRows":
        from peg_rag.training.data.tokens import TokenRows

        choice, kind, word = (self._draw_words(rows, keys, step, draw) for draw in range(3))
        changed = (_to_unit(choice) < self._options.share) & ~np.isin(rows.tokens, self._special)
        replaced = changed & (_to_unit(kind) < self._options.replaced)
        tokens = np.where(changed, np.int32(self._mask_id), rows.tokens)
        tokens[replaced] = self._ordinary[word[replaced] % np.uint64(len(self._ordinary))]
        return TokenRows(tokens, rows.offsets)

    def _draw_words(self, rows: "TokenRows", keys: "Ints", step: int, draw: int) -> NDArray[np.uint64]:
        """A random word for each token, by its text and its place in it, (total,)."""
        from peg_rag.training.data.sampler import mix

        places = np.arange(len(rows.tokens)) - np.repeat(rows.offsets[:-1], rows.lengths)
        texts = mix(keys.view(np.uint64), self._seed, _SALT, step, draw)
        return mix(np.repeat(texts, rows.lengths) + places.astype(np.uint64), _SALT)


def mask_token(tokenizer: "Tokenizer") -> int | None:
    """The id of the token that stands for a hidden one, where there is one."""
    ids = [tokenizer.token_to_id(token) for token in MASK_TOKENS]
    return next((token_id for token_id in ids if token_id is not None), None)


def special_tokens(tokenizer: "Tokenizer") -> NDArray[np.int32]:
    """The ids of tokens that stand for no text, in ascending order."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}  # a learned vocabulary does not mark them
    return np.array(sorted(special.union(i for i in named if i is not None)), dtype=np.int32)


def _to_unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as numbers from 0 to below 1."""
    return (words >> np.uint64(11)).astype(np.float64) / 2.0**53
