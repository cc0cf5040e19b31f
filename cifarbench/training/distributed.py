"""Several processes as one run, started by torchrun: batches, gradients and counts shared out and added up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those of the run; a run without torchrun is a world of one, which never communicates."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of `items`: every `size`-th one, so the parts cover all of them once."""
        return items[self.rank :: self.size]

    def passes(self, batch: int, micro_batch: int | None) -> int:
        """Into how many passes of at most `micro_batch` images each process splits its share of a batch.

        It is one number for all, as each pass may hold an exchange: the largest share's, whose passes are no smaller
        than an image in the smallest.
        """
        largest, smallest = -(-batch // self.size), batch // self.size
        return min(-(-largest // (micro_batch or largest)), max(smallest, 1))

    def add_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Replace every gradient by its sum over the processes, and return that of `loss`, a scalar.

        They travel together, so that every process learns of a loss that is not finite.
        """
        if self.size == 1:
            return loss
        summed = [loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
        flat = torch.cat([values.flatten() for values in summed])
        dist.all_reduce(flat)
        parts = flat.split([values.numel() for values in summed])
        for gradient, part in zip(summed[1:], parts[1:], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[0][0]

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def highest(self, values: list[float]) -> list[float]:
        """The highest of each value over the processes, so that all of them decide alike."""
        if self.size == 1:
            return values
        agreed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed.tolist()

    def same_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers (the running statistics of batch normalisation)."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """Put together, in order, the rows of which each process holds its `share`; (total, …) on every process."""
        if self.size == 1:
            return rows
        most = -(-total // self.size)
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def tell(self, value: Any) -> Any:
        """The first process's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun's environment describes, for as long as the block lasts; a world of one without it.

    A block that ends well waits until those of all processes do, so that none is left talking to nobody.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    try:
        yield _join(size)
        dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(size: int) -> World:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= here else "gloo"
    # CPU tensors (decisions, objects) travel by gloo beside nccl's GPU tensors.
    kind = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
    dist.init_process_group(kind, store=_store(), rank=int(os.environ["RANK"]), world_size=size)
    return World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))


def _store() -> dist.Store:
    """Where the processes find each other: torchrun's store, under a name of this attempt's own.

    Under one name for all attempts, as torch 2.14 has it, a restarted process reads the addresses of the dead ones.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = not is_hosted and os.environ["RANK"] == "0"
    store = dist.TCPStore(host, port, int(os.environ["WORLD_SIZE"]), is_master)
    return dist.PrefixStore(f"cifarbench/attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
