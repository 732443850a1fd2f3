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
        self.size = 1
        self.rank = 0
        if dist.is_available() and dist.is_initialized():
            self.size = dist.get_world_size()
            self.rank = dist.get_rank()

    def sizes(self, rows: int, device: torch.device) -> list[int]:
        """The number of rows every rank holds, given this one's."""
        if self.size == 1:
            return [rows]
        rank_rows = torch.tensor([rows], device=device)
        counts = [torch.empty_like(rank_rows) for _ in range(self.size)]
        dist.all_gather(counts, rank_rows)
        return [int(count) for count in counts]

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, (n, …) → (sum of n, …), in the order of the ranks; no gradient."""
        if self.size == 1:
            return tensor
        sizes = self.sizes(len(tensor), tensor.device)
        padded = _pad_rows(tensor, max(sizes))
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def scatter_sum(self, tensor: Tensor, rows: int) -> Tensor:
        """Sum (sum of n, d) over ranks and return this rank's `rows` of it: the transpose of `gather`."""
        if self.size == 1:
            return tensor
        sizes = self.sizes(rows, tensor.device)
        parts = [_pad_rows(part, max(sizes)) for part in torch.split(tensor, sizes)]
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, parts)
        return total[:rows]

    def number(self, tensor: Tensor) -> Tensor:
        """(n,) int64, a number for each of this rank's rows that no row of another rank has."""
        rows = self.own_slice(tensor)
        return torch.arange(rows.start, rows.stop, device=tensor.device)

    def own_slice(self, tensor: Tensor) -> slice:
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

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.size > 1:
            dist.barrier()


def _pad_rows(tensor: Tensor, rows: int) -> Tensor:
    if len(tensor) == rows:
        return tensor.contiguous()
    filler = tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, filler])
