"""Attention within each text of a batch whose tokens lie one after the other, without padding.

A CPU multiplies rows of equal length best, so `PaddedAttention` pads for this one step. CUDA has kernels for rows of
different lengths: `VarlenAttention` calls the one that torch exposes, in half precision only. `TextwiseAttention` takes
one text after another; it runs everywhere, and the others are checked against it.
"""

import logging
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch.nn import functional

logger = logging.getLogger(__name__)

_LONGEST_MATRIX = 320  # longer texts take torch's blockwise attention, whose scores never leave the cache


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to the device; on CUDA without waiting for what the device still computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class TokenPlaces:
    """Where the tokens of a padded batch lie in the row without padding.

    Args:
        lengths: tokens of each text, (rows,), 1 or more, on the CPU.
        longest: columns of the padded batch.
        device: where the states are.
    """

    def __init__(self, lengths: torch.Tensor, longest: int, device: torch.device | str = "cpu") -> None:
        self.rows = len(lengths)
        self.longest = longest
        self.lengths = lengths
        self.device = torch.device(device)
        is_token = torch.arange(longest) < lengths[:, None]  # (rows, longest)
        self.is_full = bool(is_token.all())
        self.padding = ~is_token
        tokens = is_token.flatten().nonzero().flatten()
        self._tokens = upload(tokens, self.device)  # (tokens,) places in the padded batch

    @cached_property
    def firsts(self) -> torch.Tensor:
        """(rows,) the place of every text's first token."""
        return upload(self.lengths.cumsum(0) - self.lengths, self.device)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """(rows + 1,) where every text begins, and the end."""
        return upload(functional.pad(self.lengths.cumsum(0), (1, 0)).int(), self.device)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, d) → (rows, longest, d), zero on padding."""
        if not self.is_full:
            zeros = states.new_zeros(self.rows * self.longest, states.shape[1])
            states = zeros.index_copy(0, self._tokens, states)
        return states.view(self.rows, self.longest, -1)

    def drop_padding(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, longest, d) → (tokens, d)."""
        flat = states.reshape(self.rows * self.longest, -1)
        return flat if self.is_full else flat[self._tokens]

    def lay_out_rows(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, d) → (rows, longest, d) with other tokens on padding: faster than `pad`, where a mask follows."""
        flat = states if self.is_full else states[self._sources]
        return flat.view(self.rows, self.longest, -1)

    @cached_property
    def _sources(self) -> torch.Tensor:
        columns = torch.arange(self.longest, device=self.device)
        return (self.firsts[:, None] + columns).clamp(max=len(self._tokens) - 1).flatten()


class Attention(Protocol):
    """Attention in one batch, for all its layers. Scores are scaled by (d / heads)^−½."""

    def __init__(self, places: TokenPlaces, heads: int, dtype: torch.dtype) -> None: ...

    def attend(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        """Queries (tokens, d), keys beside values (tokens, 2 d) → (tokens, d)."""
        ...

    def attend_first(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        """Queries of every text's first token (rows, d), keys beside values (tokens, 2 d) → (rows, d)."""
        ...


class PaddedAttention:
    """Pads queries, keys and values to the longest text."""

    def __init__(self, places: TokenPlaces, heads: int, dtype: torch.dtype) -> None:
        self._places = places
        self._heads = heads
        self._mask: torch.Tensor | None = None  # (rows, 1, 1, longest), added to the scores; None without padding
        if not places.is_full:
            zeros = torch.zeros(places.padding.shape, dtype=dtype)
            self._mask = zeros.masked_fill(places.padding, float("-inf"))[:, None, None].to(places.device)

    def attend(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        places = self._places
        context = self._mix_values(self._split_heads(query, 1)[0], key_value)
        return places.drop_padding(context.transpose(1, 2).reshape(places.rows, places.longest, -1))

    def attend_first(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        rows = query.view(self._places.rows, 1, self._heads, -1).transpose(1, 2)
        return self._mix_values(rows, key_value).reshape(self._places.rows, -1)

    def _mix_values(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        """What the queries (rows, heads, n, d / heads) take from the values: of the queries' shape."""
        key, value = self._split_heads(key_value, 2)
        scaling = query.shape[-1] ** -0.5
        if self._places.longest > _LONGEST_MATRIX:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=self._mask, scale=scaling)
        scores = torch.matmul(query * scaling, key.transpose(-1, -2))
        if self._mask is not None:
            scores += self._mask
        return torch.matmul(scores.softmax(dim=-1), value)

    def _split_heads(self, states: torch.Tensor, parts: int) -> torch.Tensor:
        """(tokens, parts × d) → (parts, rows, heads, longest, d / heads)."""
        places = self._places
        rows = places.lay_out_rows(states).view(places.rows, places.longest, parts, self._heads, -1)
        return rows.permute(2, 0, 3, 1, 4).contiguous()


class VarlenAttention:
    """torch's kernel for texts of unlike lengths: CUDA, torch ≥ 2.10, bfloat16 or float16; it has a gradient."""

    def __init__(self, places: TokenPlaces, heads: int, dtype: torch.dtype) -> None:
        self._places = places
        self._heads = heads
        self._single_bounds = torch.arange(places.rows + 1, device=places.device, dtype=torch.int32)

    def attend(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        return self._mix_values(query, key_value, self._places.bounds, self._places.longest)

    def attend_first(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        return self._mix_values(query, key_value, self._single_bounds, 1)

    def _mix_values(
        self, query: torch.Tensor, key_value: torch.Tensor, bounds: torch.Tensor, longest: int
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        key, value = key_value.unflatten(1, (2, self._heads, -1)).unbind(1)  # (tokens, heads, d / heads) each
        heads = query.unflatten(1, (self._heads, -1))
        places = self._places
        context = varlen_attn(heads, key, value, bounds, places.bounds, longest, places.longest)
        assert isinstance(context, torch.Tensor)  # a tuple only where more is asked for
        return context.flatten(1)


class TextwiseAttention:
    """One text after another: the slow reference for the others."""

    def __init__(self, places: TokenPlaces, heads: int, dtype: torch.dtype) -> None:
        self._heads = heads
        self._lengths = places.lengths.tolist()

    def attend(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        return self._mix_values(query.split(self._lengths), key_value)

    def attend_first(self, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
        return self._mix_values(query.split(1), key_value)

    def _mix_values(self, queries: tuple[torch.Tensor, ...], key_value: torch.Tensor) -> torch.Tensor:
        contexts = []
        for query, pair in zip(queries, key_value.split(self._lengths), strict=True):
            key, value = pair.unflatten(1, (2, self._heads, -1)).permute(1, 2, 0, 3)  # (heads, n, d / heads) each
            heads = query.unflatten(1, (self._heads, -1)).transpose(0, 1)
            context = functional.scaled_dot_product_attention(heads, key, value)
            contexts.append(context.transpose(0, 1).flatten(1))
        return torch.cat(contexts)


@lru_cache
def can_attend_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether `VarlenAttention` runs here and agrees with `TextwiseAttention` on three short texts."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    places = TokenPlaces(torch.tensor([5, 3, 1]), 5, device)
    query = torch.linspace(-1, 1, 9 * 2 * head_width, device=device).view(9, -1).to(dtype)
    key_value = torch.cat([query.flip(0), query.cos()], dim=1)
    reference = TextwiseAttention(places, 2, dtype)
    try:
        kernel = VarlenAttention(places, 2, dtype)
        pairs = [
            (reference.attend(query, key_value), kernel.attend(query, key_value)),
            (reference.attend_first(query[:3], key_value), kernel.attend_first(query[:3], key_value)),
        ]
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        logger.info("batches are padded on %s: %s", device, str(error).splitlines()[0])
        return False
    return all(torch.allclose(one, two, rtol=0.02, atol=0.02) for one, two in pairs)
