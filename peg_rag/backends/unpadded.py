"""BERT's layers on a CPU over the real tokens of a batch, which are kept in one row without padding.

Linear layers, norms and activations see no padding; only attention pads, to the longest text of the batch. Weights are
packed once for oneDNN, which fuses GELU and the residual sums into the matrix products. With CLS pooling the last layer
computes the first token alone. The forward pass of `transformers` is the reference in the tests.
"""

from typing import Any

import torch
from torch.nn import functional

from peg_rag.backends.linear import Linear

_MODELS = ("BertModel", "RobertaModel", "XLMRobertaModel", "ErnieModel")
_LONGEST_MATRIX = 320  # longer texts take torch's blockwise attention, whose scores never leave the cache


def can_run_unpadded(model: Any) -> bool:
    """Whether a model of `transformers` has the layers that `UnpaddedEncoder` computes."""
    config = model.config
    return (
        type(model).__name__ in _MODELS
        and config.num_hidden_layers > 0
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and all(type(product) is torch.nn.Linear for layer in model.encoder.layer for product in _list_products(layer))
    )


def _list_products(layer: Any) -> list[Any]:
    """The modules of a layer whose weights are taken over; an adapter or a quantised one computes something else."""
    attention = layer.attention.self
    return [
        attention.query,
        attention.key,
        attention.value,
        layer.attention.output.dense,
        layer.intermediate.dense,
        layer.output.dense,
    ]


class UnpaddedEncoder:
    """A BERT-shaped encoder of `transformers`, whose layers it takes over: the model cannot be used any more.

    Args:
        model: one for which `can_run_unpadded` is true, on the CPU.
        linear: how it multiplies.
    """

    def __init__(self, model: Any, linear: type[Linear]) -> None:
        self._dtype = next(model.parameters()).dtype
        self.config = model.config
        self._embeddings = model.embeddings
        self._layers: list[_Layer] = []
        for layer in model.encoder.layer:
            self._layers.append(_Layer(layer, model.config.num_attention_heads, linear))
            layer.to("meta")  # the weights are in the new layout now
        self._last = self._layers.pop()

    def compute_states(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last layer's states, (rows, tokens, d), zero on padding, for ids (rows, tokens) padded on the right."""
        places = _TokenPlaces(lengths, ids.shape[1], self._dtype)
        states = self._run_layers(ids, places)
        return places.pad(self._last(states, places))

    def compute_first_states(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last layer's states of every row's first token, (rows, d)."""
        places = _TokenPlaces(lengths, ids.shape[1], self._dtype)
        states = self._run_layers(ids, places)
        return self._last.compute_first(states, places)

    def _run_layers(self, ids: torch.Tensor, places: "_TokenPlaces") -> torch.Tensor:
        states = places.drop_padding(self._embeddings(input_ids=ids))
        for layer in self._layers:
            states = layer(states, places)
        return states


class _TokenPlaces:
    """Where the tokens of a padded batch lie in the row without padding."""

    def __init__(self, lengths: torch.Tensor, longest: int, dtype: torch.dtype) -> None:
        self.rows = len(lengths)
        self.longest = longest
        self.firsts = lengths.cumsum(0) - lengths  # (rows,) the place of every text's first token
        columns = torch.arange(longest)
        is_token = columns < lengths[:, None]  # (rows, longest)
        self.is_full = bool(is_token.all())
        self._tokens = is_token.flatten().nonzero().flatten()  # (tokens,) places in the padded batch
        self._sources = (self.firsts[:, None] + columns).clamp(max=len(self._tokens) - 1).flatten()
        self._padding = ~is_token
        # (rows, 1, 1, longest), added to the scores of attention; None without padding
        self.mask: torch.Tensor | None = None
        if not self.is_full:
            zeros = torch.zeros(is_token.shape, dtype=dtype)
            self.mask = zeros.masked_fill(self._padding, float("-inf"))[:, None, None]

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """(tokens, d) → (rows, longest, d), zero on padding."""
        padded = self._lay_out_rows(states)
        return padded if self.is_full else padded.masked_fill(self._padding[:, :, None], 0)

    def split_heads(self, states: torch.Tensor, parts: int, heads: int) -> torch.Tensor:
        """(tokens, parts × d) → (parts, rows, heads, longest, d / heads); padding repeats other tokens."""
        padded = self._lay_out_rows(states).view(self.rows, self.longest, parts, heads, -1)
        return padded.permute(2, 0, 3, 1, 4).contiguous()

    def join_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, heads, longest, d / heads) → (tokens, d)."""
        return self.drop_padding(states.transpose(1, 2).reshape(self.rows, self.longest, -1))

    def drop_padding(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, longest, d) → (tokens, d)."""
        flat = states.reshape(self.rows * self.longest, -1)
        return flat if self.is_full else flat[self._tokens]

    def _lay_out_rows(self, states: torch.Tensor) -> torch.Tensor:
        flat = states if self.is_full else states[self._sources]
        return flat.view(self.rows, self.longest, -1)


class _Layer:
    """One layer of BERT, normed after each residual sum, on states (tokens, d)."""

    def __init__(self, layer: Any, heads: int, linear: type[Linear]) -> None:
        attention = layer.attention.self
        self._heads = heads
        self._scaling = (attention.query.out_features // heads) ** -0.5
        self._query = _join_linears([attention.query], linear)
        self._key_value = _join_linears([attention.key, attention.value], linear)
        self._attention_output = _Sublayer(layer.attention.output, linear)
        self._up = _join_linears([layer.intermediate.dense], linear)
        self._output = _Sublayer(layer.output, linear)

    def __call__(self, states: torch.Tensor, places: _TokenPlaces) -> torch.Tensor:
        query = places.split_heads(self._query(states), 1, self._heads)[0]
        context = places.join_heads(self._compute_context(query, states, places))
        return self._feed_forward(self._attention_output(context, states))

    def compute_first(self, states: torch.Tensor, places: _TokenPlaces) -> torch.Tensor:
        """The states of every row's first token only, (rows, d)."""
        first = states[places.firsts]
        query = self._query(first).view(places.rows, 1, self._heads, -1).transpose(1, 2)
        context = self._compute_context(query, states, places).reshape(places.rows, -1)
        return self._feed_forward(self._attention_output(context, first))

    def _compute_context(self, query: torch.Tensor, states: torch.Tensor, places: _TokenPlaces) -> torch.Tensor:
        """What the queries (rows, heads, n, d / heads) take from the states: of the queries' shape."""
        key, value = places.split_heads(self._key_value(states), 2, self._heads)
        mask = places.mask
        if places.longest > _LONGEST_MATRIX:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self._scaling)
        scores = torch.matmul(query * self._scaling, key.transpose(-1, -2))
        if mask is not None:
            scores += mask
        return torch.matmul(scores.softmax(dim=-1), value)

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._output(self._up.apply_gelu(states), states)


class _Sublayer:
    """The end of a sublayer: a product, the residual sum and the norm."""

    def __init__(self, module: Any, linear: type[Linear]) -> None:
        self._linear = _join_linears([module.dense], linear)
        self._weight = module.LayerNorm.weight.detach()
        self._bias = module.LayerNorm.bias.detach()
        self._epsilon = module.LayerNorm.eps

    def __call__(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = self._linear.add_to(residual, states)
        return functional.layer_norm(total, self._weight.shape, self._weight, self._bias, self._epsilon)


def _join_linears(modules: list[Any], linear: type[Linear]) -> Linear:
    """One product for modules that multiply the same states."""
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = torch.cat([module.bias.detach() for module in modules])
    return linear(weight, bias)
