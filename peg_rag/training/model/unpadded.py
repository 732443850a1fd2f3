"""The forward pass of a transformer in training without padding: the tokens of a batch go through it as one row.

The model stays the one of `transformers`, weights, dropout and gradient checkpoints included; only its attention is
told where each text begins. Padding costs what it costs in the whole model, and batches of pairs have much of it, for
a short question may share a batch with a long passage.
"""

from typing import Any

import torch
from torch import Tensor, nn

from peg_rag.backends.attention import Attention, TokenPlaces, VarlenAttention, can_attend_varlen

_NAME = "peg_rag_unpadded"  # of the attention, in the registry of transformers
_MODELS = ("BertModel", "RobertaModel", "XLMRobertaModel", "ErnieModel")


def can_train_unpadded(body: nn.Module, device: torch.device) -> bool:
    """Whether the model's states are to be computed without padding: a known one, in half precision, on CUDA.

    torch's kernel has no dropout of attention scores, so a model that is trained with it is padded. So is one that was
    compiled: every number of tokens would be compiled anew.
    """
    config: Any = getattr(body, "config", None)
    if device.type != "cuda" or type(body).__name__ not in _MODELS or getattr(config, "is_decoder", False):
        return False
    if getattr(body, "_compiled_call_impl", None) is not None:
        return False
    if body.training and config.attention_probs_dropout_prob > 0:
        return False
    weights = next(body.parameters()).dtype
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weights
    return can_attend_varlen(device, dtype, config.hidden_size // config.num_attention_heads)


def compute_unpadded_states(
    body: Any, ids: Tensor, mask: Tensor, attention: type[Attention] = VarlenAttention
) -> Tensor:
    """The last layer's states with their graph.

    Args:
        body: a model of the kinds that `can_train_unpadded` knows.
        ids: (rows, tokens), padded on the right.
        mask: (rows, tokens), 1 for a token; every row has one.
        attention: how tokens attend to each other.

    Returns:
        (rows, tokens, d), zero on padding.
    """
    _use_attention(body)
    places = TokenPlaces(mask.sum(dim=1).cpu(), ids.shape[1], ids.device)
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = getattr(body.embeddings, "padding_idx", -1) + 1  # RoBERTa counts positions from its padding's number on
    packed = attention(places, body.config.num_attention_heads, body.dtype)
    output = body(
        input_ids=places.drop_padding(ids).T,  # (1, tokens), as are the positions
        position_ids=places.drop_padding(columns).T + first,
        packed_attention=packed,
    )
    return places.pad(output.last_hidden_state[0])


def _use_attention(body: Any) -> None:
    """Have the model call `_attend`, which without `packed_attention` is torch's attention over padded rows."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if body.config._attn_implementation == _NAME:
        return
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    body.set_attn_implementation(_NAME)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_attention: Attention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as a layer of transformers calls it: (rows, heads, tokens, d / heads) → (rows, tokens, heads, …)."""
    if packed_attention is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        context: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return context, None
    rows = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]  # (tokens, d) each
    return packed_attention.attend(rows[0], torch.cat(rows[1:], dim=1))[None], None
