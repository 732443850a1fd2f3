"""The few collectives a contrastive step needs, and nothing to wait for where there is one process.

Per step and direction: one all-gather of the candidates' vectors, one reduce-scatter of their gradients; besides these
a few integers and floats per row. Ranks may hold different numbers of rows: the shorter are padded for the transfer.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of the default group, or this one alone when none is initialised."""

    def __init__(self) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.size = 1 if alone else dist.get_world_size()
        self.rank = 0 if alone else dist.get_rank()

    def sizes(self, rows: int, device: torch.device) -> list[int]:
        """The number of rows every rank holds, given this one's."""
        if self.size == 1:
            return [rows]
        mine = torch.tensor([rows], device=device)
        counts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(counts, mine)
        return [int(count) for count in counts]

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, (n, …) → (sum of n, …), in the order of the ranks; no gradient."""
        if self.size == 1:
            return tensor
        sizes = self.sizes(len(tensor), tensor.device)
        padded = _padded(tensor, max(sizes))
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def scatter_sum(self, tensor: Tensor, rows: int) -> Tensor:
        """Sum (sum of n, d) over ranks and return this rank's `rows` of it: the transpose of `gather`."""
        if self.size == 1:
            return tensor
        sizes = self.sizes(rows, tensor.device)
        parts = [_padded(part, max(sizes)) for part in torch.split(tensor, sizes)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        return mine[:rows]

    def number(self, tensor: Tensor) -> Tensor:
        """(n,) int64, a number for each of this rank's rows that no row of another rank has."""
        mine = self.mine(tensor)
        return torch.arange(mine.start, mine.stop, device=tensor.device)

    def mine(self, tensor: Tensor) -> slice:
        """Where this rank's rows stand in what `gather` returns."""
        sizes = self.sizes(len(tensor), tensor.device)
        start = sum(sizes[: self.rank])
        return slice(start, start + len(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if len(tensor) == rows:
        return tensor.contiguous()
    filler = tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, filler])
