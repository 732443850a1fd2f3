"""Transformers through torch: the reference, with which every other backend must agree.

`dtype="auto"` is bfloat16 where the hardware multiplies it natively (AMX or AVX-512 BF16, CUDA from Ampere on): on a
CPU with it a BERT-large runs two to four times faster than in float32 at a cosine above 0.999. The weights are loaded
once, in that type; memory is the weights plus one batch of activations.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peg_rag.backends.attention import VarlenAttention, can_attend_varlen, upload
from peg_rag.backends.linear import Int8Linear, Linear, can_multiply_int8, pick_linear
from peg_rag.backends.unpadded import UnpaddedEncoder, can_run_unpadded
from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.models import ModelSpec, weight_files

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Budgets where BERT-large is within a few per cent of its best rate (benchmarks/embed.py).
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768, "mps": 8_192}
_WITHOUT_POOLER = ("bert", "roberta", "xlm-roberta", "ernie")


class TorchBackend:
    """An encoder-only transformer whose last layer is pooled into one vector a text."""

    def __init__(self, spec: ModelSpec, *, device: str | None = None, dtype: str = "auto") -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.batch_tokens = _BATCH_TOKENS.get(torch.device(self.device).type, 8_192)
        self._pooling = spec.pooling
        self._model: Any = load_model(spec, _pick_weights_type(self.dtype, self.device)).to(self.device)
        self.vocabulary_size = len(token_embeddings(self._model, spec))
        self._pad = int(getattr(self._model.config, "pad_token_id", None) or 0)
        if self.device == "cpu" and can_run_unpadded(self._model):
            self._model = UnpaddedEncoder(self._model, self._pick_linear(self._model.dtype))
        elif self.dtype == "int8":
            raise InvalidInput(f"dtype='int8' runs BERT-shaped models on the CPU, not this one on {self.device}")
        elif can_run_unpadded(self._model) and _can_attend_varlen(self._model):
            linear = pick_linear(self._model.dtype, self._model.device)
            self._model = UnpaddedEncoder(self._model, linear, VarlenAttention)
        self._lock = threading.Lock()  # one batch at a time: bounded memory, and no fight over cores

    def _pick_linear(self, dtype: torch.dtype) -> type[Linear]:
        if self.dtype != "int8":
            return pick_linear(dtype)
        if not can_multiply_int8(dtype):
            raise InvalidInput("dtype='int8' needs a processor with VNNI; 'auto' runs on every one")
        return Int8Linear

    def embed(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return self.start(token_ids)()

    def start(self, token_ids: Sequence[Sequence[int]]) -> Callable[[], NDArray[np.float32]]:
        """A function that waits for what `embed` gives; on CUDA the next batch can be started meanwhile."""
        ids, mask = self._lay_out(token_ids)
        try:
            with self._lock:
                if self._model is None:
                    raise InvalidInput("this backend is closed")
                return self._run_model(ids, mask)
        except torch.OutOfMemoryError:
            if len(token_ids) == 1:
                raise
        torch.cuda.empty_cache()
        self.batch_tokens = max(512, self.batch_tokens // 2)
        logger.warning("out of memory on %s: the batch is halved", self.device)
        half = len(token_ids) // 2
        fetches = [self.start(token_ids[:half]), self.start(token_ids[half:])]
        return lambda: np.concatenate([fetch() for fetch in fetches])

    def close(self) -> None:
        with self._lock:
            self._model = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _lay_out(self, token_ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and their mask, (rows, tokens) each, padded on the right."""
        lengths = torch.tensor(list(map(len, token_ids)))
        is_token = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = np.fromiter(chain.from_iterable(token_ids), dtype=np.int64, count=int(lengths.sum()))
        ids = torch.full(is_token.shape, self._pad)
        ids[is_token] = torch.from_numpy(tokens)
        return ids, is_token.long()

    @torch.inference_mode()
    def _run_model(self, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
        """A function that waits for the pooled vectors, (rows, dimension)."""
        if isinstance(self._model, UnpaddedEncoder):
            vectors = self._pool_unpadded(self._model, ids, mask)
        else:
            device = torch.device(self.device)
            mask = upload(mask, device)
            states = self._model(input_ids=upload(ids, device), attention_mask=mask).last_hidden_state
            vectors = pool(states, mask, self._pooling)
        vectors = vectors.float()
        if vectors.device.type != "cuda":
            return vectors.cpu().numpy
        copy = torch.empty(vectors.shape, pin_memory=True)
        copy.copy_(vectors, non_blocking=True)
        is_done = torch.cuda.current_stream(vectors.device).record_event()

        def fetch() -> NDArray[np.float32]:
            is_done.synchronize()
            return copy.numpy()

        return fetch

    def _pool_unpadded(self, encoder: UnpaddedEncoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(dim=1).clamp(min=1)  # without tokens a row has one of padding
        if self._pooling == "cls":
            return encoder.compute_first_states(ids, lengths)
        states = encoder.compute_states(ids, lengths)
        return pool(states, upload(mask, states.device), self._pooling)


def _can_attend_varlen(model: Any) -> bool:
    config = model.config
    return can_attend_varlen(model.device, model.dtype, config.hidden_size // config.num_attention_heads)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Token states (rows, tokens, d) and their mask (rows, tokens; 1 for a token, padding on the right) → (rows, d)."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        last = mask.sum(dim=1) - 1  # (rows,)
        return states[torch.arange(len(states), device=states.device), last]
    is_token = mask[:, :, None].bool()
    if pooling == "max":
        return states.masked_fill(~is_token, float("-inf")).amax(dim=1)
    summed = states.float().masked_fill(~is_token, 0.0).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True)


def pick_device(device: str | None) -> str:
    """The device asked for, else the best there is: cuda, mps, cpu."""
    if device not in (None, "auto"):
        try:
            return str(torch.empty(0, device=torch.device(str(device))).device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidInput(f"device={device!r} cannot be used here ({reason}); 'cpu' always can") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(dtype: str, device: str) -> str:
    """The type asked for, else bfloat16 where the hardware multiplies it natively, else float32."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return "bfloat16" if _has_fast_bf16(device) else "float32"
    if name not in (*_DTYPES, "int8"):
        raise InvalidInput(f"dtype={dtype!r}, but 'auto' or one of {', '.join(_DTYPES)}, int8 is expected")
    return name


def _pick_weights_type(dtype: str, device: str) -> torch.dtype:
    """The type that the weights are loaded in: for int8 what is fastest where it does not reach."""
    return _DTYPES[pick_dtype("auto", device) if dtype == "int8" else dtype]


def _has_fast_bf16(device: str) -> bool:
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind != "cpu":
        return False
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    has_avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return bool(has_amx or has_avx512)


def load_model(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Load the encoder; weights come from safetensors, or from a .bin read with `weights_only=True`."""
    from transformers import AutoConfig, AutoModel

    files = weight_files(spec.path)
    try:
        config = AutoConfig.from_pretrained(spec.path, trust_remote_code=False, local_files_only=True)
        options = {"add_pooling_layer": False} if config.model_type in _WITHOUT_POOLER else {}
        with _quiet_transformers():
            model, report = AutoModel.from_pretrained(
                spec.path,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # whatever the file's damage makes the loader raise, the user needs the file's name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedModel(f"{files[0]} cannot be loaded as {spec.name}'s weights: {reason}") from error
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise DamagedModel(
            f"{files[0]} lacks {len(missing)} of the model's tensors, which would be random: {', '.join(missing[:3])} …"
        )
    if not token_embeddings(model, spec).any():
        raise DamagedModel(f"{files[0]} holds token embeddings that are all zero; copy or download the model again")
    return model.eval()


def token_embeddings(model: Any, spec: ModelSpec) -> torch.Tensor:
    """The model's table of token embeddings, (vocabulary, d)."""
    try:
        table: torch.Tensor = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError) as error:
        raise DamagedModel(f"{spec.path} holds a model without token embeddings; a text encoder is expected") from error
    return table


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bar and no report on tensors that are left out on purpose; what matters is raised below."""
    from transformers.utils import logging as noise

    level, bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if bars:
            noise.enable_progress_bar()
