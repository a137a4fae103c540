"""Several processes that train one network: what each of them is, and what they agree on.

`torchrun --nproc-per-node N -m candid train ...` starts N ranks. They share every batch of the recipe: rank r
takes the r-th part of it. On GPUs they talk through NCCL, on CPUs through gloo.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    number: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    def agree(self, *proposals: int) -> list[int]:
        """For each of the proposals the largest that any rank makes; all ranks call this together."""
        if self.number == 1:
            return list(proposals)
        agreed = torch.tensor(proposals, device=self.device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed.tolist()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks; `value` stays as it is."""
        if self.number > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, in the order of ranks."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Generator[Ranks]:
    """The ranks that torchrun started, joined for the block; this process alone where it started none."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        yield Ranks()
        return
    store, rank, _ = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # on several machines, each counts the starts of its own ranks
        # After a restart the store still holds the addresses of the ranks that died: whoever reads the other's before
        # the other has written its new one is refused the connection.
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=number)
    try:
        yield Ranks(rank, number, device)
    finally:
        dist.destroy_process_group()
