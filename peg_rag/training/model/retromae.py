"""RetroMAE: an encoder learns to put a text into one vector before it sees a single pair (arXiv 2205.12035).

The encoder sees a text with some tokens hidden and tells them, as BERT learns. A decoder of one layer then tells every
token of the text from its vector and from a few of the other tokens, so it can only do well if the vector holds much of
the text. Its decoding is the paper's enhanced one (section 3.2): the query at place i is the vector with the embedding
of the place, the keys are the vector and the tokens of the text, and each place sees tokens of its own, never itself.
The loss is the mean cross-entropy of the encoder's hidden tokens plus that of the decoder's tokens. Decoder and head
are of use in training only; the word embeddings are the encoder's.

The vector is the one that the model serves, by its pooling. What a place sees is drawn on the device from two random
words a token, so no mask of tokens × tokens travels. Costs, besides the encoder, a layer over tokens × tokens and the
product of 1 + `encoder_masked` tokens with the vocabulary, `BLOCK_TOKENS` at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from peg_rag.backends.torch_backend import pool
from peg_rag.errors import RecipeError
from peg_rag.training.model.encoder import TrainableEncoder

BLOCK_TOKENS = 1_024  # whose logits over the vocabulary exist at once
MULTIPLIER = 0x9E3779B1  # odd, below 2**32: the product with a word of 31 bits fits into 63
DRAW_BITS = 31
_DRAW_SHIFT = 16


@dataclass(frozen=True)
class HiddenTexts:
    """Texts with what is hidden, padded on the right, all (rows, tokens) but `words`.

    Attributes:
        ids: int64.
        real: bool, true for a token, false for padding.
        ordinary: bool, tokens that are not special.
        masked: bool, tokens that the encoder does not see.
        words: (rows, tokens, 2) int64 below 2**31; see `draw_visible`.
    """

    ids: Tensor
    real: Tensor
    ordinary: Tensor
    masked: Tensor
    words: Tensor


@dataclass(frozen=True)
class TokenLosses:
    """Sums over the tokens of some texts: cross-entropies with a graph, and how many the encoder told right."""

    encoder: Tensor
    decoder: Tensor
    right: Tensor


class RetroMAE(nn.Module):
    """An encoder with the decoder and the head that train it.

    Args:
        encoder: a transformer with position embeddings, such as BERT; its embeddings are shared.
        mask_id: the token that stands for a hidden one.
        decoder_masked: share of the other tokens that the decoder does not see where it tells one.

    Raises:
        RecipeError: the encoder has no such embeddings.
    """

    def __init__(self, encoder: TrainableEncoder, mask_id: int, decoder_masked: float) -> None:
        super().__init__()
        _check_embeddings(encoder)
        config: Any = encoder.body.config
        self.encoder = encoder
        self.mask_id = mask_id
        self.decoder_masked = decoder_masked
        self.decoder = DecoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, config.hidden_dropout_prob
        )
        self.head = TokenHead(config.hidden_size, config.vocab_size)
        for module in (*self.decoder.modules(), *self.head.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, texts: HiddenTexts) -> TokenLosses:
        """The losses of some texts, summed over their tokens."""
        seen = texts.ids.masked_fill(texts.masked, self.mask_id)
        states = self.encoder.states({"input_ids": seen, "attention_mask": texts.real.long()})  # (rows, tokens, d)
        vectors = pool(states, texts.real.long(), self.encoder.pooling).to(states.dtype)  # (rows, d)
        encoder, right = self._sum_losses(states[texts.masked], texts.ids[texts.masked])
        decoded = self._decode(vectors, texts)  # (rows, tokens, d)
        decoder, _ = self._sum_losses(decoded[texts.ordinary], texts.ids[texts.ordinary])
        return TokenLosses(encoder, decoder, right)

    def own_state(self) -> dict[str, Tensor]:
        """The weights of decoder and head, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `own_state` gave."""
        own = self.own_state()
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def _decode(self, vectors: Tensor, texts: HiddenTexts) -> Tensor:
        """What the decoder makes of each place, (rows, tokens, d)."""
        embeddings: Any = self.encoder.body.embeddings
        context = embeddings(input_ids=texts.ids)
        context = torch.cat([vectors[:, None].to(context.dtype), context[:, 1:]], dim=1)  # (rows, tokens, d)
        queries = embeddings(inputs_embeds=vectors[:, None].expand_as(context))
        decoded: Tensor = self.decoder(queries, context, draw_visible(texts, self.decoder_masked))
        return decoded

    def _sum_losses(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of (n, d) states, summed, and how many tell their token; logits live for a block at a time."""
        loss = states.sum().float() * 0.0
        right = torch.zeros((), dtype=torch.int64, device=states.device)
        words = self.encoder.body.get_input_embeddings().weight  # type: ignore[operator]
        for start in range(0, len(states), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            part, hits = checkpoint(self.head, states[block], targets[block], words, use_reentrant=False)
            loss = loss + part
            right = right + hits
        return loss, right


class DecoderLayer(nn.Module):
    """A BERT layer whose queries and keys differ; post-normalised."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """(rows, tokens, d) twice and (rows, tokens, tokens) bool → (rows, tokens, d)."""
        query, key, value = (
            self._split_heads(part) for part in (self.query(queries), self.key(context), self.value(context))
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        attended = self.attended(attended.transpose(1, 2).flatten(2))  # (rows, tokens, d)
        states = self.attention_norm(queries + self.dropout(attended))
        output: Tensor = self.output_norm(states + self.dropout(self.down(functional.gelu(self.up(states)))))
        return output

    def _split_heads(self, states: Tensor) -> Tensor:
        """(rows, tokens, d) → (rows, heads, tokens, d / heads)."""
        rows, tokens, width = states.shape
        return states.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


class TokenHead(nn.Module):
    """States to logits over the vocabulary, as BERT's head for masked tokens, and their cross-entropy."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, targets: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) states, (n,) tokens, (vocabulary, d) → the sum of cross-entropies, and how many are right."""
        logits = functional.linear(self.norm(functional.gelu(self.transform(states))), words, self.bias)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        right = (logits.detach().argmax(dim=1) == targets).sum()
        return functional.cross_entropy(logits, targets, reduction="sum"), right


def draw_visible(texts: HiddenTexts, hidden: float) -> Tensor:
    """What the decoder sees where it tells each token: (rows, tokens, tokens) bool, true at i, j where i sees j.

    Place 0 holds the vector and is always seen; no token sees itself; special tokens are seen by all; of the others,
    token j is hidden from i with probability `hidden`, as words[i, 0] and words[j, 1] decide.
    """
    mixed = (texts.words[:, :, None, 0] ^ texts.words[:, None, :, 1]) * MULTIPLIER  # (rows, tokens, tokens)
    draws = (mixed >> _DRAW_SHIFT) & (2**DRAW_BITS - 1)
    visible: Tensor = (draws >= round(hidden * 2**DRAW_BITS)) | ~texts.ordinary[:, None, :]
    visible &= texts.real[:, None, :]
    visible &= ~torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
    visible[:, :, 0] = True
    return visible


def _check_embeddings(encoder: TrainableEncoder) -> None:
    embeddings = getattr(encoder.body, "embeddings", None)
    words = getattr(embeddings, "word_embeddings", None)
    width = getattr(getattr(encoder.body, "config", None), "hidden_size", None)
    if words is None or not hasattr(embeddings, "position_embeddings") or words.embedding_dim != width:
        raise RecipeError(
            f"objective retromae needs a transformer with word and position embeddings of its own width, such as BERT; "
            f"{type(encoder.body).__name__} has none. Start from another model, or remove the stage"
        )
