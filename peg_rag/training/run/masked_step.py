"""One step of RetroMAE over a batch of any size: chunk by chunk, with the gradient of the whole batch.

The loss is a mean over tokens, so chunks can be back-propagated one after the other, each with the number of tokens of
the whole batch: what comes out is the plain step's gradient, and one chunk's activations are held at a time. Across
ranks the counts are summed first and the parameters reduced once, in the last chunk.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peg_rag.batching import plan_batches
from peg_rag.training.data.corpus import TextBatch
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import LossMetrics
from peg_rag.training.model.retromae import HiddenTexts, RetroMAE, TokenLosses

CHUNK_TOKENS = {"cpu": 4_096, "cuda": 32_768}


class MaskedStep:
    """Call it with a batch: gradients are added to the parameters, as `loss.backward()` would.

    Args:
        model: bare or in DistributedDataParallel.
        batch_tokens: rows × longest of a chunk; None takes 4,096, and 32,768 on a GPU.
        device: where the model is.
    """

    def __init__(
        self, model: nn.Module, *, batch_tokens: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens or CHUNK_TOKENS.get(self.device.type, 4_096)

    def __call__(self, batch: TextBatch) -> LossMetrics:
        """The loss of the batch of all ranks, with its gradient added to the parameters."""
        ranks = Ranks()
        counts = self._count_tokens(batch, ranks)
        chunks = plan_batches(batch.texts.lengths, self.batch_tokens)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for chunk in chunks:
            last = chunk is chunks[-1]
            with nullcontext() if last else self._no_sync(), torch.enable_grad():
                losses: TokenLosses = (self.model if last else self._local_model)(self._pad_texts(batch, chunk))
                loss = losses.encoder / counts[0] + losses.decoder / counts[1]
                (loss * ranks.size).backward()  # DistributedDataParallel divides by the number of ranks
            torch.clear_autocast_cache()  # it holds weights cast with a graph that is gone
            sums += _detach_sums(losses)
        return _make_metrics(ranks.sum(sums), counts)

    def score(self, batch: TextBatch) -> float:
        """The loss of a batch that this rank has alone, without dropout or gradients."""
        model = self._local_model
        training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        try:
            with torch.no_grad():
                for chunk in plan_batches(batch.texts.lengths, self.batch_tokens):
                    sums += _detach_sums(model(self._pad_texts(batch, chunk)))
        finally:
            model.train(training)
        return _make_metrics(sums, self._count_tokens(batch, None)).loss

    def state_dict(self) -> dict[str, Any]:
        """The weights of decoder and head, and the size in use."""
        return {"batch_tokens": self.batch_tokens, "decoder": self._local_model.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.batch_tokens = state["batch_tokens"]
        self._local_model.load_own_state(state["decoder"])

    def _count_tokens(self, batch: TextBatch, ranks: Ranks | None) -> Tensor:
        """Tokens that the encoder and the decoder tell, (2,) float64, 1 at least; of all ranks where they are given."""
        counts = torch.tensor([batch.masked.sum(), batch.ordinary.sum()], dtype=torch.float64, device=self.device)
        return (counts if ranks is None else ranks.sum(counts)).clamp(min=1)

    def _pad_texts(self, batch: TextBatch, rows: NDArray[np.intp]) -> HiddenTexts:
        lengths = batch.texts.lengths[rows]
        place = np.arange(max(int(lengths.max()), 1))
        real = place < lengths[:, None]  # (rows, longest)
        index = np.where(real, batch.texts.offsets[:-1][rows][:, None] + place, 0)
        parts = {
            "ids": np.where(real, batch.texts.tokens[index], self._local_model.encoder.pad_id).astype(np.int64),
            "real": real,
            "ordinary": batch.ordinary[index] & real,
            "masked": batch.masked[index] & real,
            "words": batch.words[index],
        }
        return HiddenTexts(**{name: torch.from_numpy(part).to(self.device) for name, part in parts.items()})

    @property
    def _local_model(self) -> RetroMAE:
        """The model without its wrapper, whose every forward would talk to the other ranks."""
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        assert isinstance(model, RetroMAE)
        return model

    def _no_sync(self) -> Any:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


def _detach_sums(losses: TokenLosses) -> Tensor:
    return torch.stack([part.detach().double() for part in (losses.encoder, losses.decoder, losses.right)])


def _make_metrics(sums: Tensor, counts: Tensor) -> LossMetrics:
    """`accuracy` and `masked_share`: of the tokens that the encoder tells."""
    encoder, decoder, right = (sums / torch.stack([counts[0], counts[1], counts[0]])).tolist()
    return LossMetrics(
        loss=encoder + decoder,
        accuracy=right,
        positive_similarity=0.0,
        hard_share=0.0,
        masked_share=float(counts[0] / counts[1]),
        t=0.0,
        temperature=0.0,
    )
