"""BERT's layers over the real tokens of a batch, which are kept in one row without padding.

Linear layers, norms and activations see no padding; attention pads on a CPU and nowhere else. There the weights are
packed once for oneDNN, which fuses GELU and the residual sums into the matrix products. With CLS pooling the last layer
computes the first token alone. The forward pass of `transformers` is the reference in the tests.
"""

from typing import Any

import torch
from torch.nn import functional

from peg_rag.backends.attention import Attention, PaddedAttention, TokenPlaces, upload
from peg_rag.backends.linear import Linear

_MODELS = ("BertModel", "RobertaModel", "XLMRobertaModel", "ErnieModel")


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
        model: one for which `can_run_unpadded` is true.
        linear: how it multiplies.
        attention: how tokens attend to each other.
    """

    def __init__(self, model: Any, linear: type[Linear], attention: type[Attention] = PaddedAttention) -> None:
        parameter = next(model.parameters())
        self._dtype = parameter.dtype
        self._device = parameter.device
        self._heads = model.config.num_attention_heads
        self._attention = attention
        self.config = model.config
        self._embeddings = model.embeddings
        self._layers: list[_Layer] = []
        for layer in model.encoder.layer:
            self._layers.append(_Layer(layer, linear))
            layer.to("meta")  # the weights are in the new layout now
        self._last = self._layers.pop()

    def compute_states(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last layer's states, zero on padding, on the model's device.

        Args:
            ids: (rows, tokens), padded on the right, on the CPU.
            lengths: tokens of each row, (rows,), 1 or more, on the CPU.

        Returns:
            (rows, tokens, d).
        """
        places = TokenPlaces(lengths, ids.shape[1], self._device)
        attention = self._attention(places, self._heads, self._dtype)
        states = self._run_layers(ids, places, attention)
        return places.pad(self._last(states, attention))

    def compute_first_states(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last layer's states of every row's first token, (rows, d), for what `compute_states` takes."""
        places = TokenPlaces(lengths, ids.shape[1], self._device)
        attention = self._attention(places, self._heads, self._dtype)
        states = self._run_layers(ids, places, attention)
        return self._last.compute_first(states, places.firsts, attention)

    def _run_layers(self, ids: torch.Tensor, places: TokenPlaces, attention: Attention) -> torch.Tensor:
        states = places.drop_padding(self._embeddings(input_ids=upload(ids, self._device)))
        for layer in self._layers:
            states = layer(states, attention)
        return states


class _Layer:
    """One layer of BERT, normed after each residual sum, on states (tokens, d)."""

    def __init__(self, layer: Any, linear: type[Linear]) -> None:
        attention = layer.attention.self
        self._query = _join_linears([attention.query], linear)
        self._key_value = _join_linears([attention.key, attention.value], linear)
        self._attention_output = _Sublayer(layer.attention.output, linear)
        self._up = _join_linears([layer.intermediate.dense], linear)
        self._output = _Sublayer(layer.output, linear)

    def __call__(self, states: torch.Tensor, attention: Attention) -> torch.Tensor:
        context = attention.attend(self._query(states), self._key_value(states))
        return self._feed_forward(self._attention_output(context, states))

    def compute_first(self, states: torch.Tensor, firsts: torch.Tensor, attention: Attention) -> torch.Tensor:
        """The states of every text's first token only, (rows, d)."""
        first = states[firsts]
        context = attention.attend_first(self._query(first), self._key_value(states))
        return self._feed_forward(self._attention_output(context, first))

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
